"""The course's language model: a small decoder-only transformer in which every layer has a name one can read.

    x = token[ids] + position[0 … T−1]                            (B, T, d)
    x = x + attention(norm1(x)),   x = x + mlp(norm2(x))          in every block (pre-norm)
    logits = unembed(norm(x))                                     (B, T, V): position t predicts token t + 1

With norm="post" a block is x = norm1(x + attention(x)), x = norm2(x + mlp(x)), as in the published experiment on
alternating letters and digits. Linear layers: blocks.0.attention.q | k | v | o, blocks.0.mlp.up | down, …, unembed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Transformer(nn.Module):
    """Token ids (B, T) → logits (B, T, V). Made by ``transformer``."""

    def __init__(self, vocabulary: int, context: int, width: int, blocks: int, pre: bool, **block: Any):
        super().__init__()
        self.token, self.position = nn.Embedding(vocabulary, width), nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width, pre=pre, **block) for _ in range(blocks))
        self.norm = nn.LayerNorm(width) if pre else nn.Identity()
        self.unembed = nn.Linear(width, vocabulary)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Logits (B, T, V). ``attention_mask`` (B, T) is 1 at tokens and 0 at padding, on the left or on the right.

        Positions are counted from a sequence's first token, so padding changes no logits but its own. Raises
        ValueError for no token, more tokens than the context and ids outside the vocabulary.
        """
        self._check(input_ids)
        T = input_ids.shape[1]
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask.long()
        at = (mask.cumsum(1) - 1).clamp(min=0)  # (B, T)
        itself = torch.eye(T, device=input_ids.device)  # padding sees itself: a softmax over nothing is NaN
        causal = torch.ones_like(itself).tril().bool()
        sees = causal & mask.bool()[:, None, None, :] | itself.bool()  # (B, 1, T, T)
        x = self.token(input_ids) + self.position(at)  # (B, T, d)
        for block in self.blocks:
            x = block(x, sees)
        return self.unembed(self.norm(x))  # (B, T, V)

    def _check(self, ids: Tensor) -> None:
        context, V = self.position.num_embeddings, self.token.num_embeddings
        if ids.shape[1] > context:
            raise ValueError(f"{ids.shape[1]} tokens came; expected at most {context}, the context. Shorten the text.")
        if ids.shape[1] < 1:
            raise ValueError(
                "0 tokens came; expected at least 1. Begin a text with the token that begins one in training."
            )
        try:
            low, high = int(ids.min()), int(ids.max())
        except RuntimeError:  # under vmap, where values cannot be looked at
            return
        if low < 0 or high >= V:
            raise ValueError(f"token ids {low} to {high} came; expected 0 to {V - 1}. Use the model's vocabulary.")


class Block(nn.Module):
    """Attention and a multilayer perceptron, each added to the stream x (B, T, d)."""

    def __init__(self, width: int, heads: int, hidden: int, pre: bool, activation: Callable[[], nn.Module]):
        super().__init__()
        self.pre, self.norm1, self.norm2 = pre, nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.mlp = nn.Sequential()
        self.mlp.up, self.mlp.act, self.mlp.down = nn.Linear(width, hidden), activation(), nn.Linear(hidden, width)

    def forward(self, x: Tensor, sees: Tensor) -> Tensor:
        if self.pre:
            x = x + self.attention(self.norm1(x), sees)
            return x + self.mlp(self.norm2(x))
        x = self.norm1(x + self.attention(x, sees))
        return self.norm2(x + self.mlp(x))


class Attention(nn.Module):
    """softmax(q kᵀ / √d_head) v in every head, over the positions that each position ``sees`` (B, 1, T, T)."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor, sees: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=sees)  # (B, heads, T, d_head)
        return self.o(mixed.transpose(1, 2).flatten(2))


def transformer(
    vocabulary: int, context: int, width: int = 128, heads: int = 4, hidden: int = 512, blocks: int = 2, *,
    norm: str = "pre", activation: Callable[[], nn.Module] = nn.GELU, seed: int = 0, dtype: torch.dtype = torch.float32
) -> Transformer:  # fmt: skip
    """A ``Transformer`` over ``vocabulary`` token ids that reads up to ``context`` of them.

    Weights are drawn on the CPU from a generator of their own, so a seed means the same network on every device and
    in every dtype. Raises ValueError for sizes that cannot be built.
    """
    if min(vocabulary, context, width, heads, hidden, blocks) < 1 or width % heads or norm not in ("pre", "post"):
        raise ValueError(
            f"transformer({vocabulary=}, {context=}, {width=}, {heads=}, {hidden=}, {blocks=}, {norm=}); expected "
            "positive sizes, a width that heads divide, and norm 'pre' or 'post': width=128, heads=4."
        )
    with torch.device("meta"):  # shapes without numbers: the global generator is not used
        block = {"heads": heads, "hidden": hidden, "activation": activation}
        model = Transformer(vocabulary, context, width, blocks, norm == "pre", **block)
    model.to_empty(device="cpu").to(dtype)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim == 1:
                p.fill_(float("norm" in name and name.endswith("weight")))
                continue
            bound = 0.02 * 3**0.5 if name.startswith(("token", "position")) else p.shape[1] ** -0.5
            p.copy_(torch.empty(p.shape, dtype=torch.float32).uniform_(-bound, bound, generator=generator))
    return model
