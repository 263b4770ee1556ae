"""How a module's call is read as one matrix applied to activations: a Kind, and a Layer, which has been chosen.

A ``Kind`` says how a module's input becomes activations a (B, T, i), how a gradient at its output becomes g (B, T, o),
and how its parameters form the matrix (o, i) [o outputs, i inputs, the bias as last column] whose gradient is
Σ_t g_t a_tᵀ. Most modules are read in one way, some in several: attention has a matrix for its queries, one for its
keys and one for its values, and each of these parts is a layer.

    matrix        a, g as the functions say; a convolution in groups is several matrices (convolutions.py)
    elementwise   a = 1, g = the gradient in the parameters themselves: a normalisation, a bias alone (elementwise.py)
    one_hot       a = the unit vector of a token's id: an embedding (onehot.py)
    inside        the product is not the module's own output, but one that its forward makes on the way (inside.py)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from ..rows import FIRST, Layout


def positions_last(module: nn.Module, x: Tensor) -> Tensor:
    """(B, ..., d) → (B, T, d): every axis between the first and the last counts positions."""
    if x.ndim < 2:
        raise ValueError(
            f"a {type(module).__name__} was given an input of shape {tuple(x.shape)}; expected (B, ..., features). "
            "Give batches of examples: DataLoader(dataset, batch_size=...), or x[None] for a single one."
        )
    return x.reshape(x.shape[0], prod(x.shape[1:-1]), x.shape[-1])


@dataclass(frozen=True)
class Kind:
    """How modules of one type are read as a linear map. ``transposed``: the weight is stored (i, ...), not (o, ...).

    ``groups`` names the attribute that counts the matrices a module applies side by side; None means one.
    """

    activations: Callable[[Any, Tensor], Tensor]  # (module, input) -> (B, T, groups · i), without the bias's 1
    gradients: Callable[[Any, Tensor], Tensor]  # (module, output gradient) -> (B, T, groups · o)
    transposed: bool = False
    weight: str = "weight"
    bias: str | None = "bias"
    groups: str | None = None
    part: str = ""  # what follows the module's name in the layer's, where a module has several
    share: tuple[int, int] = (0, 1)  # the matrix is the k-th of n parts of the weight, and so the bias
    elementwise: bool = False
    scales: bool = False  # of the elementwise ones, those whose weight multiplies
    one_hot: bool = False
    inside: bool = False
    usual: bool = True  # chosen where no layer is named
    standing: bool = True  # False for a bias that is the last column of a matrix, where that is chosen
    without: str = ""  # a parameter that the module may not have: attention has one matrix for all three, or three

    def groups_of(self, module: nn.Module) -> int:
        """The number of matrices that the module applies side by side."""
        return getattr(module, self.groups) if self.groups else 1

    def named(self, name: str) -> str:
        """The layer's name, from its module's."""
        return f"{name}.{self.part}" if name and self.part else name or self.part


@dataclass(frozen=True)
class Layer:
    """A chosen layer: one weight matrix, and every module that applies it (several where modules share it).

    A module with several groups holds one matrix in each, stacked in its weight along its first axis.
    """

    name: str
    modules: tuple[nn.Module, ...]
    kind: Kind
    weight_name: str  # as in model.named_parameters()
    bias_name: str | None
    lookups: tuple[nn.Module, ...] = ()  # embeddings that read the same weight's rows, where modules multiply by it
    untied: bool = False
    group: int = 0
    groups: int = 1
    layout: Layout = FIRST  # where the examples are in its modules' inputs and outputs
    idle: frozenset[int] = frozenset()  # of its calls in a forward pass, those that nothing of the output depends on

    @property
    def diagonal(self) -> str:
        """Which factor is kept as a diagonal: the one of the vocabulary's size where an embedding reads the weight."""
        return "A" if self.kind.one_hot else "S" if self.lookups else ""

    @property
    def bias(self) -> bool:
        """Whether the matrix's last column is a bias's."""
        return self.bias_name is not None and not self.kind.elementwise

    @property
    def weight(self) -> Tensor:
        return getattr(self.modules[0], self.kind.weight)

    @property
    def parameters(self) -> list[Tensor]:
        """The weight and, where there is one, the bias."""
        names = (self.kind.weight, self.kind.bias) if self.bias_name is not None else (self.kind.weight,)
        return [p for name in names if name and (p := self.modules[0]._parameters.get(name)) is not None]

    @property
    def shape(self) -> tuple[int, int]:
        """(o, i), i counting the bias's column."""
        if self.kind.elementwise:
            return sum(p.numel() for p in self.parameters) // self.groups, 1
        o, i = self._matrix(self.weight[None]).shape[1:]
        return o, i + self.bias

    # --- what its modules were given

    def rows(self, module: nn.Module, x: Tensor) -> Tensor:
        """What a module was given (an elementwise one: what it gave) → activations (R, T, groups · i) of R rows."""
        if self.kind.elementwise:
            return torch.ones_like(self.kind.gradients(module, x)[..., :1])
        return self.kind.activations(module, x)

    def features(self, module: nn.Module, x: Tensor, size: int) -> Tensor:
        """The same for ``size`` examples, of all its groups, (B, T, groups · i)."""
        return self.layout.examples(lambda _module, x: self.rows(module, x), module, x, size)

    def gradients(self, module: nn.Module, g: Tensor, slopes: Tensor | None, size: int) -> Tensor:
        """A gradient at a module's output → g (B, T, o); ``slopes`` are an elementwise module's ∂y/∂w."""
        if not self.kind.elementwise:
            return self.own(self.layout.examples(self.kind.gradients, module, g, size))
        parts = [g * slopes] if slopes is not None else []
        parts += [g] if self.bias_name is not None or slopes is None else []
        read = [self.layout.examples(self.kind.gradients, module, part, size) for part in parts]
        return torch.cat(read, dim=-1) if len(read) > 1 else read[0]

    def own(self, features: Tensor) -> Tensor:
        """The module's activations or output gradients (B, T, groups · d) → this layer's share, (B, T, d)."""
        return features.chunk(self.groups, dim=-1)[self.group] if self.kind.groups else features

    def ids(self, module: nn.Module, x: Tensor, size: int) -> Tensor:
        """An embedding's ids as they came, (..., 1) → (B, T)."""
        return self.layout.examples(positions_last, module, x, size)[..., 0]

    def looked_up(self, g: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """An embedding's gradients (B, T, i) and ids (B, T), turned round as a pair (a, g) of the matrix (o, i)."""
        o = self.shape[0]
        a = torch.cat([g, g.new_zeros(*g.shape[:-1], 1)], dim=-1) if self.bias else g
        return a, (ids[..., None] == torch.arange(o, device=ids.device)).to(g.dtype)

    # --- its matrix and the model's parameters

    def join(self, parameters: dict[str, Tensor]) -> Tensor:
        """{parameter name: (*K, parameter's shape)} → one matrix per leading index, (*K, o, i), bias as last column.

        An elementwise layer's is one column: its scales, and below them its shifts.
        """
        weight = parameters[self.weight_name].to_dense()  # an embedding's gradient may be sparse
        lead = weight.shape[: weight.ndim - self.weight.ndim]
        weights, biases = weight.reshape(-1, *self.weight.shape), None
        if self.bias_name is not None:
            biases = parameters[self.bias_name].reshape(len(weights), -1)
            biases = biases.chunk(self.groups, dim=1)[self.group]  # (K, o)
        if self.kind.elementwise:
            columns = [weights.flatten(1).chunk(self.groups, dim=1)[self.group]]
            columns += [] if biases is None else [biases]
            return torch.cat(columns, dim=1).reshape(*lead, *self.shape)
        matrix = self._matrix(weights)  # (K, o, i)
        if biases is not None:
            matrix = torch.cat([matrix, biases[..., None]], dim=2)
        return matrix.reshape(*lead, *self.shape)

    def split(self, matrix: Tensor, parameters: dict[str, Tensor]) -> dict[str, Tensor]:
        """The inverse of ``join`` for one matrix (o, i) → {parameter name: tensor of the parameter's shape}.

        What other groups own of a parameter is taken from ``parameters``.
        """
        if self.kind.elementwise:
            weight, *biases = matrix[:, 0].split(self.weight.numel() // self.groups)
        else:
            weight, biases = matrix[:, :-1] if self.bias else matrix, [matrix[:, -1]] if self.bias else []
            weight = weight.T if self.kind.transposed else weight
        if (fixed := getattr(self.modules[0], "padding_idx", None)) is not None:  # its row is no function of the loss
            row = torch.arange(len(weight), device=weight.device) == fixed
            weight = torch.where(row[:, None], parameters[self.weight_name], weight)
        parts = {self.weight_name: weight.reshape(-1, *self.weight.shape[1:])}
        if self.bias_name is not None:
            parts[self.bias_name] = biases[0].reshape(-1, *self.parameters[1].shape[1:])
        if self.groups > 1:
            for name, part in parts.items():
                rows = list(parameters[name].chunk(self.groups))
                rows[self.group] = part
                parts[name] = torch.cat(rows)
        return parts

    def _matrix(self, weights: Tensor) -> Tensor:
        """(K, *weight shape) → (K, o, i) without the bias."""
        matrices = weights.chunk(self.groups, dim=1)[self.group].flatten(2)
        return matrices.mT if self.kind.transposed else matrices


# --- what a user asks for ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Choice:
    """A choice of layers with a word on how they are to be taken; made by ``untied`` and its like."""

    layers: Any
    untied: bool = False
    everything: bool = False
    biases: bool = True

    @classmethod
    def of(cls, layers: Any) -> Choice:
        """What was asked for as a Choice."""
        if isinstance(layers, Choice):
            return layers
        return cls(None, everything=True) if isinstance(layers, str) and layers == "all" else cls(layers)


@dataclass(frozen=True)
class Exactly:
    """The layers that a curvature speaks of, {name: (o, i)}: with a bias's column only where the shape has one."""

    shapes: Mapping[str, tuple[int, int]]
    untied: bool = False


LayerSpec = None | str | Iterable[str] | Callable[[str, nn.Module], bool] | Choice | Exactly


def untied(layers: LayerSpec) -> Choice:
    """``layers=untied("lm_head")``: consider only this use of a weight that something else (an Embedding) shares."""
    return replace(Choice.of(layers), untied=True)


def everything(layers: LayerSpec = None) -> Choice:
    """``layers=everything("blocks.3.*")``: embeddings and normalisations too, which no glob and no None reach alone.

    ``layers="all"`` is everything that was trained.
    """
    return replace(Choice.of(layers), everything=True)


def without_biases(layers: LayerSpec = None) -> Choice:
    """``layers=without_biases()``: weight matrices alone, their biases taken as fixed."""
    return replace(Choice.of(layers), biases=False)
