"""What tiny models are made of: sizes, weights from a fixed seed, and padded batches of 3, 4 and 5 examples.

One batch has as many positions as examples.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from alone import Batch, Case, class_loss, token_loss
from torch import Tensor, nn

from inflib import CrossEntropy, NextToken

VOCABULARY, PAD, CLASSES = 19, 1, 3
IDS: dict[str, Any] = {"pad_token_id": PAD, "bos_token_id": 2, "eos_token_id": 2}
SIZES: dict[str, Any] = {"vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
WIDE: dict[str, Any] = {
    **SIZES,
    **IDS,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
    "initializer_range": 0.3,
}
LENGTHS = ((6, 3, 5), (4, 4, 2, 3), (3, 1, 2, 3, 2))  # of the sequences in each batch


def seeded(build: Callable[[Any], nn.Module], config: Any) -> nn.Module:
    """A model from its configuration, biases and scales moved off the 0 and 1 they begin at."""
    torch.manual_seed(0)
    model = build(config)
    for p in model.parameters():
        p.data += 0.1 * torch.randn_like(p)
    return model.double().eval()


# --- batches ----------------------------------------------------------------------------------------------------------


def draw() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def sequences(lengths: tuple[int, ...], generator: torch.Generator, side: str = "right") -> dict[str, Tensor]:
    """Token ids from 3 on, padded and masked."""
    T = max(lengths)
    at = torch.arange(T) if side == "right" else torch.arange(T).flip(0)
    there = at < torch.tensor(lengths)[:, None]
    ids = torch.randint(3, VOCABULARY, (len(lengths), T), generator=generator)
    return {"input_ids": ids.where(there, PAD), "attention_mask": there.long()}


def classes(count: int, generator: torch.Generator) -> Tensor:
    return torch.randint(0, CLASSES, (count,), generator=generator)


def labelled() -> list[Batch]:
    """Sequences with a class each."""
    g = draw()
    return [(sequences(n, g), classes(len(n), g)) for n in LENGTHS]


def continued(side: str = "right") -> list[Batch]:
    """Sequences with the tokens that follow; the first of every longer one is a prompt's."""
    g, found = draw(), []
    for lengths in LENGTHS:
        inputs = sequences(lengths, g, side)
        there = inputs["attention_mask"].bool()
        targets = torch.randint(3, VOCABULARY, there.shape, generator=g).where(there, -100)
        first = (there.cumsum(1) == 1) & (there.sum(1, keepdim=True) > 2)
        if side == "left":
            inputs["position_ids"] = (there.cumsum(1) - 1).clamp_min(0)
        found.append((inputs, targets.masked_fill(first, -100)))
    return found


def images() -> list[Batch]:
    """Noise in three channels, 16 by 16, with a class each."""
    g = draw()
    return [({"pixel_values": torch.randn(n, 3, 16, 16, generator=g)}, classes(n, g)) for n in (3, 4, 5)]


SEQUENCE = {"attention_mask": ("input_ids",)}
CONTINUED = {"attention_mask": ("input_ids", "targets")}


def classifier(build: Callable[[Any], nn.Module], config: Any) -> Case:
    return Case(seeded(build, config), CrossEntropy(), class_loss, labelled(), SEQUENCE)


def causal(build: Callable[[Any], nn.Module], config: Any, side: str = "right") -> Case:
    padded = CONTINUED if side == "right" else {"attention_mask": ("input_ids", "position_ids", "targets")}
    return Case(seeded(build, config), NextToken(), token_loss, continued(side), padded)


def vision(build: Callable[[Any], nn.Module], config: Any) -> Case:
    return Case(seeded(build, config), CrossEntropy(), class_loss, images())
