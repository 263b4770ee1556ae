"""Scores by several processes: each scores its share of the examples, and columns are put side by side."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..batches import Data
from ..curvature import Curvature, Damping
from ..objectives import Objective
from ..scoring import influence as one_process_influence
from ..scoring import self_influence as one_process_self_influence
from .ranks import Ranks
from .shares import shared


def influence(
    ranks: Ranks,
    model: nn.Module,
    objective: Objective,
    train: Data,
    queries: Data,
    curvature: Curvature,
    damping: Damping = None,
    **options: Any,
) -> Tensor:
    """``inflib.influence`` of all the data, (Q, N, ...) on every process; each scores its share of ``train``."""
    part = shared(ranks, model, train)
    options["progress"] = options.get("progress", True) and ranks.rank == 0
    own = None
    if part.batches:
        own = one_process_influence(model, objective, part.data, queries, curvature, damping, **options)
    return ranks.joined("the scores", own, next(model.parameters()), 1)


def self_influence(
    ranks: Ranks,
    model: nn.Module,
    objective: Objective,
    data: Data,
    curvature: Curvature,
    damping: Damping = None,
    **options: Any,
) -> Tensor:
    """``inflib.self_influence`` of all the data, (N,) or (N, L) on every process; each scores its share."""
    part = shared(ranks, model, data)
    options["progress"] = options.get("progress", True) and ranks.rank == 0
    own = None
    if part.batches:
        own = one_process_self_influence(model, objective, part.data, curvature, damping, **options)
    return ranks.joined("the self-influences", own, next(model.parameters()), 0)
