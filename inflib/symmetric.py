"""Sums of symmetric products Σ x xᵀ, kept on and above the diagonal: five eighths of the multiplications."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from .hooks import aligned

STRIP = 96  # columns: a narrower product gains nothing from its symmetry


def add_rows(sums: dict[str, Tensor], name: str, rows: Tensor, weight: float) -> None:
    """sums[name] += weight · rowsᵀ rows on and above the diagonal, in strips.

    Four strips of a symmetric product are five eighths of its multiplications.
    """
    d = rows.shape[1]
    if name not in sums:
        sums[name] = laid(rows.new_zeros(d, d))
    strip = max(STRIP, aligned(-(-d // 4)))
    for start in range(0, d, strip):
        part = slice(start, start + strip)
        sums[name][part, start:].addmm_(rows[:, part].T, rows[:, start:], alpha=weight)


def laid(matrix: Tensor) -> Tensor:
    """A copy whose rows begin where products are fast: also of what was saved, or it would be rounded otherwise."""
    if matrix.ndim == 1:
        return matrix.clone()
    d = len(matrix)
    rows = matrix.new_zeros(d, aligned(d))[:, :d]
    return rows.copy_(matrix)


def mirrored(sums: dict[str, Tensor], order: Iterable[str]) -> dict[str, Tensor]:
    """The whole symmetric matrices of sums kept on and above the diagonal; a diagonal by itself as it is."""
    return {n: sums[n].triu() + sums[n].triu(1).T if sums[n].ndim == 2 else sums[n] for n in order}
