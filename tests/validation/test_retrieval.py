"""Recall, concentration and tails, against small cases counted by hand and a law whose exponent is known."""

import math

import pytest
import torch

from inflib.validation import recall_at, tail_exponent, top_share

pytestmark = pytest.mark.usefixtures("float64")


def test_recall_counts_the_relevant_among_the_first_k():
    scores = torch.tensor([[4.0, 3.0, 2.0, 1.0], [1.0, 2.0, 3.0, 4.0]])
    relevant = torch.tensor([[1, 0, 1, 0], [1, 0, 0, 0]]).bool()
    assert recall_at(scores, relevant, 1).tolist() == [0.5, 0.0]
    assert recall_at(scores, relevant).tolist() == [0.5, 0.0]
    assert recall_at(scores, relevant, 3).tolist() == [1.0, 0.0]
    assert recall_at(scores, relevant, 4).tolist() == [1.0, 1.0]


def test_equal_scores_rank_by_index():
    relevant = torch.tensor([[False] * 50 + [True] * 2 + [False] * 50])
    assert recall_at(torch.zeros(1, 102), relevant, 51).tolist() == [0.5]
    assert recall_at(torch.zeros(1, 102), relevant, 52).tolist() == [1.0]


def test_what_cannot_be_counted_is_refused():
    scores, relevant = torch.zeros(2, 3), torch.tensor([[True, False, False], [False] * 3])
    with pytest.raises(ValueError, match="nothing is relevant to query 1"):
        recall_at(scores, relevant)
    with pytest.raises(ValueError, match=r"scores \(2, 3\) and relevant \(1, 3\); expected one shape"):
        recall_at(scores, relevant[:1])
    with pytest.raises(ValueError, match="k=4; expected 1 to 3"):
        recall_at(scores[:1], relevant[:1], 4)


def test_the_top_share_leaves_negative_influence_out():
    scores = torch.tensor([[6.0, 3.0, -100.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]])
    assert top_share(scores, 0.1).tolist() == [0.6]
    assert top_share(scores, 0.11).tolist() == [0.9]  # two examples: the count is rounded up
    assert top_share(scores, 1.0).tolist() == [1.0]


def test_a_share_of_nothing_is_refused():
    with pytest.raises(ValueError, match="query 1 has no positive influence"):
        top_share(torch.tensor([[1.0], [-1.0]]))
    with pytest.raises(ValueError, match=r"share=0; expected a part"):
        top_share(torch.ones(1, 1), 0)


def test_hills_estimate_is_the_mean_log_excess():
    tail = tail_exponent(torch.tensor([[1.0, -3.0], [math.e**3, math.e]]), 2)
    assert tail.exponent == pytest.approx(1 / 2)  # logs 3 and 1 above a threshold of 1
    assert tail.error == pytest.approx(0.5 / math.sqrt(2))
    assert (tail.threshold, tail.values) == (1.0, 2)


@pytest.mark.parametrize("exponent", [0.8, 2.5])
def test_a_pareto_laws_exponent_is_found_within_its_error(exponent):
    generator = torch.Generator().manual_seed(0)
    misses = []
    for _ in range(200):
        values = torch.rand(400, generator=generator) ** (-1 / exponent)
        tail = tail_exponent(values, 100)
        misses.append((tail.exponent - exponent) / tail.error)
    misses = torch.tensor(misses)
    assert abs(misses.mean()) < 0.3
    assert 0.8 < misses.std() < 1.25  # the stated error is the true spread


@pytest.mark.parametrize(
    ("values", "k"), [([1.0, 2.0, 3.0], 1), ([1.0, 2.0, -1.0], 2), ([2.0] * 5, 3), ([1.0, 2.0], 2)]
)
def test_a_tail_that_is_not_there_is_refused(values, k):
    with pytest.raises(ValueError, match=rf"k={k} of {len(values)} values.*Take fewer"):
        tail_exponent(torch.tensor(values), k)
