"""Queries of one position: 1/(Λ + λ) as a short sum of products.

There a gradient is g aᵀ, a score Σ_jk (g̃_q ⊙ g̃_n)_j (ã_q ⊙ ã_n)_k / (Λ_jk + λ). With 1/(Λ + λ) ≈ Σ_r u_r v_rᵀ it is

    Σ_r ⟨Q_S (u_r ⊙ g̃_q), g_n⟩ ⟨Q_A (v_r ⊙ ã_q), a_n⟩                      r (o + i) multiplications in place of o · i

and no training example is rotated. u and v come from the singular value decomposition of W ⊙ 1/(Λ + λ), the weights
W_jk = w_j w_k divided out again: w_j = Σ_k Λ_jk is what g̃_j² is on average, w_k = Σ_j Λ_jk what ã_k² is, so that
entries count as much as scores ask for them. What is left out bounds the error of one pair, |error| ≤ σ_{r+1} ·
‖(g̃_q ⊙ g̃_n) / w‖ · ‖(ã_q ⊙ ã_n) / w‖; what it comes to is measured on pairs drawn by chance.
"""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral

import torch
from torch import Tensor

from ..batches import double
from ..ekfac import rotate
from ..hooks import Pair
from ..kronecker import Kronecker
from .folded import Folded, turned

FLOOR = 1e-6  # of the largest weight: what an input that is always 0 weighs


@dataclass(frozen=True)
class Terms:
    """1/(Λ + λ) of one layer ≈ U Vᵀ."""

    U: Tensor  # (o, r)
    V: Tensor  # (i, r)

    @property
    def rank(self) -> int:
        return self.U.shape[1]


def term_queries(pair: Pair, name: str, curvature: Kronecker, inverse: Tensor, low_rank: int | float) -> Folded:
    """Queries' pairs a (Q, 1, i), g (Q, 1, o) of one layer with the terms of ``inverse`` 1/(Λ + λ) folded in."""
    t = terms(curvature.eigenvalues[name], inverse, low_rank)
    sides = ((pair.a, t.V, curvature.Q_A.get(name)), (pair.g, t.U, curvature.Q_S.get(name)))
    a, g = (turned((rotate(x[:, 0].to(inverse), Q)[:, None, :] * factor.T).flatten(0, 1), Q) for x, factor, Q in sides)
    return Folded(a, g, (t.rank,) * len(pair.a))


def terms(values: Tensor, inverse: Tensor, low_rank: int | float) -> Terms:
    """The terms of 1/(Λ + λ) ``inverse`` (o, i): so many, or as many as leave that share of the weighted norm out."""
    w_S, w_A = weights_of(values)
    weighted = w_S[:, None] * double(inverse) * w_A  # (o, i)
    swap = weighted.shape[0] > weighted.shape[1]
    M = weighted.T if swap else weighted
    squares, left = torch.linalg.eigh(M @ M.T)  # of the shorter side: half the digits, of which a few are asked
    σ, left = squares.clamp_min(0).sqrt().flip(0), left.flip(1)
    r = min(_rank(σ, low_rank), int((σ > 1e-7 * σ[0]).sum()))
    first, second = left[:, :r], M.T @ left[:, :r]  # M ≈ first secondᵀ
    U, V = (second, first) if swap else (first, second)
    return Terms((U / w_S[:, None]).to(inverse), (V / w_A[:, None]).to(inverse))


def weights_of(values: Tensor) -> tuple[Tensor, Tensor]:
    """w (o,) and (i,): the row and column sums of Λ, in double precision, the largest of each 1."""
    Λ = double(values)
    return _weights(Λ.sum(1)), _weights(Λ.sum(0))


def _weights(sums: Tensor) -> Tensor:
    largest = float(sums.max())
    return sums.clamp_min(FLOOR * largest) / largest if largest > 0 else torch.ones_like(sums)


def _rank(σ: Tensor, low_rank: int | float) -> int:
    if isinstance(low_rank, Integral):
        return min(int(low_rank), len(σ))
    rest = σ.square().flip(0).cumsum(0).flip(0).sqrt()  # of σ_r, σ_{r+1}, ...
    return max(1, int((rest > low_rank * rest[0]).sum()))
