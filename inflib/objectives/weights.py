"""Weights per example: ``Weighted(objective)`` takes targets (y, w) and counts example n w_n times.

    ℓ_n → w_n ℓ_n        H_out → w H_out        seeds √w s_c        so that G = (1/N) Σ w_n Jᵀ H_out J

with N the number of examples, whatever they weigh. A gradient at a drawn or observed label is there to be squared, so
it takes √w, not w: (w ∇ℓ)(w ∇ℓ)ᵀ would have w². So under every kind of label a weight of 2 is the example given twice
over (N left as it is). In a score −∇ℓ_n is that of the weighted loss.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from .checks import check_device
from .derivatives import per_example
from .objective import Measurement, Objective, part


class Weighted(Objective):
    """``objective`` with a weight per example: targets (y, w), w (B,) ≥ 0; or y alone, where all weigh 1 (queries)."""

    def __init__(self, objective: Objective):
        if isinstance(objective, Weighted) or not isinstance(objective, Objective):
            raise TypeError(
                f"Weighted got {objective!r:.60}; expected a plain objective, as in Weighted(CrossEntropy())."
            )
        self.objective = objective
        self.default_labels = objective.default_labels

    def check(self, outputs: Tensor, targets: Any) -> None:
        y, w = split(targets)
        self.objective.check(outputs, y)
        if w is None:
            return
        if w.shape != outputs.shape[:1] or not bool(((w >= 0) & w.isfinite()).all()):
            raise ValueError(
                f"Weighted got weights of shape {tuple(w.shape)} from {float(w.min()):g} to {float(w.max()):g}; "
                f"expected one finite weight ≥ 0 per example, ({outputs.shape[0]},). The targets are (y, w)."
            )
        check_device(w, outputs, "Weighted")

    def loss(self, outputs: Tensor, targets: Any) -> Tensor:
        y, w = split(targets)
        loss = per_example(self.objective.loss(outputs, y), outputs, "loss")
        return loss if w is None else w.to(loss) * loss

    def seeds(self, outputs: Tensor, targets: Any = None) -> Iterator[Tensor]:
        y, w = split(targets)
        for s in part(self.objective, "seeds")(outputs, y):
            yield _times_root(s, w)

    def uniforms(self, outputs: Tensor) -> int:
        return self.objective.uniforms(outputs)

    def sample(self, outputs: Tensor, uniforms: Tensor, targets: Any = None) -> Any:
        return self.objective.sample(outputs, uniforms, split(targets)[0])

    def sampled_gradient(self, outputs: Tensor, drawn: Any, targets: Any) -> Tensor:
        y, w = split(targets)
        return _times_root(part(self.objective, "sampled_gradient")(outputs, drawn, y), w)

    def observed_gradient(self, outputs: Tensor, targets: Any) -> Tensor:
        y, w = split(targets)
        return _times_root(part(self.objective, "observed_gradient")(outputs, y), w)

    def measure(self, measurement: Measurement | None, outputs: Tensor, targets: Any) -> Tensor:
        """The log-likelihood is −w ℓ; any other measurement is of the outputs and y, whatever they weigh."""
        self.check(outputs, targets)
        if measurement in (None, "log_likelihood"):
            return self.log_likelihood(outputs, targets)
        return self.objective.measure(measurement, outputs, split(targets)[0])

    def measurements(self) -> tuple[str, ...]:
        return self.objective.measurements()

    def __repr__(self) -> str:
        return f"Weighted({self.objective!r})"


def split(targets: Any) -> tuple[Any, Tensor | None]:
    """(y, w) of a pair whose second is a vector of fractions; else (targets, None)."""
    if isinstance(targets, (tuple, list)) and len(targets) == 2:
        y, w = targets
        if isinstance(w, Tensor) and w.is_floating_point() and w.ndim == 1:
            return y, w
        raise ValueError(
            f"Weighted got a pair of targets whose second is {_said(w)}; expected (y, w) with one weight per example, "
            "w (B,) in floating point: w.float()."
        )
    return targets, None


def unweighted(objective: Any, targets: Any) -> tuple[Any, Any]:
    """The objective inside a ``Weighted`` and the targets without weights; any other as they are."""
    if not isinstance(objective, Weighted):
        return objective, targets
    return objective.objective, split(targets)[0]


def _times_root(s: Tensor, w: Tensor | None) -> Tensor:
    return s if w is None else w.to(s).sqrt().reshape(-1, *(1 for _ in s.shape[1:])) * s


def _said(w: Any) -> str:
    return f"{w.dtype} {tuple(w.shape)}" if isinstance(w, Tensor) else type(w).__name__
