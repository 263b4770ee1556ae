"""Outputs of shape (B,), None and bools among the inputs, buffers written in forward, half precision: every route alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from oracle import Problem, assert_close, bernoulli, cross_entropy, difference, squared_error
from torch import Tensor, nn

from inflib import (
    Bernoulli,
    CrossEntropy,
    Huber,
    Objective,
    Poisson,
    SquaredError,
    TrainIndex,
    Weighted,
    diagonal,
    ekfac,
    gauss_newton,
    hessian,
    influence,
    kfac,
    refine,
    self_influence,
)
from inflib.exact import gauss_newton_product

pytestmark = pytest.mark.usefixtures("float64")
QUIET: dict[str, Any] = {"progress": False}
N = 5


class Column(nn.Sequential):
    """Outputs (B, 1), or (B,) where ``flat``."""

    def __init__(self, flat: bool):
        torch.manual_seed(0)
        super().__init__(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
        self.flat = flat

    def forward(self, x: Tensor) -> Tensor:
        f = super().forward(x)
        return f[:, 0] if self.flat else f


def column(objective: Objective, flat: bool) -> tuple[Column, list[Any]]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(N, 3, generator=generator, dtype=torch.float64)
    y = torch.rand(N, generator=generator, dtype=torch.float64).round()
    w = torch.rand(N, generator=generator, dtype=torch.float64)

    def targets(rows: slice) -> Any:
        own = y[rows] if flat else y[rows, None]
        return (own, w[rows]) if isinstance(objective, Weighted) else own

    return Column(flat), [(x[rows], targets(rows)) for rows in (slice(0, 3), slice(3, N))]


def everything(model: nn.Module, objective: Objective, train: Any, labels: str) -> dict[str, Tensor]:
    """What every entry point says."""
    options: dict[str, Any] = {"labels": labels, **QUIET}
    C = ekfac(model, objective, train, **options)
    found = {
        name: fit(model, objective, train, **options).to_dense()
        for name, fit in {"kfac": kfac, "diagonal": diagonal, "gauss_newton": gauss_newton}.items()
    }
    found |= {"ekfac": C.to_dense(), "hessian": hessian(model, objective, train, **QUIET).to_dense()}
    fine = refine(C, model, objective, train, **QUIET)
    found |= {"refine": fine.to_dense(), "refined": influence(model, objective, train, train, fine, 0.1, **QUIET)}
    v = {k: torch.ones(2, *shape) for k, shape in C.shapes.items()}
    found |= {f"product {k}": x for k, x in gauss_newton_product(model, objective, train, v, **QUIET).items()}
    found["influence"] = influence(model, objective, train, train, C, 0.1, **QUIET)
    found["self"] = self_influence(model, objective, train, C, 0.1, **QUIET)
    index = TrainIndex.build(model, objective, train, C, **QUIET)
    found["index"] = index.influence(model, objective, train, damping=0.1)
    return found


@pytest.mark.parametrize("labels", ["expected", "observed", "sampled"])
@pytest.mark.parametrize(
    "objective", [SquaredError(), Bernoulli(), Poisson(), Huber(0.5), Weighted(Bernoulli())], ids=repr
)
def test_outputs_without_an_axis_of_their_own_are_like_those_with_one(objective: Objective, labels: str) -> None:
    if isinstance(objective, Huber) and labels == "sampled":
        return
    flat, one = (
        everything(*column(objective, f)[:1], objective, column(objective, f)[1], labels) for f in (True, False)
    )
    for name in flat:
        assert_close(flat[name], one[name], 1e-12)


@pytest.mark.parametrize(
    ("objective", "formula"),
    [(SquaredError(), squared_error), (Bernoulli(), bernoulli)],
    ids=["squared error", "bernoulli"],
)
def test_outputs_without_an_axis_have_the_oracles_curvature(objective: Objective, formula: Any) -> None:
    model, train = column(objective, True)
    x, y = (torch.cat([batch[side] for batch in train]) for side in (0, 1))
    problem = Problem(model, ["0", "2"], formula, x, y)
    assert_close(gauss_newton(model, objective, train, **QUIET).to_dense(), problem.gauss_newton(), 1e-11)
    observed = gauss_newton(model, objective, train, labels="observed", **QUIET)
    assert_close(observed.to_dense(), problem.fisher(), 1e-11)


# --- inputs of every kind -------------------------------------------------------------------------------------------------


class Awkward(nn.Module):
    """Takes None, a bool, a number and a tensor that all examples share; writes into its buffers."""

    def __init__(self, per_example: bool = False):
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down = nn.Linear(3, 4), nn.Linear(4, 3)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("seen", torch.zeros(4))
        self.writes = per_example

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        twice: bool = False,
        scale: float = 1.0,
        shift: Tensor | None = None,
    ) -> Tensor:
        h = torch.tanh(self.up(x if mask is None else x * mask))
        self.calls += 1
        if self.writes:
            self.seen.copy_(h.detach().mean(0))
        h = h if shift is None else h + shift
        return self.down(h) * (2 if twice else 1) * scale


SHIFT = torch.tensor([0.1, -0.2, 0.3, 0.0], dtype=torch.float64)  # (4,), no example's
INPUTS: dict[str, Callable[[Tensor], Any]] = {
    "a tuple with None": lambda x: (x, None, True),
    "a list with a number": lambda x: [x, None, False, 2.0],
    "a dict with all of them": lambda x: {"x": x, "mask": None, "twice": True, "scale": 0.5, "shift": SHIFT},
    "a tensor alone": lambda x: x,
}


class Same(nn.Module):
    """``Awkward`` with its other inputs settled, for the oracle."""

    def __init__(self, model: Awkward, more: Any):
        super().__init__()
        self.up, self.down, self.more = model.up, model.down, more

    def forward(self, x: Tensor) -> Tensor:
        given = self.more(x)
        names = ("x", "mask", "twice", "scale", "shift")
        if not isinstance(given, dict):
            given = dict(zip(names, given if isinstance(given, (tuple, list)) else (given,), strict=False))
        h = torch.tanh(self.up(x))
        h = h if given.get("shift") is None else h + given["shift"]
        return self.down(h) * (2 if given.get("twice") else 1) * given.get("scale", 1.0)


@pytest.mark.parametrize("writes", [False, True])
@pytest.mark.parametrize("kind", list(INPUTS))
def test_inputs_of_any_kind_and_buffers_that_change_are_exact_in_every_route(kind: str, writes: bool) -> None:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(N, 3, generator=generator, dtype=torch.float64)
    y = torch.randint(0, 3, (N,), generator=generator)
    model = Awkward(writes).eval()
    before = {n: b.clone() for n, b in model.named_buffers()}
    train = [(INPUTS[kind](x[rows]), y[rows]) for rows in (slice(0, 3), slice(3, N))]
    problem = Problem(Same(model, INPUTS[kind]), ["up", "down"], cross_entropy, x, y, one_by_one=True)
    G, found = problem.gauss_newton(), everything(model, CrossEntropy(), train, "expected")
    assert_close(found["gauss_newton"], G, 1e-11)
    assert_close(found["refine"], G, 1e-11)
    assert_close(found["hessian"], problem.hessian(), 1e-11)
    ones = problem.stacks(torch.ones(2, len(G)))
    product = {k.removeprefix("product "): v for k, v in found.items() if k.startswith("product")}
    assert_close(problem.flat(product), problem.flat(ones) @ G, 1e-11)
    assert_close(found["ekfac"].trace(), G.trace(), 1e-11)
    assert_close(found["index"], found["influence"], 1e-11)
    observed = gauss_newton(model, CrossEntropy(), train, labels="observed", **QUIET)
    assert_close(observed.to_dense(), problem.fisher(), 1e-11)
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, before[name])


class Centred(nn.Module):
    """Statistics over the batch, written by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(x - x.mean(0))


def test_an_example_with_other_outputs_by_itself_is_refused_by_the_exact_curvature() -> None:
    x, y = torch.randn(4, 3), torch.tensor([0, 1, 2, 1])
    with pytest.raises(ValueError, match=r"other outputs by itself|depends? on"):
        gauss_newton(Centred(), CrossEntropy(), [(x, y)], **QUIET)


# --- half precision -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_sums_and_solves_are_in_float32_at_least(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    exact = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    generator = torch.Generator().manual_seed(3)
    x, y = torch.randn(40, 3, generator=generator), torch.randint(0, 3, (40,), generator=generator)
    with torch.no_grad():
        for p in exact.parameters():
            p.copy_(p.to(dtype))
    x = x.to(dtype)
    rough = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).to(dtype)
    rough.load_state_dict({k: v.to(dtype) for k, v in exact.state_dict().items()})
    train, truth = [(x, y)] * 3, [(x.double(), y)] * 3
    expected, came = (
        everything(model, CrossEntropy(), data, "expected") for model, data in ((exact, truth), (rough, train))
    )
    tolerance = {torch.bfloat16: 0.05, torch.float32: 1e-4}[dtype]
    for name, value in came.items():
        assert value.dtype == torch.float32, name
        assert difference(value, expected[name]) < tolerance, name
