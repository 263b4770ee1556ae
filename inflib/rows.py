"""Where a batch's B examples are among the rows that a module was given.

Most modules see an example on each index of their first axis, (B, ..., d). Others have the batch on a later axis, or
more rows than examples: tokens flattened into the batch (2 sequences of 3 tokens as 6 rows), the windows of an image,
the choices of a question, chosen answers followed by rejected ones. Three numbers say where example n is:

    axis     the axis that the examples are on
    m        rows of that axis an example has: its length / B
    order    "blocks", n has rows n·m ... n·m + m − 1; "strides", rows n, n + B, n + 2B, ...

Nothing here is taken on trust: ``proof`` finds the layout of each layer on the data, and shows that it holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Read = Callable[[Any, Tensor], Tensor]  # (module, tensor with examples first) -> (rows, T, d)
ORDERS = ("blocks", "strides")


@dataclass(frozen=True)
class Layout:
    """Which rows are whose. order=None: an example has one row, and more would be read neither way."""

    axis: int = 0
    order: str | None = None

    def fits(self, shape: torch.Size, size: int) -> bool:
        """Whether a tensor (..., d) of this shape can hold ``size`` examples so."""
        if self.axis > max(len(shape) - 2, 0):
            return False
        rows = shape[self.axis]
        return rows == size or (size > 0 and rows > size and rows % size == 0 and (size == 1 or self.order is not None))

    def examples(self, read: Read, module: Any, x: Tensor, size: int) -> Tensor:
        """What ``read`` makes of x, (B, T, d), T counting all positions of all rows of an example."""
        if self.axis:
            x = x.movedim(self.axis, 0)
        rows = read(module, x)  # (R, T, d)
        if len(rows) == size or rows.ndim != 3:  # read wrongly: the proof says so
            return rows
        if self.order == "strides":
            return rows.unflatten(0, (-1, size)).transpose(0, 1).flatten(1, 2)
        return rows.unflatten(0, (size, -1)).flatten(1, 2)

    def owners(self, shape: torch.Size, size: int) -> Tensor:
        """Which example each index of ``axis`` belongs to, (rows,)."""
        rows = torch.arange(shape[self.axis], device="cpu")
        return rows % size if self.order == "strides" else rows // (len(rows) // size)

    def __str__(self) -> str:
        where = "first axis" if self.axis == 0 else f"axis {self.axis}"
        if self.order is None:
            return f"on the {where}"
        how = "one example's after the other's" if self.order == "blocks" else "every B-th an example's"
        return f"several on the {where}, {how}"


FIRST = Layout()


def candidates(shapes: list[torch.Size], size: int, *, any_axis: bool) -> Iterator[Layout]:
    """The layouts that every call's shape (..., d) allows, the most usual first: one row an example, then several."""
    axes = range(max(1, *(len(shape) - 1 for shape in shapes)) if any_axis else 1)
    once = [Layout(axis) for axis in axes]
    several = [Layout(axis, order) for axis in axes for order in ORDERS]
    for layout in (*once, *several):
        plain = layout.order is None or any(shape[layout.axis] != size for shape in shapes if len(shape) > layout.axis)
        if plain and all(layout.fits(shape, size) for shape in shapes):
            yield layout
