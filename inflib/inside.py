"""Products that a module's forward makes on the way, with a weight that no module of its own applies.

Attention multiplies by its in_proj_weight inside one function call, or by its rows for queries, keys and values, and
reads its out_proj without calling it. So while the model runs, every ``F.linear`` is asked whether its weight lies in
one of the chosen layers' weights, and which of its rows it is: that call is then the layer's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch.nn.functional as F
from torch import Tensor

from .layers import Layer
from .recording import Recording

Places = dict[int, list[Layer]]  # address of a storage → the layers whose weight lies there


@contextmanager
def watching_inside(recording: Recording) -> Iterator[None]:
    """``F.linear`` tells the recording of products with its layers' weights, for the duration of a ``with``."""
    layers = [layer for layer in recording.layers.values() if layer.kind.inside]
    if not layers:
        yield
        return
    plain, places = F.linear, _places(layers)

    def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        output = plain(input, weight, bias)
        uses = [*_uses(places, weight, False), *(_uses(places, bias, True) if bias is not None else ())]
        seen = recording.seen(uses, uses[0][0].modules[0], (input,), {}, output) if uses else None
        return output if seen is None else seen

    F.linear = linear
    try:
        yield
    finally:
        F.linear = plain


def _places(layers: list[Layer]) -> Places:
    places: Places = {}
    for layer in layers:
        places.setdefault(layer.weight.untyped_storage().data_ptr(), []).append(layer)
    return places


def _uses(places: Places, held: Tensor, shifts: bool) -> Iterator[tuple[Layer, slice]]:
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
