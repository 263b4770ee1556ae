"""Products that a module's forward makes on the way, with a weight that no module of its own applies.

Attention multiplies by its in_proj_weight inside one function call, or by its rows for queries, keys and values, and
reads its out_proj without calling it; an embedding of a library's own shifts its ids before it looks them up, and
scales what it found. So while the model runs, ``F.linear``, ``F.embedding`` and matrix products (``x @ W``,
``x @ W.T``) are asked whether their weight lies in one of the chosen layers' weights, and which of its rows it is: that
call is then the layer's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .layers import Layer
from .recording import Recording

Places = dict[int, list[Layer]]  # address of a storage → the layers whose weight lies there
Uses = list[tuple[Layer, slice | None]]


@contextmanager
def watching_inside(recording: Recording) -> Iterator[None]:
    """The functions that apply a weight tell the recording of its layers', for the duration of a ``with``."""
    layers = recording.layers.values()
    products = _places([layer for layer in layers if layer.kind.inside])
    lookups = _places([layer for layer in layers if layer.kind.one_hot or layer.lookups])
    with ExitStack() as stack:
        if products:
            stack.enter_context(_replaced(F, "linear", lambda plain: _linear(recording, products, plain)))
            for holder, name in ((torch, "matmul"), (Tensor, "matmul"), (Tensor, "__matmul__")):
                stack.enter_context(_replaced(holder, name, lambda plain: _matmul(recording, products, plain)))
        if lookups:
            stack.enter_context(_replaced(F, "embedding", lambda plain: _embedding(recording, lookups, plain)))
        yield


@contextmanager
def _replaced(holder: Any, name: str, made: Callable[[Any], Any]) -> Iterator[None]:
    """``holder.name`` as ``made`` makes it of what it was, for the duration of a ``with``."""
    own, plain = name in vars(holder), getattr(holder, name)
    setattr(holder, name, made(plain))
    try:
        yield
    finally:
        if own:
            setattr(holder, name, plain)
        else:
            delattr(holder, name)  # it was inherited


def _places(layers: list[Layer]) -> Places:
    places: Places = {}
    for layer in layers:
        places.setdefault(layer.weight.untyped_storage().data_ptr(), []).append(layer)
    return places


def _linear(recording: Recording, places: Places, plain: Any) -> Any:
    def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        uses = [*_rows_of(places, weight, False), *(_rows_of(places, bias, True) if bias is not None else ())]
        return _told(recording, uses, input, plain(input, weight, bias))

    return linear


def _matmul(recording: Recording, places: Places, plain: Any) -> Any:
    def matmul(input: Tensor, other: Tensor, **options: Any) -> Tensor:
        uses: Uses = []
        if isinstance(other, Tensor) and other.ndim == 2:
            for layer in places.get(other.untyped_storage().data_ptr(), ()):
                stored = layer.weight if layer.kind.transposed else layer.weight.mT  # as (i, o), which multiplies rows
                if (other.shape, other.stride()) == (stored.shape, stored.stride()) and not layer.kind.elementwise:
                    uses.append((layer, None))
        return _told(recording, uses, input, plain(input, other, **options))

    return matmul


def _embedding(recording: Recording, places: Places, plain: Any) -> Any:
    def embedding(input: Tensor, weight: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        found = places.get(weight.untyped_storage().data_ptr(), ())
        uses: Uses = [(layer, None) for layer in found if weight.shape == layer.weight.shape]
        return _told(recording, uses, input, plain(input, weight, *args, **kwargs), looks_up=True)

    return embedding


def _told(recording: Recording, uses: Uses, x: Tensor, output: Tensor, looks_up: bool = False) -> Tensor:
    if not uses:
        return output
    module = next(iter((*uses[0][0].lookups, *uses[0][0].modules)))
    seen = recording.seen(uses, module, (x,), {}, output, looks_up=looks_up)
    return output if seen is None else seen


def _rows_of(places: Places, held: Tensor, shifts: bool) -> Iterator[tuple[Layer, slice]]:
    """The layers whose rows are among those of a weight (or a bias), each with where they are among its outputs."""
    for layer in places.get(held.untyped_storage().data_ptr(), ()):
        whole = layer.weight
        if layer.kind.elementwise != shifts or held.stride() != whole.stride() or held.shape[1:] != whole.shape[1:]:
            continue
        rows = len(whole) // layer.groups
        first = (held.storage_offset() - whole.storage_offset()) // whole.stride(0)
        start = layer.group * rows - first
        if start >= 0 and start + rows <= len(held):
            yield layer, slice(start, start + rows)
