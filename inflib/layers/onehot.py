"""An embedding's activations: the token's own unit vector, so that nothing of V × V, or even of T × V, is built.

    e_t = W a_t,   a_t = unit vector of token t's id         W (o, V)

A = E[a aᵀ] is diagonal, the tokens' frequencies, so a vector (V,) holds it and its eigenvectors are the axes
themselves. Where the weight is the unembedding's too, the pair is turned round, (o, i) being (V, d): its g are the unit
vectors, beside the unembedding's own, which are as wide; S is kept as a diagonal then.

A gradient Σ_t g_t a_tᵀ has a column for each token that the example holds, and zeros: the same token's positions are
added up, (columns, o), and meet whatever else there is by their ids.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class OneHot:
    """Unit vectors (B, T, i) by their ids (B, T), −1 for the zero vector (padding_idx): what a Pair has for a."""

    ids: Tensor
    size: int  # i, the vocabulary
    dtype: torch.dtype  # of the gradients they meet

    @property
    def shape(self) -> torch.Size:
        return torch.Size((*self.ids.shape, self.size))

    @property
    def ndim(self) -> int:
        return self.ids.ndim + 1

    @property
    def device(self) -> torch.device:
        return self.ids.device

    def element_size(self) -> int:
        return self.dtype.itemsize

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, rows: slice | Tensor) -> OneHot:
        return OneHot(self.ids[rows], self.size, self.dtype)

    def to(self, like: Tensor | torch.dtype) -> OneHot:
        """The same in another dtype: only what is made of it has numbers."""
        return OneHot(self.ids, self.size, like.dtype if isinstance(like, Tensor) else like)

    def counts(self, there: Tensor | None) -> tuple[Tensor, int]:
        """(Σ a aᵀ's diagonal (V,), the number of positions) over positions that are there (B, T); None: over all."""
        ids = self.ids.flatten() if there is None else self.ids[there]
        known = ids[ids >= 0]
        ones = torch.ones(len(known), dtype=torch.promote_types(self.dtype, torch.float32), device=ids.device)
        return ones.new_zeros(self.size).index_add_(0, known, ones), len(ids)

    def columns(self, g: Tensor) -> Columns:
        """The columns of Σ_t g_t a_tᵀ that are not 0, of every example; g (B, T, o)."""
        example = torch.arange(len(self), device=self.device)[:, None].expand_as(self.ids)
        known = self.ids >= 0
        places, at = (example[known] * self.size + self.ids[known]).unique(return_inverse=True)
        rows = g.new_zeros(len(places), g.shape[2]).index_add_(0, at, g[known])
        return Columns(places // self.size, places % self.size, rows)


class Columns(NamedTuple):
    """Gradients' columns: which example's each is (U,), which token's (U,), and its numbers (U, o)."""

    example: Tensor
    token: Tensor
    rows: Tensor

    def added(self, each: Tensor, count: int) -> Tensor:
        """Numbers of the columns, (..., U) → of the examples, (..., count)."""
        return each.new_zeros(*each.shape[:-1], count).index_add_(-1, self.example, each)


def joined(parts: list[Any], dim: int) -> Any:
    """Several a, in numbers or not, after one another along the examples or the positions."""
    if isinstance(parts[0], Tensor):
        return torch.cat(parts, dim=dim)
    return OneHot(torch.cat([part.ids for part in parts], dim=dim), parts[0].size, parts[0].dtype)


def in_one_row(a: Any) -> Any:
    """(n, T, d) as (1, n · T, d): all positions as one example's."""
    return OneHot(a.ids.reshape(1, -1), a.size, a.dtype) if isinstance(a, OneHot) else a.flatten(0, 1)[None]


def dense(a: OneHot, g: Tensor) -> Tensor:
    """Σ_t g_t a_tᵀ of every example, (B, o, V), with all its zeros."""
    found = a.columns(g)
    matrices = g.new_zeros(len(a), a.size, g.shape[2])
    matrices[found.example, found.token] = found.rows
    return matrices.mT


def against(P: Tensor, a: OneHot, g: Tensor, budget: int) -> Tensor:
    """g_tᵀ P a_t of every position, for matrices P (Q, o, V) → (Q, B, T)."""
    ids, rows = a.ids.flatten(), g.flatten(0, 1)  # (R,), (R, o)
    each = P.shape[0] * P.shape[1] * P.element_size()
    parts = [
        torch.einsum("qor,ro->qr", P[:, :, ids[some].clamp_min(0)], rows[some] * (ids[some] >= 0)[:, None])
        for some in slices(len(ids), each, budget)
    ]
    found = torch.cat(parts, dim=1) if parts else P.new_zeros(len(P), 0)
    return found.reshape(len(P), *a.ids.shape)


def slices(count: int, each: int, budget: int) -> Iterator[slice]:
    step = max(1, budget // max(1, each))
    return (slice(at, min(at + step, count)) for at in range(0, count, step))
