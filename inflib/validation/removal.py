"""Take away what a method says a prediction rests on, retrain, and see whether it falls.

For each query the k training examples that a ranking puts first are removed and the network is trained again, from the
seeds of the network that was asked:

    flips    the share of queries that were right and are no longer, mean over the seeds
    change   of the query's measurement, negative where it got worse

Two rankings are compared on the same queries and seeds. Simple ones belong beside every method: random images of the
query's class, and nearest neighbours, which know nothing of the network (pixels) or little (features).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..batches import bar
from .bank import BankRecipe, without
from .intervals import Interval, bootstrap


@dataclass(frozen=True, eq=False)
class Removal:
    """What removing the first k of each ranking did to each query."""

    flips: dict[tuple[str, int], Tensor]  # {(ranking, k): (Q,)}: share of seeds in which a right answer became wrong
    change: dict[tuple[str, int], Tensor]  # {(ranking, k): (Q,)}: of the measurement, mean over the seeds

    def flip_rate(self, ranking: str, k: int) -> Interval:
        """The share of queries flipped, with its interval over queries."""
        return bootstrap(self.flips[ranking, k])

    def mean_change(self, ranking: str, k: int) -> Interval:
        """The mean change of the measurement, with its interval over queries."""
        return bootstrap(self.change[ranking, k])

    def beyond(self, ranking: str, other: str, k: int) -> Interval:
        """How much further the first ranking's removal lowers the measurement than the other's, paired by query."""
        return bootstrap(self.change[other, k] - self.change[ranking, k])


def remove_top(
    recipe: BankRecipe,
    rankings: Mapping[str, Tensor],
    ks: Sequence[int] = (5, 20),
    *,
    queries: Tensor | None = None,
    seeds: int = 1,
    measurement: Any = "margin",
    at_once: int = 100,
    progress: bool = True,
    **options: Any,
) -> Removal:
    """Retrain without each query's first k examples, for every ranking and k.

    rankings: {name: (Q, N)}, the example to remove first highest: scores of ``influence``, or a simple ranking below.
    queries:  positions in the recipe's queries of the Q rows; None: all. Ask about queries that are answered rightly.
    seeds:    of the networks before and after; at_once: networks in a batch.

    Takes len(rankings) · len(ks) · Q · seeds retrainings. Raises ValueError for rankings that do not fit.
    """
    asked = torch.arange(_count(recipe)) if queries is None else queries
    for name, ranking in rankings.items():
        if ranking.shape != (len(asked), recipe.examples):
            raise ValueError(
                f"ranking {name!r} has shape {tuple(ranking.shape)}; expected ({len(asked)}, {recipe.examples})."
            )
    if not ks or min(ks) < 1 or max(ks) >= recipe.examples:
        raise ValueError(f"ks={tuple(ks)}; expected numbers of examples from 1 to {recipe.examples - 1}.")
    firsts = {name: r.argsort(dim=1, descending=True, stable=True)[:, : max(ks)] for name, r in rankings.items()}
    groups = {(name, k): firsts[name][:, :k].tolist() for name in rankings for k in ks}
    return remove(
        recipe,
        groups,
        queries=asked,
        seeds=seeds,
        measurement=measurement,
        at_once=at_once,
        progress=progress,
        **options,
    )


def remove(
    recipe: BankRecipe,
    groups: Mapping[tuple[str, int], Sequence[Sequence[int]]],
    *,
    queries: Tensor | None = None,
    seeds: int = 1,
    measurement: Any = "margin",
    at_once: int = 100,
    progress: bool = True,
    **options: Any,
) -> Removal:
    """Retrain without each query's group of examples: {(name, number): Q groups of positions}.

    A group may be empty, where there is nothing to remove: nothing changes. Other arguments as for ``remove_top``.
    Raises ValueError for another number of groups than of queries.
    """
    asked = torch.arange(_count(recipe)) if queries is None else queries
    wrong = [key for key, own in groups.items() if len(own) != len(asked)]
    if wrong:
        raise ValueError(f"{wrong[0]} has {len(groups[wrong[0]])} groups; expected {len(asked)}, one for each query.")
    flips, change = ({key: torch.zeros(len(asked), dtype=torch.float64) for key in groups} for _ in range(2))
    work = [(seed, key) for seed in range(seeds) for key in groups]
    before: dict[int, tuple[Tensor, Tensor]] = {}
    whole, own = torch.ones(1, recipe.examples, dtype=torch.bool), torch.arange(len(asked))
    for seed, key in bar(work, len(work), "removal", "set") if progress else work:
        if seed not in before:
            measured, right = _after(recipe, seed, whole, measurement, at_once, options)
            before[seed] = measured[0, asked], right[0, asked]
        masks = torch.cat([without(recipe.examples, [group]) if len(group) else whole for group in groups[key]])
        measured, right = _after(recipe, seed, masks, measurement, at_once, options)
        change[key] += (measured[own, asked] - before[seed][0]) / seeds
        flips[key] += (before[seed][1] * (1 - right[own, asked])) / seeds
    return Removal(flips, change)


def disputed(one: Tensor, other: Tensor, k: int, labels: Tensor) -> tuple[list[list[int]], list[list[int]]]:
    """For each query, what is among the first k of one ranking (Q, N) and not of the other's, matched in class.

    Of either ranking's own examples the first of each class are kept, as many as the other has of that class: removing
    the one group or the other, equal in number and in classes, tells which ranking is right where they differ.
    """
    groups: tuple[list[list[int]], list[list[int]]] = ([], [])
    for a, b in zip(one, other, strict=True):
        first, second = (r.argsort(descending=True, stable=True)[:k].tolist() for r in (a, b))
        own = [[n for n in first if n not in second], [n for n in second if n not in first]]
        counts = [Counter(int(labels[n]) for n in members) for members in own]
        for members, found in zip(own, groups, strict=True):
            room = counts[0] & counts[1]
            found.append([n for n in members if _taken(room, int(labels[n]))])
    return groups


def _taken(room: Counter[int], label: int) -> bool:
    """Whether there was room for one more of that class; then there is one less."""
    room[label] -= 1
    return room[label] >= 0


def random_same_class(labels: Tensor, query_labels: Tensor, seed: int = 0) -> Tensor:
    """A ranking (Q, N) that puts examples of each query's class first, in random order."""
    raw = np.random.Philox(key=seed).random_raw(len(query_labels) * len(labels))
    noise = torch.from_numpy((raw >> np.uint64(11)).astype(np.float64) * 2.0**-53).view(len(query_labels), -1)
    return noise + (labels == query_labels[:, None]).double()


def nearest(
    examples: Tensor, asked: Tensor, labels: Tensor | None = None, query_labels: Tensor | None = None
) -> Tensor:
    """A ranking (Q, N) by closeness, −‖x_q − x_n‖, in pixels or in features (..., flattened).

    With both ``labels``, examples of another class than the query's come last.
    """
    ranking = -torch.cdist(asked.flatten(1).double(), examples.flatten(1).double())
    if labels is None or query_labels is None:
        return ranking
    return ranking.where(labels == query_labels[:, None], ranking - 2 * ranking.abs().max())


def _after(
    recipe: BankRecipe, seed: int, masks: Tensor, measurement: Any, at_once: int, options: Mapping[str, Any]
) -> tuple[Tensor, Tensor]:
    """Measurement and correctness of every query after training on each mask, (K, Q) float64 each."""
    found = []
    for some in masks.split(at_once):
        networks = recipe.train(seed, some, progress=False, **options)
        both = (networks.measure(recipe.objective, recipe.queries, m).double().cpu() for m in (measurement, _right))
        found.append(torch.stack(tuple(both)))
    measured, right = torch.cat(found, dim=1)
    return measured, right


def _right(outputs: Tensor, targets: Tensor) -> Tensor:
    """Whether the largest output is the target class; of numbers and sequences nothing is right or wrong."""
    if targets.is_floating_point() or targets.ndim != 1:
        return torch.zeros(len(outputs)).to(outputs)
    return (outputs.argmax(-1) == targets).to(outputs)


def _count(recipe: BankRecipe) -> int:
    return sum(len(targets) for _, targets in recipe.queries)
