"""What capture back-propagates: seeds whose squares sum to the second moment of dℓ/d outputs, by kind of label."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from ..randomness import LabelStreams
from .objective import Objective, check_kind, part

LABELS = ("expected", "sampled", "observed")


def label_kind(objective: Objective, labels: str | None) -> str:
    """``labels``, or the objective's default; raises on an unknown kind."""
    check_kind(objective)
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
        for s in part(objective, "seeds")(outputs, targets):
            yield s, 1.0
    elif labels == "observed":
        yield part(objective, "observed_gradient")(outputs, targets), 1.0
    else:
        count = objective.uniforms(outputs)
        for draw in range(draws):
            u = LabelStreams(seed, pass_, draw).uniforms(start, outputs.shape[0], count)
            drawn = objective.sample(outputs, u, targets)
            yield part(objective, "sampled_gradient")(outputs, drawn, targets), 1.0 / draws
