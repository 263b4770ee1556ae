"""Leaving out one example or k, on a network that differs from seed to seed: what is effect, and what is noise?

    change of seed r:   m_q(trained without the group) − m_q(trained on all), both from seed r, in its order
    effect              the mean over the seeds; its standard error is s/√R, s the standard deviation over the seeds
    seeds needed        (z s / effect)²: for the effect to be z standard errors from 0

For single points on deep networks the seeds' noise is far larger than any one point's effect: the number of seeds
needed says so in a unit that one can pay, or not. (Source of the observation: Nguyen, Seo & Oh 2023, "A Bayesian
approach to analysing training data attribution in deep learning".)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..batches import bar
from .bank import BankRecipe, without


@dataclass(frozen=True, eq=False)
class LeftOut:
    """What leaving out each of K groups changed of Q queries, for each of R seeds."""

    change: Tensor  # (R, Q, K) float64, in the measurement's unit

    @property
    def effect(self) -> Tensor:
        """The mean change over the seeds, (Q, K)."""
        return self.change.mean(0)

    @property
    def error(self) -> Tensor:
        """Its standard error, (Q, K)."""
        return self.change.std(0) / len(self.change) ** 0.5

    def seeds_needed(self, z: float = 2.0) -> Tensor:
        """How many seeds would put each effect z standard errors from 0, (Q, K) float64; infinite where it is 0.

        From an effect that is itself below its ``error`` the number is a guess, and too small: noise looks like effect.
        """
        return (z * self.change.std(0) / self.effect.abs()).square().clamp_min(1)

    def __repr__(self) -> str:
        R, Q, K = self.change.shape
        median = float(self.seeds_needed().median())
        return f"LeftOut({K} groups, {Q} queries, {R} seeds; the median effect needs {median:,.0f} seeds to be seen)"


def leave_k_out(
    recipe: BankRecipe,
    groups: Sequence[Iterable[int]],
    seeds: int = 10,
    measurement: Any = "margin",
    *,
    progress: bool = True,
    **options: Any,
) -> LeftOut:
    """Retrain without each group of positions, seed by seed, and measure the change of every query.

    groups: positions of training examples, one group a retraining: [[3], [17]] leaves out one each.
    options: of ``retrain``: device=.

    Raises ValueError for fewer than two seeds, where no noise can be told from the effect, and for positions out of
    range.
    """
    if seeds < 2:
        raise ValueError(f"seeds={seeds}; expected at least 2: from one, nobody can tell an effect from noise.")
    masks = torch.cat([torch.ones(1, recipe.examples, dtype=torch.bool), without(recipe.examples, groups)])
    found = []
    for seed in bar(range(seeds), seeds, "leaving out", "seed") if progress else range(seeds):
        networks = recipe.train(seed, masks, progress=False, **options)
        measured = networks.measure(recipe.objective, recipe.queries, measurement).double().cpu()  # (1 + K, Q)
        found.append((measured[1:] - measured[0]).T)
    return LeftOut(torch.stack(found))
