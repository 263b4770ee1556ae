"""The small problems of the checks: seeded, in float64, with nothing symmetric or saturated about them."""

from __future__ import annotations

from collections import OrderedDict
from itertools import pairwise

import torch
from torch import Tensor, nn

from .library import Case, Examples

VOCABULARY, WIDTH = 6, 4


def classifier(activation: nn.Module | None = None) -> Case:
    """12 examples of 3 classes, 3 queries, a network 6 → 5 → 4 → 3."""
    draw = torch.Generator().manual_seed(0)
    model = network((6, 5, 4, 3), activation or nn.Tanh(), draw)
    train, queries = (_classes(n, draw) for n in (12, 3))
    return Case(model, "cross-entropy", train, queries)


def regression(sizes: tuple[int, ...]) -> Case:
    """12 examples with numbers for targets, 3 queries, a network without activations: linear, or deep and linear."""
    draw = torch.Generator().manual_seed(1)
    model = network(sizes, nn.Identity(), draw)
    train, queries = (Examples(_inputs(n, sizes[0], draw), _normal((n, sizes[-1]), draw)) for n in (12, 3))
    return Case(model, "squared error", train, queries)


def sequences() -> Case:
    """8 sequences of 7 tokens, 2 queries, a small causal model; the tokens behind the second count."""
    draw = torch.Generator().manual_seed(2)
    tokens = [torch.randint(1, VOCABULARY, (n, 7), generator=draw) for n in (8, 2)]
    train, queries = (Examples(x, (torch.arange(7) >= 2).expand(len(x), 7).clone()) for x in tokens)
    return Case(Causal(draw), "next token", train, queries, labels="observed")


class Causal(nn.Module):
    """Token ids (B, T) → logits (B, T, V), each of a token and the mean of those before it; its embedding is fixed."""

    table: Tensor  # (V, WIDTH)

    def __init__(self, draw: torch.Generator) -> None:
        super().__init__()
        self.register_buffer("table", _normal((VOCABULARY, WIDTH), draw))
        self.hidden, self.act = _linear(2 * WIDTH, 5, draw), nn.Tanh()
        self.out = _linear(5, VOCABULARY, draw)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """``attention_mask`` is taken and not needed: padding is on the right, where nobody looks back at it."""
        x = self.table[input_ids]  # (B, T, WIDTH)
        before = x.cumsum(1) / torch.arange(1, x.shape[1] + 1, dtype=x.dtype)[:, None]
        return self.out(self.act(self.hidden(torch.cat([x, before], -1))))


def network(sizes: tuple[int, ...], activation: nn.Module, draw: torch.Generator) -> nn.Sequential:
    """Linear layers "0", "1", …, the activation between them."""
    modules: OrderedDict[str, nn.Module] = OrderedDict()
    for k, (i, o) in enumerate(pairwise(sizes)):
        modules[str(k)] = _linear(i, o, draw)
        if k < len(sizes) - 2:
            modules[f"act{k}"] = activation
    return nn.Sequential(modules)


def _linear(i: int, o: int, draw: torch.Generator) -> nn.Linear:
    layer = nn.Linear(i, o, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(_normal((o, i), draw) / i**0.5)
        layer.bias.copy_(_normal((o,), draw) / 2)
    return layer


def _classes(n: int, draw: torch.Generator) -> Examples:
    return Examples(_inputs(n, 6, draw), torch.randint(0, 3, (n,), generator=draw))


def _inputs(n: int, i: int, draw: torch.Generator) -> Tensor:
    """Unequal spreads, and a mean that is not 0: the second moments have no eigenvalue twice."""
    return _normal((n, i), draw) * torch.linspace(0.5, 1.5, i, dtype=torch.float64) + 0.4


def _normal(shape: tuple[int, ...], draw: torch.Generator) -> Tensor:
    return torch.randn(*shape, generator=draw, dtype=torch.float64)
