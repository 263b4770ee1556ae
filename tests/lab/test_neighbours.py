"""Neighbours are the nearest others by pixels, and a digit never judges itself."""

import pytest
import torch

from inflib.lab import neighbours
from inflib.lab.neighbours import disagreement


def by_hand(inputs, labels, k):
    """One digit at a time: sort the others by distance, count other labels among the first k."""
    found = []
    for n in range(len(inputs)):
        others = sorted((float((inputs[n] - inputs[m]).norm()), m) for m in range(len(inputs)) if m != n)
        found.append(sum(labels[m] != labels[n] for _, m in others[:k]).item() / k)
    return found


def test_the_share_of_other_labels_is_that_of_a_plain_search(digits):
    some = digits.train[:60]
    inputs = some.inputs.double()
    for k in (1, 3, 59):
        assert disagreement(inputs, some.labels, k=k).tolist() == pytest.approx(by_hand(inputs, some.labels, k))


def test_a_copy_is_a_neighbour_but_the_digit_itself_is_not():
    inputs = torch.tensor([[0.0], [0.0], [5.0], [6.0]], dtype=torch.float64)
    labels = torch.tensor([1, 2, 3, 3])
    assert disagreement(inputs, labels, k=1).tolist() == [1, 1, 0, 0]


def test_of_equally_near_digits_the_earlier_comes_first():
    inputs = torch.tensor([[0.0], [1.0], [-1.0]], dtype=torch.float64)
    assert disagreement(inputs, torch.tensor([0, 0, 9]), torch.tensor([0]), k=1).tolist() == [0]
    assert disagreement(inputs, torch.tensor([0, 9, 0]), torch.tensor([0]), k=1).tolist() == [1]


def test_rows_and_chunks_change_nothing(digits, monkeypatch):
    some = digits.train[:200]
    inputs = some.inputs.double()
    every = disagreement(inputs, some.labels)
    rows = torch.tensor([150, 3, 3, 77])
    assert torch.equal(disagreement(inputs, some.labels, rows), every[rows])
    monkeypatch.setattr(neighbours, "BYTE_BUDGET", 4 * 200 * 8 * 7)  # seven rows at a time
    assert torch.equal(disagreement(inputs, some.labels), every)


@pytest.mark.parametrize("k", [0, 5])
def test_more_neighbours_than_there_are_others_are_refused(k):
    with pytest.raises(ValueError, match=rf"k={k} neighbours among 5 digits; expected 1 to 4"):
        disagreement(torch.zeros(5, 2), torch.zeros(5), k=k)
