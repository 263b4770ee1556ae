"""Small networks to test with: hypothesis draws multilayer perceptrons, ``ZOO`` holds the awkward ones by name."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from oracle import LOSSES, Problem
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from inflib import Bernoulli, CrossEntropy, Objective, SquaredError

OBJECTIVES: dict[str, Callable[[], Objective]] = {
    "CrossEntropy": CrossEntropy,
    "SquaredError": SquaredError,
    "Bernoulli": Bernoulli,
}
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "relu in place": lambda: nn.ReLU(inplace=True),
    "elu in place": lambda: nn.ELU(inplace=True),
    "gelu": nn.GELU,
    "softplus": nn.Softplus,
    "linear": nn.Identity,
}


def drawn(examples: int) -> settings:
    """Hypothesis settings for a property of whole networks; INFLIB_THOROUGH=10 tries ten times as many."""
    return settings(
        max_examples=examples * int(os.environ.get("INFLIB_THOROUGH", "1")),
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


# --- one case: a model, an objective and data ---------------------------------------------------------------------------


@dataclass
class Case:
    """A model with its objective and data; ``train`` and ``queries`` are lists of batches."""

    model: nn.Module
    layers: list[str]
    name: str  # of the objective
    x: Any
    y: Tensor
    splits: list[int] = field(default_factory=list)  # where batches end
    activation: str = ""
    query_x: Any = None
    query_y: Any = None

    @property
    def objective(self) -> Objective:
        return OBJECTIVES[self.name]()

    @property
    def problem(self) -> Problem:
        return Problem(self.model, self.layers, LOSSES[self.name], self.x, self.y)

    @property
    def train(self) -> list[tuple[Any, Tensor]]:
        return batches(self.x, self.y, self.splits)

    @property
    def queries(self) -> list[tuple[Any, Tensor]]:
        return [(self.query_x, self.query_y)]


def batches(x: Any, y: Tensor, splits: list[int] | int) -> list[tuple[Any, Tensor]]:
    """Batches of x and y that end at ``splits`` (and at the end), or all of size ``splits``."""
    if isinstance(splits, int):
        splits = list(range(splits, len(y), splits))
    ends = [0, *splits, len(y)]
    cut = [slice(a, b) for a, b in pairwise(ends)]
    return [(pytree.tree_map(lambda t, s=s: t[s], x), y[s]) for s in cut]


def targets_for(name: str, n: int, outputs: int, generator: torch.Generator, soft: bool = False) -> Tensor:
    if name == "CrossEntropy":
        return torch.randint(0, outputs, (n,), generator=generator)
    if name == "SquaredError":
        return torch.randn(n, outputs, generator=generator, dtype=torch.float64)
    y = torch.rand(n, outputs, generator=generator, dtype=torch.float64)
    return y if soft else y.round()


def perceptron(widths: list[int], biases: list[bool], activation: str, seed: int) -> nn.Sequential:
    """fc0, act0, fc1, ... in float64, weights of a size that leaves outputs unsaturated."""
    generator = torch.Generator().manual_seed(seed)
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    for k, bias in enumerate(biases):
        layer = nn.Linear(widths[k], widths[k + 1], bias=bias, dtype=torch.float64)
        with torch.no_grad():
            for p in layer.parameters():
                p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64) * 0.8 / widths[k] ** 0.5)
        parts[f"fc{k}"] = layer
        if k < len(biases) - 1:
            parts[f"act{k}"] = ACTIVATIONS[activation]()
    return nn.Sequential(parts)


def make(
    name: str = "CrossEntropy",
    widths: tuple[int, ...] = (3, 4, 3),
    n: int = 7,
    activation: str = "tanh",
    bias: bool | list[bool] = True,
    seed: int = 0,
    splits: list[int] | None = None,
    queries: int = 3,
    soft: bool = False,
) -> Case:
    """A perceptron case written out, for tests that need no random structure."""
    biases = [bias] * (len(widths) - 1) if isinstance(bias, bool) else bias
    model = perceptron(list(widths), biases, activation, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    x = torch.randn(n, widths[0], generator=generator, dtype=torch.float64)
    y = targets_for(name, n, widths[-1], generator, soft)
    query_x = torch.randn(queries, widths[0], generator=generator, dtype=torch.float64)
    query_y = targets_for(name, queries, widths[-1], generator, soft)
    layers = [f"fc{k}" for k in range(len(biases))]
    cut = [n // 2] if splits is None else splits
    return Case(model, layers, name, x, y, cut, activation, query_x, query_y)


@st.composite
def cases(
    draw: st.DrawFn,
    names: tuple[str, ...] = tuple(OBJECTIVES),
    activations: tuple[str, ...] = tuple(ACTIVATIONS),
    depth: tuple[int, int] = (1, 3),
    examples: tuple[int, int] = (1, 6),
) -> Case:
    """Random perceptrons: depth, widths, biases, activation, objective, number of examples and how they are batched."""
    name = draw(st.sampled_from(names))
    layers = draw(st.integers(*depth))
    outputs = draw(st.integers(2 if name == "CrossEntropy" else 1, 3))
    widths = [*draw(st.lists(st.integers(1, 4), min_size=layers, max_size=layers)), outputs]
    biases = draw(st.lists(st.booleans(), min_size=layers, max_size=layers))
    n = draw(st.integers(*examples))
    splits = sorted(draw(st.sets(st.integers(1, n - 1)))) if n > 1 else []
    return make(
        name,
        tuple(widths),
        n,
        draw(st.sampled_from(activations)),
        biases,
        draw(st.integers(0, 2**20)),
        splits,
        draw(st.integers(1, 3)),
        soft=draw(st.booleans()),
    )


class Positions(nn.Module):
    """A perceptron applied at every position of (B, T, d), the outputs averaged over positions."""

    def __init__(self, inner: nn.Sequential):
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x).mean(1)


@st.composite
def sequences(draw: st.DrawFn) -> Case:
    """Random perceptrons over one to five positions, more than inputs or fewer."""
    case = draw(cases())
    positions, seed = draw(st.integers(1, 5)), draw(st.integers(0, 2**20))
    generator = torch.Generator().manual_seed(seed)
    case.model, case.layers = Positions(case.model), [f"inner.{name}" for name in case.layers]
    for side in ("x", "query_x"):
        n, d = getattr(case, side).shape
        setattr(case, side, torch.randn(n, positions, d, generator=generator, dtype=torch.float64))
    return case


@st.composite
def images(draw: st.DrawFn) -> Case:
    """Random convolutions over small images: kernel, stride, dilation, padding of every kind, groups, bias."""
    kernel, gap = (draw(st.tuples(st.integers(1, 3), st.integers(1, 3))) for _ in range(2))
    size = [d * (k - 1) + 1 + draw(st.integers(0, 2)) for k, d in zip(kernel, gap, strict=True)]
    widest = st.integers(0, min(2, min(size) - 1))  # reflection reaches no further than the image
    padding = draw(st.one_of(widest, st.tuples(widest, widest), st.sampled_from(["same", "valid"])))
    stride = 1 if padding == "same" else draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    groups, seed = draw(st.sampled_from([1, 2])), draw(st.integers(0, 2**20))
    torch.manual_seed(seed)
    model = Images(
        kernel_size=kernel,
        stride=stride,
        padding=padding,
        dilation=gap,
        groups=groups,
        bias=draw(st.booleans()),
        padding_mode=draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"])),
    ).double()
    name, n = draw(st.sampled_from(list(OBJECTIVES))), draw(st.integers(1, 4))
    generator = torch.Generator().manual_seed(seed)
    x, query_x = (torch.randn(k, 2, *size, generator=generator, dtype=torch.float64) for k in (n, 2))
    y, query_y = (targets_for(name, k, 3, generator) for k in (n, 2))
    parts = [f"see.group{k}" for k in range(groups)] if groups > 1 else ["see"]
    return Case(model, [*parts, "out"], name, x, y, [1] if n > 1 else [], "tanh", query_x, query_y)


# --- the zoo: what real models do to a layer ------------------------------------------------------------------------------


class Tokens(nn.Module):
    """Linear layers over (B, T, d) or (B, T, T', d), the positions averaged at the end."""

    def __init__(self, bias: bool = True, change: Callable[[Tensor], Tensor] = torch.tanh):
        super().__init__()
        self.up, self.down = nn.Linear(3, 4, bias=bias), nn.Linear(4, 3, bias=bias)
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.change(self.up(x))).flatten(1, -2).mean(1)


class Twice(nn.Module):
    """One module called twice, with another in between."""

    def __init__(self) -> None:
        super().__init__()
        self.same, self.out = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.same(torch.tanh(self.same(x)))))


class Tied(nn.Module):
    """Two modules that share weight and bias."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle, self.second = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)
        self.second.weight, self.second.bias = self.first.weight, self.first.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.middle(torch.tanh(self.first(x)))))


class Plain(nn.Module):
    """Two layers with something done to each output."""

    def __init__(self, bias: bool = True, change: Callable[[Tensor], Tensor] = torch.tanh):
        super().__init__()
        self.up, self.down = nn.Linear(3, 4, bias=bias), nn.Linear(4, 3, bias=bias)
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        return self.change(self.down(self.change(self.up(x))))


class TwoInputs(nn.Module):
    """Takes two inputs, and answers with an object that has ``.logits``."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.out = nn.Linear(3, 4), nn.Linear(2, 4, bias=False), nn.Linear(4, 3)

    def forward(self, one: Tensor, other: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.out(input=torch.tanh(self.left(one) + self.right(other))))


class Residual(nn.Module):
    """x + f(x), twice, with layer normalisation that no layer covers."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(3)
        self.one, self.two, self.head = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x + torch.tanh(self.one(self.norm(x)))
        x = x + torch.tanh(self.two(self.norm(x)))
        return self.head(x)


class OutOfOrder(nn.Module):
    """Registers its layers in another order than it calls them."""

    def __init__(self) -> None:
        super().__init__()
        self.last, self.first = nn.Linear(4, 3), nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(x)))


class Conv1D(nn.Module):
    """A linear layer that stores its weight as (i, o), as older language models do; unknown until registered."""

    def __init__(self, i: int, o: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(i, o) * 0.5)
        self.bias = nn.Parameter(torch.randn(o) * 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


class Images(nn.Module):
    """A convolution that ``options`` describe, something done to its output, and the mean over what is left."""

    def __init__(self, change: Callable[[Tensor], Tensor] = torch.tanh, **options: Any):
        super().__init__()
        self.see, self.out = nn.Conv2d(2, 4, **({"kernel_size": 3} | options)), nn.Linear(4, 3)
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.change(self.see(x)).mean((2, 3)))


class Convolutions(nn.Module):
    """A convolution, batch normalisation, one in groups called twice, one that shares its weight, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.see, self.norm = nn.Conv2d(1, 2, 3, stride=2, padding=1), nn.BatchNorm2d(2)
        self.mix = nn.Conv2d(2, 2, (2, 1), padding="same", dilation=2, groups=2)
        self.again = nn.Conv2d(2, 2, (2, 1), padding=(1, 0), groups=2)
        self.again.weight, self.again.bias = self.mix.weight, self.mix.bias
        self.out = nn.Linear(12, 3)
        self.norm.running_mean.fill_(0.2), self.norm.running_var.fill_(2.0)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.norm(self.see(x)))
        h = torch.tanh(self.again(torch.tanh(self.mix(h)) + self.mix(h)))
        return self.out(h.flatten(1))


def frozen(model: nn.Module, *names: str) -> nn.Module:
    """``model`` with the named modules frozen, or all of it."""
    for name in names or ("",):
        model.get_submodule(name).requires_grad_(False)
    return model


def _set_half(h: Tensor) -> Tensor:
    h[..., 0] = h[..., 0] * 0.5
    return h


def _transposed_in_place(h: Tensor) -> Tensor:
    return h.transpose(0, -1).mul_(1.5).transpose(0, -1)


# name → (the model, its layers, what one example's input looks like)
ZOO: dict[str, Callable[[], tuple[nn.Module, list[str], Any]]] = {
    "tokens": lambda: (Tokens(), ["up", "down"], (5, 3)),
    "tokens, no bias": lambda: (Tokens(bias=False), ["up", "down"], (5, 3)),
    "tokens, add in place": lambda: (Tokens(change=lambda h: h.add_(0.3).tanh()), ["up", "down"], (4, 3)),
    "tokens, relu in place": lambda: (Tokens(change=torch.relu_), ["up", "down"], (4, 3)),
    "tokens, relu in place, no bias": lambda: (Tokens(False, torch.relu_), ["up", "down"], (4, 3)),
    "tokens, part set in place": lambda: (Tokens(change=_set_half), ["up", "down"], (4, 3)),
    "tokens, frozen, relu in place": lambda: (frozen(Tokens(change=torch.relu_)), ["up", "down"], (4, 3)),
    "tokens, first frozen": lambda: (frozen(Tokens(), "up"), ["down"], (4, 3)),
    "grid of positions": lambda: (Tokens(), ["up", "down"], (2, 2, 3)),
    "called twice": lambda: (Twice(), ["same", "out"], (3,)),
    "tied modules": lambda: (Tied(), ["first", "middle"], (3,)),
    "add in place": lambda: (Plain(change=lambda h: h.add_(0.3).tanh()), ["up", "down"], (3,)),
    "relu in place": lambda: (Plain(change=torch.relu_), ["up", "down"], (3,)),
    "part set in place": lambda: (Plain(change=_set_half), ["up", "down"], (3,)),
    "view changed in place": lambda: (Plain(change=_transposed_in_place), ["up", "down"], (3,)),
    "all frozen": lambda: (frozen(Plain()), ["up", "down"], (3,)),
    "all frozen, in place": lambda: (frozen(Plain(change=lambda h: h.mul_(1.5).tanh())), ["up", "down"], (3,)),
    "first frozen": lambda: (frozen(Plain(), "up"), ["down"], (3,)),
    "last frozen": lambda: (frozen(Plain(), "down"), ["up"], (3,)),
    "two inputs": lambda: (TwoInputs(), ["left", "right", "out"], ((3,), (2,))),
    "inputs by name": lambda: (TwoInputs(), ["left", "right", "out"], {"one": (3,), "other": (2,)}),
    "residual": lambda: (Residual(), ["one", "two", "head"], (3,)),
    "out of order": lambda: (OutOfOrder(), ["last", "first"], (3,)),
    "a bare layer": lambda: (nn.Linear(3, 3), [""], (3,)),
    "weight stored transposed": lambda: (
        nn.Sequential(Conv1D(3, 4), nn.Tanh(), Conv1D(4, 3)),
        ["0", "2"],
        (3,),
    ),
    "convolution": lambda: (Images(stride=2, padding=1), ["see", "out"], (2, 5, 4)),
    "convolution, relu in place, no bias": lambda: (
        Images(torch.relu_, bias=False, dilation=2, padding="same", padding_mode="circular"),
        ["see", "out"],
        (2, 4, 3),
    ),
    "convolution in groups": lambda: (
        Images(groups=2, padding="same", padding_mode="reflect"),
        ["see.group0", "see.group1", "out"],
        (2, 3, 3),
    ),
    "convolutions, tied, called twice": lambda: (
        Convolutions(),
        ["see", "mix.group0", "mix.group1", "out"],
        (1, 3, 4),
    ),
    "convolutions of other dimensions": lambda: (
        nn.Sequential(
            nn.Conv1d(2, 3, 2),
            nn.Tanh(),
            nn.Unflatten(1, (1, 3, 1)),
            nn.Conv3d(1, 3, (2, 1, 2)),
            nn.Flatten(2),
            nn.AdaptiveAvgPool1d(1),
            nn.Flatten(),
        ),
        ["0", "3"],
        (2, 4),
    ),
    "transformer layer": lambda: (
        nn.Sequential(nn.TransformerEncoderLayer(4, 2, 5, 0.0, batch_first=True), nn.Flatten(), nn.Linear(12, 3)),
        [*(f"0.self_attn.{part}" for part in ("q", "k", "v", "out_proj")), "0.linear1", "0.linear2", "2"],
        (3, 4),
    ),
}


def zoo(animal: str, name: str = "CrossEntropy", n: int = 6, seed: int = 0) -> Case:
    """A case around one of ZOO's models, in float64."""
    torch.manual_seed(seed)
    model, layers, shape = ZOO[animal]()
    model = model.double().eval()
    generator = torch.Generator().manual_seed(seed + 1)

    def rows(count: int) -> Any:
        def one(s: tuple[int, ...]) -> Tensor:
            return torch.randn(count, *s, generator=generator, dtype=torch.float64)

        if isinstance(shape, dict):
            return {k: one(s) for k, s in shape.items()}
        return tuple(one(s) for s in shape) if isinstance(shape[0], tuple) else one(shape)

    x, query_x = rows(n), rows(2)
    y, query_y = (targets_for(name, count, 3, generator) for count in (n, 2))
    return Case(model, layers, name, x, y, [1, 4] if n > 4 else [], "", query_x, query_y)


# --- what a model looks like ----------------------------------------------------------------------------------------------


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Everything about a model that a call could leave changed, byte for byte."""
    found: dict[str, Any] = {}
    for name, module in model.named_modules():
        found[f"{name} training"] = module.training
        found[f"{name} attributes"] = sorted(vars(module))
        for attribute, value in vars(module).items():
            if "hook" in attribute and hasattr(value, "items"):
                found[f"{name} {attribute}"] = [(k, id(v)) for k, v in value.items()]
        for kind in ("_parameters", "_buffers"):
            for key, tensor in getattr(module, kind).items():
                found[f"{name} {kind} {key}"] = None if tensor is None else list(_tensor(tensor))
    return found


def _tensor(tensor: Tensor) -> Iterator[Any]:
    yield id(tensor)
    yield tensor.data_ptr()
    yield tensor.requires_grad
    yield _bytes(tensor)
    yield None if tensor.grad is None else (id(tensor.grad), _bytes(tensor.grad))
    yield len(tensor._backward_hooks or ())


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes()
