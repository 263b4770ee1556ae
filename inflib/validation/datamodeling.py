"""The linear datamodeling score: do summed scores put the retrained networks in the right order?

    prediction of mask k:   Σ_{n kept} score(q, n) / N          up to a constant, the measurement of query q
    LDS of query q:         Spearman's correlation over the K masks of prediction and measurement, mean over the seeds

The network that is scored is trained on all examples; the masks' networks are retrained from the start. Because what is
measured is a mean over R seeds, even the truth would not reach 1: the **ceiling** is the correlation that the expected
measurement has with the mean of R, from the correlation r of the means of two halves of the seeds,

    reliability = n r / (1 + (n − 1) r), n = R / ⌊R/2⌋ (Spearman-Brown);   ceiling = √reliability.

Source: Park, Georgiev, Ilyas, Leclerc & Madry 2023, "TRAK: Attributing model behavior at scale", section 2.2.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .bank import Bank
from .intervals import Interval, bootstrap
from .resampling import check_rows, correlations, draws, two_way

SPLITS = 50  # halves of the seeds that the ceiling averages over


@dataclass(frozen=True, eq=False)
class Datamodeling:
    """How well summed scores order a bank's retrainings."""

    per_query: Tensor  # Spearman's correlation of every query, (Q,) float64
    interval: Interval  # of their mean, over queries and masks
    ceiling: Interval | None  # what the truth would reach, over queries; None with one seed

    def __repr__(self) -> str:
        ceiling = "one seed, no ceiling" if self.ceiling is None else f"ceiling {self.ceiling:.3f}"
        return f"LDS {self.interval:.3f} over {len(self.per_query)} queries; {ceiling}"


def datamodeling(
    scores: Tensor,
    bank: Bank,
    measurement: str = "margin",
    *,
    queries: Tensor | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Datamodeling:
    """The linear datamodeling score of ``scores`` (Q, N), as ``influence`` returns them, against a bank's retrainings.

    Only the order within a query matters, so any unit will do; the sign is that of ``influence``: positive helps.
    measurement: "margin", "log_likelihood" or "loss" (for which scores of the log-likelihood change their sign).
    queries:     positions in the bank of the queries that the rows of ``scores`` are about; None: all, in order.

    The interval draws queries and masks again. Raises ValueError for scores that do not fit the bank, fewer than ten
    masks, and a query whose predictions or measurements are the same over all masks.
    """
    per_query, interval = lds(scores, bank, measurement, queries, resamples, seed)
    return Datamodeling(per_query, interval, ceiling(bank, measurement, queries=queries) if bank.seeds > 1 else None)


def lds(
    scores: Tensor, bank: Bank, measurement: str, queries: Tensor | None, resamples: int, seed: int = 0
) -> tuple[Tensor, Interval]:
    """``datamodeling`` without the ceiling: each query's correlation, (Q,), and the interval of their mean."""
    predicted, actual = sides(scores, bank, measurement, queries)
    check_rows(predicted, actual)
    per_query = correlations(predicted, actual)
    masks, rows = draws(actual.shape[1], resamples, seed, 0), draws(len(actual), resamples, seed, 1)
    return per_query, two_way(per_query, correlations(predicted, actual, masks), rows)


def ceiling(bank: Bank, measurement: str = "margin", *, queries: Tensor | None = None, seed: int = 0) -> Interval:
    """The LDS that the expected measurement itself would have, mean over queries with its interval.

    Raises ValueError for a bank of one seed: two halves need two.
    """
    if bank.seeds < 2:
        raise ValueError(f"the bank has {bank.seeds} seed; expected at least 2, one for each half. Make it with more.")
    values = bank.measured(measurement)  # (R, K, Q)
    values = values if queries is None else values[:, :, queries]
    half, factor = bank.seeds // 2, bank.seeds / (bank.seeds // 2)
    total = torch.zeros(values.shape[2], dtype=torch.float64)
    for split in range(SPLITS):
        order = np.argsort(np.random.Philox(key=[seed, split]).random_raw(bank.seeds), kind="stable")
        one, other = (values[torch.from_numpy(part)].mean(0).T for part in (order[:half], order[half : 2 * half]))
        check_rows(one, other)
        total += correlations(one, other)
    r = (total / SPLITS).clamp_min(0)
    return bootstrap((factor * r / (1 + (factor - 1) * r)).sqrt(), seed=seed)


def sides(scores: Tensor, bank: Bank, measurement: str, queries: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """What scores predict and what the bank measured, both (Q, K): the kept examples' scores over N, and the means."""
    actual = bank.mean(measurement).T  # (Q, K)
    actual = actual if queries is None else actual[queries]
    if scores.ndim != 2 or scores.shape != (len(actual), bank.masks.shape[1]):
        raise ValueError(
            f"scores have shape {tuple(scores.shape)}; expected ({len(actual)}, {bank.masks.shape[1]}): a row for each "
            "of the bank's queries (say which with queries=), a column for each of its training examples."
        )
    return kept_sums(scores, bank.masks), actual


def kept_sums(scores: Tensor, masks: Tensor) -> Tensor:
    """Σ_{n kept} score(q, n) / N for every mask, (Q, K) float64: the predicted measurement up to a constant."""
    return scores.detach().double().cpu() @ masks.T.double() / masks.shape[1]
