"""Models whose layers are no plain matrices: normalisations, embeddings, attention in one call, transposed convolutions.

``KINDS`` holds them by name: the model, its layers, and what one example's input is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from networks import Case, targets_for
from torch import Tensor, nn

from inflib import register

VOCABULARY = 7


class Normal(nn.Module):
    """Linear, a normalisation with scales and shifts off 1 and 0, linear; averaged over what axes there are."""

    def __init__(self, norm: nn.Module, wide: int = 4):
        super().__init__()
        self.up, self.norm, self.down = nn.Linear(3, wide), norm, nn.Linear(wide, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.down(torch.tanh(self.norm(self.up(x))))
        return h.flatten(1, -2).mean(1) if h.ndim > 2 else h


class Own(nn.Module):
    """A normalisation as a library of its own writes it, scaled by 1 + w."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        return x * (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * (1 + self.weight)


OwnRMSNorm = type("OwnRMSNorm", (Own,), {})


class Images(nn.Module):
    """A convolution, a normalisation of its channels, a transposed convolution; averaged over pixels."""

    def __init__(self, norm: nn.Module, **options: Any):
        super().__init__()
        self.see, self.norm = nn.Conv2d(2, 4, 2), norm
        self.back = nn.ConvTranspose2d(4, 6, **({"kernel_size": (2, 3)} | options))
        self.out = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.back(torch.tanh(self.norm(self.see(x))))
        return self.out((torch.tanh(h) * torch.linspace(0.5, 1, h.shape[-1])).mean((2, 3)))


class Texts(nn.Module):
    """Token and position embeddings, T positions, a linear layer; positions by (T,) or (1, T) ids, which all share."""

    def __init__(self, positions: Callable[[int], Tensor] = torch.arange, padding_idx: int | None = None):
        super().__init__()
        self.token, self.position = nn.Embedding(VOCABULARY, 4, padding_idx), nn.Embedding(9, 4)
        self.mix, self.head = nn.Linear(4, 4), nn.Linear(4, 3)
        self.positions = positions

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        h = self.token(input_ids) + self.position(self.positions(input_ids.shape[1]))
        h = torch.tanh(self.mix(h))
        there = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        return self.head((h * there[..., None]).sum(1))


class Tied(nn.Module):
    """An embedding whose weight is the last layer's too, with a bias or without; the logits of one token."""

    def __init__(self, bias: bool = False):
        super().__init__()
        self.token, self.mix, self.head = nn.Embedding(VOCABULARY, 4), nn.Linear(4, 4), nn.Linear(4, VOCABULARY, bias)
        self.head.weight = self.token.weight

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.head(torch.tanh(self.mix(self.token(input_ids))).sum(1))


class Mixer(nn.Module):
    """Weights that are plain parameters, applied by ``x @ W``, ``x @ W.T`` and F.linear; see ``registered``."""

    def __init__(self) -> None:
        super().__init__()
        self.W1, self.W2 = nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(5, 4))
        self.W3, self.b3 = nn.Parameter(torch.randn(3, 5)), nn.Parameter(torch.randn(3))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(torch.tanh(x @ self.W1) @ self.W2.T)
        h = torch.nn.functional.linear(h, self.W3, self.b3)
        return h.flatten(1, -2).mean(1) if h.ndim > 2 else h


register(Mixer, weight="W1", bias=None, transposed=True, part="W1", inside=True)
register(Mixer, weight="W2", bias=None, part="W2", inside=True)
register(Mixer, weight="W3", bias="b3", part="W3", inside=True)


class Attends(nn.Module):
    """Attention of torch's own, over itself and over something else, batch first or second."""

    def __init__(
        self, batch_first: bool = True, across: bool = False, bias: bool = True, widths: tuple[int, int] = (4, 4)
    ):
        super().__init__()
        self.first, self.widths = batch_first, widths
        of_its_own = dict(zip(("kdim", "vdim"), widths, strict=True)) if widths != (4, 4) else {}
        self.attention = nn.MultiheadAttention(4, 2, batch_first=batch_first, bias=bias, **of_its_own)
        self.up, self.head, self.across = nn.Linear(3, 4), nn.Linear(4, 3), across

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.up(x if self.first else x.transpose(0, 1)))
        sequence = 1 if self.first else 0
        asks = h.narrow(sequence, 0, 2) if self.across else h
        keys, values = (h[..., :width] for width in self.widths)
        return self.head(self.attention(asks, keys, values, need_weights=False)[0].mean(sequence))


def shaken(model: nn.Module, seed: int = 0) -> nn.Module:
    """In float64 and eval mode, with all numbers moved, so that no scale is 1 and no shift 0."""
    generator = torch.Generator().manual_seed(seed)
    model = model.double().eval()
    for p in model.parameters():
        p.data += 0.3 * torch.randn(p.shape, generator=generator, dtype=torch.float64)
    return model


def _normal(norm: nn.Module, wide: int = 4) -> tuple[nn.Module, list[str]]:
    return Normal(norm, wide), ["up", "norm", "down"]


def _images(norm: nn.Module, groups: int = 1, **options: Any) -> tuple[nn.Module, list[str]]:
    back = ["back"] if groups == 1 else [f"back.group{k}" for k in range(groups)]
    shift = ["back.bias"] if options.get("bias", True) else []
    return Images(norm, groups=groups, **options), ["see", "norm", *back, *shift, "out"]


def _running(norm: Any) -> nn.Module:
    norm.running_mean.fill_(0.2), norm.running_var.fill_(2.0)
    return norm


def _attends(**options: Any) -> tuple[nn.Module, list[str]]:
    return Attends(**options), ["attention.q", "attention.k", "attention.v", "attention.out_proj", "up", "head"]


def _attends_to_others() -> tuple[nn.Module, list[str]]:
    """Keys of three numbers and values of two: three weights."""
    layers = [f"attention.{part}" for part in ("q", "k", "v", "out_proj")]
    return Attends(widths=(3, 2), across=True, bias=False), [*layers, "up", "head"]


TEXT = ["token", "position", "mix", "head"]
KINDS: dict[str, Callable[[], tuple[nn.Module, list[str], Any]]] = {
    "LayerNorm": lambda: (*_normal(nn.LayerNorm(4)), (3,)),
    "LayerNorm, tokens": lambda: (*_normal(nn.LayerNorm(4)), (5, 3)),
    "LayerNorm without shifts": lambda: (*_normal(nn.LayerNorm(4, bias=False)), (5, 3)),
    "RMSNorm, tokens": lambda: (*_normal(nn.RMSNorm(4)), (5, 3)),
    "RMSNorm of its own": lambda: (*_normal(OwnRMSNorm()), (5, 3)),
    "LayerNorm over two axes": lambda: (*_normal(nn.LayerNorm((2, 4))), (3, 2, 3)),
    "BatchNorm": lambda: (*_normal(_running(nn.BatchNorm1d(4))), (3,)),
    "BatchNorm of images": lambda: (*_images(_running(nn.BatchNorm2d(4))), (2, 4, 3)),
    "GroupNorm, transposed in groups": lambda: (
        *_images(nn.GroupNorm(2, 4), 2, stride=2, padding=1, output_padding=1), (2, 4, 3),
    ),
    "transposed, dilated": lambda: (
        *_images(nn.GroupNorm(1, 4), stride=(2, 3), dilation=(3, 2), output_padding=(2, 1), bias=False), (2, 4, 3),
    ),
    "embeddings": lambda: (Texts(), TEXT, 5),
    "embeddings, (1, T) positions": lambda: (Texts(lambda T: torch.arange(T)[None]), TEXT, 5),
    "embeddings, one token": lambda: (Texts(), TEXT, 1),
    "embeddings, padding_idx": lambda: (Texts(padding_idx=2), TEXT, 5),
    "tied embeddings": lambda: (Tied(), ["token", "mix"], 5),
    "tied embeddings with a bias": lambda: (Tied(bias=True), ["token", "mix"], 5),
    "plain parameters": lambda: (nn.Sequential(Mixer()), ["0.W1", "0.W2", "0.W3"], (5, 3)),
    "plain parameters, one position": lambda: (nn.Sequential(Mixer()), ["0.W1", "0.W2", "0.W3"], (3,)),
    "attention": lambda: (*_attends(), (5, 3)),
    "attention, batch second": lambda: (*_attends(batch_first=False), (5, 3)),
    "attention without biases": lambda: (*_attends(bias=False), (5, 3)),
    "attention, across": lambda: (*_attends(across=True), (5, 3)),
    "attention, keys and values of other widths": lambda: (*_attends_to_others(), (5, 3)),
    "attention, as long as the batch": lambda: (*_attends(batch_first=False), (4, 3)),
}  # fmt: skip


def kinds(animal: str, name: str = "CrossEntropy", n: int = 6, seed: int = 0) -> Case:
    """A case around one of ``KINDS``'s models, in float64."""
    torch.manual_seed(seed)
    model, layers, shape = KINDS[animal]()
    model = shaken(model, seed)
    generator = torch.Generator().manual_seed(seed + 1)

    def rows(count: int) -> Tensor:
        if isinstance(shape, int):
            return torch.randint(0, VOCABULARY, (count, shape), generator=generator)
        return torch.randn(count, *shape, generator=generator, dtype=torch.float64)

    x, query_x = rows(n), rows(2)
    y, query_y = (targets_for(name, count, 3, generator) for count in (n, 2))
    return Case(model, layers, name, x, y, [4] if n > 4 else [], "", query_x, query_y)
