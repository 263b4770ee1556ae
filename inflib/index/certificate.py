"""How far a store's score may be from the exact one: a bound that holds for every pair, from norms kept beside it.

    score = −⟨y, t̃⟩        y = (ŷ, y_rest), t̃ = (z, t_rest): what is kept of each layer, and what is not
    store = −⟨ŵ, s · v⟩     ŵ = ŷ ⊙ d, up to two digits

    |score − store| ≤ Σ_layers ‖ŷ‖ r + ‖y_rest‖ ‖t_rest‖ + ‖ŵ − w‖ s ‖v‖ + rounding         (Cauchy-Schwarz)

Rounding: gradients come with errors of some ε of their norm, in every coordinate of the eigenbasis alike; whitening
stretches them by up to 1/√(Λ + λ₀), and the query's side by √(Λ + λ₀)/(Λ' + λ). ``ROUNDINGS`` times that is allowed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .axes import Axes
from .packed import Weights

ROUNDINGS = 64  # units in the last place of a gradient's norm


@dataclass(frozen=True, eq=False)
class Asked:
    """A layer's queries against what a store keeps of it; every tensor (Q,) and on the CPU but ``weights``."""

    weights: Weights
    kept: Tensor  # ‖ŷ‖
    rest: Tensor  # ‖y_rest‖
    per_norm: Tensor  # of rounding, times ‖∇ℓ_n‖
    per_length: Tensor  # of rounding, times ‖t̃_n‖
    reach: float  # max ‖d ⊙ v‖, so that ‖t̃_n‖ ≤ s · reach + r + rest

    def scores(self, codes: Tensor, scale: Tensor) -> Tensor:
        """The store's ⟨y, t̃⟩ of packed codes (n, nb) with scales (n,), (Q, n)."""
        return self.weights.product(codes) * scale.to(self.kept)

    def bounds(self, scale: Tensor, norm: Tensor, r: Tensor, rest: Tensor) -> Tensor:
        """At least |⟨y, t̃⟩ − scores|, (Q, n), from what is kept of each example (n,)."""
        scale, norm, r, rest = (x.to(self.kept) for x in (scale.abs(), norm, r, rest))
        each = [(self.kept, r), (self.rest, rest), (self.weights.left, scale), (self.per_norm, norm)]
        each.append((self.per_length, scale * self.reach + r + rest))
        return sum(torch.outer(q, n) for q, n in each)  # type: ignore[return-value]


def ask(G: Tensor, inverse: Tensor, white: Tensor, axes: Axes, bits: int) -> Asked:
    """Queries G (Q, o, i) in the eigenbasis, ``inverse`` 1/(Λ' + λ) (o, i), ``white`` 1/√(Λ + λ₀) (D,)."""
    stretch = inverse.flatten() / white
    y = G.flatten(1) * stretch
    kept = axes.coordinates(y)
    spread = axes.spread.to(kept)
    eps = ROUNDINGS * torch.finfo(G.dtype).eps
    return Asked(
        Weights.of(kept * spread, bits),
        kept.norm(dim=1).cpu(),
        axes.rest(y, kept).cpu(),
        (eps * float(white.max()) * y.norm(dim=1)).cpu(),
        (eps * float(stretch.max()) * G.flatten(1).norm(dim=1)).cpu(),
        float(spread.norm()) * (2**bits - 1) / 2,
    )
