"""A stage tried on a few batches, with the clock read between them.

A run walks over its batches once or several times. What passes between one batch and the next is that batch's, and
grows with the numbers in it; all else is done once, however much data there is:

    seconds(all) = seconds(few) + Σ_walks (seconds per number · numbers beyond these few + fetching)

and operations likewise. Memory does not grow with the number of batches but with the largest, which is among the few.
Proving a batch's rows (proof.py) is apart: a session has it behind it for the first batch, and does it once more, for a
later one, whose memory comes on top of what the stage holds by then; a forward pass of it is the batch's own.
"""

from __future__ import annotations

import ctypes
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from ..batches import Batch, Data, tensors, walk
from ..hooks import forward
from ..passes import Fit
from ..proof import Proof, prove

PROBED = 3  # batches
SHORT, LONG = 0.3, 2.0  # seconds: a run that takes less is repeated twice, as what else the machine does only adds, or
# once; beyond, the run that counted operations, which slows each of them, has been slowed next to nothing
clock = time.perf_counter

Mark = tuple[float, int]  # the clock's seconds and the operations so far, at the beginning and after each batch


@dataclass(frozen=True)
class Measured:
    """Seconds of the clock, bytes above what was held before, operations."""

    seconds: float
    peak: int
    operations: int


@dataclass(frozen=True)
class Units:
    """How much data there is: numbers that go into the model, of all batches and of the few, and examples."""

    whole: int
    first: list[int]
    examples: int
    fetching: float  # seconds of a walk that does nothing


class Few(list):
    """Some batches of data that go on: a pass looks at its first batch and at a later one, which is not among these.

    ``walks`` has the marks of every walk over them.
    """

    def __init__(self, batches: list[Any], mark: Callable[[], Mark]):
        super().__init__(batches)
        self.mark, self.walks = mark, list[list[Mark]]()

    def __len__(self) -> int:
        return 10_000

    def __iter__(self) -> Iterator[Any]:
        marks = [self.mark()]
        self.walks.append(marks)
        for batch in super().__iter__():
            yield batch
            marks.append(self.mark())


@dataclass(frozen=True)
class Run:
    """One run over a few batches: what it took, and the marks of those walks that went to the end."""

    began: Mark
    ended: Mark
    walks: list[list[Mark]]
    peak: int

    @property
    def seconds(self) -> float:
        return self.ended[0] - self.began[0]

    def carried_on(self, units: Units, part: int) -> float:
        """Seconds (part 0) or operations (part 1) of a run over all the data."""
        whole, tried = self.ended[part] - self.began[part], sum(units.first)
        for marks in self.walks:
            each = [after[part] - before[part] for before, after in pairwise(marks)]
            # the middle one: what is done once is done at the first batch
            whole += (units.whole - tried) * median(took / n for took, n in zip(each, units.first, strict=True))
        return whole + (len(self.walks) * units.fetching if part == 0 else 0.0)


@dataclass(frozen=True)
class Probe:
    """A few batches, how much data there is, and what it takes to prove a batch's rows."""

    some: list[Any]
    units: Units
    look: Measured
    device: torch.device

    @classmethod
    def of(cls, fit: Fit, some: list[Any], units: Units) -> Probe:
        """With a look at the first batch."""
        batch, device = next(walk(some, name="train", progress=False)), next(iter(fit.layers.values())).weight.device

        def look(_: Few) -> None:
            draw = np.random.Generator(np.random.Philox(0))
            prove(fit.model, fit.layers, fit.objective, batch, None, draw, crowded=False)

        def record(_: Few) -> None:
            forward(fit.model, fit.layers, batch.inputs, batch.size)

        Proof(fit.model, fit.layers, fit.objective).see(batch)
        counted, timed = ([run_over(run, some, device, counting=c) for run in (look, record)] for c in (True, False))
        beyond = max(timed[0].seconds - timed[1].seconds, 0.0)  # a batch's own pass is read from its look
        return cls(some, units, Measured(beyond, timed[0].peak, counted[0].ended[1] - counted[1].ended[1]), device)

    @property
    def later(self) -> Measured:
        """The look at a later batch, where there is one."""
        return self.look if self.units.whole > sum(self.units.first[:1]) else Measured(0.0, 0, 0)

    def warm(self, stage: Callable[[Few], object]) -> None:
        """Run a stage on the first batch, so that what a session does once is behind it."""
        with _quietly():
            stage(Few(self.some[:1], lambda: (0.0, 0)))

    def carried_on(self, stage: Callable[[Few], object], *, looks: bool = True) -> Measured:
        """What ``stage`` would take on all the data. looks: it proves its rows, and so will on a later batch."""
        with _quietly():
            counted = run_over(stage, self.some, self.device, counting=True)  # what is done once a process, is done now
            again = 2 if counted.seconds < SHORT else 1 if counted.seconds < LONG else 0
            timed = [run_over(stage, self.some, self.device) for _ in range(again)] or [counted]
        later = self.later if looks else Measured(0.0, 0, 0)
        seconds = min(run.carried_on(self.units, 0) for run in timed) + later.seconds
        operations = counted.carried_on(self.units, 1) + later.operations
        return Measured(seconds, max(run.peak for run in timed), round(operations))


@contextmanager
def _quietly() -> Iterator[None]:
    """Without notes: of a few batches they would mislead; the stages say theirs of all."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def surveyed(train: Data) -> tuple[list[Any], Units]:
    """The first batches, the last of them in favour of the largest if that comes later, and how much data there is."""
    began, whole, examples, some = clock(), 0, 0, list[Batch]()
    for batch in walk(train, name="train", progress=False):
        whole += numbers_in(batch)
        examples += batch.size
        if len(some) < PROBED:
            some.append(batch)
        elif numbers_in(batch) > max(numbers_in(x) for x in some):
            some[-1] = batch
    fetching = clock() - began
    return [(x.inputs, x.targets) for x in some], Units(whole, [numbers_in(x) for x in some], examples, fetching)


def numbers_in(batch: Batch) -> int:
    """How many numbers of a batch go into the model."""
    return sum(x.numel() for x in tensors(batch.inputs))


def counting_operations() -> FlopCounterMode:
    """Of matrix products, multiplications and additions: also of those added in place, which PyTorch passes over."""

    def added(_: torch.Size, a: torch.Size, b: torch.Size, **__: Any) -> int:
        return 2 * a.numel() * b[-1]  # (..., m, k), (..., k, n)

    in_place = torch.ops.aten.addmm_, torch.ops.aten.baddbmm_
    return FlopCounterMode(display=False, custom_mapping=dict.fromkeys(in_place, added))


def run_over(stage: Callable[[Few], object], some: list[Any], device: torch.device, counting: bool = False) -> Run:
    """One run of a stage on a few batches; counting operations makes each of them slower."""
    with counting_operations() if counting else nullcontext() as counter:

        def mark() -> Mark:
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            return clock(), counter.get_total_flops() if counter else 0

        few, held = Few(some, mark), _begin(device)
        began = mark()
        stage(few)
        ended = mark()
    walks = [marks for marks in few.walks if len(marks) == len(some) + 1]
    return Run(began, ended, walks, max(_peak(device) - held, 0))


# --- memory --------------------------------------------------------------------------------------------------------


def _begin(device: torch.device) -> int:
    """Bytes held now, with the high-water mark put down to them."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # what was freed would hide what is taken
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _resident("VmRSS")


def _peak(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _resident("VmHWM")


def _resident(field: str) -> int:
    """A line of Linux's /proc/self/status in bytes; 0 elsewhere, where memory is only counted."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(field + ":")), 0)
