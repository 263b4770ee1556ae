"""EK-FAC: K-FAC's eigenvectors with the eigenvalues that fit best.

Diagonalise K-FAC, S ⊗ A = (Q_S ⊗ Q_A)(λ_S ⊗ λ_A)(Q_S ⊗ Q_A)ᵀ, keep the basis and replace its eigenvalues by the exact
curvature's diagonal in that basis (George et al. 2018; Grosse et al. 2023, eq. 18–20):

    Λ = E[(Q_Sᵀ Dθ Q_A)²]   (o, i),      F ≈ (Q_S ⊗ Q_A) diag(Λ) (Q_S ⊗ Q_A)ᵀ

the closest matrix with those eigenvectors in Frobenius norm. Dθ = Σ_t g_t a_tᵀ is a per-example gradient with labels
from the model, drawn afresh: a second pass over the data.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .batches import chunks
from .hooks import check_finite
from .kfac import Fit, Moments, accumulator


@dataclass(frozen=True)
class Eigenbasis:
    """Per layer: orthogonal Q_S (o, o) and Q_A (i, i), columns eigenvectors, with S's and A's own eigenvalues."""

    Q_S: dict[str, Tensor]
    Q_A: dict[str, Tensor]
    lambda_S: dict[str, Tensor]  # (o,)
    lambda_A: dict[str, Tensor]  # (i,)


def eigenbasis(moments: Moments) -> Eigenbasis:
    """One ``eigh`` per factor, in float64; eigenvalues clamped at 0, ascending."""
    found: tuple[dict[str, Tensor], ...] = ({}, {}, {}, {})
    Q_S, Q_A, lambda_S, lambda_A = found
    for name in moments.A_sum:
        lambda_S[name], Q_S[name] = eigh(moments.S(name))
        lambda_A[name], Q_A[name] = eigh(moments.A(name))
    return Eigenbasis(Q_S, Q_A, lambda_S, lambda_A)


def eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """(eigenvalues ≥ 0 ascending, eigenvectors as columns) of a symmetric matrix, computed in float64.

    A backend without float64 or ``eigh`` (MPS) has it done on the CPU. Results come in the matrix's dtype and device.
    """
    try:
        values, vectors = torch.linalg.eigh(matrix.double())
    except (NotImplementedError, TypeError, RuntimeError):
        values, vectors = torch.linalg.eigh(matrix.cpu().double())
    return values.clamp_min(0).to(matrix), vectors.to(matrix)


@dataclass(frozen=True)
class Squares:
    """Sums of squared rotated gradients with their count; ``+`` merges two shards of the data."""

    sums: dict[str, Tensor]  # (o, i) per layer
    examples: int

    def means(self) -> dict[str, Tensor]:
        """Λ per layer, (o, i)."""
        return {name: total / self.examples for name, total in self.sums.items()}

    def __add__(self, other: Squares) -> Squares:
        return Squares({k: v + other.sums[k] for k, v in self.sums.items()}, self.examples + other.examples)


def corrected_eigenvalues(fit: Fit, basis: Eigenbasis | None, *, check: bool = False) -> Squares:
    """Λ = E[(Q_Sᵀ Dθ Q_A)²], (o, i) per layer: pass 1 over the data, with labels drawn afresh (eq. 20).

    basis=None leaves the coordinates as they are: Λ is then the curvature's own diagonal.
    """
    sums: dict[str, Tensor] = {}
    examples = 0
    for batch, recording, seeds in fit.recordings(1, "corrected eigenvalues", check=check):
        a_rotated = {k: _rotate(a, basis.Q_A[k] if basis else None) for k, a in recording.activations.items()}
        squares: dict[str, Tensor] = {}  # (B, o) Σ_c w_c g̃_c², for layers applied once an example
        for seed, weight in seeds:
            for name, g in recording.gradients(seed).items():
                Q_S = basis.Q_S[name] if basis else None
                if g.shape[1] == 1:
                    _accumulate(squares, name, weight * _rotate(g[:, 0], Q_S).square())
                else:
                    _accumulate(sums, name, weight * _sum_of_squares(g, a_rotated[name], Q_S))
        for name, square in squares.items():
            # rank one: the rotated gradient's square is g̃² ⊗ ã², so a batch is one matrix product
            _accumulate(sums, name, square.T @ a_rotated[name][:, 0].square())  # (o, i)
        for name in sums:
            check_finite(name, "rotated gradients", sums[name], batch.index)
        examples += batch.size
    return Squares({name: sums[name] for name in fit.layers}, examples)


def _rotate(x: Tensor, Q: Tensor | None) -> Tensor:
    """Coordinates of the rows of x in the basis of Q's columns, in the accumulator's dtype."""
    x = x.to(accumulator(x.dtype))
    return x if Q is None else x @ Q


def _sum_of_squares(g: Tensor, a_rotated: Tensor, Q_S: Tensor | None) -> Tensor:
    """Σ_b (Q_Sᵀ Σ_t g_t ã_tᵀ)², (o, i): rotates g, T·o² an example, or the sums over t, o²·i, whichever is cheaper."""
    T, o, i = g.shape[1], g.shape[2], a_rotated.shape[2]
    total = a_rotated.new_zeros(o, i)
    for rows in chunks(g.shape[0], o * i * a_rotated.element_size()):
        if Q_S is None or i >= T:
            matrices = torch.bmm(_rotate(g[rows], Q_S).mT, a_rotated[rows])  # (b, o, i)
        else:
            matrices = Q_S.T @ torch.bmm(g[rows].to(a_rotated).mT, a_rotated[rows])
        total += matrices.square().sum(0)
    return total


def _accumulate(sums: dict[str, Tensor], name: str, value: Tensor) -> None:
    sums[name] = sums[name] + value if name in sums else value
