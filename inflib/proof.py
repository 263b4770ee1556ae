"""What is assumed about a user's model, proved on the data at hand: an example is its own rows of every layer.

A score speaks of one example, so each layer's rows of g must be that example's alone. Nothing says so by itself: a
model may put the batch second, sort it, flatten tokens into it, or mix its examples. So on the first batch of a pass,
and on a later one drawn by chance,

    1  the loss of some examples alone is back-propagated: wherever it arrives is theirs, all other rows are exactly 0.
       That finds the layout (rows.py): the first usual one that this allows.
    2  Σ_n w_n Σ_t g_t a_tᵀ, with weights drawn for the examples, is compared with autograd's gradient of Σ_n w_n ℓ_n.
       It notices a weight used outside its module, a type registered wrongly, rows in another order than supposed.

What is back-propagated is each ℓ_n's slope at the outputs, scaled to 1: examples the model is sure of count too.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.graph import allow_mutation_on_saved_tensors

from .batches import Batch, batch_size, cached_bytes, chunks, double
from .hooks import Captured, Pair, Recording, forward, pairs, values_of
from .layers import Layer, LayerSpec, positions_last
from .objectives import Objective, per_example
from .placement import call, plain_numbers
from .positions import check_batch
from .rows import Layout, candidates
from .selection import select

# how far the two sums of 2 may be apart, relative to what they would be without cancellation
_TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 2e-2}


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
    _most: int = 0  # examples of the largest batch that was looked at: one alone shows no layout
    _draw: np.random.Generator = field(init=False)
    _later: int | None = field(init=False)

    def __post_init__(self) -> None:
        self._draw = np.random.Generator(np.random.Philox(self.seed))
        self._later = int(self._draw.integers(1, self.batches)) if self.batches and self.batches > 1 else None

    def pairs(self, batch: Batch) -> Captured:
        """``hooks.pairs`` of a batch, which is looked at first where its turn has come."""
        layers = self.of(batch)
        return pairs(self.model, layers, self.objective, batch.inputs, batch.targets, batch.size, self.measurement)

    def of(self, batch: Batch) -> dict[str, Layer]:
        """The layers as this batch may be read."""
        if self._due(batch):
            self.layers = prove(self.model, self.layers, self.objective, batch, self.measurement, self._draw)
            self._most = max(self._most, batch.size)
        return self.layers

    def _due(self, batch: Batch) -> bool:
        if self._most < 2 and batch.size > self._most:
            return True
        if self.batches is None:  # one of so many, whenever the data ends
            return batch.index > 0 and bool(self._draw.random() < 1 / batch.index)
        return batch.index == self._later


def prove(
    model: nn.Module,
    layers: dict[str, Layer],
    objective: Objective,
    batch: Batch,
    measurement: Any,
    draw: np.random.Generator,
) -> dict[str, Layer]:
    """The layers with their layouts, or a ValueError that names those whose rows are not examples, and why."""
    check_batch(objective, batch.inputs, batch.targets)
    recording = forward(model, layers, batch.inputs, batch.size, raw=True)
    _check_recorded(recording, batch)
    objective.check(recording.outputs, batch.targets)
    some = _some_examples(batch.size, draw)
    seed = _slopes(objective, measurement, recording.outputs, batch.targets, some, draw)
    allowed = _allowed(recording, layers, batch.size, seed, some)
    # powers of two: a model that rounds inside (norms in float32, gradients that are nothing but rounding) then rounds
    # alike in both sums
    weights = torch.from_numpy(2.0 ** draw.integers(-3, 4, batch.size) * draw.choice([-1.0, 1.0], batch.size))  # (B,)
    sums = _weighted_sums(recording, layers, allowed, batch.size, seed, weights)
    del recording  # before autograd's own graph is made
    return _compared(model, layers, batch, seed, weights, sums)


def _check_recorded(recording: Recording, batch: Batch) -> None:
    for at in range(max(len(inputs) for inputs in recording.inputs.values())):
        check_finite("activations", {k: x[at] for k, x in recording.inputs.items() if len(x) > at}, batch.index)


# --- 1: whose rows a loss arrives at -------------------------------------------------------------------------------


def _some_examples(size: int, draw: np.random.Generator) -> list[Tensor]:
    """Masks (B,) of examples to be looked at alone: the first, and half of the others, drawn by position."""
    first = torch.zeros(size, dtype=torch.bool)
    first[0] = True
    half = torch.zeros(size, dtype=torch.bool)
    half[1 + torch.from_numpy(draw.permutation(size - 1)[: size // 2])] = True
    return [first, half] if size > 1 else [first]


def _slopes(
    objective: Objective, measurement: Any, outputs: Tensor, targets: Any, some: list[Tensor], draw: np.random.Generator
) -> Tensor:
    """dℓ_n/d outputs_n, each scaled to a largest entry of 1, (B, ...); ValueError where ℓ_n sees other examples.

    Where a slope is 0 (a perfect fit, a probability of 1 to rounding) it is taken at outputs drawn by chance.
    """
    value = values_of(objective, measurement)

    def slope(at: Tensor, of: Tensor | None = None) -> Tensor:
        with torch.enable_grad():
            f = at.detach().requires_grad_()
            each = per_example(value(f, targets), outputs, "loss" if measurement is None else "measurement")
            (found,) = torch.autograd.grad(each.sum() if of is None else (each * of.to(each)).sum(), f)
        return found

    whole = slope(outputs)
    for alone in some:
        elsewhere = slope(outputs, alone)[~alone.to(outputs.device)]
        if bool((elsewhere.abs() > 0).any()):  # NaN is no evidence, and is said where the loss is taken
            raise ValueError(
                f"the {'loss' if measurement is None else 'measurement'} of one example depends on the outputs of "
                f"others in its batch (asked about {int(alone.sum())} of {len(alone)}, it has a slope at the others' "
                "outputs too); expected a function of each example's own. Leave means over the batch and comparisons "
                "within it out of it."
            )
    scaled, largest = _scaled(whole)
    if bool((largest == 0).any()):
        noise = torch.from_numpy(draw.standard_normal(tuple(outputs.shape))).to(outputs)
        scaled = torch.where(_column(largest == 0, scaled), _scaled(slope(noise))[0], scaled)
    return scaled


def _scaled(slopes: Tensor) -> tuple[Tensor, Tensor]:
    """Slopes (B, ...) over their largest entries (B,); 0 where that is 0 or not finite."""
    largest = slopes.flatten(1).abs().amax(1) if slopes.ndim > 1 else slopes.abs()
    largest = largest.where(largest.isfinite(), 0)
    over = _column(largest.where(largest > 0, 1), slopes)
    return torch.where(_column(largest > 0, slopes), slopes / over, 0), largest


def _column(x: Tensor, like: Tensor) -> Tensor:
    """(B,) → (B, 1, ..., 1)."""
    return x.reshape(-1, *(1 for _ in like.shape[1:]))


def _allowed(
    recording: Recording, layers: dict[str, Layer], size: int, seed: Tensor, some: list[Tensor]
) -> dict[str, list[Layout]]:
    """The layouts that no loss contradicts, for every layer; ValueError for layers that have none."""
    found = {name: _candidates(layer, recording.inputs[name], size) for name, layer in layers.items()}
    reasons = {name: _shapes(recording.inputs[name], size) for name, layouts in found.items() if not layouts}
    for alone in some:
        alone = alone.to(seed.device)
        gradients = recording.output_gradients(seed * _column(alone, seed))
        for name, layouts in found.items():
            if not layouts:
                continue
            own = [layout for layout in layouts if all(_own_rows(layout, g, alone) for g in gradients[name])]
            if not own:
                reasons[name] = _leak(layouts[0], gradients[name], alone, size)
            found[name] = own
    if reasons:
        raise ValueError(_mixed(layers, reasons))
    return found


def _candidates(layer: Layer, inputs: list[Tensor], size: int) -> list[Layout]:
    any_axis = layer.kind.activations is positions_last
    return list(candidates([x.shape for x in inputs], size, any_axis=any_axis))


def _touched(layout: Layout, gradient: Tensor) -> Tensor:
    """Which indices of the layout's axis a gradient is not 0 at, (rows,)."""
    return (gradient.movedim(layout.axis, 0).flatten(1).abs() > 0).any(1)


def _own_rows(layout: Layout, gradient: Tensor, alone: Tensor) -> bool:
    """Whether a loss of these examples alone (B,) arrives at no rows but theirs."""
    if not layout.fits(gradient.shape, len(alone)):
        return False
    owners = layout.owners(gradient.shape, len(alone)).to(alone.device)
    return not bool((_touched(layout, gradient) & ~alone[owners]).any())


def _shapes(inputs: list[Tensor], size: int) -> str:
    shapes = " and ".join(dict.fromkeys(str(tuple(x.shape)) for x in inputs))
    return f"was given {shapes}, in which {size} examples have no place of their own"


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
    also = f" So it is with {', '.join(others[:6])}{' ...' if len(others) > 6 else ''}." if others else ""
    left = "none is left" if len(reasons) == len(layers) else f"layers=lambda name, module: name not in {set(reasons)}"
    return (
        f"layer {name!r} ({type(layers[name].modules[0]).__name__}) {reason}; expected every example to have rows of "
        f"its own, in the batch's order, on one axis, in blocks or in strides.{also} Where a model mixes or sorts its "
        f"examples, or they share rows, none has a gradient of its own. Leave such layers out ({left}), or write a "
        "forward that keeps examples apart."
    )


# --- 2: the weighted sum of all examples, built twice ------------------------------------------------------------


def _weighted_sums(
    recording: Recording,
    layers: dict[str, Layer],
    allowed: dict[str, list[Layout]],
    size: int,
    seed: Tensor,
    weights: Tensor,
) -> dict[str, list[_Sum]]:
    """For each layer, one for each layout that is still allowed."""
    gradients = recording.output_gradients(seed, last=True)
    sums: dict[str, list[_Sum]] = {}
    for name, layer in layers.items():
        inputs, outputs = recording.inputs.pop(name), gradients.pop(name)
        modules = [module for module, _ in recording.calls[name]]
        for layout in allowed[name]:
            read = replace(layer, layout=layout)
            once = Recording({name: read}, size)
            for module, x in zip(modules, inputs, strict=True):
                once.add(read, read.own(read.features(module, x, size)))
            g = [
                read.own(layout.examples(layer.kind.gradients, m, x, size))
                for m, x in zip(modules, outputs, strict=True)
            ]
            pair = Pair(once.activations[name], torch.cat(g, dim=1) if len(g) > 1 else g[0])
            _check_shapes(name, layer, pair)
            total, scale = _summed(pair, weights) if not layer.untied else (torch.empty(0), torch.empty(0))
            sums.setdefault(name, []).append(_Sum(read, total, scale, _tolerance(layer, inputs + outputs)))
            if layer.untied:  # not compared with autograd, which counts every use of the weight
                break
    return sums


class _Sum(NamedTuple):
    """Σ_n w_n Σ_t g aᵀ of a layer in one layout, in float64."""

    layer: Layer
    total: Tensor  # (o, i)
    scale: Tensor  # ()
    tolerance: float


def _tolerance(layer: Layer, rounded: list[Tensor]) -> float:
    """That of the narrowest dtype involved: under autocast a layer computes in less than its weight's."""
    return max(_TOLERANCE.get(x.dtype, 0.0) for x in (layer.weight, *rounded))


def _check_shapes(name: str, layer: Layer, pair: Pair) -> None:
    fits = pair.a.ndim == pair.g.ndim == 3 and pair.a.shape[:2] == pair.g.shape[:2]
    if not fits or (pair.g.shape[2], pair.a.shape[2]) != layer.shape:
        raise ValueError(
            f"layer {name!r} ({type(layer.modules[0]).__name__}): its activations (B, T, i) came as "
            f"{tuple(pair.a.shape)}, its output gradients (B, T, o) as {tuple(pair.g.shape)}; expected {layer.shape}, "
            "the shape of its weight matrix, and equal B and T. Its type is registered wrongly: see "
            "inflib.register, and its transposed=."
        )


def _summed(pair: Pair, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Σ_n w_n Σ_t g aᵀ in float64, and the norm it would have without cancellation, Σ |w g| |a|ᵀ's: a yardstick."""
    a, g = (x.flatten(0, 1) for x in pair)
    each = double(weights).to(g.device).repeat_interleave(pair.g.shape[1])[:, None]
    total = double(g.new_zeros(g.shape[1], a.shape[1]))
    scale = torch.zeros_like(total)
    for rows in chunks(len(a), 32 * (a.shape[1] + g.shape[1]), cached_bytes(a)):
        some_a, some_g = double(a[rows]), double(g[rows]) * each[rows]
        total += some_g.T @ some_a
        scale += some_g.abs().T @ some_a.abs()
    return total, scale.norm()


def _compared(
    model: nn.Module,
    layers: dict[str, Layer],
    batch: Batch,
    seed: Tensor,
    weights: Tensor,
    sums: dict[str, list[_Sum]],
) -> dict[str, Layer]:
    """Each layer in the first layout whose sum is autograd's; ValueError where none is."""
    tied = [layer for layer in layers.values() if not layer.untied]
    names = list(dict.fromkeys(n for layer in tied for n in (layer.weight_name, layer.bias_name) if n is not None))
    truth: dict[str, Tensor] = {}
    if names:
        truth = _autograds(model, batch.inputs, names, seed * _column(weights, seed).to(seed))
    read = {}
    for name, layer in layers.items():
        tried = sums.pop(name)
        if not layer.untied:
            errors = [_apart(one, layer.join(truth)) for one in tried]
            tried = [one for one, error in zip(tried, errors, strict=True) if error <= one.tolerance]
            if not tried:
                raise ValueError(_differs(name, min(errors), batch.index))
        read[name] = tried[0].layer
    return read


def _autograds(model: nn.Module, inputs: Any, names: list[str], seed: Tensor) -> dict[str, Tensor]:
    """Autograd's own gradient of Σ_n ⟨seed_n, outputs_n⟩ in the parameters named; 0 where it does not depend on one."""
    every = {n: p.detach() for n, p in model.named_parameters()}
    asked = [every[n].requires_grad_() for n in names]

    def found() -> tuple[Tensor | None, ...]:
        with torch.enable_grad():
            total = (call(model, inputs, every) * seed).sum()
            return torch.autograd.grad(total, asked, allow_unused=True)

    try:
        gradients = found()
    except RuntimeError as error:
        if "inplace operation" not in str(error):
            raise
        with allow_mutation_on_saved_tensors():  # the model changes in place what a layer has read
            gradients = found()
    return {n: torch.zeros_like(p) if g is None else g for n, p, g in zip(names, asked, gradients, strict=True)}


def _apart(one: _Sum, truth: Tensor) -> float:
    return float((one.total - double(truth)).norm() / one.scale.clamp_min(1e-300))


def _differs(name: str, error: float, batch: int) -> str:
    return (
        f"layer {name!r}: the weight gradient built from its activations and output gradients, its examples weighted "
        f"unequally, differs from autograd's by {error:.2g} (relative, batch {batch}); expected them equal. Either the "
        "weight is used outside its module too (then leave it out with layers=, or count this use only: "
        "layers=untied(...)), or its rows are the batch's examples in another order, or its type is registered wrongly "
        "(see inflib.register)."
    )


# --- what is finite ----------------------------------------------------------------------------------------------


def check_finite(what: str, values: dict[str, Tensor], batch: int) -> None:
    """Raise FloatingPointError naming the layer, the quantity and the batch where some layer's value is not finite."""
    # a sum is finite unless a term is not, or it overflows: only then is every number looked at. All layers in one
    # question, because a GPU's queue has to be waited for to answer it.
    totals = [x.sum(dtype=torch.promote_types(x.dtype, torch.float32)) for x in values.values()]
    if not totals or bool(torch.stack(totals).isfinite().all()):
        return
    for name, value in values.items():
        if not bool(torch.isfinite(value).all()):
            raise FloatingPointError(
                f"layer {name!r}: {what} of batch {batch} hold NaN or infinity; expected finite numbers. "
                "Look at that batch's inputs and loss, or use a wider dtype (float32 in place of half precision)."
            )
