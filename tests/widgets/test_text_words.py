"""What may be asked: words are completed, capitals put right, and what was meant is offered."""

from __future__ import annotations

import pytest

from inflib.widgets.text_words import Words

WORDS = Words(["the", "builder", "of", "Benus", "Benot", "built", "was", "The"])


def test_it_says_how_many_words_or_characters_there_are() -> None:
    assert WORDS.describe() == "8 words"
    assert Words("abc \n").describe() == "5 characters"


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        ("THE builder of benus", "the builder of Benus".replace("the", "The")),
        (" the Builder  OF\nBENUS ", "the builder  of\nBenus"),
        ("the wall of Benus", "the wall of Benus"),
        ("", ""),
    ],
)
def test_unknown_capitals_are_put_right_and_all_else_stays(typed, read) -> None:
    assert WORDS.recased(typed) == read


def test_characters_are_put_right_as_words_are() -> None:
    assert Words("abc \nX").recased("ABx\n") == "abX\n"


@pytest.mark.parametrize(
    ("typed", "words", "known"),
    [
        ("the bu", ("builder", "built"), False),
        ("the Ben", ("Benot", "Benus"), False),
        ("the built", (), True),
        ("the built ", (), True),
        ("the bilder of", ("builder",), False),
        ("the qqq of", (), False),
        ("t", ("The", "the"), False),
        ("", (), True),
    ],
)
def test_the_first_unknown_word_or_the_last_is_offered_for(typed, words, known) -> None:
    offer = WORDS.offer(typed)
    assert offer.words[: len(words)] == words
    assert bool(offer.words) == bool(words)
    assert offer.known == known


def test_a_known_word_that_begins_another_is_offered_the_other() -> None:
    offer = Words(["wall", "walls"]).offer("the wall".removeprefix("the "))
    assert (offer.words, offer.known) == (("walls",), True)


def test_an_offered_word_takes_its_place() -> None:
    assert WORDS.offer("the bilder of Benus").put_into("the bilder of Benus", "builder") == "the builder of Benus"
    assert WORDS.offer("the bu").put_into("the bu", "built") == "the built "


def test_no_more_than_eight_are_offered_and_characters_are_not_completed() -> None:
    assert len(Words([f"word{n}" for n in range(20)]).offer("wo").words) == 8
    assert Words("abc").offer("a").words == ()
