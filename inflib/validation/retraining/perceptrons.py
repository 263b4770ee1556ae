"""The quick way for multilayer perceptrons: the first layer of all M networks is one large product.

    H = [W_1; …; W_M] Xᵀ        (M·o, i) (i, B) → (M·o, B)      the inputs are shared, and read once for all networks
    h_m ← φ(h_m) ;  h_m ← W_m h_m + b_m                         (o, o') (o', B) for each m, one batched product

Features stand before examples, so that nothing is transposed between the layers; the backward pass of the first line
is one large product as well.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

ELEMENTWISE = (nn.ReLU, nn.Tanh, nn.GELU, nn.SiLU, nn.Sigmoid, nn.Softplus, nn.ELU, nn.LeakyReLU)
Layers = list[tuple[str, nn.Module]]


def layers_of(model: nn.Module) -> Layers | None:
    """The model's named layers, if it is Linear layers and elementwise activations in a row; else None."""
    if type(model) is not nn.Sequential or not isinstance(next(iter(model), None), nn.Linear):
        return None
    layers = list(model.named_children())
    plain = all(type(layer) in (nn.Linear, *ELEMENTWISE) for _, layer in layers)
    shared = len({id(layer) for _, layer in layers}) < len(list(model))
    return layers if plain and not shared else None


def outputs(layers: Layers, parameters: dict[str, Tensor], inputs: Any) -> Tensor:
    """Outputs (M, B, C) of stacked networks on inputs (B, i)."""
    name, first = layers[0]
    W = parameters[f"{name}.weight"]  # (M, o, i)
    h = _with_bias(first, (W.flatten(0, 1) @ inputs.T).unflatten(0, W.shape[:2]), parameters, name)  # (M, o, B)
    for name, layer in layers[1:]:
        if isinstance(layer, nn.Linear):
            h = _with_bias(layer, torch.bmm(parameters[f"{name}.weight"], h), parameters, name)
        else:
            h = layer(h)
    return h.mT  # (M, B, C)


def _with_bias(layer: nn.Module, h: Tensor, parameters: dict[str, Tensor], name: str) -> Tensor:
    return h if layer.bias is None else h + parameters[f"{name}.bias"][:, :, None]
