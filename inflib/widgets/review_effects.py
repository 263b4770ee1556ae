"""What decisions about labels do: predicted from influence, and measured by training again.

    predicted change of m_q:   (1/N) [ Σ_relabelled (I(n with its new label, q) − I(n, q))  −  Σ_removed I(n, q) ]

to first order: a removed example takes its gradient out of the objective, a relabelled one puts another in its place.
m is the log odds of a clean example's label; a log-likelihood near 0 has hardly a gradient left to predict with.
Hundreds of decisions at once are no small change, and the sizes are those of the curvature, unchecked: it is the
order of the clean examples that is compared.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..curvature import Curvature, Damping
from ..objectives import Objective
from ..scoring import influence
from ..validation import Interval, Training, rank_correlation, retrain
from .base import InputError
from .review_decisions import Decisions
from .review_examples import batches, few, outputs_of

Retrain = Callable[[Tensor, Tensor], nn.Module]  # labels (N,) int64, kept (N,) bool → the network trained with them


def retraining(
    build: Callable[[int], nn.Module], objective: Objective, inputs: Any, training: Training, *, seed: int = 0
) -> Retrain:
    """Trains a network of the course again: from ``build(seed)`` by the recipe, removed examples having weight 0."""

    def again(labels: Tensor, kept: Tensor) -> nn.Module:
        return retrain(build, objective, inputs, labels, training, kept[None], seed, progress=False).model(0)

    return again


@dataclass(frozen=True)
class Judged:
    """A network on the clean set of Q examples."""

    loss: float  # mean, nats
    accuracy: float
    right: Tensor  # (Q,) bool
    margin: Tensor  # (Q,) log odds of the label


@dataclass(frozen=True)
class Repair:
    """What retraining with the decisions changed on the clean set, beside what was predicted."""

    before: Judged  # trained alike with the labels as they were
    after: Judged
    predicted: Tensor  # (Q,) of the log odds, order only
    predicted_loss: float  # of the mean loss, order only
    relabelled: int
    removed: int

    @property
    def actual(self) -> Tensor:
        """(Q,) change of the log odds."""
        return self.after.margin - self.before.margin

    @property
    def agreement(self) -> Interval:
        """Spearman's correlation of predicted and actual changes over the clean examples, with its interval."""
        return _spearman(self.predicted, self.actual)

    @property
    def decided(self) -> int:
        """How many examples were relabelled or removed."""
        return self.relabelled + self.removed

    @property
    def mended(self) -> list[int]:
        """Clean examples that are read rightly now and were not."""
        return _rows(self.after.right & ~self.before.right)

    @property
    def broken(self) -> list[int]:
        """Clean examples that were read rightly and are not any more."""
        return _rows(self.before.right & ~self.after.right)


def _rows(mask: Tensor) -> list[int]:
    return [int(n) for n in mask.nonzero().flatten()]


def _spearman(x: Tensor, y: Tensor, resamples: int = 500) -> Interval:
    """Spearman's correlation, and the middle 95% of it over clean examples drawn again."""
    if len(x) < 3 or bool((x == x[0]).all() or (y == y[0]).all()):
        return Interval(math.nan, math.nan, math.nan)
    draws = np.random.Philox(key=0).random_raw(resamples * len(x)).reshape(resamples, -1)
    rows = torch.from_numpy((draws % np.uint64(len(x))).astype(np.int64))
    again = torch.tensor([rank_correlation(x[row], y[row]) for row in rows], dtype=torch.float64)
    low, high = (float(again.nanquantile(at)) for at in (0.025, 0.975))
    return Interval(rank_correlation(x, y), low, high)


def check_worth(decisions: Decisions) -> None:
    """InputError for decisions that change nothing, or leave a class without examples."""
    labels, kept = decisions.labels(), decisions.kept()
    if torch.equal(labels, decisions.given) and bool(kept.all()):
        raise InputError("nothing is relabelled or removed yet, so that retraining would change nothing")
    empty = [decisions.classes[c] for c in decisions.given.unique() if not (labels[kept] == c).any()]
    if empty:
        raise InputError(f"these decisions leave no example of class {', '.join(empty)}: undo some")


def judge(model: nn.Module, objective: Objective, clean: Any) -> Judged:
    """A network on the clean set."""
    outputs, labels = outputs_of(model, batches(model, clean.inputs, clean.labels)), clean.labels.cpu()
    right = outputs.argmax(1) == labels
    return Judged(
        float(objective.loss(outputs, labels).mean()),
        float(right.double().mean()),
        right,
        objective.measure("margin", outputs, labels),
    )


def predicted(
    model: nn.Module,
    objective: Objective,
    curvature: Curvature,
    train: Any,
    clean: Any,
    decisions: Decisions,
    damping: Damping = None,
    **how: Any,
) -> Tensor:
    """(Q,) what the decisions are expected to change of the log odds of the clean examples.

    ``how`` is for ``influence``: another measurement, or sets="all" for the sum over the clean examples, (1,).
    """
    given, labels, kept = decisions.given, decisions.labels(), decisions.kept()
    asked = batches(model, clean.inputs, clean.labels)
    options: dict[str, Any] = {"measurement": "margin", "progress": False, **how}

    def summed(rows: Tensor, by: Tensor) -> Tensor:
        if not len(rows):
            return torch.zeros(1, dtype=torch.float64)
        some = batches(model, few(train.inputs, rows.tolist()), by[rows])
        scores = influence(model, objective, some, asked, curvature, damping, **options)
        return scores.sum(1).double().cpu()

    changed = (labels != given).nonzero().flatten()
    taken = ((labels != given) | ~kept).nonzero().flatten()
    return (summed(changed, labels) - summed(taken, given)) / len(given)


def repair(
    model: nn.Module,
    objective: Objective,
    curvature: Curvature,
    train: Any,
    clean: Any,
    decisions: Decisions,
    retrain: Retrain,
    before: Judged,
    damping: Damping = None,
) -> Repair:
    """Predict, train again with the decisions, and measure both; ``before`` was trained alike without them."""
    about = model, objective, curvature, train, clean, decisions, damping
    expected = predicted(*about)
    gain = float(predicted(*about, measurement="log_likelihood", sets="all")) / len(clean.labels)
    after = judge(retrain(decisions.labels(), decisions.kept()).eval(), objective, clean)
    relabelled, removed = int((decisions.labels() != decisions.given).sum()), int((~decisions.kept()).sum())
    return Repair(before, after, expected, -gain, relabelled, removed)
