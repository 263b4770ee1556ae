"""How good a ranking is where the truth is known, and how concentrated influence is.

    recall@k        of the examples that are relevant, the share among the k that score highest
    top share       Σ of the largest scores / Σ of all positive scores
    tail exponent   α in P(score > x) ∝ x^(−α) above a threshold; the smaller, the heavier the tail

α is Hill's (1975) estimator, the maximum likelihood of a Pareto tail: 1/α̂ = mean of log(x_(i) / x_(k+1)) over the k
largest values, with standard error α̂/√k.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor


def recall_at(scores: Tensor, relevant: Tensor, k: int = 2) -> Tensor:
    """recall@k of every query, (Q,), in the scores' dtype, from scores (Q, N) and relevant (Q, N) bool.

    Equal scores rank by index. A query with more than k relevant examples cannot reach 1. Raises ValueError for shapes
    that differ, and for a query to which nothing is relevant.
    """
    if scores.ndim != 2 or scores.shape != relevant.shape:
        raise ValueError(
            f"scores {tuple(scores.shape)} and relevant {tuple(relevant.shape)}; expected one shape (Q, N). "
            "relevant[q, n] says whether example n is an answer to query q."
        )
    if not 1 <= k <= scores.shape[1]:
        raise ValueError(f"k={k}; expected 1 to {scores.shape[1]}, the number of examples.")
    counts = relevant.sum(1)
    if not bool((counts > 0).all()):
        raise ValueError(
            f"nothing is relevant to query {int((counts == 0).nonzero()[0])}; expected at least one example. "
            "Leave the query out."
        )
    top = scores.argsort(dim=1, descending=True, stable=True)[:, :k]
    return relevant.gather(1, top).sum(1) / counts.to(scores)


def top_share(scores: Tensor, share: float = 0.01) -> Tensor:
    """What the largest ``share`` of all N examples holds of each query's positive influence, (Q,), from 0 to 1.

    The count is rounded up: 1% of 460 examples are 5. Raises ValueError for a query without positive influence.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share={share}; expected a part of the examples, above 0 and at most 1: share=0.01.")
    positive = scores.clamp(min=0)
    total = positive.sum(1)
    if not bool((total > 0).all()):
        raise ValueError(
            f"query {int((total <= 0).nonzero()[0])} has no positive influence; expected some. Leave the query out."
        )
    return positive.topk(math.ceil(share * scores.shape[1]), dim=1).values.sum(1) / total


@dataclass(frozen=True)
class Tail:
    """A power law fitted to the largest values: P(x > t) ∝ t^(−exponent) above ``threshold``."""

    exponent: float
    error: float  # standard error of the exponent
    threshold: float
    values: int  # how many lie above it

    def __repr__(self) -> str:
        return f"Tail(exponent {self.exponent:.2f} ± {self.error:.2f}, from the {self.values} largest)"


def tail_exponent(values: Tensor, k: int) -> Tail:
    """Hill's estimate from the k largest of ``values`` (a vector): α̂ and its standard error α̂/√k.

    Values must be independent for the error to hold; the choice of k decides what counts as the tail, so look at
    several. Raises ValueError where the k + 1 largest values are not all positive, or do not differ.
    """
    ordered = values.flatten().double().sort(descending=True).values
    if not 2 <= k < len(ordered) or not bool(ordered[k] > 0) or not bool(ordered[0] > ordered[k]):
        positive = int((ordered > 0).sum())
        raise ValueError(
            f"k={k} of {len(ordered)} values, {positive} of them positive; expected 2 ≤ k < {positive}, and values "
            "that differ. Take fewer, or fit the tail of another quantity."
        )
    exponent = 1 / float((ordered[:k] / ordered[k]).log().mean())
    return Tail(exponent, exponent / math.sqrt(k), float(ordered[k]), k)
