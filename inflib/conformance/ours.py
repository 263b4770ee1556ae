"""inflib as the checks ask it, and the pattern for other adapters."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..batches import Data
from ..coverage import CoverageNote
from ..kronecker import Kronecker, ekfac
from ..objectives import CrossEntropy, Objective, SquaredError
from ..scoring import influence, self_influence
from ..sequences import IGNORED, NextToken
from .library import OFFERS, PAD, ROUNDING, Case, Examples

OBJECTIVES: dict[str, type[Objective]] = {
    "cross-entropy": CrossEntropy,
    "squared error": SquaredError,
    "next token": NextToken,
}


class Inflib:
    """EK-FAC by ``ekfac``, scores by ``influence``, nothing translated but tokens into shifted targets."""

    name, version, rounding = "inflib", "0.1.0", ROUNDING
    offers: frozenset[str] = frozenset(OFFERS)
    lacks: Mapping[str, str] = {}

    def fit(self, case: Case) -> Kronecker:
        model, objective, train = self._asked(case, case.train)
        how = (case.layers, case.labels, case.draws)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CoverageNote)  # that a frozen layer is left out is what a check asks for
            return ekfac(model, objective, train, *how, progress=False)

    def scores(self, fitted: Kronecker, case: Case, damping: float | None) -> Tensor:
        return self._influence(fitted, case, damping, ())

    def layer_scores(self, fitted: Kronecker, case: Case, damping: float | None) -> Tensor:
        return self._influence(fitted, case, damping, ("layer",))

    def self_influence(self, fitted: Kronecker, case: Case, damping: float | None) -> Tensor:
        return self_influence(*self._asked(case, case.train), fitted, damping, progress=False)

    def _influence(self, fitted: Kronecker, case: Case, damping: float | None, keep: tuple[str, ...]) -> Tensor:
        queries = batches(case, case.queries)
        return influence(*self._asked(case, case.train), queries, fitted, damping, keep=keep, progress=False)

    def _asked(self, case: Case, examples: Examples) -> tuple[nn.Module, Objective, Data]:
        return case.model, OBJECTIVES[case.loss](), batches(case, examples)


def batches(case: Case, examples: Examples) -> list[tuple[Tensor | dict[str, Tensor], Tensor]]:
    """(inputs, targets) as inflib's objectives take them: for tokens, the next one at each place, or −100."""
    found: list[tuple[Tensor | dict[str, Tensor], Tensor]] = []
    for x, y in zip(examples.inputs.split(case.batch_size), examples.targets.split(case.batch_size), strict=True):
        if case.loss == "next token":
            inputs = {
                "input_ids": x[:, :-1],
                "attention_mask": (x[:, 1:] != PAD).long(),
            }  # a sequence's last is no input
            found.append((inputs, torch.where(y[:, 1:], x[:, 1:], IGNORED)))
        else:
            found.append((x, y))
    return found
