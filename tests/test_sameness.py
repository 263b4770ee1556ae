"""The function a curvature was fitted at is noticed to be another, also where weights and settings are the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from inflib import SquaredError, TrainIndex, ekfac, gauss_newton, influence, kfac, precondition, self_influence
from inflib.sameness import MOST

pytestmark = pytest.mark.usefixtures("float64")
QUIET: dict[str, Any] = {"progress": False}


class Times:
    """A function with a number of its own."""

    def __init__(self, by: float):
        self.by = by

    def __call__(self, x: Tensor) -> Tensor:
        return x * self.by


class Loops(nn.Module):
    """What it computes depends on attributes of many kinds, and it leaves others behind."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down = nn.Linear(3, 4), nn.Linear(4, 2)
        self.loops, self.mask, self.options = 2, torch.ones(4), {"times": 1}
        self.config, self.act = SimpleNamespace(power=1), Times(1.0)
        self.calls, self.cache = 0, torch.ones(1)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if len(self.cache) < len(x):  # grows with the longest that came
            self.cache = torch.ones(len(x))
        h = self.up(x) * self.cache[: len(x), None]
        for _ in range(self.loops):
            h = h.tanh()
        return self.down(self.act(h * self.mask * self.options["times"]) ** self.config.power)


def data(seed: int = 1) -> list[tuple[Tensor, Tensor]]:
    g = torch.Generator().manual_seed(seed)
    return [(torch.randn(n, 3, generator=g), torch.randn(n, 2, generator=g)) for n in (4, 3)]


CHANGES: dict[str, Callable[[Any], Any]] = {
    "a whole number": lambda m: setattr(m, "loops", 3),
    "a tensor": lambda m: setattr(m, "mask", torch.tensor([1.0, 0.0, 1.0, 1.0])),
    "a tensor in place": lambda m: m.mask[1].mul_(2),
    "a whole number in a dict": lambda m: m.options.update(times=2),
    "a configuration": lambda m: setattr(m.config, "power", 2),
    "a function's own number": lambda m: setattr(m.act, "by", 2.0),
    "a hook": lambda m: m.up.register_forward_hook(lambda module, args, output: 2 * output),
    "a hook before": lambda m: m.down.register_forward_pre_hook(lambda module, args: (2 * args[0],)),
    "a class of the same name": lambda m: setattr(
        m, "__class__", type("Loops", (Loops,), {"forward": lambda self, x: self.down(self.up(x))})
    ),
}
KEPT: dict[str, Callable[[Any], Any]] = {
    "nothing": lambda m: None,
    "a count of calls": lambda m: m(torch.ones(1, 3)),
    "a longer cache": lambda m: m(torch.ones(50, 3)),
    "a hook that looks": lambda m: m.up.register_forward_hook(lambda module, args, output: None),
    "a note": lambda m: setattr(m, "epoch", 7),
    "train mode, which changes nothing here": lambda m: m.train(),
}
ASK: dict[str, Callable[[Any, Any, Any], Any]] = {
    "influence": lambda m, C, _: influence(m, SquaredError(), data(), data(2), C, **QUIET),
    "self_influence": lambda m, C, _: self_influence(m, SquaredError(), data(), C, **QUIET),
    "precondition": lambda m, C, _: precondition(m, SquaredError(), data(2), C, **QUIET),
    "TrainIndex.build": lambda m, C, _: TrainIndex.build(m, SquaredError(), data(), C, **QUIET),
    "index.influence": lambda m, _, index: index.influence(m, SquaredError(), data(2)),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("ask", ASK)
def test_another_function_with_the_same_weights_is_refused(ask: str, change: str) -> None:
    model = Loops().eval()
    curvature = ekfac(model, SquaredError(), data(), **QUIET)
    index = TrainIndex.build(model, SquaredError(), data(), curvature, **QUIET)
    ASK[ask](model, curvature, index)
    CHANGES[change](model)
    with pytest.raises(ValueError, match=r"outputs for the first example .* expected the same function.*fit again"):
        ASK[ask](model, curvature, index)


@pytest.mark.parametrize("fit", [kfac, gauss_newton])
def test_every_fit_keeps_its_first_example(fit: Any) -> None:
    model = Loops().eval()
    curvature = fit(model, SquaredError(), data(), **QUIET)
    model.loops = 3
    with pytest.raises(ValueError, match="expected the same function"):
        ASK["influence"](model, curvature, None)


@pytest.mark.parametrize("change", KEPT)
def test_what_leaves_the_function_as_it_is_is_let_be(change: str) -> None:
    model = Loops().eval()
    curvature = ekfac(model, SquaredError(), data(), **QUIET)
    before = ASK["influence"](model, curvature, None)
    KEPT[change](model)
    assert torch.allclose(ASK["influence"](model, curvature, None), before, rtol=1e-12)


def test_a_number_put_back_and_a_fit_made_anew_are_right() -> None:
    model = Loops().eval()
    curvature = ekfac(model, SquaredError(), data(), **QUIET)
    model.loops = 3
    ASK["influence"](model, ekfac(model, SquaredError(), data(), **QUIET), None)
    model.loops = 2
    again = ekfac(model, SquaredError(), data(), **QUIET)
    assert torch.equal(ASK["influence"](model, curvature, None), ASK["influence"](model, again, None))


class Pairs(nn.Module):
    """A model that takes no batch of one: its inputs come in twos."""

    def __init__(self) -> None:
        super().__init__()
        self.l, self.times = nn.Linear(3, 2), 1

    def forward(self, x: Tensor) -> Tensor:
        return self.l(x.reshape(2, -1, 3).reshape(-1, 3)) * self.times


def test_a_model_that_takes_no_example_alone_is_asked_about_its_batch() -> None:
    model, batches = Pairs().eval(), data()[:1]
    curvature = ekfac(model, SquaredError(), batches, **QUIET)
    influence(model, SquaredError(), batches, batches, curvature, **QUIET)
    model.times = 2
    with pytest.raises(ValueError, match="expected the same function"):
        influence(model, SquaredError(), batches, batches, curvature, **QUIET)


def test_a_model_of_many_fits_keeps_the_last_examples() -> None:
    from inflib.sameness import _KEPT

    model = Loops().eval()
    for _ in range(MOST + 2):
        model.up.weight.data += 0.1
        curvature = ekfac(model, SquaredError(), data(), **QUIET)
    assert len(_KEPT[model]) == MOST and curvature.facts.weights in _KEPT[model]


# --- a batch's words and arrays ---------------------------------------------------------------------------------------


class Reads(nn.Module):
    """Words looked up in a table, or an array made a tensor."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.l, self.table = nn.Linear(3, 2), {w: torch.randn(3) for w in "abc"}

    def forward(self, words: Any) -> Tensor:
        rows = torch.from_numpy(words) if isinstance(words, np.ndarray) else torch.stack([self.table[w] for w in words])
        return self.l(rows)


class Turns:
    """A batch whose inputs, no tensors, come in another order each time, beside the same targets."""

    def __init__(self, words: Any):
        self.words, self.walks = words, 0

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[Any]:
        self.walks += 1
        yield {"words": self.words[:: 1 if self.walks % 2 else -1]}, torch.ones(3, 2)


@pytest.mark.parametrize("words", [["a", "b", "b"], np.arange(9.0).reshape(3, 3)], ids=["words", "an array"])
def test_inputs_that_are_no_tensors_are_seen_to_change_places(words: Any) -> None:
    with pytest.raises(ValueError, match="train does not keep its order"):
        ekfac(Reads().eval(), SquaredError(), Turns(words), labels="sampled", **QUIET)
    ekfac(Reads().eval(), SquaredError(), [({"words": words}, torch.ones(3, 2))], labels="sampled", **QUIET)
