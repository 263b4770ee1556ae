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
from inflib.comparison import _summed
from inflib.hooks import Pair
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


def test_a_few_rows_are_held_against_the_same_size_as_many() -> None:
    """What the difference to autograd is relative to: too large a one would let every fault pass."""
    draw = torch.Generator().manual_seed(0)
    for rows, (o, i) in ((2, (40, 50)), (3, (40, 50)), (90, (4, 5))):
        pair = Pair(torch.randn(rows, 1, i, generator=draw), torch.randn(rows, 1, o, generator=draw))
        weights = torch.randn(rows, generator=draw)
        total, size = _summed(pair, weights)
        g, a = (weights[:, None] * pair.g[:, 0]), pair.a[:, 0]
        torch.testing.assert_close(total, g.T @ a)
        torch.testing.assert_close(size, (g.abs().T @ a.abs()).norm())


class Stronger(nn.Linear):
    """Its gradient is a thousandth larger than what a and g say."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, 1.001 * self.weight, self.bias)


@pytest.mark.parametrize("rows", [2, 300])
def test_a_thousandth_is_noticed_in_few_rows_as_in_many(rows: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Stronger(60, 50), nn.Tanh(), nn.Linear(50, 3)).eval()
    with pytest.raises(ValueError, match=r"layer '0'"):
        capture(model, SquaredError(), torch.randn(rows, 60), torch.randn(rows, 3))


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


# --- what arrives in a look are the batch's own gradients ----------------------------------------------------------------


class Passes(torch.autograd.Function):
    """x, with a note of every gradient that passes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, passed: deque[int]) -> Tensor:
        ctx.passed = passed
        return x.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        ctx.passed.append(len(g))
        return g, None


class Passing(Counted):
    def __init__(self) -> None:
        super().__init__()
        self.passed = deque[int]()

    def forward(self, x: Tensor) -> Tensor:
        return Passes.apply(super().forward(x), self.passed)


@pytest.mark.parametrize(("size", "parts"), [(1, 1), (2, 2), (5, 3)])
def test_a_look_takes_a_backward_pass_for_each_part_and_one_to_compare_and_none_besides(size: int, parts: int) -> None:
    model = Passing().eval()
    capture(model, SquaredError(), *data(size))
    assert list(model.passed) == [size] * (parts + 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1, 2, 7])
def test_gradients_of_a_batch_looked_at_are_a_plain_pass_s_to_the_last_bit(size: int, dtype: torch.dtype) -> None:
    model, (x, y) = Counted().eval().to(dtype), (part.to(dtype) for part in data(size))
    y[-1] = model(x)[-1].detach()  # of the last no gradient comes, where there are others
    y[0] += 1e5
    proof = Proof(model, select(model), SquaredError())
    looked, plain = (proof.pairs(Batch(0, 0, size, x, y)) for _ in range(2))
    assert model.sizes[-1] == size and bool(looked["up"].g[0].any())
    assert size == 1 or not bool(looked["up"].g[-1].any())
    for name, pair in looked.items():
        assert torch.equal(pair.a, plain[name].a) and torch.equal(pair.g, plain[name].g)


@pytest.mark.parametrize("scale", [1e-150, 1e150])
def test_slopes_of_extreme_sizes_are_taken_back_by_a_pass_of_their_own(scale: float) -> None:
    model, (x, y) = Passing().eval(), data()
    asked = lambda f, y: scale * (f * y).sum(1)  # noqa: E731
    found = capture(model, SquaredError(), x, y, measurement=asked)
    assert list(model.passed) == [5] * 5
    torch.testing.assert_close(found["down"].g[:, 0], scale * y, rtol=1e-12, atol=0)


def test_a_model_in_float16_is_differentiated_at_its_slopes_own_size() -> None:
    class Half(Passing):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.half())

    model = Half().eval().half()
    x, y = data()
    capture(model, SquaredError(), x.half(), y.half())
    assert len(model.passed) == 5


@pytest.mark.parametrize("size", [1, 2, 5])
def test_a_backward_pass_that_is_no_derivative_is_noticed(size: int) -> None:
    """Gradients that are clamped on their way are others at another scale: what arrived could not be scaled back."""

    class Clamped(Counted):
        def forward(self, x: Tensor) -> Tensor:
            h = self.up(x).tanh()
            if h.requires_grad:
                h.register_hook(lambda g: g.clamp(-0.1, 0.1))
            return self.down(h)

    with pytest.raises(ValueError, match=r"layer 'up'.*differs from autograd's"):
        capture(Clamped().eval(), SquaredError(), *data(size))


class Second(nn.Module):
    """The batch is on the layer's second axis; of example n counts the token in place ``order[n]``."""

    def __init__(self, order: list[int]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.l, self.order = nn.Linear(3, 2), torch.tensor(order)

    def forward(self, x: Tensor) -> Tensor:
        return self.l(x.transpose(0, 1))[self.order[: len(x)], torch.arange(len(x))]


@pytest.mark.parametrize("first", range(4))
def test_a_layout_that_no_loss_contradicts_gives_way_to_one_whose_sum_is_right(first: int) -> None:
    """Two tokens change places within a part that is looked at together: only the weighted sum tells the axes apart."""
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(5, 5, 3, generator=g), torch.randn(5, 2, generator=g)
    for second in range(first + 1, 5):
        order = list(range(5))
        order[first], order[second] = second, first
        model = Second(order).eval()
        found = capture(model, SquaredError(), x, y)["l"].matrices()
        slope = model(x).detach() - y
        read = torch.cat([x[torch.arange(5), order], torch.ones(5, 1)], dim=1)
        torch.testing.assert_close(found, slope[:, :, None] * read[:, None], rtol=1e-12, atol=1e-14)


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
