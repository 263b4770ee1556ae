"""An error bar on a score: what becomes of it when labels, network and damping are drawn again.

    members m = 1 … M     networks from other seeds; each may come with several curvatures, of other label draws
    S_m(λ)                member m's score, the mean over its curvatures
    networks              s/√M, s the standard deviation of S_m(λ) over the members: the standard error of their mean
    labels                with one network, the same over its curvatures; with several it is in s already
    damping               √½ Σ± (S(3±¹λ) − S(λ))²: how far a third and three times the damping move the mean
    interval              S(λ) ± √((t · drawn)² + (z · damping)²)

t is Student's quantile with as many degrees of freedom as there were draws less one, z the normal one. An interval that
holds 0 says that the sign of the score *cannot be told*: draws of no interest could turn it. What no draw shows, an
error that all members share (that the retrained change is not linear, that EK-FAC is not G), is not in it; how often it
holds what retraining shows is measured, setting by setting, by ``benchmarks/coverage.py``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..batches import BYTE_BUDGET, Data
from ..curvature import Curvature, Damping, resolve_damping
from ..objectives import Measurement, Objective
from ..scoring import influence

FACTOR = 3.0  # dampings a third and three times as large would have been chosen as well


@dataclass(frozen=True, eq=False)
class ErrorBars:
    """Scores with an interval each, all (Q, N), or (Q, K) for K groups of examples; in the scores' unit."""

    scores: Tensor  # the mean over the members at the damping asked for
    low: Tensor
    high: Tensor
    drawn: Tensor  # standard error of that mean, over networks or label draws
    damping: Tensor  # root mean square change at a third and three times the damping
    members: int
    level: float

    @property
    def undecided(self) -> Tensor:
        """Where the interval holds 0: whether it is a proponent or an opponent cannot be told, bool."""
        return (self.low <= 0) & (self.high >= 0)

    def __repr__(self) -> str:
        return (
            f"{self.level:.0%} intervals of {tuple(self.scores.shape)} scores, {self.members} networks: "
            f"{float(self.undecided.double().mean()):.0%} cannot be told from zero"
        )


def error_bars(
    members: Iterable[tuple[nn.Module, Curvature]],
    objective: Objective,
    train: Data,
    queries: Data,
    damping: Damping = None,
    *,
    groups: Tensor | None = None,
    level: float = 0.9,
    measurement: Measurement | None = None,
    max_bytes: int = BYTE_BUDGET,
    progress: bool = True,
) -> ErrorBars:
    """Intervals of the scores of ``members``, (Q, N) each, three passes over the training side a member.

    members: (model, curvature) pairs as for ``ensemble_influence``, at least two: networks from other seeds, or one
             network with curvatures of other label draws (ekfac(..., labels="sampled", seed=k)), or both. Pairs whose
             models have the same weights are one network's.
    groups:  (K, N) bool or weights: intervals of the groups' summed scores, (Q, K). A sum's interval is not the sum of
             intervals.

    Raises ValueError for fewer than two pairs, and for groups that do not fit.
    """
    options: dict[str, Any] = dict(measurement=measurement, max_bytes=max_bytes, progress=progress)
    found: dict[str, list[Tensor]] = {}  # {weights: scores of each curvature, (3, Q, N or K)}
    for model, curvature in members:
        at = resolve_damping(curvature, damping)
        rows = []
        for factor in (1.0, 1 / FACTOR, FACTOR):
            lambdas = {name: factor * number for name, number in at.items()}
            scores = influence(model, objective, train, queries, curvature, lambdas, **options)
            rows.append(scores if groups is None else _summed(scores, groups))
        found.setdefault(curvature.facts.weights, []).append(torch.stack(rows))
    return combined([torch.stack(own) for own in found.values()], level)


def combined(networks: list[Tensor], level: float = 0.9) -> ErrorBars:
    """The intervals, from each network's scores (draws, 3, Q, N): at λ, λ/3 and 3λ."""
    if sum(len(own) for own in networks) < 2:
        raise ValueError(
            "one member has no spread; expected at least two: networks from other seeds, or one network with "
            "curvatures of other label draws, ekfac(..., labels='sampled', seed=k)."
        )
    if not 0 < level < 1:
        raise ValueError(f"level={level}; expected the interval's coverage, between 0 and 1: 0.9.")
    draws = torch.stack([own.mean(0) for own in networks]) if len(networks) > 1 else networks[0]  # (M, 3, Q, N)
    middle, less, more = draws.mean(0)
    drawn = draws[:, 0].std(0) / math.sqrt(len(draws))
    damping = (((less - middle).square() + (more - middle).square()) / 2).sqrt()
    t, z = student_quantile(level, len(draws) - 1), NormalDist().inv_cdf((1 + level) / 2)
    half = ((t * drawn).square() + (z * damping).square()).sqrt()
    return ErrorBars(middle, middle - half, middle + half, drawn, damping, len(networks), level)


def _summed(scores: Tensor, groups: Tensor) -> Tensor:
    if groups.ndim != 2 or groups.shape[1] != scores.shape[1]:
        raise ValueError(
            f"groups have shape {tuple(groups.shape)}; expected (K, {scores.shape[1]}), a row for each group with 1 "
            "where a training example is in it."
        )
    return scores @ groups.to(scores).T


def student_quantile(level: float, freedom: int) -> float:
    """The t with P(|T| ≤ t) = level for Student's T with so many degrees of freedom.

    With T = √ν tan φ the density is proportional to cos^(ν−1) φ on (−π/2, π/2).
    """
    angle = np.linspace(0, math.pi / 2, 200_001)
    with np.errstate(divide="ignore"):
        density = np.exp((freedom - 1) * np.log(np.maximum(np.cos(angle), 1e-300)))
    reached = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
    return math.sqrt(freedom) * math.tan(float(np.interp(level, reached / reached[-1], angle)))
