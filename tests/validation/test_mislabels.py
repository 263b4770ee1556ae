"""Planted mistakes are where they are said to be, and a ranking's marks are those of the definition."""

import itertools

import pytest
import torch

from inflib.validation import auc, flip_labels, placements, recall

LABELS = torch.arange(5000) % 10


def test_as_many_labels_are_flipped_as_asked_for_and_every_flip_is_a_change():
    flipped = flip_labels(LABELS, 0.1)
    assert int(flipped.wrong.sum()) == 500
    assert torch.equal(flipped.labels != LABELS, flipped.wrong)
    assert flipped.labels.dtype == torch.int64
    assert flipped.labels.min() == 0
    assert flipped.labels.max() == 9


def test_all_classes_are_flipped_and_every_other_class_is_as_likely():
    flipped = flip_labels(torch.arange(30_000) % 10, 1.0)
    moves = torch.bincount((flipped.labels - torch.arange(30_000)) % 10, minlength=10)
    assert moves[0] == 0
    assert ((moves[1:] - 30_000 / 9).abs() < 250).all()
    places = flip_labels(LABELS, 0.2).wrong
    assert ((torch.bincount(LABELS[places], minlength=10) - 100).abs() < 40).all()
    assert abs(int(places[:2500].sum()) - 500) < 80


def test_the_seed_alone_decides_and_the_first_flips_are_these():
    assert torch.equal(flip_labels(LABELS).labels, flip_labels(LABELS).labels)
    assert not torch.equal(flip_labels(LABELS).wrong, flip_labels(LABELS, seed=1).wrong)
    few = flip_labels(LABELS, 0.002)
    assert few.wrong.nonzero().ravel().tolist() == [998, 1051, 1926, 2561, 3085, 3556, 3767, 4381, 4845, 4938]
    assert few.labels[few.wrong].tolist() == [7, 5, 3, 5, 8, 9, 9, 9, 7, 5]


def test_the_labels_given_are_left_as_they_were():
    before = LABELS.clone()
    flip_labels(LABELS, 0.5)
    assert torch.equal(LABELS, before)
    assert torch.equal(flip_labels(LABELS, 0.0).labels, before)


def test_auc_is_the_share_of_pairs_in_the_right_order_with_ties_as_one_half():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 6, (40,), generator=generator).double()
    wrong = torch.rand(40, generator=generator) < 0.3
    pairs = list(itertools.product(scores[wrong].tolist(), scores[~wrong].tolist()))
    expected = sum((a > b) + 0.5 * (a == b) for a, b in pairs) / len(pairs)
    assert auc(scores, wrong) == pytest.approx(expected, abs=1e-12)
    assert auc(wrong.double(), wrong) == 1
    assert auc(-wrong.double(), wrong) == 0
    assert auc(torch.zeros(40), wrong) == 0.5


def test_a_placement_is_the_share_of_correct_examples_below_a_mislabelled_one():
    scores = torch.tensor([5.0, 1.0, 3.0, 3.0, 0.0, 3.0])
    wrong = torch.tensor([True, False, False, True, True, False])
    assert placements(scores, wrong).tolist() == pytest.approx([1, (1 + 0.5 + 0.5) / 3, 0])


def test_recall_is_the_share_found_by_looking_at_the_top():
    wrong = torch.tensor([True, False, True, False, False, False, True, False, False, True])
    scores = torch.tensor([9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0, 0.0])
    assert recall(scores, wrong, 0.1) == 0.25
    assert recall(scores, wrong, 0.3) == 0.5
    assert recall(scores, wrong, 1.0) == 1
    assert recall(-scores, wrong, 0.1) == 0.25
    many = torch.arange(5000) < 500
    assert recall(torch.zeros(5000), many, 0.1) == 1  # ties in order
    assert recall(torch.zeros(5000), many.flip(0), 0.1) == 0


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: flip_labels(LABELS, 1.5), r"share=1\.5; expected .* from 0 to 1"),
        (lambda: flip_labels(LABELS, classes=5), r"labels from 0 to 9 with classes=5"),
        (lambda: auc(torch.zeros(3), torch.ones(3).bool()), r"3 of 3 are mislabelled; expected some of both"),
        (lambda: auc(torch.zeros(3), torch.zeros(3)), r"torch\.float32; expected one score and one bool"),
        (lambda: auc(torch.tensor([0, torch.nan]), torch.tensor([True, False])), "not finite"),
        (lambda: recall(torch.zeros(2), torch.tensor([True, False]), 0.0), r"inspected=0\.0; expected the part"),
    ],
)
def test_what_cannot_be_judged_is_refused(call, match):
    with pytest.raises(ValueError, match=match):
        call()
