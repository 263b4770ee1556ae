"""Banks whose truth is known: what a query measures is a sum over the kept examples, plus noise that seeds differ by."""

from __future__ import annotations

import torch
from torch import Tensor

from inflib.validation import Bank, half_subsets

Q, N, K, R = 6, 40, 30, 4


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def linear_bank(sigma: float = 0.0, seeds: int = R, masks: int = K, loud: float = 1.0) -> tuple[Bank, Tensor]:
    """Every query's margin is a sum of the kept examples' true effects, plus seed noise; and those effects."""
    kept, effects = half_subsets(N, masks), noise(Q, N)
    margin = loud * (kept.double() @ effects.T)[None] + sigma * noise(seeds, masks, Q, seed=1)
    facts = {"name": "linear", "measurements": ["margin", "log_likelihood"], "shape": [masks, seeds, N]}
    return Bank(kept, {"margin": margin, "log_likelihood": margin.tanh()}, facts), effects
