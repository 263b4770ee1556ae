"""Which mask belongs to which layer: a padded position counts nowhere, and no other is left out.

A mask speaks of one sequence, and of the layers with exactly as many positions (times their calls). But a length proves
nothing: a decoder's may be its encoder's, an image have as many patches as its caption tokens, a pool as many queries.
So it is tried on the first padded batch: the sequence is cut by its last token, and the layers that then have fewer
positions are that sequence's. Where a model cannot be shown a shorter one, ``with_masks`` says which is whose.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .batches import Batch
from .hooks import Recording, forward
from .layers import Layer, OneHot, positions_last
from .notes import note
from .positions import MASKS, Masked, masks_of

NOT_CONTENT = ("mask", "position_ids", "token_type_ids")  # ends of the names of inputs that say nothing themselves


class PaddingNote(UserWarning):
    """Says once that a layer has other positions than the padded sequence it is made from: all of them count."""


@dataclass
class Padding:
    """For one pass: which mask each layer goes by, as batches have shown."""

    model: nn.Module
    follows: dict[tuple[str, str], bool | None] = field(default_factory=dict)  # (layer, mask) → what a trial showed
    said: bool = False
    reached: set[str] = field(default_factory=set)  # layers whose mask was held against where a gradient arrives

    def present(self, batch: Batch, recording: Recording) -> dict[str, Tensor | None]:
        """For each layer the positions (B, T) of its activations that are there; None where all of them are."""
        masks = {name: mask for name, mask in masks_of(batch.inputs).items() if not bool(mask.all())}
        if not masks and not isinstance(batch.inputs, Masked):
            self._say_unread(batch, recording)
            return dict.fromkeys(recording.layers)
        open_ = [name for name in recording.layers if _named(name, batch.inputs) is ...]
        fitting = {name: [m for m in masks if _runs(masks[m], name, recording, batch.size)] for name in open_}
        self._try(batch, recording, masks, fitting)
        self._say_apart([name for name in open_ if not fitting[name]], batch, recording, masks)
        found: dict[str, Tensor | None] = {}
        for name in recording.layers:
            which = _named(name, batch.inputs)
            if which is ...:
                which = self._own(name, fitting[name], batch, recording)
            found[name] = _laid(which, name, batch, recording)
        return found

    def check_reached(self, there: dict[str, Tensor | None], g: dict[str, Tensor], index: int) -> None:
        """Raise ValueError for a mask that hides all positions (B, T) which a gradient g (B, T, o) arrives at."""
        for name, present in there.items():
            if present is None or name in self.reached or g[name].shape[:2] != present.shape:
                continue
            self.reached.add(name)
            rows = (g[name] != 0).any(-1)
            if bool((rows & ~present).any()) and not bool((rows & present).any()):
                raise ValueError(
                    f"layer {name!r}: in batch {index} the outputs depend on positions that its mask hides, and on "
                    "none that it shows; expected 1 where a position holds a token and 0 where it is padding. Give its "
                    "opposite, ~mask (torch's key_padding_mask is 1 where padding is, attention_mask 0), or say by "
                    f"inflib.with_masks(inputs, {{{name!r}: None}}) that all of the layer's positions count."
                )

    def _say_unread(self, batch: Batch, recording: Recording) -> None:
        """Note once that an input looks like a mask, or like lengths, which no name says is one."""
        if self.said or any(key in MASKS for key in batch.inputs if isinstance(batch.inputs, Mapping)):
            return
        named = batch.inputs.items() if isinstance(batch.inputs, Mapping) else enumerate(_listed(batch.inputs))
        for key, x in named:
            long = _positions_of(str(key), x, batch.size)
            layer = next((k for k, some in recording.lengths.items() if long > 1 and long in (sum(some), *some)), None)
            if layer is None:
                continue
            self.said = True
            note(
                f"input {key!r} {tuple(x.shape)} looks like a mask of the {long} positions that layer {layer!r} has, "
                "or like their lengths: all of them count, those made from padding too. Give inputs by name, with "
                "attention_mask, 1 where a position holds a token, or say which mask is whose: "
                f"inflib.with_masks(inputs, {{{layer!r}: mask}}), None for one whose positions all count.",
                PaddingNote,
            )
            return

    def _try(self, batch: Batch, recording: Recording, masks: dict[str, Tensor], fitting: dict[str, list[str]]) -> None:
        """See for every layer that a mask fits whether it is the layer's, where that was not tried before."""
        for m, mask in masks.items():
            layers = {k: recording.layers[k] for k, ms in fitting.items() if m in ms and (k, m) not in self.follows}
            if layers:
                seen = _tried(self.model, layers, batch, m, mask)
                self.follows |= {(name, m): seen[name] for name in layers}

    def _own(self, name: str, fitting: list[str], batch: Batch, recording: Recording) -> str | None:
        """The mask that a layer goes by, of those that fit it; None where none does."""
        own = [m for m in fitting if self.follows[name, m]]
        if len(own) == 1:
            return own[0]
        if all(self.follows[name, m] is False for m in fitting):
            return None
        raise ValueError(
            f"layer {name!r} has {sum(recording.lengths[name])} positions, as many as {' and '.join(fitting)}; whether "
            "they are the same did not show when the sequence was cut by one, or its hidden tokens replaced. Say it: "
            f"inflib.with_masks(inputs, {{{name!r}: {fitting[0]!r}}}), or None for a layer whose positions all count."
        )

    def _say_apart(self, layers: list[str], batch: Batch, recording: Recording, masks: dict[str, Tensor]) -> None:
        """Note once that layers have several positions which no mask fits, though there is but one sequence."""
        layers = [name for name in layers if sum(recording.lengths[name]) > 1]
        if self.said or not layers or any(_foreign(batch.inputs, m, mask) for m, mask in masks.items()):
            return
        self.said = True
        others = f" and {len(layers) - 1} others" if len(layers) > 1 else ""
        note(
            f"layer {layers[0]!r}{others} has {sum(recording.lengths[layers[0]])} positions an example, "
            f"{' and '.join(f'{name} {mask.shape[-1]}' for name, mask in masks.items())}: all of its positions count, "
            "those made from padding too. Give it a mask of its own length: inflib.with_masks(inputs, {layer: mask}).",
            PaddingNote,
        )


def _listed(inputs: Any) -> list[Any]:
    return list(inputs) if isinstance(inputs, (tuple, list)) else []


def _positions_of(name: str, x: Any, size: int) -> int:
    """Of how many positions an input is the mask, or the lengths, as far as it looks like either; 0 for another."""
    if not isinstance(x, Tensor) or x.shape[:1] != (size,) or x.numel() == 0:
        return 0
    masks = x.dtype == torch.bool or ("mask" in name and not name.startswith("global"))
    if x.ndim == 2 and masks and bool(((x == 0) | (x == 1)).all()):
        return x.shape[1] if bool(x.any()) and not bool(x.all()) else 0
    lengths = x.ndim == 1 and not x.is_floating_point() and any(part in name for part in ("length", "lens"))
    return int(x.max()) if lengths and bool((x != x[0]).any()) else 0


def _laid(which: Any, name: str, batch: Batch, recording: Recording) -> Tensor | None:
    """A mask, given by itself or by name, over a layer's positions (B, T); None where it hides none of them."""
    mask = masks_of(batch.inputs)[which] if isinstance(which, str) else which
    if mask is None:
        return None
    runs = _runs(mask, name, recording, batch.size)
    if not runs:
        raise ValueError(
            f"with_masks: layer {name!r} has {recording.lengths[name]} positions (a number for each call), its "
            f"mask {tuple(mask.shape)}; expected as many. Name None for a layer whose positions all count."
        )
    rows = _rows(mask, recording.layers[name], batch.size) != 0
    return None if bool(rows.all()) else rows.repeat(1, runs)


def _named(layer: str, inputs: Any) -> Any:
    """What ``with_masks`` says of a layer: a mask's name, a mask, None, or ... where it says nothing."""
    if isinstance(inputs, Masked):
        for pattern, which in inputs.masks.items():
            if layer == pattern or fnmatch.fnmatchcase(layer, pattern):
                return which
    return ...


def _rows(mask: Tensor, layer: Layer, size: int) -> Tensor:
    """A mask as (B, L) over one call's positions: (B, L), (B, choices, L), or several rows of tokens an example."""
    if len(mask) == size:
        return mask.flatten(1)
    return layer.layout.examples(positions_last, None, mask[..., None], size)[..., 0]


def _runs(mask: Tensor, name: str, recording: Recording, size: int) -> int:
    """How often a layer's positions run over a mask's: once a call, or in calls of one each; 0 where they do not."""
    lengths, several = recording.lengths[name], len(mask) > size
    if len(mask) % size or (several and size > 1 and recording.layers[name].layout.order is None):
        return 0
    each = mask.numel() // size
    if set(lengths) == {each}:
        return len(lengths)
    return len(lengths) // each if set(lengths) == {1} and len(lengths) % each == 0 else 0


_UNFIT = (RuntimeError, ValueError, IndexError, AssertionError)  # in the model's words: inputs of which it takes none


# --- trying a mask -------------------------------------------------------------------------------------------------


def _own(inputs: Mapping[str, Any], name: str, mask: Tensor) -> list[str]:
    """The inputs that have a place for each of a mask's positions, and are named as it is: decoder_, context_, ..."""
    prefixes = [m.removesuffix("attention_mask") for m in (*masks_of(inputs), "decoder_attention_mask")]
    return [
        key
        for key, x in inputs.items()
        if isinstance(x, Tensor)
        and x.shape[: mask.ndim] == mask.shape
        and max((p for p in prefixes if key.startswith(p)), key=len, default="") == name.removesuffix("attention_mask")
    ]


def _contents(inputs: Mapping[str, Any], name: str, mask: Tensor) -> list[str]:
    """The inputs that a mask's sequence is made of: its token ids, or without any what has a place for each of them."""
    own = [key for key in _own(inputs, name, mask) if not key.endswith(NOT_CONTENT)]
    return [key for key in own if inputs[key].ndim == mask.ndim] or own


def _foreign(inputs: Mapping[str, Any], name: str, mask: Tensor) -> list[str]:
    """Inputs that are another sequence's: an image beside a text, a decoder's tokens."""
    own = _contents(inputs, name, mask)
    return [
        key
        for key, x in inputs.items()
        if isinstance(x, Tensor) and x.ndim > 1 and key not in own and not key.endswith(NOT_CONTENT)
    ]


def _tried(model: nn.Module, layers: dict[str, Layer], batch: Batch, name: str, mask: Tensor) -> dict[str, bool | None]:
    """Whether each layer's positions are this mask's, seen from a sequence cut by one; None where it cannot be cut."""
    keys = [key for key in _own(batch.inputs, name, mask) if key.endswith(NOT_CONTENT)]
    keys += _contents(batch.inputs, name, mask)
    for start in (0, 1):  # without its last token, or, where that is one the model asks for, without its first
        short = {key: batch.inputs[key].narrow(mask.ndim - 1, start, mask.shape[-1] - 1) for key in keys}
        try:
            cut = forward(model, layers, {**batch.inputs, **short}, batch.size)
        except _UNFIT:
            continue
        return {layer: bool(_runs(mask[..., 1:], layer, cut, batch.size)) for layer in layers}
    try:
        return _tried_by_contents(model, layers, batch, name, mask)
    except _UNFIT:
        return dict.fromkeys(layers)


def _tried_by_contents(
    model: nn.Module, layers: dict[str, Layer], batch: Batch, name: str, mask: Tensor
) -> dict[str, bool | None]:
    """The same of a model that takes one length only: what is hidden is replaced, and must change nothing elsewhere."""
    hidden = mask == 0
    other = {key: _replaced(batch.inputs[key], hidden) for key in _contents(batch.inputs, name, mask)}
    before, after = (forward(model, layers, {**batch.inputs, **some}, batch.size) for some in ({}, other))
    found: dict[str, bool | None] = {}
    for layer in layers:
        changed = _differ(before.activations[layer], after.activations[layer])  # (B, T)
        runs = _runs(mask, layer, before, batch.size)
        rows = _rows(hidden, layers[layer], batch.size).repeat(1, runs)
        found[layer] = True if bool(changed.any()) and not bool((changed & ~rows).any()) else None
    return found


def _differ(one: Tensor, other: Tensor) -> Tensor:
    if isinstance(one, OneHot) and isinstance(other, OneHot):
        return one.ids != other.ids
    return (one != other).any(-1)


def _replaced(x: Tensor, where: Tensor) -> Tensor:
    """x with other contents at some positions: another of its own ids, or other numbers."""
    where = where.reshape(where.shape + (1,) * (x.ndim - where.ndim))
    if x.is_floating_point():
        return torch.where(where, 1 - 2 * x, x)
    ids = x.unique()
    return torch.where(where, torch.where(x == ids[0], ids[-1], ids[0]), x)
