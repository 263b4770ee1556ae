"""The vectors x_r and y_r of all queries, rotated out of the eigenbasis: training pairs meet them as they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..batches import cached_bytes, chunks
from ..blocks import Factor
from ..hooks import Pair


@dataclass(frozen=True)
class Folded:
    """One layer's R = Σ_q r_q products x yᵀ: ``g`` (R, o) the x, ``a`` (R, i) the y, ``ranks`` r_q of each query."""

    a: Tensor
    g: Tensor
    ranks: tuple[int, ...]

    @classmethod
    def joined(cls, parts: Sequence[Folded]) -> Folded:
        """Queries of several parts, in their order."""
        ranks = tuple(r for part in parts for r in part.ranks)
        return cls(torch.cat([part.a for part in parts]), torch.cat([part.g for part in parts]), ranks)

    def contract(self, pair: Pair) -> Tensor:
        """Σ_r Σ_t ⟨x_r, g_t⟩ ⟨y_r, a_t⟩ of every query with pairs a (b, T, i), g (b, T, o), (Q, b)."""
        a, g = pair.a.to(self.a), pair.g.to(self.g)
        b, T = a.shape[:2]
        parts = []
        for rows in chunks(b, T * len(self.a) * a.element_size(), cached_bytes(a)):
            x = a[rows].flatten(0, 1) @ self.a.T  # (b · T, R)
            x *= g[rows].flatten(0, 1) @ self.g.T
            parts.append(x.unflatten(0, (-1, T)).sum(1))
        of = torch.repeat_interleave(torch.tensor(self.ranks, device=a.device))  # (R,) whose each is
        return a.new_zeros(len(self.ranks), b).index_add_(0, of, torch.cat(parts).T)

    def multiplications(self, positions: int) -> int:
        """Of one training example with so many positions."""
        return positions * (self.a.numel() + self.g.numel())


def turned(rows: Tensor, Q: Factor | None) -> Tensor:
    """Rows (R, d) of the eigenbasis's coordinates as they were before it: Q x."""
    return rows if Q is None else rows @ Q.T
