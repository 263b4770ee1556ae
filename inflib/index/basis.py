"""What an index answers with: curvatures with its eigenbasis, multiples of the identity, and queries solved before."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import nn

from ..batches import BYTE_BUDGET, Data
from ..blocks import equal
from ..curvature import Curvature, Damping, check_stacks, resolve_damping
from ..hooks import Matrices
from ..kronecker import Kronecker
from ..objectives import Measurement, Objective
from ..queries import Sets, precondition
from ..solvers import Solution
from .sides import Side


def check_basis(curvature: Curvature) -> None:
    """Raise TypeError for a curvature without an eigenbasis."""
    if not isinstance(curvature, Kronecker):
        raise TypeError(f"an index needs an eigenbasis; {type(curvature).__name__} has none. Use ekfac or kfac.")


def in_basis(own: Kronecker, held: Collection[str], other: Kronecker | None) -> Kronecker:
    """``other``, if what an index holds in the eigenbasis of ``own`` are its coordinates too; ``own`` for None."""
    if other is None:
        return own
    for name in other.layers:
        if name not in held:
            raise ValueError(f"layer {name!r} is not in this index, which has {list(held)}; build it anew.")
    flat = not other.Q_S and all(bool((v == v.flatten()[0]).all()) for v in other.eigenvalues.values())
    same = all(
        name in R and equal(Q[name], R[name])
        for Q, R in ((own.Q_S, other.Q_S), (own.Q_A, other.Q_A))
        for name in (k for k in other.layers if k in Q)
    )
    if not (flat or (same and bool(own.Q_S) == bool(other.Q_S))):
        raise ValueError(
            f"the {other.facts.method} curvature has another eigenbasis than this index; expected one fitted "
            "with the same data, labels, seed, sharing and blocks, or an identity. Build an index for it: "
            "TrainIndex.build."
        )
    return other


def asked(own: Kronecker, prepared: Side | Solution, curvature: Kronecker, damping: Damping) -> tuple[Side, Matrices]:
    """The query side in the eigenbasis, and what its coordinates are weighted with: 1 / (Λ + λ), or 1 if solved."""
    if not isinstance(prepared, Solution):
        return prepared, curvature.inverse_eigenvalues(damping)
    check_stacks(own, prepared.x)
    solved = own.rotate(prepared.x)
    return dict(solved), {name: torch.ones_like(x[0]) for name, x in solved.items()}


def ask_with(
    index: Any,
    model: nn.Module,
    objective: Objective,
    queries: Data,
    curvature: Curvature | None,
    damping: Damping,
    measurement: Measurement | None,
    sets: Sets = None,
    max_bytes: int = BYTE_BUDGET,
) -> tuple[Side | Solution, Kronecker | None, Damping]:
    """What an index's ``scores`` take for queries: prepared, or solved with a curvature that has no eigenbasis."""
    if curvature is None or isinstance(curvature, Kronecker):
        return index.prepare(model, objective, queries, measurement, sets), curvature, damping
    options: dict[str, Any] = {"measurement": measurement, "sets": sets, "max_bytes": max_bytes, "progress": False}
    solved = precondition(model, objective, queries, curvature, damping, **options)
    return solved, None, resolve_damping(curvature, damping)
