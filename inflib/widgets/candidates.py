"""What a store's scores become before they are shown: the strongest exact, the others brought to their size.

An answer over a store ranks candidates, the first of each sign by the store's scores, and shows nothing else: their
scores come from a forward and backward pass of these examples. How many examples of each sign there are, and what share
of the whole is shown, are counted with the store's scores of the others, times what the candidates' came out too small.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

FIRST = 50  # candidates of each sign, at least; twice as many as are shown where that is more


def candidates(scores: np.ndarray, count: int) -> np.ndarray:
    """The first of each sign by scores (N,), ascending rows."""
    first, order = max(FIRST, 2 * count), np.argsort(scores, kind="stable")
    return np.unique(np.concatenate([order[:first], order[::-1][:first]]))


def exactly(
    near: np.ndarray, scores: np.ndarray, count: int, exact: Callable[[Sequence[int]], np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """A store's parts (N, L) with those of the candidates exact and the rest at their scale, and the candidates.

    scores: (N,) by which candidates are chosen; exact: rows → their exact parts (C, L).
    """
    rows = candidates(scores, count)
    right, came = exact(rows.tolist()), near[rows]
    square = float((came * came).sum())
    parts = near * (float((right * came).sum()) / square if square > 0 else 1.0)
    parts[rows] = right
    return parts, rows
