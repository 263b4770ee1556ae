"""Curvatures: one protocol (matvec, solve, to_dense) for everything between the identity and the exact matrix.

Identity, diagonal, K-FAC and EK-FAC are one class (kronecker.py); exact matrices are held whole (dense.py) or refined
towards (implicit.py). Damping λ belongs to ``solve``, one number per layer, so that trying another refits nothing;
default 0.1 · mean(Λ). Vectors are stacks {layer: (K, o, i)} of K matrices, the bias being the last column.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .blocks import say_blocks
from .fingerprints import difference, hash_weights
from .hooks import Matrices
from .layers import Exactly, Layer
from .passes import Fit
from .sameness import check_function, keep_example
from .selection import select


@dataclass(frozen=True)
class Relative:
    """Damping as a multiple of each layer's mean eigenvalue."""

    factor: float


def relative(factor: float) -> Relative:
    """``damping=relative(0.03)``: λ_layer = 0.03 · mean(Λ_layer)."""
    return Relative(factor)


Damping = None | float | Relative | Mapping[str, float]
A_TENTH = Relative(0.1)  # the default (Grosse et al. 2023)
WRAPPERS = ("module.", "_orig_mod.")  # of DistributedDataParallel and DataParallel, of torch.compile


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
    blocks: str = ""  # into how many blocks A and S are cut, or of at most which size; "" for whole ones

    def written(self) -> dict[str, Any]:
        """For a file: blocks only where there are some, so that whole factors are saved as they always were."""
        return {key: value for key, value in asdict(self).items() if key != "blocks" or value}


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


# --- damping ---------------------------------------------------------------------------------------------------


def damping_of(curvature: Curvature, factor: float = 0.1) -> dict[str, float]:
    """{layer: factor · mean(Λ_layer)}: numbers that can be given to ``damping=`` of every method in a comparison.

    Methods differ in their mean eigenvalues, so comparing them at their own defaults would compare dampings too.
    """
    check_curvature(curvature)
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
        check_known(damping, curvature.layers)
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
    except (TypeError, ValueError, OverflowError):
        raise TypeError(
            f"{what} is {number!r}; expected a number, {{layer: number}}, relative(factor) or None."
        ) from None
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{what} is {value}; expected a finite number ≥ 0 (0.1 · mean eigenvalue is the default).")


def check_known(given: Iterable[str], layers: tuple[str, ...]) -> None:
    """Raise ValueError for a name that is not one of these layers."""
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
    check_known(v, curvature.layers)


def facts_of(fit: Fit, method: str, examples: int) -> Facts:
    """The facts of a curvature made by ``fit`` from that many examples."""
    untied = any(layer.untied for layer in fit.layers.values())
    weights, blocks = hash_weights(fit.model), say_blocks(fit.blocks)
    keep_example(fit.model, weights, fit.data.first)
    return Facts(method, fit.labels, fit.draws, fit.seed, examples, weights, untied, fit.sharing, blocks)


# --- the model it was fitted at ---------------------------------------------------------------------------------


def check_curvature(curvature: Any) -> None:
    """Raise TypeError for what is no curvature: a model, None, a number."""
    if isinstance(curvature, nn.Module) or not hasattr(curvature, "facts"):
        raise TypeError(
            f"curvature came as a {type(curvature).__name__}; expected what a fit returns. Fit one: "
            "curvature = ekfac(model, objective, train)."
        )


def layers_of(model: nn.Module, curvature: Curvature) -> dict[str, Layer]:
    """The model's layers that the curvature speaks of; ValueError where the model is not the one it was fitted at."""
    check_curvature(curvature)
    names = list(curvature.layers)
    _check_wrapped(model, names)
    found = select(model, Exactly(curvature.shapes, curvature.facts.untied))
    for name, shape in curvature.shapes.items():
        if name not in found or found[name].shape != shape:
            came = found[name].shape if name in found else "no such layer"
            raise ValueError(f"layer {name!r}: the curvature was made for {shape}, the model has {came}; refit it.")
    check_same_model(model, curvature.facts)
    return {name: found[name] for name in curvature.layers}


def check_same_model(model: nn.Module, facts: Facts) -> None:
    """Raise ValueError where the model is another function than the one these facts are of."""
    now = hash_weights(model)
    if now != facts.weights:
        raise ValueError(
            f"the curvature was fitted at weights with hash {facts.weights}, this model's are {now} (its "
            f"{difference(facts.weights, now)} differ); expected the same. Load the checkpoint it was fitted at, or "
            "fit again: ekfac(model, objective, train)."
        )
    check_function(model, facts.weights)


def _check_wrapped(model: nn.Module, names: list[str]) -> None:
    """Raise ValueError where model and curvature call their layers alike but for the prefix of a wrapper."""
    there = dict(model.named_modules())
    for prefix in WRAPPERS:
        if any(name not in there and prefix + name in there for name in names):
            raise ValueError(
                f"the model is wrapped in {type(model).__name__}, which calls its layers {prefix}{names[0]}, the "
                f"curvature was fitted without it; expected the same model. Pass what is inside: model.{prefix[:-1]}."
            )
        if any(name not in there and name.removeprefix(prefix) in there for name in names):
            raise ValueError(
                f"the curvature was fitted at a wrapped model, which calls its layers {names[0]!r}, this "
                f"{type(model).__name__} has no {prefix[:-1]!r}; expected the same model. Fit at what is inside the "
                f"wrapper, ekfac(model.{prefix[:-1]}, ...), or pass the wrapped model here."
            )


# --- in words ---------------------------------------------------------------------------------------------------


def describe(curvature: Curvature) -> str:
    """Method, labels, number of examples, and each layer's shape and mean eigenvalue, as a few lines of text."""
    facts, means = curvature.facts, curvature.mean_eigenvalues()
    labels = f"{facts.labels} labels" + (
        f" ({facts.draws} draws, seed {facts.seed})" if facts.labels == "sampled" else ""
    )
    shared = {"reduce": ", positions reduced", "gradients": ", by whole gradients"}.get(facts.sharing, "")
    blocks = f", in blocks ({facts.blocks})" if facts.blocks else ""
    width = max(len(name) for name in means)
    lines = [f"{facts.method} curvature, {labels}, {facts.examples} examples{shared}{blocks}"]
    lines += [f"  {k:{width}}  ({o}, {i})  mean eigenvalue {means[k]:.3g}" for k, (o, i) in curvature.shapes.items()]
    return "\n".join(lines)
