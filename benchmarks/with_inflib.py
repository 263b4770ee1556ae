"""inflib on the workload, called as its README says.

The fitted curvature goes through a file between the stages, written and read inside the measured time, because the
other library's factors do too.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from workload import Workload, batches

import inflib

CURVATURE = "curvature.pt"


def fit(work: Workload, folder: Path, batch_size: int, labels: str, max_examples: int | None = None) -> None:
    """EK-FAC, left in the folder. `labels` is "expected", "sampled" (one draw) or "observed"."""
    if max_examples is not None:
        work = work.cut(max_examples, len(work.query_x), work.train_x.dtype)
    train = batches(work.train_set(), batch_size)
    curvature = inflib.ekfac(work.model(), inflib.CrossEntropy(), train, labels=labels, seed=0, progress=False)
    torch.save(curvature, folder / CURVATURE)


def pairwise(work: Workload, folder: Path, batch_size: int) -> Tensor:
    """Scores (Q, N) at the default damping, 0.1 · mean Λ of each layer."""
    train, queries = batches(work.train_set(), batch_size), batches(work.query_set(), batch_size)
    return inflib.influence(work.model(), inflib.CrossEntropy(), train, queries, _load(folder), progress=False)


def self_influence(work: Workload, folder: Path, batch_size: int) -> Tensor:
    """Scores (N,) at the default damping."""
    data = batches(work.train_set(), batch_size)
    return inflib.self_influence(work.model(), inflib.CrossEntropy(), data, _load(folder), progress=False)


def _load(folder: Path) -> inflib.Curvature:
    return torch.load(folder / CURVATURE, weights_only=False)  # the benchmark's own file, not a stranger's
