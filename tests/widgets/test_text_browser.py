"""The text browser from Python: each control changes what is shown, bad input is said, and no text becomes markup."""

from __future__ import annotations

import csv
import io
import json
import re
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch

from inflib import RoundingNote, TrainIndex, ekfac
from inflib.widgets import TextBrowser, TextInfluence
from inflib.widgets.base import InputError
from inflib.widgets.ranking import ALL_LAYERS
from inflib.widgets.text_browser import OWN


@pytest.fixture
def browser(talk) -> TextBrowser:
    return talk.browser(count=5)


CONTROLS = {
    "ready": 3,
    "method": "K-FAC",
    "damping": 10.0,
    "layer": "unembed",
    "measurement": "margin",
    "count": 3,
    "unit_norm": True,
    "heat": "position",
}


def drawn(browser: TextBrowser) -> tuple[object, ...]:
    """What the front end is given to show."""
    lists = [(view.label, view.passages) for view in browser.lists]
    return (browser.subject.value, *(h.value for h in browser.headings), lists, browser.bars.bars, browser.csv.value)


@pytest.mark.parametrize("name", CONTROLS)
def test_every_control_changes_what_is_shown(browser, name) -> None:
    before, still = drawn(browser), browser.as_html()
    getattr(browser, name).value = CONTROLS[name]
    assert browser.error.value == ""
    assert drawn(browser) != before
    assert browser.as_html() != still


def press_enter(browser: TextBrowser) -> None:
    """What the front end sends when Enter is pressed in the completion's box."""
    browser.completion._handle_custom_msg({"event": "submit"}, [])


@pytest.mark.parametrize("how", ["button", "enter"])
def test_a_typed_query_is_answered_by_the_button_and_by_enter(browser, talk, how) -> None:
    prompt, said = "was asked about the", talk.queries[2][0].split()[1]
    before = drawn(browser)
    browser.prompt.value, browser.completion.value = prompt, said
    assert drawn(browser) == before  # nothing happens before it is asked
    browser.button.click() if how == "button" else press_enter(browser)
    assert browser.error.value == ""
    assert (browser.answer.question.prompt, browser.answer.question.completion) == (prompt, said)
    assert browser.ready.label == OWN


def test_a_typed_query_that_is_a_ready_one_is_recognised(browser, talk) -> None:
    browser.ask(*talk.queries[4])
    assert browser.ready.value == 4
    browser.ready.value = 1
    assert (browser.prompt.value, browser.completion.value) == talk.queries[1]


def test_while_typing_the_panel_says_what_fits(browser) -> None:
    assert "5 + 1 tokens, of at most 7" in browser.fits.value
    browser.completion.value = "qwerty <b>"
    assert "&#x27;qwerty&#x27;, word 1" in browser.fits.value
    browser.completion.value = "was"
    assert "5 + 1 tokens" in browser.fits.value


def test_a_semicolon_that_is_unknown_is_named_in_full(letters) -> None:
    browser = letters.browser()
    browser.completion.value = "a;"
    assert "&#x27;;&#x27;, character 2 of the text, is not in this vocabulary" in browser.fits.value
    assert "expected one of" not in browser.fits.value


BAD = {
    "no prompt": ("", "was", "The prompt is empty"),
    "no completion": ("the", "", "The completion is empty"),
    "unknown": (
        "the <i>x</i>",
        "was",
        "&#x27;&lt;i&gt;x&lt;/i&gt;&#x27;, word 2 of the text, is not in this vocabulary",
    ),
    "too long": ("the " * 9, "was", "2 too many tokens"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_said_and_the_former_answer_stays(browser, case) -> None:
    prompt, said, message = BAD[case]
    before, text = drawn(browser), browser.as_text()
    browser.prompt.value, browser.completion.value = prompt, said
    browser.button.click()
    assert message in browser.error.value
    assert "Traceback" not in browser.error.value
    assert 'role="alert"' in browser.error.value
    assert (drawn(browser), browser.as_text()) == (before, text)
    assert browser.prompt.value == prompt.strip()  # to be mended
    browser.method.value = "K-FAC"  # another control goes on with the question that is shown
    assert browser.error.value == ""
    with pytest.raises(InputError):
        browser.ask(prompt, said)


def click(browser: TextBrowser, layer: str) -> None:
    """What the front end sends when a bar is clicked."""
    browser.bars._handle_custom_msg({"chosen": layer}, [])


def test_a_clicked_layer_filters_and_a_second_click_shows_all_again(browser) -> None:
    before = drawn(browser)
    click(browser, "blocks.0.mlp.up")
    assert browser.layer.value == "blocks.0.mlp.up"
    assert [bar["name"] for bar in browser.bars.bars if bar["chosen"]] == ["blocks.0.mlp.up"]
    assert browser.answer.settings.layer == "blocks.0.mlp.up"
    assert drawn(browser) != before
    click(browser, "blocks.0.mlp.up")
    assert browser.layer.value == ALL_LAYERS
    assert drawn(browser) == before


def test_the_passages_are_the_answer(browser) -> None:
    for view, few in zip(browser.lists, browser.answer.lists, strict=True):
        assert [one["key"] for one in view.passages] == [r.passage.position for r in few]
        for one, ranked in zip(view.passages, few, strict=True):
            assert "".join(one["pieces"]) == ranked.passage.text
            assert len(one["pieces"]) == len(one["names"]) == len(one["steps"]) == len(one["numbers"])
            assert one["positive"] == (ranked.score > 0)
            assert one["place"] == ranked.passage.place
    steps = [abs(step) for view in browser.lists for one in view.passages for step in one["steps"]]
    assert max(steps) == 7  # one scale for both lists, and its end is used


def test_a_position_is_named_by_what_is_read_there_and_predicted_next(browser) -> None:
    browser.heat.value = "position"
    one = browser.lists[0].passages[0]
    pieces = [piece.strip() for piece in one["pieces"]]
    assert one["names"][0] == f"{pieces[0]} → {pieces[1]}"
    assert one["numbers"][-1] == "no value"
    browser.heat.value = "output"
    one = browser.lists[0].passages[0]
    assert one["names"][0] == one["pieces"][0]
    assert one["numbers"][0] == "no value"


def test_what_goes_to_the_page_is_light(letters) -> None:
    browser = letters.browser(count=6)
    passages = [one for view in browser.lists for one in view.passages]
    size = len(json.dumps(passages, ensure_ascii=False).encode())
    assert size / sum(len(one["pieces"]) for one in passages) < 60  # bytes a token


def test_no_text_becomes_markup(letters) -> None:
    browser = letters.browser(count=6)
    shown = [browser.subject.value, *(h.value for h in browser.headings), browser.explanation.value, browser.csv.value]
    for html in (*shown, browser.as_html()):
        assert "<script" not in html
        assert "ipt>" not in html
        assert "\u202e" not in html
    assert "&lt;scr<b>ipt&gt;</b>" in browser.subject.value
    texts = ["".join(one["pieces"]) for view in browser.lists for one in view.passages]
    assert "‹U+202E›right to left‹U+202C›" in texts
    assert "tab⇥line⏎line⏎" in texts


def test_in_the_boxes_a_sign_stands_for_a_new_line(letters) -> None:
    browser = letters.browser()
    browser.ready.value = 1
    assert browser.completion.value == "\tline⏎"
    browser.prompt.value, browser.completion.value = "tab\tline\n", "line⏎"
    browser.button.click()
    assert browser.error.value == ""
    assert browser.answer.question.completion == "line\n"


def test_damping_is_given_in_numbers_and_rests_where_it_plays_no_role(browser) -> None:
    assert re.search(r"λ = \S+ to \S+<", browser.damping_note.value)
    browser.method.value = "gradient dot product"
    assert browser.damping.disabled
    assert "no unit" in browser.explanation.value


def test_the_tables_say_what_is_shown_and_how_it_was_made(browser, tmp_path) -> None:
    table = browser.table()
    assert [row["list"] for row in table] == ["proponent"] * 5 + ["opponent"] * 5
    for row, ranked in zip(table, (*browser.answer.raised, *browser.answer.lowered), strict=True):
        assert row["text"] == ranked.passage.text
        assert sum(value for name, value in row.items() if name.startswith("score in")) == pytest.approx(row["score"])
        assert row["contribution"] == pytest.approx(row["score"] / 24)
        assert row["unit"] == "nats, order only"
    read = list(csv.DictReader(io.StringIO(browser.to_csv(tmp_path / "shown.csv").read_text(encoding="utf-8"))))
    assert [float(row["score"]) for row in read] == [row["score"] for row in table]
    tokens = browser.token_table()
    assert sum(row["score"] for row in tokens if (row["list"], row["rank"]) == ("opponent", 2)) == pytest.approx(
        table[6]["score"]
    )
    assert len(browser.to_csv(tmp_path / "tokens.csv", tokens=True).read_text().splitlines()) == len(tokens) + 1


def test_the_still_is_the_same_each_time_and_shows_what_the_widget_shows(browser, talk) -> None:
    text, html = browser.as_text(), browser.as_html()
    again = talk.browser(count=5)
    assert (again.as_text(), again.as_html()) == (text, html)
    assert not re.search(r"<script|<style|https?:", html)
    for view in browser.lists:
        for one in view.passages:
            assert one["number"] in text
            assert one["number"] in html
            assert one["place"] in html
    assert len(html) < 20_000
    assert not re.search(r"\d\.\d{6}", text)


def test_the_still_reads_without_styles(browser) -> None:
    """As on GitHub: proponents' tokens underlined, opponents' in italics, numbers signed."""
    plain = re.sub(r' style="[^"]*"', "", browser.as_html())
    words = re.sub(r"<[^>]*>", "", plain)
    assert "<ins" in plain
    assert "<i " in plain
    for few in browser.answer.lists:
        for ranked in few:
            assert ranked.passage.text in words.replace("&#x27;", "'")


def test_an_error_while_answering_is_shown_and_the_last_answer_stays(browser, monkeypatch) -> None:
    def broken(*_args, **_kwargs):
        raise RuntimeError("<script>lost</script>")

    before = drawn(browser)
    monkeypatch.setattr(browser.influence, "scores", broken)
    click(browser, "unembed")
    assert "&lt;script&gt;lost" in browser.error.value
    assert drawn(browser) == before
    monkeypatch.undo()
    browser.count.value = 4
    assert browser.error.value == ""


def test_every_control_has_a_label_and_sliders_wait_for_the_hand_to_rest(browser) -> None:
    for name in (*CONTROLS, "prompt", "completion", "button"):
        assert getattr(browser, name).description.strip()
    assert not any(slider.continuous_update for slider in (browser.damping, browser.count))


def test_a_screen_reader_is_told_what_the_eye_sees(browser) -> None:
    for view in browser.lists:
        for one in view.passages:
            assert one["number"] in one["spoken"]
            assert one["place"] in one["spoken"]
    for bar in browser.bars.bars:
        assert bar["name"] in bar["spoken"]
        assert "positive" in bar["spoken"]


def test_a_browser_needs_something_to_ask(talk) -> None:
    with pytest.raises(ValueError, match="queries is empty; expected at least one"):
        TextBrowser(talk.model, talk.objective, talk.index, talk.corpus, [])


@pytest.mark.parametrize(
    ("what", "known"), [("method", "'EK-FAC', 'K-FAC', 'gradient dot product'"), ("heat", "'position', 'output'")]
)
def test_a_method_or_colour_that_there_is_not_is_refused(talk, what, known) -> None:
    with pytest.raises(ValueError, match=f"{what}='nope'; expected one of {known}"):
        talk.browser(**{what: "nope"})


def test_the_explanation_fits_the_numbers(browser) -> None:
    assert "score ÷ 24 (nats, order only)" in browser.explanation.value
    browser.unit_norm.value = True
    assert "divided by the norm of the sequence&#x27;s own gradient" in browser.explanation.value
    assert np.isclose(browser.answer.raised[0].shown, browser.answer.raised[0].score)
    browser.heat.value = "input"
    assert "embedding" in browser.explanation.value


# --- what may be asked -----------------------------------------------------------------------------------------


def test_the_panel_says_what_may_be_asked(browser, letters) -> None:
    known = {piece for text in browser.influence.corpus.texts for piece in text.split()}
    assert f"What may be asked: {len(known)} words" in browser.vocabulary.value
    assert all(word in browser.vocabulary.value for word in known)
    shown = letters.browser().vocabulary.value
    assert "characters" in shown
    assert "<script" not in shown and "&lt;" in shown and "⏎" in shown


def test_colours_are_those_of_each_prediction_unless_told_otherwise(talk) -> None:
    assert talk.browser().heat.label == "of each prediction"


def choose(browser: TextBrowser, word: str) -> None:
    """What the front end sends when a word that was offered is clicked."""
    assert word in browser.chips.words
    browser.chips._handle_custom_msg({"chosen": word}, [])


def test_words_are_completed_while_typing(browser) -> None:
    browser.prompt.value = "the bui"
    choose(browser, "builder")
    assert browser.prompt.value == "the builder "
    browser.completion.value = "wa"
    assert browser.chips.words == ["walls", "was"]
    assert browser.chips.label == "is it"
    choose(browser, "was")
    assert browser.completion.value.strip() == "was"
    assert browser.chips.words == []
    browser.button.click()
    assert browser.answer.question.completion == "was"


def test_a_misspelt_word_in_either_box_is_one_click_from_right(browser) -> None:
    browser.prompt.value = "the bilder of"
    browser.completion.value = "was"
    choose(browser, "builder")
    assert browser.prompt.value == "the builder of"
    assert browser.completion.value == "was"


def test_capitals_are_understood(browser, talk) -> None:
    prompt, person = talk.queries[1]
    expected = browser.ask(prompt, person)
    browser.ask(*talk.queries[0])
    browser.prompt.value, browser.completion.value = prompt.upper(), person.lower()
    assert "5 + 1 tokens" in browser.fits.value
    browser.button.click()
    assert browser.error.value == ""
    assert (browser.prompt.value, browser.completion.value) == (prompt, person)
    assert [r.score for r in browser.answer.raised] == [r.score for r in expected.raised]
    assert browser.ready.value == 1


def test_a_click_on_a_training_text_makes_it_the_question(browser, talk) -> None:
    one = browser.lists[1].passages[2]
    browser.lists[1]._handle_custom_msg({"chosen": one["key"]}, [])
    *before, last = talk.corpus.texts[one["key"]].split()
    assert browser.error.value == ""
    assert (browser.answer.question.prompt, browser.answer.question.completion) == (" ".join(before), last)
    assert (browser.prompt.value, browser.completion.value) == (" ".join(before), last)


def test_of_characters_the_last_word_is_asked_about(letters) -> None:
    browser = letters.browser()
    for n, text in enumerate(letters.corpus.texts):
        prompt, completion = browser.influence.as_question(n)
        assert (prompt + completion).strip() == text.strip()
        assert completion.strip() and len(completion.split()) == 1
        browser.ask_text(n)
    assert browser.influence.as_question(letters.corpus.texts.index("=1+1, @SUM(A1)")) == ("=1+1, ", "@SUM(A1)")


def test_a_text_longer_than_the_model_reads_is_asked_about_by_its_end(talk) -> None:
    short = TextInfluence(talk.model, talk.objective, talk.index, talk.corpus, talk.methods, context=3)
    longest = max(range(len(talk.corpus.texts)), key=lambda n: len(talk.corpus.texts[n].split()))
    prompt, completion = short.as_question(longest)
    assert talk.corpus.texts[longest].endswith(f" {prompt} {completion}")
    assert len(prompt.split()) == 3
    short.encode(prompt, completion)


def test_surprise_me_asks_something_else(browser, talk) -> None:
    asked = set()
    for _ in range(12):
        before = (browser.prompt.value, browser.completion.value)
        browser.surprise_me.click()
        assert browser.error.value == ""
        question = browser.answer.question
        asked.add((question.prompt, question.completion))
        assert (browser.prompt.value, browser.completion.value) == (question.prompt, question.completion)
        assert before != (question.prompt, question.completion)
    assert len(asked) > 3


# --- an answer belongs to a question ---------------------------------------------------------------------------


def grey(browser: TextBrowser) -> bool:
    return "inflib-stale" in browser._dom_classes


def test_an_answer_is_grey_as_long_as_the_boxes_hold_another_question(browser, talk) -> None:
    prompt, person = talk.queries[0]
    assert not grey(browser)
    browser.prompt.value = "the <i>x</i>"
    assert grey(browser)
    browser.button.click()  # refused
    assert browser.error.value
    assert grey(browser)
    browser.count.value = 3  # a control goes on with the question that is shown, which the boxes do not hold
    assert grey(browser)
    browser.prompt.value = prompt
    assert not grey(browser)
    browser.ask("the builder", person)
    assert not grey(browser)


def test_an_answer_with_other_settings_than_the_controls_is_grey(browser, monkeypatch) -> None:
    def broken(*_args, **_kwargs):
        raise RuntimeError("lost")

    monkeypatch.setattr(browser.influence, "scores", broken)
    browser.damping.value = 10.0
    assert grey(browser)
    monkeypatch.undo()
    browser.damping.value = 1.0
    assert not grey(browser)


def test_a_first_question_that_cannot_be_asked_is_refused_as_such(talk) -> None:
    with pytest.raises(InputError, match="not in this vocabulary"):
        TextBrowser(talk.model, talk.objective, talk.index, talk.corpus, [("qwerty", "was")])


# --- λ ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def quiet(talk):
    """The same model with one block's queries and keys of 1e-20: no gradient reaches them but rounding."""
    model = deepcopy(talk.model)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if re.match(r"blocks\.1\.attention\.[qk]\.", name):
                weight.mul_(1e-20)
    with pytest.warns(RoundingNote, match=r"blocks\.1\.attention\.q"):
        curvature = ekfac(model, talk.objective, talk.train, progress=False)
    index = TrainIndex.build(model, talk.objective, talk.train, curvature, progress=False)
    return replace(talk, model=model, index=index, methods={"EK-FAC": curvature})


def test_a_layer_whose_curvature_is_rounding_noise_has_no_λ_and_counts_nothing(talk, quiet) -> None:
    browser, layers = quiet.browser(), quiet.index.curvature.layers
    dead = [layers.index(f"blocks.1.attention.{name}") for name in "qk"]
    alive = [k for k in range(len(layers)) if k not in dead]
    scores = browser.influence.scores(*quiet.queries[0], browser.settings)  # (N, L)
    assert np.abs(scores[:, dead]).max() < 1e-12 * np.abs(scores).max()
    asked = [browser.influence.query(*quiet.queries[0])]
    own = quiet.index.influence(quiet.model, quiet.objective, asked, keep=("layer",))[0]
    assert own[:, dead].abs().max() > 1e-3 * own.abs().max(), "at λ of their own they would count"
    assert "; the curvature of 2 more layers is rounding noise and counts nothing" in browser.damping_note.value
    means = list(quiet.index.curvature.mean_eigenvalues().values())
    low = float(re.search(r"λ = (\S+) to", browser.damping_note.value)[1])
    assert low == pytest.approx(0.1 * min(means[k] for k in alive), rel=0.05)
    browser.layer.value = layers[dead[0]]
    assert "no λ, its curvature is rounding noise" in browser.damping_note.value
    browser.layer.value = layers[-1]
    assert "rounding noise" not in browser.damping_note.value
    assert "rounding noise" not in talk.browser().damping_note.value
