"""Many scores become two lists: ranked, ties in order, and with the part of the whole that they are."""

from __future__ import annotations

import numpy as np
import pytest

from inflib.widgets.ranking import Scale, Scored, two_lists


def test_ties_go_by_position_and_zero_is_of_neither_sign() -> None:
    lists = two_lists(np.array([0.0, 2.0, -1.0, 2.0, 0.0, 1.0, -1.0]), 3)
    assert lists.raised == (1, 3, 5)
    assert lists.lowered == (2, 6)
    assert lists.counts == (3, 2)


def test_the_lists_know_their_part_of_all_influence_of_their_sign() -> None:
    lists = two_lists(np.array([4.0, 3.0, 1.0, -6.0, -2.0]), 1)
    assert lists.parts == (pytest.approx(4 / 8), pytest.approx(6 / 8))
    assert lists.largest == 6


def test_no_score_of_a_sign_is_an_empty_list() -> None:
    lists = two_lists(np.array([0.0, 2.0]), 3)
    assert (lists.lowered, lists.counts, lists.parts) == ((), (1, 0), (1.0, 0.0))
    assert two_lists(np.zeros(4), 3).largest == 1


def test_the_number_shown_is_the_contribution_where_scores_have_a_unit() -> None:
    assert Scored(score=6.0, contribution=2.0, share=1.0).shown == 2.0
    assert Scored(score=6.0, contribution=None, share=1.0).shown == 6.0


@pytest.mark.parametrize(
    ("largest", "words", "number"),
    [
        (1.73, "nats", "+1.73"),
        (0.116, "nats", "+0.116"),
        (0.0173, "10⁻³ nats", "+17.3"),
        (2.5e-7, "10⁻⁹ nats", "+250"),
        (7765.0, "10³ nats", "+7.76"),
        (999.9, "10³ nats", "+1.00"),
        (0.0, "nats", "0"),
    ],
)
def test_one_unit_makes_the_largest_number_of_an_answer_readable(largest, words, number) -> None:
    scale = Scale.of(largest, "nats")
    assert (scale.words, scale.number(largest)) == (words, number)
    assert Scale.of(largest, "").words == words.removesuffix("nats").strip()


@pytest.mark.parametrize("largest", [3e-12, 0.00042, 0.0998, 5.0, 999.4, 123456.0, 9.99e11])
def test_no_number_of_an_answer_is_longer_than_six_characters(largest) -> None:
    scale = Scale.of(largest, "nats")
    for value in largest * np.logspace(-8, 0, 300):
        for signed in (value, -value):
            shown = scale.number(signed)
            assert len(shown) <= 6, shown
            assert shown[0] == ("+" if signed > 0 else "−")
            assert abs(float(shown[1:]) * 10.0**scale.power - value) <= max(0.006 * value, 0.00051 * 10.0**scale.power)
