"""What every objective has, and which of its parts go together.

A subclass may redefine any part. Its seeds, and the gradients at labels, say something about its loss, so those that
were written for the loss of a class above are not used with a new one: ``part`` gives the base class's in their place,
which ask the loss alone. A sampler that a new loss inherits is used once it is proved to be that loss's (proof.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

from .derivatives import output_gradient, per_example, seeds_of

Measurement = str | Callable[[Tensor, Any], Tensor]


class Objective:
    """Base of all objectives. A new one needs a ``loss``; ``seeds`` spare its Hessian, a sampler allows "sampled"."""

    default_labels = "expected"
    max_outputs = 512  # of an example, for seeds from the Hessian of ``loss``

    def check(self, outputs: Tensor, targets: Any) -> None:
        """Raise ValueError where outputs and targets do not fit this objective."""

    def loss(self, outputs: Tensor, targets: Any) -> Tensor:
        """Per-example loss ℓ (B,) in nats, summed over an example's parts."""
        raise NotImplementedError(f"{type(self).__name__} must define loss(outputs, targets) -> (B,)")

    def seeds(self, outputs: Tensor, targets: Any = None) -> Iterator[Tensor]:
        """Tensors shaped like ``outputs`` with Σ_c s_c s_cᵀ = H_out for every example.

        ``targets`` say which parts of an example are in the loss and how they are weighted, None being all alike; so
        too in ``sample``. Unless redefined: from the Hessian of ``loss`` at these targets, exactly.
        """
        if targets is None:
            raise ValueError(f"{type(self).__name__}: the Hessian of its loss depends on targets; expected some.")
        return seeds_of(self.loss, outputs, targets, type(self).__name__, self.max_outputs)

    def uniforms(self, outputs: Tensor) -> int:
        """How many uniform numbers ``sample`` uses for one example."""
        raise NotImplementedError(f"{type(self).__name__} has no sampler; use labels='observed'")

    def sample(self, outputs: Tensor, uniforms: Tensor, targets: Any = None) -> Any:
        """Targets drawn from the model's own label distribution, from uniforms (B, U) in (0, 1), float64 on the CPU."""
        raise NotImplementedError(f"{type(self).__name__} has no sampler; use labels='observed'")

    def sampled_gradient(self, outputs: Tensor, drawn: Tensor, targets: Any) -> Tensor:
        """dℓ/d outputs at ``drawn`` labels, weighted as ``targets`` are: with √w, for it is to be squared."""
        return output_gradient(self.loss, outputs, drawn)

    def observed_gradient(self, outputs: Tensor, targets: Any) -> Tensor:
        """dℓ/d outputs at the data's own labels, where they are weighted with √w in place of w."""
        return output_gradient(self.loss, outputs, targets)

    def log_likelihood(self, outputs: Tensor, targets: Any) -> Tensor:
        """log p(target | outputs) up to a constant, (B,): −ℓ, the default measurement."""
        return -per_example(self.loss(outputs, targets), outputs, "loss")

    def measure(self, measurement: Measurement | None, outputs: Tensor, targets: Any) -> Tensor:
        """The measurement m (B,): a name this objective knows, any callable of (outputs, targets), or None (−ℓ)."""
        self.check(outputs, targets)
        if measurement is None or isinstance(measurement, str):
            name = "log_likelihood" if measurement is None else measurement
            method = part(self, name) if name in self.measurements() else None
            if method is None:
                raise ValueError(
                    f"measurement={name!r} is not defined for {type(self).__name__}; expected one of "
                    f"{', '.join(self.measurements())}, or a callable (outputs, targets) -> (B,)."
                )
        elif callable(measurement):
            method = measurement
        else:
            raise TypeError(
                f"measurement came as {measurement!r}; expected one of {', '.join(self.measurements())}, or a callable "
                "(outputs, targets) -> (B,). For one class: measurement=lambda outputs, targets: outputs[:, 3]."
            )
        what = "loss" if measurement in (None, "log_likelihood") else "measurement"
        return per_example(method(outputs, targets), outputs, what)

    def measurements(self) -> tuple[str, ...]:
        """Names of the measurements this objective knows."""
        known = ("log_likelihood", "margin", "logit")
        return tuple(name for name in known if hasattr(self, name))

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


def written(objective: Objective, name: str) -> bool:
    """Whether the objective's ``name`` was written for its loss: in the class that defines the loss, or one below."""

    def place(name: str) -> int:
        if name in vars(objective):
            return -1
        return next(k for k, cls in enumerate(type(objective).__mro__) if name in vars(cls))

    return place(name) <= place("loss")


def part(objective: Objective, name: str) -> Any:
    """The objective's method ``name``, or the base class's where its own was written for another loss."""
    if name in vars(Objective) and not written(objective, name):
        return getattr(Objective, name).__get__(objective)
    return getattr(objective, name)


def unit_seeds(scale: Tensor) -> Iterator[Tensor]:
    """scale_c · e_c for every output entry c of the examples."""
    flat = scale.reshape(scale.shape[0], -1)  # (B, C)
    for c in range(flat.shape[1]):
        s = flat.new_zeros(flat.shape)
        s[:, c] = flat[:, c]
        yield s.reshape(scale.shape)


_INSTEAD = {
    "CrossEntropyLoss": "CrossEntropy(), or NextToken() for sequences",
    "cross_entropy": "CrossEntropy(), or NextToken() for sequences",
    "MSELoss": "SquaredError()",
    "mse_loss": "SquaredError()",
    "BCEWithLogitsLoss": "Bernoulli()",
    "binary_cross_entropy_with_logits": "Bernoulli()",
    "HuberLoss": "Huber()",
    "PoissonNLLLoss": "Poisson()",
}


def check_kind(objective: Any) -> None:
    """Raise TypeError for what is no objective: a loss of torch's, a function, a class in place of its object."""
    if isinstance(objective, type):
        name = objective.__name__
        fix = f"{name}()" if issubclass(objective, Objective) else "CrossEntropy(), say"
        raise TypeError(f"objective came as the class {name}; expected an object. Call it: {fix}.")
    if isinstance(objective, Objective):
        return
    name = getattr(objective, "__name__", type(objective).__name__)
    raise TypeError(
        f"objective came as {name}; expected one of inflib's, which know a loss per example and its curvature. Give "
        f"{_INSTEAD.get(name, 'CrossEntropy(), SquaredError() or another')}; a loss of one's own is a class with "
        "loss(outputs, targets) -> (B,), class Mine(inflib.Objective)."
    )
