"""The proof's second half: the weighted sum of all examples' gradients, built twice.

Σ_n w_n Σ_t g_t a_tᵀ from what was recorded, and autograd's own gradient of Σ_n w_n ℓ_n, with weights drawn for the
examples: a permutation of them shows, as it would not in a plain sum. So do a weight that is used outside its module
and a type that is registered wrongly.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import allow_mutation_on_saved_tensors

from .batches import accumulator, cached_bytes, chunks, double
from .hooks import Pair, Recording, leave_out
from .layers import Layer, OneHot, forward_of_its_own
from .placement import call
from .recording import Call, paired
from .rows import Layout

# how far the two may be apart, relative to what they would be without cancellation
TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 2e-2}


class Weighted(NamedTuple):
    """Σ_n w_n Σ_t g aᵀ of a layer in one layout, in float32 at least."""

    layer: Layer
    total: Tensor  # (o, i)
    scale: Tensor  # ()
    tolerance: float


def weighted_sums(
    recording: Recording, layers: dict[str, Layer], gradients: dict[str, list[Tensor]], weights: Tensor
) -> dict[str, Weighted]:
    """Each layer's, in the layout it is given with; ``gradients`` at its calls' outputs are used up."""
    sums: dict[str, Weighted] = {}
    for name, layer in layers.items():
        inputs, outputs, calls = recording.inputs[name], gradients.pop(name), recording.calls[name]
        pair = _pair(layer, calls, inputs, outputs, recording.size)
        _check_shapes(name, layer, pair)
        # an untied one is not compared with autograd, which counts every use of the weight
        total, scale = _summed(pair, weights) if not layer.untied else (torch.empty(0), torch.empty(0))
        sums[name] = Weighted(layer, total, scale, _tolerance(layer, inputs + outputs))
    return sums


def _pair(layer: Layer, calls: list[Call], inputs: list[Tensor], outputs: list[Tensor], size: int) -> Pair:
    """What a recording would have made of these calls, had it read them in the layer's layout."""
    name = layer.name
    once = Recording({name: layer}, size, raw=True, inputs={name: inputs}, calls={name: calls})
    once.read({name: layer})
    return paired(layer, once.activations[name], once.calls[name], outputs, size)


def _tolerance(layer: Layer, rounded: list[Tensor]) -> float:
    """That of the narrowest dtype involved: under autocast a layer computes in less than its weight's.

    A normalisation may round to float32 inside, so that autograd's sum is rounded and this one is not.
    """
    inside = TOLERANCE[torch.float32] if layer.kind.scales else 0.0
    return max(inside, *(TOLERANCE.get(x.dtype, 0.0) for x in (layer.weight, *rounded)))


def _check_shapes(name: str, layer: Layer, pair: Pair) -> None:
    fits = pair.a.ndim == pair.g.ndim == 3 and pair.a.shape[:2] == pair.g.shape[:2]
    if not fits or (pair.g.shape[2], pair.a.shape[2]) != layer.shape:
        raise ValueError(
            f"layer {name!r} ({type(layer.modules[0]).__name__}): its activations (B, T, i) came as "
            f"{tuple(pair.a.shape)}, its output gradients (B, T, o) as {tuple(pair.g.shape)}; expected {layer.shape}, "
            "the shape of its weight matrix, and equal B and T. " + _other_way(layer)
        )


def _other_way(layer: Layer) -> str:
    kind = type(layer.modules[0]).__name__
    if not any(map(forward_of_its_own, layer.modules)):
        return "Its type is registered wrongly: see inflib.register, and its transposed=."
    return (
        f"Its class {kind} has a forward of its own, which pads, cuts or turns what it is given. Say what that is,"
        f" inflib.register({kind}, inside=True) for F.linear, activations= and gradients= for another, or leave it "
        f"out: layers=lambda name, module: not isinstance(module, {kind})."
    )


def _summed(pair: Pair, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Σ_n w_n Σ_t g aᵀ, and the norm it would have without cancellation, Σ |w g| |a|ᵀ's: a yardstick.

    In float32 at least, as autograd's own: either's rounding is far below the tolerance.
    """
    if isinstance(pair.a, OneHot):
        return _summed_columns(pair.a, double(pair.g), double(weights).to(pair.g.device))
    a, g = (x.flatten(0, 1) for x in pair)
    kept = accumulator(torch.promote_types(a.dtype, g.dtype))
    each = weights.to(g.device, kept).repeat_interleave(pair.g.shape[1])[:, None]
    total = g.new_zeros(g.shape[1], a.shape[1], dtype=kept)
    few = 2 * len(a) * sum(total.shape) < total.numel()  # rows: their own products are fewer than the sum's entries
    scale = _norm_of_products(g, a, each) if few else torch.zeros_like(total)
    for rows in chunks(len(a), 4 * kept.itemsize * (a.shape[1] + g.shape[1]), cached_bytes(a)):
        some_a, some_g = a[rows].to(kept), g[rows].to(kept) * each[rows]
        total += some_g.T @ some_a
        if not few:
            scale += some_g.abs().T @ some_a.abs()
    return total, scale if few else double(scale).norm()


def _norm_of_products(g: Tensor, a: Tensor, each: Tensor) -> Tensor:
    """‖Σ_r |w g|_r |a|_rᵀ‖ by the rows' own products, √ Σ_rs (|w g|_r · |w g|_s) (|a|_r · |a|_s)."""
    a, g = double(a).abs(), (double(g) * double(each)).abs()
    return ((g @ g.T) * (a @ a.T)).sum().sqrt()


def _summed_columns(a: OneHot, g: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    known, g = a.ids >= 0, g * weights[:, None, None]
    sums = [g.new_zeros(a.size, g.shape[2]).index_add_(0, a.ids[known], x[known]) for x in (g, g.abs())]
    return sums[0].T, sums[1].norm()


def compared_weights(layers: dict[str, Layer]) -> list[str]:
    """The names of the parameters whose gradients are compared with autograd's."""
    tied = [layer for layer in layers.values() if not layer.untied]
    return list(dict.fromkeys(n for layer in tied for n in (layer.weight_name, layer.bias_name) if n is not None))


def differing(sums: dict[str, Weighted], truth: dict[str, Tensor]) -> dict[str, float]:
    """The layers whose sum is another than autograd's, ``truth``, and by how much, relative."""
    errors = {name: _apart(one, one.layer.join(truth)) for name, one in sums.items() if not one.layer.untied}
    return {name: error for name, error in errors.items() if not error <= sums[name].tolerance}  # NaN too


def read_otherwise(
    recording: Recording,
    layers: dict[str, Layer],
    allowed: dict[str, list[Layout]],
    gradients: dict[str, list[Tensor]],
    weights: Tensor,
    truth: dict[str, Tensor],
    apart: dict[str, float],
    batch: int,
) -> dict[str, Layer]:
    """The layers ``apart``, each in the next allowed layout whose sum is autograd's; ValueError where none is."""
    read: dict[str, Layer] = {}
    for name, error in apart.items():
        for layout in allowed[name][1:]:
            tried = {name: replace(layers[name], layout=layout)}
            sums = weighted_sums(recording, tried, {name: gradients[name]}, weights)
            other = differing(sums, truth).get(name)
            if other is None:
                read |= tried
                break
            error = min(error, other)
        else:
            raise ValueError(_differs(layers[name], error, batch) + leave_out([name], layers))
    return read


def gradients_with_copies(model: nn.Module, layers: dict[str, Layer], inputs: Any, seed: Tensor) -> dict[str, Tensor]:
    """``Recording.weight_gradients`` by a pass of its own, for a model that changes in place what a layer has read."""
    names = compared_weights(layers)
    every = {n: p.detach() for n, p in model.named_parameters()}
    asked = [every[n].requires_grad_() for n in names]
    if not asked:
        return {}
    with allow_mutation_on_saved_tensors(), torch.enable_grad():
        total = (call(model, inputs, every) * seed).sum()
        found = torch.autograd.grad(total, asked, allow_unused=True)
    return {n: torch.zeros_like(p) if g is None else g for n, p, g in zip(names, asked, found, strict=True)}


def _apart(one: Weighted, truth: Tensor) -> float:
    return float(double(one.total - truth.to(one.total)).norm() / one.scale.clamp_min(1e-300))


def _differs(layer: Layer, error: float, batch: int) -> str:
    own = next((type(m).__name__ for m in layer.modules if forward_of_its_own(m)), "")
    if own:
        cause = (
            f"Its class {own} has a forward of its own. Where that multiplies by the weight as it is, with more before "
            f"or after F.linear(x, weight, bias), say so: inflib.register({own}, inside=True). Where it scales, masks "
            "or standardises the weight, its gradient is no product of a and g"
        )
    else:
        cause = (
            "Either the weight is used outside its module too (then leave it out with layers=, or count this use only: "
            "layers=untied(...)), or its rows are the batch's examples in another order, or its type is registered "
            "wrongly (see inflib.register)"
        )
    return (
        f"layer {layer.name!r}: the weight gradient built from its activations and output gradients, its examples "
        f"weighted unequally, differs from autograd's by {error:.2g} (relative, batch {batch}); expected them equal. "
        f"{cause}. "
    )
