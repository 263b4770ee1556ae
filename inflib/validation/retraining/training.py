"""What decides a training beside its data: how many steps, at which rate, in which order, by which rule.

    rate of step k of K:   lr · ½ (1 + cos(π k / K)), falling to 0, so that training ends at rest
    order:                 each epoch a permutation drawn from (seed, epoch) by a counter-based generator

The objective of a step is (1/B) Σ_{n in the minibatch} w_n ℓ_n, B the minibatch's full size whatever the weights w are:
an example of weight 0 leaves a gap, and does not make the others count more. Weight decay is added by the optimiser.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

OPTIMISERS = ("sgd", "adam", "adamw")


@dataclass(frozen=True)
class Training:
    """A training's recipe: plain numbers, so that it can be written down and compared.

    epochs, batch_size: passes over all N examples, and how many a step sees (the last of an epoch may see fewer).
    lr:                 the first step's learning rate; with ``anneal`` it falls to 0 along half a cosine.
    momentum:           of "sgd"; "adam" and "adamw" have torch's defaults.
    weight_decay:       torch's: added to the gradient by "sgd" and "adam", taken off the weights by "adamw".

    Raises ValueError for numbers that train nothing.
    """

    epochs: int = 40
    batch_size: int = 100
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 0.0
    optimiser: str = "sgd"
    anneal: bool = True

    def __post_init__(self) -> None:
        if self.optimiser not in OPTIMISERS:
            raise ValueError(f"optimiser={self.optimiser!r}; expected one of {', '.join(OPTIMISERS)}.")
        if min(self.epochs, self.batch_size) < 1 or not self.lr > 0 or not min(self.momentum, self.weight_decay) >= 0:
            raise ValueError(
                f"{self}; expected at least one epoch, minibatches of at least one example, a positive lr, and "
                "momentum and weight_decay of 0 or more."
            )

    def steps(self, examples: int) -> int:
        """How many steps a training on that many examples takes."""
        return self.epochs * -(-examples // self.batch_size)

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of step 0, 1, …, steps − 1."""
        return self.lr * (0.5 * (1 + math.cos(math.pi * step / steps)) if self.anneal else 1.0)

    def minibatches(self, examples: int, seed: int) -> Iterator[Tensor]:
        """The positions (B,) int64 of every step's examples, all epochs long."""
        for epoch in range(self.epochs):
            draws = np.random.Philox(key=[seed, epoch]).random_raw(examples)
            yield from torch.from_numpy(np.argsort(draws, kind="stable")).split(self.batch_size)

    def optimise(self, parameters: list[Tensor]) -> torch.optim.Optimizer:
        """The optimiser. Its rules are elementwise, so that on stacked parameters it is one for each network."""
        if self.optimiser == "sgd":
            return torch.optim.SGD(parameters, self.lr, self.momentum, weight_decay=self.weight_decay)
        rule = torch.optim.Adam if self.optimiser == "adam" else torch.optim.AdamW
        return rule(parameters, self.lr, weight_decay=self.weight_decay)
