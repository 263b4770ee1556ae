"""An error bar on a score: what becomes of it when all that is not the data is chosen or drawn again.

    members m = 1 … M     networks from other seeds; each may come with several curvatures, of other label draws
    S_m(λ)                member m's score, the mean over its curvatures
    drawn                 s/√M, s the standard deviation of S_m(λ) over the members: the standard error of their mean;
                          with one network, the same over its label draws (with several these are in s already)
    damping               √½ Σ± (S(3±¹λ) − S(λ))²: how far a third and three times the damping move the mean
    approximation         √mean (S_m − S'_m)², S' the same networks' scores by another curvature, where one is given
    interval              S(λ) ± √((t · drawn)² + (z · damping)² + (z · approximation)²)

t is Student's quantile with as many degrees of freedom as there were draws less one, z the normal one. An interval that
holds 0 says that the sign of the score *cannot be told*: a choice of no interest could turn it. The first two parts say
nothing of an error that all draws share, and on a convex model they vanish beside it: EK-FAC is not G. Refined scores
beside EK-FAC's show it. How often intervals hold what retraining shows is measured by ``benchmarks/bars.py``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
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
    approximation: Tensor  # root mean square difference from the scores given beside; 0 where none were
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
    beside: Iterable[tuple[nn.Module, Curvature]] = (),
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
    beside:  the models of some members with another curvature that might as well have been used: EK-FAC's members
             beside refine(...) of one or two of them, or the other way round. One pass for each, at the same damping.
    groups:  (K, N) bool or weights: intervals of the groups' summed scores, (Q, K). A sum's interval is not the sum of
             intervals.

    Raises ValueError for fewer than two pairs, for a network beside that is no member's, for groups that do not fit.
    """
    options: dict[str, Any] = dict(measurement=measurement, max_bytes=max_bytes, progress=progress)

    def scored(model: nn.Module, curvature: Curvature, at: Damping) -> Tensor:
        scores = influence(model, objective, train, queries, curvature, at, **options)
        return scores if groups is None else _summed(scores, groups)

    found: dict[str, list[Tensor]] = {}  # {weights: scores of each curvature, (3, Q, N or K)}
    numbers: dict[str, dict[str, float]] = {}
    for model, curvature in members:
        at = numbers[curvature.facts.weights] = resolve_damping(curvature, damping)
        rows = [scored(model, curvature, {k: f * x for k, x in at.items()}) for f in (1.0, 1 / FACTOR, FACTOR)]
        found.setdefault(curvature.facts.weights, []).append(torch.stack(rows))
    networks = {weights: torch.stack(own) for weights, own in found.items()}
    gaps = []
    for model, curvature in beside:
        own = curvature.facts.weights
        if own not in networks:
            raise ValueError(
                f"beside holds a network with weights {own}, which is no member's ({', '.join(networks)}); expected "
                "the models of some members, with another curvature."
            )
        gaps.append(scored(model, curvature, numbers[own]) - networks[own][:, 0].mean(0))
    return combined(list(networks.values()), gaps, level)


def combined(networks: list[Tensor], gaps: Sequence[Tensor] = (), level: float = 0.9) -> ErrorBars:
    """The intervals, from each network's scores (draws, 3, Q, N) at λ, λ/3 and 3λ; ``gaps`` (Q, N) to others'."""
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
    damping = _root_mean_square([less - middle, more - middle])
    approximation = _root_mean_square(gaps) if gaps else torch.zeros_like(middle)
    t, z = student_quantile(level, len(draws) - 1), NormalDist().inv_cdf((1 + level) / 2)
    half = _root_sum_square([t * drawn, z * damping, z * approximation])
    return ErrorBars(middle, middle - half, middle + half, drawn, damping, approximation, len(networks), level)


def _root_mean_square(parts: Sequence[Tensor]) -> Tensor:
    return _root_sum_square(parts) / math.sqrt(len(parts))


def _root_sum_square(parts: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(parts)).square().sum(0).sqrt()


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
