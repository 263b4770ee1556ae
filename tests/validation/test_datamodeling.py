"""The linear datamodeling score, its interval and its ceiling, against their definitions written out."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from linear_banks import K, N, Q, R, linear_bank, noise

from inflib.validation import Bank, half_subsets
from inflib.validation.datamodeling import ceiling, datamodeling, kept_sums
from inflib.validation.resampling import correlations, draws, weighted_ranks


def spearman(x, y):
    """By sorting: equal values share the mean of their places."""

    def ranks(values):
        ordered = sorted(values)
        return [np.mean([k for k, other in enumerate(ordered) if other == v]) for v in values]

    return np.corrcoef(ranks(x), ranks(y))[0, 1]


def test_scores_that_are_the_effects_order_every_retraining():
    bank, effects = linear_bank()
    found = datamodeling(effects, bank)
    assert torch.allclose(found.per_query, torch.ones(Q).double())
    assert (found.interval.mean, found.interval.low, found.interval.high) == pytest.approx((1, 1, 1))
    assert datamodeling(-effects, bank).interval.mean == pytest.approx(-1)  # positive is a proponent
    assert datamodeling(-effects, bank, "loss").interval.mean == pytest.approx(1)


def test_it_is_the_mean_over_queries_of_spearmans_correlation_over_masks():
    bank, effects = linear_bank(sigma=3.0)
    scores = effects + noise(Q, N, seed=2)
    expected = []
    for q in range(Q):
        sums = [float(scores[q, mask].sum()) for mask in bank.masks]
        actual = [float(np.mean([bank.values["margin"][r, k, q] for r in range(R)])) for k in range(K)]
        expected.append(spearman(sums, actual))
    found = datamodeling(scores, bank)
    assert found.per_query.tolist() == pytest.approx(expected, abs=1e-12)
    assert found.interval.mean == pytest.approx(np.mean(expected), abs=1e-12)
    assert found.interval.low < found.interval.mean < found.interval.high
    some = torch.tensor([4, 1])
    assert datamodeling(scores[some], bank, queries=some).per_query.tolist() == pytest.approx(
        [expected[4], expected[1]]
    )


def test_a_column_drawn_twice_counts_twice():
    x, y = noise(Q, 12), noise(Q, 12, seed=3).round()  # with ties
    weights = torch.tensor([[2, 0, 1, 1, 3, 0, 1, 1, 1, 0, 1, 1], [1] * 12]).double()
    found, pearson = correlations(x, y, weights), correlations(x, y, weights, ranked=False)
    columns = torch.arange(12).repeat_interleave(weights[0].long())
    for q in range(Q):
        assert float(found[q, 0]) == pytest.approx(spearman(x[q, columns].tolist(), y[q, columns].tolist()), abs=1e-12)
        assert float(found[q, 1]) == pytest.approx(spearman(x[q].tolist(), y[q].tolist()), abs=1e-12)
        drawn = torch.stack([x[q, columns], y[q, columns]])
        assert float(pearson[q, 0]) == pytest.approx(float(torch.corrcoef(drawn)[0, 1]), abs=1e-12)
    assert weighted_ranks(torch.tensor([[3.0, 1.0, 3.0]]).double(), torch.ones(1, 3).double())[0, 0].tolist() == [
        2,
        0.5,
        2,
    ]


def test_each_resample_draws_as_many_as_there_are_the_same_for_ever():
    drawn = draws(7, 50, seed=0, stream=1)
    assert drawn.shape == (50, 7) and bool((drawn.sum(1) == 7).all()) and float(drawn.max()) > 1
    assert torch.equal(drawn, draws(7, 50, 0, 1)) and not torch.equal(drawn, draws(7, 50, 0, 0))


def test_the_interval_covers_both_a_draw_of_queries_and_a_draw_of_masks():
    # scores right for half of the queries and wrong for the others: what varies is which queries are drawn
    bank, effects = linear_bank()
    split = effects * torch.tensor([1.0, 1, 1, -1, -1, -1])[:, None]
    found = datamodeling(split, bank).interval
    assert found.low < -0.3 and found.high > 0.3
    # one query's ordering is noisy: what varies is which masks are drawn
    noisy, effects = linear_bank(sigma=8.0, seeds=2, masks=12)
    one = datamodeling(effects[:1], noisy, queries=torch.tensor([0])).interval
    assert one.high - one.low > 0.1


def test_the_ceiling_is_what_the_expected_measurement_reaches():
    # many queries and masks, normal noise: the truth's own correlation with the mean over seeds is the ceiling
    kept, effects = half_subsets(N, 80), noise(40, N)
    signal = kept.double() @ effects.T
    for sigma in (2.0, 6.0):
        margin = signal[None] + sigma * noise(6, 80, 40, seed=5)
        bank = Bank(kept, {"margin": margin}, {})
        reached = np.mean([spearman(signal[:, q].tolist(), margin.mean(0)[:, q].tolist()) for q in range(10)])
        assert ceiling(bank).mean == pytest.approx(reached, abs=0.03)
    assert ceiling(linear_bank()[0]).mean == pytest.approx(1)


def test_an_odd_number_of_seeds_is_split_as_evenly_as_it_goes():
    bank, _ = linear_bank(sigma=4.0, seeds=3)
    pairs = []
    for one, other in itertools.permutations(range(3), 2):
        halves = [bank.values["margin"][r].T for r in (one, other)]
        pairs.append([spearman(halves[0][q].tolist(), halves[1][q].tolist()) for q in range(Q)])
    r = np.mean(pairs, axis=0)
    assert ceiling(bank).mean == pytest.approx(np.mean(np.sqrt(3 * r / (1 + 2 * r))), abs=0.02)


def test_the_predicted_measurement_is_the_kept_examples_contribution():
    scores, masks = noise(2, N), half_subsets(N, 3)
    for q, k in itertools.product(range(2), range(3)):
        assert float(kept_sums(scores, masks)[q, k]) == pytest.approx(float(scores[q, masks[k]].sum()) / N)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda b, e: datamodeling(e[:, :5], b), r"shape \(6, 5\); expected \(6, 40\)"),
        (lambda b, e: datamodeling(e[:2], b), r"say which with queries="),
        (lambda b, e: datamodeling(e, linear_bank(masks=6)[0]), "6 masks; expected at least 10"),
        (lambda b, e: datamodeling(e * 0, b), r"the predictions of query 0 are the same over all masks \(6 of 6"),
        (
            lambda b, e: datamodeling(e, linear_bank(loud=0.0)[0]),
            "the measurements of query 0 are the same over all masks",
        ),
        (lambda b, e: datamodeling(e / 0, b), "some predictions are not finite"),
        (lambda b, e: ceiling(linear_bank(seeds=1)[0]), r"has 1 seed; expected at least 2"),
    ],
)
def test_what_says_nothing_is_refused(call, match):
    with pytest.raises(ValueError, match=match):
        call(*linear_bank())


def test_with_one_seed_there_is_a_score_and_no_ceiling():
    bank, effects = linear_bank(seeds=1)
    found = datamodeling(effects, bank)
    assert found.ceiling is None and "one seed, no ceiling" in repr(found)
