"""The proximal Bregman response: what influence with the damped Gauss-Newton matrix estimates, found by minimising.

For a network that is not at a minimum, or whose Hessian is singular, no retraining defines dθ/dε. The proximal Bregman
objective does (Bae et al. 2022, "If influence functions are the answer, then what is the question?"; Grosse et al. 2023, eq. 7–9):

    PBO(Δ) = (1/N) Σ_n D(f_n(θ + Δ), f_n(θ)) + ε ℓ_m(θ + Δ) + ½ Σ_layer λ_layer ‖Δ_layer‖²

D is the Bregman divergence of the loss in the outputs, D(f, f°) = ℓ(f) − ℓ(f°) − ⟨∇ℓ(f°), f − f°⟩: KL(p° ‖ p) for softmax
and Bernoulli outputs, ½‖f − f°‖² for squared error, whatever the label. Its minimum is Δ = 0 at ε = 0, its Hessian
there is G + diag λ, and the response (m(θ + Δ(ε)) − m(θ)) / ε tends to the influence score with exact G as ε → 0.

Minimised by L-BFGS in whitened coordinates u, Δ = (C + λ)^-½ u with C an EK-FAC, in float64. Take ε > 0: a negative one
pushes the example's loss up without bound. On a network that interpolates its data (training loss below .005) the objective
is nearly flat and ill-conditioned: train with weight decay, and use damping of 1e-2 or more.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..batches import Data, call, walk
from ..curvature import Damping, Kronecker, ekfac, flatten, resolve_damping, unflatten
from ..hooks import Matrices, check_mode
from ..layers import Layer, LayerSpec
from ..objectives import Measurement, Objective, output_gradient
from ..scoring import layers_of


class NotConvergedWarning(UserWarning):
    """A proximal objective was not minimised to the gradient norm asked for."""


@dataclass(frozen=True, eq=False)
class Proximal:
    """The minimisers of the proximal Bregman objectives of M training examples, and what they do to Q queries."""

    response: Tensor  # (m(θ + Δ) − m(θ)) / ε, (Q, M): comparable with influence(...)[:, which]
    change: Tensor  # m(θ + Δ) − m(θ), (Q, M)
    delta: Matrices  # {layer: (M, o, i)}
    gradient_norm: Tensor  # ‖∇PBO‖ in whitened coordinates, relative to that at Δ = 0, (M,)
    converged: Tensor  # (M,) bool
    epsilon: float

    def __repr__(self) -> str:
        Q, M = self.response.shape
        return (
            f"proximal Bregman response of {Q} queries to {M} examples, ε = {self.epsilon:g}: {int(self.converged.sum())} "
            f"of {M} converged, relative gradient norm at most {float(self.gradient_norm.max()):.2g}"
        )


def pbrf(
    model: nn.Module,
    objective: Objective,
    train: Data,
    queries: Data,
    which: Iterable[int],
    damping: Damping = None,
    *,
    layers: LayerSpec = None,
    epsilon: float | None = None,
    measurement: Measurement | None = None,
    curvature: Kronecker | None = None,
    tolerance: float = 1e-5,
    max_steps: int = 500,
    progress: bool = True,
) -> Proximal:
    """Minimise the proximal Bregman objective of each training example in ``which``; the response of every query.

    which:     positions in ``train`` of the M examples that get the extra weight ε.
    damping:   λ of the proximity term, as for ``influence``; None and relative(...) refer to ``curvature``.
    epsilon:   ε; None is 1/N, which counts the example twice.
    curvature: the EK-FAC that whitens (it changes the path, not the minimum); None fits one on ``layers``.
    tolerance: of the gradient norm in whitened coordinates, relative to that at Δ = 0. NotConvergedWarning where it is
               not reached in ``max_steps`` L-BFGS iterations; ``gradient_norm`` and ``converged`` say which.

    Raises ValueError for a model that is not float64, for ε = 0 and for positions out of range.
    """
    check_mode(model)
    if curvature is None:
        curvature = ekfac(model, objective, train, layers, progress=progress)
    problem = _Problem.of(model, objective, train, curvature, damping)
    epsilon = 1 / problem.examples if epsilon is None else float(epsilon)
    if epsilon == 0:
        raise ValueError("epsilon=0 asks for the response to no change; expected a small number, positive: 1/N.")
    found, norms = [], []
    for inputs, targets in problem.rows(list(which)):
        delta, norm = problem.minimise(inputs, targets, epsilon, tolerance, max_steps)
        found.append(delta)
        norms.append(norm)
    delta = {k: torch.stack([d[k] for d in found]) for k in curvature.layers}
    before = _measure(problem, queries, measurement, None)
    after = [_measure(problem, queries, measurement, d) for d in found]
    change = torch.stack([m - before for m in after], dim=1)  # (Q, M)
    reached = torch.tensor(norms, dtype=torch.float64)
    result = Proximal(change / epsilon, change, delta, reached, reached <= tolerance, epsilon)
    if not bool(result.converged.all()):
        warnings.warn(f"{result}; expected {tolerance:g}. Give more max_steps, more damping, or a smaller ε.",
                      NotConvergedWarning, stacklevel=2)
    return result


@dataclass(frozen=True, eq=False)
class _Problem:
    """What all of the objectives share: the data with its trained outputs, and the whitening coordinates."""

    model: nn.Module
    objective: Objective
    layers: dict[str, Layer]
    theta: Matrices  # trained weights, (o, i)
    batches: list[tuple[Any, Any, Tensor, Tensor, Tensor]]  # inputs, targets, f°, ℓ(f°) (B,), ∇ℓ(f°)
    examples: int
    curvature: Kronecker
    damping: dict[str, float]
    whiten: dict[str, Tensor]  # 1 / √(Λ + λ), (o, i)

    @classmethod
    def of(cls, model: nn.Module, objective: Objective, train: Data, curvature: Kronecker, damping: Damping) -> _Problem:
        layers = layers_of(model, curvature)
        for name, layer in layers.items():
            if layer.weight.dtype != torch.float64:
                raise ValueError(f"layer {name!r} is {layer.weight.dtype}; expected float64: model.double() and its data.")
        own = {n: p.detach() for n, p in model.named_parameters()}
        batches, examples = [], 0
        for batch in walk(train, name="train", progress=False):
            with torch.no_grad():
                outputs = call(model, batch.inputs)
            objective.check(outputs, batch.targets)
            slope = output_gradient(objective.loss, outputs, batch.targets)
            batches.append((batch.inputs, batch.targets, outputs, objective.loss(outputs, batch.targets), slope))
            examples += batch.size
        numbers = resolve_damping(curvature, damping)
        whiten = {k: x.sqrt() for k, x in curvature.inverse_eigenvalues(numbers).items()}
        theta = {k: layer.join(own) for k, layer in layers.items()}
        return cls(model, objective, layers, theta, batches, examples, curvature, numbers, whiten)

    def rows(self, which: list[int]) -> list[tuple[Any, Any]]:
        """The training examples at these positions, each a batch of one."""
        found = []
        for n in which:
            at = int(n)
            if not 0 <= at < self.examples:
                raise ValueError(f"which holds {n}; expected positions in train, 0 to {self.examples - 1}.")
            for inputs, targets, outputs, *_ in self.batches:
                if at < len(outputs):
                    found.append(pytree.tree_map(lambda x, at=at: x[at : at + 1], (inputs, targets)))
                    break
                at -= len(outputs)
        return found

    def outputs(self, inputs: Any, delta: Matrices) -> Tensor:
        parts = [layer.split(self.theta[k] + delta[k]) for k, layer in self.layers.items()]
        return call(self.model, inputs, {n: p for part in parts for n, p in part.items()})

    def value(self, delta: Matrices, inputs: Any, targets: Any, epsilon: float) -> Tensor:
        """PBO(Δ), less the constant ε ℓ_m(θ)."""
        total = epsilon * self.objective.loss(self.outputs(inputs, delta), targets).sum()
        for x, y, before, loss, slope in self.batches:
            f = self.outputs(x, delta)
            divergence = self.objective.loss(f, y) - loss - (slope * (f - before)).flatten(1).sum(1)
            total = total + divergence.sum() / self.examples
        return total + sum(0.5 * self.damping[k] * d.square().sum() for k, d in delta.items())

    def minimise(
        self, inputs: Any, targets: Any, epsilon: float, tolerance: float, max_steps: int
    ) -> tuple[Matrices, float]:
        """The minimiser {layer: (o, i)}, and the whitened gradient's norm there relative to that at Δ = 0."""
        shapes = self.curvature.shapes
        u = torch.zeros(1, sum(o * i for o, i in shapes.values()), dtype=torch.float64, requires_grad=True)

        def delta() -> Matrices:
            back = self.curvature.rotate_back({k: x * self.whiten[k] for k, x in unflatten(u, shapes).items()})
            return {k: x[0] for k, x in back.items()}

        def closure() -> Tensor:
            optimiser.zero_grad()
            value = self.value(delta(), inputs, targets, epsilon)
            value.backward()
            return value

        optimiser = torch.optim.LBFGS(
            [u], max_iter=max_steps, max_eval=2 * max_steps, history_size=50, tolerance_change=0.0, line_search_fn="strong_wolfe"
        )
        closure()
        first = float(u.grad.norm())
        optimiser.param_groups[0]["tolerance_grad"] = 0.0
        optimiser.step(closure)
        closure()
        return {k: d.detach() for k, d in delta().items()}, float(u.grad.norm()) / first


@torch.no_grad()
def _measure(problem: _Problem, queries: Data, measurement: Measurement | None, delta: Matrices | None) -> Tensor:
    """m of every query, at θ or at θ + Δ, (Q,)."""
    zero = {k: torch.zeros_like(x) for k, x in problem.theta.items()}
    values = [
        problem.objective.measure(measurement, problem.outputs(b.inputs, delta or zero), b.targets)
        for b in walk(queries, name="queries", progress=False)
    ]
    return torch.cat(values)
