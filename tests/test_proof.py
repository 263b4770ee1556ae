"""The proof that an example is its own rows: what each part of it notices, and on which batches it looks."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from oracle import assert_close
from torch import Tensor, nn

from inflib import CrossEntropy, RowsNote, SquaredError, TrainIndex, capture, ekfac, identity, influence, self_influence
from inflib.baselines import gradient_cosine
from inflib.batches import Batch
from inflib.proof import Proof
from inflib.selection import select

pytestmark = pytest.mark.usefixtures("float64")


class Linear(nn.Module):
    """One layer; ``rows`` changes the order of its rows, and is undone after it."""

    def __init__(self, before: Any = lambda x: x, after: Any = lambda x: x):
        super().__init__()
        torch.manual_seed(0)
        self.l, self.before, self.after = nn.Linear(3, 2), before, after

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.l(self.before(x)))


def data(*sizes: int, seed: int = 1) -> list[tuple[Tensor, Tensor]]:
    g = torch.Generator().manual_seed(seed)
    return [(torch.randn(n, 3, generator=g), torch.randn(n, 2, generator=g)) for n in sizes]


def swapped(x: Tensor, first: int, second: int) -> Tensor:
    order = list(range(len(x)))
    order[first], order[second] = second, first
    return x[order]


@pytest.mark.parametrize("pair", [(0, 1), (2, 5), (4, 6)])
def test_two_examples_that_change_places_are_noticed_wherever_they_are(pair: tuple[int, int]) -> None:
    model = Linear(lambda x: swapped(x, *pair), lambda x: swapped(x, *pair)).eval()
    with pytest.raises(ValueError, match="layer 'l'"):
        capture(model, SquaredError(), *data(7)[0])


def entry_points(model: nn.Module, batches: Any) -> dict[str, Any]:
    objective, quiet, plain = SquaredError(), {"progress": False}, identity(model, SquaredError())
    sound = [(torch.zeros(1, 3), torch.zeros(1, 2))]
    return {
        "ekfac": lambda: ekfac(model, objective, batches, **quiet),
        "influence, train": lambda: influence(model, objective, batches, sound, plain, **quiet),
        "influence, queries": lambda: influence(model, objective, sound, batches, plain, **quiet),
        "self_influence": lambda: self_influence(model, objective, batches, plain, **quiet),
        "index": lambda: TrainIndex.build(model, objective, batches, plain, **quiet),
        "index, queries": lambda: TrainIndex.build(model, objective, sound, plain, **quiet).prepare(
            model, objective, batches
        ),
        "cosine": lambda: gradient_cosine(model, objective, sound, batches, **quiet),
    }


@pytest.mark.parametrize("name", entry_points(nn.Linear(3, 2), []))
def test_every_entry_point_looks(name: str) -> None:
    model = Linear(lambda x: x.flip(0), lambda x: x.flip(0)).eval()
    with pytest.raises(ValueError, match="layer 'l'"):
        entry_points(model, data(4))[name]()
    entry_points(Linear().eval(), data(4))[name]()


@pytest.mark.parametrize("known", [True, False])
def test_a_later_batch_is_looked_at_too(known: bool) -> None:
    later = Linear(lambda x: x.flip(0) if len(x) == 5 else x, lambda x: x.flip(0) if len(x) == 5 else x).eval()
    batches = data(4, 5)

    class Unknown:
        def __iter__(self) -> Any:
            return iter(batches)

    with pytest.raises(ValueError, match="layer 'l'"):
        ekfac(later, SquaredError(), batches if known else Unknown(), progress=False)


def test_which_later_batch_is_looked_at_depends_on_the_seed_alone() -> None:
    def looked(seed: int, batches: int | None) -> list[int]:
        model = Linear().eval()
        proof, seen = Proof(model, select(model), SquaredError(), batches=batches, seed=seed), []
        for index, (x, y) in enumerate(data(*[3] * 40)):
            if proof._due(Batch(index, 3 * index, 3, x, y)):
                seen.append(index)
                proof._most = 3
        return seen

    assert looked(0, 40) == looked(0, 40)
    assert len({tuple(looked(seed, 40)) for seed in range(8)}) > 4
    assert all(len(looked(seed, 40)) == 2 and looked(seed, 40)[0] == 0 for seed in range(8))
    assert all(looked(seed, None)[:2] == [0, 1] for seed in range(8))  # a second batch is looked at for certain
    assert all(len(looked(seed, None)) < 20 for seed in range(8))  # and of all 40, 1 + Σ 1/k ≈ 5 on average


class Flat(nn.Module):
    """(B, T, 3) as (B · T, 3), blocks or strides."""

    def __init__(self, strides: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.l, self.strides = nn.Linear(3, 2), strides

    def forward(self, x: Tensor) -> Tensor:
        if self.strides:
            return self.l(x.transpose(0, 1).flatten(0, 1)).tanh().unflatten(0, (-1, len(x))).sum(0)
        return self.l(x.flatten(0, 1)).tanh().unflatten(0, (len(x), -1)).sum(1)


def texts(*shapes: tuple[int, int]) -> list[tuple[Tensor, Tensor]]:
    g = torch.Generator().manual_seed(2)
    return [(torch.randn(*shape, 3, generator=g), torch.randn(shape[0], 2, generator=g)) for shape in shapes]


@pytest.mark.parametrize("strides", [True, False])
@pytest.mark.parametrize("shapes", [[(4, 1), (4, 3)], [(4, 1), (4, 1), (4, 2), (4, 3)], [(1, 3), (3, 2)], [(3, 3)]])
def test_rows_that_only_later_are_more_than_examples_are_proved_then(strides: bool, shapes: list) -> None:
    model, batches = Flat(strides).eval(), texts(*shapes)
    found = influence(model, SquaredError(), batches, batches, identity(model, SquaredError()), progress=False)
    rows = []
    for x, y in batches:
        for n in range(len(x)):
            loss = 0.5 * (model(x[n : n + 1]) - y[n : n + 1]).square().sum()
            rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))]))
    assert_close(found, torch.stack(rows) @ torch.stack(rows).T, 1e-12)


def test_rows_whose_place_changes_between_looks_are_refused() -> None:
    class Turns(Flat):
        def forward(self, x: Tensor) -> Tensor:
            self.strides = x.shape[1] == 2
            return super().forward(x)

    with pytest.raises(ValueError, match=r"layer 'l'.*in batch 1, .* in a batch before; expected one place in all"):
        ekfac(Turns().eval(), SquaredError(), texts((4, 3), (4, 2)), progress=False)


def test_an_unusual_place_is_said_once_by_a_fit() -> None:
    with pytest.warns(
        RowsNote, match=r"layer 'l' has its examples several on the first axis, one example's after"
    ) as n:
        fit = ekfac(Flat().eval(), SquaredError(), texts((4, 3), (4, 2)), progress=False)
    assert len([w for w in n if w.category is RowsNote]) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error", RowsNote)
        influence(Flat().eval(), SquaredError(), texts((4, 3)), texts((2, 2)), fit, progress=False)
        ekfac(Linear().eval(), SquaredError(), data(4), progress=False)


class Leaks(Linear):
    """A trillionth of each example's slope reaches one of them, or of one each: less than any comparison of sums sees."""

    def __init__(self, n: int, whose: str) -> None:
        super().__init__()
        self.n, self.whose = n, whose

    def forward(self, x: Tensor) -> Tensor:
        f = super().forward(x)
        nothing = 1e-12 * (f - f.detach())
        at = (torch.arange(len(x)) == self.n)[:, None]
        return f + (at * nothing.sum(0) if self.whose == "its" else nothing[self.n])


@pytest.mark.parametrize("whose", ["its", "theirs"])
@pytest.mark.parametrize("n", range(7))
def test_whichever_example_it_is_whose_slope_reaches_the_others_rows_or_is_reached(n: int, whose: str) -> None:
    with pytest.raises(ValueError, match=r"receives the loss of .* alone at the rows of others too"):
        capture(Leaks(n, whose).eval(), SquaredError(), *data(7)[0])


# --- what an output depends on --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "statistics",
    [
        lambda x: x - x.mean(0),
        lambda x: (x - x.mean(0)) / x.std(0),  # copies of one example have none: NaN
        lambda x: x / x.abs().max(),  # the largest entry's own example does not see the others
        lambda x: x * (x[:, :1] >= x[:, :1].median()),
    ],
)
def test_statistics_of_the_batch_that_no_gradient_passes_through_are_noticed(statistics: Any) -> None:
    model = Linear(lambda x: statistics(x).detach()).eval()
    with pytest.raises(ValueError, match=r"the output of example \d changes by .* replaced by copies of it"):
        capture(model, SquaredError(), *data(5, seed=4)[0])


def test_an_input_that_is_not_of_the_batch_may_have_any_number_of_rows() -> None:
    class Prototypes(Linear):
        def forward(self, x: Tensor, prototypes: Tensor) -> Tensor:
            return super().forward(x + prototypes.flatten(0, -2).mean(0))

    x, y = data(4)[0]
    prototypes = torch.randn(4, 3)
    capture(Prototypes().eval(), SquaredError(), (x, prototypes[None]), y)
    capture(Prototypes().eval(), SquaredError(), (x, prototypes[:3]), y)
    with pytest.raises(ValueError, match=r"has 4 rows by chance is taken for examples: give prototypes.* as x\[None\]"):
        capture(Prototypes().eval(), SquaredError(), (x, prototypes), y)


def test_a_loss_that_mixes_its_examples_is_refused() -> None:
    class CentredSquaredError(SquaredError):
        def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
            return 0.5 * (outputs - outputs.mean(0) - targets).square().sum(1)

    with pytest.raises(ValueError, match="the loss of one example depends on the outputs of others"):
        capture(Linear().eval(), CentredSquaredError(), *data(4)[0])
    mixing = lambda f, y: (f - f.mean(0)).sum(1)  # noqa: E731
    with pytest.raises(ValueError, match="the measurement of one example depends on the outputs of others"):
        capture(Linear().eval(), SquaredError(), *data(4)[0], measurement=mixing)


# --- slopes of examples that the model is sure of ----------------------------------------------------------------------


def test_examples_without_a_slope_are_proved_all_the_same() -> None:
    """A perfect fit has no gradient; its rows are in another order, and the next query would be answered wrongly."""
    model = Linear(lambda x: x.flip(0), lambda x: x.flip(0)).eval()
    (x, _), sure = data(4)[0], Linear().eval()
    with pytest.raises(ValueError, match="layer 'l'"):
        capture(model, SquaredError(), x, model(x).detach())
    capture(sure, SquaredError(), x, sure(x).detach())


def test_a_model_that_is_too_sure_for_its_dtype_is_not_said_to_use_its_weight_elsewhere() -> None:
    model = nn.Linear(2, 2, bias=False).float().eval()
    model.weight.data = 90 * torch.eye(2, dtype=torch.float32)
    x, y = torch.eye(2, dtype=torch.float32), torch.tensor([0, 1])
    assert set(capture(model, CrossEntropy(), x, y)) == {""}


# --- calls ------------------------------------------------------------------------------------------------------------


class Norm(nn.Module):
    """A weight is applied to the batch, and to the unit matrix for a norm that no gradient passes through (DoRA)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.l = nn.Linear(3, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.l(x) / self.l(torch.eye(3)).norm().detach()


def test_a_call_that_nothing_depends_on_is_left_out() -> None:
    model, (x, y) = Norm().eval(), data(4)[0]
    pair = capture(model, SquaredError(), x, y)["l"]
    assert pair.a.shape == (4, 1, 3)
    for n in range(4):
        loss = 0.5 * (model(x[n : n + 1]) - y[n : n + 1]).square().sum()
        assert_close(pair.matrices()[n], torch.autograd.grad(loss, model.l.weight)[0], 1e-12)
    batches = data(4, 3, 5)
    fit = ekfac(model, SquaredError(), batches, progress=False)
    assert influence(model, SquaredError(), batches, batches, fit, progress=False).shape == (12, 12)


class Repeats(nn.Module):
    """A layer that is called once for each step its input asks for."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.l = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = x[..., :3]
        for _ in range(int(x[0, 0, 3])):
            h = self.l(h).tanh()
        return h.sum(1)[:, :2]


def test_the_number_of_a_layers_calls_may_change_from_batch_to_batch() -> None:
    def steps(count: int) -> tuple[Tensor, Tensor]:
        x, y = texts((2, 2))[0]
        return torch.cat([x, torch.full((2, 2, 1), float(count))], dim=2), y

    model, batches = Repeats().eval(), [steps(1), steps(3), steps(2)]
    plain = identity(model, SquaredError())
    whole = influence(model, SquaredError(), batches, batches[:1], plain, progress=False)
    split = influence(model, SquaredError(), batches, batches[:1], plain, keep=("token",), progress=False)
    assert split.shape == (2, 6, 2)
    assert_close(split.sum(2), whole, 1e-12)


class CutOff(nn.Module):
    """A recurrent network whose history is cut off before its last two steps; or which of two calls counts changes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.back, self.read = nn.Linear(2, 2), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(len(x), 2)
        for t in range(x.shape[1]):
            h = (self.read(x[:, t]) + self.back(h)).tanh()
            h = h.detach() if t < x.shape[1] - 2 else h
        return h


class Either(CutOff):
    """Two calls, of which the first counts in texts of three tokens, the second in others."""

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.read(x[:, 0]), self.read(x[:, 1].sin())]
        out = len(parts) - 1 if x.shape[1] == 3 else 0
        parts[out] = parts[out].detach()
        return parts[0] * parts[1]


@pytest.mark.parametrize("model", [CutOff, Either])
@pytest.mark.parametrize("lengths", [(4, 3), (3, 4), (4, 4, 4, 3), (4, 4, 3, 4), (4, 5, 4, 4), (4, 4, 5, 4), (5, 2, 3)])
def test_which_calls_nothing_depends_on_may_change_from_batch_to_batch(lengths: tuple[int, ...], model: Any) -> None:
    batches = texts(*((3, T) for T in lengths))
    network = model().eval()
    gradients, squares = [], 0.0
    for x, y in batches:
        f = network(x)
        for n in range(len(x)):
            loss = 0.5 * (f[n] - y[n]).square().sum()
            weight, bias = torch.autograd.grad(loss, (network.read.weight, network.read.bias), retain_graph=True)
            gradients.append(torch.cat([weight, bias[:, None]], dim=1).flatten())
            squares += sum(
                sum(
                    p.square().sum() for p in torch.autograd.grad(c, list(network.read.parameters()), retain_graph=True)
                )
                for c in f[n]
            )
    rows = torch.stack(gradients)
    plain = identity(network, SquaredError(), layers="read")
    assert_close(influence(network, SquaredError(), batches, batches, plain, progress=False), rows @ rows.T, 1e-12)
    assert_close(self_influence(network, SquaredError(), batches, plain, progress=False), rows.square().sum(1), 1e-12)
    fit = ekfac(network, SquaredError(), batches, "read", progress=False)
    assert_close(fit.eigenvalues["read"].sum(), torch.as_tensor(squares / len(rows)), 1e-12)
