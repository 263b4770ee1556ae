"""What is given in place of an objective, layers, a curvature or a model, in one sentence each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import inflib
from inflib import (
    CrossEntropy,
    NextToken,
    TrainIndex,
    capture,
    ekfac,
    gauss_newton,
    hessian,
    identity,
    influence,
    self_influence,
)

QUIET: dict[str, Any] = {"progress": False}


def problem() -> tuple[nn.Module, list[Any]]:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).eval(), [(torch.randn(4, 3), torch.arange(4) % 3)]


ENTRIES: dict[str, Callable[..., Any]] = {
    "ekfac": lambda m, o, d, c: ekfac(m, o, d, **QUIET),
    "gauss_newton": lambda m, o, d, c: gauss_newton(m, o, d, **QUIET),
    "hessian": lambda m, o, d, c: hessian(m, o, d, **QUIET),
    "influence": lambda m, o, d, c: influence(m, o, d, d, c, **QUIET),
    "self_influence": lambda m, o, d, c: self_influence(m, o, d, c, **QUIET),
    "index": lambda m, o, d, c: TrainIndex.build(m, o, d, c, **QUIET),
    "capture": lambda m, o, d, c: capture(m, o, *d[0]),
}


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        (nn.CrossEntropyLoss(), r"came as CrossEntropyLoss; expected .*Give CrossEntropy\(\), or NextToken\(\)"),
        (nn.MSELoss(reduction="none"), r"came as MSELoss; expected .*Give SquaredError\(\)"),
        (nn.BCEWithLogitsLoss(), r"came as BCEWithLogitsLoss; expected .*Give Bernoulli\(\)"),
        (F.cross_entropy, r"came as cross_entropy; expected .*Give CrossEntropy\(\)"),
        (lambda f, y: (f - y).square().sum(1), r"came as <lambda>; expected .*class Mine\(inflib.Objective\)"),
        (CrossEntropy, r"came as the class CrossEntropy; expected an object. Call it: CrossEntropy\(\)"),
        (NextToken, r"came as the class NextToken; expected an object. Call it: NextToken\(\)"),
        (None, r"came as NoneType; expected"),
    ],
)
@pytest.mark.parametrize("entry", ENTRIES)
def test_what_is_no_objective_is_named_with_the_one_that_is_meant(entry: str, objective: Any, message: str) -> None:
    model, data = problem()
    with pytest.raises(TypeError, match=f"^objective {message}"):
        ENTRIES[entry](model, objective, data, identity(model, CrossEntropy(), data, **QUIET))


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (lambda m: m[0], r"holds a Linear; expected names .* Give layers='0'"),
        (lambda m: [m[2]], r"holds a Linear; expected names .* Give layers='2'"),
        (lambda m: nn.Linear(3, 3), r"holds a Linear; expected names"),
        (lambda m: m[0].weight, r"holds a Tensor; expected names"),
        (lambda m: list(m.parameters()), r"holds a Parameter; expected names"),
        (lambda m: [0], r"holds a int; expected names"),
        (lambda m: 2, r"holds a int; expected names"),
    ],
)
def test_layers_that_are_no_names_are_asked_for_by_name(layers: Callable[[Any], Any], message: str) -> None:
    model, data = problem()
    with pytest.raises(TypeError, match=f"^layers= {message}"):
        ekfac(model, CrossEntropy(), data, layers(model), **QUIET)


@pytest.mark.parametrize("entry", ["influence", "self_influence"])
def test_what_is_no_curvature_is_named(entry: str) -> None:
    model, data = problem()
    for wrong in (None, model, 0.1, torch.eye(3)):
        with pytest.raises(TypeError, match=rf"^curvature came as a {type(wrong).__name__}; expected .*ekfac\("):
            ENTRIES[entry](model, CrossEntropy(), data, wrong)


def test_what_is_no_model_is_named() -> None:
    model, data = problem()
    with pytest.raises(TypeError, match=r"^model came as a CrossEntropy; expected a torch.nn.Module"):
        ekfac(CrossEntropy(), model, data, **QUIET)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"compiled by torch.jit.*expected the module that it was made from"):
        ekfac(torch.jit.trace(model, data[0][0]), CrossEntropy(), data, **QUIET)
    with torch.inference_mode():
        made = nn.Linear(3, 3)
    with pytest.raises(
        ValueError, match=r"'weight' was made under torch.inference_mode.*Build or load the model outside"
    ):
        ekfac(made, CrossEntropy(), data, **QUIET)
    model.more = nn.Linear(3, 3, device="meta")
    with pytest.raises(ValueError, match=r"'more.weight' is on the meta device.*expected weights that are there"):
        ekfac(model, CrossEntropy(), data, **QUIET)


def test_a_damping_that_is_asked_of_no_curvature_is_refused() -> None:
    with pytest.raises(TypeError, match=r"^curvature came as a Linear; expected what a fit returns"):
        inflib.damping_of(nn.Linear(2, 2))  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool, torch.complex64, "float16", float])
def test_an_index_keeps_gradients_in_fractions_alone(dtype: Any) -> None:
    """Whole numbers would cut them off at the point, and answer all the same."""
    model, data = problem()
    curvature = ekfac(model, CrossEntropy(), data, **QUIET)
    for ask in (
        lambda: TrainIndex.build(model, CrossEntropy(), data, curvature, dtype=dtype, **QUIET),
        lambda: TrainIndex.bytes_needed(model, data, curvature, dtype),
    ):
        with pytest.raises(TypeError, match=r"^dtype=.*expected None .*torch.float16.*path=, bits=8"):
            ask()


@pytest.mark.parametrize("measurement", [3, 0.5, ("margin",), torch.ones(3)])
def test_a_measurement_is_a_name_or_a_function(measurement: Any) -> None:
    model, data = problem()
    plain = identity(model, CrossEntropy(), data, **QUIET)
    with pytest.raises(TypeError, match=r"^measurement came as .*expected one of log_likelihood, margin.*a callable"):
        influence(model, CrossEntropy(), data, data, plain, measurement=measurement, **QUIET)
