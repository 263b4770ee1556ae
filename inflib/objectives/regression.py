"""Numbers as targets: squared error, counts, and a loss that outliers pull on less."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..batches import double
from .checks import check_targets, single
from .objective import Objective, unit_seeds
from .sampling import poisson_inverse


class SquaredError(Objective):
    """½‖f − y‖² of outputs and targets (B, ...) of one shape: the unit Gaussian's negative log-likelihood."""

    def check(self, outputs: Tensor, targets: Any) -> None:
        check_targets(targets, outputs, outputs.shape, "SquaredError", "one target per output")
        if targets.dtype == torch.bool:
            raise ValueError(
                f"SquaredError got {targets.dtype} targets; expected numbers: targets.to({outputs.dtype})."
            )

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return 0.5 * summed((outputs - targets).square())

    def seeds(self, outputs: Tensor, targets: Any = None) -> Iterator[Tensor]:
        yield from unit_seeds(torch.ones_like(outputs))

    def uniforms(self, outputs: Tensor) -> int:
        return outputs[0].numel()

    def sample(self, outputs: Tensor, uniforms: Tensor, targets: Any = None) -> Tensor:
        noise = torch.special.ndtri(uniforms).to(outputs)  # standard normal, by inversion
        return outputs + noise.reshape(outputs.shape)

    def logit(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The output itself, where there is one per example (B,)."""
        return single(outputs, "SquaredError")


class Poisson(Objective):
    """Counts y ≥ 0 with the rates exp f: Σ exp(f) − y f of outputs and targets (B, ...) of one shape, less log y!."""

    def check(self, outputs: Tensor, targets: Any) -> None:
        check_targets(targets, outputs, outputs.shape, "Poisson", "one count per output, whose exp is the rate")
        if not bool((targets >= 0).all()):
            raise ValueError(
                f"Poisson got targets from {float(targets.min()):g}; expected counts, none below 0. "
                "Use SquaredError for targets of either sign."
            )

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return summed(outputs.exp() - targets * outputs)

    def seeds(self, outputs: Tensor, targets: Any = None) -> Iterator[Tensor]:
        yield from unit_seeds((outputs / 2).exp())

    def uniforms(self, outputs: Tensor) -> int:
        return outputs[0].numel()

    def sample(self, outputs: Tensor, uniforms: Tensor, targets: Any = None) -> Tensor:
        rates = double(outputs).exp()
        return poisson_inverse(rates, uniforms.to(rates).reshape(rates.shape)).to(outputs)

    def logit(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The logarithm of the rate, where there is one output per example (B,)."""
        return single(outputs, "Poisson")


class Huber(Objective):
    """Σ ½r² where |r| ≤ δ, else δ|r| − ½δ², of r = outputs − targets, (B, ...) of one shape.

    Its Hessian, 1 within δ and 0 beyond, depends on the data's targets. No distribution of labels has that for its
    gradients' second moment, so there are expected labels (exact) and observed ones, but none to be drawn.
    """

    def __init__(self, delta: float = 1.0):
        if not delta > 0:
            raise ValueError(f"Huber: delta={delta!r}; expected a number above 0. Use that of training.")
        self.delta = float(delta)

    def check(self, outputs: Tensor, targets: Any) -> None:
        check_targets(targets, outputs, outputs.shape, "Huber", "one target per output")

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        size = (outputs - targets).abs()
        # not torch's huber_loss, which has no forward derivative
        return summed(torch.where(size <= self.delta, size.square() / 2, self.delta * (size - self.delta / 2)))

    def seeds(self, outputs: Tensor, targets: Any = None) -> Iterator[Tensor]:
        if targets is None:
            raise ValueError("Huber: the Hessian depends on the targets; expected some. Give seeds(outputs, targets).")
        within = (outputs - targets).abs() <= self.delta
        yield from unit_seeds(within.to(outputs))

    def uniforms(self, outputs: Tensor) -> int:
        raise NotImplementedError(
            "Huber has no sampler: its Hessian depends on the data's targets, which no drawn label knows; expected "
            "labels='expected' (exact, the default) or 'observed'. Leave labels= out."
        )

    def logit(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The output itself, where there is one per example (B,)."""
        return single(outputs, "Huber")


def summed(each: Tensor) -> Tensor:
    """The sum over everything but the examples, (B, ...) → (B,)."""
    return each.flatten(1).sum(1) if each.ndim > 1 else each
