"""Intervals cover what they promise, do not depend on the machine, and ranks treat ties alike."""

import math

import numpy as np
import pytest
import torch

from inflib.validation import Interval, bootstrap, rank_correlation
from inflib.validation.intervals import ranks


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_interval_is_as_wide_as_the_means_standard_error_says():
    x = 3 + 2 * noise(400)
    found = bootstrap(x)
    error = float(x.std()) / math.sqrt(len(x))
    assert found.mean == pytest.approx(float(x.mean()))
    assert found.low == pytest.approx(found.mean - 1.96 * error, abs=0.15 * error)
    assert found.high == pytest.approx(found.mean + 1.96 * error, abs=0.15 * error)


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    covered = [not bootstrap(noise(60, seed=k), level=0.8, resamples=400).excludes(0) for k in range(200)]
    assert 0.72 < np.mean(covered) < 0.88


def test_every_value_is_drawn_and_none_beyond_the_last():
    found = bootstrap(torch.eye(7, dtype=torch.float64)[6], level=0.999, resamples=5000)  # one 1 among seven
    assert found.mean == pytest.approx(1 / 7)
    assert found.low == 0
    assert 4 / 7 <= found.high <= 1


def test_the_same_values_have_the_same_interval_whatever_was_drawn_before():
    x = noise(50)
    one = bootstrap(x)
    torch.rand(1)
    np.random.default_rng().random()
    assert bootstrap(x) == one
    assert bootstrap(x, seed=1) != one
    assert bootstrap(x.float().double()).low == pytest.approx(one.low, abs=1e-6)


def test_an_interval_is_printed_with_as_many_digits_as_asked_for():
    interval = Interval(0.3125, 0.25, 0.5)
    assert f"{interval:.1f}" == "0.3 [0.2, 0.5]"
    assert f"{interval:+.3f}" == "+0.312 [+0.250, +0.500]"
    assert str(interval) == "0.31 [0.25, 0.50]"
    assert interval.excludes(0.2)
    assert not interval.excludes(0.5)


@pytest.mark.parametrize("bad", [torch.tensor([]), torch.tensor([1.0, math.nan]), torch.tensor([math.inf])])
def test_values_that_have_no_mean_are_refused(bad):
    with pytest.raises(ValueError, match="expected one finite number a query"):
        bootstrap(bad)


def test_an_impossible_level_is_refused():
    with pytest.raises(ValueError, match=r"level=95; expected .* between 0 and 1"):
        bootstrap(torch.ones(3), level=95)


def ranked(x):
    """Each value's rank by counting: how many are smaller, and the middle of those that are equal."""
    return [float((x < v).sum()) + (float((x == v).sum()) + 1) / 2 for v in x]


def test_equal_values_share_the_mean_of_their_ranks():
    x = torch.tensor([3.0, 1.0, 3.0, 2.0, 3.0])
    assert ranks(x).tolist() == ranked(x) == [4, 1, 4, 2, 4]


def test_rank_correlation_is_spearmans():
    x = noise(80).round(decimals=1)  # with ties
    y = (x + noise(80, seed=1)).round(decimals=1)
    expected = np.corrcoef(ranked(x), ranked(y))[0, 1]
    assert rank_correlation(x, y) == pytest.approx(expected, abs=1e-12)
    assert rank_correlation(x, x.exp()) == pytest.approx(1)
    with pytest.raises(ValueError, match=r"\(80,\) and \(79,\)"):
        rank_correlation(x, y[1:])
