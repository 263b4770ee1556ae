"""What was proved is not proved again: of the same model, layers, loss and batch, within a session.

A fit, its scores, an index and self-influence each look at the same first batch, and a look costs a few backward
passes. What it found, each layer's layout and its idle calls, is kept with the model for as long as nothing that could
change it has changed: the weights, settings and attributes (fingerprints.py), the forward functions and hooks of its
modules, the layers and how they are read, the objective and what is measured, autocast, and every number of the batch.
A refusal is not kept; nor does a look at a later batch, without one of its questions, stand for one at a first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from hashlib import blake2b
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from .batches import Batch, held_by, tensors
from .fingerprints import checksum, everything_noted, hash_weights
from .layers import Layer
from .objectives import Objective
from .placement import autocast_in_force
from .rows import Layout

MOST = 32  # looks that are kept for a model
Found = dict[str, tuple[Layout, frozenset[int]]]  # layer → where its examples are, its idle calls

_PROVEN: WeakKeyDictionary[nn.Module, dict[tuple, tuple[Any, bool, Found]]] = WeakKeyDictionary()


def proven(
    model: nn.Module,
    layers: dict[str, Layer],
    objective: Objective,
    batch: Batch,
    measurement: Any,
    crowded: bool,
    prove: Callable[[], dict[str, Layer]],
    weights: str | None = None,
) -> dict[str, Layer]:
    """What ``prove`` finds, or found before where all that it depends on is the same; ``crowded``: as asked of it.

    weights: what ``hash_weights(model)`` was just now, where that is known.
    """
    key = _key(model, layers, objective, batch, measurement, weights)
    held = _PROVEN.setdefault(model, {})
    if key in held and held[key][1] >= crowded:
        return {name: replace(layers[name], layout=at, idle=idle) for name, (at, idle) in held[key][2].items()}
    found = prove()
    while len(held) >= MOST:
        held.pop(next(iter(held)))
    # what the key names by its address is kept, so that no other can come to lie there
    alive = (objective, measurement)
    held[key] = alive, crowded, {name: (layer.layout, layer.idle) for name, layer in found.items()}
    return found


def _key(
    model: nn.Module,
    layers: dict[str, Layer],
    objective: Objective,
    batch: Batch,
    measurement: Any,
    weights: str | None,
) -> tuple[Any, ...]:
    chosen = tuple((k, v.kind, v.weight_name, v.bias_name, v.untied, v.group, v.layout) for k, v in layers.items())
    asked = measurement if isinstance(measurement, str) else id(measurement)
    return (
        weights or hash_weights(model),
        everything_noted(model),
        _code(model),
        chosen,
        (id(objective), repr(objective), repr(sorted(getattr(objective, "__dict__", {}).items(), key=str))),
        asked,
        autocast_in_force(),
        torch.get_default_dtype(),
        _contents(batch),
    )


def _code(model: nn.Module) -> tuple[Any, ...]:
    """What runs when the model is called, and the hooks that run with it."""
    return tuple(
        (
            id(type(m).forward),
            id(m.__dict__.get("forward")),
            m.training,
            tuple(map(id, m._forward_hooks.values())),
            tuple(map(id, m._forward_pre_hooks.values())),
        )
        for m in model.modules()
    )


def _contents(batch: Batch) -> bytes:
    """A hash of a batch's inputs, their names and masks, and its targets."""
    digest = blake2b(digest_size=16)
    for side in (batch.inputs, batch.targets):
        digest.update(repr(_shape(side)).encode())
        for x in tensors(side):
            digest.update(checksum(x))
    return digest.digest()


def _shape(value: Any, within: tuple[int, ...] = ()) -> Any:
    """A batch's structure without its numbers: names, types, and what is no tensor."""
    if isinstance(value, torch.Tensor):
        return str(value.device)
    if isinstance(value, dict):
        named = {key: _shape(part, within) for key, part in value.items()}
        return type(value).__name__, named, repr(getattr(value, "masks", None))
    if isinstance(value, (tuple, list)):
        return [_shape(part, within) for part in value]
    if next(tensors(value, within), None) is not None:
        named = {name: _shape(part, (*within, id(value))) for name, part in held_by(value).items()}
        return type(value).__name__, named
    return repr(value)
