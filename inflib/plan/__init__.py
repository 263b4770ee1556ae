"""What will it take? Passes, operations, memory, disk and time of each stage, said before any of it is done.

    probe.py      a stage is run on a few batches: what each of them takes, and what is taken once
    stages.py     fit, index, scores: what was tried, carried on to all the data and all the queries
    table.py      Stage and Plan, and how they are printed

Three kinds of numbers, each from where it is surest. *Counted*: the bytes of factors, eigenvectors and indices follow
from the layers' shapes. *Probed*: seconds, operations and the temporary arrays of a stage, from a few of its batches.
*Scaled*: an eigendecomposition that is too large to be tried takes what a smaller one takes, times the cube of the
sides' ratio.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from ..batches import BYTE_BUDGET, Data
from ..blocks import Blocks
from ..layers import LayerSpec
from ..memory import free_bytes
from ..objectives import Measurement, Objective
from ..passes import Fit
from ..placement import plain_numbers
from .probe import Probe, surveyed
from .stages import counted_fit, fit_stage, index_stage, score_stage
from .table import ROOM, Plan, Stage

__all__ = ["Plan", "Stage", "plan"]


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
    sharing: str = "expand",
    blocks: Blocks = None,
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
    how: dict[str, Any] = {"progress": False, "sharing": sharing, "blocks": blocks}
    fit = Fit.of(model, objective, train, layers, labels, draws, **how)
    some, units = surveyed(train)
    free = free_bytes(next(iter(fit.layers.values())).weight.device)
    stages = [counted_fit(fit)]
    if free is None or stages[0].peak <= ROOM * free:
        probe = Probe.of(fit, some, units)
        curvature, stages[0] = fit_stage(fit, probe, stages[0])
        stages.append(index_stage(curvature, fit, probe, train, store))
        if queries is not None:
            stages.append(score_stage(curvature, fit, probe, queries, measurement, max_bytes))
    return Plan(tuple(stages), units.examples, free)
