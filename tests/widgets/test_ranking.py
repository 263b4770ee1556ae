"""Many scores become two lists: ranked, ties in order, and with the part of the whole that they are."""

from __future__ import annotations

import numpy as np
import pytest

from inflib.widgets.ranking import Scored, two_lists


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


def test_the_number_shown_is_what_removal_costs_where_scores_have_a_unit() -> None:
    assert Scored(score=6.0, change=-2.0, share=1.0).shown == 2.0
    assert Scored(score=6.0, change=None, share=1.0).shown == 6.0
