"""Characters: tiny Shakespeare and a decoder-only transformer of two blocks, lightly trained.

Where `INFLIB_DATA/tinyshakespeare/input.txt` is missing, the course's own notebooks are the text.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor, nn
from workload import Workload, trained

SHAPE = (128, 128, 128, 4, 512, 2)  # characters, context, width, heads, hidden, blocks
NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks" / "src"


class Block(nn.Module):
    """Causal attention and a perceptron, each added to what comes in, each after a LayerNorm."""

    def __init__(self, width: int, heads: int, hidden: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.qkv, self.o = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norm2, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        B, T, d = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(B, T, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(mixed.transpose(1, 2).reshape(B, T, d))
        return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))


class Transformer(nn.Module):
    """Tokens (B, T) → logits (B, T, characters)."""

    def __init__(self, characters: int, context: int, width: int, heads: int, hidden: int, blocks: int):
        super().__init__()
        self.embed, self.place = nn.Embedding(characters, width), nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width, heads, hidden) for _ in range(blocks))
        self.norm, self.unembed = nn.LayerNorm(width), nn.Linear(width, characters, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens) + self.place(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.blocks:
            x = block(x)
        return self.unembed(self.norm(x))


def model(shape: tuple[int, ...]) -> Transformer:
    return Transformer(*shape)


def prepare(
    shape: tuple[int, ...],
    n_train: int,
    n_queries: int,
    epochs: int = 1,
    seed: int = 0,
    shipped: bool = False,
    device: str = "cpu",
) -> Workload:
    """Cut the text into sequences of the model's context, train on the first, keep the next as queries."""
    source, text = _text(shipped)
    codes = torch.tensor([min(ord(c), shape[0] - 1) for c in text])
    T = shape[1]
    rows = codes[: (n_train + n_queries) * T + 1]
    x, y = rows[:-1].reshape(-1, T), rows[1:].reshape(-1, T)
    if len(x) < n_train + n_queries:
        raise ValueError(f"the text has {len(x)} sequences of {T}; {n_train} + {n_queries} were asked for.")
    layers = tuple(f"blocks.{k}.{part}" for k in range(shape[5]) for part in ("up", "down"))
    data = (x[:n_train].clone(), y[:n_train].clone()), (x[n_train:].clone(), y[n_train:].clone())
    how = {"epochs": epochs, "batch_size": 32, "seed": seed, "device": device}
    return trained("characters", source, shape, layers, model, *data, **how)


def _text(shipped: bool) -> tuple[str, str]:
    folder = os.environ.get("INFLIB_DATA", "")
    path = Path(folder) / "tinyshakespeare" / "input.txt"
    if folder and path.is_file() and not shipped:
        return "tiny Shakespeare, its first characters", path.read_text(encoding="utf-8")
    text = "".join(path.read_text(encoding="utf-8") for path in sorted(NOTEBOOKS.glob("*.py")))
    return "the text of the notebooks" + ("" if shipped else " (no INFLIB_DATA/tinyshakespeare)"), text
