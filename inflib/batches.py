"""Walking over the data: batches in a known order, labels from known random streams, a bar when it takes long.

Data is any re-iterable of ``(inputs, targets)`` batches: a list, a DataLoader. Inputs are a tensor, a tuple (passed
to the model as ``*inputs``) or a dict (passed as ``**inputs``); the model's output is a tensor or has ``.logits``.
Example n is the n-th of the walk: every score is a column or row with that number, so a walk whose order
changes from one pass to the next is refused rather than misaligned.
"""

from __future__ import annotations

import os
from collections import UserDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import copy
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .randomness import preserved_rng

Data = Iterable[tuple[Any, Any]]


@dataclass(frozen=True)
class Batch:
    """Examples ``start .. start + size − 1`` of the data, the ``index``-th batch of the walk."""

    index: int
    start: int
    size: int
    inputs: Any
    targets: Any


def walk(data: Data, *, name: str = "data", progress: bool = True, what: str = "") -> Iterator[Batch]:
    """Yield every batch of ``data`` once, in order; the global random generators are left as they were.

    Raises TypeError for what cannot be iterated twice or is not made of (inputs, targets) pairs, ValueError when
    there is nothing to walk over.
    """
    batches, index, start = _undisturbed(data, name), 0, 0
    for item in bar(batches, length(data), what) if progress else batches:
        if not (isinstance(item, (tuple, list)) and len(item) == 2):
            fix = "Wrap several model inputs in a tuple or a dict: ((x1, x2), y) or ({'input_ids': x}, y)."
            if isinstance(item, Mapping):
                fix = "A collator's dicts become pairs by hugging_face_batches(loader), rows by token_batches(rows)."
            raise TypeError(f"{name}: batch {index} is {say(item)}; expected a pair (inputs, targets). {fix}")
        inputs, targets = item
        size = batch_size(targets, name, index)
        if size == 0:
            continue
        yield Batch(index, start, size, inputs, targets)
        index, start = index + 1, start + size
    if start == 0:
        raise ValueError(f"{name} is empty: it yielded no example. Expected at least one (inputs, targets) batch.")


def batch_size(targets: Any, name: str, index: int) -> int:
    """The number of examples in a batch: the first axis of its (first) target tensor."""
    for tensor in tensors(targets):
        if tensor.ndim == 0:
            break
        return tensor.shape[0]
    fix = "a single example is a batch of one: y[None]"
    if isinstance(targets, (tuple, list)):
        fix = "torch.tensor(y), or for lists of token ids inflib.token_batches, which pads and masks them"
    raise TypeError(
        f"{name}: the targets of batch {index} are {say(targets)}; expected a tensor with one entry per "
        f"example along its first axis ({fix})."
    )


def tensors(value: Any, within: tuple[int, ...] = ()) -> Iterator[Tensor]:
    """All tensors inside a tensor, a tuple, a list, a mapping, or an object that holds some (a dataclass, a namespace).

    ``within``: the addresses of the objects that value was reached through.
    """
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for key in value:
            yield from tensors(value[key], within)
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from tensors(part, within)
    elif id(value) not in within:
        for part in held_by(value).values():
            yield from tensors(part, (*within, id(value)))


def held_by(value: Any) -> dict[str, Any]:
    """The attributes of an object that inputs may come in; none of what is a value itself, a function or a module."""
    if value is None or callable(value) or isinstance(value, (str, bytes, int, float, np.ndarray, np.generic)):
        return {}
    if is_dataclass(value) and not isinstance(value, type):
        return {part.name: getattr(value, part.name) for part in fields(value) if hasattr(value, part.name)}
    return getattr(value, "__dict__", {})


def mapped(
    value: Any,
    function: Callable[[Tensor], Tensor],
    within: tuple[int, ...] = (),
    listed: Callable[[Any], Any] = lambda value: None,
) -> Any:
    """``value`` with ``function`` of each tensor inside, in what it came in: a tuple, a dict, an object like it.

    ``listed``: what stands for a list or an array as a whole, or None where it is gone through, or stays.
    """
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, (tuple, list, np.ndarray)) and (found := listed(value)) is not None:
        return found
    go = partial(mapped, function=function, within=within, listed=listed)
    if isinstance(value, (dict, UserDict)):
        found = copy(value)
        for key in value:
            found[key] = go(value[key])
        if isinstance(value, dict):  # ``with_masks`` keeps masks beside the items
            items = [id(part) for part in value.values()]
            beside = {name: part for name, part in getattr(value, "__dict__", {}).items() if id(part) not in items}
            for name, part in beside.items():
                setattr(found, name, go(part))
        return found
    if isinstance(value, Mapping):
        return {key: go(value[key]) for key in value}
    if isinstance(value, (tuple, list)):
        parts = [go(part) for part in value]
        if isinstance(value, list):
            return parts
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    if next(tensors(value, within), None) is None:
        return value
    found, within = copy(value), (*within, id(value))
    for name, part in held_by(value).items():
        object.__setattr__(found, name, mapped(part, function, within, listed))
    return found


def rows_of(value: Any, rows: slice | list[int], size: int) -> Any:
    """The examples ``rows`` of a batch of ``size``: of tensors and arrays whose first axis is the batch's, and of lists
    that hold something else than tensors for each example (words, dicts); the rest as is.

    A list at the top is no such list: its parts are arguments.
    """

    def of_tensor(x: Tensor) -> Tensor:
        return x[rows] if x.ndim and x.shape[0] == size else x

    def listed(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            return value[rows] if value.ndim and len(value) == size else value
        if len(value) != size or hasattr(value, "_fields") or any(isinstance(part, Tensor) for part in value):
            return None
        if any(x.shape[:1] == (size,) for x in tensors(value)):  # of each layer, say, and not of each example
            return None
        found = value[rows] if isinstance(rows, slice) else [value[row] for row in rows]
        return tuple(found) if isinstance(value, tuple) else found

    if isinstance(value, (tuple, list)) and not hasattr(value, "_fields"):
        parts = [mapped(part, of_tensor, (), listed) for part in value]
        return parts if isinstance(value, list) else tuple(parts)
    return mapped(value, of_tensor, (), listed)


# --- memory ----------------------------------------------------------------------------------------------------

BYTE_BUDGET = 256 * 2**20  # of the largest temporary array, unless a caller says otherwise
CACHED_BYTES = 4 * 2**20  # of intermediate products that should stay near the processor


def cached_bytes(x: Tensor) -> int:
    """Of intermediate products beside x: on a CPU what stays near the processor, elsewhere what keeps a device busy."""
    return CACHED_BYTES if x.device.type == "cpu" else BYTE_BUDGET


def chunks(count: int, bytes_each: int, budget: int = BYTE_BUDGET) -> Iterator[slice]:
    """Slices that cover range(count), alike in length, each of at most ``budget`` bytes (but at least one item)."""
    most = max(1, budget // max(1, bytes_each))
    step = -(-count // -(-count // most)) if count else 1  # no short rest: as many slices, of even length
    return (slice(at, min(at + step, count)) for at in range(0, count, step))


# --- small things ----------------------------------------------------------------------------------------------


def double(x: Tensor) -> Tensor:
    """x in float64, on the CPU where its own device has no float64 (MPS)."""
    try:
        return x.double()
    except TypeError:
        return x.cpu().double()


def per_row(x: Tensor, like: Tensor) -> Tensor:
    """(B,) → (B, 1, ..., 1), to be multiplied with ``like`` (B, ...)."""
    return x.reshape(-1, *(1 for _ in like.shape[1:]))


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The dtype that sums are kept in: float32 at least."""
    return torch.promote_types(dtype, torch.float32)


def iterate(data: Data, name: str) -> Iterator[Any]:
    """A fresh iterator over the data; TypeError for what has none, or only one."""
    try:
        iterator = iter(data)
    except TypeError:
        raise TypeError(f"{name} is {say(data)}; expected a list or DataLoader of (inputs, targets) batches.") from None
    if iterator is data:
        raise TypeError(
            f"{name} is a one-shot iterator ({type(data).__name__}); expected something that can be walked over "
            "several times. Use a list, list(...), or a DataLoader."
        )
    return iterator


def _undisturbed(data: Data, name: str) -> Iterator[Any]:
    """The items of ``data``, which draw from a copy of torch's global generator: the generator stays as it was."""
    with preserved_rng():
        iterator, state = iterate(data, name), torch.get_rng_state()
    while True:
        with preserved_rng():
            torch.set_rng_state(state)
            try:
                item = next(iterator)
            except StopIteration:
                return
            state = torch.get_rng_state()
        yield item


def example_positions(examples: Any, N: int) -> Tensor:
    """``examples=`` as (N',) int64; TypeError or ValueError for all but positions from 0 to N − 1 and bool masks."""
    rows = examples if isinstance(examples, Tensor) else torch.as_tensor(np.asarray(examples), device="cpu")
    if rows.numel() == 0 and not isinstance(examples, (Tensor, np.ndarray)):
        rows = rows.long()  # an empty list is no list of fractions
    whole = rows.dtype in (torch.int64, torch.int32, torch.int16, torch.int8)
    if rows.dtype != torch.bool and not whole:
        fix = "; a mask of 0 and 1 needs .bool(), positions need .long()" if rows.dtype == torch.uint8 else ""
        raise TypeError(f"examples came as {rows.dtype}; expected whole positions (int64) or a bool mask{fix}.")
    if rows.ndim != 1 or (rows.dtype == torch.bool and len(rows) != N):
        raise ValueError(
            f"examples came as a {'mask' if rows.dtype == torch.bool else 'tensor'} of shape {tuple(rows.shape)}; "
            f"expected a bool mask ({N},), one entry for each training example, or positions (N',)."
        )
    if rows.dtype == torch.bool:
        return rows.nonzero()[:, 0]
    outside = rows[(rows < 0) | (rows >= N)]
    if len(outside):
        raise ValueError(f"examples has the position {int(outside[0])}; expected positions from 0 to {N - 1}.")
    return rows.long()


def bar(steps: Iterable[Any], total: int | None, what: str, unit: str = "batch") -> Iterable[Any]:
    """``steps`` behind a tqdm bar, where that is installed, shown only for what takes longer than two seconds.

    The environment variable TQDM_DISABLE=1 silences it everywhere (tqdm's notebook bar would not listen to it).
    """
    try:
        from tqdm.auto import tqdm
    except ImportError:
        return steps
    silent = bool(os.environ.get("TQDM_DISABLE"))
    return tqdm(steps, total=total, desc=what, unit=unit, leave=False, delay=2.0, disable=silent)


def length(data: Data) -> int | None:
    """How many batches there are, where that is known: a loader has a length only if its sampler does."""
    try:
        return len(data)  # type: ignore[arg-type]
    except (TypeError, NotImplementedError):
        return None


def say(value: Any) -> str:
    """A value in a message: its kind and size."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}"
