"""Between EK-FAC and the exact curvature there is a dial: conjugate-gradient steps, preconditioned by EK-FAC.

``refine`` gives a curvature whose ``matvec`` is the exact Gauss-Newton G, by products, and whose ``solve`` takes so
many steps from EK-FAC's answer towards (G + diag λ)⁻¹ v:

    steps = 0      EK-FAC itself
    steps = 1      EK-FAC times one scalar per vector (a line search)
    steps → ∞      the exact solve

Each step walks over the data once, for all vectors together, and so does finding the residual. A truncated solve is not
linear in v, so in a score only the query side is solved, as ``influence`` does. ``solve_with_residual`` says how far
the dial has come.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .batches import Data, batch_size, rows_of, walk
from .curvature import (
    Curvature,
    Damping,
    Facts,
    Relative,
    check_stacks,
    describe,
    flatten,
    layers_of,
    resolve_damping,
    unflatten,
)
from .exact import gauss_newton_product
from .fingerprints import hash_weights
from .finite import check_numbers
from .hooks import Matrices
from .kronecker import diagonal
from .layers import Exactly
from .objectives import Objective, TooManySeedsError
from .order import Same
from .placement import plain_numbers
from .solvers import Matvec, Solution, conjugate_gradients, stochastic_neumann

Solver = Callable[[Curvature, Matrices, dict[str, float]], Solution]  # (curvature, v, {layer: λ})


@dataclass(frozen=True, eq=False)
class Implicit:
    """A curvature known only by its products with vectors; ``solve`` runs a solver on them."""

    product: Matvec  # v → C v, for stacks {layer: (K, o, i)}
    solver: Solver
    shapes: dict[str, tuple[int, int]]  # {layer: (o, i)}
    means: dict[str, float]  # mean eigenvalue of each layer's block
    facts: Facts

    @property
    def layers(self) -> tuple[str, ...]:
        return tuple(self.shapes)

    @property
    def default_damping(self) -> Relative:
        return Relative(0.1)

    def mean_eigenvalues(self) -> dict[str, float]:
        """mean(Λ_layer): the unit that relative damping is measured in."""
        return dict(self.means)

    @plain_numbers
    def matvec(self, v: Matrices) -> Matrices:
        """C v for stacks {layer: (K, o, i)}."""
        check_stacks(self, v)
        return self.product(v)

    def solve(self, v: Matrices, damping: Damping = None) -> Matrices:
        """(C + diag λ)⁻¹ v, as far as the solver comes; it raises NotConvergedError where it was given a tolerance."""
        return self.solve_with_residual(v, damping).x

    @plain_numbers
    def solve_with_residual(self, v: Matrices, damping: Damping = None) -> Solution:
        """``solve`` with the relative residual ‖v − (C + diag λ) x‖ / ‖v‖ it reached for each vector, (K,)."""
        check_stacks(self, v)
        solution = self.solver(self, v, resolve_damping(self, damping))
        check_numbers("solution (C + λ)⁻¹ v", solution.x)
        return solution

    @plain_numbers
    def to_dense(self) -> Tensor:
        """The (D, D) matrix by products with all unit vectors: for small models."""
        size = sum(o * i for o, i in self.shapes.values())
        matrix = flatten(self.product(unflatten(torch.eye(size, dtype=torch.float64), self.shapes)), self.shapes)
        return (matrix + matrix.T) / 2

    def __repr__(self) -> str:
        return describe(self)


@plain_numbers
def refine(
    curvature: Curvature,
    model: nn.Module,
    objective: Objective,
    data: Data,
    steps: int = 10,
    *,
    tolerance: float | None = None,
    sample: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Implicit:
    """The exact Gauss-Newton Hessian over ``data``, solved by conjugate gradients that start where ``curvature`` ends.

    curvature: the preconditioner, at whatever damping is asked for: an EK-FAC of this model (or any other curvature).
    steps:     conjugate-gradient steps of each ``solve``; 0 is ``curvature`` itself.
    tolerance: in place of ``steps``, the relative residual to reach; ``solve`` raises NotConvergedError where it fails.
    sample:    how many examples the products are over, drawn without replacement from ``seed``; None for all. G is then
               these examples' own, and they are kept in memory.

    The default damping of 0.1 · mean Λ suits EK-FAC and is too small here: at it refined scores predicted retraining
    worse than at their best, by 0.10 to 0.25 of LDS in seven settings (``benchmarks/damping_choice.py``). Give one of
    the mean's size, or ``doubt.damping_by_training(...)``. The model and the data are kept, not copied: ``solve``
    raises ValueError once the weights have changed.
    """
    if tolerance is None:
        solver = partial(conjugate_gradients, preconditioner=curvature, steps=steps)
        how = f"{steps} conjugate-gradient steps"
    else:
        solver = partial(conjugate_gradients, preconditioner=curvature, tolerance=tolerance)
        how = f"conjugate gradients to {tolerance:g}"
    return _implicit(curvature, model, objective, data, solver, how, progress, sample, seed)


@plain_numbers
def refine_stochastic(
    curvature: Curvature,
    model: nn.Module,
    objective: Objective,
    data: Data,
    steps: int = 100,
    *,
    tolerance: float | None = None,
    rate: float | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Implicit:
    """As ``refine``, by stochastic Neumann iterations, where a product over all the data for every step is too dear.

    A step uses one batch of ``data``: a list's batches come in an order drawn anew for each epoch from ``seed``, a
    loader's in its own. One product over all of the data at the start and after each epoch tells the residual, at which
    ``tolerance`` stops before ``steps`` do. See ``stochastic_neumann``.
    """

    data = Same.of(data, "data", ordered=False)

    epoch = sum(1 for _ in walk(data, name="data", progress=False))

    def solver(implicit: Curvature, v: Matrices, damping: dict[str, float]) -> Solution:
        minibatches = _minibatches(model, objective, data, seed)
        return stochastic_neumann(
            implicit, v, damping, minibatches=minibatches, preconditioner=curvature,
            steps=steps, tolerance=tolerance, anchor=epoch, rate=rate, seed=seed,
        )  # fmt: skip

    return _implicit(curvature, model, objective, data, solver, f"{steps} stochastic Neumann steps", progress)


def _implicit(
    curvature: Curvature,
    model: nn.Module,
    objective: Objective,
    data: Data,
    solver: Solver,
    how: str,
    progress: bool,
    sample: int | None = None,
    seed: int = 0,
) -> Implicit:
    """G by products over ``data``, or a sample of it, with ``curvature``'s layers and shapes, and this solver."""
    layers_of(model, curvature)
    weights, data = hash_weights(model), Same.of(data, "data", ordered=False)
    examples = sum(batch.size for batch in walk(data, name="data", progress=False))
    some: Data = data
    if sample is not None:
        some = _sampled(data, examples, sample, seed)
        how, examples = f"{how}, products over {sample} of {examples} examples", sample

    def product(v: Matrices) -> Matrices:
        if hash_weights(model) != weights:
            raise ValueError(
                "the model's weights changed after refine(...); expected the same ones. Call refine again."
            )
        return gauss_newton_product(model, objective, some, v, progress=progress)

    method = f"refined {curvature.facts.method} ({how})"
    means, labels = _means(curvature, model, objective, data, progress)
    facts = Facts(method, labels, draws=1, seed=0, examples=examples, weights=weights)
    return Implicit(product, solver, dict(curvature.shapes), means, facts)


def _sampled(data: Data, examples: int, size: int, seed: int) -> list[tuple[Any, Any]]:
    """The batches with only those examples that were drawn, in their order."""
    if not 1 <= size <= examples or int(size) != size:
        raise ValueError(f"sample={size}; expected a whole number of examples, 1 to {examples}, or None for all.")
    drawn = torch.randperm(examples, generator=torch.Generator().manual_seed(seed))[:size].sort().values
    found = []
    for batch in walk(data, name="data", progress=False):
        rows = (drawn[(drawn >= batch.start) & (drawn < batch.start + batch.size)] - batch.start).tolist()
        if rows:
            found.append(tuple(rows_of(part, rows, batch.size) for part in (batch.inputs, batch.targets)))
    return found


def _means(
    curvature: Curvature, model: nn.Module, objective: Objective, data: Data, progress: bool
) -> tuple[dict[str, float], str]:
    """Mean eigenvalue of each block of G, and the labels it is of: EK-FAC's Λ has G's trace, else one pass finds it.

    Those labels are expected ones, as G's are; drawn ones where that would take too many backward passes.
    """
    facts = curvature.facts
    if facts.method not in ("K-FAC", "identity") and facts.labels != "observed":
        return curvature.mean_eigenvalues(), "expected"
    for labels in ("expected", "sampled"):
        try:
            found = diagonal(model, objective, data, Exactly(curvature.shapes), labels, progress=progress)
        except TooManySeedsError:
            continue
        return found.mean_eigenvalues(), labels
    raise AssertionError("sampled labels take one backward pass")


def _minibatches(model: nn.Module, objective: Objective, data: Same, seed: int) -> Iterator[Matvec]:
    """Products with one batch's share of G after another, without end, scaled so that their mean is G."""
    sizes = [batch.size for batch in walk(data, name="data", progress=False)]
    generator = torch.Generator().manual_seed(seed)

    def product(v: Matrices, batch: tuple) -> Matrices:
        share = batch_size(batch[1], "data", 0) * len(sizes) / sum(sizes)
        found = gauss_newton_product(model, objective, [batch], v, progress=False)
        return {name: share * x for name, x in found.items()}

    while True:
        for batch in _epoch(data, torch.randperm(len(sizes), generator=generator).tolist()):
            yield partial(product, batch=batch)


def _epoch(data: Same, order: list[int]) -> Iterator[Any]:
    """Every batch once: a list's in this order, a loader's in its own."""
    if not isinstance(data.data, Sequence):
        yield from data
        return
    for k in order:
        data.check(k, data.data[k])
        yield data.data[k]
