"""Which positions of a batch hold tokens, and whether its inputs, mask and targets can be meant together.

Padding counts nowhere: not in A, whose rows are the positions that ``inputs["attention_mask"]`` shows, and not in the
loss, where targets of −100 leave it out. Either without the other is a mistake that changes numbers and raises nothing
by itself, so a batch is looked at before the model is called.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .batches import say, tensors
from .objectives import Objective
from .sequences import IGNORED, NextToken


def check_batch(objective: Objective, inputs: Any, targets: Any) -> None:
    """Raise ValueError for a mask that cannot be meant, or with ``NextToken`` for sequences that cannot."""
    if isinstance(objective, NextToken):
        check_sequences(inputs, targets)
    else:
        positions_present(inputs)


def check_sequences(inputs: Any, targets: Any) -> None:
    """Raise ValueError for ragged sequences, padding without a mask, and counted targets where the mask shows none."""
    ids = _ids(inputs)
    came = next((x for x in (ids, targets) if max((t.ndim for t in tensors(x)), default=0) < 2), None)
    if came is None and not isinstance(targets, Tensor):
        came = targets
    if came is not None:
        what = "targets" if came is targets else "inputs"
        raise ValueError(
            f"the {what} of a batch of sequences came as {say(came)}; expected token ids (B, T) and targets (B, T), "
            "shorter sequences padded and masked. Use inflib.token_batches, which does so; one sequence is a batch of "
            "one: x[None]."
        )
    there = positions_present(inputs)
    if there is None:
        _check_unmasked(ids, targets)
    elif there.shape != targets.shape:
        if not isinstance(inputs.get("input_ids"), Tensor):  # else the model's outputs tell which is wrong
            raise ValueError(_mask_shape(there, targets.shape, "the targets'"))
    elif there.device == targets.device:
        hidden = ~there & (targets != IGNORED)
        if bool(hidden.any()):
            n, t = hidden.nonzero()[0].tolist()
            raise ValueError(
                f"position {t} of sequence {n} of a batch has a target that counts, {int(targets[n, t])}, where the "
                f"attention_mask is 0; expected the target {IGNORED} wherever no token is. Shift mask and targets "
                "alike, or use inflib.token_batches."
            )


def _check_unmasked(ids: Any, targets: Tensor) -> None:
    """Without a mask all positions are there: targets left out at the ends of some rows alone are padding's."""
    if any(x.device != targets.device for x in tensors(ids)):
        return  # the objective says so
    counted = targets != IGNORED
    ends = counted.flip(1).cumsum(1).eq(0).sum(1)  # (B,) how many targets at each row's end do not count
    if bool((ends != ends[:1]).any()) and bool(counted.any(1).all()):
        raise ValueError(
            f"sequences of unequal length came without attention_mask ({int(ends.min())} to {int(ends.max())} targets "
            f"at the rows' ends are {IGNORED}); expected inputs {{'input_ids': ..., 'attention_mask': ...}}, so that "
            "padding counts nowhere. Use inflib.token_batches, or a mask of ones if every position holds a token."
        )


def positions_present(inputs: Any) -> Tensor | None:
    """(B, T) bool from ``inputs["attention_mask"]``; None where the inputs have no mask, so that all positions count.

    Raises ValueError for a mask that is not (B, T), as its ``input_ids`` are, or that hides a whole sequence.
    """
    mask = inputs.get("attention_mask") if isinstance(inputs, Mapping) else None
    if mask is None:
        return None
    if not isinstance(mask, Tensor) or mask.ndim != 2:
        came = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        raise ValueError(
            f"attention_mask came as {came}; expected (B, T), 1 where a position holds a token and 0 where it is "
            "padding. Let the model make its own (B, 1, T, T) mask from it."
        )
    ids = inputs.get("input_ids")
    if isinstance(ids, Tensor) and ids.shape[:2] != mask.shape:
        raise ValueError(_mask_shape(mask, ids.shape[:2], "the input_ids'"))
    there = mask != 0
    if not bool(there.any(1).all()):
        raise ValueError(
            f"the attention_mask of sequence {int((~there.any(1)).nonzero()[0])} of a batch hides every position; "
            "expected at least one that is there. Leave the sequence out, or correct its mask."
        )
    return there


def _mask_shape(mask: Tensor, expected: torch.Size, whose: str) -> str:
    return (
        f"attention_mask came as {tuple(mask.shape)}; expected {tuple(expected)}, {whose} shape: 1 where a position "
        "holds a token and 0 where it is padding. Cut the mask where the ids are cut: mask[:, :-1] with ids[:, :-1]."
    )


def _ids(inputs: Any) -> Any:
    """The token ids, where inputs name them; else all of the inputs."""
    return inputs.get("input_ids", inputs) if isinstance(inputs, Mapping) else inputs


# --- rows of activations -----------------------------------------------------------------------------------------


def present_rows(a: Tensor, there: Tensor | None) -> Tensor:
    """The rows (R, i) of activations a (B, T, i) at positions that are there, in the order of a.

    A layer called k times has T = k · T' positions, each call's in turn. Where T is no multiple of the mask's T' (a
    layer after pooling) its positions are no tokens, and all count.
    """
    there = _at_every_call(a, there)
    return a.flatten(0, 1) if there is None else a[there]


def present_means(a: Tensor, there: Tensor | None) -> Tensor:
    """The mean (B, i) of each example's activations a (B, T, i) over the positions that ``present_rows`` counts."""
    there = _at_every_call(a, there)
    if there is None:
        return a.mean(1)
    return a.masked_fill(~there[..., None], 0).sum(1) / there.sum(1, keepdim=True)


def _at_every_call(a: Tensor, there: Tensor | None) -> Tensor | None:
    """The mask (B, T) over a layer's own positions; None where all of them count."""
    if there is None or a.shape[1] % there.shape[1] or bool(there.all()):
        return None
    return there.repeat(1, a.shape[1] // there.shape[1])
