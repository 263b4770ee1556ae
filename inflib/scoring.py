"""Scores: how much each training example raised what a query measures.

    score(q, n) = ∇m_qᵀ (C + diag λ)⁻¹ (−∇ℓ_n)                     (Grosse et al. 2023, eq. 5, 9 and 28)

the change dm/dε of the measurement when the objective (1/N) Σ ℓ becomes (1/N) Σ ℓ + ε ℓ_n. Positive: a proponent, more
weight on n raises m; negative: an opponent. The few queries are preconditioned once, P_q = (C + λ)⁻¹ ∇m_q; then each
training gradient Σ_t g_t a_tᵀ is contracted with them (contractions.py), layer by layer and token by token if asked.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from .batches import BYTE_BUDGET, Batch, Data, accumulator, chunks, length, walk
from .contractions import Pairs, contract, join, kept, own_scorer
from .curvature import Curvature, Damping, layers_of
from .finite import check_finite, check_numbers, note_underflow
from .hooks import Matrices, Pair
from .kronecker import Kronecker
from .layers import Layer
from .objectives import Measurement, Objective
from .order import Same, check_order
from .placement import plain_numbers
from .proof import Proof

HELD = 4  # preconditioned queries are held up to so many times ``max_bytes``


@plain_numbers
def influence(
    model: nn.Module,
    objective: Objective,
    train: Data,
    queries: Data,
    curvature: Curvature,
    damping: Damping = None,
    *,
    measurement: Measurement | None = None,
    keep: Iterable[str] = (),
    max_bytes: int = BYTE_BUDGET,
    progress: bool = True,
) -> Tensor:
    """Influence of every training example on every query's measurement, (Q, N), or (Q, N[, L][, T]) with ``keep``.

    train, queries: re-iterable (inputs, targets) batches; row q and column n are positions in their order.
    damping:        None (0.1 · mean Λ per layer), a number, {layer: number} or relative(factor).
    measurement:    None (log-likelihood, −ℓ), "margin", "logit", or a callable (outputs, targets) → (B,).
    keep:           ("layer",), ("token",) or both: scores split by layer, in ``curvature.layers`` order, and by the
                    training example's token (Grosse et al. 2023, eq. 30 and 31), 0 at padding. They sum to the total.
                    A token's part is that of its position: what ``inflib.tokens`` does for the token itself is dearer.
    max_bytes:      the largest temporary array; only speed depends on it. Queries whose preconditioned gradients take
                    more than four times that come in groups, each with a pass of its own over the training side.

    Units: dm/dε of (1/N) Σ ℓ + ε ℓ_n; over N a ``contribution``. Score > 0: a proponent. The model is left exactly as
    it was. Raises ValueError for data that changes its order, layers the model lacks, a singular damped curvature.
    """
    layers = layers_of(model, curvature)
    axes = kept(keep)
    train, queries = check_order(train, "train"), check_order(queries, "queries")
    query_pairs = gather(model, layers, objective, queries, "queries", measurement or "log_likelihood", progress)
    groups = Preconditioned(query_pairs, curvature, damping, max_bytes)
    scores: list[Tensor] = []
    proof = Proof(model, layers, objective, batches=length(train))
    for P, batches in passes(groups, train, "influence", progress):
        columns = []
        for batch in batches:
            found = proof.pairs(batch)
            columns.append(-contract(P, found, axes, max_bytes))  # one minus sign for −∇ℓ
            if not bool(columns[-1].isfinite().all()):
                _say_where(P, found, columns[-1], max_bytes, batch.index)
            del found  # or it would be held while the next batch is recorded
        scores.append(join(columns, axes))
        del P
    return torch.cat(scores)


@plain_numbers
def self_influence(
    model: nn.Module,
    objective: Objective,
    data: Data,
    curvature: Curvature,
    damping: Damping = None,
    *,
    keep: Iterable[str] = (),
    max_bytes: int = BYTE_BUDGET,
    progress: bool = True,
) -> Tensor:
    """∇ℓ_nᵀ (C + λ)⁻¹ ∇ℓ_n of every example, (N,), or (N, L): its influence on its own log-likelihood, never negative.

    Arguments, units and errors as for ``influence``.
    """
    layers, split = layers_of(model, curvature), kept(keep, ("layer",)).layer
    data = check_order(data, "data")
    own = own_scorer(curvature, damping, max_bytes)
    proof = Proof(model, layers, objective, batches=length(data))
    parts = []
    for batch in walk(data, name="data", progress=progress, what="self-influence"):
        found = proof.pairs(batch)
        if not isinstance(curvature, Kronecker):  # whose solve would speak of its solution, not of what went in
            check_pairs(found, batch.index)
        parts.append(own(found))
        if not bool(parts[-1].isfinite().all()):
            check_pairs(found, batch.index)
            check_numbers("self-influences", dict(zip(layers, parts[-1].T, strict=True)))
        del found
    scores = torch.cat(parts)  # (N, L)
    return scores if split else scores.sum(-1)


def predicted_change(scores: Tensor, n_train: int, remove: bool = True) -> Tensor:
    """Scores in units of the measurement: its expected change when the example is deleted (−score/N), or repeated.

    Deleting example n of N is ε = −1/N. Comparable with what retraining without it measures. Shape as ``scores``.
    """
    if not n_train >= 1:  # so that NaN is refused too
        raise ValueError(
            f"n_train={n_train}; expected the number of training examples, at least 1. Use len(dataset), or "
            "scores.shape[1] where the training side was the whole training set."
        )
    return scores * ((-1 if remove else 1) / n_train)


def contribution(scores: Tensor, n_train: int) -> Tensor:
    """score/N: what the measurement is expected to lose if the example is removed, positive for proponents.

    The course's one sign and unit: minus ``predicted_change(scores, n_train)``, in the measurement's units.
    """
    return predicted_change(scores, n_train, remove=False)


# --- the two sides ---------------------------------------------------------------------------------------------


def gather(
    model: nn.Module,
    layers: dict[str, Layer],
    objective: Objective,
    data: Data,
    name: str,
    measurement: Measurement | None,
    progress: bool,
) -> list[Pairs]:
    """All pairs of ``data``, far smaller than the gradients they make; a new group where T changes."""
    proof = Proof(model, layers, objective, measurement, batches=length(data))
    found: list[Pairs] = []
    for batch in walk(data, name=name, progress=progress, what=name):
        found.append(proof.pairs(batch))
        check_pairs(found[-1], batch.index)
        largest = {name: pair.g.abs().amax((1, 2)) for name, pair in found[-1].items()}
        dtype = accumulator(next(iter(found[-1].values())).g.dtype)
        note_underflow(f"{name}: example", largest, dtype, batch.start)
    return list(merge(found))


def merge(held: list[Pairs]) -> Iterator[Pairs]:
    """Join batches along their examples, where their numbers of positions agree; nothing for no batches."""
    groups: list[list[Pairs]] = []
    for found in held:
        if groups and all(groups[-1][0][k].a.shape[1] == found[k].a.shape[1] for k in found):
            groups[-1].append(found)
        else:
            groups.append([found])
    for group in groups:
        if len(group) == 1:
            yield group[0]
        else:
            yield {k: Pair(*(torch.cat([f[k][side] for f in group]) for side in (0, 1))) for k in group[0]}


class Preconditioned:
    """P = (C + λ)⁻¹ ∇m of all queries in their order, in groups of up to ``HELD · max_bytes``.

    Each group meets the whole training side in a pass of its own (``passes``): solving anew for each batch would cost
    more than the pass. Where solving is dear, without a Kronecker basis, there is one group.
    """

    def __init__(self, queries: list[Pairs], curvature: Curvature, damping: Damping, max_bytes: int):
        self.curvature, self.damping = curvature, damping
        one = sum(o * i for o, i in curvature.shapes.values()) * next(iter(queries[0].values())).a.element_size()
        most = HELD * max_bytes // one if isinstance(curvature, Kronecker) else None  # queries in a group
        self.groups: list[list[Pairs]] = []
        room = 0
        for found in queries:
            for rows in chunks(_length(found), 4 * one, max_bytes):  # a solve holds some four matrices a query
                part = {k: Pair(p.a[rows], p.g[rows]) for k, p in found.items()}
                if not self.groups or (most is not None and _length(part) > room):
                    self.groups.append([])
                    room = most or 0
                self.groups[-1].append(part)
                room -= _length(part)

    def __len__(self) -> int:
        return len(self.groups)

    def __iter__(self) -> Iterator[Matrices]:
        return map(self._solve, self.groups)

    def _solve(self, parts: list[Pairs]) -> Matrices:
        solved = [self.curvature.solve({k: p.matrices() for k, p in part.items()}, self.damping) for part in parts]
        # sequences meet P by its columns (``contract``): laid out so once, not for every batch
        once = {k: pair.a.shape[1] == 1 for k, pair in parts[0].items()}
        return {
            k: torch.cat([P.pop(k) for P in solved]) if once[k] else torch.cat([P.pop(k).mT for P in solved]).mT
            for k in once
        }


def passes(
    groups: Preconditioned, train: Same, what: str, progress: bool
) -> Iterator[tuple[Matrices, Iterator[Batch]]]:
    """Each group of preconditioned queries with a pass over the training side, which must keep its order."""
    solved = iter(groups)
    for at in range(len(groups)):
        P = next(solved)
        which = f"{what} ({at + 1} of {len(groups)})" if len(groups) > 1 else what
        yield P, walk(train, name="train", progress=progress, what=which)
        del P  # before the next group is made


def _length(found: Pairs) -> int:
    return len(next(iter(found.values())).a)


def _say_where(P: Matrices, found: Pairs, scores: Tensor, max_bytes: int, batch: int) -> None:
    """Raise FloatingPointError for scores that are not finite, with the layer that made them so."""
    check_pairs(found, batch)
    for name in P:
        check_numbers("scores", {name: contract({name: P[name]}, {name: found[name]}, max_bytes=max_bytes)})
    check_numbers("summed scores", {", ".join(P): scores})


def check_pairs(found: Pairs, batch: int) -> None:
    """Raise FloatingPointError where a batch's activations or gradients are not finite."""
    check_finite("activations", {name: pair.a for name, pair in found.items()}, batch)
    check_finite("output gradients", {name: pair.g for name, pair in found.items()}, batch)
