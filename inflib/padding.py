"""Which mask belongs to which layer: a padded position counts nowhere, and no other is left out.

A mask speaks of one sequence, and of the layers with exactly as many positions (times their calls). But a length proves
nothing: a decoder's may be its encoder's, an image have as many patches as its caption tokens, a pool as many queries.
So it is tried on the first padded batch: the sequence is cut by its last token, and the layers that then have fewer
positions are that sequence's. Where a model cannot be shown a shorter one, ``with_masks`` says which is whose.
"""

from __future__ import annotations

import fnmatch
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

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
            if fitting:
                open_[name] = fitting
            elif max(recording.lengths[name]) > 1 and not any(_foreign(batch.inputs, m, masks[m]) for m in masks):
                apart.append(name)
        if apart and not self.said:
            self.said = True
            _say_apart(apart, recording, masks)
        if open_:
            seen = {}
            for m in dict.fromkeys(m for fitting in open_.values() for m in fitting):
                layers = {name: recording.layers[name] for name, fitting in open_.items() if m in fitting}
                seen[m] = _tried(self.model, layers, batch, m, masks[m])
            for name, fitting in open_.items():
                alone = len(masks) == 1 and not _foreign(batch.inputs, fitting[0], masks[fitting[0]])
                self.found[name] = _decided(name, fitting, {m: seen[m][name] for m in fitting}, recording, alone)

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


def _own(inputs: Mapping[str, Any], name: str, mask: Tensor) -> list[str]:
    """The inputs that have a place for each of a mask's positions, and are of its side: encoder's or decoder's."""
    decodes = name.startswith("decoder_")
    return [
        key
        for key, x in inputs.items()
        if isinstance(x, Tensor) and x.shape[: mask.ndim] == mask.shape and key.startswith("decoder_") == decodes
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
    short = {key: batch.inputs[key].narrow(mask.ndim - 1, 0, mask.shape[-1] - 1) for key in keys}
    try:
        cut = forward(model, layers, {**batch.inputs, **short}, batch.size)
    except (RuntimeError, ValueError, IndexError, AssertionError):  # in the model's words: its lengths do not fit
        return dict.fromkeys(layers)
    return {layer: _fits(mask[..., 1:], layer, cut, batch.size) for layer in layers}


def _decided(
    name: str, fitting: list[str], seen: dict[str, bool | None], recording: Recording, alone: bool
) -> str | None:
    own = [m for m in fitting if seen[m]]
    if len(own) == 1:
        return own[0]
    if all(seen[m] is False for m in fitting):
        return None
    if alone:  # the only sequence there is
        return fitting[0]
    raise ValueError(
        f"layer {name!r} has {recording.lengths[name][0]} positions, as many as {' and '.join(fitting)}; whether they "
        "are the same did not show when the sequence was cut by one. Say "
        f"it: inflib.with_masks(inputs, {{{name!r}: {fitting[0]!r}}}), or None for a layer whose positions all count."
    )
