"""Tiny language models to test with: attention, masks, sequences of unequal length, a prompt that is not in the loss."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from hypothesis import strategies as st
from oracle import LOSSES, Problem
from torch import Tensor, nn

from inflib import NextToken

VOCABULARY = 4


class TinyTransformer(nn.Module):
    """One block of causal attention and a perceptron, without positions: padding on the left changes nothing."""

    def __init__(self, width: int = 4, hidden: int = 5, heads: int = 2, bias: bool = True):
        super().__init__()
        self.heads = heads
        self.embed = nn.Embedding(VOCABULARY, width)
        self.q, self.k, self.v = (nn.Linear(width, width, bias=bias) for _ in range(3))
        self.o = nn.Linear(width, width, bias=bias)
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, hidden, bias=bias), nn.Linear(hidden, width, bias=bias)
        self.unembed = nn.Linear(width, VOCABULARY, bias=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        B, T = input_ids.shape
        x = self.embed(input_ids)
        q, k, v = (m(x).reshape(B, T, self.heads, -1).transpose(1, 2) for m in (self.q, self.k, self.v))
        seen = torch.ones(T, T, dtype=torch.bool, device=input_ids.device).tril()[None, None]
        if attention_mask is not None:  # a position sees itself, so that no row of weights is empty
            seen = (seen & (attention_mask[:, None, None, :] != 0)) | torch.eye(T, dtype=torch.bool, device=seen.device)
        weights = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(~seen, -torch.inf).softmax(-1)
        mixed = weights @ v
        x = x + self.o(mixed.transpose(1, 2).reshape(B, T, -1))
        x = x + self.down(torch.tanh(self.up(self.norm(x))))
        return self.unembed(x)


LAYERS = ["q", "k", "v", "o", "up", "down", "unembed"]


@dataclass
class LanguageCase:
    """A tiny transformer with sequences of ids (prompts not in the loss), cut into batches, and queries."""

    model: nn.Module
    sequences: list[list[int]]
    prompts: list[int]  # how many predictions at each sequence's start are not in the loss
    queries: list[list[int]]
    layers: list[str] = field(default_factory=lambda: list(LAYERS))
    objective: NextToken = field(default_factory=NextToken)
    positions: bool = False  # the model is told each token's position, as padding on the left moves it
    one_by_one: bool = False  # the oracle cannot use vmap on this model

    def batches(self, sizes: list[int] | None = None, side: str = "right", extra: int = 0) -> list[tuple[Any, Tensor]]:
        """The training sequences in batches of these sizes, each padded to its longest plus ``extra``."""
        return cut(self.sequences, self.prompts, sizes or [len(self.sequences)], side, extra, self.positions)

    @property
    def train(self) -> list[tuple[Any, Tensor]]:
        half = len(self.sequences) // 2
        return self.batches([half, len(self.sequences) - half] if half else None)

    @property
    def asked(self) -> list[tuple[Any, Tensor]]:
        return cut(self.queries, [0] * len(self.queries), [len(self.queries)], positions=self.positions)

    @property
    def problem(self) -> Problem:
        return self.problem_of("right")

    def problem_of(self, side: str) -> Problem:
        """The oracle's, for all training sequences in one batch that is padded on this side."""
        (x, y) = self.batches(side=side)[0]
        return Problem(self.model, self.layers, LOSSES["NextToken"], x, y, self.one_by_one)


def cut(
    sequences: list[list[int]],
    prompts: list[int],
    sizes: list[int],
    side: str = "right",
    extra: int = 0,
    positions: bool = False,
) -> list[tuple[Any, Tensor]]:
    """Batches written out without inflib's help: ids[:-1] and ids[1:], 0 and −100 at padding, −100 at the prompt."""
    found, at = [], 0
    for size in sizes:
        some = list(zip(sequences[at : at + size], prompts[at : at + size], strict=True))
        length = max(len(s) for s, _ in some) - 1 + extra
        ids, mask, targets = ([[fill] * length for _ in some] for fill in (0, 0, -100))
        for row, (sequence, prompt) in enumerate(some):
            start = 0 if side == "right" else length - (len(sequence) - 1)
            for t in range(len(sequence) - 1):
                ids[row][start + t], mask[row][start + t] = sequence[t], 1
                targets[row][start + t] = sequence[t + 1] if t >= prompt else -100
        inputs = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
        if positions:
            inputs["position_ids"] = (inputs["attention_mask"].cumsum(1) - 1).clamp_min(0)
        found.append((inputs, torch.tensor(targets)))
        at += size
    return found


def language(
    lengths: tuple[int, ...] = (5, 3, 6, 2),
    prompts: tuple[int, ...] = (2, 0, 1, 0),
    seed: int = 0,
    queries: tuple[int, ...] = (4, 3),
    bias: bool = True,
    model: nn.Module | None = None,
    vocabulary: int = VOCABULARY,
    **more: Any,
) -> LanguageCase:
    """A case in float64; sequence n has lengths[n] predictions, of which the first prompts[n] are not in the loss.

    ``model`` in place of the tiny transformer needs its ``vocabulary`` and ``layers``.
    """
    torch.manual_seed(seed)
    model = model or TinyTransformer(bias=bias).double().eval()
    generator = torch.Generator().manual_seed(seed + 1)

    def draw(length: int) -> list[int]:
        return torch.randint(0, vocabulary, (length + 1,), generator=generator).tolist()

    sequences, asked = [draw(n) for n in lengths], [draw(n) for n in queries]
    return LanguageCase(model, sequences, list(prompts), asked, **more)


@st.composite
def languages(draw: st.DrawFn) -> LanguageCase:
    """Random tiny cases: one to four sequences of one to six predictions, prompts, biases."""
    lengths = draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
    prompts = [draw(st.integers(0, n - 1)) for n in lengths]
    asked = draw(st.lists(st.integers(1, 5), min_size=1, max_size=2))
    return language(tuple(lengths), tuple(prompts), draw(st.integers(0, 2**16)), tuple(asked), draw(st.booleans()))
