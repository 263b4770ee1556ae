"""Which mask belongs to which layer: a padded position counts nowhere, and no other is left out.

A mask speaks of one sequence. With a single one in the inputs, the layers whose positions are exactly as many (times
their calls) are that sequence's. With two (an encoder's and a decoder's, a caption beside an image) a length proves
nothing, so it is tried: the mask is made to hide each row's last token too, and what is hidden is replaced. Activations
that change there and nowhere else are that sequence's positions; a layer that nothing in the sequence changes is
another's. Where neither shows, ``with_masks`` says it.
"""

from __future__ import annotations

import fnmatch
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .batches import Batch
from .hooks import Recording, forward
from .layers import Layer, positions_last
from .positions import Masked, masks_of

NOT_CONTENT = ("mask", "position_ids", "token_type_ids")  # ends of the names of inputs that say nothing themselves


class PaddingNote(UserWarning):
    """Says once that a layer has other positions than the padded sequence it is made from: all of them count."""


@dataclass
class Padding:
    """For one pass: which mask each layer goes by, found where two sequences leave it open and kept from then on."""

    model: nn.Module
    found: dict[str, str | None] = field(default_factory=dict)  # layer → name of a mask; None: all its positions count
    said: bool = False

    def present(self, batch: Batch, recording: Recording) -> dict[str, Tensor | None]:
        """For each layer the positions (B, T) of its activations that are there; None where all of them are."""
        masks = masks_of(batch.inputs)
        if not masks or (all(bool(mask.all()) for mask in masks.values()) and not isinstance(batch.inputs, Masked)):
            return dict.fromkeys(recording.layers)
        self._find(batch, recording, masks)
        return {name: self._positions(name, batch, recording, masks) for name in recording.layers}

    def _find(self, batch: Batch, recording: Recording, masks: dict[str, Tensor]) -> None:
        """Decide for the layers that a mask fits and that nothing was seen of before."""
        open_, apart = {}, []
        for name in recording.layers:
            if name in self.found or _named(name, batch.inputs) is not ...:
                continue
            fitting = [m for m, mask in masks.items() if _fits(mask, name, recording, batch.size)]
            if len(fitting) == 1 and len(masks) == 1 and not _foreign(batch.inputs, fitting[0], masks[fitting[0]]):
                self.found[name] = fitting[0]
            elif fitting:
                open_[name] = fitting
            elif max(recording.lengths[name]) > 1 and not any(_foreign(batch.inputs, m, masks[m]) for m in masks):
                apart.append(name)
        if apart and not self.said:
            self.said = True
            _say_apart(apart, recording, masks)
        if open_:
            layers = {name: recording.layers[name] for name in open_}
            seen = {m: _tried(self.model, layers, batch, m, masks[m]) for m in {m for ms in open_.values() for m in ms}}
            for name, fitting in open_.items():
                self.found[name] = _decided(name, fitting, {m: seen[m][name] for m in fitting}, recording)

    def _positions(self, name: str, batch: Batch, recording: Recording, masks: dict[str, Tensor]) -> Tensor | None:
        which: Any = _named(name, batch.inputs)
        which = self.found.get(name) if which is ... else which
        mask = which if isinstance(which, Tensor) else masks.get(which) if which else None
        if mask is None:
            return None
        if not _fits(mask, name, recording, batch.size):
            if _named(name, batch.inputs) is ...:
                return None  # after pooling, say: its positions are no tokens
            raise ValueError(
                f"with_masks: layer {name!r} has {recording.lengths[name]} positions (a number for each call), its "
                f"mask {tuple(mask.shape)}; expected as many. Name None for a layer whose positions all count."
            )
        rows = _rows(mask, recording.layers[name], batch.size) != 0
        return None if bool(rows.all()) else rows.repeat(1, len(recording.lengths[name]))


def _say_apart(layers: list[str], recording: Recording, masks: dict[str, Tensor]) -> None:
    others = f" and {len(layers) - 1} others" if len(layers) > 1 else ""
    warnings.warn(
        f"layer {layers[0]!r}{others} has {recording.lengths[layers[0]][0]} positions an example, "
        f"{' and '.join(f'{name} {mask.shape[-1]}' for name, mask in masks.items())}: all of its positions count, "
        "those made from padding too. Give it a mask of its own length: inflib.with_masks(inputs, {layer: mask}).",
        PaddingNote,
        stacklevel=7,
    )


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


def _fits(mask: Tensor, name: str, recording: Recording, size: int) -> bool:
    if len(mask) % size or (len(mask) > size > 1 and recording.layers[name].layout.order is None):
        return False
    return all(length * size == mask.numel() for length in recording.lengths[name])


# --- trying a mask -------------------------------------------------------------------------------------------------


def _contents(inputs: Mapping[str, Any], name: str, mask: Tensor) -> list[str]:
    """The inputs that a mask's sequence is made of: its token ids, or without any what has a place for each of them."""
    decodes = name.startswith("decoder_")
    own = [
        key
        for key, x in inputs.items()
        if isinstance(x, Tensor)
        and not key.endswith(NOT_CONTENT)
        and x.shape[: mask.ndim] == mask.shape
        and key.startswith("decoder_") == decodes
    ]
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
    """Whether each layer's positions are this mask's: True and False are shown, None is not."""
    there = mask != 0
    last = there & (there.flip(-1).cumsum(-1).flip(-1) == 1) & (there.sum(-1, keepdim=True) > 1)
    hidden = ~there | last
    keys = _contents(batch.inputs, name, mask)
    if not keys or not bool(hidden.any()):
        return dict.fromkeys(layers)
    shut = {**batch.inputs, name: (~hidden).to(mask.dtype)}
    before = forward(model, layers, shut, batch.size)
    other = forward(model, layers, shut | {key: _replaced(shut[key], hidden) for key in keys}, batch.size)
    whole = torch.ones_like(hidden)
    another = forward(model, layers, shut | {key: _replaced(shut[key], whole) for key in keys}, batch.size)
    found: dict[str, bool | None] = {}
    for layer in layers:
        a = before.activations[layer]
        rows = _rows(hidden, layers[layer], batch.size).repeat(1, len(before.lengths[layer]))
        changed = _changed(a, other.activations[layer])
        if bool(changed.any()) and not bool((changed & ~rows).any()):
            found[layer] = True
        else:
            found[layer] = None if bool(_changed(a, another.activations[layer]).any()) else False
    return found


def _replaced(x: Tensor, where: Tensor) -> Tensor:
    """x with other contents where it is said: another of its own ids, or other numbers."""
    where = where.reshape(where.shape + (1,) * (x.ndim - where.ndim))
    if x.is_floating_point():
        return torch.where(where, 1 - 2 * x, x)
    ids = x.unique()
    first, second = (ids[0], ids[-1]) if len(ids) > 1 else (ids[0], (ids[0] == 0).to(ids))
    return torch.where(where, torch.where(x == first, second, first), x)


def _changed(a: Tensor, b: Tensor) -> Tensor:
    """The positions (B, T) at which activations differ by more than rounding."""
    apart = (a - b).abs().amax(-1)
    return apart > 64 * torch.finfo(a.dtype).eps * a.abs().amax()


def _decided(name: str, fitting: list[str], seen: dict[str, bool | None], recording: Recording) -> str | None:
    own = [m for m in fitting if seen[m]]
    if len(own) == 1:
        return own[0]
    if not own and all(seen[m] is False for m in fitting):
        return None
    raise ValueError(
        f"layer {name!r} has {recording.lengths[name][0]} positions, as {' and '.join(fitting)}, and the inputs hold "
        "another sequence too; whose they are did not show when hidden tokens were replaced. Say "
        f"it: inflib.with_masks(inputs, {{{name!r}: {fitting[0]!r}}}), or None for a layer whose positions all count."
    )
