"""A normalisation's scale and shift, or a bias by itself: numbers that multiply or are added to one output each.

    y_j = w_j u_j(x) + b_j             dℓ/dw_j = Σ_t g_tj u_tj,   dℓ/db_j = Σ_t g_tj

Read as a layer with one input that is always 1 and with the parameters' own gradients (g ⊙ u, g) for outputs: A is 1,
and S = E[(Σ_t g_t)(Σ_t g_t)ᵀ] is the whole block of the curvature, so K-FAC and EK-FAC are exact in it. The matrix is
one column (2d, 1), the scales above the shifts.

u needs no formula: the module is linear in w, so u = y(w = 1) − y(w = 0), which its own forward tells. So a
normalisation that nobody has registered is understood too, and what is no such thing shows in the proof.
"""

from __future__ import annotations

import copy
from math import prod
from typing import Any

import torch
from torch import Tensor, nn


def slopes(module: nn.Module, weight: str, args: tuple, kwargs: dict[str, Any]) -> Tensor:
    """u = ∂y/∂w of an elementwise module, of its output's shape: y at w = 1 less y at w = 0."""
    with torch.no_grad():
        one, zero = (_with(module, weight, value) for value in (1.0, 0.0))
        return one.forward(*args, **kwargs) - zero.forward(*args, **kwargs)


def _with(module: nn.Module, weight: str, value: float) -> nn.Module:
    """The module with all numbers of a parameter replaced, the others 0; it shares all else, and has no hooks."""
    other = copy.copy(module)
    parameters = {k: None if p is None else torch.zeros_like(p) for k, p in module._parameters.items()}
    parameters[weight] = torch.full_like(module._parameters[weight], value)  # type: ignore[arg-type]
    other.__dict__["_parameters"] = parameters
    return other


def features_last(module: Any, g: Tensor) -> Tensor:
    """A LayerNorm's or RMSNorm's output (B, ..., *features) → (B, T, d)."""
    if getattr(module, "data_format", "") == "channels_first":  # ConvNext's
        return channels(module, g)
    d = module.weight.numel()
    return g.reshape(g.shape[0], prod(g.shape[1:]) // d, d)


def channels(module: Any, g: Tensor) -> Tensor:
    """(B, C, *space) → (B, T, C): what batch and group normalisation scale."""
    return g.reshape(g.shape[0], g.shape[1], prod(g.shape[2:])).mT


def is_normalisation(module: nn.Module) -> bool:
    """Whether a module of no registered type looks like one: Norm in its name, and nothing but a scale and a shift."""
    held = {k: p for k, p in module._parameters.items() if p is not None}
    return (
        "norm" in type(module).__name__.lower()
        and not module._modules
        and "weight" in held
        and set(held) <= {"weight", "bias"}
        and all(p.ndim == 1 and p.shape == held["weight"].shape for p in held.values())
    )
