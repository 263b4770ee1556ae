"""An example's output is its own: every way in which others can have a say in it, and what only looks like one."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from inflib import SquaredError, capture, ekfac
from inflib.batches import Batch
from inflib.independence import check_independence
from inflib.proof import Proof
from inflib.selection import select

pytestmark = pytest.mark.usefixtures("float64")
COPIES, COUNT = "the output of example \\d changes by .* replaced by copies of it", "among 6 copies of it is another"
B = 6


class Model(nn.Module):
    """A layer, and what ``company`` makes of its outputs (or inputs) that no gradient shows."""

    def __init__(self, company: Callable[[Tensor], Tensor], before: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.l, self.company, self.before = nn.Linear(3, 2), company, before
        self.sizes = deque[int]()  # no setting of the model, as a list would be

    def forward(self, x: Tensor) -> Tensor:
        self.sizes.append(len(x))
        if self.before:
            return self.l(self.company(x))
        f = self.l(x)
        return f * self.company(x)


def data(size: int = B, seed: int = 1) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(size, 3, generator=g), torch.randn(size, 2, generator=g)


def expert(x: Tensor) -> Tensor:
    """As many experts as examples in ``data``, one for each of them: alike go to the same, (B,)."""
    return (x[:, 0] * 1e4).long() % 9973


def before_it(x: Tensor) -> Tensor:
    """How many earlier examples of the batch want the same expert, (B,)."""
    wants = expert(x)
    return (wants[:, None] == wants).tril(-1).sum(1)


def room(places: Callable[[int], int]) -> Callable[[Tensor], Tensor]:
    """Experts have places; whoever finds none goes without."""
    return lambda x: (before_it(x) < places(len(x)))[:, None].to(x)


def ranked(x: Tensor) -> Tensor:
    return x[:, :1].argsort(0).argsort(0) + 1.0


def clipped(x: Tensor) -> Tensor:
    """All are made smaller where the batch's total is too large; that of ``data`` is not."""
    return torch.where(x[:, 0].sum() > 3.0, 0.5, 1.0).to(x)


NOTICED: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    **{f"room for {k}": (room(lambda size, k=k: k), COPIES) for k in range(1, B)},
    "half as much room as examples": (room(lambda size: -(-size // 2)), COPIES),
    "an eighth, at least one": (room(lambda size: max(1, size // 8)), COPIES),
    "ranks": (ranked, COPIES),
    "ranks from above": (lambda x: (-x[:, :1]).argsort(0).argsort(0) + 1.0, COPIES),
    "mean": (lambda x: x.mean(0, keepdim=True)[:, :1], COPIES),
    "sum": (lambda x: x.sum(0, keepdim=True)[:, :1], COPIES),
    "largest": (lambda x: x[:, :1].amax(0, keepdim=True), COPIES),
    "smallest": (lambda x: x[:, :1].amin(0, keepdim=True), COPIES),
    "the other of a pair": (lambda x: x.flip(0)[:, :1], COPIES),
    "half of the others": (lambda x: x.roll(3, 0)[:, :1] + x[:, :1], COPIES),
    "first of the batch": (lambda x: x[:1, :1], COPIES),
    "last of the batch": (lambda x: x[-1:, :1], COPIES),
    "how many are alike": (lambda x: (expert(x)[:, None] == expert(x)).sum(1, keepdim=True).to(x), COPIES),
    "over their number": (lambda x: x.new_full((1, 1), 1 / len(x)), COUNT),
    "root of their number": (lambda x: x.new_full((1, 1), len(x) ** 0.5), COUNT),
}


@pytest.mark.parametrize("fault", NOTICED)
@pytest.mark.parametrize("seed", range(3))
def test_what_others_do_to_an_output_is_noticed(fault: str, seed: int) -> None:
    company, says = NOTICED[fault]
    x, y = data(seed=seed)
    capture(Model(lambda x: torch.ones(1, 1)).eval(), SquaredError(), x, y)
    with pytest.raises(ValueError, match=says):
        capture(Model(lambda x: company(x).detach()).eval(), SquaredError(), x, y)


@pytest.mark.parametrize("fault", ["mean", "the other of a pair", "first of the batch", "ranks", "room for 1"])
def test_it_is_noticed_in_a_batch_of_two(fault: str) -> None:
    with pytest.raises(ValueError, match=COPIES):
        capture(Model(lambda x: NOTICED[fault][0](x).detach()).eval(), SquaredError(), *data(2))


def test_room_that_only_a_full_batch_lacks_is_seen_though_every_example_of_it_found_some() -> None:
    """Each alone has room, and so has each of these: what copies of it would not have."""
    x, _ = data()
    for places in range(1, B):
        assert bool((room(lambda size, k=places: k)(x) == 1).all())
        assert all(bool((room(lambda size, k=places: k)(x[n : n + 1]) == 1).all()) for n in range(B))


def squeezing(x: Tensor) -> Tensor:
    """Right for two and more: of one, the features are taken for examples."""
    x = x.squeeze()
    return (x if x.ndim == 2 else x[:, None].expand(-1, 3)).tanh()


def only_several(x: Tensor) -> Tensor:
    if len(x) == 1:
        raise IndexError("written for batches")
    return x


def of_one_size(x: Tensor) -> Tensor:
    return x.reshape(B, 3) + torch.zeros(B, 1)


def otherwise_alone(x: Tensor) -> Tensor:
    return x * 2 if len(x) == 1 else x


SOUND = [squeezing, only_several, of_one_size, otherwise_alone]


@pytest.mark.parametrize("habit", SOUND, ids=lambda habit: habit.__name__)
def test_a_model_that_is_not_written_for_a_batch_of_one_is_taken(habit: Callable[[Tensor], Tensor]) -> None:
    x, y = data()
    model = Model(habit, before=True).eval()
    found = capture(model, SquaredError(), x, y)["l"]
    assert model.sizes.count(1) == 2  # it was asked, and did not decide
    f = model(x)
    torch.testing.assert_close(found.matrices(), (f - y)[:, :, None] * found.a, rtol=1e-12, atol=1e-12)


class Texts(nn.Module):
    """Padding behind the longest of a batch is cut off before anything is computed; the answer is of an example."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.l = nn.Linear(3, 2)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        T = int(mask.sum(1).max())
        f = self.l(x[:, :T]).tanh() * mask[:, :T, None]
        return f.sum(1)


def test_padding_that_is_cut_by_the_batchs_longest_is_taken() -> None:
    lengths, g = torch.tensor([2, 5, 3, 4]), torch.Generator().manual_seed(0)
    mask = (torch.arange(7) < lengths[:, None]).to(torch.get_default_dtype())
    x, y = torch.randn(4, 7, 3, generator=g), torch.randn(4, 2, generator=g)
    model = Texts().eval()
    found = capture(model, SquaredError(), (x, mask), y)["l"].matrices()
    for n in range(4):
        loss = (model(x[n : n + 1], mask[n : n + 1]) - y[n : n + 1]).square().sum() / 2
        own = torch.cat([w.reshape(2, -1) for w in torch.autograd.grad(loss, [model.l.weight, model.l.bias])], dim=1)
        torch.testing.assert_close(found[n], own, rtol=1e-12, atol=1e-12)


def walked(model: Model, objective: SquaredError, batches: list[tuple[Tensor, Tensor]]) -> list[int]:
    """The sizes of what the model was called on, in a pass over these batches; 1: asked alone."""
    model.sizes.clear()
    proof = Proof(model, select(model), objective, batches=len(batches))
    for index, (x, y) in enumerate(batches):
        proof.pairs(Batch(index, index * len(y), len(y), x, y))
    return list(model.sizes)


def test_a_pass_asks_one_example_among_copies_and_of_each_batch_it_looks_at_two_alone() -> None:
    model = Model(lambda x: torch.ones(1, 1)).eval()
    sizes = walked(model, SquaredError(), [data(seed=seed) for seed in range(4)])
    assert sizes[:4] == [B, B, 1, 1]
    assert sorted(sizes[4:]) == [1, 1, B, B, B]


def test_of_a_first_batch_of_two_the_one_asked_among_copies_is_not_asked_alone() -> None:
    model = Model(lambda x: torch.ones(1, 1)).eval()
    pair = [tuple(part[:2] for part in data(seed=seed)) for seed in range(2)]
    assert walked(model, SquaredError(), pair) == [2, 2, 1, 2, 1, 1]


def test_a_later_batch_that_is_larger_is_asked_among_copies_too() -> None:
    """Room for four: a first batch of three cannot lack it."""
    model = Model(room(lambda size: 4)).eval()
    with pytest.raises(ValueError, match=COPIES):
        ekfac(model, SquaredError(), [data(3), data(5, seed=2)], progress=False)


def test_a_look_at_a_later_batch_does_not_stand_for_one_at_a_first() -> None:
    model, objective = Model(lambda x: torch.ones(1, 1)).eval(), SquaredError()
    first, later = (data(seed=seed) for seed in range(2))
    whole = [B, B, 1, 1]
    assert walked(model, objective, [first, later]) == [*whole, B, 1, 1]
    assert walked(model, objective, [later]) == whole
    assert walked(model, objective, [later]) == [B]  # which has been looked at
    assert walked(model, objective, [later, first]) == [B, B]  # a first look stands for a later one


def test_what_the_size_of_a_batch_does_to_rounding_is_no_fault() -> None:
    """Alone an output is another by more than float64 allows; copies decide, and they are rounded alike."""
    model = Model(lambda x: torch.full((1, 1), 1 + 1e-3 / len(x))).eval()
    capture(model, SquaredError(), *data())
    assert model.sizes.count(2) == 1  # nor is a pair of them far enough from six


class Taught(nn.Module):
    """Whose last example takes from the first."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.out = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(x + torch.cat([torch.zeros_like(x[1:]), x[:1]]) if len(x) > 1 else x)


@pytest.mark.parametrize("crowded", [True, False])
def test_the_last_of_two_examples_is_asked_with_copies_or_without(crowded: bool) -> None:
    model, x = Taught(), torch.randn(2, 3)
    draw = np.random.Generator(np.random.Philox(0))
    with pytest.raises(ValueError, match=r"example 1"):
        check_independence(model, Batch(0, 0, 2, x, x), model(x).detach(), draw, crowded=crowded)
