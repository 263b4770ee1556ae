"""A plan of data and layers as they come: loaders that draw, a large batch late, layers chosen with a word on how."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest
import torch
from networks import batches, make
from peaks import Sequences, sequences
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.flop_counter import FlopCounterMode

from inflib import CrossEntropy, ekfac, everything, influence, plan, untied, without_biases
from inflib.plan.probe import surveyed

STAGES = import_module("inflib.plan.stages")
pytestmark = pytest.mark.usefixtures("float64")


def test_a_plan_leaves_the_random_generator_as_it_was_where_a_loader_draws_from_it() -> None:
    case = make(widths=(20, 16, 12), n=60)
    loader = DataLoader(TensorDataset(case.x, case.y), batch_size=8)
    before = torch.get_rng_state()
    plan(case.model, case.objective, loader, queries=loader)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("at", [0, 2, 3, 5])
def test_the_largest_batch_is_among_those_tried(at: int) -> None:
    sizes = [2] * 6
    sizes[at] = 50
    every = [(torch.zeros(n, 3), torch.zeros(n)) for n in sizes]
    some, units = surveyed(every)
    assert [len(x) for x, _ in some] == [*sizes[:2], max(sizes[2:])]
    assert units.first == [x.numel() for x, _ in some]
    assert (units.whole, units.examples) == (3 * 60, 60)


def test_long_queries_that_come_late_are_in_the_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    about, train, queries = (Sequences().eval(), CrossEntropy()), sequences((4, 4)), sequences((16, 2), *[(4, 512)] * 4)
    C = ekfac(*about, train, progress=False)
    monkeypatch.setattr(STAGES, "LONG", 0.0)  # so that the short ones alone are tried
    found = plan(*about, train, queries=queries)["scores"].operations
    influence(*about, train, queries, C, 1.0, progress=False)  # which proves the queries' rows, once a session
    with FlopCounterMode(display=False) as counter:
        influence(*about, train, queries, C, 1.0, progress=False)
    assert found == pytest.approx(counter.get_total_flops(), rel=0.1)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.e, self.h = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
        self.h.weight = self.e.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.h(torch.tanh(self.e(ids)).sum(1))


@pytest.mark.parametrize("how", ["without biases", "frozen bias", "untied", "all", "everything"])
def test_a_plan_is_of_the_layers_that_the_fit_takes(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model: nn.Module = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).eval()
    inputs, layers = torch.randn(20, 5), without_biases() if how == "without biases" else None
    if how == "frozen bias":
        model[2].bias.requires_grad_(False)
    elif layers is None:
        model, inputs = Tied().eval(), torch.randint(0, 7, (20, 3))
        layers = {"untied": untied("h"), "all": "all", "everything": everything()}[how]
    train = batches(inputs, torch.randint(0, 3, (20,)), 8)
    C = ekfac(model, CrossEntropy(), train, layers, progress=False)
    tried: list[Any] = []

    def fitted(*args: Any) -> Any:
        tried.append(real(*args))
        return tried[-1]

    real = STAGES._fitted
    monkeypatch.setattr(STAGES, "_fitted", fitted)
    found = plan(model, CrossEntropy(), train, layers, queries=train)
    assert found["fit"].disk == sum(x.nbytes for part in (C.eigenvalues, C.Q_S, C.Q_A) for x in part.values())
    assert [c.shapes for c in tried] == [C.shapes]
    assert [c.facts.untied for c in tried] == [C.facts.untied]
