"""What the model was trained for: the per-example loss, its label distribution, and what a query can measure.

An objective is four things: the per-example loss ℓ_n (B,), *summed* over everything inside an example; the seeds
s_c that are back-propagated for expected labels, Σ_c s_c s_cᵀ = H_out, the Hessian of ℓ in the model's outputs; a
sampler of labels from the model's own distribution; and measurements m, functions of the outputs.

    objective       −log p(y | f)                 seeds s_c                   label y ~
    CrossEntropy    logsumexp(f) − f_y            √p_c (e_c − p)              Categorical(softmax f)
    SquaredError    ½‖f − y‖²  (+ const)          e_c                         Normal(f, I)
    Bernoulli       Σ softplus(f) − y f           √(p_c (1 − p_c)) e_c        Bernoulli(sigmoid f)

Each loss is a negative log-likelihood, so that E_{y~model}[∇ℓ ∇ℓᵀ] = Jᵀ H_out J: the Fisher information is the
Gauss-Newton Hessian (Martens 2020, "New insights and perspectives on the natural gradient method").
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .batches import double
from .randomness import LabelStreams

LABELS = ("expected", "sampled", "observed")
Measurement = str | Callable[[Tensor, Any], Tensor]


class TooManySeedsError(ValueError):
    """Expected labels would take more backward passes a batch than the objective allows."""


class Objective:
    """Base of all objectives; a new one overrides ``loss``, ``seeds``, ``uniforms`` and ``sample``."""

    default_labels = "expected"

    def check(self, outputs: Tensor, targets: Any) -> None:
        """Raise ValueError where outputs and targets do not fit this objective."""

    def loss(self, outputs: Tensor, targets: Any) -> Tensor:
        """Per-example loss ℓ (B,) in nats, summed over an example's parts."""
        raise NotImplementedError(f"{type(self).__name__} must define loss(outputs, targets) -> (B,)")

    def seeds(self, outputs: Tensor, targets: Any = None) -> Iterator[Tensor]:
        """Tensors shaped like ``outputs`` with Σ_c s_c s_cᵀ = H_out for every example.

        ``targets`` say only which parts of an example are in the loss; None means all of them. So too in ``sample``.
        """
        raise NotImplementedError(
            f"{type(self).__name__} has no seeds: expected labels need them; use labels='sampled'"
        )

    def uniforms(self, outputs: Tensor) -> int:
        """How many uniform numbers ``sample`` uses for one example."""
        raise NotImplementedError(f"{type(self).__name__} has no sampler; use labels='observed'")

    def sample(self, outputs: Tensor, uniforms: Tensor, targets: Any = None) -> Any:
        """Targets drawn from the model's own label distribution, from uniforms (B, U) in (0, 1), float64 on the CPU."""
        raise NotImplementedError(f"{type(self).__name__} has no sampler; use labels='observed'")

    def log_likelihood(self, outputs: Tensor, targets: Any) -> Tensor:
        """log p(target | outputs) up to a constant, (B,): −ℓ, the default measurement."""
        return -self.loss(outputs, targets)

    def measure(self, measurement: Measurement | None, outputs: Tensor, targets: Any) -> Tensor:
        """The measurement m (B,): a name this objective knows, any callable of (outputs, targets), or None (−ℓ)."""
        self.check(outputs, targets)
        if measurement is None or isinstance(measurement, str):
            name = measurement or "log_likelihood"
            method = getattr(self, name, None) if name in self.measurements() else None
            if method is None:
                raise ValueError(
                    f"measurement={name!r} is not defined for {type(self).__name__}; expected one of "
                    f"{', '.join(self.measurements())}, or a callable (outputs, targets) -> (B,)."
                )
        else:
            method = measurement
        what = "loss" if method == self.log_likelihood else "measurement"
        return per_example(method(outputs, targets), outputs, what)

    def measurements(self) -> tuple[str, ...]:
        """Names of the measurements this objective knows."""
        known = ("log_likelihood", "margin", "logit")
        return tuple(name for name in known if hasattr(self, name))

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class CrossEntropy(Objective):
    """Softmax cross-entropy of logits (B, C) and class indices (B,)."""

    def check(self, outputs: Tensor, targets: Any) -> None:
        if outputs.ndim != 2:
            raise ValueError(
                f"CrossEntropy got outputs of shape {tuple(outputs.shape)}; expected logits (B, C). "
                "Have the model return one row of logits per example."
            )
        _check_targets(targets, outputs, outputs.shape[:1], "CrossEntropy", "class indices (B,)")
        if targets.dtype != torch.int64:
            raise ValueError(f"CrossEntropy got {targets.dtype} targets; expected class indices: targets.long().")
        low, high = int(targets.min()), int(targets.max())
        if low < 0 or high >= outputs.shape[1]:
            raise ValueError(
                f"CrossEntropy got targets from {low} to {high}; expected 0 to {outputs.shape[1] - 1}, "
                f"because the model has {outputs.shape[1]} outputs. Number the classes from 0, or give the model an "
                "output for each of them."
            )

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets, reduction="none")  # (B,)

    def seeds(self, outputs: Tensor, targets: Any = None) -> Iterator[Tensor]:
        p = outputs.softmax(-1)  # (B, C)
        for c in range(outputs.shape[-1]):
            e_c = F.one_hot(torch.tensor(c, device=p.device), p.shape[-1]).to(p.dtype)
            yield p[:, c : c + 1].sqrt() * (e_c - p)

    def uniforms(self, outputs: Tensor) -> int:
        return 1

    def sample(self, outputs: Tensor, uniforms: Tensor, targets: Any = None) -> Tensor:
        return inverse_cdf(double(outputs).softmax(-1), uniforms).to(outputs.device)

    def logit(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """f_y, the target class's logit (B,)."""
        return outputs.gather(-1, targets[:, None]).squeeze(-1)

    def margin(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """f_y − log Σ_{c≠y} exp f_c (B,): the log odds of the target class."""
        others = outputs.scatter(-1, targets[:, None], -math.inf)
        return self.logit(outputs, targets) - others.logsumexp(-1)


class SquaredError(Objective):
    """½‖f − y‖² of outputs and targets (B, ...) of one shape: the unit Gaussian's negative log-likelihood."""

    def check(self, outputs: Tensor, targets: Any) -> None:
        _check_targets(targets, outputs, outputs.shape, "SquaredError", "one target per output")
        if targets.dtype == torch.bool:
            raise ValueError(
                f"SquaredError got {targets.dtype} targets; expected numbers: targets.to({outputs.dtype})."
            )

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (
            0.5 * (outputs - targets).flatten(1).square().sum(1) if outputs.ndim > 1 else 0.5 * (outputs - targets) ** 2
        )

    def seeds(self, outputs: Tensor, targets: Any = None) -> Iterator[Tensor]:
        yield from _unit_seeds(torch.ones_like(outputs))

    def uniforms(self, outputs: Tensor) -> int:
        return outputs[0].numel()

    def sample(self, outputs: Tensor, uniforms: Tensor, targets: Any = None) -> Tensor:
        noise = torch.special.ndtri(uniforms).to(outputs)  # standard normal, by inversion
        return outputs + noise.reshape(outputs.shape)

    def logit(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The output itself, where there is one per example (B,)."""
        return _single(outputs, "SquaredError")


class Bernoulli(Objective):
    """Independent yes/no outputs: logits and targets in [0, 1], both (B,) or (B, C), summed over C."""

    def check(self, outputs: Tensor, targets: Any) -> None:
        _check_targets(targets, outputs, outputs.shape, "Bernoulli", "one target per logit")
        low, high = float(targets.min()), float(targets.max())
        if not 0 <= low <= high <= 1:
            raise ValueError(
                f"Bernoulli got targets from {low:g} to {high:g}; expected values in [0, 1]. "
                "Rescale them, or use SquaredError for targets on another scale."
            )

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        loss = F.binary_cross_entropy_with_logits(outputs, targets.to(outputs.dtype), reduction="none")
        return loss.flatten(1).sum(1) if loss.ndim > 1 else loss

    def seeds(self, outputs: Tensor, targets: Any = None) -> Iterator[Tensor]:
        p = outputs.sigmoid()
        yield from _unit_seeds((p * (1 - p)).sqrt())

    def uniforms(self, outputs: Tensor) -> int:
        return outputs[0].numel()

    def sample(self, outputs: Tensor, uniforms: Tensor, targets: Any = None) -> Tensor:
        p = double(outputs).sigmoid()
        return (uniforms.to(p).reshape(p.shape) < p).to(outputs)

    def logit(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The logit of the target's side (±f), where there is one output per example (B,)."""
        return _single(outputs, "Bernoulli") * _single(2 * targets.to(outputs.dtype) - 1, "Bernoulli")


# --- what capture back-propagates --------------------------------------------------------------------------------


def label_kind(objective: Objective, labels: str | None) -> str:
    """``labels``, or the objective's default; raises on an unknown kind."""
    kind = labels or objective.default_labels
    if kind not in LABELS:
        raise ValueError(f"labels={labels!r}; expected one of {', '.join(map(repr, LABELS))}, or None for the default.")
    return kind


def label_seeds(
    objective: Objective,
    outputs: Tensor,
    targets: Any,
    *,
    labels: str,
    draws: int,
    seed: int,
    pass_: int,
    start: int,
) -> Iterator[tuple[Tensor, float]]:
    """Pairs (seed tensor, weight) with Σ weight · s sᵀ = the second moment of dℓ/d outputs under ``labels``.

    expected: the exact s_c, weight 1. sampled: dℓ/d outputs at labels drawn from the model, weight 1/draws; example
    ``start + b`` uses its own stream for (seed, pass_, draw). observed: at the data's labels (the empirical Fisher).
    """
    outputs = outputs.detach()
    if labels == "expected":
        for s in objective.seeds(outputs, targets):
            yield s, 1.0
    elif labels == "observed":
        yield output_gradient(objective.loss, outputs, targets), 1.0
    else:
        count = objective.uniforms(outputs)
        for draw in range(draws):
            u = LabelStreams(seed, pass_, draw).uniforms(start, outputs.shape[0], count)
            drawn = objective.sample(outputs, u, targets)
            yield output_gradient(objective.loss, outputs, drawn), 1.0 / draws


def output_gradient(function: Callable[[Tensor, Any], Tensor], outputs: Tensor, targets: Any) -> Tensor:
    """d function(outputs, targets)_b / d outputs_b, shaped like outputs, for a per-example function (B,)."""
    with torch.enable_grad():
        f = outputs.detach().requires_grad_()
        value = per_example(function(f, targets), outputs, getattr(function, "__name__", "function"))
        (gradient,) = torch.autograd.grad(value.sum(), f)
    return gradient


ONE = 0x3FF0000000000000  # the bits of 1 in float64


@torch.no_grad()
def inverse_cdf(p: Tensor, uniforms: Tensor) -> Tensor:
    """The class (...) on whose share of (0, 1) each uniform (..., 1) falls, for probabilities p (..., C) in float64.

    p's memory is used up. Summed in whole numbers of 2⁻⁵²: exactly, so on every device alike. A running sum of
    fractions depends on its order, and torch refuses it on a GPU under ``use_deterministic_algorithms``.
    """
    # between 1 and 2 the numbers that float64 has are 2⁻⁵² apart, and their bits count them
    cdf = p.add_(1).view(torch.int64).sub_(ONE).cumsum(-1)
    drawn = torch.searchsorted(cdf, (uniforms.to(p) * cdf[..., -1:]).long(), right=True)
    return drawn.squeeze(-1).clamp(max=p.shape[-1] - 1)


def per_example(value: Tensor, outputs: Tensor, what: str) -> Tensor:
    """``value``, if it has one number per example; else a ValueError that says how to get there."""
    if not isinstance(value, Tensor) or value.shape != outputs.shape[:1]:
        shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(
            f"the {what} has shape {shape}; expected one number per example, ({outputs.shape[0]},). "
            "Use reduction='none' and sum over everything but the first axis."
        )
    return value


def _unit_seeds(scale: Tensor) -> Iterator[Tensor]:
    """scale_c · e_c for every output entry c of the examples."""
    flat = scale.reshape(scale.shape[0], -1)  # (B, C)
    for c in range(flat.shape[1]):
        s = torch.zeros_like(flat)
        s[:, c] = flat[:, c]
        yield s.reshape(scale.shape)


def _check_targets(targets: Any, outputs: Tensor, shape: torch.Size, who: str, expected: str) -> None:
    if not isinstance(targets, Tensor) or targets.shape != shape:
        came = tuple(targets.shape) if isinstance(targets, Tensor) else type(targets).__name__
        same = isinstance(targets, Tensor) and targets.numel() == shape.numel()
        fix = f"y.reshape({tuple(shape)})" if same else "look at what the batches hold beside the inputs"
        raise ValueError(f"{who} got targets of shape {came}; expected {tuple(shape)}: {expected}. Fix: {fix}.")
    if targets.device != outputs.device:
        raise ValueError(
            f"{who} got targets on {targets.device}, outputs on {outputs.device}; expected one device. "
            f"Move the targets: y.to('{outputs.device}')."
        )


def _single(values: Tensor, who: str) -> Tensor:
    flat = values.reshape(values.shape[0], -1)
    if flat.shape[1] != 1:
        raise ValueError(
            f"{who}: measurement 'logit' needs one output per example, this model has {flat.shape[1]}. "
            "Choose one with a callable: measurement=lambda outputs, targets: outputs[:, 3]."
        )
    return flat.squeeze(1)
