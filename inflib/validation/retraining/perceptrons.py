"""The quick way for multilayer perceptrons, written by hand: the first layer of all M networks is one large product.

    forward    H = [W_1; …; W_M] Xᵀ        (M·o, i) (i, B): the inputs are shared, and read once for all networks
               h_m ← φ(h_m) ;  h_m ← W_m h_m + b_m                      one batched product a layer
    backward   g_m = (p_m − e_y) w_m        with softmax cross-entropy; else what autograd says of the loss alone
               ∇W_m = g_m h_mᵀ ;  g_m ← φ'(W_mᵀ g_m)                    the first layer's again one large product

Features stand before examples, so that nothing is transposed between the layers. The numbers are autograd's, at a third
of its price: for a network of 7,000 weights most of that is spent on what is not a product of matrices.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...batches import mapped
from ...objectives import CrossEntropy, Objective

ELEMENTWISE = (nn.ReLU, nn.Tanh, nn.GELU, nn.SiLU, nn.Sigmoid, nn.Softplus, nn.ELU, nn.LeakyReLU)
Layers = list[tuple[str, nn.Module]]
Parameters = dict[str, Tensor]
Slope = Callable[[Tensor, Any, Tensor], Tensor]  # outputs (M, C, B), targets, weights (M, B) → their gradient (M, C, B)


def layers_of(model: nn.Module) -> Layers | None:
    """The model's named layers, if it is Linear layers and elementwise activations in a row; else None."""
    if type(model) is not nn.Sequential or not isinstance(next(iter(model), None), nn.Linear):
        return None
    layers = list(model.named_children())
    plain = all(type(m) in (nn.Linear, *ELEMENTWISE) and not getattr(m, "inplace", False) for _, m in layers)
    return layers if plain and len(layers) == len(model) else None


def outputs(layers: Layers, parameters: Parameters, inputs: Tensor) -> Tensor:
    """Outputs (M, B, C) of stacked networks on inputs (B, i)."""
    h = inputs.T[None]
    for name, layer in layers:
        h = _affine(layer, name, parameters, h) if isinstance(layer, nn.Linear) else layer(h)
    return h.mT


@torch.no_grad()
def gradients(
    layers: Layers, slope: Slope, parameters: Parameters, inputs: Tensor, targets: Any, weights: Tensor
) -> Parameters:
    """Gradients of Σ_n w_mn ℓ_n for every network m, from the weights (M, B) of a batch's examples."""
    h, passed = inputs.T[None], []  # (1, i, B), then (M, o, B)
    for name, layer in layers:
        if isinstance(layer, nn.Linear):
            passed.append((h, _affine(layer, name, parameters, h)))
        else:
            with torch.enable_grad():
                h.requires_grad_()
                passed.append((h, layer(h)))
        h = passed[-1][1].detach()
    g, found = slope(h, targets, weights), {}
    for (name, layer), (before, after) in zip(reversed(layers), reversed(passed), strict=True):
        if not isinstance(layer, nn.Linear):
            (g,) = torch.autograd.grad(after, before, g)
            continue
        found[f"{name}.weight"] = _outer(g, before.detach())
        if layer.bias is not None:
            found[f"{name}.bias"] = g.sum(2)
        if before is not passed[0][0]:  # the inputs, of which no gradient is asked
            g = torch.bmm(parameters[f"{name}.weight"].mT, g)
    return found


def slope_of(objective: Objective) -> Slope:
    """The gradient of an objective's losses with respect to the outputs, each example's times its weight."""
    terms = objective.terms if type(objective) is CrossEntropy else None
    plain = terms is not None and terms.weight is None and terms.smoothing == 0 and terms.ignored is None

    def softmax(f: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        p = (f - f.amax(1, keepdim=True)).exp_()
        p /= p.sum(1, keepdim=True)
        return (p - F.one_hot(targets, f.shape[1]).T).mul_(weights[:, None, :])

    def derived(f: Tensor, targets: Any, weights: Tensor) -> Tensor:
        with torch.enable_grad():
            f.requires_grad_()
            total = (weights * losses(objective, f.mT, targets)).sum()
            return torch.autograd.grad(total, f)[0]

    def either(f: Tensor, targets: Any, weights: Tensor) -> Tensor:
        return (softmax if plain and targets.ndim == 1 else derived)(f, targets, weights)

    return either


def losses(objective: Objective, outputs: Tensor, targets: Any) -> Tensor:
    """Every network's per-example losses (M, B), from outputs (M, B, ...) and the targets they share."""
    M, B = outputs.shape[:2]
    repeated = mapped(targets, lambda t: t.expand(M, *t.shape).flatten(0, 1))
    return objective.loss(outputs.flatten(0, 1), repeated).view(M, B)


def _affine(layer: nn.Linear, name: str, parameters: Parameters, h: Tensor) -> Tensor:
    """W_m h_m + b_m of every network, (M, o, B); h is (1, i, B) where all networks share it."""
    W, b = parameters[f"{name}.weight"], None if layer.bias is None else parameters[f"{name}.bias"]
    if len(h) == 1:
        flat = W.flatten(0, 1)  # (M·o, i)
        product = flat @ h[0] if b is None else torch.addmm(b.flatten()[:, None], flat, h[0])
        return product.unflatten(0, W.shape[:2])
    return torch.bmm(W, h) if b is None else torch.baddbmm(b[:, :, None], W, h)


def _outer(g: Tensor, h: Tensor) -> Tensor:
    """g_m h_mᵀ of every network, (M, o, i)."""
    if len(h) == 1:
        return (g.flatten(0, 1) @ h[0].T).unflatten(0, g.shape[:2])
    return torch.bmm(g, h.mT)
