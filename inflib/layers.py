"""Which modules are understood, and how each is read as one linear map from activations a to outputs.

A module of a registered type is a *layer*. Its ``Kind`` says how the module's input becomes activations
a (B, T, i), how a gradient at the module's output becomes g (B, T, o), and how its parameters form the matrix
(o, i) [o outputs, i inputs, the bias as last column] whose gradient is Σ_t g_t a_tᵀ. Which of them take part is chosen
in selection.py. Teach inflib a module type of your own with::

    register(MyLinear, activations=lambda module, x: x.flatten(1, -2), gradients=lambda module, g: g.flatten(1, -2))

A convolution in groups is several layers (convolutions.py). A type of another library is registered by its full name,
so that nothing has to be imported: transformers' Conv1D is. On the first batch of every fit, capture is compared with
autograd's own weight gradients (``proof``), so a wrong registration is an error, not a wrong score.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from . import convolutions
from .rows import FIRST, Layout


@dataclass(frozen=True)
class Untied:
    """Marks layers whose weight is also used elsewhere, to be treated as if those uses were separate weights."""

    layers: Any


@dataclass(frozen=True)
class Exactly:
    """The layers that a curvature speaks of, {name: (o, i)}: with a bias's column only where the shape has one."""

    shapes: Mapping[str, tuple[int, int]]
    untied: bool = False


LayerSpec = None | str | Iterable[str] | Callable[[str, nn.Module], bool] | Untied | Exactly


@dataclass(frozen=True)
class Kind:
    """How modules of one type are read as a linear map. ``transposed``: the weight is stored (i, o), not (o, i).

    ``groups`` names the attribute that counts the matrices a module applies side by side; None means one.
    """

    activations: Callable[[Any, Tensor], Tensor]  # (module, input) -> (B, T, groups · i), without the bias's 1
    gradients: Callable[[Any, Tensor], Tensor]  # (module, output gradient) -> (B, T, groups · o)
    transposed: bool = False
    weight: str = "weight"
    bias: str = "bias"
    groups: str | None = None

    def groups_of(self, module: nn.Module) -> int:
        """The number of matrices that the module applies side by side."""
        return getattr(module, self.groups) if self.groups else 1


@dataclass(frozen=True)
class Layer:
    """A chosen layer: one weight matrix, and every module that applies it (several where modules share it).

    A module with several groups holds one matrix in each, stacked in its weight along the outputs.
    """

    name: str
    modules: tuple[nn.Module, ...]
    kind: Kind
    weight_name: str  # as in model.named_parameters()
    bias_name: str | None
    untied: bool = False
    group: int = 0
    groups: int = 1
    layout: Layout = FIRST  # where the examples are in its modules' inputs and outputs
    idle: frozenset[int] = frozenset()  # of its calls in a forward pass, those that nothing of the output depends on

    @property
    def bias(self) -> bool:
        return self.bias_name is not None

    @property
    def weight(self) -> Tensor:
        return getattr(self.modules[0], self.kind.weight)

    @property
    def parameters(self) -> list[Tensor]:
        """The weight and, where there is one, the bias."""
        names = (self.kind.weight, self.kind.bias) if self.bias else (self.kind.weight,)
        return [p for name in names if (p := self.modules[0]._parameters.get(name)) is not None]

    @property
    def shape(self) -> tuple[int, int]:
        """(o, i), i counting the bias's column."""
        o, i = self._matrix(self.weight[None]).shape[1:]
        return o, i + self.bias

    def features(self, module: nn.Module, x: Tensor, size: int) -> Tensor:
        """What a module was given → the activations of ``size`` examples, of all its groups, (B, T, groups · i)."""
        return self.layout.examples(self.kind.activations, module, x, size)

    def own(self, features: Tensor) -> Tensor:
        """The module's activations or output gradients (B, T, groups · d) → this layer's share, (B, T, d)."""
        return features.chunk(self.groups, dim=-1)[self.group]

    def join(self, parameters: dict[str, Tensor]) -> Tensor:
        """{parameter name: (*K, parameter's shape)} → one matrix per leading index, (*K, o, i), bias as last column."""
        weight = parameters[self.weight_name]
        lead = weight.shape[: weight.ndim - self.weight.ndim]
        matrix = self._matrix(weight.reshape(-1, *self.weight.shape))  # (K, o, i)
        if self.bias_name is not None:
            bias = parameters[self.bias_name].reshape(matrix.shape[0], -1, 1)  # (K, groups · o, 1)
            matrix = torch.cat([matrix, bias.chunk(self.groups, dim=1)[self.group]], dim=2)
        return matrix.reshape(*lead, *self.shape)

    def split(self, matrix: Tensor, parameters: dict[str, Tensor]) -> dict[str, Tensor]:
        """The inverse of ``join`` for one matrix (o, i) → {parameter name: tensor of the parameter's shape}.

        What other groups own of a parameter is taken from ``parameters``.
        """
        weight = matrix[:, :-1] if self.bias else matrix
        weight = weight.T if self.kind.transposed else weight
        parts = {self.weight_name: weight.reshape(-1, *self.weight.shape[1:])}
        if self.bias_name is not None:
            parts[self.bias_name] = matrix[:, -1]
        if self.groups > 1:
            for name, part in parts.items():
                rows = list(parameters[name].chunk(self.groups))
                rows[self.group] = part
                parts[name] = torch.cat(rows)
        return parts

    def _matrix(self, weights: Tensor) -> Tensor:
        """(K, *weight shape) → (K, o, i) without the bias."""
        matrices = weights.mT if self.kind.transposed else weights.flatten(2)
        return matrices.chunk(self.groups, dim=1)[self.group]


def untied(layers: LayerSpec) -> Untied:
    """``layers=untied("lm_head")``: consider only this use of a weight that something else (an Embedding) shares."""
    return Untied(layers)


# --- the registry --------------------------------------------------------------------------------------------------

_KINDS: dict[type[nn.Module] | str, Kind] = {}


def register(
    module_type: type[nn.Module] | str,
    activations: Callable[[Any, Tensor], Tensor],
    gradients: Callable[[Any, Tensor], Tensor],
    *,
    transposed: bool = False,
    weight: str = "weight",
    bias: str = "bias",
    groups: str | None = None,
) -> None:
    """Teach inflib that modules of ``module_type`` (and subclasses) apply one matrix at every position.

    module_type: the class, or its full name ("package.module.Class") where its library may not be installed.
    activations: (module, input) → (B, T, i), T the positions at which the matrix is applied.
    gradients:   (module, gradient at the output) → (B, T, o), positions in the same order.
    transposed:  True where the weight is stored (i, o). weight, bias: the parameters' names on the module.
    groups:      the module's attribute that counts matrices applied side by side, each to its share of the features;
                 activations and gradients then hold all shares, one after the other.
    """
    _KINDS[module_type] = Kind(activations, gradients, transposed, weight, bias, groups)


def positions_last(module: nn.Module, x: Tensor) -> Tensor:
    """(B, ..., d) → (B, T, d): every axis between the first and the last counts positions."""
    if x.ndim < 2:
        raise ValueError(
            f"a {type(module).__name__} was given an input of shape {tuple(x.shape)}; expected (B, ..., features). "
            "Give batches of examples: DataLoader(dataset, batch_size=...), or x[None] for a single one."
        )
    return x.reshape(x.shape[0], prod(x.shape[1:-1]), x.shape[-1])


register(nn.Linear, positions_last, positions_last)
for convolution in (nn.Conv1d, nn.Conv2d, nn.Conv3d):
    register(convolution, convolutions.patches, convolutions.positions, groups="groups")
register("transformers.pytorch_utils.Conv1D", positions_last, positions_last, transposed=True)  # GPT-2's linear layer


def kind_of(module: nn.Module) -> Kind | None:
    """The registered Kind of a module, or None; nn.MultiheadAttention reads its out_proj without calling it."""
    if type(module).__name__ == "NonDynamicallyQuantizableLinear":
        return None
    known = (key for t in type(module).__mro__ for key in (t, f"{t.__module__}.{t.__qualname__}") if key in _KINDS)
    kind = next((_KINDS[key] for key in known), None)
    owns = kind is not None and module._parameters.get(kind.weight) is not None
    return kind if owns else None
