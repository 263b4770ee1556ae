"""What is assumed about a user's model, proved on the data at hand: an example is its own rows of every layer.

A score speaks of one example, so each layer's rows of g must be that example's alone. Nothing says so by itself: a
model may put the batch second, sort it, flatten tokens into it, or mix its examples. So on the first batch of a pass,
and on a later one drawn by chance,

    1  the loss of some examples alone is back-propagated: wherever it arrives is theirs, all other rows are exactly 0.
       So it is with the first, with half of the others and with the rest. That finds the layout (rows.py): the first
       usual one that this allows.
    2  Σ_n w_n Σ_t g_t a_tᵀ, with weights drawn for the examples, is compared with autograd's gradient of Σ_n w_n ℓ_n.
       It notices a weight used outside its module, a type registered wrongly, rows in another order than supposed.

What is back-propagated is each ℓ_n's slope at the outputs, scaled to 1: examples the model is sure of count too.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .batches import Batch, batch_size, cached_bytes, chunks, per_row
from .comparison import compared, compared_weights, gradients_with_copies, weighted_sums
from .finite import check_finite
from .hooks import Captured, Pair, Recording, RowsChangedError, forward, leave_out, pairs, values_of
from .independence import check_independence
from .layers import Layer, LayerSpec, positions_last
from .layers.elementwise import features_last
from .notes import note
from .objectives import Objective, per_example
from .placement import plain_numbers
from .positions import check_batch
from .proven import proven
from .rows import FIRST, Layout, candidates
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
    _most: int = 0  # examples of the largest batch that was looked at: one alone shows no layout
    _draw: np.random.Generator = field(init=False)
    _later: int | None = field(init=False)

    def __post_init__(self) -> None:
        self._draw = np.random.Generator(np.random.Philox(self.seed))
        self._later = int(self._draw.integers(1, self.batches)) if self.batches and self.batches > 1 else None

    def pairs(self, batch: Batch) -> Captured:
        """Every layer's activations and gradients of a batch, which is looked at first where its turn has come."""
        return pairs(self.recording(batch), self.objective, batch.targets, self.measurement)

    def recording(self, batch: Batch, *, look: bool = True) -> Recording:
        """A forward pass over a batch, its rows read as they were shown to be; look=False in a pass after the first."""
        check_batch(self.objective, batch.inputs, batch.targets)
        recorded = self._look(batch) if look and self._due(batch) else None
        if recorded is not None:
            return recorded
        try:
            return forward(self.model, self.layers, batch.inputs, batch.size)
        except RowsChangedError:  # tokens flattened into the batch, where all texts so far had one
            recorded = self._look(batch)
            return recorded or forward(self.model, self.layers, batch.inputs, batch.size)

    def see(self, batch: Batch) -> None:
        """Look at a batch whose turn it is, where its recording is not needed: its sums are there already."""
        if self._due(batch):
            self._look(batch)

    def _look(self, batch: Batch) -> Recording | None:
        """What was recorded for the look, read as it showed; None where the batch had been looked at before."""
        before = self.layers if self._most > 1 else {}
        asked = (self.model, self.layers, self.objective, batch, self.measurement)
        crowded, recorded = batch.size > self._most, None

        def look() -> dict[str, Layer]:
            nonlocal recorded
            found, recorded = prove(*asked, self._draw, crowded=crowded)
            return found

        found = proven(*asked, crowded, look)
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
) -> tuple[dict[str, Layer], Recording]:
    """The layers with their layouts, or a ValueError that names those whose rows are not examples, and why.

    With them the batch as it was recorded, for its own gradients. crowded=False in a pass that has seen a batch of this
    size: see ``independence``.
    """
    check_batch(objective, batch.inputs, batch.targets)
    asked = (model, layers, objective, batch, measurement, draw, crowded)
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
    *,
    in_place: bool,
) -> tuple[dict[str, Layer], Recording]:
    asked = [] if in_place else compared_weights(layers)
    recording = forward(model, layers, batch.inputs, batch.size, raw=True, weights=asked)
    _check_recorded(recording, batch)
    objective.check(recording.outputs, batch.targets)
    idle = recording.drop_idle()
    layers = {name: replace(layer, idle=idle[name]) for name, layer in layers.items()}
    some = _some_examples(batch.size, draw)
    seed = _slopes(objective, measurement, recording.outputs, batch.targets, some, draw)
    allowed, gradients = _allowed(recording, layers, batch.size, seed, some)
    check_independence(model, batch, recording.outputs.detach(), draw, crowded=crowded)
    # powers of two: a model that rounds inside (norms in float32, gradients that are nothing but rounding) then rounds
    # alike in both sums
    weights = torch.from_numpy(2.0 ** draw.integers(-3, 4, batch.size) * draw.choice([-1.0, 1.0], batch.size))  # (B,)
    sums = weighted_sums(recording, layers, allowed, batch.size, gradients, weights)
    seed *= per_row(weights, seed).to(seed)
    truth = gradients_with_copies(model, layers, batch.inputs, seed) if in_place else recording.weight_gradients(seed)
    return compared(layers, batch.index, sums, truth), recording


def _check_recorded(recording: Recording, batch: Batch) -> None:
    for at in range(max(len(inputs) for inputs in recording.inputs.values())):
        check_finite("activations", {k: x[at] for k, x in recording.inputs.items() if len(x) > at}, batch.index)


# --- 1: whose rows a loss arrives at -------------------------------------------------------------------------------


def _some_examples(size: int, draw: np.random.Generator) -> list[Tensor]:
    """Masks (B,) of examples to be looked at alone: the first, half of the others, drawn by position, and the rest."""
    order = [0, *(1 + draw.permutation(size - 1)).tolist()]
    masks = torch.zeros(3, size, dtype=torch.bool, device="cpu")
    for mask, own in zip(masks, (order[:1], order[1 : 1 + size // 2], order[1 + size // 2 :]), strict=True):
        mask[own] = True
    return [mask for mask in masks if bool(mask.any())]


def _slopes(
    objective: Objective, measurement: Any, outputs: Tensor, targets: Any, some: list[Tensor], draw: np.random.Generator
) -> Tensor:
    """dℓ_n/d outputs_n, each scaled to a largest entry of 1, (B, ...); ValueError where ℓ_n sees other examples.

    Where a slope is 0 (a perfect fit, a probability of 1 to rounding) it is taken at outputs drawn by chance.
    """
    value, what = values_of(objective, measurement), "loss" if measurement is None else "measurement"

    def differentiable(at: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            f = at.detach().requires_grad_()
            return f, per_example(value(f, targets), outputs, what)

    (f, each), whole = differentiable(outputs), outputs.new_zeros(())
    for alone in some:  # all examples, each once
        of = alone.to(each)
        with torch.enable_grad():
            (slope,) = torch.autograd.grad((each * of).sum(), f, retain_graph=True)
        if bool((_nonzero_rows(slope) & (of == 0)).any()):  # NaN is no evidence, and is said where the loss is taken
            raise ValueError(
                f"the {what} of one example depends on the outputs of "
                f"others in its batch (asked about {int(alone.sum())} of {len(alone)}, it has a slope at the others' "
                "outputs too); expected a function of each example's own. Leave means over the batch and comparisons "
                "within it out of it."
            )
        whole = whole + slope
    scaled, largest = _scaled(whole)
    if bool((largest == 0).any()):
        noise = torch.from_numpy(draw.standard_normal(tuple(outputs.shape))).to(outputs)
        f, each = differentiable(noise)
        with torch.enable_grad():
            (slope,) = torch.autograd.grad(each.sum(), f)
        elsewhere, _ = _scaled(slope)
        scaled = torch.where(per_row(largest == 0, scaled), elsewhere, scaled)
    return scaled


def _nonzero_rows(x: Tensor) -> Tensor:
    """Which rows of x (B, ...) have an entry that is a number other than 0, (B,)."""
    rows = x.reshape(len(x), -1)
    parts = chunks(len(rows), rows[:1].numel() * x.element_size(), cached_bytes(x))
    return torch.cat([(rows[some].abs() > 0).any(1) for some in parts])


def _scaled(slopes: Tensor) -> tuple[Tensor, Tensor]:
    """Slopes (B, ...) over their largest entries (B,); 0 where that is 0 or not finite."""
    largest = torch.linalg.vector_norm(slopes.reshape(len(slopes), -1), torch.inf, dim=1)
    largest = largest.where(largest.isfinite(), 0)
    scaled = slopes / per_row(largest.where(largest > 0, 1), slopes)
    return scaled.masked_fill_(per_row(largest == 0, slopes), 0), largest


def _allowed(
    recording: Recording, layers: dict[str, Layer], size: int, seed: Tensor, some: list[Tensor]
) -> tuple[dict[str, list[Layout]], dict[str, list[Tensor]]]:
    """The layouts that no loss contradicts, for every layer; ValueError for layers that have none.

    With them the gradients at all their calls' outputs: ``some`` are all examples, each once, and what one's loss
    arrives at, no other's does.
    """
    found = {name: _candidates(layer, recording.inputs[name], size) for name, layer in layers.items()}
    reasons = {name: _shapes(recording.inputs[name], size) for name, layouts in found.items() if not layouts}
    every: dict[str, list[Tensor]] = {}
    for alone in some:
        alone = alone.to(seed.device)
        gradients = recording.output_gradients(seed * per_row(alone, seed))
        for name, layouts in found.items():
            if not layouts:
                continue
            own = [layout for layout in layouts if all(_own_rows(layout, g, alone) for g in gradients[name])]
            if not own:
                reasons[name] = _leak(layouts[0], gradients[name], alone, size)
            found[name] = own
        # not in place: two layers may have been given one and the same
        every = {k: [x + y for x, y in zip(every[k], g, strict=True)] if every else g for k, g in gradients.items()}
    if reasons:
        raise ValueError(_mixed(layers, reasons))
    return found, every


def _candidates(layer: Layer, inputs: list[Tensor], size: int) -> list[Layout]:
    """The layout that held so far, where it fits, before others: a last batch of one example would allow them all."""
    shapes, any_axis = [x.shape for x in inputs], layer.kind.gradients in (positions_last, features_last)
    found = list(candidates(shapes, size, any_axis=any_axis))
    held = [layer.layout] if all(layer.layout.fits(shape, size) for shape in shapes) else []
    return held + [layout for layout in found if layout != layer.layout]


def _touched(layout: Layout, gradient: Tensor) -> Tensor:
    """Which indices of the layout's axis a gradient is not 0 at, (rows,)."""
    return _nonzero_rows(gradient.movedim(layout.axis, 0))


def _own_rows(layout: Layout, gradient: Tensor, alone: Tensor) -> bool:
    """Whether a loss of these examples alone (B,) arrives at no rows but theirs."""
    if not layout.fits(gradient.shape, len(alone)):
        return False
    owners = layout.owners(gradient.shape, len(alone)).to(alone.device)
    return not bool((_touched(layout, gradient) & ~alone[owners]).any())


def _shapes(inputs: list[Tensor], size: int) -> str:
    shapes = " and ".join(dict.fromkeys(str(tuple(x.shape)) for x in inputs))
    return f"was given {shapes}, in which {size} examples have no place of their own (one by one they would)"


def _leak(layout: Layout, gradients: list[Tensor], alone: Tensor, size: int) -> str:
    """What was seen where the usual layout was contradicted."""
    fitting = [g for g in gradients if layout.fits(g.shape, size)]
    owners = torch.cat([layout.owners(g.shape, size).to(alone.device) for g in fitting])
    touched = torch.cat([_touched(layout, g) for g in fitting])
    reached = owners[touched & ~alone[owners]].unique().tolist()
    who = "example 0" if bool(alone[0]) else f"{int(alone.sum())} of the {size} examples"
    return f"receives the loss of {who} alone at the rows of others too (example {reached[0]}'s, say)"


def _mixed(layers: dict[str, Layer], reasons: dict[str, str]) -> str:
    name, reason = next(iter(reasons.items()))
    others = [repr(n) for n in reasons if n != name]
    also = f" So it is with {', '.join(others[:3])}{' ...' if len(others) > 3 else ''}." if others else ""
    return (
        f"layer {name!r} ({type(layers[name].modules[0]).__name__}) {reason}; expected every example to have rows of "
        f"its own, in the batch's order, on one axis, in blocks or in strides.{also} Where a model mixes or sorts its "
        f"examples, or they share rows, none has a gradient of its own. {leave_out(reasons, layers)}"
    )
