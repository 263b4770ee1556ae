"""What decides a training but its data and its start: the optimiser, each step's examples, each step's rate."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..retraining import Training
from .optimisers import SGD, Adam, AdamW, Optimiser


@dataclass(frozen=True, eq=False)
class Run:
    """T steps of an optimiser, each on the mean loss of some examples."""

    optimiser: Optimiser
    order: tuple[Tensor, ...]  # positions of the examples that each step sees, (B_k,) int64 on the CPU
    rates: tuple[float, ...]  # the learning rate of each step

    def __post_init__(self) -> None:
        if not len(self.order) == len(self.rates) > 0:
            raise ValueError(
                f"{len(self.order)} batches and {len(self.rates)} learning rates; expected as many of each, at least "
                "one: a batch and a rate a step."
            )

    @classmethod
    def of(cls, training: Training, examples: int, seed: int = 0) -> Run:
        """The run that ``retrain`` takes by this recipe on so many examples, its minibatches ordered by ``seed``."""
        decay = training.weight_decay
        rules: dict[str, Optimiser] = {"sgd": SGD(training.momentum, decay), "adam": Adam(decay), "adamw": AdamW(decay)}
        order = tuple(training.minibatches(examples, seed))
        rates = tuple(training.rate(k, len(order)) for k in range(len(order)))
        return cls(rules[training.optimiser], order, rates)

    def __len__(self) -> int:
        """T, the number of steps."""
        return len(self.order)

    def __repr__(self) -> str:
        return f"{len(self)} steps of {self.optimiser!r}, rates {max(self.rates):.3g} to {min(self.rates):.3g}"
