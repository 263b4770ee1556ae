"""Refits without an example: each is the minimum of its own objective, and influence predicts what they measure."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from oracle import LOSSES, assert_close
from torch import Tensor, nn

from inflib import Bernoulli, CrossEntropy, Objective, SquaredError, hessian, influence, predicted_change
from inflib.validation import Refit, fit_linear, leave_one_out, left_out

pytestmark = pytest.mark.usefixtures("float64")

OBJECTIVES: dict[str, Objective] = {
    "CrossEntropy": CrossEntropy(),
    "SquaredError": SquaredError(),
    "Bernoulli": Bernoulli(),
}


def data(name: str, N: int = 60, d: int = 4, C: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Inputs (N, d + 1) with a column of ones, and noisy targets of a linear rule."""
    generator = torch.Generator().manual_seed(seed)
    X = torch.cat([torch.randn(N, d, generator=generator), torch.ones(N, 1)], dim=1)
    f = X @ torch.randn(d + 1, C, generator=generator) + torch.randn(N, C, generator=generator)
    if name == "CrossEntropy":
        return X, f.argmax(1)
    return X, (f > 0).double() if name == "Bernoulli" else f


def gradient(name: str, X: Tensor, y: Tensor, l2: float, w: Tensor, theta: Tensor) -> Tensor:
    """Of (1/N) Σ w_n ℓ_n + ½ l2 ‖θ‖², by autograd through the oracle's formula."""
    theta = theta.detach().requires_grad_()
    losses = torch.func.vmap(LOSSES[name])(X @ theta.T, y)
    value = (w * losses).sum() / len(X) + 0.5 * l2 * (theta**2).sum()
    return torch.autograd.grad(value, theta)[0]


# --- minima -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_point_left_out_and_refitted_is_at_its_own_minimum(name: str) -> None:
    X, y = data(name)
    l2 = 1e-2
    full = fit_linear(OBJECTIVES[name], X, y, l2)
    refits = fit_linear(OBJECTIVES[name], X, y, l2, left_out(len(X)), start=full.theta[0])
    assert refits.theta.shape == (60, 3, 5)
    for n in (0, 17, 59):
        kept = torch.arange(len(X)) != n  # the point is really gone, and N is still 60
        scale = torch.full((59,), 59 / 60)
        slope = gradient(name, X[kept], y[kept], l2, scale, refits.theta[n])
        # the objective is l2-strongly convex: the distance from its minimum is at most ‖gradient‖ / l2
        assert float(slope.norm()) / l2 < 1e-7
        assert float((refits.theta[n] - full.theta[0]).norm()) > 1e-4
    slopes = torch.stack([gradient(name, X, y, l2, w, t) for w, t in zip(left_out(60), refits.theta, strict=True)])
    assert float(slopes.flatten(1).norm(dim=1).max()) < 2e-10
    assert bool((refits.gradient_norm <= 1e-10).all())


def test_ridge_has_its_closed_form() -> None:
    X, y = data("SquaredError")
    N, l2 = len(X), 0.03
    H = X.T @ X / N + l2 * torch.eye(5)
    theta = torch.linalg.solve(H, X.T @ y / N).T
    full = fit_linear(SquaredError(), X, y, l2)
    assert full.steps == 1
    assert_close(full.theta[0], theta, 1e-12)
    # the left-out residual is the residual over 1 − leverage
    leverage = torch.einsum("ni,ij,nj->n", X, torch.linalg.inv(H), X) / N
    refits = fit_linear(SquaredError(), X, y, l2, left_out(N))
    residuals = y - torch.einsum("ni,nci->nc", X, refits.theta)
    assert_close(residuals, (y - X @ theta.T) / (1 - leverage)[:, None], 1e-11)


def test_binary_logistic_regression_agrees_with_another_optimiser_on_the_data_without_the_point() -> None:
    X, y = data("Bernoulli", C=1)
    refits = fit_linear(Bernoulli(), X, y, 1e-2, left_out(len(X), [3, 40]))
    for row, n in enumerate((3, 40)):
        kept = torch.arange(len(X)) != n
        theta = torch.zeros(1, 5, requires_grad=True)
        optimiser = torch.optim.LBFGS([theta], max_iter=500, tolerance_grad=1e-10, tolerance_change=0)

        def closure(kept: Tensor = kept, theta: Tensor = theta) -> Tensor:
            theta.grad = None
            losses = nn.functional.softplus(X[kept] @ theta.T) - y[kept] * (X[kept] @ theta.T)
            value = losses.sum() / 60 + 0.5e-2 * (theta**2).sum()
            value.backward()
            return value

        optimiser.step(closure)
        assert_close(refits.theta[row], theta.detach(), 1e-7)


def test_newton_arrives_from_a_bad_start_with_badly_scaled_features() -> None:
    X, y = data("CrossEntropy")
    X = X * torch.tensor([100.0, 1, 0.01, 10, 1])
    found = fit_linear(CrossEntropy(), X, y, 1e-4, start=3 * torch.randn(3, 5), tolerance=1e-9)
    assert float(gradient("CrossEntropy", X, y, 1e-4, torch.ones(60), found.theta[0]).norm()) < 2e-9


def test_refits_do_not_depend_on_how_many_are_made_together() -> None:
    X, y = data("CrossEntropy")
    together = fit_linear(CrossEntropy(), X, y, 1e-2, left_out(60))
    few = fit_linear(CrossEntropy(), X, y, 1e-2, left_out(60), max_bytes=100_000)
    assert_close(few.theta, together.theta, 1e-9)
    assert few.gradient_norm.shape == together.gradient_norm.shape == (60,)


# --- the plain loop -----------------------------------------------------------------------------------------


def test_the_plain_loop_hands_each_weighting_to_the_fit() -> None:
    X, y = data("Bernoulli", N=12, C=1)

    def fit(w: Tensor) -> Tensor:
        return fit_linear(Bernoulli(), X, y, 0.1, w[None]).theta[0]

    batch = fit_linear(Bernoulli(), X, y, 0.1, left_out(12)).theta
    assert_close(leave_one_out(fit, 12), batch, 1e-8)
    assert_close(leave_one_out(fit, 12, [4, 1]), batch[[4, 1]], 1e-8)


def test_weightings_change_one_example_each() -> None:
    assert left_out(3).tolist() == [[0, 1, 1], [1, 0, 1], [1, 1, 0]]
    assert left_out(3, [2], weight=2.5).tolist() == [[1, 1, 2.5]]


# --- what influence predicts --------------------------------------------------------------------------------


def as_model(theta: Tensor) -> nn.Linear:
    """θ (C, d + 1), its last column the bias, as a model on inputs (N, d)."""
    model = nn.Linear(theta.shape[1] - 1, theta.shape[0])
    with torch.no_grad():
        model.weight.copy_(theta[:, :-1])
        model.bias.copy_(theta[:, -1])
    return model


def measured(name: str, refits: Refit, X: Tensor, y: Tensor) -> Tensor:
    """Log-likelihood of each query under each refit, (Q, M), by the oracle's formula."""
    loss: Callable = torch.func.vmap(LOSSES[name])
    return -torch.stack([loss(X @ theta.T, y) for theta in refits.theta], dim=1)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_influence_is_the_derivative_that_reweighted_refits_have(name: str) -> None:
    X, y = data(name)
    Z, z = data(name, N=5, seed=1)
    l2, h, which = 1e-2, 1e-3, [0, 7, 31]
    full = fit_linear(OBJECTIVES[name], X, y, l2, tolerance=1e-12)
    model = as_model(full.theta[0])
    train, queries = [(X[:, :-1], y)], [(Z[:, :-1], z)]
    exact = hessian(model, OBJECTIVES[name], train)
    scores = influence(model, OBJECTIVES[name], train, queries, exact, damping=l2)
    # a weight of 1 ± h is ε = ± h / N
    up, down = (
        measured(name, fit_linear(OBJECTIVES[name], X, y, l2, left_out(60, which, 1 + s), tolerance=1e-12), Z, z)
        for s in (h, -h)
    )
    assert_close((up - down) / (2 * h / 60), scores[:, which], 1e-5)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_influence_predicts_what_leaving_each_of_300_points_out_measures(name: str) -> None:
    X, y = data(name, N=300)
    Z, z = data(name, N=8, seed=1)
    l2 = 1e-2
    full = fit_linear(OBJECTIVES[name], X, y, l2)
    refits = fit_linear(OBJECTIVES[name], X, y, l2, left_out(300), start=full.theta[0])
    actual = measured(name, refits, Z, z) - measured(name, full, Z, z)
    model = as_model(full.theta[0])
    train, queries = [(X[:, :-1], y)], [(Z[:, :-1], z)]
    scores = influence(model, OBJECTIVES[name], train, queries, hessian(model, OBJECTIVES[name], train), damping=l2)
    predicted = predicted_change(scores, 300)
    for q in range(8):
        assert float(torch.corrcoef(torch.stack([predicted[q], actual[q]]))[0, 1]) > 0.99
        slope = float((predicted[q] * actual[q]).sum() / predicted[q].square().sum())
        assert slope == pytest.approx(1, abs=0.05)


# --- bad input ----------------------------------------------------------------------------------------------


def test_classes_that_a_line_separates_have_no_minimum_without_decay() -> None:
    X = torch.tensor([[-2.0, 1], [-1, 1], [1, 1], [2, 1]])
    y = torch.tensor([[0.0], [0], [1], [1]])
    with pytest.raises(RuntimeError, match=r"there is no minimum.*expected l2 > 0"):
        fit_linear(Bernoulli(), X, y, 0.0)
    fit_linear(Bernoulli(), X, y, 1e-3)


def test_a_singular_hessian_is_an_error() -> None:
    X = torch.ones(6, 2)
    with pytest.raises(ValueError, match="singular at l2=0"):
        fit_linear(SquaredError(), X, torch.randn(6, 1), 0.0)


def test_a_tolerance_below_rounding_is_not_claimed() -> None:
    X, y = data("CrossEntropy")
    with pytest.raises(RuntimeError, match=r"1 of 1 refits stopped at a gradient norm of up to .* expected 1e-30"):
        fit_linear(CrossEntropy(), X, y, 1e-2, tolerance=1e-30)


def test_inputs_and_weights_of_the_wrong_kind_are_refused() -> None:
    X, y = data("CrossEntropy")
    with pytest.raises(ValueError, match=r"torch.float32 \(60, 5\); expected float64 \(N, d\)"):
        fit_linear(CrossEntropy(), X.float(), y, 1e-2)
    with pytest.raises(ValueError, match=r"Bernoulli got targets of shape \(60,\); expected \(60, 1\)"):
        fit_linear(Bernoulli(), X, torch.ones(60), 1e-2)
    with pytest.raises(ValueError, match=r"weights have shape \(59,\); expected \(M, 60\)"):
        fit_linear(CrossEntropy(), X, y, 1e-2, torch.ones(59))
    with pytest.raises(ValueError, match=r"which=\[60\]; expected positions of training examples, 0 to 59"):
        left_out(60, [60])
