"""Some of the training examples, fetched by their numbers, as batches of their own.

From a list of batches the rows of each batch that are asked for; from a data set the items, put together as a loader
does. An example's own batch decides how it is padded, so rows of one batch stay together.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

from torch.utils.data import DataLoader, Dataset, RandomSampler, default_collate

from ..batches import batch_size, rows_of, say

TOGETHER = 16  # items of a data set in a batch


def pick(train: Any, positions: Sequence[int], N: int) -> Iterator[tuple[Any, Any]]:
    """Batches that hold the examples ``positions`` (ascending) of ``train``, in that order.

    train: a list of (inputs, targets) batches, a data set of (x, y) items, or a DataLoader of one that keeps its order.
    Raises TypeError for what has no items by number, ValueError where it has not N examples.
    """
    if isinstance(train, (list, tuple)):
        yield from _rows(train, positions, N)
        return
    collate, items = default_collate, train
    if isinstance(train, DataLoader):
        if isinstance(train.sampler, RandomSampler):
            raise ValueError("train shuffles; expected example n at place n. Use DataLoader(..., shuffle=False).")
        collate, items = train.collate_fn, train.dataset
    elif not isinstance(train, Dataset) and not (hasattr(train, "__getitem__") and hasattr(train, "__len__")):
        raise TypeError(
            f"train is {say(train)}; expected a list of (inputs, targets) batches, a data set or a DataLoader of one, "
            "of which example n can be fetched alone. Make it list(train)."
        )
    _check_number(len(items), N)
    for at in range(0, len(positions), TOGETHER):
        inputs, targets = collate([items[n] for n in positions[at : at + TOGETHER]])
        yield inputs, targets


def _rows(batches: Sequence[Any], positions: Sequence[int], N: int) -> Iterator[tuple[Any, Any]]:
    sizes = [batch_size(batch[1], "train", index) for index, batch in enumerate(batches)]
    starts = [0, *accumulate(sizes)]
    _check_number(starts[-1], N)
    groups: dict[int, list[int]] = {}
    for n in positions:
        index = bisect_right(starts, n) - 1
        groups.setdefault(index, []).append(n - starts[index])
    for index, rows in groups.items():
        inputs, targets = batches[index]
        yield rows_of(inputs, rows, sizes[index]), rows_of(targets, rows, sizes[index])


def _check_number(came: int, N: int) -> None:
    if came != N:
        raise ValueError(
            f"train has {came} examples, the index {N}; expected the examples that the index was built from, in their "
            "order."
        )
