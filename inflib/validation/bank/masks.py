"""Which examples a retraining keeps: random subsets of one size, or all examples but some.

A mask is a row of K × N bools, true where the example is kept. Subsets come from a counter-based generator: mask k of a
seed is the same subset on every machine, whatever the number of masks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor


def half_subsets(examples: int, count: int = 100, *, share: float = 0.5, seed: int = 0) -> Tensor:
    """``count`` masks (K, N) bool, each keeping round(share · N) examples drawn without replacement.

    Raises ValueError for a share that keeps none or all.
    """
    kept = round(share * examples)
    if not 0 < kept < examples or count < 1:
        raise ValueError(
            f"count={count} masks that keep {kept} of {examples} examples (share={share}); expected at least one mask, "
            "and a part of the examples: share=0.5."
        )
    masks = torch.zeros(count, examples, dtype=torch.bool)
    for k in range(count):
        draws = np.random.Philox(key=[seed, k]).random_raw(examples)
        masks[k, torch.from_numpy(np.argsort(draws, kind="stable")[:kept])] = True
    return masks


def without(examples: int, left_out: Sequence[Iterable[int]]) -> Tensor:
    """A mask (K, N) bool for each group of positions left out: one each for leave-one-out, k for leave-k-out.

    Raises ValueError for a position out of range and a group that is empty or all there is.
    """
    masks = torch.ones(len(left_out), examples, dtype=torch.bool)
    for k, group in enumerate(left_out):
        rows = torch.as_tensor(list(group), dtype=torch.int64)
        if len(rows) == 0 or int(rows.min()) < 0 or int(rows.max()) >= examples or len(rows.unique()) == examples:
            raise ValueError(f"group {k} leaves out {rows.tolist()[:5]}; expected a part of 0 to {examples - 1}.")
        masks[k, rows] = False
    return masks


def check_masks(masks: Tensor, examples: int, labels: Tensor | None = None) -> None:
    """Raise ValueError for masks that are no (K, N) bools, that keep nothing, or that empty a class of ``labels``."""
    if masks.ndim != 2 or masks.shape[1] != examples or masks.dtype != torch.bool or len(masks) == 0:
        raise ValueError(
            f"masks are {masks.dtype} {tuple(masks.shape)}; expected bools (K, {examples}), true where one is kept."
        )
    if not bool(masks.any(1).all()):
        raise ValueError(f"mask {int((~masks.any(1)).nonzero()[0])} keeps no example; expected some.")
    if labels is None or labels.ndim != 1 or labels.is_floating_point():
        return
    for label in labels.unique().tolist():
        emptied = ~(masks & (labels == label)).any(1)
        if bool(emptied.any()):
            raise ValueError(
                f"mask {int(emptied.nonzero()[0])} keeps no example of class {label} ({int(emptied.sum())} of "
                f"{len(masks)} masks do not); expected some of each: what a network does to a class it never saw says "
                "nothing about influence. Keep more examples, or leave rare classes out."
            )
