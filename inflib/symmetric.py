"""Sums of symmetric products Σ x xᵀ, kept on and above the diagonal: five eighths of the multiplications."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from .blocks import BlockDiagonal, Factor, Sizes, each_block, zeros
from .hooks import aligned

STRIP = 96  # columns: a narrower product gains nothing from its symmetry


def add_rows(sums: dict[str, Factor], name: str, rows: Tensor, weight: float, sizes: Sizes = ()) -> None:
    """sums[name] += weight · rowsᵀ rows on and above the diagonal, or on the blocks of these sizes alone."""
    if name not in sums:
        none = zeros(rows, sizes or (rows.shape[1],))
        sums[name] = none if isinstance(none, BlockDiagonal) else laid(none)
    total = sums[name]
    if isinstance(total, BlockDiagonal):
        for block, part in zip(total.blocks, rows.split(total.sizes, dim=1), strict=True):
            _add(block, part, weight)
    else:
        _add(total, rows, weight)


def _add(total: Tensor, rows: Tensor, weight: float) -> None:
    """In strips: four of a symmetric product are five eighths of its multiplications."""
    strip = max(STRIP, aligned(-(-len(total) // 4)))
    for start in range(0, len(total), strip):
        part = slice(start, start + strip)
        total[part, start:].addmm_(rows[:, part].T, rows[:, start:], alpha=weight)


def laid(matrix: Tensor) -> Tensor:
    """A copy whose rows begin where products are fast: also of what was saved, or it would be rounded otherwise."""
    if matrix.ndim == 1:
        return matrix.clone()
    d = len(matrix)
    rows = matrix.new_zeros(d, aligned(d))[:, :d]
    return rows.copy_(matrix)


def mirrored(sums: dict[str, Factor], order: Iterable[str]) -> dict[str, Factor]:
    """The whole symmetric matrices of sums kept on and above the diagonal; a diagonal by itself as it is."""
    return {n: each_block(sums[n], lambda x: x.triu() + x.triu(1).T if x.ndim == 2 else x) for n in order}
