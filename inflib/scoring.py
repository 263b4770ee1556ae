"""Scores: how much each training example raised what a query measures.

    score(q, n) = ∇m_qᵀ (C + diag λ)⁻¹ (−∇ℓ_n)                     (Grosse et al. 2023, eq. 5, 9 and 28)

the change dm/dε of the measurement when the objective (1/N) Σ ℓ becomes (1/N) Σ ℓ + ε ℓ_n. Positive: a proponent, more
weight on n raises m; negative: an opponent. The few queries are preconditioned once, P_q = (C + λ)⁻¹ ∇m_q; then each
training gradient Σ_t g_t a_tᵀ is contracted with them (contractions.py), layer by layer and token by token if asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from .ahead import Ahead, telling
from .allocation import allocating
from .batches import BYTE_BUDGET, Data, length, per_row, walk
from .contractions import Pairs, contract, join, kept, own_scorer
from .curvature import Curvature, Damping, check_stacks, layers_of
from .finite import check_numbers
from .hooks import Matrices
from .kronecker import Kronecker
from .low_rank import LowRank, LowRankQueries, check_low_rank
from .objectives import Measurement, Objective
from .order import check_order
from .placement import plain_numbers
from .proof import Proof
from .queries import Preconditioned, Sets, added_up, check_pairs, gather, passes
from .solvers import Solution

RELATIVE = ("loss", "weights")


@plain_numbers
@allocating("scores")
def influence(
    model: nn.Module,
    objective: Objective,
    train: Data,
    queries: Data | Solution,
    curvature: Curvature,
    damping: Damping = None,
    *,
    measurement: Measurement | None = None,
    keep: Iterable[str] = (),
    sets: Sets = None,
    relative: str | None = None,
    low_rank: LowRank = None,
    max_bytes: int = BYTE_BUDGET,
    progress: bool = True,
) -> Tensor:
    """Influence of every training example on every query's measurement, (Q, N), or (Q, N[, L][, T]) with ``keep``.

    train, queries: re-iterable (inputs, targets) batches; row q and column n are positions in their order. Queries that
                    ``precondition`` has solved are taken as they are.
    damping:        None (0.1 · mean Λ per layer), a number, {layer: number} or relative(factor).
    measurement:    None (log-likelihood, −ℓ), "margin", "logit", or a callable (outputs, targets) → (B,).
    keep:           ("layer",), ("token",) or both: scores split by layer, in ``curvature.layers`` order, and by the
                    training example's token (Grosse et al. 2023, eq. 30 and 31), 0 at padding. They sum to the total.
                    A token's part is that of its position: what ``inflib.tokens`` does for the token itself is dearer.
    sets:           a whole number for each query, the set it belongs to, or "all" for one set: row s is then the sum of
                    that set's rows, at the price of one query.
    relative:       "loss" divides each column by √(∇ℓ_nᵀ (C + λ)⁻¹ ∇ℓ_n), how much the example moves its own loss,
                    "weights" by ‖(C + λ)⁻¹ ∇ℓ_n‖, how far it moves the weights: what is left is said of this query
                    rather than of all (ℓ- and θ-RelatIF, Barshan et al. 2020). No longer dm/dε, hence no contribution.
    low_rank:       each query by r products of vectors, or as many as leave that share out: of 1/(Λ + λ) in layers
                    applied once an example, of the preconditioned query in others (Grosse et al. 2023, 3.2.2). All
                    queries take one pass, a training example Q · r · T · (o + i) multiplications a layer in place of
                    (Q + T) · o · i, or Q · o · i where T = 1. A LowRankNote says how exact it was, and what it saved.
    max_bytes:      the largest temporary array; only speed depends on it. Queries whose preconditioned gradients take
                    more than four times that come in groups, each with a pass of its own over the training side.

    Units: dm/dε of (1/N) Σ ℓ + ε ℓ_n; over N a ``contribution``. Score > 0: a proponent. The model is left exactly as
    it was. Raises ValueError for data that changes its order, layers the model lacks, a singular damped curvature.
    """
    layers = layers_of(model, curvature)
    axes, size = kept(keep), _size_of(relative, curvature, damping, max_bytes)
    check_low_rank(low_rank, axes.token or relative is not None or isinstance(queries, Solution))
    train = check_order(train, "train")
    groups: Preconditioned | list[Matrices]
    if isinstance(queries, Solution):
        groups = [solved_for(queries, curvature, measurement, sets)]
    else:
        queries = check_order(queries, "queries")
        asked = gather(
            model,
            layers,
            objective,
            queries,
            "queries",
            "log_likelihood" if measurement is None else measurement,
            progress,
        )
        asked = added_up(asked, sets)
        if low_rank is not None:
            short = LowRankQueries.of(asked, curvature, damping, low_rank, max_bytes)
            return short.scores(Proof(model, layers, objective, batches=length(train)), train, axes.layer, progress)
        groups = Preconditioned(asked, curvature, damping, max_bytes)
    scores: list[Tensor] = []
    proof = Proof(model, layers, objective, batches=length(train))
    for P, batches in passes(groups, train, "influence", progress):
        columns = []
        for batch in batches:
            found = proof.pairs(batch)
            columns.append(-contract(P, found, axes, max_bytes))  # one minus sign for −∇ℓ
            if not bool(columns[-1].isfinite().all()):
                _say_where(P, found, columns[-1], max_bytes, batch.index)
            if size is not None:
                columns[-1] = divided(columns[-1], size(found).sum(-1))
            del found  # or it would be held while the next batch is recorded
        scores.append(join(columns, axes))
        del P
    return torch.cat(scores)


@plain_numbers
@allocating("scores")
def self_influence(
    model: nn.Module,
    objective: Objective,
    data: Data,
    curvature: Curvature,
    damping: Damping = None,
    *,
    measurement: Measurement | None = None,
    keep: Iterable[str] = (),
    max_bytes: int = BYTE_BUDGET,
    progress: bool = True,
) -> Tensor:
    """∇m_nᵀ (C + λ)⁻¹ (−∇ℓ_n) of every example, (N,), or (N, L): its influence on its own measurement.

    For measurement=None, the log-likelihood, that is ∇ℓ_nᵀ (C + λ)⁻¹ ∇ℓ_n, never negative. Arguments, units and errors
    as for ``influence``.
    """
    layers, split = layers_of(model, curvature), kept(keep, ("layer",)).layer
    data = check_order(data, "data")
    own = own_scorer(curvature, damping, max_bytes)
    proof = Proof(model, layers, objective, batches=length(data))
    asking = None if measurement is None else Proof(model, layers, objective, measurement, batches=length(data))
    parts = []
    ahead = Ahead("self-influence", length(data), 1, lambda: "a number an example and layer is kept")
    walked = walk(data, name="data", progress=progress, what="self-influence")
    for batch in telling(walked, ahead if progress else None):
        found, asked = proof.pairs(batch), None if asking is None else asking.pairs(batch)
        if not isinstance(curvature, Kronecker):  # whose solve would speak of its solution, not of what went in
            check_pairs(found, batch.index)
        parts.append(own(found) if asked is None else -own(found, asked))  # −∇ℓ
        if not bool(parts[-1].isfinite().all()):
            check_pairs(found, batch.index)
            check_pairs(found if asked is None else asked, batch.index)
            check_numbers("self-influences", dict(zip(layers, parts[-1].T, strict=True)))
        del found, asked
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

    The course's one sign and unit: minus ``predicted_change(scores, n_train)``, in the measurement's units. Trust the
    order: on the course's digits EK-FAC's contributions are, on average over training examples, worth 0.08 to 0.21 of
    themselves by exact G, another share for each query; after one refinement step 0.3, after ten 0.9. Where sizes
    matter take scores from ``refine``; ``precondition`` tells each query's residual.
    """
    return predicted_change(scores, n_train, remove=False)


def _say_where(P: Matrices, found: Pairs, scores: Tensor, max_bytes: int, batch: int) -> None:
    """Raise FloatingPointError for scores that are not finite, with the layer that made them so."""
    check_pairs(found, batch)
    for name in P:
        check_numbers("scores", {name: contract({name: P[name]}, {name: found[name]}, max_bytes=max_bytes)})
    check_numbers("summed scores", {", ".join(P): scores})


# --- what scores may be relative to -----------------------------------------------------------------------------


def check_relative(relative: str | None) -> None:
    """Raise ValueError for what ``relative=`` may not be."""
    if relative is not None and relative not in RELATIVE:
        raise ValueError(
            f"relative={relative!r}; expected None, 'loss' (scores over √self-influence) or 'weights' (over how far "
            "the example moves the weights). A relative damping is given as damping=relative(0.1)."
        )


def _size_of(
    relative: str | None, curvature: Curvature, damping: Damping, max_bytes: int
) -> Callable[[Pairs], Tensor] | None:
    """A function of a training batch → the square of what its scores are divided by, (b, L), or None."""
    check_relative(relative)
    return None if relative is None else own_scorer(curvature, damping, max_bytes, moved=relative == "weights")


def divided(scores: Tensor, squares: Tensor) -> Tensor:
    """Scores (Q, n, ...) over √squares (n,); 0 where an example has no gradient, and so no score."""
    inverse = torch.where(squares > 0, squares.rsqrt(), 0)
    return scores * per_row(inverse, scores[0])


def solved_for(queries: Solution, curvature: Curvature, measurement: Measurement | None, sets: Sets) -> Matrices:
    """Queries that ``precondition`` has solved; ValueError where they would have to be solved anew."""
    check_stacks(curvature, queries.x)
    if measurement is not None or sets is not None:
        what = "measurement" if measurement is not None else "sets"
        raise ValueError(f"{what}= came with queries that are solved already; give it to precondition(..., {what}=).")
    return queries.x
