"""The drawing panel from Python: what is drawn is asked about, each control changes the answer, errors lose nothing."""

from __future__ import annotations

import io
import re
from collections import OrderedDict
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from inflib import CrossEntropy, TrainIndex, damping_of, ekfac, influence, load
from inflib.fingerprints import hash_weights
from inflib.lab import Stroke, as_mnist, cnn, ink_of_strokes, load_checkpoint, normalise, shipped_checkpoint
from inflib.widgets import DrawDigit, three_methods
from inflib.widgets.base import InputError

# one person's digits, on a sheet of 280 × 280
DIGITS = {
    0: [[(140 + 60 * np.cos(a), 140 - 95 * np.sin(a)) for a in np.linspace(1.5, 8.0, 30)]],
    1: [[(150, 40), (135, 240)]],
    2: [[(80, 90), (110, 50), (160, 45), (190, 80), (180, 120), (80, 225), (205, 225)]],
    3: [[(85, 60), (140, 45), (185, 75), (170, 115), (125, 130), (180, 150), (190, 195), (150, 230), (80, 220)]],
    4: [[(110, 45), (80, 140), (195, 140)], [(175, 50), (165, 240)]],
    5: [[(190, 50), (105, 50), (95, 125), (150, 120), (185, 155), (180, 205), (135, 232), (80, 220)]],
    6: [[(170, 40), (110, 100), (90, 170), (110, 225), (160, 230), (185, 190), (160, 150), (105, 170)]],
    7: [[(70, 60), (205, 62), (165, 140), (130, 240)]],
    8: [
        [
            (180, 70),
            (130, 45),
            (95, 75),
            (130, 125),
            (180, 170),
            (160, 225),
            (110, 225),
            (95, 180),
            (150, 120),
            (180, 70),
        ]
    ],
    9: [[(180, 90), (140, 50), (95, 85), (120, 130), (175, 110), (180, 85), (165, 240)]],
}
SEVEN = [Stroke(points) for points in DIGITS[7]]


@pytest.fixture
def panel(shipped) -> DrawDigit:
    return make(shipped, drawing=SEVEN)


def make(shipped, **kwargs) -> DrawDigit:
    return DrawDigit(
        shipped.model, shipped.objective, shipped.index, shipped.digits.train, curvatures=shipped.methods, **kwargs
    )


def from_the_browser(panel: DrawDigit, strokes: list[Stroke]) -> None:
    """What the front end sends when the pen is lifted."""
    drawn = [{"points": [list(p) for p in stroke.points], "width": stroke.width} for stroke in strokes]
    panel.sketch.set_state({"drawing": {"paper": memoryview(b""), "strokes": drawn}})


def upload(panel: DrawDigit, data: bytes) -> None:
    panel.sketch._handle_custom_msg({"uploaded": "picture"}, [memoryview(data)])


def png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def shown(panel: DrawDigit) -> tuple[object, ...]:
    """What the front end is given to show, the sheet apart."""
    strips = [(strip.label, strip.cards) for strip in panel.lists.strips]
    headings = [heading.value for heading in panel.lists.headings]
    return panel.prediction.value, headings, strips, panel.lists.explanation.value, panel.lists.csv.value


# --- drawings --------------------------------------------------------------------------------------------------


def test_the_network_reads_what_a_person_draws(shipped) -> None:
    panel = make(shipped)
    read = {digit: panel.draw([Stroke(points) for points in strokes]) for digit, strokes in DIGITS.items()}
    assert [int(answer.subject.predicted) for answer in read.values()] == list(DIGITS)


def test_the_scores_are_those_of_influence_on_the_drawing(shipped, panel) -> None:
    image = as_mnist(ink_of_strokes(SEVEN))
    np.testing.assert_array_equal(panel.image, image)
    batch = [(normalise(image[None]).double(), torch.tensor([7]))]
    damping = {name: 0.1 * mean for name, mean in shipped.index.curvature.mean_eigenvalues().items()}
    truth = influence(
        shipped.model, shipped.objective, shipped.train, batch, shipped.index.curvature, damping, progress=False
    )[0]
    assert panel.answer.asked == "7"
    found = torch.tensor([r.score for r in panel.answer.raised], dtype=torch.float64)
    torch.testing.assert_close(found, truth.topk(10).values, rtol=1e-9, atol=0)


def test_a_drawing_from_the_browser_is_answered(panel) -> None:
    before = shown(panel)
    from_the_browser(panel, [Stroke(points) for points in DIGITS[3]])
    assert panel.error.value == ""
    assert panel.answer.subject.predicted == "3"
    assert shown(panel) != before
    assert "The model says 3" in panel.prediction.value


def test_nothing_is_shown_before_something_is_drawn_and_controls_may_move(shipped) -> None:
    panel = make(shipped)
    panel.damping.value = 1.0
    panel.asked.value = "4"
    assert (panel.error.value, panel.answer, panel.image, panel.table()) == ("", None, None, [])
    assert "will stand here" in panel.prediction.value
    assert "λ = 0.0031" in panel.damping_note.value
    panel.draw(SEVEN)
    assert (panel.answer.asked, panel.answer.settings.damping) == ("4", 1.0)


CONTROLS = {
    "asked": "2",
    "method": "K-FAC",
    "damping": 10.0,
    "layer": "out",
    "measurement": "margin",
    "count": 5,
}


@pytest.mark.parametrize("name", CONTROLS)
def test_every_control_changes_what_is_shown(panel, name) -> None:
    before, still = shown(panel), panel.as_html()
    getattr(panel, name).value = CONTROLS[name]
    assert panel.error.value == ""
    assert shown(panel) != before
    assert panel.as_html() != still


def test_the_class_asked_about_follows_the_model_until_another_is_chosen(panel) -> None:
    from_the_browser(panel, [Stroke(points) for points in DIGITS[3]])
    assert panel.answer.asked == "3"
    panel.asked.value = "8"
    assert panel.answer.titles()[0].endswith("class 8")
    from_the_browser(panel, SEVEN)
    assert (panel.answer.subject.predicted, panel.answer.asked) == ("7", "8")
    panel.asked.value = "predicted"
    assert panel.answer.asked == "7"


def test_a_click_puts_a_training_digit_on_the_sheet(shipped, panel) -> None:
    key = panel.lists.strips[1].cards[2]["key"]
    panel.lists.strips[1]._handle_custom_msg({"chosen": key}, [])
    assert panel.error.value == ""
    np.testing.assert_array_equal(panel.image, shipped.digits.train.images[key])
    np.testing.assert_array_equal(panel.sketch.ink()[5::10, 5::10], shipped.digits.train.images[key])
    assert key in [ranked.picture.position for few in panel.answer.lists for ranked in few]


def test_a_network_that_reads_images_gets_images(shipped) -> None:
    """to_inputs decides what the model sees: here (1, 1, 28, 28), as a convolution wants it."""
    images = torch.nn.Sequential(OrderedDict([("flat", torch.nn.Flatten()), *shipped.model.named_children()]))
    seen = []

    def to_inputs(drawn: np.ndarray) -> torch.Tensor:
        seen.append(normalise(drawn).view(-1, 1, 28, 28))
        return seen[-1]

    curvature = shipped.index.curvature  # the same function of the same weights, as another model
    held = replace(curvature, facts=replace(curvature.facts, weights=hash_weights(images)))
    shaped = replace(shipped, model=images, index=replace(shipped.index, curvature=held))
    panel = make(shaped, to_inputs=to_inputs, drawing=SEVEN)
    assert seen[0].shape == (1, 1, 28, 28)
    assert panel.as_text() == make(shipped, drawing=SEVEN).as_text()


def test_a_convolutional_network_is_asked_as_any_other(shipped) -> None:
    train, model, objective = shipped.digits.train[:300], cnn(dtype=torch.float64), CrossEntropy()
    load_checkpoint(shipped_checkpoint("mnist_cnn"), model)
    batches = train.batches(100, dtype=torch.float64)
    curvature = ekfac(model, objective, batches, progress=False)
    index = TrainIndex.build(model, objective, batches, curvature, progress=False)
    panel = DrawDigit(model, objective, index, train, drawing=SEVEN, asked=1)
    batch = [(normalise(panel.image[None]).double(), torch.tensor([1]))]
    truth = influence(model, objective, batches, batch, curvature, damping_of(curvature, 0.1), progress=False)[0]
    assert panel.answer.subject.predicted == "7"
    assert "conv2" in dict(panel.layer.options)
    found = torch.tensor([r.score for r in panel.answer.raised], dtype=torch.float64)
    torch.testing.assert_close(found, truth.topk(10).values, rtol=1e-9, atol=0)


# --- pictures --------------------------------------------------------------------------------------------------


def test_an_uploaded_picture_is_put_on_the_sheet_and_asked_about(shipped, panel) -> None:
    digit = shipped.digits.queries.images[225]
    upload(panel, png(255 - digit))
    assert panel.error.value == ""
    assert np.abs(panel.image.astype(int) - digit).mean() < 3
    assert np.abs(panel.sketch.ink()[5::10, 5::10].astype(int) - digit).mean() < 3


WRONG = {
    "text": (b"once upon a time", "neither a PNG nor a JPEG"),
    "huge": (bytes(8_000_001), "may have up to 8 MB"),
    "damaged": (png(np.random.default_rng(0).integers(0, 256, (28, 28), np.uint8))[:400], "damaged"),
    "blank": (png(np.zeros((28, 28), np.uint8)), "No digit can be told"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_file_that_cannot_be_read_is_refused_and_nothing_is_lost(panel, kind) -> None:
    data, message = WRONG[kind]
    before, sheet = shown(panel), panel.sketch.drawing
    upload(panel, data)
    assert message in panel.error.value
    assert "from before this error" in panel.error.value
    assert "Traceback" not in panel.error.value
    assert (shown(panel), panel.sketch.drawing) == (before, sheet)
    with pytest.raises(InputError, match=message):
        panel.upload(data)
    from_the_browser(panel, [Stroke(points) for points in DIGITS[1]])
    assert panel.error.value == ""


def test_a_file_that_was_too_large_to_send_is_refused_as_well(panel) -> None:
    before = shown(panel)
    panel.sketch._handle_custom_msg({"refused": 123_456_789}, [])
    assert "This file has 123.5 MB; a picture may have up to 8 MB" in panel.error.value
    assert shown(panel) == before


def test_an_error_on_an_empty_panel_speaks_of_no_former_answer(shipped) -> None:
    panel = make(shipped)
    upload(panel, b"once upon a time")
    assert "neither a PNG nor a JPEG" in panel.error.value
    assert "from before" not in panel.error.value


@pytest.mark.parametrize("asked", [10, -1, "seven"])
def test_a_class_that_there_is_not_is_refused(shipped, asked) -> None:
    with pytest.raises(ValueError, match=rf"class {asked} was asked about; expected one from 0 to 9"):
        make(shipped, asked=asked)


def test_a_drawing_has_no_label_to_ask_about(shipped) -> None:
    with pytest.raises(ValueError, match="a drawing has no label: expected a class or 'predicted'"):
        make(shipped, asked="its label")


def grey(panel: DrawDigit) -> bool:
    return "inflib-stale" in panel._dom_classes


def test_a_cleared_sheet_has_no_answer_and_that_is_no_error(shipped, panel) -> None:
    """As before anything was drawn; what is drawn next is answered, and so is what undo brings back."""
    from_the_browser(panel, [])
    assert (panel.error.value, panel.answer, panel.image, panel.table()) == ("", None, None, [])
    assert shown(panel) == shown(make(shipped))
    assert panel.as_text() == "DrawDigit: nothing is drawn yet"
    assert not grey(panel)
    panel.count.value = 3  # nothing to ask about
    assert (panel.error.value, panel.answer) == ("", None)
    from_the_browser(panel, SEVEN)
    assert panel.answer.subject.predicted == "7"
    with pytest.raises(InputError, match="Nothing is drawn yet"):
        panel.draw([])


def test_ink_beside_the_sheet_is_no_drawing(panel) -> None:
    from_the_browser(panel, [Stroke([(-90, -90), (-60, -60)])])
    assert (panel.error.value, panel.answer) == ("", None)


def test_an_answer_to_another_drawing_than_the_sheet_holds_is_greyed_out(panel, monkeypatch) -> None:
    def broken(*_args):
        raise RuntimeError("lost")

    upload(panel, b"once upon a time")
    assert not grey(panel)  # refused, so the sheet still holds what is answered
    monkeypatch.setattr(panel.influence, "ask_about", broken)
    from_the_browser(panel, [Stroke(points) for points in DIGITS[3]])
    assert grey(panel)
    monkeypatch.undo()
    panel.damping.value = 1.0  # asks about the drawing of before: the sheet still holds another
    assert grey(panel)
    from_the_browser(panel, [Stroke(points) for points in DIGITS[2]])
    assert not grey(panel)
    monkeypatch.setattr(panel.influence, "ask_about", broken)
    panel.asked.value = "5"
    assert grey(panel)


def test_an_error_while_answering_is_shown_and_the_last_answer_stays(panel, monkeypatch) -> None:
    def broken(*_args):
        raise RuntimeError("<script>lost</script>")

    before, sheet = shown(panel), panel.sketch.drawing
    monkeypatch.setattr(panel.influence, "ask_about", broken)
    upload(panel, png(np.eye(28, dtype=np.uint8) * 255))
    assert "&lt;script&gt;lost" in panel.error.value
    assert (shown(panel), panel.sketch.drawing) == (before, sheet)


# --- what is kept and what it costs ----------------------------------------------------------------------------


def test_the_still_is_the_same_each_time_and_shows_what_the_panel_shows(shipped, panel) -> None:
    text, html = panel.as_text(), panel.as_html()
    again = make(shipped, drawing=SEVEN)
    assert (again.as_text(), again.as_html()) == (text, html)
    assert html.count("<img") == 21
    assert not re.search(r"<script|<style|https?:", html)
    for strip in panel.lists.strips:
        for card in strip.cards:
            assert card["number"] in text
            assert card["number"] in html
            assert card["picture"] in html
    for _, p in panel.answer.subject.predictions:
        assert f"{p:.1%}" in text
        assert f"{p:.1%}" in html


def test_a_panel_without_a_drawing_has_a_still_too(shipped) -> None:
    panel = make(shipped)
    assert panel.as_text() == "DrawDigit: nothing is drawn yet"
    assert "Nothing is drawn yet" in panel.as_html()


def test_the_table_says_what_was_asked(panel, tmp_path) -> None:
    panel.asked.value = "2"
    rows = panel.table()
    assert {(row["about"], row["about_label"], row["about_prediction"], row["asked_class"]) for row in rows} == {
        ("drawing", "", "7", "2")
    }
    assert (
        panel.to_csv(tmp_path / "drawing.csv").read_text(encoding="utf-8").startswith("about,about_index,about_label")
    )


def test_every_control_has_a_label(panel) -> None:
    for name in CONTROLS:
        assert getattr(panel, name).description.strip()


def test_a_drawing_is_answered_by_sixty_thousand(shipped) -> None:
    """The shipped digits over and over, in float32, stand for all of MNIST."""
    rows = np.arange(60_000) % len(shipped.digits.train)
    many, model = shipped.digits.train[rows], deepcopy(shipped.model).float()
    curvature = ekfac(model, shipped.objective, shipped.digits.train.batches(), progress=False)
    index = TrainIndex.build(model, shipped.objective, many.batches(2000), curvature, progress=False)
    panel = DrawDigit(model, shipped.objective, index, many)
    from_the_browser(panel, SEVEN)
    assert panel.answer.subject.predicted == "7"
    assert panel.answer.n_train == 60_000


@pytest.mark.cuda
def test_a_drawing_on_a_gpu_is_answered_as_on_the_cpu(shipped, panel) -> None:
    model = deepcopy(shipped.model).to("cuda")
    curvature = load(shipped_checkpoint("mnist_mlp_ekfac"), model)
    train = shipped.digits.train.batches(device="cuda", dtype=torch.float64)
    index = TrainIndex.build(model, shipped.objective, train, curvature, progress=False)
    methods = three_methods(model, shipped.objective, train, curvature, progress=False)
    there = DrawDigit(model, shipped.objective, index, shipped.digits.train, curvatures=methods)
    for method in methods:
        panel.method.value = there.method.value = method
        expected, came = panel.draw(SEVEN), there.draw(SEVEN)
        for one, other in zip(came.lists, expected.lists, strict=True):
            assert [ranked.picture.position for ranked in one] == [ranked.picture.position for ranked in other]
            np.testing.assert_allclose([r.score for r in one], [r.score for r in other], rtol=1e-8)
