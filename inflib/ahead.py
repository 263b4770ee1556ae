"""A call that turns out long says once what all of it will take: passes, time, and the memory it will come to hold.

From a few batches the rest can be told; not from the first, which is looked at as well (proof.py). What comes beside
the passes, eigendecompositions, is told from a smaller one. ``inflib.plan`` says more, and says it beforehand.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch

from .batches import Batch

LONG = 60.0  # seconds: what takes less is over before it is read
LOOKED = 3.0  # seconds of batches from which the rest is told
TRIED = 768  # the largest eigendecomposition that is tried

clock = time.perf_counter


@dataclass(frozen=True)
class Ahead:
    """What a call has before it."""

    stage: str
    batches: int | None  # of a pass, where that is known
    passes: int
    holds: Callable[[], str]  # what takes memory, in words
    beside: Callable[[], float] = lambda: 0.0  # seconds that are not of the passes
    done: int = 0  # batches that are behind it already, or another process's

    def tell(self, each: float) -> None:
        """Print it, if it is long at ``each`` seconds a batch."""
        assert self.batches is not None
        seconds = each * (self.batches * self.passes - self.done) + self.beside()
        if seconds >= LONG:
            passes = "1 pass" if self.passes == 1 else f"{self.passes} passes"
            write(
                f"{self.stage}: {passes} over {self.batches:,} batches, about {in_time(seconds)}; {self.holds()}. "
                "inflib.plan(...) says such things beforehand, and what to turn down."
            )


def telling(walked: Iterable[Batch], ahead: Ahead | None) -> Iterator[Batch]:
    """The batches that are worked on, while ``ahead`` is told of as soon as it can be; in silence for None."""
    if ahead is None or ahead.batches is None or os.environ.get("TQDM_DISABLE"):
        yield from walked
        return
    began, told = 0.0, False
    for at, batch in enumerate(walked):
        passed = clock() - began
        if at >= 2 and passed >= LOOKED and not told:
            ahead.tell(passed / (at - 1))
            told = True
        yield batch
        if at == 0:
            began = clock()


def write(line: str) -> None:
    """A line on stderr, above the bars that are there."""
    try:
        from tqdm.auto import tqdm
    except ImportError:
        print(line, file=sys.stderr)
    else:
        tqdm.write(line, file=sys.stderr)


def eigh_seconds(sides: Iterable[int], device: torch.device) -> float:
    """Seconds of an eigendecomposition of each of these sides."""
    return sum(_of(d, device) for d in sides)


_TOOK: dict[tuple[int, str], float] = {}  # seconds of one decomposition, by side and device


def _of(d: int, device: torch.device) -> float:
    tried = min(d, TRIED)
    if (tried, str(device)) not in _TOOK:
        x = torch.randn(tried, tried, generator=torch.Generator().manual_seed(0), device="cpu", dtype=torch.float64)
        x = (x @ x.T).to("cpu" if device.type == "mps" else device)  # which has no float64
        began = clock()
        float(torch.linalg.eigh(x)[0][-1])
        _TOOK[tried, str(device)] = clock() - began
    return _TOOK[tried, str(device)] * (d / tried) ** 3


def in_bytes(count: int) -> str:
    """Bytes with three digits."""
    size, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB", "PB"):
        if size < 1000:
            break
        size, unit = size / 1000, larger
    return f"{size:.3g} {unit}"


def in_time(seconds: float) -> str:
    """Seconds, minutes or hours with three digits."""
    if seconds != seconds:
        return "unknown"
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 7200 else f"{seconds / 3600:.3g} h"
