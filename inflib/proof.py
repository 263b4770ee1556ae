"""What is assumed about a user's model, seen on the data at hand: ..."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .batches import cached_bytes, chunks, double
from .hooks import Pair, pairs
from .layers import Layer
from .objectives import Objective
from .placement import call

_TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3}  # of check_capture; half precision: 0.1


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


def check_capture(
    model: nn.Module, layers: dict[str, Layer], objective: Objective, inputs: Any, targets: Any, size: int
) -> None:
    """Compare Σ_n Σ_t g aᵀ with autograd's own weight gradient on one batch; raise ValueError where they differ.

    This is what notices a weight used outside its module, a registered type that is read wrongly, or a forward
    pass that hooks cannot follow. Untied layers are not compared.
    """
    compared = {name: layer for name, layer in layers.items() if not layer.untied}
    names = [n for layer in compared.values() for n in (layer.weight_name, layer.bias_name) if n is not None]
    captured = pairs(model, layers, objective, inputs, targets, size)
    if not names:
        return
    for name, layer in layers.items():
        shape_a, shape_g = captured[name].a.shape, captured[name].g.shape
        fits = len(shape_a) == len(shape_g) == 3 and shape_a[:2] == shape_g[:2]
        if not fits or (shape_g[2], shape_a[2]) != layer.shape:
            raise ValueError(
                f"layer {name!r} ({type(layer.modules[0]).__name__}): its activations (B, T, i) came as "
                f"{tuple(shape_a)}, its output gradients (B, T, o) as {tuple(shape_g)}; expected {layer.shape}, "
                "the shape of its weight matrix, and equal B and T. Its type is registered wrongly: see "
                "inflib.register, and its transposed=."
            )
    built = {name: _summed(captured.pop(name)) for name in compared}  # and the pairs are gone before autograd's graph
    weights = {n: p.detach().requires_grad_() for n, p in model.named_parameters() if p.is_floating_point()}
    with torch.enable_grad():
        loss = objective.loss(call(model, inputs, weights), targets).sum()
        truth = dict(zip(names, torch.autograd.grad(loss, [weights[n] for n in names], allow_unused=True), strict=True))
    for name, layer in compared.items():
        parts = {n: torch.zeros_like(weights[n]) if truth[n] is None else truth[n] for n in truth}
        total, scale = built.pop(name)
        error = float((total - double(layer.join(parts))).norm() / scale.clamp_min(1e-300))
        if error > _TOLERANCE.get(layer.weight.dtype, 0.1):
            raise ValueError(
                f"layer {name!r}: the weight gradient built from its activations and output gradients differs from "
                f"autograd's by {error:.2g} (relative, first batch); expected them equal. Either the weight is used "
                "outside its module too (then leave it out with layers=, or count this use only: layers=untied(...)), "
                "or its type is registered wrongly (see inflib.register)."
            )


def _summed(pair: Pair) -> tuple[Tensor, Tensor]:
    """Σ_n Σ_t g aᵀ in float64, and the norm it would have without cancellation, Σ |g| |a|ᵀ's: rounding's yardstick."""
    a, g = (x.flatten(0, 1) for x in pair)
    total = double(g.new_zeros(g.shape[1], a.shape[1]))
    scale = torch.zeros_like(total)
    for rows in chunks(len(a), 32 * (a.shape[1] + g.shape[1]), cached_bytes(a)):
        some_a, some_g = double(a[rows]), double(g[rows])
        total += some_g.T @ some_a
        scale += some_g.abs().T @ some_a.abs()
    return total, scale.norm()
