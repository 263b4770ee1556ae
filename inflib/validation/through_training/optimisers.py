"""Optimisers as functions of their whole state z (S, D): row 0 the weights θ, the others what the optimiser remembers.

    SGD      v ← μ v + g + decay θ;   θ ← θ − η v
    AdamW    θ ← (1 − η decay) θ;     m ← β₁ m + (1 − β₁) g;   s ← β₂ s + (1 − β₂) g²;   θ ← θ − η m̂ / (√ŝ + eps)
    Adam     AdamW with decay θ in g instead

with m̂ = m / (1 − β₁ᵏ) and ŝ = s / (1 − β₂ᵏ) in step k = 1, 2, … Each is torch's of the same name, step for step, and
can be differentiated in z and in g. Sources: Kingma & Ba 2015, Loshchilov & Hutter 2019.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Optimiser(Protocol):
    """One step of training, without the gradient: elementwise in the D weights."""

    @property
    def rows(self) -> int:
        """S, the rows of the state: θ and what is remembered; all but θ start at 0."""
        ...

    def update(self, z: Tensor, g: Tensor, k: int, rate: float) -> Tensor:
        """The state after step k (from 1 on) at learning rate ``rate``, (S, D), from z (S, D) and the gradient (D,)."""
        ...


@dataclass(frozen=True)
class SGD:
    """Stochastic gradient descent with momentum, and weight decay in the gradient."""

    momentum: float = 0.0
    weight_decay: float = 0.0
    rows = 2

    def update(self, z: Tensor, g: Tensor, k: int, rate: float) -> Tensor:
        theta, v = z
        v = self.momentum * v + g + self.weight_decay * theta
        return torch.stack([theta - rate * v, v])


@dataclass(frozen=True)
class Adam:
    """Adam, with weight decay in the gradient."""

    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    rows = 3

    def update(self, z: Tensor, g: Tensor, k: int, rate: float) -> Tensor:
        return _adam(z, g + self.weight_decay * z[0], k, rate, self.betas, self.eps)


@dataclass(frozen=True)
class AdamW:
    """Adam, with weight decay beside the gradient."""

    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    rows = 3

    def update(self, z: Tensor, g: Tensor, k: int, rate: float) -> Tensor:
        theta, m, s = z
        decayed = torch.stack([theta * (1 - rate * self.weight_decay), m, s])
        return _adam(decayed, g, k, rate, self.betas, self.eps)


def _adam(z: Tensor, g: Tensor, k: int, rate: float, betas: tuple[float, float], eps: float) -> Tensor:
    theta, m, s = z
    m = betas[0] * m + (1 - betas[0]) * g
    s = betas[1] * s + (1 - betas[1]) * g.square()
    step = (m / (1 - betas[0] ** k)) / (_root(s / (1 - betas[1] ** k)) + eps)
    return torch.stack([theta - rate * step, m, s])


def _root(s: Tensor) -> Tensor:
    """√s, its derivative at 0 taken as 0.

    A weight whose gradient was always 0 (of an input that is always 0) has m = s = 0; there √s is multiplied by m, so
    that the step's derivative exists and the root's takes no part in it.
    """
    positive = s > 0
    return torch.where(positive, torch.where(positive, s, 1.0).sqrt(), 0.0)
