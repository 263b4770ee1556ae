"""What is assumed about a user's model, proved on the data at hand: an example is its own rows of every layer.

A score speaks of one example, so each layer's rows of g must be that example's alone. Nothing says so by itself: a
model may put the batch second, sort it, flatten tokens into it, or mix its examples. So on the first batch of a pass,
and on a later one drawn by chance,

    1  the loss of some examples alone is back-propagated (owners.py): wherever it arrives is theirs, all other rows
       are exactly 0. So it is with the first, with half of the others and with the rest. That finds the layout
       (rows.py): the first usual one that this allows.
    2  Σ_n w_n Σ_t g_t a_tᵀ, with weights drawn for the examples, is compared with autograd's gradient of Σ_n w_n ℓ_n.
       It notices a weight used outside its module, a type registered wrongly, rows in another order than supposed.

What is back-propagated is each ℓ_n's slope at the outputs over a power of two, to a size of 1: examples the model is
sure of count too, and what arrives, multiplied by that power, is the batch's own g: whoever asks for that next
(``pairs``) has it without another pass.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from .batches import Batch, batch_size, per_row
from .comparison import compared_weights, differing, gradients_with_copies, read_otherwise, weighted_sums
from .finite import check_finite
from .hooks import Captured, Pair, Recording, RowsChangedError, forward, leave_out, pairs
from .independence import check_independence, check_undrawn
from .layers import Layer, LayerSpec
from .notes import note
from .objectives import Objective, check_kind
from .owners import allowed_layouts, slopes_of, some_examples
from .placement import autocast_in_force, plain_numbers
from .positions import check_batch
from .proven import proven
from .randomness import other_generators
from .recording import Arrived
from .rows import FIRST
from .selection import select


@plain_numbers
def capture(
    model: nn.Module,
    objective: Objective,
    inputs: Any,
    targets: Any,
    layers: LayerSpec = None,
    measurement: Any = None,
) -> dict[str, Pair]:
    """One forward and one backward pass → {layer: Pair(a, g)} with g = dℓ/d(layer output), rows shown to be examples.

    Σ_t g_t a_tᵀ (``pair.matrices()``) is each example's weight gradient, (o, i) with the bias as last column.
    With ``measurement`` given (a name, a callable) g is that measurement's gradient in place of the loss's.
    Raises ValueError for a layer whose rows are not the batch's examples, naming it, what was seen, and the fix.
    """
    batch = Batch(0, 0, batch_size(targets, "capture", 0), inputs, targets)
    return Proof(model, select(model, layers), objective, measurement).pairs(batch)


class RowsNote(UserWarning):
    """Says once which layers have their examples elsewhere than one on each index of the first axis."""


@dataclass
class Proof:
    """The layers of one pass over the data, with the layouts that the batches seen so far have shown to hold.

    ``batches``: how many there will be, where that is known; which later one is looked at is drawn from ``seed``.
    """

    model: nn.Module
    layers: dict[str, Layer]
    objective: Objective
    measurement: Any = None
    batches: int | None = None
    seed: int = 0
    say: bool = False  # where examples are, if it is an unusual place
    weights: str | None = None  # the model's hash, of those who have just taken it: the first look takes none
    _most: int = 0  # examples of the largest batch that was looked at: one alone shows no layout
    _draw: np.random.Generator = field(init=False)
    _later: int | None = field(init=False)

    def __post_init__(self) -> None:
        check_kind(self.objective)
        self._draw = np.random.Generator(np.random.Philox(self.seed))
        self._later = int(self._draw.integers(1, self.batches)) if self.batches and self.batches > 1 else None

    def pairs(self, batch: Batch) -> Captured:
        """Every layer's activations and gradients of a batch, which is looked at first where its turn has come."""
        recording = self._recorded(batch, look=True, keep=True)
        return pairs(recording, self.objective, batch.targets, self.measurement)

    def recording(self, batch: Batch, *, look: bool = True) -> Recording:
        """A forward pass over a batch, its rows read as they were shown to be; look=False in a pass after the first."""
        return self._recorded(batch, look=look, keep=False)

    def _recorded(self, batch: Batch, *, look: bool, keep: bool) -> Recording:
        check_batch(self.objective, batch.inputs, batch.targets)
        recorded = self._look(batch, keep=keep) if look and self._due(batch) else None
        if recorded is not None:
            return recorded
        try:
            return forward(self.model, self.layers, batch.inputs, batch.size)
        except RowsChangedError:  # tokens flattened into the batch, where all texts so far had one
            recorded = self._look(batch, keep=keep)
            return recorded or forward(self.model, self.layers, batch.inputs, batch.size)

    def see(self, batch: Batch) -> None:
        """Look at a batch whose turn it is, where its recording is not needed: its sums are there already."""
        if self._due(batch):
            self._look(batch)

    def _look(self, batch: Batch, *, keep: bool = False) -> Recording | None:
        """What was recorded for the look, read as it showed; None where the batch had been looked at before.

        keep: with the gradients that arrived, for ``pairs``.
        """
        before = self.layers if self._most > 1 else {}
        asked = (self.model, self.layers, self.objective, batch, self.measurement)
        crowded, recorded = batch.size > self._most, None

        def look() -> dict[str, Layer]:
            nonlocal recorded
            found, recorded = prove(*asked, self._draw, crowded=crowded, keep=keep)
            return found

        weights, self.weights = self.weights, None
        found = proven(*asked, crowded, look, weights)
        self.layers = {name: _agreed(before.get(name, layer), layer, batch.index) for name, layer in found.items()}
        if self.say and self._most < 2 <= batch.size:
            _say_where(self.layers)
        self._most = max(self._most, batch.size)
        if recorded is not None:
            recorded.read(self.layers)
        return recorded

    def _due(self, batch: Batch) -> bool:
        if self._most < 2 and batch.size > self._most:
            return True
        if self.batches is None:  # one of so many, whenever the data ends
            return batch.index > 0 and bool(self._draw.random() < 1 / batch.index)
        return batch.index == self._later


def _agreed(before: Layer, now: Layer, batch: int) -> Layer:
    """The layer in the layout that both batches allow; ValueError where there is none."""
    one, other = before.layout, now.layout
    if one.axis != other.axis or (one.order and other.order and one.order != other.order):
        raise ValueError(
            f"layer {now.name!r} has its examples {other} in batch {batch}, {one} in a batch before; expected one "
            f"place in all batches. {leave_out([now.name], {now.name: now, '': now})}"
        )
    return replace(now, layout=one if one.order else other)


def _say_where(layers: dict[str, Layer]) -> None:
    unusual = {name: layer.layout for name, layer in layers.items() if layer.layout != FIRST}
    if unusual:
        name, layout = next(iter(unusual.items()))
        others = (
            f", and {len(unusual) - 1} more layers too have them in places of their own" if len(unusual) > 1 else ""
        )
        note(
            f"layer {name!r} has its examples {layout}{others}; this was seen on the first batch and is read so.",
            RowsNote,
        )


def prove(
    model: nn.Module,
    layers: dict[str, Layer],
    objective: Objective,
    batch: Batch,
    measurement: Any,
    draw: np.random.Generator,
    *,
    crowded: bool = True,
    keep: bool = False,
) -> tuple[dict[str, Layer], Recording]:
    """The layers with their layouts, or a ValueError that names those whose rows are not examples, and why.

    With them the batch as it was recorded, for its own gradients; keep=True, with those that arrived in the proof.
    crowded=False in a pass that has seen a batch of this size: see ``independence``.
    """
    check_batch(objective, batch.inputs, batch.targets)
    asked = (model, layers, objective, batch, measurement, draw, crowded, keep)
    try:
        return _prove(*asked, in_place=False)
    except RuntimeError as error:
        if "inplace operation" not in str(error):
            raise
    return _prove(*asked, in_place=True)  # the model changes in place what a layer has read


def _prove(
    model: nn.Module,
    layers: dict[str, Layer],
    objective: Objective,
    batch: Batch,
    measurement: Any,
    draw: np.random.Generator,
    crowded: bool,
    keep: bool,
    *,
    in_place: bool,
) -> tuple[dict[str, Layer], Recording]:
    asked = [] if in_place else compared_weights(layers)
    drawn = other_generators(model)
    recording = forward(model, layers, batch.inputs, batch.size, raw=True, weights=asked)
    if other_generators(model) != drawn:
        check_undrawn(model, batch, recording.outputs.detach())
    _check_recorded(recording, batch)
    objective.check(recording.outputs, batch.targets)
    idle = recording.drop_idle()
    layers = {name: replace(layer, idle=idle[name]) for name, layer in layers.items()}
    some = some_examples(batch.size, draw)
    slopes = slopes_of(objective, measurement, recording.outputs, batch.targets, some, draw)
    seed = slopes.seed
    allowed, gradients = allowed_layouts(recording, layers, batch.size, seed, some)
    if keep and slopes.moderate and not _in_half(model):
        recording.arrived = Arrived(dict(gradients), slopes.sizes)
    check_independence(model, batch, recording.outputs.detach(), draw, crowded=crowded)
    # powers of two: a model that rounds inside (norms in float32, gradients that are nothing but rounding) then rounds
    # alike in both sums
    weights = torch.from_numpy(2.0 ** draw.integers(-3, 4, batch.size) * draw.choice([-1.0, 1.0], batch.size))  # (B,)
    layers = {name: replace(layer, layout=allowed[name][0]) for name, layer in layers.items()}
    sums = weighted_sums(recording, layers, gradients, weights)
    seed *= per_row(weights, seed).to(seed)
    truth = gradients_with_copies(model, layers, batch.inputs, seed) if in_place else recording.weight_gradients(seed)
    if apart := differing(sums, truth):
        seed /= per_row(weights, seed).to(seed)
        gradients = recording.output_gradients(seed)
        layers |= read_otherwise(recording, layers, allowed, gradients, weights, truth, apart, batch.index)
    return layers, recording


def _in_half(model: nn.Module) -> bool:
    """Whether numbers may be too small for float16 in one scale, and not in another."""
    dtypes = [p.dtype for p in model.parameters()] + [dtype for _, dtype in autocast_in_force()]
    return torch.float16 in dtypes


def _check_recorded(recording: Recording, batch: Batch) -> None:
    for at in range(max(len(inputs) for inputs in recording.inputs.values())):
        check_finite("activations", {k: x[at] for k, x in recording.inputs.items() if len(x) > at}, batch.index)
