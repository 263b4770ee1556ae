"""⟨G̃_q ⊙ 1/(Λ + λ), G̃_n⟩ of one layer, from whichever of the two forms each side is held in."""

from __future__ import annotations

import torch
from torch import Tensor

from ..batches import cached_bytes, chunks
from ..contractions import contract, inner_products, own_layer, weighted
from ..hooks import Pair
from .sides import Rotated, held_examples, take


def layer_scores(few: Rotated, many: Rotated, inverse: Tensor, max_bytes: int) -> Tensor:
    """⟨G̃_q ⊙ inverse, G̃_n⟩ of one layer, (Q, N)."""
    swap = isinstance(many, Pair) and 0 < held_examples(many) < held_examples(few)
    if swap:  # the form is symmetric: build matrices for the smaller side
        few, many = many, few
    each = inverse.numel() * inverse.element_size()
    found = [
        _against(_matrices(take(few, rows)).to(inverse) * inverse, many, max_bytes)
        for rows in chunks(held_examples(few), each, max_bytes)
    ]
    scores = torch.cat(found) if found else inverse.new_zeros(0, held_examples(many))
    return scores.T if swap else scores


def _against(P: Tensor, many: Rotated, max_bytes: int) -> Tensor:
    """Weighted queries P (Q, o, i) against one side, (Q, N)."""
    if isinstance(many, Pair):
        if many.a.shape[1] == 1:
            return contract({"": P}, {"": many}, max_bytes=max_bytes)
        if len(P) == 1:  # it meets the positions, and no example's matrix is built
            return ((many.a.to(P) @ P[0].T) * many.g.to(P)).sum((1, 2))[None]
        return contract({"": P.mT.contiguous().mT}, {"": many}, max_bytes=max_bytes)
    if many.dtype == P.dtype:
        return inner_products(P, many)
    each = P[0].numel() * P.element_size()
    parts = [inner_products(P, many[rows].to(P)) for rows in chunks(len(many), each, cached_bytes(P))]
    return torch.cat(parts, dim=1) if parts else P.new_zeros(len(P), 0)


def own(held: Rotated, inverse: Tensor) -> Tensor:
    """Σ_jk (G̃_jk)² inverse_jk of every example, (N,)."""
    if isinstance(held, Pair):
        return own_layer(held, inverse, None, None)
    each = inverse.numel() * inverse.element_size()
    parts = (held[rows].to(inverse).square() for rows in chunks(len(held), each, cached_bytes(inverse)))
    return torch.cat([weighted(squares, inverse) for squares in parts])


def _matrices(held: Rotated) -> Tensor:
    return held.matrices() if isinstance(held, Pair) else held
