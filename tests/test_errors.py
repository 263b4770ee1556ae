"""Whatever goes wrong, and wherever: the user's own error arrives, and the model is byte for byte as it was.

A bomb goes off at the first, the second, the third, ... call of something that inflib runs: the model's forward or
backward pass, a hook, the loss, the sampler, the data. Every call of every public function is tried.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import Plain, Residual, make, snapshot
from torch import Tensor, nn

import inflib
from inflib import CoverageNote, CrossEntropy, capture, influence, self_influence
from inflib.layers import _KINDS, positions_last

pytestmark = [
    pytest.mark.usefixtures("float64"),
    pytest.mark.filterwarnings("ignore::inflib.CoverageNote", "ignore::inflib.IndefiniteWarning"),
]

CASE = dict(n=5, splits=[3])


class BombError(Exception):
    """Nothing in inflib raises or catches this."""


class Bomb:
    """Counts calls and raises at one of them."""

    def __init__(self, error: type[BaseException] = BombError):
        self.error, self.at, self.calls = error, -1, 0

    def set(self, at: int) -> None:
        self.at, self.calls = at, 0

    def __call__(self) -> None:
        self.calls += 1
        if self.calls == self.at:
            raise self.error


class _Backward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bomb: Bomb) -> Tensor:
        ctx.bomb = bomb
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        ctx.bomb()
        return grad, None


class Registered(nn.Linear):
    """A layer type of the test's own, whose reading by our hook can go wrong."""


def bombs() -> dict[str, Callable[[Bomb], tuple[nn.Module, inflib.Objective, Any]]]:
    """Where it can go wrong → (model, objective, data) in which it does."""
    case = make(**CASE)
    data = case.train

    def forward(bomb: Bomb) -> Any:
        return Plain(change=lambda h: (bomb(), torch.tanh(h))[1]), case.objective, data

    def backward(bomb: Bomb) -> Any:
        return Plain(change=lambda h: torch.tanh(_Backward.apply(h, bomb))), case.objective, data

    def hook(bomb: Bomb) -> Any:
        model = Plain()
        model.down.register_forward_hook(lambda *_: bomb())
        return model, case.objective, data

    def our_hook(bomb: Bomb) -> Any:
        model = Plain()
        model.down = Registered(4, 3)
        inflib.register(Registered, lambda m, x: (bomb(), positions_last(m, x))[1], positions_last)
        return model, case.objective, data

    def our_gradients(bomb: Bomb) -> Any:
        model = Plain()
        model.up = Registered(3, 4)
        inflib.register(Registered, positions_last, lambda m, g: (bomb(), positions_last(m, g))[1])
        return model, case.objective, data

    def loss(bomb: Bomb) -> Any:
        class Loss(CrossEntropy):
            def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
                bomb()
                return super().loss(outputs, targets)

        return Plain(), Loss(), data

    def the_data(bomb: Bomb) -> Any:
        class Data:
            def __iter__(self) -> Iterator[Any]:
                for batch in data:
                    bomb()
                    yield batch

        return Plain(), case.objective, Data()

    return {f.__name__: f for f in (forward, backward, hook, our_hook, our_gradients, loss, the_data)}


@pytest.fixture(autouse=True)
def _registry() -> Iterator[None]:
    before = dict(_KINDS)
    yield
    _KINDS.clear()
    _KINDS.update(before)


def _fit(name: str, **options: Any) -> Callable[[nn.Module, Any, Any], Any]:
    return lambda model, objective, data: getattr(inflib, name)(model, objective, data, progress=False, **options)


def _influence(model: nn.Module, objective: Any, data: Any) -> Any:
    return influence(model, objective, data, data, inflib.identity(model, objective), progress=False)


def _self_influence(model: nn.Module, objective: Any, data: Any) -> Any:
    return self_influence(model, objective, data, inflib.identity(model, objective), progress=False)


def _index(model: nn.Module, objective: Any, data: Any) -> Any:
    index = inflib.TrainIndex.build(model, objective, data, inflib.identity(model, objective), progress=False)
    return index.influence(model, objective, data)


def _capture(model: nn.Module, objective: Any, data: Any) -> Any:
    return [capture(model, objective, *batch) for batch in data]


def _refine(model: nn.Module, objective: Any, data: Any) -> Any:
    rough = inflib.diagonal(model, objective, data, progress=False)
    fine = inflib.refine(rough, model, objective, data, steps=2, progress=False)
    return influence(model, objective, data, data, fine, 0.5, progress=False)


CALLS: dict[str, Callable[[nn.Module, Any, Any], Any]] = {
    "ekfac": _fit("ekfac"),
    "ekfac, sampled": _fit("ekfac", labels="sampled", draws=2),
    "kfac, observed": _fit("kfac", labels="observed"),
    "diagonal": _fit("diagonal"),
    "gauss_newton": _fit("gauss_newton"),
    "gauss_newton, sampled": _fit("gauss_newton", labels="sampled"),
    "hessian": _fit("hessian"),
    "influence": _influence,
    "self_influence": _self_influence,
    "TrainIndex": _index,
    "capture": _capture,
    "refine": _refine,
}
EXACT = ("gauss_newton", "gauss_newton, sampled", "hessian")
# torch.func refuses an autograd.Function of the old style; exact curvatures use no hook of ours
NOT_FOR = {("backward", call) for call in (*EXACT, "refine")}
NOT_FOR |= {(where, call) for where in ("our_hook", "our_gradients") for call in EXACT}
PAIRS = [(call, where) for call in CALLS for where in bombs() if (where, call) not in NOT_FOR]


@pytest.mark.parametrize(("call", "where"), PAIRS)
def test_the_model_is_as_it_was_after_an_exception_anywhere(call: str, where: str) -> None:
    bomb = Bomb()
    model, objective, data = bombs()[where](bomb)
    model.up.requires_grad_(False)
    model.down.weight.grad = torch.randn_like(model.down.weight)
    model.down.eval()
    before, state = snapshot(model), torch.get_rng_state()
    went_off = 0
    for at in range(1, 400):
        bomb.set(at)
        try:
            CALLS[call](model, objective, data)
        except BombError:
            went_off += 1
        assert snapshot(model) == before
        assert torch.equal(state, torch.get_rng_state())
        assert torch.is_grad_enabled()
        if went_off < at:
            break
    assert 0 < went_off < 399


def test_an_interruption_leaves_the_model_as_it_was() -> None:
    bomb = Bomb(KeyboardInterrupt)
    model, objective, data = bombs()["forward"](bomb)
    before = snapshot(model)
    for at in (1, 4, 7):
        bomb.set(at)
        with pytest.raises(KeyboardInterrupt):
            inflib.ekfac(model, objective, data, progress=False)
        assert snapshot(model) == before


def test_an_error_in_a_measurement_leaves_the_model_as_it_was() -> None:
    case = make(**CASE)
    before = snapshot(case.model)
    curvature = inflib.ekfac(case.model, case.objective, case.train, progress=False)

    def fails(f: Tensor, y: Tensor) -> Tensor:
        raise BombError

    with pytest.raises(BombError):
        influence(case.model, case.objective, case.train, case.queries, curvature, measurement=fails, progress=False)
    assert snapshot(case.model) == before


@pytest.mark.parametrize("mode", ["train", "eval", "mixed"])
@pytest.mark.parametrize("frozen", ["none", "some", "all"])
def test_the_model_is_as_it_was_after_every_public_call(mode: str, frozen: str, tmp_path: Path) -> None:
    case = make(**CASE)
    model = Residual()
    model.train(mode != "eval")
    if mode == "mixed":
        model.two.eval()
    for k, p in enumerate(model.parameters()):
        p.requires_grad_(frozen == "none" or (frozen == "some" and k % 2 == 0))
        p.grad = torch.randn_like(p) if p.requires_grad else None
    model.register_forward_hook(lambda *_: None)
    model.one.register_forward_pre_hook(lambda *_: None)
    before = snapshot(model)
    for name, call in CALLS.items():
        call(model, case.objective, case.train)
        assert snapshot(model) == before, name
    curvature = inflib.ekfac(model, case.objective, case.train, progress=False)
    inflib.save(curvature, tmp_path / "f")
    inflib.load(tmp_path / "f", model)
    inflib.coverage(model)
    inflib.damping_of(curvature)
    curvature.to_dense()
    assert snapshot(model) == before


def test_the_model_still_trains_as_before_after_all_of_it() -> None:
    """Two copies, one of them scored in between: the same weights after some more steps."""
    case, twin = make(**CASE), make(**CASE)
    for k, model in enumerate((case.model, twin.model)):
        optimiser = torch.optim.Adam(model.parameters(), 0.01)
        for step in range(6):
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(case.x), case.y).backward()
            if k and step % 2:
                for call in CALLS.values():
                    call(model, case.objective, case.train)
            optimiser.step()
    for p, q in zip(case.model.parameters(), twin.model.parameters(), strict=True):
        assert torch.equal(p, q)


def test_every_error_of_ours_says_what_came_what_was_expected_and_the_fix() -> None:
    """A sample across the library; each has its own test of its own words beside what it guards."""
    case = make(**CASE)
    curvature = inflib.ekfac(case.model, case.objective, case.train, progress=False)
    model, objective, train = case.model, case.objective, case.train
    for call in (
        lambda: inflib.ekfac(nn.Sequential(nn.Linear(3, 3), nn.Dropout()), objective, train),
        lambda: inflib.ekfac(model, objective, []),
        lambda: inflib.ekfac(model, objective, iter(train)),
        lambda: inflib.ekfac(model, objective, train, layers="nothing"),
        lambda: inflib.ekfac(model, objective, train, labels="nothing"),
        lambda: inflib.ekfac(model, objective, [(case.x, case.y + 1)]),
        lambda: inflib.ekfac(model, objective, [(case.x.float(), case.y)]),
        lambda: inflib.ekfac(model, objective, [(case.x / 0, case.y)]),
        lambda: influence(model, objective, train, train, curvature, damping=-1),
        lambda: influence(model, objective, train, train, curvature, measurement="nothing"),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CoverageNote)
            with pytest.raises((ValueError, TypeError, RuntimeError, FloatingPointError)) as error:
                call()
        assert "xpected" in str(error.value)
        assert str(error.value).rstrip().endswith((".", ")"))
