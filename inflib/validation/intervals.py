"""How sure is an average over queries? Bootstrap intervals, and correlations of ranks.

Queries are what a study draws at random, so they are what the bootstrap draws again: each resample takes Q of the Q
values with replacement, and the interval holds the middle 95% of the resamples' means (Efron 1979). The draws come from
a counter-based generator: the same values have the same interval on every machine.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Interval:
    """A mean over queries and its bootstrap interval; formats as '0.31 [0.28, 0.34]' with f"{interval:.2f}"."""

    mean: float
    low: float
    high: float

    def __format__(self, spec: str) -> str:
        spec = spec or ".2f"
        return f"{self.mean:{spec}} [{self.low:{spec}}, {self.high:{spec}}]"

    def __str__(self) -> str:
        return format(self)

    def excludes(self, value: float) -> bool:
        """Whether ``value`` lies outside."""
        return not self.low <= value <= self.high


def bootstrap(values: Tensor, *, level: float = 0.95, resamples: int = 2000, seed: int = 0) -> Interval:
    """The mean of ``values`` (Q,) and its percentile bootstrap interval over the Q queries.

    For a difference between two things measured on the same queries, give the differences: that is what pairs them.
    """
    x = values.detach().double().cpu().flatten().numpy()
    if len(x) == 0 or not np.isfinite(x).all():
        raise ValueError(
            f"{len(x)} values, {int(np.isfinite(x).sum())} of them finite; expected one finite number a query."
        )
    if not 0 < level < 1:
        raise ValueError(f"level={level}; expected the interval's coverage, between 0 and 1: 0.95.")
    raw = np.random.Philox(key=seed).random_raw(resamples * len(x))
    rows = ((raw >> np.uint64(11)) * 2.0**-53 * len(x)).astype(np.int64).reshape(resamples, len(x))
    low, high = np.quantile(x[rows].mean(axis=1), [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(x.mean()), float(low), float(high))


def ranks(values: Tensor) -> Tensor:
    """Each value's place in increasing order from 1 on, (N,) float64; equal values share the mean of their places."""
    _, group, count = values.detach().unique(return_inverse=True, return_counts=True)
    last = count.cumsum(0).double()
    return (last - (count.double() - 1) / 2)[group]


def rank_correlation(x: Tensor, y: Tensor) -> float:
    """Spearman's: the correlation of the ranks of ``x`` and ``y``, both (N,)."""
    if x.ndim != 1 or x.shape != y.shape or len(x) < 2:
        raise ValueError(f"shapes {tuple(x.shape)} and {tuple(y.shape)}; expected two of (N,), N at least 2.")
    return float(torch.corrcoef(torch.stack([ranks(x), ranks(y)]))[0, 1])
