"""Refinement where it matters: on a sample of the data, in single and half precision, by minibatches to a residual."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from networks import Case, batches, make, zoo
from oracle import LOSSES, Problem, assert_close, difference
from torch import Tensor, nn

from inflib import CrossEntropy, SquaredError, damping_of, ekfac, influence, precondition, refine
from inflib.implicit import refine_stochastic
from inflib.solvers import NotConvergedError

pytestmark = pytest.mark.usefixtures("float64")


def vectors(problem: Problem, K: int = 3) -> Tensor:
    """(K, D)."""
    return torch.randn(K, len(problem.places), generator=torch.Generator().manual_seed(3))


# --- products over a sample -------------------------------------------------------------------------------------


@pytest.mark.parametrize("animal", ["plain", "tokens", "two inputs", "inputs by name"])
def test_products_over_a_sample_are_those_of_its_examples_alone(animal: str) -> None:
    case = make(n=12, splits=[5, 6]) if animal == "plain" else zoo(animal)
    curvature = ekfac(case.model, case.objective, case.train, layers=case.layers, progress=False)
    N = len(case.y)
    refined = refine(curvature, case.model, case.objective, case.train, sample=4, seed=2, progress=False)
    rows = torch.randperm(N, generator=torch.Generator().manual_seed(2))[:4].sort().values
    few = Problem(case.model, case.layers, LOSSES[case.name], _rows(case.x, rows), case.y[rows])
    assert_close(refined.to_dense(), few.gauss_newton(), 1e-12)
    assert refined.facts.examples == 4
    assert f"products over 4 of {N} examples" in repr(refined)
    assert refined.mean_eigenvalues() == curvature.mean_eigenvalues()  # damping stays that of all examples
    assert_close(
        refine(curvature, case.model, case.objective, case.train, sample=N, progress=False).to_dense(),
        case.problem.gauss_newton(),
        1e-12,
    )


def _rows(x: Any, rows: Tensor) -> Any:
    if isinstance(x, Tensor):
        return x[rows]
    return {k: v[rows] for k, v in x.items()} if isinstance(x, dict) else tuple(v[rows] for v in x)


@pytest.mark.parametrize("sample", [0, 8, -1, 2.5])
def test_a_sample_of_no_size_is_refused(sample: Any) -> None:
    case = make(n=7)
    curvature = ekfac(case.model, case.objective, case.train, progress=False)
    with pytest.raises(ValueError, match=rf"sample={sample}; expected a whole number of examples, 1 to 7, or None"):
        refine(curvature, case.model, case.objective, case.train, sample=sample, progress=False)


# --- precision --------------------------------------------------------------------------------------------------


def rounded(dtype: torch.dtype) -> tuple[Case, list, list]:
    """A case whose weights and inputs ``dtype`` holds exactly, with its data and queries in that dtype."""
    case = make("CrossEntropy", widths=(6, 8, 4), n=40, splits=[20], queries=3)
    for tensor in (*case.model.parameters(), case.x, case.query_x):
        tensor.data = tensor.data.to(torch.bfloat16).double()
    return case, batches(case.x.to(dtype), case.y, [20]), [(case.query_x.to(dtype), case.query_y)]


@pytest.mark.parametrize(
    ("dtype", "residual", "error"), [(torch.float32, 1e-4, 1e-3), (torch.bfloat16, 0.05, 0.1)], ids=str
)
def test_refined_scores_in_single_and_half_precision_are_those_of_float64(
    dtype: torch.dtype, residual: float, error: float
) -> None:
    case, data, queries = rounded(dtype)
    problem = case.problem
    exact = problem.influence(problem.gauss_newton(), 0.1, *case.queries[0])
    model = case.model.to(dtype)
    curvature = ekfac(model, case.objective, data, progress=False)
    refined = refine(curvature, model, case.objective, data, tolerance=residual, progress=False)
    solved = precondition(model, case.objective, queries, refined, 0.1, progress=False)
    assert all(x.dtype == torch.float32 for x in solved.x.values())
    assert solved.residual.shape == (3,)
    assert float(solved.residual.max()) <= residual
    came = influence(model, case.objective, data, solved, refined, 0.1, progress=False)
    assert difference(came.double(), exact) < error
    start = influence(model, case.objective, data, queries, curvature, 0.1, progress=False)
    assert difference(start.double(), exact) > error


# --- minibatches ------------------------------------------------------------------------------------------------


def least_squares() -> tuple[nn.Module, list, Tensor, Tensor]:
    """A small linear regression in ten batches, its (X with the bias's 1), and errors."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(200, 10, generator=generator), torch.randn(200, 3, generator=generator)
    x = x * 2.0 ** torch.linspace(1, -2, 10)
    model = nn.Linear(10, 3).eval()
    X = torch.cat([x, torch.ones(200, 1)], dim=1)
    return model, batches(x, y, 20), X, (model(x) - y).detach()


def test_minibatches_at_the_defaults_solve_a_small_least_squares_problem() -> None:
    model, data, X, errors = least_squares()
    curvature = ekfac(model, SquaredError(), data[:1], progress=False)  # of a tenth: far from exact
    refined = refine_stochastic(curvature, model, SquaredError(), data, progress=False)
    H = X.T @ X / 200 + 0.01 * torch.eye(11)
    v = errors[:4, :, None] * X[:4, None, :]  # (4, 3, 11) gradients
    solved = refined.solve_with_residual({"": v}, 0.01)
    exact = torch.linalg.solve(H, v.mT).mT
    assert difference(solved.x[""], exact) < 0.03
    assert difference(curvature.solve({"": v}, 0.01)[""], exact) > 0.1


def test_minibatches_stop_at_the_residual_asked_for_or_say_what_they_reached() -> None:
    case = make(widths=(3, 4, 3), n=24, splits=[6, 12, 18])
    problem, numbers = case.problem, 0.05
    curvature = ekfac(case.model, case.objective, case.train, progress=False)
    v = vectors(problem)
    A = problem.gauss_newton() + problem.damping(numbers)

    def solve(tolerance: float, steps: int) -> Any:
        refined = refine_stochastic(
            curvature, case.model, case.objective, case.train, steps, tolerance=tolerance, progress=False
        )
        return refined.solve_with_residual(problem.stacks(v), numbers)

    found = solve(1e-3, 2000)
    residual = (v - problem.flat(found.x) @ A).norm(dim=1) / v.norm(dim=1)
    assert float(residual.max()) <= 1e-3
    assert_close(found.residual, residual, 1e-8)
    assert found.steps < 2000
    assert found.steps % 4 == 0  # looked at after each epoch
    with pytest.raises(NotConvergedError, match="in 4 steps; expected 1e-12"):
        solve(1e-12, 4)


def test_defaults_of_refinement_name_the_damping_of_the_curvature_they_start_from() -> None:
    case = make(n=9)
    curvature = ekfac(case.model, CrossEntropy(), case.train, progress=False)
    for refined in (
        refine(curvature, case.model, CrossEntropy(), case.train, sample=5, progress=False),
        refine_stochastic(curvature, case.model, CrossEntropy(), case.train, progress=False),
    ):
        assert damping_of(refined, 0.1) == damping_of(curvature, 0.1)
