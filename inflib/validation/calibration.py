"""Are the sizes right? Actual change against predicted change, as a slope and a correlation.

    slope         Σ_q cov(actual_q, predicted_q) / Σ_q var(predicted_q)     1: sizes are right; 0.05: 20 times too large
    correlation   Pearson's of each query, mean over the queries

For changes measured by removing a half, by leaving out k, by the proximal objective: whatever both sides are in the
same unit, the measurement's. A slope says nothing without its correlation: noise has a slope as well.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .bank import Bank
from .datamodeling import sides
from .intervals import Interval
from .resampling import check_rows, correlations, draws, two_way


@dataclass(frozen=True, eq=False)
class Calibration:
    """How actual changes follow predicted ones, over Q queries and K removals."""

    slope: Interval  # actual per predicted, over queries and removals
    correlation: Interval  # Pearson's, mean over queries
    slopes: Tensor  # of each query, (Q,)
    per_query: Tensor  # Pearson's of each query, (Q,)

    def __repr__(self) -> str:
        return f"actual = {self.slope:.3g} × predicted, correlation {self.correlation:.2f}"


def calibration(predicted: Tensor, actual: Tensor, *, resamples: int = 1000, seed: int = 0) -> Calibration:
    """Slope and correlation of actual against predicted changes, both (Q, K), one row per query, in the same unit.

    The constant of each query is free: a change may be counted from anywhere. Raises ValueError for shapes that differ,
    fewer than three removals and constant rows.
    """
    check_rows(predicted, actual, "removals", fewest=3)
    x, y = predicted.detach().double().cpu(), actual.detach().double().cpu()
    columns, rows = draws(x.shape[1], resamples, seed, 0), draws(len(x), resamples, seed, 1)
    above, below = _moments(x, y, columns)  # (Q, R) each
    plain = _moments(x, y, torch.ones(1, x.shape[1], dtype=torch.float64))
    resampled = (rows * above.T).sum(1) / (rows * below.T).sum(1).clamp_min(1e-300)
    low, high = torch.quantile(resampled, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    per_query = correlations(x, y, ranked=False)
    return Calibration(
        Interval(float(plain[0].sum() / plain[1].sum()), low, high),
        two_way(per_query, correlations(x, y, columns, ranked=False), rows),
        (plain[0] / plain[1])[:, 0],
        per_query,
    )


def bank_calibration(
    scores: Tensor, bank: Bank, measurement: str = "margin", *, queries: Tensor | None = None
) -> Calibration:
    """``calibration`` of summed scores (Q, N) against a bank's retrainings, in the measurement's unit."""
    return calibration(*sides(scores, bank, measurement, queries))


def _moments(x: Tensor, y: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """cov(x, y) and var(x) of every row under every weighting of the columns, (Q, R) each."""
    w = weights / weights.sum(1, keepdim=True)
    mean_x, mean_y = x @ w.T, y @ w.T
    return (x * y) @ w.T - mean_x * mean_y, (x * x) @ w.T - mean_x.square()
