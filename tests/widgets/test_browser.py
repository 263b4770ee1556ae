"""The image browser from Python: each control changes what is shown, at once, and what is shown can be taken away."""

from __future__ import annotations

import csv
import io
import re

import pytest
import torch

from inflib import damping_of, influence
from inflib.widgets import ImageBrowser
from inflib.widgets.answer import QUERY, TRAINING


@pytest.fixture
def browser(shipped) -> ImageBrowser:
    return shipped.browser()


CONTROLS = {
    "position": 4,
    "method": "K-FAC",
    "damping": 10.0,
    "layer": "out",
    "measurement": "margin",
    "count": 5,
    "label_filter": "4",
    "asked": "0",
}


def drawn(browser: ImageBrowser) -> tuple[object, ...]:
    """What the front end is given to show."""
    strips = [(strip.label, strip.cards) for strip in browser.strips]
    return (browser.subject.value, *(h.value for h in browser.headings), strips, browser.csv.value)


@pytest.mark.parametrize("name", CONTROLS)
def test_every_control_changes_what_is_shown(browser, name) -> None:
    before, still = drawn(browser), browser.as_html()
    getattr(browser, name).value = CONTROLS[name]
    assert browser.error.value == ""
    assert drawn(browser) != before
    assert browser.as_html() != still


def _p_of_label(picture) -> float:
    return picture.probability(picture.label)


def click(browser: ImageBrowser, strip: int, place: int) -> None:
    """What the front end sends when a card is clicked."""
    key = browser.strips[strip].cards[place]["key"]
    browser.strips[strip]._handle_custom_msg({"chosen": key}, [])


def test_the_cards_are_the_answer(browser) -> None:
    for strip, few in zip(browser.strips, browser.answer.lists, strict=True):
        assert [card["key"] for card in strip.cards] == [r.picture.position for r in few]
        assert len(strip.cards) == 8
    first = browser.strips[0].cards[0]
    assert first["number"].startswith("+")
    assert first["positive"]
    assert f"#{browser.answer.raised[0].picture.index}" in first["lines"][2]["text"]
    assert browser.strips[1].cards[0]["number"].startswith("−")


def test_a_click_asks_back_a_second_one_goes_on_and_the_button_returns(browser) -> None:
    clicked = browser.answer.raised[0].picture
    assert browser.back.layout.display == "none"
    click(browser, 0, 0)
    assert (browser.answer.subject.side, browser.answer.subject.position) == (TRAINING, clicked.position)
    assert browser.back.layout.display != "none"
    browser.back.click()
    assert (browser.answer.subject.side, browser.answer.subject.position) == (QUERY, 225)

    click(browser, 1, 2)
    goes_to = browser.strips[1].cards[3]["key"]
    click(browser, 1, 3)
    assert (browser.answer.subject.side, browser.answer.subject.position) == (QUERY, goes_to)
    assert browser.position.value == goes_to + 1


def test_settings_changed_while_asking_back_keep_the_training_digit(browser) -> None:
    click(browser, 0, 1)
    position, numbers = browser.answer.subject.position, [r.score for r in browser.answer.raised]
    browser.damping.value = 1.0
    assert browser.answer.subject.position == position
    assert [r.score for r in browser.answer.raised] != numbers


def test_next_and_previous_walk_the_misclassified_and_stop_at_the_ends(browser, shipped) -> None:
    wrong = [row for row in range(500) if browser.influence.picture(QUERY, row).wrong]
    assert len(wrong) == 33
    browser.ask(0)
    browser.misclassified.value = True
    seen = [browser.answer.subject.position]
    assert browser.previous.disabled
    while not browser.next.disabled:
        browser.next.click()
        seen.append(browser.answer.subject.position)
    assert seen == wrong
    browser.previous.click()
    assert browser.answer.subject.position == wrong[-2]
    assert browser.position.max == 33


def test_a_filter_keeps_a_query_that_still_matches(browser) -> None:
    browser.misclassified.value = True
    assert browser.answer.subject.position == 225
    browser.label_filter.value = "5"
    assert browser.answer.subject.position == 225
    browser.label_filter.value = "6"
    assert browser.answer.subject.label == "6"
    assert browser.answer.subject.wrong


def test_filters_that_let_nothing_through_say_so_and_recover(shipped) -> None:
    right = [row for row in range(40) if row not in (0, 15, 19)]  # no misclassified query among them
    browser = ImageBrowser(
        shipped.model, shipped.objective, shipped.index, shipped.digits.train, shipped.digits.queries[right]
    )
    browser.misclassified.value = True
    assert browser.error.value == ""
    assert "0 of 37 match" in browser.matches.value
    assert browser.position.disabled
    assert browser.next.disabled
    browser.misclassified.value = False
    assert not browser.position.disabled
    browser.next.click()
    assert browser.answer.subject.position == 1


def test_asking_for_a_hidden_query_lifts_the_filters(browser) -> None:
    browser.misclassified.value = True
    browser.ask(1)
    assert not browser.misclassified.value
    assert browser.position.value == 2


def test_damping_is_given_in_numbers_and_rests_where_it_plays_no_role(browser) -> None:
    assert "λ = 0.00031, 0.00075, 0.0029" in browser.damping_note.value
    browser.method.value = "gradient dot product"
    assert browser.damping.disabled
    assert "plays no role" in browser.damping_note.value
    browser.method.value = "EK-FAC"
    assert not browser.damping.disabled


def test_a_certain_model_is_remarked_on(browser) -> None:
    certain = max(range(500), key=lambda row: _p_of_label(browser.influence.picture(QUERY, row)))
    browser.ask(certain)
    assert "all but certain" in browser.explanation.value
    browser.ask(225)
    assert "all but certain" not in browser.explanation.value


def test_an_error_while_answering_is_shown_and_the_last_answer_stays(browser, monkeypatch) -> None:
    def broken(*_args, **_kwargs):
        raise RuntimeError("<script>lost</script>")

    before = drawn(browser)
    monkeypatch.setattr(browser.influence, "_scores", broken)
    browser.damping.value = 1.0
    assert "RuntimeError" in browser.error.value
    assert "&lt;script&gt;lost" in browser.error.value
    assert "<script>" not in browser.error.value
    assert drawn(browser) == before
    click(browser, 0, 0)
    assert "RuntimeError" in browser.error.value
    monkeypatch.undo()
    browser.count.value = 4
    assert browser.error.value == ""
    assert drawn(browser) != before


def test_the_table_says_what_is_shown_and_how_it_was_made(browser, tmp_path) -> None:
    table = browser.table()
    assert [row["list"] for row in table] == ["proponent"] * 8 + ["opponent"] * 8
    assert [row["index"] for row in table[:8]] == [r.picture.index for r in browser.answer.raised]
    for row in table:
        assert row["contribution"] == pytest.approx(row["score"] / 4500)
        assert (row["unit"], row["asked_class"]) == ("nats, order only", "5")
        assert (row["about_index"], row["method"], row["damping"]) == (2209, "EK-FAC", 0.1)
    read = list(csv.DictReader(io.StringIO(browser.to_csv(tmp_path / "shown.csv").read_text(encoding="utf-8"))))
    assert [float(row["score"]) for row in read] == [row["score"] for row in table]
    assert 'download="influence_query_2209.csv"' in browser.csv.value
    browser.method.value = "gradient dot product"
    assert {(row["damping"], row["contribution"], row["unit"]) for row in browser.table()} == {("", "", "")}


def test_the_still_is_the_same_each_time_and_shows_what_the_widget_shows(browser, shipped) -> None:
    text, html = browser.as_text(), browser.as_html()
    again = shipped.browser()
    assert (again.as_text(), again.as_html()) == (text, html)
    assert html.count("<img") == 17
    assert html.count("data:image/png;base64,") == 17
    assert not re.search(r"<script|<style|https?:", html)
    for strip in browser.strips:
        for card in strip.cards:
            assert card["number"] in text
            assert card["number"] in html
            assert card["picture"] in html
    assert len(html) < 60_000
    assert not re.search(r"\d\.\d{6}", text)


def test_names_from_outside_are_escaped(shipped) -> None:
    name = "<img src=x onerror=alert(1)>"
    browser = shipped.browser(curvatures={name: shipped.index.curvature})
    assert name in browser.as_text()
    assert name not in browser.as_html()
    assert "&lt;img src=x" in browser.as_html()


def test_every_control_has_a_label(browser) -> None:
    for name in (*CONTROLS, "misclassified", "previous", "next", "back"):
        assert getattr(browser, name).description.strip()


def test_sliders_wait_for_the_hand_to_rest(browser) -> None:
    assert not any(slider.continuous_update for slider in (browser.position, browser.damping, browser.count))


# --- one name for each thing -----------------------------------------------------------------------------------


def test_a_query_has_one_number_on_the_page(browser) -> None:
    """Where it stands among those stepped through, and where in MNIST; its row in the queries is nobody's business."""
    browser.misclassified.value = True
    assert f"{browser.position.value} of 33 misclassified, MNIST #2209<" in browser.matches.value
    assert "query, MNIST #2209" in browser.subject.value
    browser.label_filter.value = "5"
    assert re.search(r"\d of \d misclassified with label 5, MNIST #2209<", browser.matches.value)
    browser.label_filter.value, browser.misclassified.value = "any", False
    browser.ask(0)
    assert f"1 of 500, {browser.answer.subject.number}<" in browser.matches.value


def test_one_can_ask_why_it_is_not_another_class(browser, shipped) -> None:
    """Another class is another measurement of the same picture: log p(0) in place of log p(5)."""
    browser.asked.value = "0"
    assert browser.answer.titles()[0].endswith("the log-likelihood of class 0")
    assert "label 5" in browser.subject.value
    truth = influence(
        shipped.model,
        shipped.objective,
        shipped.train,
        [(shipped.digits.queries.inputs[[225]].double(), torch.tensor([0]))],
        shipped.index.curvature,
        damping_of(shipped.index.curvature, 0.1),
        progress=False,
    )[0]
    found = torch.tensor([r.score for r in browser.answer.raised], dtype=torch.float64)
    torch.testing.assert_close(found, truth.topk(8).values, rtol=1e-9, atol=0)


def test_one_can_ask_about_what_the_model_says(browser) -> None:
    browser.asked.value = "6"
    six = [r.score for r in browser.answer.raised]
    browser.asked.value = "predicted"  # of this query it is 6
    assert [r.score for r in browser.answer.raised] == six
    assert browser.answer.titles()[0].endswith("of class 6")
    click(browser, 0, 0)
    assert browser.answer.titles()[0].endswith("of the class that the model says")


def test_the_probability_of_the_class_asked_about_is_always_shown(browser) -> None:
    p = dict(browser.answer.subject.predictions)
    assert f"asked about: class 5, p = {p['5']:.2g}<" in browser.subject.value
    browser.asked.value = "0"
    assert f"asked about: class 0, p = {p['0']:.2g}<" in browser.subject.value
    assert f"class 0, p = {p['0']:.2g}" in browser.as_text()
    assert {row["asked_probability"] for row in browser.table()} == {p["0"]}
    browser.asked.value = "its label"
    click(browser, 0, 0)  # now each query is asked about its own label
    for ranked, card in zip(browser.answer.raised, browser.strips[0].cards, strict=True):
        one, line = ranked.picture, card["lines"][3]["text"]
        assert line.startswith(f"p({one.label}) ")
        assert float(line.split()[1].strip("<%")) == pytest.approx(100 * dict(one.predictions)[one.label], abs=0.1)


def test_asking_back_about_one_class_asks_every_query_about_it(browser) -> None:
    browser.asked.value = "6"
    click(browser, 0, 0)
    assert browser.answer.titles()[0].endswith("raised the log-likelihood of class 6")
    assert {row["asked_class"] for row in browser.table()} == {"6"}
    assert all(card["lines"][3]["text"].startswith("p(6) ") for strip in browser.strips for card in strip.cards)


@pytest.mark.parametrize("asked", [10, -1, "seven"])
def test_a_class_that_there_is_not_is_refused(shipped, asked) -> None:
    with pytest.raises(ValueError, match=f"class {asked} was asked about; expected one from 0 to 9, 'its label' or"):
        shipped.browser(asked=asked)


def test_the_unit_is_said_once_and_the_cards_hold_numbers_alone(browser) -> None:
    assert "Contributions, in nats, order only" in browser.lists.numbers.value
    certain = max(range(500), key=lambda row: _p_of_label(browser.influence.picture(QUERY, row)))
    browser.ask(certain)  # tiny numbers
    assert re.search("Contributions, in 10⁻[⁰¹²³⁴⁵⁶⁷⁸⁹]+ nats, order only", browser.lists.numbers.value)
    numbers = [card["number"] for strip in browser.strips for card in strip.cards]
    assert max(map(len, numbers)) <= 6, numbers
    for ranked, number in zip(browser.answer.raised, numbers, strict=False):
        assert float(number[1:]) * 10.0**browser.answer.scale.power == pytest.approx(ranked.score / 4500, rel=0.01)


# --- an answer belongs to a question ---------------------------------------------------------------------------


def grey(browser: ImageBrowser) -> bool:
    return "inflib-stale" in browser._dom_classes


def test_an_answer_to_another_question_than_the_controls_ask_is_greyed_out(browser, monkeypatch) -> None:
    def broken(*_args, **_kwargs):
        raise RuntimeError("lost")

    assert not grey(browser)
    monkeypatch.setattr(browser.influence, "_scores", broken)
    click(browser, 0, 0)
    assert not grey(browser)  # the controls still ask what is shown
    browser.damping.value = 1.0
    assert grey(browser)
    monkeypatch.undo()
    browser.damping.value = 10.0
    assert not grey(browser)


def test_filters_that_let_nothing_through_grey_out_the_answer(shipped) -> None:
    right = [row for row in range(40) if row not in (0, 15, 19)]
    browser = ImageBrowser(
        shipped.model, shipped.objective, shipped.index, shipped.digits.train, shipped.digits.queries[right]
    )
    browser.misclassified.value = True
    assert grey(browser)
    browser.misclassified.value = False
    assert not grey(browser)
