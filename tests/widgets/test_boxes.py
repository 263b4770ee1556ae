"""Boxes: a check that was run leaves the explanations that agree with it, and a verdict is answered."""

from __future__ import annotations

import numpy as np
import pytest

from inflib.conformance import CHECKS
from inflib.lab.mistakes import MISTAKES, boxes, broken
from inflib.widgets import Boxes

BY_NAME = {mistake.name: mistake for mistake in MISTAKES}
FAILING = {
    "sound": frozenset(),
    "sign": frozenset({"an_example_speaks_for_itself", "a_linear_model_is_refitted"}),
    "observed labels": frozenset({"the_curvature_has_the_models_labels", "a_linear_model_is_refitted"}),
}


@pytest.fixture
def panel() -> Boxes:
    truth = {"box 1": "observed labels", "box 2": "sound"}
    libraries = {name: broken(BY_NAME.get(what)) for name, what in truth.items()}
    faces = {name: [np.full((4, 4), 100 * k, dtype=np.uint8)] for k, name in enumerate(truth)}
    return Boxes(libraries, truth, FAILING, faces)


def run(panel: Boxes, check: str) -> None:
    panel.check.value = check
    panel.run.click()
    assert panel.error.value == ""


def say(panel: Boxes, what: str) -> str:
    panel.verdict.value = what
    panel.say.click()
    return panel.answer.value


def test_a_check_leaves_the_explanations_that_would_have_given_its_outcome(panel) -> None:
    assert panel.left == list(FAILING)
    run(panel, "a_linear_model_is_refitted")
    assert panel.left == ["sign", "observed labels"]
    assert (
        "✗ fails" in panel.record.value and "2 of 3 explanations are left: sign, observed labels" in panel.record.value
    )
    run(panel, "an_example_speaks_for_itself")
    assert panel.left == ["observed labels"]
    assert "✓ holds" in panel.record.value


def test_a_verdict_is_right_or_contradicted_or_not_yet_supported(panel) -> None:
    assert "nothing so far speaks against it: run a check" in say(panel, "sign")
    run(panel, "an_example_speaks_for_itself")
    assert "not sign: it would not have given" in say(panel, "sign")
    assert "right: observed labels, after 1 check" in say(panel, "observed labels")


def test_each_box_has_its_own_record_and_pictures(panel) -> None:
    run(panel, "a_linear_model_is_refitted")
    face = panel.face.value
    panel.box.value = "box 2"
    assert panel.face.value != face and "no check was run" in panel.record.value
    assert panel.left == list(FAILING)
    panel.box.value = "box 1"
    assert panel.face.value == face and panel.left == ["sign", "observed labels"]


def test_the_still_says_what_was_run_and_does_not_give_the_box_away(panel) -> None:
    run(panel, "a_linear_model_is_refitted")
    assert panel.as_text().splitlines() == [
        "Boxes: box 1 of 2",
        "  a_linear_model_is_refitted: failed",
        "  2 of 3 explanations are left: sign, observed labels",
    ]
    bundle = panel._repr_mimebundle_()
    assert bundle["text/html"] == panel.as_html()
    assert "a linear model is refitted" in bundle["text/html"] and "<img" in bundle["text/html"]


def test_every_check_can_be_chosen_by_its_name_in_words(panel) -> None:
    assert [(name.replace("_", " "), name) for name in CHECKS] == list(panel.check.options)


def test_boxes_without_an_explanation_are_refused() -> None:
    with pytest.raises(ValueError, match="for each an explanation that is among them"):
        Boxes({"box 1": broken(None)}, {"box 1": "unheard of"}, FAILING, {"box 1": []})


def test_boxes_are_drawn_by_lot_the_same_for_a_seed() -> None:
    assert boxes(5, seed=0) == boxes(5, seed=0) != boxes(5, seed=1)
    drawn = [what for seed in range(40) for what in boxes(5, seed=seed).values()]
    assert 0.2 < drawn.count(None) / len(drawn) < 0.5
    assert {what.name for what in drawn if what} == set(BY_NAME)
