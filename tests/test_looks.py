"""A batch that is looked at is recorded once, and read from that: the same numbers, no pass more, no fault less."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import pytest
import torch
from networks import ZOO, Conv1D, zoo
from torch import Tensor, nn
from torch.autograd.graph import allow_mutation_on_saved_tensors

from inflib import SquaredError, capture, identity, influence, register, untied
from inflib.batches import Batch
from inflib.layers import _KINDS, positions_last
from inflib.proof import Proof
from inflib.selection import select

pytestmark = pytest.mark.usefixtures("float64")


@pytest.fixture(scope="module", autouse=True)
def conv1d() -> Any:
    register(Conv1D, positions_last, positions_last, transposed=True)
    yield
    del _KINDS[Conv1D]


@pytest.mark.parametrize("animal", ZOO)
def test_a_batch_that_is_looked_at_gives_the_numbers_that_it_gives_without(animal: str) -> None:
    case = zoo(animal, "SquaredError")
    batch = Batch(0, 0, len(case.y), case.x, case.y)
    proof = Proof(case.model, select(case.model), case.objective)
    looked = proof.pairs(batch)
    assert proof._most == batch.size
    plain = proof.pairs(batch)
    assert list(looked) == list(plain)
    assert looked.lengths == plain.lengths
    for name, pair in looked.items():
        for side, other in zip(pair, plain[name], strict=True):
            if isinstance(side, Tensor):
                torch.testing.assert_close(side, other, rtol=1e-13, atol=1e-15)
            else:
                assert torch.equal(side.ids, other.ids)


class Counted(nn.Module):
    """Three layers; ``sizes`` of the batches that it was called on."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down = nn.Linear(3, 4), nn.Linear(4, 2)
        self.sizes = deque[int]()  # no setting of the model, as a list would be

    def forward(self, x: Tensor) -> Tensor:
        self.sizes.append(len(x))
        return self.down(self.up(x).tanh())


def data(size: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(size, 3, generator=g), torch.randn(size, 2, generator=g)


def test_a_look_takes_one_pass_that_is_the_batchs_own_and_one_among_copies() -> None:
    model = Counted().eval()
    capture(model, SquaredError(), *data())
    assert list(model.sizes) == [5, 5, 1, 1]
    model.sizes.clear()
    proof = Proof(model, select(model), SquaredError(), batches=2)
    for index in range(2):
        proof.pairs(Batch(index, 5 * index, 5, *data(seed=index)))
    assert list(model.sizes) == [5, 5, 1, 1, 5, 1, 1]  # of the later batch none among copies


# --- models that change in place what a layer has read: their weights' gradients need a pass of their own --------------


class Residual(nn.Module):
    """What ``up`` reads is added to in place; ``also`` is done with its weight outside of it."""

    def __init__(self, also: Callable[[nn.Module, Tensor], Tensor] = lambda model, h: h, flips: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down, self.also, self.flips = nn.Linear(3, 3), nn.Linear(3, 2), also, flips
        self.sizes = deque[int]()

    def forward(self, x: Tensor) -> Tensor:
        self.sizes.append(len(x))
        h = x.flip(0) * 1.0 if self.flips else x * 1.0
        h += self.up(h).tanh()
        h = self.also(self, h)
        return self.down(h.flip(0) if self.flips else h)


def test_a_layer_whose_input_is_changed_in_place_is_compared_by_a_pass_of_its_own() -> None:
    model, (x, y) = Residual().eval(), data()
    found = capture(model, SquaredError(), x, y)
    assert model.sizes.count(5) == 5  # recorded and among copies, twice: weights ask for nothing then; and compared
    for n in range(5):
        with allow_mutation_on_saved_tensors():
            loss = (model(x[n : n + 1]) - y[n : n + 1]).square().sum() / 2
            own = torch.autograd.grad(loss, list(model.parameters()))
        for name, (w, b) in zip(("up", "down"), (own[:2], own[2:]), strict=True):
            torch.testing.assert_close(found[name].matrices()[n], torch.cat([w, b[:, None]], dim=1))


@pytest.mark.parametrize("fault", ["used outside", "rows in another order"])
def test_faults_of_such_a_model_are_noticed_too(fault: str) -> None:
    outside = lambda model, h: h @ model.up.weight  # noqa: E731
    model = (Residual(outside) if fault == "used outside" else Residual(flips=True)).eval()
    with pytest.raises(ValueError, match="layer 'up'"):
        capture(model, SquaredError(), *data())


# --- what stands in for the weights is no part of the model ---------------------------------------------------------------


def test_hooks_on_weights_do_not_run_and_no_gradient_is_left() -> None:
    model, ran = Counted().eval(), []
    model.up.weight.register_hook(lambda g: ran.append(g) or g * 0)
    capture(model, SquaredError(), *data())
    assert not ran
    assert all(p.grad is None and p.requires_grad and p.grad_fn is None for p in model.parameters())


def test_frozen_and_untied_layers_are_looked_at_as_others_are() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.up, self.down = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
            self.down.weight = self.up.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.down(self.up(x).tanh() @ self.up.weight)[:, :2]

    x, y = data()
    with pytest.raises(ValueError, match="differs from autograd's"):
        capture(Tied().eval(), SquaredError(), x, y)
    assert set(capture(Tied().eval(), SquaredError(), x, y, layers=untied("up"))) == {"up"}
    frozen = Counted().eval().requires_grad_(False)
    loose = Counted().eval()
    one, other = (capture(m, SquaredError(), x, y) for m in (frozen, loose))
    assert all(torch.equal(one[k].g, other[k].g) for k in other)
    assert not any(p.requires_grad for p in frozen.parameters())


def test_scores_of_batches_looked_at_are_those_of_a_session_that_has_looked() -> None:
    model, objective, batches = Counted().eval(), SquaredError(), [data(4, 1), data(5, 2), data(3, 3)]
    plain = identity(model, objective)
    first = influence(model, objective, batches, batches[:1], plain, progress=False)
    assert torch.equal(influence(model, objective, batches, batches[:1], plain, progress=False), first)
