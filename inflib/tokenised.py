"""What tokenizers and datasets give, as sequences of token ids with the targets that count.

    lists of ids            as they are
    BatchEncoding, a dict   {"input_ids", "attention_mask", "labels"}: rows, of which the mask shows the tokens
    rows of a dataset       one such dict a row, lists or tensors: a datasets.Dataset, formatted or not
    a tensor (N, T)         rows without padding; padding shows, and is refused, as nothing says where it ends

Labels are those of fine-tuning: at each position its own token, or −100 where it is not to be learnt (a prompt, the
user's turns of a chat). A mask by the names that chat templates and trainers give it says the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

IGNORED = -100
LEARNT = ("assistant_masks", "completion_mask")  # 1 at the tokens that an example is to teach
Rows = list[tuple[Any, Any]]  # ids and labels (or None) of each sequence


def rows_of(sequences: Any, targets: Any = None) -> Rows:
    """Every sequence's ids and labels, padding taken out; labels None where all tokens count.

    Raises TypeError or ValueError for what holds no token ids, padding that nothing masks, and labels that are not the
    tokens themselves.
    """
    if isinstance(sequences, Mapping):
        rows = _columns(sequences)
    elif isinstance(sequences, Tensor) and sequences.ndim == 2:
        _check_unpadded(sequences)
        rows = [(ids, None) for ids in sequences]
    else:
        rows = [_row(one, n) if isinstance(one, Mapping) else (one, None) for n, one in enumerate(sequences)]
    if targets is not None:
        if any(labels is not None for _, labels in rows) or len(targets) != len(rows):
            raise ValueError(
                f"targets= came with {len(targets)} entries for {len(rows)} sequences"
                f"{', which have labels of their own' if len(targets) == len(rows) else ''}; expected one list of "
                "labels a sequence, from one place. Give them once."
            )
        rows = [(ids, labels) for (ids, _), labels in zip(rows, targets, strict=True)]
    return [(ids, labels if labels is None else _checked(ids, labels, n)) for n, (ids, labels) in enumerate(rows)]


def _columns(held: Mapping[str, Any]) -> Rows:
    """A tokenizer's output: a column for each of input_ids, attention_mask, ..."""
    if "input_ids" not in held:
        raise TypeError(
            f"a dict with {', '.join(map(str, held)) or 'nothing'} came; expected 'input_ids' among its keys, as a "
            "tokenizer gives. Tokenise the texts first: token_batches(tokenizer(texts))."
        )
    ids = held["input_ids"]
    if len(ids) and not isinstance(ids[0], (Sequence, Tensor)):  # one text's
        return [_row(held, 0)]
    if isinstance(ids, Tensor) and ids.ndim == 2 and held.get("attention_mask") is None:
        _check_unpadded(ids)
    columns = {key: value for key, value in held.items() if value is not None and len(value) == len(ids)}
    return [_row({key: column[n] for key, column in columns.items()}, n) for n in range(len(ids))]


def _row(held: Mapping[str, Any], n: int) -> tuple[Any, Any]:
    """One sequence's ids and labels where its mask shows a token."""
    if "input_ids" not in held:
        raise TypeError(
            f"row {n} holds {', '.join(map(str, held))}; expected 'input_ids' among them. Tokenise first: "
            "dataset.map(lambda row: tokenizer(row['text']))."
        )
    ids, labels = torch.as_tensor(held["input_ids"]), held.get("labels")
    learnt = next((held[key] for key in LEARNT if held.get(key) is not None), None)
    if labels is None and learnt is not None:
        labels = ids.where(torch.as_tensor(learnt) != 0, IGNORED)
    if held.get("attention_mask") is not None:
        there = torch.as_tensor(held["attention_mask"]) != 0
        ids = ids[there]
        labels = None if labels is None else torch.as_tensor(labels)[there]
    return ids, labels


def _checked(ids: Any, labels: Any, n: int) -> Tensor:
    """Labels (T,) that are each position's own token, or −100."""
    ids, labels = torch.as_tensor(ids), torch.as_tensor(labels)
    counted = labels != IGNORED
    if labels.shape != ids.shape or not bool((labels == ids)[counted].all()):
        came = f"{len(labels)} for {len(ids)} tokens" if labels.shape != ids.shape else "other ids than its tokens'"
        raise ValueError(
            f"the labels of sequence {n} are {came}; expected at every position its own token, or {IGNORED} where it "
            "is not learnt: token_batches shifts them itself. For labels of another kind give (inputs, targets)."
        )
    if not bool(counted[1:].any()):
        raise ValueError(
            f"sequence {n} has no target that counts; expected a token beside the first whose label is not {IGNORED}. "
            "Leave it out, or look whether its prompt was cut off before the answer."
        )
    return labels


def _check_unpadded(ids: Tensor) -> None:
    """Raise ValueError where rows end, or begin, with one id over and over that occurs nowhere else."""
    for rows, where in ((ids, "end"), (ids.flip(1), "begin")):
        pad, T = rows[:, -1].mode().values, rows.shape[1]
        runs = (rows == pad).flip(1).long().cumprod(1).sum(1)  # (N,)
        inside = (rows == pad).sum(1) > runs
        if T > 2 and int(runs.max()) > 1 and len(runs.unique()) > 1 and not bool(inside.any() | (runs == T).any()):
            raise ValueError(
                f"sequences came as a tensor {tuple(ids.shape)} whose rows {where} with up to {int(runs.max())} times "
                f"the id {int(pad)}, which occurs nowhere else: padding, and no mask; expected to see where the tokens "
                "are. Give the mask too, token_batches({'input_ids': ..., 'attention_mask': ...}), or lists of each "
                "sequence's own ids (ids.tolist() where all of these are tokens)."
            )
