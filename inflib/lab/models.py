"""The models of the course: small, seeded, with layer names that read well in a table or a menu."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn


def mlp(
    sizes: Sequence[int] = (784, 64, 64, 10),
    *,
    activation: Callable[[], nn.Module] = nn.ReLU,
    bias: bool = True,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> nn.Sequential:
    """A multilayer perceptron (N, sizes[0]) → (N, sizes[-1]) with Linear layers hidden1, hidden2, …, out.

    The defaults are the published MNIST experiment's. Weights are drawn on the CPU from a generator of their own, so
    a seed means the same network on every device and in every dtype; move it with ``.to(device)``.
    """
    if len(sizes) < 2 or min(sizes) < 1:
        raise ValueError(
            f"sizes={tuple(sizes)}; expected at least two positive widths, input first and output last: (784, 64, 10)."
        )
    generator = torch.Generator().manual_seed(seed)
    modules: OrderedDict[str, nn.Module] = OrderedDict()
    for k, (i, o) in enumerate(pairwise(sizes[:-1]), start=1):
        modules[f"hidden{k}"] = _linear(i, o, bias, generator, dtype)
        modules[f"act{k}"] = activation()
    modules["out"] = _linear(sizes[-2], sizes[-1], bias, generator, dtype)
    return nn.Sequential(modules)


def cnn(
    channels: Sequence[int] = (8, 16),
    hidden: int = 32,
    *,
    classes: int = 10,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> nn.Sequential:
    """A small convolutional network (N, 784) → (N, classes): layers conv1, conv2, …, hidden1, out; 28,874 weights.

    Each convolution is 5 × 5 with stride 2 and a ReLU, and halves the picture: 28 → 14 → 7. The strides do what pooling
    would, and every step but the ReLUs stays a matrix applied to a vector. Weights as in ``mlp``.
    """
    if not channels or min(*channels, hidden, classes) < 1:
        raise ValueError(
            f"channels={tuple(channels)}, hidden={hidden}, classes={classes}; expected at least one convolution and "
            "positive numbers: cnn((8, 16), hidden=32)."
        )
    generator = torch.Generator().manual_seed(seed)
    modules: OrderedDict[str, nn.Module] = OrderedDict(picture=nn.Unflatten(1, (1, 28, 28)))
    side = 28
    for k, (i, o) in enumerate(pairwise((1, *channels)), start=1):
        modules[f"conv{k}"] = _convolution(i, o, generator, dtype)
        modules[f"act{k}"] = nn.ReLU()
        side = -(-side // 2)
    modules["flat"] = nn.Flatten()
    modules["hidden1"] = _linear(channels[-1] * side**2, hidden, True, generator, dtype)
    modules[f"act{len(channels) + 1}"] = nn.ReLU()
    modules["out"] = _linear(hidden, classes, True, generator, dtype)
    return nn.Sequential(modules)


def _convolution(i: int, o: int, generator: torch.Generator, dtype: torch.dtype) -> nn.Conv2d:
    """A 5 × 5 convolution with stride 2 that halves the picture, started as ``_linear``: 25 i numbers come in."""
    layer = nn.utils.skip_init(nn.Conv2d, i, o, 5, stride=2, padding=2, device="cpu", dtype=dtype)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(_uniform(parameter.shape, 1 / math.sqrt(25 * i), generator))
    return layer


def _linear(i: int, o: int, bias: bool, generator: torch.Generator, dtype: torch.dtype) -> nn.Linear:
    """A Linear layer with PyTorch's usual start, uniform in ±1/√i, from ``generator`` and not from the global one."""
    layer = nn.utils.skip_init(nn.Linear, i, o, bias=bias, device="cpu", dtype=dtype)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(_uniform(parameter.shape, 1 / math.sqrt(i), generator))
    return layer


def _uniform(shape: torch.Size, bound: float, generator: torch.Generator) -> Tensor:
    """Uniform in ±bound, always drawn in float32: a float64 network starts from the same numbers as a float32 one."""
    return torch.empty(shape, dtype=torch.float32, device="cpu").uniform_(-bound, bound, generator=generator)
