"""L-BFGS on many functions at once: known minima, each row on its own, kinks reported."""

from __future__ import annotations

import pytest
import torch
from oracle import assert_close
from torch import Tensor

from inflib.validation.lbfgs import HALVED, minimise

pytestmark = pytest.mark.usefixtures("float64")


def with_gradient(values: object) -> object:
    """A function of (u, rows) → (values, gradients), from one of values alone."""

    def function(u: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        u = u.detach().requires_grad_()
        found = values(u, rows)  # type: ignore[operator]
        (gradient,) = torch.autograd.grad(found.sum(), u)
        return found.detach(), gradient

    return function


def test_quadratics_of_many_shapes_are_solved_together() -> None:
    M, D = 6, 12
    Q = torch.linalg.qr(torch.randn(M, D, D)).Q
    A = Q * (10 ** torch.linspace(-1, 1, D)) @ Q.mT
    b = torch.randn(M, D) * 10 ** torch.linspace(-6, 6, M)[:, None]

    def values(u: Tensor, rows: Tensor) -> Tensor:
        return torch.einsum("mi,mij,mj->m", u, A[rows], u) / 2 - (b[rows] * u).sum(1)

    found = minimise(with_gradient(values), torch.zeros(M, D), 1e-7, 200)  # type: ignore[arg-type]
    assert bool((found.gradient_norm <= 1e-7).all())
    for m in range(M):
        assert_close(found.u[m], torch.linalg.solve(A[m], b[m]), 1e-5)


def test_a_curved_valley_is_followed_to_its_end() -> None:
    bend = torch.tensor([1.0, 30.0, 100.0])

    def rosenbrock(u: Tensor, rows: Tensor) -> Tensor:
        return (1 - u[:, 0]) ** 2 + bend[rows] * (u[:, 1] - u[:, 0] ** 2) ** 2

    start = torch.tensor([[-1.2, 1.0]]).expand(3, 2)
    found = minimise(with_gradient(rosenbrock), start, 1e-9, 500)  # type: ignore[arg-type]
    assert_close(found.u, torch.ones(3, 2), 1e-6)
    assert bool((found.gradient_norm <= 1e-9).all())


def test_a_minimum_on_a_kink_ends_the_row_and_shows_in_its_gradient_norm() -> None:
    def values(u: Tensor, rows: Tensor) -> Tensor:
        smooth = ((u - 1) ** 2).sum(1)
        return smooth + torch.where(rows == 1, 5 * u[:, 0].abs(), torch.zeros(()))

    found = minimise(with_gradient(values), torch.full((2, 2), 3.0), 1e-8, 10_000)  # type: ignore[arg-type]
    assert found.steps < 1000
    assert_close(found.u[0], torch.ones(2), 1e-8)
    assert float(found.u[1, 0].abs()) < 1e-3
    assert float(found.gradient_norm[0]) <= 1e-8 < 1e-2 < float(found.gradient_norm[1])


def test_a_row_whose_value_no_longer_falls_by_what_the_tolerance_counts_ends_early() -> None:
    bend = torch.tensor([1.0, 3.0, 10.0])

    def valley(u: Tensor, rows: Tensor) -> Tensor:  # kinks along a curve and along a diagonal, 0 at the minimum
        kinks = bend[rows] * (u[:, 1] - u[:, 0] ** 2).abs() + (u[:, 2] - u[:, 3]).abs()
        return kinks + (1 - u[:, 0]) ** 2 + 0.1 * (u[:, 2:] ** 2).sum(1)

    start = torch.tensor([[-1.2, 1.0, 3.0, -2.0, 1.0]]).expand(3, 5)
    coarse, fine = (minimise(with_gradient(valley), start, t, 100_000) for t in (1e-3, 1e-6))  # type: ignore[arg-type]
    for found in (coarse, fine):
        assert float(found.gradient_norm.min()) > 1e-2  # the gradient never vanishes
        assert float(valley(found.u, torch.arange(3)).max()) < 1e-2
    assert coarse.steps < fine.steps


def test_a_row_that_starts_at_its_minimum_stays() -> None:
    found = minimise(with_gradient(lambda u, rows: (u**2).sum(1)), torch.zeros(2, 3), 1e-6, 10)  # type: ignore[arg-type]
    assert found.steps == 0
    assert bool((found.u == 0).all())
    assert bool((found.gradient_norm == 0).all())


def test_a_row_whose_gradient_no_longer_shrinks_is_given_up_however_many_steps_there_are() -> None:
    def function(u: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        tilt = torch.where(rows == 0, 1e-4, 0.0)  # row 0 falls a little for ever, row 1 has a minimum
        value = 5 * u[:, 0].square() - tilt * u[:, 1].tanh() - tilt * u[:, 1] * 1e-3
        slope = -tilt * (1 - u[:, 1].tanh().square()) - tilt * 1e-3
        return value, torch.stack([10 * u[:, 0], slope], dim=1)

    found = minimise(function, torch.ones(2, 2), 1e-9, 100_000)
    assert found.gradient_norm[0] > 1e-9 >= found.gradient_norm[1]
    assert found.steps <= 4 * HALVED
