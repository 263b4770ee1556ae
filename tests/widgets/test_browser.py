"""The image browser from Python: each control changes what is shown, at once, and what is shown can be taken away."""

from __future__ import annotations

import csv
import io
import re

import pytest

from inflib.widgets import ImageBrowser
from inflib.widgets.answer import QUERY, TRAINING


@pytest.fixture
def browser(shipped) -> ImageBrowser:
    return shipped.browser()


CONTROLS = {
    "position": 3,
    "method": "K-FAC",
    "damping": 10.0,
    "layer": "out",
    "measurement": "margin",
    "count": 5,
    "label_filter": "4",
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
    assert browser.position.value == goes_to


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
    assert browser.position.max == 32


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
    assert "0 match" in browser.matches.value
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
    assert browser.position.value == 1


def test_damping_is_given_in_numbers_and_rests_where_it_plays_no_role(browser) -> None:
    assert "λ = 0.00031, 0.00075, 0.0029" in browser.damping_note.value
    browser.method.value = "gradient dot product"
    assert browser.damping.disabled
    assert "plays no role" in browser.damping_note.value
    browser.method.value = "EK-FAC"
    assert not browser.damping.disabled


def test_a_certain_model_is_remarked_on(browser) -> None:
    certain = max(range(500), key=lambda row: browser.influence.picture(QUERY, row).label_probability)
    browser.ask(certain)
    assert "all but certain" in browser.explanation.value
    browser.ask(225)
    assert "all but certain" not in browser.explanation.value


def test_an_error_while_answering_is_shown_and_the_last_answer_stays(browser, monkeypatch) -> None:
    def broken(*_args, **_kwargs):
        raise RuntimeError("<script>lost</script>")

    before = drawn(browser)
    monkeypatch.setattr(browser.influence, "scores", broken)
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
        assert row["predicted_change_if_removed"] == pytest.approx(-row["score"] / 4500)
        assert (row["about_index"], row["method"], row["damping"]) == (2209, "EK-FAC", 0.1)
    read = list(csv.DictReader(io.StringIO(browser.to_csv(tmp_path / "shown.csv").read_text(encoding="utf-8"))))
    assert [float(row["score"]) for row in read] == [row["score"] for row in table]
    assert 'download="influence_query_2209.csv"' in browser.csv.value
    browser.method.value = "gradient dot product"
    assert {(row["damping"], row["predicted_change_if_removed"]) for row in browser.table()} == {("", "")}


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
