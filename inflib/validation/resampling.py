"""Correlations of many rows at once, and what drawing queries and masks again does to their mean.

    row q:      Spearman's or Pearson's correlation of x_q and y_q, both (K,)
    resample:   K of the K columns and Q of the Q rows with replacement; the correlations of the columns drawn, over
                the rows drawn, averaged (the two-way bootstrap: both the queries and the masks are a sample)

A column drawn w times counts w times: ranks and moments are weighted, which is what drawing it w times comes to.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .intervals import Interval

FEWEST = 10  # columns that a correlation with an interval needs


def check_rows(x: Tensor, y: Tensor, what: str = "masks", fewest: int = FEWEST) -> None:
    """Raise ValueError for rows of different shapes, too few columns, numbers that are not finite, constant rows."""
    if x.ndim != 2 or x.shape != y.shape or len(x) == 0:
        raise ValueError(f"shapes {tuple(x.shape)} and {tuple(y.shape)}; expected two of (Q, K), one row per query.")
    if x.shape[1] < fewest:
        raise ValueError(
            f"{x.shape[1]} {what}; expected at least {fewest}: a correlation over fewer says nothing. Make more."
        )
    for name, rows in (("predictions", x), ("measurements", y)):
        if not bool(rows.isfinite().all()):
            raise ValueError(f"some {name} are not finite; expected numbers. Look for NaN in scores and in the bank.")
        constant = (rows == rows[:, :1]).all(1)
        if bool(constant.any()):
            raise ValueError(
                f"the {name} of query {int(constant.nonzero()[0])} are the same over all {what} ({int(constant.sum())} "
                f"of {len(rows)} queries' are); expected some that differ: a correlation with a constant is not "
                "defined. Leave these queries out."
            )


def weighted_ranks(x: Tensor, weights: Tensor) -> Tensor:
    """Ranks of each row's values where column k stands ``weights[r, k]`` times, (Q, K) and (R, K) → (Q, R, K).

    A rank is the weight below plus half the weight level with it, up to a constant: equal values share their mean.
    """
    below = (x[:, :, None] > x[:, None, :]).to(weights) + 0.5 * (x[:, :, None] == x[:, None, :]).to(weights)
    return torch.einsum("qkj,rj->qrk", below, weights)


def correlations(x: Tensor, y: Tensor, weights: Tensor | None = None, *, ranked: bool = True) -> Tensor:
    """Each row's correlation, Spearman's where ``ranked``, else Pearson's, under every weighting: (Q, R), or (Q,).

    x, y: (Q, K). weights: (R, K), how often each column counts; None: once each.
    """
    w = torch.ones(1, x.shape[1], dtype=torch.float64) if weights is None else weights.double()
    found = []
    for a, b in zip(x.double().split(1), y.double().split(1), strict=True):  # a row at a time: (1, R, K) is held
        if ranked:
            a, b = weighted_ranks(a, w), weighted_ranks(b, w)
        else:
            a, b = a[:, None], b[:, None]
        total = w.sum(1, keepdim=True)
        a, b = (v - (v * w).sum(-1, keepdim=True) / total for v in (a, b))
        products = [(w * u * v).sum(-1) for u, v in ((a, b), (a, a), (b, b))]
        found.append(products[0] / (products[1] * products[2]).sqrt().clamp_min(1e-300))
    out = torch.cat(found)
    return out[:, 0] if weights is None else out


def two_way(per_row: Tensor, resampled: Tensor, rows: Tensor, level: float = 0.95) -> Interval:
    """The mean correlation of per_row (Q,), and its interval over the rows drawn, (R, Q) times, of resampled (Q, R).

    Columns drawn twice are level with themselves, which moves correlations: the interval is moved back by as much.
    """
    means = (rows * resampled.T).sum(1) / rows.sum(1)  # (R,)
    means = (means - means.mean() + per_row.mean()).clamp(-1, 1)
    low, high = np.quantile(means.numpy(), [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(per_row.mean()), float(low), float(high))


def draws(count: int, resamples: int, seed: int, stream: int) -> Tensor:
    """How often each of ``count`` things is drawn in each resample, (R, count) float64; every row sums to count."""
    raw = np.random.Philox(key=[seed, stream]).random_raw(resamples * count)
    chosen = torch.from_numpy(((raw >> np.uint64(11)) * 2.0**-53 * count).astype(np.int64)).view(resamples, count)
    return torch.zeros(resamples, count, dtype=torch.float64).scatter_add_(1, chosen, torch.ones_like(chosen).double())
