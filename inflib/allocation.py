"""What could not be allocated is said as a user can act on it: stage, layer, bytes, and what to turn down.

An allocator knows the bytes alone; the loops over layers know the layer, the calls their arguments.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

from .memory import free_bytes, say_bytes

P = ParamSpec("P")
R = TypeVar("R")

LESS = "Take smaller batches"
STAGES = {
    "fit": "or fewer layers (layers=), or cut wide ones with blocks=at_most(4096)",
    "index": "or fewer layers, dtype=torch.bfloat16, or a store on disk: path=, axes=0.25, bits=1",
    "scores": "turn max_bytes= down, ask fewer queries at a time, or use fewer layers",
}
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40, "P": 2**50}
# as torch's allocators say it on a CPU and on a GPU, and NumPy
ASKED = re.compile(r"(?:tried to allocate|Unable to allocate) ([\d.]+) ?([KMGTP]?)i?(?:bytes|B)\b", re.IGNORECASE)


def asked_for(error: BaseException) -> int | None:
    """The bytes that could not be allocated, 0 where the error does not say; None for any other error."""
    found = ASKED.search(str(error))
    if found and isinstance(error, (MemoryError, RuntimeError)):
        return round(float(found[1]) * UNITS[found[2].upper()])
    bare = isinstance(error, MemoryError) and not str(error)
    return 0 if bare or isinstance(error, torch.OutOfMemoryError) else None


@contextmanager
def of_layer(name: str) -> Iterator[None]:
    """Marks an allocation that fails inside as this layer's."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if asked_for(error) is not None and not hasattr(error, "layer"):
            error.layer = name  # type: ignore[union-attr]
        raise


def by_layer(names: Iterable[str], function: Callable[[str], R]) -> dict[str, R]:
    """{name: function(name)}, each marked as its layer's."""
    found = {}
    for name in names:
        with of_layer(name):
            found[name] = function(name)
    return found


def allocating(stage: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorates the calls of a stage: what they cannot allocate is a MemoryError that says what to turn down.

    torch.OutOfMemoryError, which a GPU's allocator raises, stays one.
    """

    def decorated(function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def run(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                return function(*args, **kwargs)
            except (MemoryError, RuntimeError) as error:
                if (count := asked_for(error)) is None:
                    raise
                kind = torch.OutOfMemoryError if isinstance(error, torch.OutOfMemoryError) else MemoryError
                raise kind(_said(stage, getattr(error, "layer", None), count, kind)) from error

        return run

    return decorated


def _said(stage: str, layer: str | None, count: int, kind: type[BaseException]) -> str:
    where = "the model's own passes over a batch" if layer is None else f"layer {layer!r}"
    what = say_bytes(count) if count else "what was asked for"
    free = free_bytes(torch.device("cuda" if kind is torch.OutOfMemoryError and torch.cuda.is_available() else "cpu"))
    left = "" if free is None or free > count > 0 else f", with {say_bytes(free)} free"
    return (
        f"{stage}, {where}: {what} could not be had{left}. {LESS}, {STAGES[stage]}. inflib.plan(...) says beforehand "
        "what each stage takes."
    )
