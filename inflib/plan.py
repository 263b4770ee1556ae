"""What will it take? Passes, operations, memory, disk and time of each stage, said before any of it is done.

Three kinds of numbers, each from where it is surest. *Counted*: the bytes of factors, eigenvectors and indices follow
from the layers' shapes. *Probed*: a stage is run on a batch and on a few, with few queries and with more, and what one
more batch and one more query add is carried on to all of them,

    seconds(B, Q) = c + c_B B + c_Q Q + c_BQ B Q          (B in units of a batch's numbers, so batches may differ)

with the price of proving a batch's rows (proof.py) apart, while memory does not grow with the number of batches.
*Scaled*: an eigendecomposition that is too large to be tried takes what a smaller one takes, times the cube of the
sides' ratio.
"""

from __future__ import annotations

import ctypes
import time
import warnings
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from .batches import BYTE_BUDGET, Batch, Data, accumulator, rows_of, tensors, walk
from .blocks import numbers
from .curvature import facts_of
from .ekfac import Eigenbasis, corrected_eigenvalues, eigh, parts_of, put_together
from .index import TrainIndex
from .kfac import Moments, accumulate_moments
from .kronecker import Kronecker
from .layers import LayerSpec
from .memory import WORK, free_bytes, say_bytes
from .objectives import Measurement, Objective
from .order import Same
from .passes import Fit
from .placement import plain_numbers
from .proof import prove
from .queries import HELD
from .scoring import influence

PROBED = 2  # batches of the longer probe
ASKED = 16  # queries of the larger probe
TRIED = 768  # the largest eigendecomposition that is tried
SHORT = 1.0  # seconds: what takes less is run again
ROOM = 0.9  # of what is free may be planned for


@dataclass(frozen=True)
class Stage:
    """What one stage takes. ``peak`` and ``disk`` in bytes; ``peak`` is above what model and data hold already."""

    name: str
    passes: int
    operations: float
    seconds: float
    peak: int
    disk: int
    most: str  # what takes most of it, and what to turn down


@dataclass(frozen=True)
class Plan:
    """The stages, in order, beside what is free on the model's device."""

    stages: tuple[Stage, ...]
    examples: int
    free: int | None

    def __getitem__(self, name: str) -> Stage:
        return next(stage for stage in self.stages if stage.name == name)

    @property
    def too_large(self) -> tuple[Stage, ...]:
        """The stages that would not fit."""
        return tuple(s for s in self.stages if self.free is not None and s.peak > ROOM * self.free)

    def __repr__(self) -> str:
        lines = [f"{'stage':8}{'passes':>8}{'operations':>13}{'time':>12}{'peak memory':>15}{'disk':>15}"]
        for s in self.stages:
            disk = _say(s.disk) if s.disk else "–"
            lines.append(
                f"{s.name:8}{s.passes:8}{s.operations:13.2g}{_say_time(s.seconds):>12}{_say(s.peak):>15}{disk:>15}"
            )
        free = "nobody knows how much" if self.free is None else _say(self.free)
        lines.append(f"{self.examples:,} examples; free: {free}")
        lines += [f"{s.name} would not fit: {s.most}" for s in self.too_large]
        return "\n".join(lines)


@plain_numbers
def plan(
    model: nn.Module,
    objective: Objective,
    train: Data,
    layers: LayerSpec = None,
    queries: Data | None = None,
    labels: str | None = None,
    draws: int = 1,
    *,
    measurement: Measurement | None = None,
    store: dict[str, Any] | None = None,
    max_bytes: int = BYTE_BUDGET,
) -> Plan:
    """What ``ekfac``, ``TrainIndex.build`` and, with queries, ``influence`` will take on this machine.

    store: ``axes=``, ``bits=`` or ``components=`` of a store, for the index on disk; None for the exact one in memory.
    Other arguments as for those calls. Costs a walk over the data and the stages on a few batches: some seconds, where
    a batch does not take long. Nothing of it is kept. What could not be tried without more memory than is free is
    counted alone: its seconds are NaN.
    """
    fit = Fit.of(model, objective, train, layers, labels, draws, progress=False)
    some, units, examples = _surveyed(train)
    free = free_bytes(next(iter(fit.layers.values())).weight.device)
    stages = [_counted_fit(fit)]
    if free is None or stages[0].peak <= ROOM * free:
        probe = _probe(fit, some, units)
        curvature, stages[0] = _fit_stage(fit, probe, stages[0])
        stages.append(_index_stage(curvature, fit, probe, train, store))
        if queries is not None:
            stages.append(_score_stage(curvature, fit, probe, queries, measurement, max_bytes, examples))
    return Plan(tuple(stages), examples, free)


# --- probes --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Units:
    """How much data there is: the numbers that go into the model, of all batches and of the first few."""

    whole: int
    first: list[int]


def _surveyed(train: Data) -> tuple[list[Any], Units, int]:
    """The first batches, how much data there is, and how many examples."""
    examples, whole = 0, 0
    first: list[int] = []
    for batch in walk(train, name="train", progress=False):
        examples += batch.size
        whole += _numbers(batch)
        if len(first) < PROBED:
            first.append(_numbers(batch))
    return list(islice(iter(train), PROBED)), Units(whole, first), examples


def _numbers(batch: Batch) -> int:
    return sum(x.numel() for x in tensors(batch.inputs))


@dataclass(frozen=True)
class Measured:
    seconds: float
    peak: int
    operations: int


def measured(work: Callable[[], object], device: torch.device) -> Measured:
    """What ``work`` takes: seconds of the clock, bytes above what was held before, operations."""
    before, began = _begin(device), time.perf_counter()
    with FlopCounterMode(display=False) as counter:
        work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return Measured(time.perf_counter() - began, _peak(device) - before, counter.get_total_flops())


def _begin(device: torch.device) -> int:
    """Bytes held now, with the high-water mark put down to them."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
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


class Few(list):
    """Some batches of data that go on: a pass looks at its first batch and at a later one, which is not among these."""

    def __len__(self) -> int:
        return 10_000


@dataclass(frozen=True)
class Probe:
    """The first batches, how much data there is, and what it takes to prove a batch's rows."""

    some: list[Any]
    units: Units
    look: Measured
    device: torch.device

    def carried_on(self, run: Callable[[list[Any]], object], *, looks: bool = True) -> Measured:
        """What ``run`` would take on all the data, from what it takes on a batch and on a few.

        looks: the pass proves its rows on the first batch; so it will on a later one.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a few batches; the stages say it of all
            run(Few(self.some[:1]))  # what is done once a process is not done again
            few, one = (self._quickest(lambda k=k: run(Few(self.some[:k]))) for k in (PROBED, 1))  # type: ignore[misc]
        first, rest = self.units.first[0], max(1, sum(self.units.first[1:]))
        more = (self.units.whole - first) / rest  # times what ``few`` has beyond ``one``
        later = self.look if looks and self.units.whole > first else Measured(0.0, 0, 0)
        seconds = one.seconds + max(few.seconds - one.seconds, 0.0) * more + later.seconds
        operations = one.operations + (few.operations - one.operations) * more + later.operations
        return Measured(seconds, max(few.peak, one.peak), round(operations))

    def _quickest(self, work: Callable[[], object]) -> Measured:
        """The quicker of two runs, where one is short: what else the machine does only adds."""
        first = measured(work, self.device)
        if first.seconds > SHORT:
            return first
        return replace(first, seconds=min(first.seconds, measured(work, self.device).seconds))


def _probe(fit: Fit, some: list[Any], units: Units) -> Probe:
    batch, device = next(walk(some, name="train", progress=False)), next(iter(fit.layers.values())).weight.device

    def look() -> None:
        prove(fit.model, fit.layers, fit.objective, batch, None, np.random.Generator(np.random.Philox(0)))

    look()
    return Probe(some, units, measured(look, device), device)


# --- the stages ----------------------------------------------------------------------------------------------------


def _sides(fit: Fit) -> dict[tuple[str, str], int]:
    """{(layer, "S" or "A"): d} of the factors that are matrices (d, d)."""
    return {
        (k, side): d for k, x in fit.layers.items() for side, d in zip("SA", x.shape, strict=True) if x.diagonal != side
    }


def _counted_fit(fit: Fit) -> Stage:
    """The fit's bytes as the layers' shapes say, without running anything."""
    sides, item = _sides(fit).values(), accumulator(next(iter(fit.layers.values())).weight.dtype).itemsize
    squares = sum(d * d for d in sides) * item
    work = WORK * max(sides, default=0) ** 2 * torch.float64.itemsize
    numbers = sum(layer.shape[0] * layer.shape[1] for layer in fit.layers.values())
    largest = max(fit.layers.values(), key=lambda layer: sum(d * d for d in layer.shape))
    most = (
        f"layer {largest.name!r} has {say_bytes(sum(d * d for d in largest.shape) * item)} of factors. Leave it "
        "out with layers=, fit layers in groups, or take smaller batches."
    )
    return Stage("fit", 2, float("nan"), float("nan"), 2 * squares + work, squares + numbers * item, most)


def _fit_stage(fit: Fit, probe: Probe, counted: Stage) -> tuple[Kronecker, Stage]:
    """The fit, and a curvature of its shapes for the stages that follow."""
    made: list[tuple[Fit, Moments]] = []

    def first(batches: list[Any]) -> None:
        again = _again(fit, batches)
        made[:] = [(again, accumulate_moments(again))]

    one = probe.carried_on(first)
    proved, moments = made.pop()
    basis = _axes(moments)
    del moments

    def second(batches: list[Any]) -> None:
        corrected_eigenvalues(replace(proved, data=Same(batches, "train", ordered=False)), basis)

    two = probe.carried_on(second, looks=False)
    sides = _sides(fit).values()
    seconds = one.seconds + two.seconds + sum(_eigh_seconds(d, probe.device) for d in sides)
    operations = one.operations + two.operations + 9 * sum(d**3 for d in sides)
    every = [numbers(Q) for part in (basis.Q_S, basis.Q_A) for Q in part.values()]
    held = sum(Q.numel() * Q.element_size() for Q in every)
    peak = max(one.peak, counted.peak, held + two.peak)
    curvature = Kronecker({k: _ones(fit, k) for k in fit.layers}, basis.Q_S, basis.Q_A, facts_of(fit, "EK-FAC", 1))
    return curvature, replace(counted, operations=operations, seconds=seconds, peak=peak)


def _again(fit: Fit, batches: list[Any]) -> Fit:
    layers = list(fit.layers)
    return Fit.of(fit.model, fit.objective, batches, layers, fit.labels, fit.draws, progress=False, sharing=fit.sharing)


def _ones(fit: Fit, name: str) -> Tensor:
    weight = fit.layers[name].weight
    return torch.ones(fit.layers[name].shape, dtype=accumulator(weight.dtype), device=weight.device)


def _axes(moments: Moments) -> Eigenbasis:
    """A basis of the right shapes, laid out as ``eigh``'s are: products with it take as long."""
    found = {}
    for part in parts_of(moments):
        x = part.of(moments)
        found[part] = x.new_ones(part.size), torch.eye(part.size, dtype=x.dtype, device=x.device).mT
    return put_together(moments, found)


_EIGH: dict[tuple[int, str], float] = {}  # seconds of one decomposition, by side and device


def _eigh_seconds(d: int, device: torch.device) -> float:
    tried = min(d, TRIED)
    if (tried, str(device)) not in _EIGH:
        x = torch.randn(tried, tried, generator=torch.Generator().manual_seed(0), device="cpu").to(device)
        _EIGH[tried, str(device)] = measured(lambda: eigh(x @ x.T), device).seconds
    return _EIGH[tried, str(device)] * (d / tried) ** 3


def _index_stage(curvature: Kronecker, fit: Fit, probe: Probe, train: Data, store: dict[str, Any] | None) -> Stage:
    held = TrainIndex.bytes_needed(fit.model, train, curvature, **(store or {}))

    def run(batches: list[Any]) -> None:
        TrainIndex.build(fit.model, fit.objective, batches, curvature, progress=False)

    few = TrainIndex.bytes_needed(fit.model, probe.some, curvature)
    took = probe.carried_on(run, looks=False)
    peak = max(took.peak - few, 0) + (held if store is None else min(held, BYTE_BUDGET))
    most = "a store keeps few bits of each number on disk: TrainIndex.build(path=, axes=0.25, bits=1). Or fewer layers."
    return Stage("index", 1, took.operations, took.seconds, peak, held, most)


def _score_stage(
    curvature: Kronecker,
    fit: Fit,
    probe: Probe,
    queries: Data,
    measurement: Measurement | None,
    max_bytes: int,
    examples: int,
) -> Stage:
    every = list(walk(queries, name="queries", progress=False))
    count = sum(batch.size for batch in every)
    one = sum(values.numel() for values in curvature.eigenvalues.values())
    item = next(iter(curvature.eigenvalues.values())).element_size()
    at_once = min(count, max(1, HELD * max_bytes // (one * item)))
    tried = min(count, ASKED, at_once)

    def run(batches: list[Any], asked: int) -> None:
        influence(
            fit.model, fit.objective, batches, _first(every, asked), curvature, 1.0,
            measurement=measurement, max_bytes=max_bytes, progress=False,
        )  # fmt: skip

    large = probe.carried_on(lambda batches: run(batches, tried), looks=False)
    groups = -(-count // at_once)
    seconds, operations = large.seconds, float(large.operations)
    if count > tried:  # more queries in a pass, or more passes
        few = max(1, tried // 4)
        small = probe.carried_on(lambda batches: run(batches, few), looks=False)
        for_one = (large.seconds - small.seconds) / (tried - few), (large.operations - small.operations) / (tried - few)
        fixed = max(small.seconds - few * for_one[0], 0.0), max(small.operations - few * for_one[1], 0.0)
        seconds, operations = (groups * f + count * max(x, 0.0) for f, x in zip(fixed, for_one, strict=True))
    largest = max(values.numel() for values in curvature.eigenvalues.values())
    joined = at_once * (one + largest) * item  # one layer's queries are copied when their groups are put together
    peak = max(large.peak + (at_once - tried) * one * item, joined) + 2 * count * examples * item
    most = (
        f"a preconditioned query has {say_bytes(one * item)}, {at_once} are held at once. Turn max_bytes= down, ask "
        "fewer at a time, or use fewer layers."
    )
    return Stage("scores", groups, operations, seconds, peak, count * examples * item, most)


def _first(batches: Iterable[Batch], count: int) -> list[Any]:
    """The first ``count`` examples of some batches, as batches."""
    found: list[Any] = []
    for batch in batches:
        rows = slice(0, min(batch.size, count))
        if rows.stop == batch.size:
            found.append((batch.inputs, batch.targets))
        elif rows.stop > 0:
            found.append((rows_of(batch.inputs, rows, batch.size), rows_of(batch.targets, rows, batch.size)))
        count -= rows.stop
    return found


def _say(count: int) -> str:
    """Bytes with three digits."""
    size, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB", "PB"):
        if size < 1000:
            break
        size, unit = size / 1000, larger
    return f"{size:.3g} {unit}"


def _say_time(seconds: float) -> str:
    if seconds != seconds:
        return "unknown"
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 7200 else f"{seconds / 3600:.3g} h"
