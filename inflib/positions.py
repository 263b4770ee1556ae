"""Which positions of a batch hold tokens, and whether its inputs, mask and targets can be meant together.

Padding counts nowhere: not in A, whose rows are the positions that ``inputs["attention_mask"]`` shows, and not in the
loss, where targets of −100 leave it out. Either without the other is a mistake that changes numbers and raises nothing
by itself, so a batch is looked at before the model is called.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from .batches import say, tensors
from .objectives import Objective, unweighted
from .sequences import IGNORED, NextToken
from .shifts import check_shifted

MASKS = ("attention_mask", "decoder_attention_mask")


def check_batch(objective: Objective, inputs: Any, targets: Any) -> None:
    """Raise ValueError for a mask that cannot be meant, or with ``NextToken`` for sequences that cannot."""
    inner, own = unweighted(objective, targets)
    if isinstance(inner, NextToken):
        check_sequences(inputs, own)
    else:
        masks_of(inputs)


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
    check_shifted(inputs, targets, there)
    name = _targets_mask(inputs)
    if there is None:
        _check_unmasked(ids, targets, name)
    elif there.shape != targets.shape:
        if not isinstance(inputs.get("input_ids"), Tensor):  # else the model's outputs tell which is wrong
            raise ValueError(_mask_shape(there, targets.shape, "the targets'", name))
    elif there.device == targets.device:
        hidden = ~there & (targets != IGNORED)
        if bool(hidden.any()):
            n, t = hidden.nonzero()[0].tolist()
            raise ValueError(
                f"position {t} of sequence {n} of a batch has a target that counts, {int(targets[n, t])}, where the "
                f"{name} is 0; expected the target {IGNORED} wherever no token is. Shift mask and targets "
                "alike, or use inflib.token_batches."
            )


def _check_unmasked(ids: Any, targets: Tensor, name: str) -> None:
    """Without a mask all positions are there: targets left out at the ends of some rows alone are padding's."""
    if any(x.device != targets.device for x in tensors(ids)):
        return  # the objective says so
    counted = targets != IGNORED
    ends = counted.flip(1).cumsum(1).eq(0).sum(1)  # (B,) how many targets at each row's end do not count
    if bool((ends != ends[:1]).any()) and bool(counted.any(1).all()):
        raise ValueError(
            f"sequences of unequal length came without {name} ({int(ends.min())} to {int(ends.max())} targets "
            f"at the rows' ends are {IGNORED}); expected inputs {{'input_ids': ..., {name!r}: ...}}, so that "
            "padding counts nowhere. Use inflib.token_batches, or a mask of ones if every position holds a token."
        )


class Masked(dict[str, Any]):
    """Inputs by name, and the mask that layers go by, {glob: mask's name, mask (B, T) or None}; see ``with_masks``."""

    masks: Mapping[str, str | Tensor | None]


def with_masks(inputs: Mapping[str, Any], masks: Mapping[str, str | Tensor | None]) -> Masked:
    """A batch's inputs with a word on which mask belongs to which layers, where it does not show by itself.

    masks: {layer's name or glob: the name of a mask among the inputs, a mask (B, T), or None for layers whose positions
    all count}; the first that matches holds. ``with_masks(inputs, {"vision.*": None, "*": "attention_mask"})``.
    Raises ValueError for the name of a mask that the inputs lack.
    """
    for pattern, which in masks.items():
        if isinstance(which, str) and which not in inputs:
            raise ValueError(
                f"with_masks: {pattern!r} is to go by {which!r}; expected one of the inputs, {', '.join(inputs)}."
            )
    found = Masked(inputs)
    found.masks = dict(masks)
    return found


def _rebuilt(values: Iterable[Any], kept: Any) -> Masked:
    names, masks = kept
    return with_masks(dict(zip(names, values, strict=True)), masks)


pytree.register_pytree_node(Masked, lambda inputs: (list(inputs.values()), (list(inputs), inputs.masks)), _rebuilt)


def masks_of(inputs: Any) -> dict[str, Tensor]:
    """{name: (B, T) bool} of the masks among the inputs, True where a position is there; none for other inputs.

    Raises ValueError for a mask that has not the shape of its token ids, or that hides a whole sequence.
    """
    if not isinstance(inputs, Mapping):
        return {}
    said = [m for m in getattr(inputs, "masks", {}).values() if isinstance(m, str)]
    names = dict.fromkeys((*(key for key in inputs if _is_mask(key, inputs)), *said))
    return {name: _present(name, inputs) for name in names if inputs.get(name) is not None}


def _is_mask(key: str, inputs: Mapping[str, Any]) -> bool:
    """Whether an input is the mask of a sequence: the text's, or one that is named as what it masks (context_ids)."""
    if key in MASKS or not key.endswith("attention_mask"):
        return key in MASKS
    prefix = key.removesuffix("attention_mask")
    return any(other.startswith(prefix) and other != key for other in inputs)


def positions_present(inputs: Any) -> Tensor | None:
    """(B, T) bool: which positions of the sequence that targets are for are there; None where no mask says so."""
    masks = masks_of(inputs)
    return masks.get(_targets_mask(inputs))


def _targets_mask(inputs: Any) -> str:
    """The name of the mask of the sequence that is predicted: the decoder's where there is one."""
    decodes = isinstance(inputs, Mapping) and any(key.startswith("decoder_") for key in inputs)
    return "decoder_attention_mask" if decodes else "attention_mask"


def _present(name: str, inputs: Mapping[str, Any]) -> Tensor:
    mask, ids = inputs[name], inputs.get(name.replace("attention_mask", "input_ids"))
    same = isinstance(ids, Tensor) and isinstance(mask, Tensor) and ids.shape == mask.shape
    if not isinstance(mask, Tensor) or (mask.ndim != 2 and not same):
        came = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        raise ValueError(
            f"{name} came as {came}; expected (B, T), 1 where a position holds a token and 0 where it is "
            "padding. Let the model make its own (B, 1, T, T) mask from it."
        )
    if isinstance(ids, Tensor) and not same:
        raise ValueError(_mask_shape(mask, ids.shape[:2], "the input_ids'", name))
    there = mask != 0
    if not bool((there == mask).all()):
        raise ValueError(
            f"{name} holds other numbers than 0 and 1 ({float(mask.min()):g} to {float(mask.max()):g}); expected 1 "
            "where a position holds a token and 0 where it is padding. Give that one, and let the model make from it "
            "what it adds to its scores."
        )
    if not bool(there.any(-1).all()):
        raise ValueError(
            f"the {name} of sequence {int((~there.any(-1)).nonzero()[0, 0])} of a batch hides every position; "
            "expected at least one that is there. Leave the sequence out, or correct its mask: 1 where a token is, so "
            "that one which is 1 where padding is (torch's key_padding_mask) wants its opposite, ~mask."
        )
    return there


def _mask_shape(mask: Tensor, expected: torch.Size, whose: str, name: str = "attention_mask") -> str:
    return (
        f"{name} came as {tuple(mask.shape)}; expected {tuple(expected)}, {whose} shape: 1 where a position "
        "holds a token and 0 where it is padding. Cut the mask where the ids are cut: mask[:, :-1] with ids[:, :-1]."
    )


def _ids(inputs: Any) -> Any:
    """The token ids, where inputs name them; else all of the inputs."""
    return inputs.get("input_ids", inputs) if isinstance(inputs, Mapping) else inputs


# --- rows of activations -----------------------------------------------------------------------------------------


def present_rows(a: Tensor, there: Tensor | None) -> Tensor:
    """The rows (R, i) of activations a (B, T, i) at positions that are there (B, T); None: at all of them."""
    return a.flatten(0, 1) if there is None else a[there]


def present_means(a: Tensor, there: Tensor | None) -> Tensor:
    """The mean (B, i) of each example's activations a (B, T, i) over the positions that ``present_rows`` counts."""
    if there is None:
        return a.mean(1)
    return a.masked_fill(~there[..., None], 0).sum(1) / there.sum(1, keepdim=True)
