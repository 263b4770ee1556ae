"""One label per example, or several answers of yes or no: softmax cross-entropy and independent Bernoulli outputs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..batches import double
from .checks import check_device, check_targets, single
from .derivatives import output_gradient
from .objective import Objective, unit_seeds
from .sampling import inverse_cdf
from .softmax import SoftmaxTerms, check_classes


class CrossEntropy(Objective):
    """Softmax cross-entropy of logits (B, C) and class indices (B,), or soft targets (B, C): a distribution each.

    weight:          class weights (C,), each example counting as often as its class's weight says (softmax.py);
    label_smoothing: ε from 0 to 1, the share of each target that is spread over all classes;
    ignore_index:    a label whose examples have the loss 0 (they still count in N, the mean's denominator).

    The three as ``F.cross_entropy`` has them, its loss per example. Sampled labels are drawn from softmax f.
    """

    def __init__(self, weight: Tensor | None = None, *, label_smoothing: float = 0.0, ignore_index: int | None = None):
        self.terms = SoftmaxTerms(weight, label_smoothing, ignore_index, "CrossEntropy")

    def check(self, outputs: Tensor, targets: Any) -> None:
        if outputs.ndim != 2:
            fix = "Have the model return one row of logits per example"
            if outputs.ndim > 3 or (outputs.ndim == 3 and getattr(targets, "shape", None) == outputs[:, 0].shape):
                fix = "For a label at every pixel use PixelCrossEntropy()"
            raise ValueError(
                f"CrossEntropy got outputs of shape {tuple(outputs.shape)}; expected logits (B, C). {fix}."
            )
        if isinstance(targets, Tensor) and targets.is_floating_point() and targets.shape == outputs.shape:
            _check_distributions(targets, outputs)
            return
        if isinstance(targets, Tensor) and targets.shape == outputs.shape:
            raise ValueError(
                f"CrossEntropy got {targets.dtype} targets of shape {tuple(targets.shape)}; expected class indices "
                f"{tuple(outputs.shape[:1])}, or probabilities of that shape in floating point. Fix: targets.argmax(1) "
                "for one class each; Bernoulli() for several at once."
            )
        check_targets(targets, outputs, outputs.shape[:1], "CrossEntropy", "class indices (B,)")
        if targets.dtype != torch.int64:
            raise ValueError(f"CrossEntropy got {targets.dtype} targets; expected class indices: targets.long().")
        ignored = self.terms.ignored
        fix = ", or leave examples out by CrossEntropy(ignore_index=...)" if ignored is None else ""
        check_classes(targets, self.terms.counted(targets), outputs.shape[1], "CrossEntropy", "targets", fix)
        self.terms.weights(outputs)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.terms.losses(outputs, targets)  # (B,)

    def seeds(self, outputs: Tensor, targets: Any = None) -> Iterator[Tensor]:
        p = outputs.softmax(-1)  # (B, C)
        scale = self.terms.scale(outputs, targets)  # (B,)
        for c in range(outputs.shape[-1]):
            e_c = F.one_hot(torch.tensor(c, device=p.device), p.shape[-1]).to(p.dtype)
            yield (scale * p[:, c]).sqrt()[:, None] * (e_c - p)

    def uniforms(self, outputs: Tensor) -> int:
        return 1

    def sample(self, outputs: Tensor, uniforms: Tensor, targets: Any = None) -> Tensor:
        return inverse_cdf(double(outputs).softmax(-1), uniforms).to(outputs.device)

    def sampled_gradient(self, outputs: Tensor, drawn: Tensor, targets: Any) -> Tensor:
        return self.terms.at_labels(outputs, drawn, targets)

    def observed_gradient(self, outputs: Tensor, targets: Any) -> Tensor:
        return self.terms.unsquared(output_gradient(self.loss, outputs, targets), outputs, targets)

    def logit(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """f_y, the target class's logit (B,); 0 where the target is left out."""
        counted, y = self._classes(targets, "logit")
        return outputs.gather(-1, y[:, None]).squeeze(-1).where(counted, 0)

    def margin(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """f_y − log Σ_{c≠y} exp f_c (B,): the log odds of the target class; 0 where the target is left out."""
        counted, y = self._classes(targets, "margin")
        others = outputs.scatter(-1, y[:, None], -math.inf)
        odds = outputs.gather(-1, y[:, None]).squeeze(-1) - others.logsumexp(-1)
        return odds.where(counted, 0)

    def _classes(self, targets: Tensor, what: str) -> tuple[Tensor, Tensor]:
        """Which targets count, and the class indices, 0 where they do not."""
        if targets.is_floating_point():
            raise ValueError(
                f"measurement={what!r} got soft targets {tuple(targets.shape)}; expected class indices (B,). Ask the "
                "queries about one class each: y.argmax(1)."
            )
        counted = self.terms.counted(targets)
        return counted, targets.where(counted, 0)


def _check_distributions(targets: Tensor, outputs: Tensor) -> None:
    """Raise ValueError for soft targets (B, C) that are no probabilities."""
    check_device(targets, outputs, "CrossEntropy")
    low, sums = float(targets.min()), targets.sum(1)
    if not (low >= 0 and bool(((sums - 1).abs() < 0.02).all())):  # half precision rounds a sum by so much
        raise ValueError(
            f"CrossEntropy got {targets.dtype} targets {tuple(targets.shape)} with entries from {low:g} and rows that "
            f"sum to {float(sums.min()):g} up to {float(sums.max()):g}; expected class indices (B,), targets.long(), "
            "or probabilities ≥ 0 that sum to 1 in each row: y / y.sum(1, keepdim=True). For several labels at once "
            "use Bernoulli."
        )


class Bernoulli(Objective):
    """Independent yes/no outputs: logits and targets in [0, 1], both (B,) or (B, C), summed over C."""

    def check(self, outputs: Tensor, targets: Any) -> None:
        check_targets(targets, outputs, outputs.shape, "Bernoulli", "one target per logit")
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
        yield from unit_seeds((p * (1 - p)).sqrt())

    def uniforms(self, outputs: Tensor) -> int:
        return outputs[0].numel()

    def sample(self, outputs: Tensor, uniforms: Tensor, targets: Any = None) -> Tensor:
        p = double(outputs).sigmoid()
        return (uniforms.to(p).reshape(p.shape) < p).to(outputs)

    def logit(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The logit of the target's side (±f), where there is one output per example (B,)."""
        return single(outputs, "Bernoulli") * single(2 * targets.to(outputs.dtype) - 1, "Bernoulli")
