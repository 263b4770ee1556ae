"""Every pass sees the same examples: what a second walk over the data yields is compared with the first.

Curvatures and scores are made in several passes. Λ belongs to the basis only if both saw the same examples, sampled
labels and score columns go by an example's position, and an index is filled by what was counted before. So ``Same``
stands between the data and those who walk over it, and looks at every batch as it passes: its contents, where the data
keeps its order; the sum of its examples' own hashes, which is the same in any order, where a loader shuffles.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler

from .batches import Data, batch_size, held_by, iterate, tensors
from .checkpoint import Done
from .fingerprints import checksum
from .randomness import preserved_rng

IGNORED = -100  # what collators pad labels with


def check_order(data: Data, name: str) -> Same:
    """The data, watched; refused where its order changes between passes: score column n must be the user's example n.

    Looks for a shuffling sampler, then at the first batch of four fresh iterations.
    """
    same = Same.of(data, name, ordered=True)
    if isinstance(getattr(same.data, "sampler", None), RandomSampler):
        raise ValueError(_shuffles(name, "its sampler is a RandomSampler"))
    with preserved_rng():
        for _ in range(4):
            next(iter(same), None)
    return same


class Same:
    """``data``, to be walked over as often as one likes, as long as every walk yields the examples of the first.

    ordered: they must come in the same batches, in the same order. Else a loader may shuffle them.
    """

    def __init__(self, data: Data, name: str, *, ordered: bool):
        self.data, self.name, self.ordered = data, name, ordered
        self.by_batch = ordered or _keeps_order(data)
        self.first: Any = None  # the first batch that came with an example in it
        self.prints: list[bytes] = []  # of the batches seen so far, where ``by_batch``
        self.whole: tuple[int, int] | None = None  # examples of a walk to the end, and the sum of their hashes
        self.at = 0  # batches of the present walk so far

    @classmethod
    def of(cls, data: Data, name: str, *, ordered: bool) -> Same:
        """The data itself where it is watched already."""
        return data if isinstance(data, Same) else cls(data, name, ordered=ordered)

    def __len__(self) -> int:
        return len(self.data)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Any]:
        """The items of ``data``; ValueError where they are not those of the first walk."""
        index, examples, total = 0, 0, 0
        self.at = 0
        for item in iterate(self.data, self.name):
            if isinstance(item, (tuple, list)) and len(item) == 2:  # ``walk`` says what else is wrong
                size = batch_size(item[1], self.name, index)
                examples += size
                self.first = item if self.first is None and size else self.first
                if self.whole is not None and examples > self.whole[0]:
                    raise ValueError(self._other(f"more than the {self.whole[0]} examples of the pass before"))
                if self.by_batch:
                    self.check(index, item)
                else:
                    inputs, targets = item
                    total = (total + _sum_of_examples(inputs, targets, size)) % 2**64
                index += 1
            self.at += 1
            yield item
        if self.whole is None:
            self.whole = examples, total
        if examples != self.whole[0]:
            raise ValueError(self._other(f"{examples} examples after {self.whole[0]} on the pass before"))
        if total != self.whole[1]:
            raise ValueError(self._other(f"as many examples ({examples}) on every pass, but others"))

    def check(self, index: int, item: Any) -> None:
        """Raise ValueError where the ``index``-th batch is another than on the first walk."""
        now = fingerprint(item)
        if index == len(self.prints):
            self.prints.append(now)
        elif self.prints[index] != now:
            raise ValueError(
                _shuffles(self.name, f"batch {index} differed between two passes")
                if self.ordered
                else self._other(f"another batch {index} than on the pass before")
            )

    def digest(self, count: int) -> str:
        """A hash of the first ``count`` batches, where they are known by their order."""
        return blake2b(b"".join(self.prints[:count]), digest_size=16).hexdigest()

    def check_resumed(self, done: Done) -> None:
        """Raise ValueError where the batches that are in a checkpoint's sums are not those of this walk."""
        if done.whole and self.at > done.items:
            came = f"more than the {done.items} batches"
        elif self.at < done.items or self.digest(done.items) != done.digest:
            came = f"other batches than the {done.items}"
        else:
            return
        raise ValueError(
            f"{self.name} yielded {came} that are in the checkpoint's sums; expected the same. For other data give "
            "checkpoint= another folder."
        )

    def _other(self, came: str) -> str:
        return (
            f"{self.name} yielded {came}; expected the same examples on every pass. A loader that shuffles with "
            "drop_last=True leaves out others each time: use drop_last=False. No random augmentation, no batch that is "
            "changed in place, no data that is used up."
        )


def _keeps_order(data: Data) -> bool:
    """Whether data has no way to come in another order."""
    if isinstance(data, DataLoader):
        batches = data.batch_sampler
        return type(batches) is BatchSampler and type(batches.sampler) is SequentialSampler
    return isinstance(data, (list, tuple))


def _shuffles(name: str, how: str) -> str:
    return (
        f"{name} does not keep its order ({how}); expected the same examples in the same order on every pass, "
        "because example n is known by its position. Use DataLoader(..., shuffle=False) and no random augmentation."
    )


# --- fingerprints ------------------------------------------------------------------------------------------------


def fingerprint(batch: Any) -> bytes:
    """A hash of the contents of a batch: its tensors, and what words, numbers and arrays there are beside them."""
    beside = blake2b(b"".join(_beside(batch)), digest_size=16).digest()
    return b"".join((*map(checksum, tensors(batch)), beside))


def _beside(value: Any, within: tuple[int, ...] = ()) -> Iterator[bytes]:
    if isinstance(value, np.ndarray):
        yield repr(value.tolist()).encode() if value.dtype == object else value.tobytes()
    elif isinstance(value, (str, bytes, int, float, type(None))):
        yield repr(value).encode()
    elif isinstance(value, Mapping):
        for key in value:
            yield from _beside(value[key], within)
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from _beside(part, within)
    elif not isinstance(value, Tensor) and next(tensors(value, within), None) is not None:
        for part in held_by(value).values():
            yield from _beside(part, (*within, id(value)))


def _sum_of_examples(inputs: Any, targets: Any, size: int) -> int:
    """Σ_n hash(example n) mod 2⁶⁴: the same in any order, and however the examples are batched and padded."""
    each = np.zeros(size, dtype=np.uint64)
    for tensor, mask in _with_masks(inputs, targets):
        if tensor.shape[:1] == (size,) and not tensor.is_meta:
            each = _mixed(each + _hash_rows(tensor, mask))
        else:  # no row an example: it must be the same in every batch
            each = _mixed(each + np.frombuffer(checksum(tensor)[:8], dtype=np.uint64))
    return int(each.sum(dtype=np.uint64))


def _with_masks(inputs: Any, targets: Any) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Every tensor of a batch, with the attention mask of its positions where the inputs have one."""
    named: Mapping = inputs if isinstance(inputs, Mapping) else {}
    masks = {key: named[key] for key in ("attention_mask", "decoder_attention_mask") if key in named}
    for key, part in [*named.items(), (None, targets)] if named else [(None, inputs), (None, targets)]:
        own = "decoder_attention_mask" if str(key).startswith("decoder") else "attention_mask"
        for tensor in tensors(part):
            mask = masks.get(own)
            fits = isinstance(mask, Tensor) and mask.ndim == 2 and tensor.shape[:2] == mask.shape
            yield tensor, mask if fits else None


def _hash_rows(tensor: Tensor, mask: Tensor | None) -> np.ndarray:
    """A hash of each row (n,): its numbers weighted by their places, counted from the first that the mask shows."""
    words = _words(tensor)  # (n, ...)
    if mask is None:
        words = words.reshape(len(words), -1)
        return (words * _weights(words.shape[1])).sum(1, dtype=np.uint64)
    there = (mask != 0).cpu().numpy()  # (n, T)
    words = words.reshape(*there.shape, -1) * there[..., None]
    places = np.maximum(there.cumsum(1) - 1, 0)
    weights = _weights(words[0].size).reshape(words.shape[1:])[places]  # (n, T, f)
    return (words * weights).sum((1, 2), dtype=np.uint64)


def _words(tensor: Tensor) -> np.ndarray:
    """A tensor's numbers as uint64 of its shape, 0 for what pads: 0 among fractions, −100 among whole numbers."""
    x = tensor.detach().resolve_conj().cpu().contiguous()
    if x.is_complex():
        x = torch.view_as_real(x)
    if x.is_floating_point():
        x = x.view({2: torch.int16, 4: torch.int32, 8: torch.int64}.get(x.element_size(), torch.uint8))
        return x.long().numpy().view(np.uint64)
    return (x.long() - IGNORED).numpy().view(np.uint64)


def _weights(count: int) -> np.ndarray:
    """``count`` odd numbers without a pattern, the first of them the same for any count."""
    return _mixed(np.arange(1, count + 1, dtype=np.uint64)) | np.uint64(1)


def _mixed(x: np.ndarray) -> np.ndarray:
    """Each of x (n,) sent to a number without a pattern, one to one (Steele, Lea & Flood 2014, "SplitMix")."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
