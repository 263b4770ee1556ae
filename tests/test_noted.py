"""What a forward pass writes into its modules' attributes, and random numbers from elsewhere than torch."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from inflib import CrossEntropy, TrainIndex, capture, ekfac, gauss_newton, identity, influence, save
from inflib.fingerprints import hash_weights

pytestmark = pytest.mark.usefixtures("float64")
QUIET: dict[str, Any] = {"progress": False}


class Noting(nn.Module):
    """Two layers, and something that its forward writes down."""

    def __init__(self, write: Callable[[Any, Tensor], None], **held: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down, self.write = nn.Linear(3, 4), nn.Linear(4, 3), staticmethod(write)
        for name, value in held.items():
            setattr(self, name, value)

    def forward(self, x: Tensor) -> Tensor:
        self.write.__func__(self, x)
        return self.down(torch.tanh(self.up(x)))


def kept(model: Any, x: Tensor) -> None:
    model.kept = {"x": x, "mean": float(x.mean())}


def flagged(model: Any, x: Tensor) -> None:
    model.ready, model.stage = True, "running"


WRITERS: dict[str, tuple[Callable[[Any, Tensor], None], Callable[[], dict[str, Any]]]] = {
    "a list grows": (lambda m, x: m.history.append(x.mean().item()), lambda: {"history": []}),
    "a full list grows": (lambda m, x: m.history.append(x.mean().item()), lambda: {"history": [0.5, 0.1]}),
    "a dict of lists": (lambda m, x: m.seen["mean"].append(float(x.mean())), lambda: {"seen": {"mean": []}}),
    "a dict of its own kind": (lambda m, x: m.seen["n"].append(0.5), lambda: {"seen": defaultdict(list)}),
    "a number": (lambda m, x: setattr(m, "last", float(x.mean())), lambda: {"last": 0.0}),
    "a number that was None": (lambda m, x: setattr(m, "last", float(x.mean())), lambda: {"last": None}),
    "a number that was not there": (lambda m, x: setattr(m, "last", float(x.mean())), dict),
    "numbers beside tensors": (kept, dict),
    "flags and words": (flagged, lambda: {"ready": False, "stage": "new"}),
}


def data() -> list[tuple[Tensor, Tensor]]:
    torch.manual_seed(1)
    x, y = torch.randn(7, 3), torch.arange(7) % 3
    return [(x[:4], y[:4]), (x[4:], y[4:])]


@pytest.mark.parametrize("how", WRITERS)
def test_what_a_forward_writes_down_is_no_change_of_the_model(how: str) -> None:
    write, held = WRITERS[how]
    model, quiet, batches = Noting(write, **held()).eval(), Noting(lambda m, x: None).eval(), data()
    for fit in (ekfac, identity, gauss_newton):
        curvature = fit(model, CrossEntropy(), batches, **QUIET)
        for _ in range(2):
            model(batches[0][0])  # the user's own pass, which writes too
            found = influence(model, CrossEntropy(), batches, batches, curvature, 0.1, **QUIET)
        same = fit(quiet, CrossEntropy(), batches, **QUIET)
        torch.testing.assert_close(found, influence(quiet, CrossEntropy(), batches, batches, same, 0.1, **QUIET))


def test_a_file_is_of_the_model_that_has_written_nothing_yet(tmp_path: Any) -> None:
    write, held = WRITERS["a list grows"]
    model, batches = Noting(write, **held()).eval(), data()
    model(batches[0][0])
    save(
        TrainIndex.build(model, CrossEntropy(), batches, ekfac(model, CrossEntropy(), batches, **QUIET)), tmp_path / "i"
    )
    fresh = Noting(write, **held()).eval()
    fresh.load_state_dict(model.state_dict())
    curvature = ekfac(model, CrossEntropy(), batches, **QUIET)
    assert curvature.facts.weights == hash_weights(fresh)
    assert influence(fresh, CrossEntropy(), batches, batches, curvature, **QUIET).shape == (7, 7)


def test_a_setting_that_no_forward_writes_is_one_still() -> None:
    model, batches = Noting(lambda m, x: None, scales=[0.5, 1.0]).eval(), data()
    curvature = ekfac(model, CrossEntropy(), batches, **QUIET)
    model.scales.append(2.0)
    with pytest.raises(ValueError, match="its modules or their settings differ"):
        influence(model, CrossEntropy(), batches, batches, curvature, **QUIET)


def test_a_state_that_makes_the_next_output_another_is_refused_and_no_tensor_of_vmaps_is_left_in_it() -> None:
    class Remembers(Noting):
        def forward(self, x: Tensor) -> Tensor:
            out = super().forward(x + self.state)
            self.state = 0.9 * self.state + 0.1 * x.detach().mean(0)
            return out

    model, batches = Remembers(lambda m, x: None, state=torch.zeros(3)).eval(), data()
    for fit in (ekfac, gauss_newton):
        with pytest.raises(ValueError, match=r"expected (it|them) to depend on its own inputs? alone"):
            fit(model, CrossEntropy(), batches, **QUIET)
        assert model(batches[0][0]).isfinite().all()  # no tensor of vmap's was left in it


# --- random numbers ---------------------------------------------------------------------------------------------------


def noise(model: Any, x: Tensor) -> Tensor:
    return torch.as_tensor(np.random.standard_normal(tuple(x.shape)))  # noqa: NPY002


DRAWN: dict[str, tuple[Callable[[Any, Tensor], Any], dict[str, Any]]] = {
    "NumPy's": (noise, {}),
    "Python's": (lambda m, x: random.gauss(0, 1), {}),
    "torch's, of its own": (lambda m, x: torch.randn(x.shape, generator=m.own), {"own": torch.Generator()}),
    "NumPy's, of its own": (lambda m, x: m.own.normal(), {"own": np.random.default_rng(0)}),
}


class Noisy(Noting):
    """Adds what is drawn to its input, as many times as ``strength`` says."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + self.strength * self.write.__func__(self, x))


@pytest.mark.parametrize("how", DRAWN)
@pytest.mark.parametrize("size", [1, 4])
def test_random_numbers_are_noticed_wherever_they_are_drawn(how: str, size: int) -> None:
    draw, held = DRAWN[how]
    model, (x, y) = Noisy(draw, strength=1.0, **held).eval(), data()[0]
    batches = [(x[n : n + size], y[n : n + size]) for n in range(0, 4, size)]
    plain = identity(Noting(lambda m, x: None).eval(), CrossEntropy(), batches, **QUIET)
    assert plain.layers == ("up", "down")
    with pytest.raises(RuntimeError, match=r"draws random numbers in its forward pass.*expected the same output"):
        ekfac(model, CrossEntropy(), batches, **QUIET)
    with pytest.raises(RuntimeError, match=r"draws random numbers in its forward pass.*expected the same output"):
        capture(model, CrossEntropy(), *batches[0])


@pytest.mark.parametrize("how", DRAWN)
def test_random_numbers_that_come_to_nothing_are_let_be(how: str) -> None:
    """A layer that may be dropped in training draws in eval mode too, and does not look."""
    draw, held = DRAWN[how]
    model, batches = Noisy(draw, strength=0.0, **held).eval(), data()
    assert ekfac(model, CrossEntropy(), batches, **QUIET).layers == ("up", "down")
