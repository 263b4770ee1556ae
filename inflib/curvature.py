"""Curvatures: one protocol (matvec, solve, to_dense) for everything between the identity and the exact matrix.

Identity, diagonal, K-FAC and EK-FAC are one class, ``Kronecker``: an orthogonal basis and eigenvalues in it,

    C v = Q_S [Λ ⊙ (Q_Sᵀ V Q_A)] Q_Aᵀ          (C + λI)⁻¹ v = Q_S [(Q_Sᵀ V Q_A) / (Λ + λ)] Q_Aᵀ

with different Λ and Q (Grosse et al. 2023, eq. 21). ``Dense`` and ``BlockDense`` hold matrices (see exact.py). Damping
λ belongs to ``solve``, one number per layer, so that trying another refits nothing; default 0.1 · mean(Λ).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .batches import Data, double, hash_tensor
from .ekfac import corrected_eigenvalues, eigenbasis
from .hooks import Matrices
from .kfac import Fit, accumulate_moments, accumulator
from .layers import LayerSpec
from .objectives import Objective


@dataclass(frozen=True)
class Relative:
    """Damping as a multiple of each layer's mean eigenvalue."""

    factor: float


def relative(factor: float) -> Relative:
    """``damping=relative(0.03)``: λ_layer = 0.03 · mean(Λ_layer)."""
    return Relative(factor)


Damping = None | float | Relative | Mapping[str, float]


class IndefiniteWarning(UserWarning):
    """The damped matrix has negative eigenvalues: its inverse turns some directions round."""


@dataclass(frozen=True)
class Facts:
    """What a curvature was made from: enough to tell whether it belongs to a model, and to make it again."""

    method: str
    labels: str
    draws: int
    seed: int
    examples: int
    weights: str  # hash_weights(model)
    untied: bool = False  # fitted with layers=untied(...): each module's use of a shared weight counts as its own
    sharing: str = "expand"  # how the positions of an example make A and S, see ``inflib.ekfac``


class Curvature(Protocol):
    """A positive semi-definite C, mean over the examples, acting on stacks {layer: (K, o, i)} of K vectors."""

    @property
    def facts(self) -> Facts: ...

    @property
    def default_damping(self) -> float | Relative | None: ...

    @property
    def layers(self) -> tuple[str, ...]: ...

    @property
    def shapes(self) -> dict[str, tuple[int, int]]: ...

    def mean_eigenvalues(self) -> dict[str, float]: ...

    def matvec(self, v: Matrices) -> Matrices: ...

    def solve(self, v: Matrices, damping: Damping = None) -> Matrices: ...

    def to_dense(self) -> Tensor: ...


# --- Kronecker-factored ------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Kronecker:
    """C = (Q_S ⊗ Q_A) diag(Λ) (Q_S ⊗ Q_A)ᵀ in each layer, zero between layers; empty Q means the identity basis."""

    eigenvalues: dict[str, Tensor]  # Λ (o, i)
    Q_S: dict[str, Tensor]  # (o, o), columns eigenvectors
    Q_A: dict[str, Tensor]  # (i, i)
    facts: Facts
    default_damping: float | Relative = Relative(0.1)

    @property
    def layers(self) -> tuple[str, ...]:
        return tuple(self.eigenvalues)

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """{layer: (o, i)}, i counting the bias's column."""
        return {name: (values.shape[0], values.shape[1]) for name, values in self.eigenvalues.items()}

    def mean_eigenvalues(self) -> dict[str, float]:
        """mean(Λ_layer): the unit that relative damping is measured in."""
        return {name: float(double(values).mean()) for name, values in self.eigenvalues.items()}

    def restrict(self, layers: Iterable[str]) -> Kronecker:
        """The same curvature on some of its layers only."""
        wanted = set(layers)
        _check_known(wanted, self.layers)
        keep = [name for name in self.layers if name in wanted]
        values, Q_S, Q_A = ({k: d[k] for k in keep if k in d} for d in (self.eigenvalues, self.Q_S, self.Q_A))
        return replace(self, eigenvalues=values, Q_S=Q_S, Q_A=Q_A)

    def rotate(self, v: Matrices) -> Matrices:
        """Q_Sᵀ V Q_A: the coordinates in the eigenbasis."""
        v = {k: x.to(self.eigenvalues[k]) for k, x in v.items()}
        return {k: self.Q_S[k].T @ x @ self.Q_A[k] if k in self.Q_S else x for k, x in v.items()}

    def rotate_back(self, v: Matrices) -> Matrices:
        """Q_S V Q_Aᵀ: from eigenbasis coordinates to weight matrices."""
        return {k: self.Q_S[k] @ x @ self.Q_A[k].T if k in self.Q_S else x for k, x in v.items()}

    def matvec(self, v: Matrices) -> Matrices:
        """C v for stacks {layer: (K, o, i)}."""
        check_stacks(self, v)
        return self.rotate_back({k: x * self.eigenvalues[k] for k, x in self.rotate(v).items()})

    def solve(self, v: Matrices, damping: Damping = None) -> Matrices:
        """(C + diag λ)⁻¹ v for stacks {layer: (K, o, i)}; see ``resolve_damping`` for what damping may be."""
        check_stacks(self, v)
        inverse = self.inverse_eigenvalues(damping)
        return self.rotate_back({k: x * inverse[k] for k, x in self.rotate(v).items()})

    def inverse_eigenvalues(self, damping: Damping = None) -> dict[str, Tensor]:
        """1 / (Λ + λ), (o, i) per layer; ValueError where λ = 0 meets a Λ that is singular to rounding."""
        numbers = resolve_damping(self, damping)
        return {name: self._inverse(name, numbers[name]) for name in self.layers}

    def _inverse(self, name: str, number: float) -> Tensor:
        values = self.eigenvalues[name]
        low, high = float(values.min()), float(values.max())
        if number == 0 and high == 0:
            raise ValueError(
                f"layer {name!r}: all its eigenvalues are 0 (no gradient reaches it), so relative damping is 0 too; "
                "expected damping > 0. Give it as a number, or leave the layer out with layers=."
            )
        if number == 0 and low <= 10 * high * torch.finfo(values.dtype).eps:
            raise ValueError(
                f"layer {name!r}: damping 0 with a singular curvature (smallest eigenvalue {low:.3g}, largest "
                f"{high:.3g}); expected damping > 0. Leave it at None (0.1 · mean eigenvalue) or use relative(0.01)."
            )
        return 1 / (values + number)

    def to_dense(self) -> Tensor:
        """The (D, D) matrix, row-major in each (o, i), layers in order: for small models."""
        blocks = []
        for name, values in self.eigenvalues.items():
            block = torch.diag(values.flatten())
            if name in self.Q_S:
                Q = torch.kron(self.Q_S[name], self.Q_A[name])
                block = Q @ block @ Q.T
            blocks.append(block)
        return torch.block_diag(*blocks)

    def __repr__(self) -> str:
        return describe(self)


def ekfac(
    model: nn.Module,
    objective: Objective,
    train: Data,
    layers: LayerSpec = None,
    labels: str | None = None,
    draws: int = 1,
    seed: int = 0,
    progress: bool = True,
    *,
    sharing: str = "expand",
) -> Kronecker:
    """EK-FAC curvature of the objective at the model's weights: two passes over ``train``, one eigh per factor.

    train:  re-iterable of (inputs, targets) batches; the model in eval mode where that matters.
    layers: None (all understood layers), a glob, a list of globs, a predicate (name, module) → bool, or untied(...).
    labels: "expected", "sampled" (``draws`` labels an example from the model, fresh in each pass, from ``seed``),
            "observed" (the empirical Fisher), or None for the objective's default.
    sharing: in a layer applied at many positions, what makes a row of A and S: "expand", each position; "reduce", the
            mean of a and the sum of g over an example's positions (see kfac.py). Λ is exact in either basis.

    Returns a Kronecker curvature, mean over the examples; the model is left exactly as it was. Raises ValueError,
    TypeError, RuntimeError or FloatingPointError with the layer or argument, what came, what was expected, and the fix.
    Source: George et al. 2018; Grosse et al. 2023, eq. 16–21; Eschenhagen et al. 2023 for ``sharing``.
    """
    fit = Fit.of(model, objective, train, layers, labels, draws, seed, progress, sharing)
    basis = eigenbasis(accumulate_moments(fit))
    squares = corrected_eigenvalues(fit, basis)
    return Kronecker(squares.means(), basis.Q_S, basis.Q_A, facts_of(fit, "EK-FAC", squares.examples))


def kfac(
    model: nn.Module,
    objective: Objective,
    train: Data,
    layers: LayerSpec = None,
    labels: str | None = None,
    draws: int = 1,
    seed: int = 0,
    progress: bool = True,
    *,
    sharing: str = "expand",
) -> Kronecker:
    """K-FAC curvature, S ⊗ A: Λ = λ_S λ_Aᵀ. One pass over ``train``. Arguments and errors as for ``ekfac``.

    Source: Martens & Grosse 2015; Grosse et al. 2023, eq. 16–17.
    """
    fit = Fit.of(model, objective, train, layers, labels, draws, seed, progress, sharing)
    moments = accumulate_moments(fit)
    basis = eigenbasis(moments)
    values = {name: torch.outer(basis.lambda_S[name], basis.lambda_A[name]) for name in fit.layers}
    return Kronecker(values, basis.Q_S, basis.Q_A, facts_of(fit, "K-FAC", moments.examples))


def diagonal(
    model: nn.Module,
    objective: Objective,
    train: Data,
    layers: LayerSpec = None,
    labels: str | None = None,
    draws: int = 1,
    seed: int = 0,
    progress: bool = True,
) -> Kronecker:
    """The curvature's diagonal, Λ = E[Dθ²], exact under ``labels``. One pass. Arguments as for ``ekfac``."""
    fit = Fit.of(model, objective, train, layers, labels, draws, seed, progress)
    squares = corrected_eigenvalues(fit, None, check=True)
    return Kronecker(squares.means(), {}, {}, facts_of(fit, "diagonal", squares.examples))


def identity(
    model: nn.Module,
    objective: Objective,
    train: Data = (),
    layers: LayerSpec = None,
    labels: str | None = None,
    draws: int = 1,
    seed: int = 0,
    progress: bool = True,
) -> Kronecker:
    """C = I, with damping 0 by default: scores become plain gradient dot products. No pass over ``train``."""
    fit = Fit.of(model, objective, train, layers, labels, draws, seed, progress)
    values = {
        k: layer.weight.new_ones(layer.shape, dtype=accumulator(layer.weight.dtype)) for k, layer in fit.layers.items()
    }
    return Kronecker(values, {}, {}, facts_of(fit, "identity", 0), default_damping=0.0)


# --- dense ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Dense:
    """A curvature held as one (D, D) matrix over all layers: exact, and for small models (see ``gauss_newton``)."""

    matrix: Tensor
    shapes: dict[str, tuple[int, int]]
    facts: Facts
    default_damping: float | Relative | None = Relative(0.1)  # None: damping must be given

    @property
    def layers(self) -> tuple[str, ...]:
        return tuple(self.shapes)

    def mean_eigenvalues(self) -> dict[str, float]:
        """Each layer's trace over its size, the mean eigenvalue of its block."""
        parts = self.matrix.diagonal().split([o * i for o, i in self.shapes.values()])
        return {name: float(part.mean()) for name, part in zip(self.shapes, parts, strict=True)}

    def matvec(self, v: Matrices) -> Matrices:
        """C v for stacks {layer: (K, o, i)}."""
        check_stacks(self, v)
        return unflatten(flatten(v, self.shapes).to(self.matrix) @ self.matrix, self.shapes)

    def solve(self, v: Matrices, damping: Damping = None) -> Matrices:
        """(C + diag λ)⁻¹ v, λ constant in a layer; warns (IndefiniteWarning) when the damped matrix is indefinite."""
        check_stacks(self, v)
        numbers = resolve_damping(self, damping)
        damped = self.matrix.clone()
        rows = [self.matrix.new_full((o * i,), numbers[k]) for k, (o, i) in self.shapes.items()]
        damped.diagonal().add_(torch.cat(rows))
        return unflatten(_solve(damped, flatten(v, self.shapes).T.to(damped), self.facts.method).T, self.shapes)

    def to_dense(self) -> Tensor:
        """The matrix itself, (D, D)."""
        return self.matrix

    def __repr__(self) -> str:
        return describe(self)


@dataclass(frozen=True, eq=False)
class BlockDense:
    """A curvature held as one dense block per layer, zero between layers."""

    blocks: dict[str, Tensor]  # (o·i, o·i)
    shapes: dict[str, tuple[int, int]]
    facts: Facts
    default_damping: float | Relative | None = Relative(0.1)

    @property
    def layers(self) -> tuple[str, ...]:
        return tuple(self.shapes)

    def mean_eigenvalues(self) -> dict[str, float]:
        """Each block's trace over its size."""
        return {name: float(block.diagonal().mean()) for name, block in self.blocks.items()}

    def matvec(self, v: Matrices) -> Matrices:
        """C v for stacks {layer: (K, o, i)}."""
        check_stacks(self, v)
        return {k: (v[k].flatten(1).to(block) @ block).reshape(v[k].shape) for k, block in self.blocks.items()}

    def solve(self, v: Matrices, damping: Damping = None) -> Matrices:
        """(C + diag λ)⁻¹ v, one solve per layer."""
        check_stacks(self, v)
        numbers, found = resolve_damping(self, damping), {}
        for name, block in self.blocks.items():
            damped = block.clone()
            damped.diagonal().add_(numbers[name])
            flat = _solve(damped, v[name].flatten(1).T.to(block), f"{self.facts.method}, layer {name!r}").T
            found[name] = flat.reshape(v[name].shape)
        return found

    def to_dense(self) -> Tensor:
        """The (D, D) block-diagonal matrix."""
        return torch.block_diag(*self.blocks.values())

    def __repr__(self) -> str:
        return describe(self)


def _solve(damped: Tensor, v: Tensor, what: str) -> Tensor:
    """damped⁻¹ v (D, K): Cholesky if positive definite, LU (and a warning) if indefinite, an error if singular."""
    factor, failed = torch.linalg.cholesky_ex(damped)
    rounding = len(damped) * torch.finfo(damped.dtype).eps
    if not bool(failed):
        pivots = factor.diagonal().square()
        if float(pivots.min()) > rounding * float(pivots.max()):
            return torch.cholesky_solve(v, factor)
    values = torch.linalg.eigvalsh(damped)
    low, high = float(values[0]), float(values.abs().max())
    if float(values.abs().min()) <= rounding * high:
        raise ValueError(
            f"{what}: the damped matrix is singular (eigenvalues from {low:.3g} to {high:.3g}); expected damping > 0 "
            "large enough to make it invertible, for instance relative(0.01)."
        )
    if low < 0:
        warnings.warn(
            f"{what}: the damped matrix is indefinite (smallest eigenvalue {low:.3g}); its inverse raises the loss "
            "along those directions. Give more damping, or use gauss_newton, which has no negative eigenvalues.",
            IndefiniteWarning,
            stacklevel=4,
        )
    return torch.linalg.solve(damped, v)


# --- damping ---------------------------------------------------------------------------------------------------


def damping_of(curvature: Curvature, factor: float = 0.1) -> dict[str, float]:
    """{layer: factor · mean(Λ_layer)}: numbers that can be given to ``damping=`` of every method in a comparison.

    Methods differ in their mean eigenvalues, so comparing them at their own defaults would compare dampings too.
    """
    return resolve_damping(curvature, Relative(factor))


def resolve_damping(curvature: Curvature, damping: Damping = None) -> dict[str, float]:
    """{layer: λ} for whatever ``damping=`` was given.

    None: the curvature's default (relative(0.1), and 0 for the identity). A number: that λ in every layer.
    relative(r): r · mean(Λ_layer). A mapping: {layer: λ}, with a number for every layer of the curvature.
    Raises ValueError for a λ that is negative, NaN or infinite, for missing and for unknown layers.
    """
    if damping is None:
        damping = curvature.default_damping
        if damping is None:
            raise ValueError(
                f"{curvature.facts.method} has no default damping (it may be indefinite); "
                "give damping=, for instance damping_of(gauss_newton(...), 0.1)."
            )
    if isinstance(damping, Relative):
        _check_number(damping.factor, "relative damping")
        return {name: damping.factor * mean for name, mean in curvature.mean_eigenvalues().items()}
    if isinstance(damping, Mapping):
        _check_known(damping, curvature.layers)
        missing = [name for name in curvature.layers if name not in damping]
        if missing:
            raise ValueError(
                f"damping has no number for layer {missing[0]!r}; expected one for every layer. Start from "
                "damping_of(curvature), which has them all."
            )
        numbers = {name: damping[name] for name in curvature.layers}
    else:
        numbers = dict.fromkeys(curvature.layers, damping)
    for name, number in numbers.items():
        _check_number(number, f"damping of layer {name!r}")
    return {name: float(number) for name, number in numbers.items()}


def _check_number(number: Any, what: str) -> None:
    try:
        value = float(number)
    except (TypeError, ValueError):
        raise TypeError(
            f"{what} is {number!r}; expected a number, {{layer: number}}, relative(factor) or None."
        ) from None
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{what} is {value}; expected a finite number ≥ 0 (0.1 · mean eigenvalue is the default).")


def _check_known(given: Iterable[str], layers: tuple[str, ...]) -> None:
    unknown = [name for name in given if name not in layers]
    if unknown:
        raise ValueError(f"{unknown[0]!r} is not a layer of this curvature; expected one of {', '.join(layers)}.")


# --- vectors and facts -------------------------------------------------------------------------------------------


def flatten(v: Matrices, shapes: Mapping[str, tuple[int, int]]) -> Tensor:
    """{layer: (K, o, i)} → (K, D), row-major in each layer, layers in the order of ``shapes``."""
    return torch.cat([v[name].flatten(1) for name in shapes], dim=1)


def unflatten(flat: Tensor, shapes: Mapping[str, tuple[int, int]]) -> Matrices:
    """(K, D) → {layer: (K, o, i)}: the inverse of ``flatten``."""
    parts = flat.split([o * i for o, i in shapes.values()], dim=1)
    return {name: part.reshape(-1, *shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}


def check_stacks(curvature: Curvature, v: Matrices) -> None:
    """Raise ValueError unless v holds a (K, o, i) stack for exactly the curvature's layers."""
    for name, (o, i) in curvature.shapes.items():
        if name not in v:
            raise ValueError(
                f"v has no layer {name!r}; expected a stack (K, {o}, {i}) for each of {list(curvature.shapes)}."
            )
        if v[name].ndim != 3 or v[name].shape[1:] != (o, i):
            raise ValueError(f"v[{name!r}] has shape {tuple(v[name].shape)}; expected (K, {o}, {i}).")
    _check_known(v, curvature.layers)


def facts_of(fit: Fit, method: str, examples: int) -> Facts:
    """The facts of a curvature made by ``fit`` from that many examples."""
    untied = any(layer.untied for layer in fit.layers.values())
    return Facts(method, fit.labels, fit.draws, fit.seed, examples, hash_weights(fit.model), untied, fit.sharing)


def hash_weights(model: nn.Module) -> str:
    """A hash of every parameter and buffer of the model, with its name: equal hashes, equal functions."""
    digest = blake2b(digest_size=16)
    for name, tensor in model.state_dict().items():
        if isinstance(tensor, Tensor):
            digest.update(name.encode())
            hash_tensor(digest, tensor)
    return digest.hexdigest()


def describe(curvature: Curvature) -> str:
    """Method, labels, number of examples, and each layer's shape and mean eigenvalue, as a few lines of text."""
    facts, means = curvature.facts, curvature.mean_eigenvalues()
    labels = f"{facts.labels} labels" + (
        f" ({facts.draws} draws, seed {facts.seed})" if facts.labels == "sampled" else ""
    )
    shared = ", positions reduced" if facts.sharing == "reduce" else ""
    width = max(len(name) for name in means)
    lines = [f"{facts.method} curvature, {labels}, {facts.examples} examples{shared}"]
    lines += [f"  {k:{width}}  ({o}, {i})  mean eigenvalue {means[k]:.3g}" for k, (o, i) in curvature.shapes.items()]
    return "\n".join(lines)
