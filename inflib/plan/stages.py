"""Fit, index and scores: what was tried on a few batches, with few queries, carried on to all of both.

A fit's bytes are counted from its layers' shapes before anything is run. A query adds to each batch what the last ones
added: seconds, operations and bytes are straight lines in the number of queries, drawn through two of them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..ahead import eigh_seconds
from ..batches import Batch, Data, accumulator, rows_of, walk
from ..blocks import numbers
from ..curvature import facts_of
from ..ekfac import Eigenbasis, corrected_eigenvalues, parts_of, put_together
from ..hooks import Pair
from ..index import TrainIndex
from ..index.building import SHARD_BYTES
from ..kfac import Moments, accumulate_moments
from ..kronecker import Kronecker, ekfac
from ..layers import Exactly
from ..memory import WORK, factor_bytes, say_bytes
from ..objectives import Measurement
from ..order import Same
from ..passes import Fit
from ..queries import HELD, examples_in, gather
from ..scoring import influence
from .probe import Few, Measured, Probe, clock, numbers_in, run_over
from .table import Stage

ASKED = 16  # queries of the first probe
LONG = 4.0  # seconds that a probe may take

# --- fit -----------------------------------------------------------------------------------------------------------


def counted_fit(fit: Fit) -> Stage:
    """The fit's bytes as the layers' shapes say, without running anything."""
    item = accumulator(next(iter(fit.layers.values())).weight.dtype).itemsize
    held = factor_bytes(fit.layers, fit.blocks)
    work = max(fit.sides, default=0) ** 2 * (WORK * torch.float64.itemsize + item)
    Λ = sum(layer.shape[0] * layer.shape[1] for layer in fit.layers.values()) * item
    largest = max(fit.layers.values(), key=lambda layer: sum(d * d for d in layer.shape))
    most = (
        f"layer {largest.name!r} has {say_bytes(sum(d * d for d in largest.shape) * item)} of factors. Leave it out "
        "with layers=, fit layers in groups, cut wide ones into blocks=at_most(4096), or take smaller batches."
    )
    return Stage("fit", 2, float("nan"), float("nan"), held + work, held // 2 + Λ, most)


def fit_stage(fit: Fit, probe: Probe, counted: Stage) -> tuple[Kronecker, Stage]:
    """The fit, and a curvature of its shapes for the stages that follow."""
    made: list[tuple[Fit, Moments]] = []

    def first(batches: Few) -> None:
        again = _again(fit, batches)
        made[:] = [(again, accumulate_moments(again))]

    one = probe.carried_on(first)
    proved, moments = made.pop()
    basis = _axes(moments)
    looking = _bytes_of(moments) + probe.later.peak
    del moments

    def second(batches: Few) -> None:
        corrected_eigenvalues(replace(proved, data=Same(batches, "train", ordered=False)), basis)

    two = probe.carried_on(second, looks=False)
    decomposing = eigh_seconds(fit.sides, probe.device)
    every = [numbers(Q) for part in (basis.Q_S, basis.Q_A) for Q in part.values()]
    held = sum(Q.numel() * Q.element_size() for Q in every)
    peak = max(one.peak, counted.peak, held + two.peak, looking)
    if decomposing < LONG:  # then all of it can be tried
        peak = max(run_over(lambda batches: _fitted(fit, batches), probe.some, probe.device).peak, looking)
    operations = one.operations + two.operations + 9 * sum(d**3 for d in fit.sides)
    curvature = Kronecker({k: _ones(fit, k) for k in fit.layers}, basis.Q_S, basis.Q_A, facts_of(fit, "EK-FAC", 1))
    seconds = one.seconds + two.seconds + decomposing
    return curvature, replace(counted, operations=operations, seconds=seconds, peak=peak)


def _bytes_of(moments: Moments) -> int:
    return sum(numbers(x).nbytes for side in (moments.A_sum, moments.S_sum) for x in side.values())


def _again(fit: Fit, batches: Few) -> Fit:
    how: dict[str, Any] = {"progress": False, "sharing": fit.sharing, "blocks": fit.blocks}
    return Fit.of(fit.model, fit.objective, batches, _exactly(fit), fit.labels, fit.draws, **how)


def _fitted(fit: Fit, batches: Few) -> Kronecker:
    how: dict[str, Any] = {"progress": False, "sharing": fit.sharing, "blocks": fit.blocks}
    return ekfac(fit.model, fit.objective, batches, _exactly(fit), fit.labels, fit.draws, **how)


def _exactly(fit: Fit) -> Exactly:
    """The fit's own layers: names alone would forget left-out biases, and which use of a weight counts."""
    shapes = {name: layer.shape for name, layer in fit.layers.items()}
    return Exactly(shapes, any(layer.untied for layer in fit.layers.values()))


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


# --- index ---------------------------------------------------------------------------------------------------------


def index_stage(curvature: Kronecker, fit: Fit, probe: Probe, train: Data, store: dict[str, Any] | None) -> Stage:
    """The index in memory, or on disk with ``store``."""
    held, few = (TrainIndex.bytes_needed(fit.model, x, curvature, **(store or {})) for x in (train, probe.some))
    with tempfile.TemporaryDirectory() as folder:
        built = iter(range(10_000))

        def run(batches: Few) -> None:
            how = {} if store is None else {"path": Path(folder) / str(next(built)), **store}
            TrainIndex.build(fit.model, fit.objective, batches, curvature, progress=False, **how)

        took = probe.carried_on(run, looks=False)
    at_once = held if store is None else min(held, SHARD_BYTES)
    peak = max(took.peak - few, probe.later.peak) + at_once
    most = "a store keeps few bits of each number on disk: TrainIndex.build(path=, axes=0.25, bits=1). Or fewer layers."
    return Stage("index", 1, took.operations, took.seconds, peak, held, most)


# --- scores --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Line:
    """What so many queries take, drawn through two of them."""

    counts: tuple[int, int]
    took: tuple[Measured, Measured]

    def at(self, what: str, passes: int, count: int) -> float:
        """``what`` of ``count`` queries in so many passes."""
        (m, n), (few, many) = self.counts, (float(getattr(x, what)) for x in self.took)
        if (passes, count) == (1, n):
            return many
        for_one = max((many - few) / (n - m), 0.0) if n > m else many / n
        return passes * max(many - n * for_one, 0.0) + count * for_one


def score_stage(
    curvature: Kronecker,
    fit: Fit,
    probe: Probe,
    queries: Data,
    measurement: Measurement | None,
    max_bytes: int,
) -> Stage:
    """``influence`` of all queries, in as many passes as their memory asks for."""
    every = list(walk(queries, name="queries", progress=False))
    count, sizes = sum(batch.size for batch in every), [x.numel() for x in curvature.eigenvalues.values()]
    item = next(iter(curvature.eigenvalues.values())).element_size()
    one = sum(sizes) * item
    at_once = min(count, max(1, HELD * max_bytes // one))

    def tried(asked: int) -> Measured:
        def run(batches: Few) -> None:
            influence(
                fit.model, fit.objective, batches, _first(every, asked), curvature, 1.0,
                measurement=measurement, max_bytes=max_bytes, progress=False,
            )  # fmt: skip

        probe.warm(run)  # which proves the queries' rows
        return probe.carried_on(run, looks=False)

    line, groups = _line(tried, at_once), -(-count // at_once)
    gathered, beyond = _gathered(fit, probe, max(every, key=numbers_in), measurement), _beyond(every, line.counts[1])
    solving = (
        4 * min(at_once, max_bytes // (4 * one)),
        4 * min(line.counts[1], max_bytes // (4 * one)),
    )  # see queries.py
    more = (at_once - line.counts[1]) * one + max(solving[0] - solving[1], 0) * one
    joined = at_once * (one + max(sizes) * item)  # one layer's queries are copied when their groups are put together
    looking = at_once * one + probe.later.peak
    peak = max(line.took[1].peak + more, joined, gathered.peak, looking) + 3 * count * probe.units.examples * item
    most = (
        f"a preconditioned query has {say_bytes(one)}, {at_once} are held at once. Turn max_bytes= down, ask "
        "fewer at a time, or use fewer layers."
    )
    found = {
        what: line.at(what, groups, count) + beyond * getattr(gathered, what) for what in ("operations", "seconds")
    }
    return Stage(
        "scores", groups, found["operations"], found["seconds"], round(peak), count * probe.units.examples * item, most
    )


def _gathered(fit: Fit, probe: Probe, largest: Batch, measurement: Measurement | None) -> Measured:
    """What the largest batch of queries takes, whole, and their gradients: those that are tried may end before it."""

    def run(batches: Few) -> None:
        asked = "log_likelihood" if measurement is None else measurement
        for found in gather(fit.model, fit.layers, fit.objective, batches, "queries", asked, progress=False):
            for name, n in product(found, range(examples_in(found))):
                Pair(*(side[n : n + 1] for side in found[name])).matrices()

    one = [(largest.inputs, largest.targets)]
    with_look = run_over(run, one, probe.device)
    counted, timed = run_over(run, one, probe.device, counting=True), run_over(run, one, probe.device)
    return Measured(timed.seconds, with_look.peak, counted.ended[1])


def _beyond(every: list[Batch], tried: int) -> float:
    """How many largest batches' numbers all queries have beyond as many queries as long as those tried."""
    count, of_tried = sum(batch.size for batch in every), walk(_first(every, tried), name="queries", progress=False)
    whole, some = (sum(map(numbers_in, batches)) for batches in (every, of_tried))
    return (whole - count * some / tried) / max(map(numbers_in, every))


def _line(tried: Callable[[int], Measured], most: int) -> Line:
    """Through few queries, and through as many as can be tried in seconds."""
    few, began = min(ASKED, most), clock()
    first = tried(few)
    took = max(clock() - began, 1e-3)
    many = min(most, round(few * LONG / took))
    if few == most:
        return Line((few, few), (first, first))
    if many > few:
        return Line((few, many), (first, tried(many)))
    fewer = max(1, few // 4)
    return Line((fewer, few), (tried(fewer), first)) if fewer < few else Line((few, few), (first, first))


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
