"""Planned peaks of the resident set beside those then measured, in a process of its own: its standard output is JSON.

An allocator keeps what was freed, in the holes between what is still held: tens of megabytes after some hundred tests,
and which run meets how many of them is chance. In the environment below, which glibc reads once, before anything runs,
every tensor is mapped by itself and unmapped when it is freed; what is resident is then what is held.
"""

from __future__ import annotations

import copy
import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from networks import make
from torch import nn

from inflib import CrossEntropy, TrainIndex, ekfac, influence, kfac, plan
from inflib.plan.probe import run_over

HEAP = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_ARENA_MAX": "1"}
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}  # each thread has buffers of its own
CPU = torch.device("cpu")
STAGES = import_module("inflib.plan.stages")
QUIET: dict[str, Any] = {"progress": False}
SAMPLED = QUIET | {"labels": "sampled"}
Peaks = dict[str, tuple[int, int]]  # of each stage as planned, and then measured


def can_be_measured() -> bool:
    return Path("/proc/self/clear_refs").exists() and hasattr(ctypes.CDLL(None), "malloc_trim")


def in_a_process_of_its_own(*names: str) -> dict[str, Peaks]:
    """What these functions found, by their names."""
    environment = {**os.environ, **HEAP, **ONE_THREAD, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    run = subprocess.run([sys.executable, __file__, *names], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def main(names: list[str]) -> None:
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    found = {}
    for name in names:
        torch.manual_seed(0)
        found[name] = globals()[name]()
    print(json.dumps(found))


def measured(work: Callable[[], Any]) -> int:
    return run_over(lambda _: work(), [], CPU).peak


@contextmanager
def all_takes_long() -> Iterator[None]:
    """A plan then tries no decomposition, and as few queries as it can."""
    before, STAGES.LONG = STAGES.LONG, 0.0
    yield
    STAGES.LONG = before


# --- what is planned and measured -----------------------------------------------------------------------------------


def fit() -> Peaks:
    case = make(widths=(900, 500, 4), n=64, splits=[16, 32, 48])
    about = case.model, case.objective, case.train
    found = plan(*about, labels="sampled")
    return {"fit": (found["fit"].peak, measured(lambda: ekfac(*about, **SAMPLED)))}


def counted_fit() -> Peaks:
    """Of shapes alone, as where decomposing takes too long to be tried; the widest factor is the last."""
    case = make(widths=(4, 900, 4), n=64, splits=[16, 32, 48])
    case.model.float()
    about = case.model, case.objective, [(x.float(), y) for x, y in case.train]
    with all_takes_long():
        planned = plan(*about, labels="sampled")
    return {"fit": (planned["fit"].peak, measured(lambda: ekfac(*about, **SAMPLED)))}


def later_looks() -> Peaks:
    """Of a model whose first batch was looked at, and no later one.

    A fit in blocks, and queries solved one at a time, hold less than a look does.
    """
    case = make(widths=(1000, 600, 4), n=64, splits=[16, 32, 48])
    about, train, queries = (case.model, case.objective), case.train, case.queries
    blocks, in_turn = {"blocks": 8}, {"max_bytes": 2**20}
    planned = {stage.name: stage.peak for stage in plan(*about, train, queries=queries, **in_turn).stages}
    planned["fit"] = plan(*about, train, labels="sampled", **blocks)["fit"].peak
    C = kfac(*about, train, **SAMPLED)
    works: dict[str, Callable[..., Any]] = {
        "fit": lambda model, data: ekfac(model, about[1], data, **blocks, **SAMPLED),
        "index": lambda model, data: TrainIndex.build(model, about[1], data, C, **QUIET),
        "scores": lambda model, data: influence(model, about[1], data, queries, C, **in_turn, **QUIET),
    }
    found = {}
    for stage, work in works.items():
        other = copy.deepcopy(case.model)
        work(other, train[:1])
        found[stage] = planned[stage], measured(partial(work, other, train))
    return found


class Sequences(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 64), nn.Linear(64, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(torch.tanh(self.a(x)).mean(1))


def sequences(*shapes: tuple[int, int]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(torch.randn(n, T, 8), torch.randint(0, 3, (n,))) for n, T in shapes]


def late_long_batch() -> Peaks:
    return late_batch((8, 4), (8, 2048))


def late_batch_of_many() -> Peaks:
    return late_batch((1, 4), (2048, 8))


def late_batch(short: tuple[int, int], late: tuple[int, int]) -> Peaks:
    """Four short batches and a large one; at last as queries, of which those tried end before it, or within it."""
    about, train, few = (Sequences().eval(), CrossEntropy()), sequences(*[short] * 4, late), sequences((4, 4))
    C = ekfac(*about, train, **QUIET)
    planned = plan(*about, train, queries=few)
    works: dict[str, Callable[[], Any]] = {
        "fit": lambda: ekfac(*about, train, **QUIET),
        "index": lambda: TrainIndex.build(*about, train, C, **QUIET),
        "scores": lambda: influence(*about, train, few, C, 1.0, **QUIET),
    }
    found = {stage: (planned[stage].peak, measured(work)) for stage, work in works.items()}
    with all_takes_long():
        queries = plan(*about, few, queries=train)["scores"].peak
    return found | {"queries": (queries, measured(lambda: influence(*about, few, train, C, 1.0, **QUIET)))}


if __name__ == "__main__":
    main(sys.argv[1:])
