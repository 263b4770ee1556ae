"""Leave-one-out: what really happens to a convex model when an example is taken away and the model fitted again.

The objective keeps its 1/N when example n's weight w_n changes, so that leaving n out is exactly ε = −1/N:

    θ(w) = argmin_θ (1/N) Σ_n w_n ℓ_n(θ) + ½ l2 ‖θ‖²            w = 1 everywhere; w_n = 0 leaves n out

``leave_one_out`` is the plain loop, for any fit. ``fit_linear`` refits a linear model under any of the objectives for
many weightings at once, by Newton's method, so that leaving out each of a few hundred points in turn takes seconds.
With l2 as damping, (H + l2)⁻¹ is this objective's own inverse Hessian: influence is then exact to first order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..batches import BYTE_BUDGET, chunks
from ..objectives import Objective, output_gradient, part


class Refit(NamedTuple):
    """Fitted weights, one (C, d) matrix per weighting of the examples, and how near a minimum they are."""

    theta: Tensor  # (M, C, d)
    gradient_norm: Tensor  # of the objective at theta, (M,)
    steps: int  # Newton steps of the slowest


def leave_one_out(fit: Callable[[Tensor], Tensor], n_train: int, which: Iterable[int] | None = None) -> Tensor:
    """fit(w) with one example's weight after another set to 0, stacked: (len(which), ...).

    fit:   a function of the examples' weights w (n_train,) that trains and returns what is to be compared, always of
           one shape: the fitted weights, or some queries' losses.
    which: the examples to leave out; None: each in turn.
    """
    return torch.stack([fit(weights) for weights in left_out(n_train, which)])


def left_out(n_train: int, which: Iterable[int] | None = None, weight: float = 0.0) -> Tensor:
    """The weightings that give one example each ``weight`` and all others 1, (len(which), n_train) float64."""
    rows = torch.arange(n_train) if which is None else torch.as_tensor(list(which))
    if len(rows) == 0 or int(rows.min()) < 0 or int(rows.max()) >= n_train:
        raise ValueError(f"which={which!r}; expected positions of training examples, 0 to {n_train - 1}.")
    weights = torch.ones(len(rows), n_train, dtype=torch.float64)
    weights[torch.arange(len(rows)), rows] = weight
    return weights


def fit_linear(
    objective: Objective,
    inputs: Tensor,
    targets: Any,
    l2: float,
    weights: Tensor | None = None,
    *,
    start: Tensor | None = None,
    tolerance: float = 1e-10,
    max_steps: int = 100,
    max_bytes: int = BYTE_BUDGET,
) -> Refit:
    """Minimise (1/N) Σ w_n ℓ(θ x_n, y_n) + ½ l2 ‖θ‖² to a gradient norm of ``tolerance``, for each of M weightings.

    inputs:  (N, d) float64, with a column of ones where a bias is wanted (it is decayed like every other weight).
    targets: as the objective wants them for outputs (N, C): classes (N,), or numbers (N, C).
    weights: (M, N); None is one weighting, all ones.
    start:   (C, d) or (M, C, d), for instance the fit to all examples; None starts at 0.

    Newton's method with step halving, all M in one batch; for SquaredError one step is the closed form. Raises
    RuntimeError where a gradient norm stays above the tolerance or the weights run off to infinity (classes that a
    hyperplane separates, at l2 = 0), and ValueError for a singular Hessian.
    """
    if inputs.ndim != 2 or inputs.dtype != torch.float64:
        raise ValueError(f"inputs are {inputs.dtype} {tuple(inputs.shape)}; expected float64 (N, d): inputs.double().")
    weights = torch.ones(1, len(inputs)).to(inputs) if weights is None else weights.to(inputs)
    if weights.ndim != 2 or weights.shape[1] != len(inputs):
        raise ValueError(f"weights have shape {tuple(weights.shape)}; expected (M, {len(inputs)}), one row per refit.")
    problem = _Linear(objective, inputs, targets, float(l2))
    begin = problem.start(len(weights), start)
    outputs = begin.shape[1]
    each = 8 * (2 * inputs.numel() + 2 * (outputs * inputs.shape[1]) ** 2 + 4 * outputs**2 * len(inputs))
    parts = [
        _newton(problem, begin[rows], weights[rows], tolerance, max_steps)
        for rows in chunks(len(weights), each, max_bytes)
    ]
    return Refit(
        torch.cat([p.theta for p in parts]), torch.cat([p.gradient_norm for p in parts]), max(p.steps for p in parts)
    )


def _newton(problem: _Linear, theta: Tensor, weights: Tensor, tolerance: float, max_steps: int) -> Refit:
    """Newton with step halving for M weightings (M, N) at once; those that have arrived are left alone."""
    value, gradient = problem.value(theta, weights), problem.gradient(theta, weights)
    step, moved = 0, True
    while True:
        norm = gradient.flatten(1).norm(dim=1)  # (M,)
        going = (norm > tolerance).nonzero().squeeze(1)
        if len(going) == 0:
            problem.check_minimum(theta, weights, gradient)
            return Refit(theta, norm, step)
        if step == max_steps or not moved:
            break
        direction = problem.newton_direction(theta[going], weights[going], gradient[going])
        theta[going], value[going], gradient[going], moved = problem.halve(
            theta[going], direction, weights[going], value[going], gradient[going]
        )
        step += 1
    raise RuntimeError(
        f"{len(going)} of {len(theta)} refits stopped at a gradient norm of up to {float(norm.max()):.2g} after {step} "
        f"Newton steps; expected {tolerance:.2g}. Give a start nearer to the minimum, features of comparable scale, or "
        "a tolerance above rounding (1e-16 × the inputs' scale)."
    )


class _Linear:
    """(1/N) Σ w_n ℓ(θ x_n, y_n) + ½ l2 ‖θ‖² for M weightings and M matrices θ (M, C, d) at once."""

    def __init__(self, objective: Objective, inputs: Tensor, targets: Any, l2: float):
        self.objective, self.X, self.y, self.l2 = objective, inputs, targets, l2
        self.N, self.d = inputs.shape

    def start(self, M: int, theta: Tensor | None) -> Tensor:
        """(M, C, d), a copy; zeros where no start was given, with C read off the targets."""
        if theta is None:
            width = self.y.shape[1] if self.y.ndim > 1 else 1 if self.y.is_floating_point() else int(self.y.max()) + 1
            theta = torch.zeros(width, self.d).to(self.X)
        theta = theta.to(self.X).expand(M, *theta.shape[-2:]).clone()
        self.objective.check(self.outputs(theta[:1]), self.y)
        return theta

    def outputs(self, theta: Tensor) -> Tensor:
        """θ x_n, (M·N, C)."""
        return (self.X @ theta.mT).flatten(0, 1)

    def targets(self, M: int) -> Tensor:
        return self.y.expand(M, *self.y.shape).flatten(0, 1)

    def value(self, theta: Tensor, weights: Tensor) -> Tensor:
        loss = self.objective.loss(self.outputs(theta), self.targets(len(theta))).reshape(len(theta), self.N)
        return (weights * loss).sum(1) / self.N + 0.5 * self.l2 * theta.square().sum((1, 2))

    def gradient(self, theta: Tensor, weights: Tensor) -> Tensor:
        g = output_gradient(self.objective.loss, self.outputs(theta), self.targets(len(theta)))  # (M·N, C)
        g = g.reshape(len(theta), self.N, -1) * weights[:, :, None]
        return g.mT @ self.X / self.N + self.l2 * theta

    def newton_direction(self, theta: Tensor, weights: Tensor, gradient: Tensor) -> Tensor:
        """−H⁻¹ gradient; H = (1/N) Σ w_n H_out ⊗ x xᵀ + l2, with H_out = Σ_c s_c s_cᵀ from the objective's seeds."""
        M, C, d = theta.shape
        seeds = part(self.objective, "seeds")(self.outputs(theta), self.targets(M))
        S = torch.stack(list(seeds)).reshape(-1, M, self.N, C)
        H_out = torch.einsum("smnc,smnk->ckmn", S, S) * (weights / self.N)
        H = theta.new_empty(M, C, d, C, d)
        for c in range(C):
            for k in range(c + 1):
                H[:, c, :, k, :] = (self.X.T * H_out[c, k][:, None, :]) @ self.X  # (M, d, d)
                H[:, k, :, c, :] = H[:, c, :, k, :]
        H = H.reshape(M, C * d, C * d)
        H.diagonal(dim1=1, dim2=2).add_(self.l2)
        factor, failed = torch.linalg.cholesky_ex(H)
        if bool(failed.any()):
            raise ValueError(
                f"the Hessian is singular at l2={self.l2:g}; expected l2 > 0, or features independent of each other."
            )
        return -torch.cholesky_solve(gradient.reshape(M, C * d, 1), factor).reshape(M, C, d)

    def check_minimum(self, theta: Tensor, weights: Tensor, gradient: Tensor) -> None:
        """Raise RuntimeError where the gradient vanishes only because θ runs off to infinity."""
        if self.l2 > 0:
            return  # the minimum is at most ‖gradient‖ / l2 away
        left = self.newton_direction(theta, weights, gradient).flatten(1).norm(dim=1)
        if bool((left > 1e-3 * theta.flatten(1).norm(dim=1)).any()):
            raise RuntimeError(
                "there is no minimum: the weights grow without end, because a hyperplane separates the classes; "
                "expected l2 > 0 for such data."
            )

    def halve(
        self, theta: Tensor, direction: Tensor, weights: Tensor, value: Tensor, gradient: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, bool]:
        """The first of the steps 1, ½, ¼, ... that lowers the objective or, at its rounding, the gradient's norm."""
        norm = gradient.flatten(1).norm(dim=1)
        moved = torch.zeros(len(theta), dtype=torch.bool)
        size = torch.ones(len(theta)).to(theta)
        for _ in range(30):
            tried = torch.where(moved[:, None, None], theta, theta + size[:, None, None] * direction)
            new_value, new_gradient = self.value(tried, weights), self.gradient(tried, weights)
            lower = new_value < value
            level = new_value <= value + 4 * torch.finfo(value.dtype).eps * value.abs()
            accept = (lower | (level & (new_gradient.flatten(1).norm(dim=1) < norm))) & ~moved
            theta = torch.where(accept[:, None, None], tried, theta)
            value = torch.where(accept, new_value, value)
            gradient = torch.where(accept[:, None, None], new_gradient, gradient)
            moved |= accept
            if bool(moved.all()):
                break
            size = size / 2
        return theta, value, gradient, bool(moved.any())
