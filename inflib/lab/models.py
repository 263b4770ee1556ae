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
