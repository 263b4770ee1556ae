"""Mislabel detection: labels are flipped on purpose, training examples ranked by suspicion, and the ranking judged.

``flip_labels`` plants the mistakes. A ranking is any score (N,), the most suspicious example highest: self-influence,
the loss, the gradient's norm, harm to a clean set. ``auc`` is the probability that a mislabelled example ranks above a
correct one, ½ for a blind ranking; ``recall`` is the share of the mistakes that somebody finds who looks at the top of
the list only. The task is that of Koh & Liang 2017, "Understanding Black-box Predictions via Influence Functions",
section 5.4.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .intervals import ranks


class Flipped(NamedTuple):
    """Labels of which some are wrong, and which those are."""

    labels: Tensor  # (N,) int64
    wrong: Tensor  # (N,) bool


def flip_labels(labels: Tensor, share: float = 0.1, *, classes: int = 10, seed: int = 0) -> Flipped:
    """Give ``share`` of the examples another label, each wrong class being as likely; the same for ever.

    ``labels`` (N,) int64. The flipped examples are the round(share · N) with the lowest numbers of a counter-based
    generator. Raises ValueError for a share outside 0 to 1 and for labels outside 0 to classes − 1.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share={share}; expected the part of the labels to flip, from 0 to 1: 0.1.")
    low, high = (int(labels.min()), int(labels.max())) if len(labels) else (0, 0)
    if classes < 2 or low < 0 or high >= classes:
        raise ValueError(
            f"labels from {low} to {high} with classes={classes}; expected 0 to classes − 1. Set classes=."
        )
    draws = np.random.Philox(key=seed).random_raw(2 * len(labels)).reshape(2, -1)
    chosen = np.argsort(draws[0], kind="stable")[: round(share * len(labels))]
    wrong = torch.zeros(len(labels), dtype=torch.bool)
    wrong[torch.from_numpy(chosen)] = True
    step = torch.from_numpy(1 + (draws[1] >> np.uint64(33)).astype(np.int64) % (classes - 1))
    flipped = torch.where(wrong, (labels.cpu() + step) % classes, labels.cpu())
    return Flipped(flipped.to(labels.device), wrong.to(labels.device))


def auc(scores: Tensor, wrong: Tensor) -> float:
    """Probability that a mislabelled example has a higher score than a correct one; equal scores count one half.

    ``scores`` (N,), ``wrong`` (N,) bool. The area under the curve of found mistakes against false alarms.
    """
    return float(placements(scores, wrong).mean())


def placements(scores: Tensor, wrong: Tensor) -> Tensor:
    """For each mislabelled example the share of correct ones that it ranks above, (W,); ``auc`` is their mean.

    The differences between two rankings' placements, given to ``bootstrap``, say whether their AUCs really differ.
    """
    _, n_right = _check(scores, wrong)
    return (ranks(scores)[wrong] - ranks(scores[wrong])) / n_right


def recall(scores: Tensor, wrong: Tensor, inspected: float) -> float:
    """Share of all mislabelled examples among the ``inspected`` part (0 to 1) with the highest scores.

    Of equal scores the earlier example is looked at first.
    """
    n_wrong, _ = _check(scores, wrong)
    if not 0 < inspected <= 1:
        raise ValueError(f"inspected={inspected}; expected the part of the examples looked at, above 0 to 1: 0.1.")
    order = scores.argsort(descending=True, stable=True)[: round(inspected * len(scores))]
    return float(wrong[order].sum()) / n_wrong


def _check(scores: Tensor, wrong: Tensor) -> tuple[int, int]:
    """How many are mislabelled, and how many are not."""
    if scores.ndim != 1 or scores.shape != wrong.shape or wrong.dtype != torch.bool:
        raise ValueError(
            f"scores {tuple(scores.shape)} and wrong {tuple(wrong.shape)} of {wrong.dtype}; expected one score and one "
            "bool an example, both (N,)."
        )
    if not bool(scores.isfinite().all()):
        raise ValueError(
            "some scores are not finite; expected numbers that can be ranked. Look for NaN in the gradients."
        )
    n_wrong = int(wrong.sum())
    if not 0 < n_wrong < len(wrong):
        raise ValueError(f"{n_wrong} of {len(wrong)} are mislabelled; expected some of both kinds. Flip a few labels.")
    return n_wrong, len(wrong) - n_wrong
