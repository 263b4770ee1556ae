"""inflib on the workload, called as its README says.

The fitted curvature and the index go through a file between the stages, written and read inside the measured time,
because the other library's factors do too.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import Tensor
from workload import Workload, batches

import inflib

CURVATURE, INDEX = "curvature.pt", "index.pt"


def fit(work: Workload, folder: Path, batch_size: int, labels: str, max_examples: int | None = None) -> None:
    """EK-FAC, left in the folder. `labels` is "expected", "sampled" (one draw) or "observed"."""
    if max_examples is not None:
        work = work.cut(max_examples, len(work.query_x), next(iter(work.weights.values())).dtype)
    train = batches(work.train_set(), batch_size, work.device)
    curvature = inflib.ekfac(
        work.model(), objective(work), train, layers=list(work.layers), labels=labels, seed=0, progress=False
    )
    torch.save(curvature, folder / CURVATURE)


def pairwise(work: Workload, folder: Path, batch_size: int) -> Tensor:
    """Scores (Q, N) at the default damping, 0.1 · mean Λ of each layer."""
    train, queries = (
        batches(work.train_set(), batch_size, work.device),
        batches(work.query_set(), batch_size, work.device),
    )
    return inflib.influence(work.model(), objective(work), train, queries, _load(folder), progress=False)


def low_rank(work: Workload, folder: Path, batch_size: int) -> Tensor:
    """Scores (Q, N) of each query by a few products of vectors, which leave out a twentieth of 1/(Λ + λ)."""
    train, queries = (
        batches(work.train_set(), batch_size, work.device),
        batches(work.query_set(), batch_size, work.device),
    )
    curvature = _load(folder)
    with warnings.catch_warnings(action="ignore", category=inflib.LowRankNote):  # how exact it was; agree.py says it
        return inflib.influence(work.model(), objective(work), train, queries, curvature, low_rank=0.05, progress=False)


def self_influence(work: Workload, folder: Path, batch_size: int) -> Tensor:
    """Scores (N,) at the default damping."""
    data = batches(work.train_set(), batch_size, work.device)
    return inflib.self_influence(work.model(), objective(work), data, _load(folder), progress=False)


def index(work: Workload, folder: Path, batch_size: int) -> None:
    """The training side prepared for later queries, left in the folder."""
    train = batches(work.train_set(), batch_size, work.device)
    built = inflib.TrainIndex.build(work.model(), objective(work), train, _load(folder), progress=False)
    torch.save(built, folder / INDEX)


def second_query(work: Workload, built: inflib.TrainIndex) -> Tensor:
    """Scores (Q, N) from an index that is held: queries captured and contracted, no pass over the training data."""
    return built.influence(work.model(), objective(work), batches(work.query_set(), len(work.query_x), work.device))


def held(folder: Path) -> inflib.TrainIndex:
    """The index, read before the clock starts: a session holds it."""
    return torch.load(folder / INDEX, weights_only=False)


def objective(work: Workload) -> inflib.Objective:
    return inflib.NextToken() if work.train_y.ndim == 2 else inflib.CrossEntropy()


def _load(folder: Path) -> inflib.Curvature:
    return torch.load(folder / CURVATURE, weights_only=False)  # the benchmark's own file, not a stranger's
