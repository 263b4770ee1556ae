"""Are a language model's targets the tokens that follow, or its inputs over again?

Hugging Face's causal models shift inside, so that their collators' labels are the input_ids. ``NextToken``'s targets
are shifted already; labels taken for them would ask each token to predict itself, a loss that means nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .batches import tensors
from .sequences import IGNORED, Shifted

CHANCE = 1e-3
NOT_IDS = ("mask", "position", "type")  # in the names of inputs that are no token ids


def check_shifted(inputs: Any, targets: Tensor, there: Tensor | None) -> None:
    """Raise ValueError for targets (B, T) that repeat the token ids at every position that counts.

    A sequence of one token over and over repeats itself rightly, and so does one whose targets are seen to follow.
    Sequences that repeat are refused where one does over a run of two tokens or more, and where all of a batch do, in
    so many tokens that it is no chance: "no" may well follow "I said no", but not always.
    """
    if isinstance(inputs, Shifted):
        return
    for ids in _token_ids(inputs, targets):
        found = _repeating(ids, targets, there)
        if found is not None:
            raise ValueError(
                f"the targets of sequence {found} of a batch repeat its input tokens at every position that counts, so "
                "that each would be predicted from itself; expected the token that follows: inputs ids[:, :-1], "
                "targets ids[:, 1:]. Hugging Face's causal models shift inside, their labels are the input_ids: hand "
                "their batches over by inflib.hugging_face_batches(loader). A query that does repeat its prompt's "
                "last token is made by inflib.completion."
            )


def _token_ids(inputs: Any, targets: Tensor) -> list[Tensor]:
    """The inputs that the targets could repeat: where there is a decoder, its ids."""
    if isinstance(inputs, Mapping):
        named = next((inputs[key] for key in ("decoder_input_ids", "input_ids") if key in inputs), None)
        inputs = named if named is not None else [x for k, x in inputs.items() if not any(w in k for w in NOT_IDS)]
    return [
        x
        for x in tensors(inputs)
        if x.shape == targets.shape and x.device == targets.device and x.dtype in (torch.int64, torch.int32)
    ]


def _repeating(ids: Tensor, targets: Tensor, there: Tensor | None) -> int | None:
    """A sequence whose targets repeat its ids and should not, or None."""
    counted = targets != IGNORED
    repeats = ((ids == targets) | ~counted).all(1) & counted.any(1)  # (B,)
    if not bool(repeats.any()):
        return None
    there = torch.ones_like(counted) if there is None or there.shape != ids.shape else there
    first = ids.gather(1, there.long().argmax(1, keepdim=True))
    constant = ((ids == first) | ~there).all(1)
    seen = counted[:, :-1] & there[:, 1:]  # whose following token is among the inputs
    follows = ((ids[:, 1:] == targets[:, :-1]) | ~seen).all(1) & seen.any(1)
    wrong = repeats & ~constant & ~follows
    starts = counted & ~torch.nn.functional.pad(counted, (1, 0))[:, :-1]
    run = (starts.sum(1) == 1) & (counted.sum(1) > 1)
    by_chance = float(ids.max() + 1) ** -float(counted[wrong].sum())  # so many tokens alike, from so large a vocabulary
    if bool((repeats | constant).all()) and by_chance < CHANCE:
        run = torch.ones_like(run)
    found = (wrong & run).nonzero().flatten()
    return int(found[0]) if len(found) else None
