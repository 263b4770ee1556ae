"""Sequences: the leading singular vectors of each preconditioned query (Grosse et al. 2023, section 3.2.2).

A training gradient Σ_t g_t a_tᵀ takes T · o · i multiplications to build, and o · i more for every query it meets. With
P_q ≈ Σ_r x_r y_rᵀ it is not built: a query takes r · T · (o + i). For Q queries that is less while

    Q · r · (o + i) < o · i · (1 + Q / T)

Which r are best? An error E = P_q − Σ x yᵀ costs ⟨E, G_n⟩, on average over training examples, squared, Σ_jk Λ_jk Ẽ_jk²
where coordinates of the eigenbasis are uncorrelated. With Λ_jk ≈ w_j w_k, its row and column sums, as K-FAC has it,
that is least for the singular vectors of √w_j P̃_jk √w_k, the weights divided out again.

They are found by subspace iteration from a few columns drawn by a seed, the same for every query: some 7 products of
o · i · (r + 8) multiplications a query and layer, once.
"""

from __future__ import annotations

from collections.abc import Iterator
from numbers import Integral

import torch
from torch import Tensor

from ..ekfac import rotated_gradients
from ..hooks import Pair
from ..kronecker import Kronecker
from .folded import Folded, turned
from .terms import weights_of

BESIDE = 8  # columns beside those that are asked for, which make the iteration quick
ROUNDS = 2
FIRST = 16  # the rank at which a tolerance begins to look


def leading_queries(pair: Pair, name: str, curvature: Kronecker, inverse: Tensor, low_rank: int | float) -> Folded:
    """Queries' pairs a (b, T, i), g (b, T, o) of one layer, preconditioned by ``inverse`` 1/(Λ + λ) and truncated."""
    w_S, w_A = (w.sqrt().to(inverse) for w in weights_of(curvature.eigenvalues[name]))
    Q_S, Q_A = curvature.Q_S.get(name), curvature.Q_A.get(name)
    found = [
        (turned((x.T / w_S), Q_S), turned((y.T / w_A), Q_A))
        for G in rotated_gradients(Pair(pair.a.to(inverse), pair.g.to(inverse)), Q_S, Q_A)
        for x, y in leading(w_S[:, None] * (G * inverse) * w_A, low_rank)
    ]
    return Folded(torch.cat([y for _, y in found]), torch.cat([x for x, _ in found]), tuple(len(x) for x, _ in found))


def leading(M: Tensor, low_rank: int | float) -> Iterator[tuple[Tensor, Tensor]]:
    """M_q ≈ x yᵀ of matrices (Q, o, i): x (o, r) and y (i, r), of so many columns or as few as leave that share out."""
    m = min(M.shape[1:])
    k = min(int(low_rank) if isinstance(low_rank, Integral) else FIRST, m)
    U, σ, V = _subspace(M, k)
    if not isinstance(low_rank, Integral):
        norm = M.flatten(1).norm(dim=1, keepdim=True)
        while k < m and bool((_left(norm, σ)[:, k] > low_rank * norm[:, 0]).any()):
            k = min(2 * k, m)
            U, σ, V = _subspace(M, k)
        ranks = (_left(norm, σ)[:, :k] > low_rank * norm).sum(1)  # of what is left by 0, 1, ... columns
    else:
        ranks = (σ[:, :k] > 8 * torch.finfo(M.dtype).eps * σ[:, :1]).sum(1)
    for u, s, v, r in zip(U, σ, V, ranks.tolist(), strict=True):
        yield u[:, :r] * s[:r], v[:r].T


def _left(norm: Tensor, σ: Tensor) -> Tensor:
    """The norm that 0, 1, 2, ... columns leave out, (Q, k + 1)."""
    kept = torch.cat([torch.zeros_like(norm), σ.square().cumsum(1)], dim=1)
    return (norm.square() - kept).clamp_min(0).sqrt()


def _subspace(M: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """U (Q, o, k'), σ (Q, k') and V as rows (Q, k', i) of M (Q, o, i): its k leading ones and more."""
    o, i = M.shape[1:]
    columns = k + BESIDE
    if columns >= min(o, i):
        return torch.linalg.svd(M, full_matrices=False)
    draw = torch.Generator().manual_seed(0)
    Y = M @ torch.randn(i, columns, generator=draw, device="cpu", dtype=M.dtype).to(M.device)
    for _ in range(ROUNDS):
        Z = torch.linalg.qr(M.mT @ torch.linalg.qr(Y).Q).Q
        Y = M @ Z
    basis = torch.linalg.qr(Y).Q  # (Q, o, k')
    U, σ, V = torch.linalg.svd(basis.mT @ M, full_matrices=False)
    return basis @ U, σ, V
