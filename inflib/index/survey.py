"""A walk over the data before anything is built: how many examples, in which batches, at how many positions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from ..batches import Batch, Data, accumulator, tensors, walk
from ..curvature import layers_of
from ..hooks import forward
from ..kronecker import Kronecker
from ..positions import masks_of


@dataclass(frozen=True)
class Survey:
    """What a walk over the data and a forward pass of its batch with the longest examples have shown."""

    sizes: tuple[int, ...]  # examples of each batch
    once: dict[str, bool]  # whether a layer is applied once an example, T = 1
    dtype: torch.dtype  # of rotated gradients

    @property
    def examples(self) -> int:
        return sum(self.sizes)


def survey(model: nn.Module, train: Data, curvature: Kronecker) -> Survey:
    """Walk over ``train`` once; the model sees one batch of it."""
    layers, sizes, longest = layers_of(model, curvature), [], None
    for batch in walk(train, name="train", progress=False):
        sizes.append(batch.size)
        if longest is None or _numbers(batch) > _numbers(longest):
            longest = batch
    assert longest is not None  # walk refuses data without an example
    masks_of(longest.inputs)
    recording = forward(model, layers, longest.inputs, longest.size, raw=True)
    once, dtype = {}, accumulator(next(iter(layers.values())).weight.dtype)
    for name in curvature.shapes:
        layer, calls = layers[name], zip(recording.calls[name], recording.inputs[name], strict=True)
        a = [layer.rows(call.module, x) for call, x in calls]  # (R, T, i) each
        once[name] = sum(len(x) * x.shape[1] for x in a) == longest.size and not layer.diagonal
        dtype = dtype if layer.diagonal else accumulator(a[0].dtype)  # an embedding is given ids
    return Survey(tuple(sizes), once, dtype)


def _numbers(batch: Batch) -> int:
    """How many numbers one example's input has."""
    return sum(x.numel() for x in tensors(batch.inputs)) // batch.size
