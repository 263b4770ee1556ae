"""The proximal Bregman response: minima of the objective as it is written, and influence with exact G as ε → 0."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from networks import Case, batches, make, snapshot, zoo
from oracle import LOSSES, Problem, assert_close, difference
from torch import Tensor

from inflib import diagonal, ekfac, identity, influence, refine
from inflib.validation import InterpolationWarning, NotConvergedWarning, pbrf

pytestmark = pytest.mark.usefixtures("float64")


def respond(case: Case, which: list[int], numbers: Any, **options: Any) -> Any:
    return pbrf(case.model, case.objective, case.train, case.queries, which, numbers, progress=False, **options)


def numbers_for(problem: Problem, factor: float = 1.0) -> dict[str, float]:
    """Dampings near G's own size, different in every layer."""
    means = problem.relative(problem.gauss_newton(), factor)
    return {name: value * (1 + k) for k, (name, value) in enumerate(means.items())}


def divergence(name: str, before: Tensor, f: Tensor) -> Tensor:
    """KL(p° ‖ p), or ½‖f − f°‖², of one example, from the definitions."""
    if name == "CrossEntropy":
        p, q = before.exp() / before.exp().sum(), f.exp() / f.exp().sum()
        return (p * (p / q).log()).sum()
    if name == "Bernoulli":
        p, q = 1 / (1 + (-before).exp()), 1 / (1 + (-f).exp())
        return (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).sum()
    return ((f - before) ** 2).sum() / 2


def objective(case: Case, n: int, numbers: dict[str, float], epsilon: float, delta: Tensor) -> Tensor:
    """PBO(Δ) for Δ (D,), written out."""
    problem = case.problem
    theta, damping = problem.theta, problem.damping(numbers).diagonal()

    def one(x: Tensor) -> Tensor:
        return divergence(case.name, problem.outputs_of(theta, x).detach(), problem.outputs_of(theta + delta, x))

    total = torch.stack([one(x) for x in case.x]).mean()
    total = total + epsilon * LOSSES[case.name](problem.outputs_of(theta + delta, case.x[n]), case.y[n])
    return total + 0.5 * (damping * delta**2).sum()


NAMES = ["CrossEntropy", "SquaredError", "Bernoulli"]


@pytest.mark.parametrize("name", NAMES)
def test_the_change_found_is_a_minimum_of_the_objective(name: str) -> None:
    case = make(name, widths=(3, 4, 3), n=8, splits=[3])
    numbers, epsilon, which = numbers_for(case.problem), 0.3, [6, 0]
    found = respond(case, which, numbers, epsilon=epsilon, tolerance=1e-7)
    assert bool(found.converged.all())
    flat = case.problem.flat(found.delta)
    for row, n in enumerate(which):
        delta = flat[row].clone().requires_grad_()
        value = objective(case, n, numbers, epsilon, delta)
        (slope,) = torch.autograd.grad(value, delta)
        zero = torch.zeros_like(delta).requires_grad_()
        before = objective(case, n, numbers, epsilon, zero)
        (first,) = torch.autograd.grad(before, zero)
        assert float(slope.norm() / first.norm()) < 1e-6
        assert float(value.detach()) < float(before.detach())
        for _ in range(5):
            aside = delta.detach() + 1e-2 * delta.detach().norm() * torch.randn_like(delta) / len(delta) ** 0.5
            assert float(objective(case, n, numbers, epsilon, aside)) > float(value.detach())


def test_a_linear_model_with_squared_error_has_the_closed_form() -> None:
    case = make("SquaredError", widths=(3, 2), n=9, splits=[4])
    problem = case.problem
    damping, epsilon = {"fc0": 0.05}, 0.4
    found = respond(case, [5, 2, 8], damping, epsilon=epsilon, tolerance=1e-9)
    for row, n in enumerate((5, 2, 8)):
        x = torch.cat([case.x[n], torch.ones(1)])
        # stationary: Δ (E[x xᵀ] + λ) + ε ((W + Δ) x − y) xᵀ = 0
        X = torch.cat([case.x, torch.ones(9, 1)], dim=1)
        H = X.T @ X / 9 + 0.05 * torch.eye(4) + epsilon * torch.outer(x, x)
        error = problem.outputs()[n] - case.y[n]
        expected = -epsilon * torch.outer(error, torch.linalg.solve(H, x)).detach()
        assert_close(found.delta["fc0"][row], expected, 1e-8)
        after = case.query_x @ (case.model.fc0.weight + expected[:, :-1]).T + case.model.fc0.bias + expected[:, -1]
        before = case.model(case.query_x)
        change = 0.5 * ((before - case.query_y) ** 2 - (after - case.query_y) ** 2).sum(1)
        assert_close(found.change[:, row], change.detach(), 1e-7)
    assert_close(found.response, found.change / epsilon, 1e-15)


@pytest.mark.parametrize("name", NAMES)
def test_the_response_tends_to_influence_with_the_exact_damped_matrix(name: str) -> None:
    case = make(name, widths=(3, 5, 4, 3), n=10, splits=[4])
    problem = case.problem
    numbers, which = numbers_for(problem), [1, 4, 9]
    exact = problem.influence(problem.gauss_newton(), numbers, case.query_x, case.query_y)[:, which]
    responses = {
        epsilon: respond(case, which, numbers, epsilon=epsilon, tolerance=1e-6).response
        for epsilon in (1e-2, 1e-3, -1e-3)
    }
    errors = {epsilon: difference(response, exact) for epsilon, response in responses.items()}
    assert errors[1e-3] == pytest.approx(errors[1e-2] / 10, rel=0.3)  # of first order in ε
    assert_close((responses[1e-3] + responses[-1e-3]) / 2, exact, 1e-3)


def test_the_response_agrees_with_the_librarys_own_refined_scores_in_sign_and_units() -> None:
    case = make("CrossEntropy", widths=(4, 6, 3), n=20, splits=[7, 14])
    curvature = ekfac(case.model, case.objective, case.train)
    refined = refine(curvature, case.model, case.objective, case.train, tolerance=1e-10)
    for measurement in ("log_likelihood", "margin"):
        scores = influence(case.model, case.objective, case.train, case.queries, refined, measurement=measurement)
        found = respond(case, [3, 13], None, curvature=curvature, epsilon=1e-4, tolerance=1e-6, measurement=measurement)
        assert_close(found.response, scores[:, [3, 13]], 1e-2)


def test_the_default_is_to_count_the_example_twice() -> None:
    case = make(n=8)
    found = respond(case, [2], numbers_for(case.problem))
    assert found.epsilon == 1 / 8
    assert_close(found.change, found.response / 8, 1e-15)


def test_whitening_changes_the_path_and_not_the_minimum() -> None:
    case = make("CrossEntropy", widths=(3, 4, 3), n=8)
    numbers = numbers_for(case.problem)
    found = [
        respond(
            case,
            [2, 6],
            numbers,
            curvature=method(case.model, case.objective, case.train),
            epsilon=0.1,
            tolerance=1e-8,
        )
        for method in (ekfac, diagonal, identity)
    ]
    for other in found[1:]:
        assert_close(other.response, found[0].response, 1e-6)


def test_examples_are_minimised_together_as_they_would_be_alone() -> None:
    case = make("Bernoulli", widths=(3, 4, 2), n=8)
    numbers = numbers_for(case.problem)
    together = respond(case, [0, 3, 7], numbers, epsilon=0.1, tolerance=1e-8)
    alone = respond(case, [0, 3, 7], numbers, epsilon=0.1, tolerance=1e-8, max_bytes=1)
    assert_close(together.response, alone.response, 1e-6)
    assert together.gradient_norm.shape == together.converged.shape == (3,)


def test_chosen_layers_move_and_the_others_stay() -> None:
    case = make("CrossEntropy", widths=(3, 4, 4, 3), n=8)
    found = respond(case, [1], {"fc2": 0.1}, layers="fc2", epsilon=1e-4, tolerance=1e-7)
    assert list(found.delta) == ["fc2"]
    last = Problem(case.model, ["fc2"], LOSSES[case.name], case.x, case.y)
    exact = last.influence(last.gauss_newton(), 0.1, case.query_x, case.query_y)[:, [1]]
    assert_close(found.response, exact, 1e-3)


@pytest.mark.parametrize("animal", ["two inputs", "inputs by name", "transformer layer", "called twice", "residual"])
def test_models_of_every_kind_respond_as_the_exact_matrix_says(animal: str) -> None:
    case = zoo(animal)
    problem = case.problem
    numbers = numbers_for(problem)
    before = snapshot(case.model)
    found = respond(case, [5], numbers, layers=case.layers, epsilon=1e-5, tolerance=1e-5)
    assert snapshot(case.model) == before
    exact = problem.influence(problem.gauss_newton(), numbers, case.query_x, case.query_y)[:, [5]]
    assert_close(found.response, exact, 1e-3)


# --- what it says when it cannot ----------------------------------------------------------------------------


def test_what_did_not_converge_is_said() -> None:
    case = make(widths=(3, 5, 5, 3), n=8)
    numbers = numbers_for(case.problem)
    with pytest.warns(NotConvergedWarning, match=r"0 of 2 converged.*expected 1e-06"):
        found = respond(case, [0, 1], numbers, epsilon=0.1, tolerance=1e-6, max_steps=2)
    assert not bool(found.converged.any())
    assert bool((found.gradient_norm > 1e-6).all())
    with warnings.catch_warnings():
        warnings.simplefilter("error", NotConvergedWarning)
        found = respond(case, [0, 1], numbers, epsilon=0.1, tolerance=1e-6)
    assert "2 of 2 converged" in repr(found)


def test_bad_arguments_are_refused() -> None:
    case = make(n=8)
    numbers = numbers_for(case.problem)
    with pytest.raises(ValueError, match="which holds 8; expected positions in train, 0 to 7"):
        respond(case, [0, 8], numbers)
    with pytest.raises(ValueError, match="which is empty"):
        respond(case, [], numbers)
    with pytest.raises(ValueError, match="epsilon=0"):
        respond(case, [0], numbers, epsilon=0.0)
    single = make(n=8)
    single.model.float()
    train = batches(single.x.float(), single.y, [4])
    with pytest.raises(ValueError, match=r"layer 'fc0' is torch.float32; expected float64"):
        pbrf(single.model, single.objective, train, train, [0], numbers, progress=False)


# --- kinks, networks that interpolate, and what scores are worth ---------------------------------------------


def test_a_descent_that_stalls_on_a_kink_is_given_up_and_said_and_a_smooth_one_ends() -> None:
    for activation in ("relu", "tanh"):
        case = make("CrossEntropy", widths=(4, 8, 3), n=16, activation=activation, splits=[8])
        asked = {"epsilon": 0.03, "tolerance": 1e-6, "max_steps": 100_000}
        if activation == "tanh":
            assert bool(respond(case, [0, 5], numbers_for(case.problem, 0.3), **asked).converged.all())
            continue
        with pytest.warns(NotConvergedWarning, match="by_proximal leaves the others out"):
            found = respond(case, [0, 1, 5], numbers_for(case.problem, 0.3), **asked)
        assert found.converged.tolist() == [False, False, True]


def test_a_network_that_interpolates_is_warned_of_before_anything_is_minimised() -> None:
    case = make("CrossEntropy", widths=(3, 3), n=8, splits=[3])
    with torch.no_grad():
        case.model.fc0.weight.zero_()
        case.model.fc0.bias.copy_(torch.tensor([9.0, 0.0, 0.0]))
    case.y.zero_()
    loss = -torch.log_softmax(torch.tensor([9.0, 0.0, 0.0]), 0)[0]
    with pytest.warns(InterpolationWarning, match=rf"mean training loss is {float(loss):.2g}; expected 0.005 or more"):
        respond(case, [0], {"fc0": 0.1}, max_steps=0, tolerance=2.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error", InterpolationWarning)
        respond(make(n=8), [0], numbers_for(make(n=8).problem), max_steps=0, tolerance=2.0)
