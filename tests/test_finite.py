"""What leaves is finite, or the layer, the cause and the way on are named."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from languages import language
from networks import make
from torch import Tensor, nn

from inflib import (
    BlockDense,
    CoverageNote,
    CrossEntropy,
    Dense,
    Facts,
    Kronecker,
    RoundingNote,
    SquaredError,
    TrainIndex,
    diagonal,
    ekfac,
    gauss_newton,
    hessian,
    identity,
    influence,
    kfac,
    refine,
    self_influence,
)
from inflib.baselines import gradient_cosine, gradient_dot
from inflib.tokens import output_tokens

X, Y = torch.eye(2), torch.tensor([0, 1])
ADVICE = r"float64.*more damping.*margin"


def sure(nats: float, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, list]:
    """A layer that is so many nats sure of each of two examples."""
    model = nn.Linear(2, 2, bias=False).eval().to(dtype)
    model.weight.data = nats * torch.eye(2, dtype=dtype)
    return model, [(X.to(dtype), Y)]


# --- inverses -----------------------------------------------------------------------------------------------------------

ASK: dict[str, Callable[[nn.Module, list, Kronecker], Any]] = {
    "influence": lambda m, d, C: influence(m, CrossEntropy(), d, d, C, progress=False),
    "self_influence": lambda m, d, C: self_influence(m, CrossEntropy(), d, C, progress=False),
    "solve": lambda m, d, C: C.solve({"": torch.ones(1, 2, 2)}),
    "index": lambda m, d, C: TrainIndex.build(m, CrossEntropy(), d, C, progress=False).influence(m, CrossEntropy(), d),
    "index.self_influence": lambda m, d, C: TrainIndex.build(m, CrossEntropy(), d, C, progress=False).self_influence(),
    "refine": lambda m, d, C: refine(C, m, CrossEntropy(), d, steps=1, progress=False).solve({"": torch.ones(1, 2, 2)}),
}


@pytest.mark.filterwarnings("ignore::inflib.RoundingNote")
@pytest.mark.parametrize("fit", [ekfac, kfac, diagonal])
@pytest.mark.parametrize("ask", ASK)
def test_an_inverse_that_overflows_is_refused_by_all_who_divide(ask: str, fit: Any) -> None:
    model, data = sure(90)
    curvature = fit(model, CrossEntropy(), data, progress=False)
    with pytest.raises((FloatingPointError, ValueError), match=rf"layer ''.*underflow.*{ADVICE}|underflow.*float64"):
        ASK[ask](model, data, curvature)


@pytest.mark.filterwarnings("ignore::inflib.RoundingNote")
@pytest.mark.parametrize("fit", [ekfac, kfac, diagonal])
def test_the_advice_helps(fit: Any) -> None:
    for model, data, damping in ((*sure(90, torch.float64), None), (*sure(90), 1e-3)):
        curvature = fit(model, CrossEntropy(), data, progress=False)
        scores = influence(model, CrossEntropy(), data, data, curvature, damping, progress=False)
        assert bool(scores.isfinite().all())
    exact = fit(*_with_loss(sure(90, torch.float64)), progress=False)
    scores = influence(
        model, CrossEntropy(), data, data, exact_at(exact, model), 1e-3, measurement="margin", progress=False
    )
    assert bool(scores.isfinite().all())


def _with_loss(case: tuple[nn.Module, list]) -> tuple[nn.Module, CrossEntropy, list]:
    return case[0], CrossEntropy(), case[1]


def exact_at(curvature: Kronecker, model: nn.Module) -> Kronecker:
    """The curvature in the model's own dtype, as if fitted at it."""
    from inflib.fingerprints import hash_weights

    values = {k: v.float() for k, v in curvature.eigenvalues.items()}
    Q_S, Q_A = ({k: v.float() for k, v in Q.items()} for Q in (curvature.Q_S, curvature.Q_A))
    return Kronecker(values, Q_S, Q_A, replace(curvature.facts, weights=hash_weights(model)))


def test_squares_that_underflow_to_zero_say_so_where_relative_damping_would_be_zero() -> None:
    model, data = sure(100)  # p = 4e-44 is there, its square root's square in float32 is not quite 0; at 120 it is
    model.weight.data *= 1.2
    curvature = ekfac(model, CrossEntropy(), data, progress=False)
    with pytest.raises(ValueError, match=r"layer ''.*their squares underflow torch.float32.*use float64"):
        influence(model, CrossEntropy(), data, data, curvature, progress=False)


def test_damping_that_the_dtype_cannot_hold_is_refused_and_does_not_give_scores_of_zero() -> None:
    model, data = sure(1)
    curvature = ekfac(model, CrossEntropy(), data, progress=False)
    with pytest.raises(FloatingPointError, match=r"layer '': 1/\(Λ \+ λ\) is 0 in torch.float32.*λ = 1e\+39.*can hold"):
        influence(model, CrossEntropy(), data, data, curvature, 1e39, progress=False)
    influence(model, CrossEntropy(), data, data, curvature, 1e37, progress=False)


# --- curvatures and scores ----------------------------------------------------------------------------------------------


def facts() -> Facts:
    return Facts("EK-FAC", "expected", 1, 0, 3, "w")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_no_curvature_holds_what_is_not_finite(bad: float) -> None:
    values = torch.ones(2, 2)
    values[1, 0] = bad
    whole = torch.block_diag(torch.ones(4, 4), values, torch.ones(2, 2))
    shapes = {"good": (2, 2), "bad": (2, 2)}
    for made in (
        lambda: Kronecker({"good": torch.ones(2, 2), "bad": values}, {}, {}, facts()),
        lambda: Dense(whole, shapes, facts()),
        lambda: BlockDense({"good": torch.ones(4, 4), "bad": whole[4:, 4:]}, shapes, facts()),
    ):
        with pytest.raises(FloatingPointError, match=rf"layer 'bad': .*NaN or infinity.*{ADVICE}"):
            made()


@pytest.mark.parametrize("fit", [ekfac, kfac, diagonal, gauss_newton, hessian])
def test_a_curvature_that_overflows_is_refused(fit: Any) -> None:
    model = nn.Linear(2, 1, bias=False).eval()
    data = [(torch.full((3, 2), 1e30), torch.zeros(3, 1))]
    with pytest.raises(FloatingPointError, match=r"layer ''"):
        fit(model, SquaredError(), data, progress=False)


def large(scale: float) -> tuple[nn.Module, list]:
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False)).eval()
    return model, [(torch.full((3, 2), scale), torch.full((3, 1), scale))]


OUT: dict[str, Callable[[nn.Module, list, Any, TrainIndex], Any]] = {
    "influence": lambda m, d, C, _: influence(m, SquaredError(), d, d, C, progress=False),
    "by layer": lambda m, d, C, _: influence(m, SquaredError(), d, d, C, keep=("layer",), progress=False),
    "self_influence": lambda m, d, C, _: self_influence(m, SquaredError(), d, C, progress=False),
    "index.scores": lambda m, d, _C, index: index.scores(index.held),
    "index.self_influence": lambda m, d, _C, index: index.self_influence(),
    "index.norms": lambda m, d, _C, index: index.norms(),
    "gradient_dot": lambda m, d, _C, _i: gradient_dot(m, SquaredError(), d, d, progress=False),
    "gradient_cosine": lambda m, d, _C, _i: gradient_cosine(m, SquaredError(), d, d, progress=False),
}


@pytest.mark.parametrize("ask", OUT)
def test_scores_that_overflow_are_refused_with_the_layer(ask: str) -> None:
    model, data = large(1e10)  # gradients of 1e20, whose products are above 3e38
    curvature = identity(model, SquaredError(), data, progress=False)
    index = TrainIndex.build(model, SquaredError(), data, curvature, progress=False)
    with pytest.raises(FloatingPointError, match=rf"layer '0': .*NaN or infinity.*{ADVICE}"):
        OUT[ask](model, data, curvature, index)


@pytest.mark.parametrize("fit", [kfac, gauss_newton])
def test_a_solution_that_overflows_is_refused_with_the_layer(fit: Any) -> None:
    case = make(n=6)
    for options in ({}, {"blocks": True}) if fit is gauss_newton else ({},):
        curvature = fit(case.model, case.objective, case.train, progress=False, **options)
        v = {name: torch.zeros(1, *shape, dtype=torch.float64) for name, shape in curvature.shapes.items()}
        v["fc1"][0, 1, 1] = 1e308
        with pytest.raises(FloatingPointError, match=r"layer 'fc\d': its solution \(C \+ λ\)⁻¹ v hold NaN or infinity"):
            curvature.solve(v, 1e-3)


def test_token_influences_that_overflow_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    case = language(seed=0)
    curvature = identity(case.model, case.objective, case.train, layers=case.layers, progress=False)
    monkeypatch.setattr("inflib.tokens.vmap", lambda _: lambda _directions: torch.full((1, 1, 1), torch.inf))
    with pytest.raises(FloatingPointError, match=r"layer 'q, k, v, o, up, down, unembed': its token influences"):
        output_tokens(case.model, case.objective, case.train, case.asked, curvature, progress=False)


# --- notes --------------------------------------------------------------------------------------------------------------


DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


class Shifted(nn.Module):
    """A layer whose output is added to every logit: the softmax does not see it, so its gradient is rounding alone."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.shift = nn.Linear(4, 3), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) + self.shift(x)


@pytest.mark.parametrize("fit", [ekfac, kfac, diagonal])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_layer_of_rounding_noise_is_noted_once_by_name(dtype: torch.dtype, fit: Any) -> None:
    torch.manual_seed(0)
    model = Shifted().eval().to(dtype)
    data = [(torch.randn(20, 4, dtype=dtype), torch.randint(0, 3, (20,)))]
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        fit(model, CrossEntropy(), data, labels="observed", progress=False)
    notes = [str(w.message) for w in seen if w.category is RoundingNote]
    assert len(notes) == 1
    assert "'shift' (" in notes[0]
    assert "'fc'" not in notes[0]


@pytest.mark.parametrize("fit", [ekfac, kfac, diagonal, identity])
@pytest.mark.parametrize("dtype", DTYPES)
def test_layers_with_a_signal_are_not_noted_however_their_scales_differ(dtype: torch.dtype, fit: Any) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3)).eval().to(dtype)
    model[0].weight.data *= 1e-3
    dead = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 3)).eval().to(dtype)
    dead[0].bias.data -= 100  # no gradient at all is no noise
    data = [(torch.randn(20, 4, dtype=dtype), torch.randint(0, 3, (20,)))]
    with warnings.catch_warnings():
        warnings.simplefilter("error", RoundingNote)
        warnings.simplefilter("ignore", CoverageNote)
        for one in (model, dead):
            fit(one, CrossEntropy(), data, progress=False)
        influence(model, CrossEntropy(), data, data, identity(model, CrossEntropy(), data), progress=False)


def test_queries_whose_gradient_underflows_are_noted_with_position_layers_and_the_margin() -> None:
    model, (batch,) = sure(1)
    quiet = (90 * X[:1], Y[:1])
    plain = identity(model, CrossEntropy(), [batch], progress=False)
    with pytest.warns(
        RoundingNote, match=rf"queries: example 2 has no gradient above .* in any layer \(''\).*{ADVICE}"
    ):
        influence(model, CrossEntropy(), [batch], [batch, quiet], plain, progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        influence(model, CrossEntropy(), [batch], [quiet], plain, measurement="margin", progress=False)
        influence(model, CrossEntropy(), [quiet], [batch], plain, progress=False)
