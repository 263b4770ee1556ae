"""Second moments of whole gradients: the rows of S and A are the columns and rows of Dθ = Σ_t g_t a_tᵀ.

    S = E[Dθ Dθᵀ]   (o, o)          A = E[Dθᵀ Dθ] / E‖Dθ‖²   (i, i)

K-FAC's own moments count positions one by one, and an a that met a small g as much as one that met a large g. Here each
is weighed by the other, and an example's positions meet before they are squared. S ⊗ A has the curvature's trace, and
equals it wherever the curvature is a Kronecker product at all, in expand's and in reduce's cases alike. Λ corrected in
the eigenvectors of these is Shampoo with corrected eigenvalues (Gupta et al. 2018; Eschenhagen et al. 2025).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from .batches import accumulator, cached_bytes, chunks, double
from .blocks import BlockDiagonal, Factor, Sizes
from .hooks import Pair
from .symmetric import add_rows


def add_products(
    A: dict[str, Factor],
    S: dict[str, Factor],
    squares: dict[str, Tensor],
    name: str,
    pair: Pair,
    weight: float,
    cut_S: Sizes,
    cut_A: Sizes,
) -> None:
    """A[name] += w Σ_n Dθᵀ Dθ and S[name] += w Σ_n Dθ Dθᵀ; g aᵀ is never built where T = 1.

    There Dθᵀ Dθ is ‖g‖² a aᵀ, and w ‖g‖² goes to squares[name] (B,): one product for all labels, by ``add_squares``.
    """
    pair = Pair(*(x.to(accumulator(x.dtype)) for x in pair))
    if pair.a.shape[1] == 1:
        a, g = pair.a[:, 0], pair.g[:, 0]
        add_rows(S, name, a.norm(dim=1, keepdim=True) * g, weight, cut_S)
        square = weight * g.square().sum(1)
        squares[name] = squares[name] + square if name in squares else square
        return
    for G in _gradients(pair):
        add_rows(S, name, G.flatten(0, 1), weight, cut_S)
        add_rows(A, name, G.mT.flatten(0, 1), weight, cut_A)


def add_squares(
    A: dict[str, Factor], squares: dict[str, Tensor], activations: dict[str, Tensor], cuts: Mapping[str, Sizes]
) -> None:
    """A[name] += Σ_n squares_n a_n a_nᵀ, for layers applied once an example."""
    for name, square in squares.items():
        a = activations[name][:, 0].to(square)
        add_rows(A, name, square.sqrt()[:, None] * a, 1.0, cuts[name])


def _gradients(pair: Pair) -> Iterator[Tensor]:
    """Dθᵀ (b, i, o) of some examples at a time; aᵀg is faster than gᵀa where the bias makes i odd."""
    (i, o), size = (pair.a.shape[2], pair.g.shape[2]), pair.a.element_size()
    for rows in chunks(len(pair.a), o * i * size, cached_bytes(pair.a)):
        yield torch.bmm(pair.a[rows].mT, pair.g[rows])


def trace(x: Factor) -> float:
    """Σ ‖Dθ‖² from Σ Dθᵀ Dθ, to divide by: not 0 where no gradient came."""
    blocks = x.blocks if isinstance(x, BlockDiagonal) else [x]
    return max(sum(float(double(block.diagonal()).sum()) for block in blocks), torch.finfo(torch.float32).tiny)
