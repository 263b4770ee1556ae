"""Two strips of pictures show an answer: a card for each, told by its position, and nothing of it becomes markup."""

from __future__ import annotations

from dataclasses import replace

import pytest

from inflib.widgets.answer import QUERY
from inflib.widgets.image_influence import ImageInfluence
from inflib.widgets.image_lists import ImageLists
from inflib.widgets.ranking import Settings


@pytest.fixture
def answer(shipped):
    sides = shipped.digits.train, shipped.digits.queries
    influence = ImageInfluence(shipped.model, shipped.objective, shipped.index, *sides, shipped.methods)
    return influence.ask(225, Settings("EK-FAC", count=3))


def test_every_ranked_picture_is_a_card_and_a_choice_tells_its_position(answer) -> None:
    lists, chosen = ImageLists(), []
    lists.on_choose(chosen.append)
    lists.show(answer, "rings a bell")
    for strip, few in zip(lists.strips, answer.lists, strict=True):
        assert [card["key"] for card in strip.cards] == [ranked.picture.position for ranked in few]
        assert all(card["tip"].endswith("a click rings a bell") for card in strip.cards)
        assert all("rings a bell" in card["spoken"] for card in strip.cards)
        strip._handle_custom_msg({"chosen": strip.cards[1]["key"]}, [])
    assert chosen == [few[1].picture.position for few in answer.lists]


def test_headings_remarks_and_the_link_say_what_the_answer_says(answer) -> None:
    lists = ImageLists()
    lists.show(answer, "")
    for heading, title, note in zip(lists.headings, answer.titles(), answer.notes(), strict=True):
        assert title in heading.value and note in heading.value
    assert answer.explanation() in lists.explanation.value
    assert f"influence_query_{answer.subject.index}.csv" in lists.csv.value


def test_a_label_from_outside_does_not_become_markup(answer) -> None:
    lists, name = ImageLists(), "<img src=x onerror=alert(1)>"
    lists.show(
        replace(answer, subject=replace(answer.subject, side=QUERY, label=name, predictions=((name, 0.9), ("5", 0.1)))),
        "",
    )
    shown = "".join(heading.value for heading in lists.headings) + lists.explanation.value + lists.csv.value
    assert name not in shown
    assert "&lt;img src=x" in shown
