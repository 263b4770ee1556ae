"""The proximal Bregman response: what influence with the damped Gauss-Newton matrix estimates, found by minimising.

For a network that is not at a minimum, or whose Hessian is singular, retraining defines no dθ/dε. The proximal
Bregman objective does (Bae et al. 2022, "If influence functions are the answer, then what is the question?"; Grosse et
al. 2023, eq. 7–9):

    PBO(Δ) = (1/N) Σ_n D(f_n(θ + Δ), f_n(θ)) + ε ℓ_m(θ + Δ) + ½ Σ_layer λ_layer ‖Δ_layer‖²

D is the Bregman divergence of the loss in the outputs, D(f, f°) = ℓ(f) − ℓ(f°) − ⟨∇ℓ(f°), f − f°⟩: KL(p° ‖ p) for
softmax and Bernoulli outputs, ½‖f − f°‖² for squared error, whatever the label. At ε = 0 the minimum is Δ = 0, the
Hessian there is G + diag λ, and the response (m(θ + Δ(ε)) − m(θ)) / ε tends to the influence with exact G as ε → 0.

Minimised in float64 by L-BFGS in whitened coordinates u, Δ = (C + λ)^-½ u with C an EK-FAC. Take ε > 0: a negative one
pushes the example's loss up without bound. A network that interpolates its data (training loss below .005) makes the
problem flat and ill-conditioned, and is warned of before anything is minimised: train with weight decay, and use
damping of 1e-2 or more. With ReLU a minimum may lie on a kink, where no gradient vanishes: a descent whose gradient no
longer shrinks is given up early. ``by_proximal`` (board.py) compares scores with those responses that converged, and
counts the others. Smooth activations (tanh, GELU) have no kinks.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import grad_and_value, vmap
from torch.utils import _pytree as pytree

from ..batches import BYTE_BUDGET, Batch, Data, chunks, walk
from ..curvature import Damping, resolve_damping, unflatten
from ..exact import bytes_of_a_product
from ..hooks import Matrices, checked_outputs
from ..jacobians import as_parameters, matrices_of, plain_attention
from ..kronecker import Kronecker, ekfac
from ..layers import LayerSpec
from ..objectives import Measurement, Objective, output_gradient
from ..passes import Fit
from ..placement import call, check_mode, plain_numbers
from . import lbfgs

INTERPOLATES = 0.005  # mean training loss, in nats


class NotConvergedWarning(UserWarning):
    """A proximal objective was not minimised to the gradient norm asked for."""


class InterpolationWarning(UserWarning):
    """The network fits its training data so closely that the proximal objective is flat."""


@dataclass(frozen=True, eq=False)
class Proximal:
    """The minimisers of the proximal Bregman objectives of M training examples, and what they do to Q queries."""

    response: Tensor  # (m(θ + Δ) − m(θ)) / ε, (Q, M): comparable with influence(...)[:, which]
    change: Tensor  # m(θ + Δ) − m(θ), (Q, M)
    delta: Matrices  # Δ, {layer: (M, o, i)}
    gradient_norm: Tensor  # ‖∇PBO‖ in whitened coordinates, relative to that at Δ = 0, (M,)
    converged: Tensor  # gradient_norm ≤ tolerance, (M,)
    epsilon: float

    def __repr__(self) -> str:
        Q, M = self.response.shape
        return (
            f"proximal Bregman response of {Q} queries to {M} examples, ε = {self.epsilon:g}: "
            f"{int(self.converged.sum())} of {M} converged, relative gradient norm at most "
            f"{float(self.gradient_norm.max()):.1g}"
        )


@plain_numbers
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
    tolerance: float = 1e-4,
    max_steps: int = 300,
    max_bytes: int = BYTE_BUDGET,
    progress: bool = True,
) -> Proximal:
    """Minimise the proximal Bregman objective of each training example in ``which``; the response of every query.

    which:     positions in ``train`` of the M examples that get the extra weight ε.
    damping:   λ of the proximity term, as for ``influence``; None and relative(...) refer to ``curvature``.
    epsilon:   ε; None is 1/N, which counts the example twice.
    curvature: the EK-FAC that whitens (it changes the path, not the minimum); None fits one to ``layers``.
    tolerance: of the gradient's norm in whitened coordinates, relative to that at Δ = 0. NotConvergedWarning where it
               is not reached in ``max_steps`` L-BFGS steps; ``gradient_norm`` and ``converged`` say for which examples.

    The M minimisations run as one batch, as far as ``max_bytes`` goes. The model is left as it was. Raises ValueError
    for a model that is not float64, for ε = 0 and for positions out of range.
    """
    check_mode(model)
    if curvature is None:
        curvature = ekfac(model, objective, train, layers, progress=progress)
    problem = _Problem.of(model, objective, train, curvature, damping)
    epsilon = 1 / problem.examples if epsilon is None else float(epsilon)
    if epsilon == 0:
        raise ValueError("epsilon=0 asks for the response to no change; expected a small number, positive: 1/N.")
    examples = problem.rows(list(which))
    for batch in walk(queries, name="queries", progress=False):  # they are asked at the end: a flaw should show before
        with torch.no_grad():
            checked_outputs(model, objective, batch)
    found = [
        problem.minimise(examples[some], epsilon, tolerance, max_steps)
        for some in chunks(len(examples), problem.bytes_each(), max_bytes)
    ]
    delta = {k: torch.cat([part[k] for part, _ in found]) for k in curvature.layers}
    reached = torch.cat([norm for _, norm in found])
    change = problem.change(delta, queries, measurement)
    result = Proximal(change / epsilon, change, delta, reached, reached <= tolerance, epsilon)
    if not bool(result.converged.all()):
        warnings.warn(
            f"{result}; expected {tolerance:g}. by_proximal leaves the others out. Give more max_steps or damping, or "
            "smooth activations: on a ReLU's kink no gradient vanishes.",
            NotConvergedWarning,
            stacklevel=2,
        )
    return result


def _note_interpolation(loss: float) -> None:
    """Warn where the mean training loss says that the network interpolates."""
    if loss < INTERPOLATES:
        warnings.warn(
            f"the mean training loss is {loss:.2g}; expected {INTERPOLATES:g} or more: this network interpolates its "
            "data, where the proximal objective is flat and may have no minimum near. Train with weight decay, or give "
            "damping of 0.01 or more, and look at gradient_norm.",
            InterpolationWarning,
            stacklevel=4,
        )


Anchor = tuple[Batch, Tensor, Tensor, Tensor]  # a batch, its outputs f° (B, ...), losses ℓ(f°) (B,) and ∇ℓ(f°) as f°
Example = tuple[Any, Any]  # (inputs, targets), a batch of one


@dataclass(frozen=True, eq=False)
class _Problem:
    """What all of the M objectives share: the data with the trained model's outputs on it, damping, coordinates."""

    fit: Fit
    theta: Matrices  # trained weights, (o, i)
    anchors: list[Anchor]
    examples: int
    curvature: Kronecker
    damping: dict[str, float]
    whiten: dict[str, Tensor]  # 1 / √(Λ + λ), (o, i)

    @classmethod
    def of(
        cls, model: nn.Module, objective: Objective, train: Data, curvature: Kronecker, damping: Damping
    ) -> _Problem:
        fit = Fit.of(model, objective, train, list(curvature.layers), progress=False)
        theta = matrices_of(fit)
        for name, matrix in theta.items():
            if matrix.dtype != torch.float64:
                raise ValueError(f"layer {name!r} is {matrix.dtype}; expected float64: model.double(), and its data.")
        anchors = [_anchor(fit, batch) for batch in walk(train, name="train", progress=False)]
        numbers = resolve_damping(curvature, damping)
        whiten = {k: x.sqrt() for k, x in curvature.inverse_eigenvalues(numbers).items()}
        examples = sum(anchor[0].size for anchor in anchors)
        _note_interpolation(sum(float(anchor[2].sum()) for anchor in anchors) / examples)
        return cls(fit, theta, anchors, examples, curvature, numbers, whiten)

    def rows(self, which: list[int]) -> list[Example]:
        """The training examples at these positions."""
        found = []
        for n in which:
            batch = next((a[0] for a in self.anchors if a[0].start <= n < a[0].start + a[0].size), None)
            if batch is None:
                raise ValueError(f"which holds {n}; expected positions in train, 0 to {self.examples - 1}.")
            row = slice(n - batch.start, n - batch.start + 1)
            found.append(pytree.tree_map(lambda x, row=row: x[row], (batch.inputs, batch.targets)))
        if not found:
            raise ValueError("which is empty; expected positions of training examples.")
        return found

    def bytes_each(self) -> int:
        """Roughly what one of the M minimisations holds: L-BFGS's pairs, and one pass through the largest batch."""
        pairs = 2 * lbfgs.HISTORY * sum(x.numel() * x.element_size() for x in self.theta.values())
        return pairs + max(bytes_of_a_product(self.fit, anchor[0]) for anchor in self.anchors)

    def outputs(self, inputs: Any, delta: Matrices) -> Tensor:
        """f(θ + Δ) on a batch of inputs."""
        return call(self.fit.model, inputs, as_parameters(self.fit, {k: x + delta[k] for k, x in self.theta.items()}))

    def delta(self, u: Tensor) -> Matrices:
        """Δ = (C + λ)^-½ u, {layer: (M, o, i)}, for u (M, D)."""
        stacks = unflatten(u, self.curvature.shapes)
        return self.curvature.rotate_back({k: x * self.whiten[k] for k, x in stacks.items()})

    def value(self, u: Tensor, inputs: Any, targets: Any, epsilon: float) -> Tensor:
        """PBO(Δ) for u (D,)."""
        delta = {k: x[0] for k, x in self.delta(u[None]).items()}
        total = epsilon * self.fit.objective.loss(self.outputs(inputs, delta), targets).sum()
        for batch, before, loss, slope in self.anchors:
            f = self.outputs(batch.inputs, delta)
            divergence = self.fit.objective.loss(f, batch.targets) - loss - (slope * (f - before)).flatten(1).sum(1)
            total = total + divergence.sum() / self.examples
        return total + sum(0.5 * self.damping[k] * x.square().sum() for k, x in delta.items())

    def minimise(
        self, examples: list[Example], epsilon: float, tolerance: float, max_steps: int
    ) -> tuple[Matrices, Tensor]:
        """The minimisers {layer: (m, o, i)}, and the whitened gradients' norms there over those at Δ = 0, (m,)."""
        inputs, targets = pytree.tree_map(lambda *rows: torch.stack(rows), *examples)  # batches of one, (m, 1, ...)
        both = vmap(grad_and_value(self.value), in_dims=(0, 0, 0, None))

        def function(u: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
            mine = pytree.tree_map(lambda x: x[rows], (inputs, targets))
            with plain_attention():
                gradient, value = both(u, mine[0], mine[1], epsilon)
            return value, gradient

        like = next(iter(self.theta.values()))
        start = like.new_zeros(len(examples), sum(x.numel() for x in self.theta.values()))
        found = lbfgs.minimise(function, start, tolerance, max_steps)
        return self.delta(found.u), found.gradient_norm

    @torch.no_grad()
    def change(self, delta: Matrices, queries: Data, measurement: Measurement | None) -> Tensor:
        """m(θ + Δ) − m(θ) of every query and Δ, (Q, M)."""
        count = len(next(iter(delta.values())))
        zero = {k: torch.zeros_like(x) for k, x in self.theta.items()}
        found = []
        for batch in walk(queries, name="queries", progress=False):
            columns = [
                self.fit.objective.measure(measurement, self.outputs(batch.inputs, d), batch.targets)
                for d in (zero, *({k: x[m] for k, x in delta.items()} for m in range(count)))
            ]
            found.append(torch.stack([column - columns[0] for column in columns[1:]], dim=1))
        return torch.cat(found)


def _anchor(fit: Fit, batch: Batch) -> Anchor:
    """What a Bregman divergence needs to know of the trained model's outputs."""
    with torch.no_grad():
        outputs = checked_outputs(fit.model, fit.objective, batch)
    slope = output_gradient(fit.objective.loss, outputs, batch.targets)
    return batch, outputs, fit.objective.loss(outputs, batch.targets), slope
