"""In which order a review comes to its examples: the most suspicious first, those that match, the undecided next."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .review_decisions import Decisions

ANY, UNDECIDED, DECIDED = "all", "the undecided", "the decided"
ANY_LABEL = -1


class Queue:
    """The examples that match, in the order of a signal."""

    def __init__(self, signals: Mapping[str, Tensor], decisions: Decisions) -> None:
        self.places = places_of({name: torch.as_tensor(x).cpu() for name, x in signals.items()})
        self.decisions, self.matching = decisions, list[int]()
        self._wanted = ANY

    def order(self, signal: str) -> list[int]:
        """All examples in the order of a signal."""
        return [int(n) for n in self.places[signal].argsort(stable=True)]

    def match(self, signal: str, wanted: str, label: int) -> None:
        """Take those that are wanted, decided or not, under this label, or under any."""
        self._wanted = wanted
        self.matching = [
            n
            for n in self.order(signal)
            if wanted == ANY or (n in self.decisions.of) == (wanted == DECIDED)
            if label in (ANY_LABEL, int(self.decisions.given[n]))
        ]

    def first(self) -> int | None:
        """The first undecided example that matches, else the first."""
        undecided = [n for n in self.matching if n not in self.decisions.of]
        return next(iter(undecided or self.matching), None)

    def following(self, example: int) -> int | None:
        """The next undecided example after this one, of those that match; else the first before it; else none."""
        at = self.matching.index(example)
        for n in (*self.matching[at + 1 :], *self.matching[:at]):
            if n not in self.decisions.of:
                return n
        return example if self._wanted != UNDECIDED else None

    def step(self, example: int, steps: int) -> int:
        """The example so many steps on, or the last there is."""
        at = self.matching.index(example) + steps
        return self.matching[min(max(at, 0), len(self.matching) - 1)]


def places_of(signals: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """{signal: (N,) place of every example from 1}, ties by number."""
    found = {}
    for name, values in signals.items():
        order = values.argsort(descending=True, stable=True)
        place = torch.empty_like(order)
        place[order] = torch.arange(1, len(order) + 1)
        found[name] = place
    return found
