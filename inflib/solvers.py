"""Solvers that know a curvature only by its products: (C + diag λ) x = v for stacks of K vectors.

    conjugate gradients   the best x in the span of P⁻¹v, P⁻¹A P⁻¹v, ...      A = C + diag λ, P a preconditioner
    LiSSA                 x ← x + (v − A x) / σ                               the Neumann series of A / σ
    stochastic Neumann    x ← x + η P⁻¹ (r° − A_b (x − x°)), from x = P⁻¹v    A_b a minibatch's A, r° = v − A x°

Each of the K vectors has its own scalars; all take part in one product a step. Every solver returns the relative
residual ‖v − A x‖ / ‖v‖ that it reached, and raises ``NotConvergedError`` where a tolerance was asked for and not
reached. A residual ρ bounds the error: ‖x − A⁻¹v‖ ≤ ρ ‖v‖ / min λ. The preconditioner is itself a curvature, solved at
the same damping.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor

from .batches import accumulator
from .curvature import Curvature, Damping, check_stacks, flatten, resolve_damping, unflatten
from .hooks import Matrices

Matvec = Callable[[Matrices], Matrices]


class Solution(NamedTuple):
    """What a solver found, how well it solves, and what it cost."""

    x: Matrices  # {layer: (K, o, i)}
    residual: Tensor  # ‖v − (C + diag λ) x‖ / ‖v‖ of each vector, (K,)
    steps: int


class NotConvergedError(RuntimeError):
    """A solver stopped before its tolerance; ``solution`` holds the best it has."""

    def __init__(self, message: str, solution: Solution):
        super().__init__(message)
        self.solution = solution


# --- conjugate gradients ------------------------------------------------------------------------------------------


def conjugate_gradients(
    curvature: Curvature,
    v: Matrices,
    damping: Damping = None,
    *,
    preconditioner: Curvature | None = None,
    steps: int | None = None,
    tolerance: float = 1e-8,
    max_steps: int = 1000,
) -> Solution:
    """(C + diag λ)⁻¹ v by conjugate gradients, to a tolerance, or for a given number of steps.

    steps=None: until every relative residual is at most ``tolerance``. Raises NotConvergedError after ``max_steps``, or
    where rounding allows no more.
    steps=k: k steps, whatever residual they reach; 0 is the preconditioner's own answer P⁻¹v (v itself without one),
    and 1 the best multiple of it.

    The residual returned is computed afresh at the end, by one more product. Raises ValueError where the damped
    curvature or the preconditioner is not positive definite. Source: Hestenes & Stiefel 1952.
    """
    system = _System.of(curvature, v, damping, preconditioner)
    if steps is not None:
        if steps < 0 or int(steps) != steps:
            raise ValueError(f"steps={steps}; expected a whole number of conjugate-gradient steps, 0 or more.")
        if steps == 0:
            return system.solution(system.precondition(system.b), 0)
        x, _, used = _descend(system, torch.zeros_like(system.b), system.b, steps, 0.0)
        return system.solution(x, used)
    x, r, used = torch.zeros_like(system.b), system.b, 0
    before = float("inf")
    while True:
        x, r, more = _descend(system, x, r, max_steps - used, tolerance)
        used += more
        r = system.b - system.product(x)  # the recursion's residual drifts from the true one
        worst = float(system.relative(r).max())
        if worst <= tolerance:
            return Solution(system.stacks(x), system.relative(r), used)
        if used >= max_steps or worst > 0.5 * before:
            break
        before = worst
    raise NotConvergedError(
        f"conjugate gradients reached a relative residual of {worst:.2g} in {used} steps; expected {tolerance:.2g}. "
        "Give more steps (max_steps=), a preconditioner (preconditioner=ekfac(...)), more damping, or float64.",
        Solution(system.stacks(x), system.relative(r), used),
    )


def _descend(system: _System, x: Tensor, r: Tensor, steps: int, tolerance: float) -> tuple[Tensor, Tensor, int]:
    """At most ``steps`` steps from x with residual r, both (K, D); a vector that has arrived stays where it is."""
    floor = max(tolerance, torch.finfo(r.dtype).eps)
    z = system.precondition(r)
    p, rz = z, _dot(r, z)
    for step in range(steps):
        moving = system.relative(r) > floor  # (K,)
        if not bool(moving.any()):
            return x, r, step
        image = system.product(p)
        bent = _dot(p, image)  # pᵀA p, (K,)
        system.check_positive(bent, rz, moving)
        alpha = torch.where(moving, rz / bent.where(moving, 1), 0)[:, None]  # (K, 1)
        x, r = x + alpha * p, r - alpha * image
        z = system.precondition(r)
        rz, old = _dot(r, z), rz
        p = z + torch.where(moving, rz / old.where(moving, 1), 0)[:, None] * p
    return x, r, steps


# --- Neumann series -----------------------------------------------------------------------------------------------


def lissa(
    curvature: Curvature,
    v: Matrices,
    damping: Damping = None,
    *,
    tolerance: float = 1e-3,
    max_steps: int = 10_000,
    scale: float | None = None,
    seed: int = 0,
) -> Solution:
    """(C + diag λ)⁻¹ v by the Neumann series, until every relative residual is at most ``tolerance``.

    scale: σ, above half the largest eigenvalue of C + diag λ, or the series diverges; None takes 1.05 × a power
    iteration's estimate of that eigenvalue, started from ``seed``.

    x is Σ_j (I − A/σ)ʲ v / σ, which takes about (largest / smallest eigenvalue) · log(1 / tolerance) steps. Raises
    NotConvergedError after ``max_steps``, or where it diverges. Source: Agarwal et al. 2017; Koh & Liang 2017.
    """
    system = _System.of(curvature, v, damping, None)
    sigma = 1.05 * _largest(system, 30, seed) if scale is None else scale
    if not sigma > 0:
        raise ValueError(f"scale={sigma}; expected a number above half the largest eigenvalue of the damped curvature.")
    x = system.b / sigma
    step = 1
    while True:
        r = system.b - system.product(x)
        worst = float(system.relative(r).max())
        if worst <= tolerance:
            return Solution(system.stacks(x), system.relative(r), step)
        if step >= max_steps or not worst < 1e3:
            break
        x = x + r / sigma
        step += 1
    how, remedy = "reached", "Give more damping or more steps (max_steps=); conjugate_gradients needs far fewer."
    if not worst < 1e3:
        how, remedy = "diverged to", "Give a larger scale=: above half the largest eigenvalue."
    raise NotConvergedError(
        f"LiSSA {how} a relative residual of {worst:.2g} in {step} steps with scale {sigma:.3g}; expected "
        f"{tolerance:.2g}. {remedy}",
        Solution(system.stacks(x), system.relative(r), step),
    )


def stochastic_neumann(
    curvature: Curvature,
    v: Matrices,
    damping: Damping = None,
    *,
    minibatches: Iterable[Matvec],
    preconditioner: Curvature | None = None,
    steps: int = 100,
    tolerance: float | None = None,
    anchor: int = 20,
    rate: float | None = None,
    seed: int = 0,
) -> Solution:
    """(C + diag λ)⁻¹ v from minibatches' products, started from the preconditioner's answer P⁻¹v.

    minibatches: products v → C_b v, each an estimate of C v; the first ``steps`` are used (and a few for the rate).
    tolerance:   the relative residual to stop at; NotConvergedError where ``steps`` do not reach it.
    anchor:      steps between two products with ``curvature`` itself. They give the residual r° at x°, from which
                 minibatches tell only the way further, r ≈ r° − A_b (x − x°): their noise shrinks with that way, and
                 the iterates tend to the solution, where plain ones would hover about it.
    rate:        η; None takes 1 / the largest eigenvalue of P⁻¹(C_b + λ) that power iterations find on four of them,
                 and halves it where the residual has grown.

    steps=0 is P⁻¹v. Raises NotConvergedError where it diverges. Source: the idea of ASTRA (arXiv 2507.14740), a Neumann
    series by minibatches, preconditioned by EK-FAC; anchors after Johnson & Zhang 2013 (SVRG).
    """
    system = _System.of(curvature, v, damping, preconditioner)
    x = system.precondition(system.b)
    if steps == 0:
        return system.solution(x, 0)
    found, given = iter(minibatches), rate
    if rate is None:
        rate = 1 / max(_largest(system, 8, seed, matvec) for matvec in islice(found, 4))
    best, at_best, done = float("inf"), x, 0
    while True:
        r = system.b - system.product(x)
        worst = float(system.relative(r).max())
        if not worst < 1e3:
            break
        if worst > best and given is None:
            x, rate = at_best, rate / 2
            r = system.b - system.product(x)
        elif worst <= best:
            best, at_best = worst, x
        if done == steps or (tolerance is not None and best <= tolerance):
            break
        some = list(islice(found, min(anchor, steps - done)))
        done += len(some)
        start = x
        for matvec in some:
            x = x + rate * system.precondition(r - system.product(x - start, matvec))
        if not some or (len(some) < anchor and done < steps):
            raise ValueError(
                f"minibatches ended after {done} products; expected {steps}. Give an iterable without an end."
            )
    solution = Solution(system.stacks(x), system.relative(r), done)
    if not worst < 1e3:
        raise NotConvergedError(
            f"stochastic Neumann iterations diverged to a relative residual of {worst:.2g} in {done} steps with rate "
            f"{rate:.2g}; expected it to fall. Give a smaller rate=, larger minibatches or more damping.",
            solution,
        )
    if tolerance is not None and best > tolerance:
        raise NotConvergedError(
            f"stochastic Neumann iterations reached a relative residual of {best:.2g} in {done} steps; expected "
            f"{tolerance:.2g}. Give more steps=, larger minibatches or more damping.",
            solution,
        )
    return solution


def largest_eigenvalue(
    curvature: Curvature,
    damping: Damping = None,
    *,
    preconditioner: Curvature | None = None,
    steps: int = 30,
    seed: int = 0,
) -> float:
    """The largest eigenvalue of C + diag λ, or of P⁻¹(C + diag λ): a power iteration's estimate, from below."""
    one = {name: torch.zeros(1, *shape) for name, shape in curvature.shapes.items()}
    return _largest(_System.of(curvature, one, damping, preconditioner), steps, seed)


def _largest(system: _System, steps: int, seed: int, matvec: Matvec | None = None) -> float:
    """Power iteration y ← P⁻¹A y from two starts; (Ay)ᵀP⁻¹(Ay) / yᵀAy is a Rayleigh quotient of A^½P⁻¹A^½."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randn(2, system.b.shape[1], generator=generator, dtype=torch.float64).to(system.b)
    quotient = torch.zeros(())
    for _ in range(steps):
        y = y / y.norm(dim=1, keepdim=True)
        image = system.product(y, matvec)
        z = system.precondition(image)
        quotient = (_dot(image, z) / _dot(y, image)).max()
        y = z
    return float(quotient)


# --- the system ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _System:
    """A x = b with A = C + diag λ, on vectors of all layers (K, D)."""

    curvature: Curvature
    preconditioner: Curvature | None
    numbers: dict[str, float]  # λ of each layer
    diagonal: Tensor  # λ of each coordinate, (D,)
    b: Tensor  # (K, D)

    @classmethod
    def of(cls, curvature: Curvature, v: Matrices, damping: Damping, preconditioner: Curvature | None) -> _System:
        check_stacks(curvature, v)
        numbers = resolve_damping(curvature, damping)
        b = flatten(v, curvature.shapes)
        b = b.to(accumulator(b.dtype))
        rows = [b.new_full((o * i,), numbers[name]) for name, (o, i) in curvature.shapes.items()]
        return cls(curvature, preconditioner, numbers, torch.cat(rows), b)

    def stacks(self, x: Tensor) -> Matrices:
        return unflatten(x, self.curvature.shapes)

    def product(self, x: Tensor, matvec: Matvec | None = None) -> Tensor:
        """A x, with another matvec in C's place where given."""
        undamped = (matvec or self.curvature.matvec)(self.stacks(x))
        return flatten(undamped, self.curvature.shapes).to(x) + self.diagonal * x

    def precondition(self, r: Tensor) -> Tensor:
        """P⁻¹ r at the same damping."""
        if self.preconditioner is None:
            return r
        return flatten(self.preconditioner.solve(self.stacks(r), self.numbers), self.curvature.shapes).to(r)

    def relative(self, r: Tensor) -> Tensor:
        """‖r‖ / ‖b‖ of each vector, (K,); 0 for b = 0."""
        return r.norm(dim=1) / self.b.norm(dim=1).clamp_min(torch.finfo(r.dtype).tiny)

    def solution(self, x: Tensor, steps: int) -> Solution:
        return Solution(self.stacks(x), self.relative(self.b - self.product(x)), steps)

    def check_positive(self, bent: Tensor, rz: Tensor, moving: Tensor) -> None:
        """Raise ValueError where pᵀA p or rᵀP⁻¹r, (K,), is not positive."""
        for what, value in (("the damped curvature", bent), ("the preconditioner", rz)):
            if not bool((value[moving] > 0).all()):
                raise ValueError(
                    f"{what} is not positive definite (a direction has curvature {float(value[moving].min()):.3g}); "
                    "conjugate gradients expect it to be. Give more damping, or use gauss_newton for the Hessian."
                )


def _dot(x: Tensor, y: Tensor) -> Tensor:
    """Inner product of each pair of rows, (K,)."""
    return (x * y).sum(1)
