"""Scores of several networks as one: their mean.

    score(q, n) = (1/M) Σ_m score_m(q, n)

Retraining is random: another seed, another network, and a score tells of one of them. The mean over M of them tells of
what they have in common, which is what a retraining whose seed nobody knows will show. The checkpoints of one training
are cheaper members, and more alike; what both buy is measured by ``benchmarks/ensembling.py``. Source: Søgaard 2021,
"Revisiting methods for finding influential examples"; Park et al. 2023 (TRAK), section 3.2.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..batches import BYTE_BUDGET, Data
from ..curvature import Curvature, Damping
from ..objectives import Measurement, Objective
from ..scoring import influence

Members = Iterable[tuple[nn.Module, Curvature]]


def ensemble_influence(
    members: Members,
    objective: Objective,
    train: Data,
    queries: Data,
    damping: Damping = None,
    *,
    standardised: bool = False,
    measurement: Measurement | None = None,
    max_bytes: int = BYTE_BUDGET,
    progress: bool = True,
) -> Tensor:
    """The mean over the members of ``influence(...)``, (Q, N): same arguments, unit and sign.

    members:      (model, curvature) pairs, each curvature fitted at its model. A generator may make one after another:
                  one is held at a time.
    damping:      resolved for each member: None and relative(...) follow its own eigenvalues.
    standardised: see ``average_scores``.
    """
    options: dict[str, Any] = dict(measurement=measurement, max_bytes=max_bytes, progress=progress)
    return average_scores(
        (influence(model, objective, train, queries, curvature, damping, **options) for model, curvature in members),
        standardised=standardised,
    )


def average_scores(scores: Iterable[Tensor], *, standardised: bool = False) -> Tensor:
    """The mean of tensors of scores (Q, N, ...), however they were made; one is held at a time.

    standardised: before they are averaged, every query's scores are brought to one spread over the N training examples
                  (the members' mean one), so that no member counts more because its scores are larger.

    Raises ValueError for no member, members of different shapes, and for a query whose scores are all alike in a
    member, which no factor can bring to another spread.
    """
    total, spread, count = None, None, 0
    for one in scores:
        if total is not None and one.shape != total.shape:
            raise ValueError(
                f"member {count} has scores of shape {tuple(one.shape)}, those before it {tuple(total.shape)}; "
                "expected the same queries and training examples for all."
            )
        own = _spread(one, count) if standardised else torch.ones(())
        total = one / own if total is None else total + one / own
        spread = own if spread is None else spread + own
        count += 1
    if total is None or spread is None:
        raise ValueError("no member came; expected at least one (model, curvature) pair.")
    return total / count * (spread / count)


def _spread(scores: Tensor, member: int) -> Tensor:
    """Each query's standard deviation over the training examples, (Q, 1, ...)."""
    found = scores.flatten(1).std(1, correction=0)
    if not bool((found > 0).all()):
        query = int((~(found > 0)).nonzero()[0])
        raise ValueError(
            f"member {member} gives query {query} the same score for every training example; expected some spread. "
            "Use standardised=False, or leave the query out."
        )
    return found.reshape(-1, *(1 for _ in scores.shape[1:]))
