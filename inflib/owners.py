"""The proof's first half: whose rows a loss arrives at.

The loss of some examples alone is back-propagated. Wherever it arrives is theirs: rows of others that it reaches say
that the examples are elsewhere (rows.py knows the usual places), or that they are mixed.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .batches import cached_bytes, chunks, per_row, rows_of
from .hooks import leave_out, values_of
from .layers import Layer, positions_last
from .layers.elementwise import features_last
from .objectives import Objective, differentiable, output_gradient, unweighted
from .recording import Recording
from .rows import Layout, candidates

# how far a slope may move when the others of a batch are gone, relative to the batch's largest
_COMPANY = {torch.float64: 1e-7, torch.float32: 1e-3}


def some_examples(size: int, draw: np.random.Generator) -> list[Tensor]:
    """Masks (B,) of examples to be looked at alone: the first, half of the others, drawn by position, and the rest."""
    order = [0, *(1 + draw.permutation(size - 1)).tolist()]
    masks = torch.zeros(3, size, dtype=torch.bool, device="cpu")
    for mask, own in zip(masks, (order[:1], order[1 : 1 + size // 2], order[1 + size // 2 :]), strict=True):
        mask[own] = True
    return [mask for mask in masks if bool(mask.any())]


class Slopes(NamedTuple):
    """Every example's dℓ_n/d outputs_n over a power of two, so that its largest entry is from 1 to 2."""

    seed: Tensor  # (B, ...); where a slope is 0 another stands in, taken at outputs drawn by chance
    sizes: Tensor  # (B,) the powers; 0 where another stands in, NaN where that is for want of a finite one

    @property
    def moderate(self) -> bool:
        """Whether what arrives of ``seed`` is, multiplied by ``sizes``, what would have arrived of the slopes."""
        least = torch.finfo(self.sizes.dtype).tiny ** (1 / 3)
        return bool(((self.sizes == 0) | ((self.sizes >= least) & (self.sizes <= 1 / least))).all())


def slopes_of(
    objective: Objective, measurement: Any, outputs: Tensor, targets: Any, some: list[Tensor], draw: np.random.Generator
) -> Slopes:
    """dℓ_n/d outputs_n; ValueError where ℓ_n sees other examples.

    Where a slope is 0 (a perfect fit, a probability of 1 to rounding) it is taken at outputs drawn by chance.
    """
    value, what = values_of(objective, measurement), "loss" if measurement is None else "measurement"
    whose = (
        f"{type(unweighted(objective, targets)[0]).__name__}: the loss" if measurement is None else "the measurement"
    )

    def taken(at: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            f = at.detach().requires_grad_()
            return f, differentiable(value, f, targets, what)

    (f, each), whole = taken(outputs), outputs
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
        whole = slope if alone is some[0] else whole + slope  # not in place: it may be the loss's own
    del each  # with its graph
    largest = _largest(whole)
    for alone in some if len(some) > 1 and bool(largest.isfinite().all()) else ():
        _check_company(value, whose, outputs, targets, alone, whole, largest)
    scaled, sizes = _scaled(whole, largest)
    if not bool((sizes > 0).all()):
        noise = torch.from_numpy(draw.standard_normal(tuple(outputs.shape))).to(outputs)
        f, each = taken(noise)
        with torch.enable_grad():
            (slope,) = torch.autograd.grad(each.sum(), f)
        elsewhere, _ = _scaled(slope, _largest(slope))
        scaled = torch.where(per_row(sizes > 0, scaled), scaled, elsewhere)
    return Slopes(scaled, sizes)


def _check_company(
    value: Any, whose: str, outputs: Tensor, targets: Any, alone: Tensor, slopes: Tensor, largest: Tensor
) -> None:
    """Raise ValueError where these examples' slopes are others once the rest of the batch is gone.

    No gradient passes through the batch's size, a count of its labels, a detached statistic, a choice of the hardest.
    A loss that takes no part of a batch decides nothing.
    """
    at = alone.nonzero()[:, 0].tolist()
    try:
        own = output_gradient(value, outputs[at], rows_of(targets, at, len(outputs)))
    except Exception:  # closed over something of the whole batch's size: whatever it raises
        return
    apart, size = _largest(own - slopes[at]), largest.amax()
    if not bool((apart <= _COMPANY.get(outputs.dtype, 1e-2) * size).all()):  # NaN too
        n = at[int(apart.nan_to_num(torch.inf, torch.inf).argmax())]
        raise ValueError(
            f"{whose} of example {n} has another slope in a batch of {len(at)} than in its batch of {len(outputs)} "
            f"(they differ by {float(apart.amax()):.2g}, the largest is {float(size):.2g}); expected a function of "
            "each example's own outputs and targets. Leave what depends on the batch out of it, detached or not: "
            "its size, counts of its labels, means and maxima, a choice of its hardest examples."
        )


def _nonzero_rows(x: Tensor) -> Tensor:
    """Which rows of x (B, ...) have an entry that is a number other than 0, (B,)."""
    rows = x.reshape(len(x), -1)
    least, most = _extremes(rows)  # read at the speed of memory, where a comparison writes its answers down
    if not bool(most.isnan().any()):
        return (most > 0) | (least < 0)
    parts = chunks(len(rows), rows[:1].numel() * x.element_size(), cached_bytes(x))
    return torch.cat([(rows[some].abs() > 0).any(1) for some in parts])


def _extremes(rows: Tensor) -> tuple[Tensor, Tensor]:
    """The least and the largest entry of each row (B, n), NaN where one is; 0 where there is none."""
    if not rows.shape[1]:
        return rows.new_zeros(len(rows)), rows.new_zeros(len(rows))
    return rows.amin(1), rows.amax(1)


def _largest(x: Tensor) -> Tensor:
    """The size of each row's largest entry, (B,), NaN where one is."""
    least, most = _extremes(x.reshape(len(x), -1))
    return torch.maximum(-least, most)


def _scaled(slopes: Tensor, largest: Tensor) -> tuple[Tensor, Tensor]:
    """Slopes (B, ...) and sizes (B,), powers of two that divide them; 0 and NaN, with slopes of 0, as in ``Slopes``."""
    most = largest.cpu().double().numpy()
    finite = np.isfinite(most)
    powers = np.ldexp(1.0, np.frexp(np.where(finite, most, 1))[1] - 1)
    sizes = torch.from_numpy(np.where(finite, np.where(most > 0, powers, 0), np.nan)).to(slopes)
    there = sizes > 0
    scaled = slopes / per_row(sizes.where(there, 1), slopes)
    return scaled.masked_fill_(per_row(~there, slopes), 0), sizes


def allowed_layouts(
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
        "examples, or they share rows, none has a gradient of its own. Detach a maximum that cancels. "
        f"{leave_out(reasons, layers)}"
    )
