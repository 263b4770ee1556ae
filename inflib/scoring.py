"""Scores: how much each training example raised what a query measures.

    score(q, n) = ∇m_qᵀ (C + diag λ)⁻¹ (−∇ℓ_n)                     (Grosse et al. 2023, eq. 5, 9 and 28)

the change dm/dε of the measurement when the objective (1/N) Σ ℓ becomes (1/N) Σ ℓ + ε ℓ_n. Positive: a proponent, more
weight on n raises m; negative: an opponent. The few queries are preconditioned once, P_q = (C + λ)⁻¹ ∇m_q; then each
training gradient Σ_t g_t a_tᵀ is contracted with them, for one position as g_nᵀ P_q a_n without ever being built.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from .batches import BYTE_BUDGET, Data, check_order, chunks, walk
from .curvature import Curvature, Damping, Kronecker, check_stacks
from .hooks import Matrices, Pair, check_capture, check_finite, pairs
from .layers import Layer, Untied, select
from .objectives import Measurement, Objective

Pairs = dict[str, Pair]
CACHED_BYTES = 4 * 2**20  # of intermediate products that should stay near the processor


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
    """Influence of every training example on every query's measurement, (Q, N), or (Q, N, L) with keep=("layer",).

    train, queries: re-iterable (inputs, targets) batches; row q and column n are positions in their order.
    damping:        None (0.1 · mean Λ per layer), a number, {layer: number} or relative(factor).
    measurement:    None (log-likelihood, −ℓ), "margin", "logit", or a callable (outputs, targets) → (B,).
    keep:           ("layer",) keeps one score per layer, in ``curvature.layers`` order; they sum to the total.
    max_bytes:      the largest temporary array; only speed depends on it.

    Units: dm/dε of (1/N) Σ ℓ + ε ℓ_n, see ``predicted_change``. Score > 0: a proponent. The model is left exactly as
    it was. Raises ValueError for data that changes its order, layers the model lacks, a singular damped curvature.
    """
    layers = layers_of(model, curvature)
    split = kept(keep)
    check_order(train, "train")
    check_order(queries, "queries")
    query_pairs = gather(model, layers, objective, queries, "queries", measurement or "log_likelihood", progress)
    blocks = _Preconditioned(query_pairs, curvature, damping, max_bytes)
    columns = []
    for training in _buffered(model, layers, objective, train, max_bytes, progress, whole=len(blocks) == 1):
        # (Q, b, L): one minus sign for −∇ℓ
        columns.append(torch.cat([-contract(P, training, split, max_bytes) for P in blocks]))
    return torch.cat(columns, dim=1)


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
    layers, split = layers_of(model, curvature), kept(keep)
    check_order(data, "data")
    parts = []
    for batch in walk(data, name="data", progress=progress, what="self-influence"):
        if batch.index == 0:
            check_capture(model, layers, objective, batch.inputs, batch.targets, batch.size)
        found = pairs(model, layers, objective, batch.inputs, batch.targets, batch.size)
        _check(found, batch.index)
        parts.append(own_scores(found, curvature, damping, max_bytes))
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


# --- the two sides ---------------------------------------------------------------------------------------------


def layers_of(model: nn.Module, curvature: Curvature) -> dict[str, Layer]:
    """The model's layers that the curvature speaks of; ValueError where the model has others or other shapes."""
    names = list(curvature.layers)
    found = select(model, Untied(names) if curvature.facts.untied else names)
    for name, shape in curvature.shapes.items():
        if name not in found or found[name].shape != shape:
            came = found[name].shape if name in found else "no such layer"
            raise ValueError(f"layer {name!r}: the curvature was made for {shape}, the model has {came}; refit it.")
    return {name: found[name] for name in curvature.layers}


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
    found = []
    for batch in walk(data, name=name, progress=progress, what=name):
        found.append(pairs(model, layers, objective, batch.inputs, batch.targets, batch.size, measurement))
        _check(found[-1], batch.index)
    return list(merge(found))


def _buffered(
    model: nn.Module,
    layers: dict[str, Layer],
    objective: Objective,
    train: Data,
    max_bytes: int,
    progress: bool,
    whole: bool,
) -> Iterator[Pairs]:
    """Training pairs, batch by batch (whole), or gathered up to ``max_bytes`` to save preconditionings."""
    held: list[Pairs] = []
    size = 0
    for batch in walk(train, name="train", progress=progress, what="influence"):
        if batch.index == 0:
            check_capture(model, layers, objective, batch.inputs, batch.targets, batch.size)
        found = pairs(model, layers, objective, batch.inputs, batch.targets, batch.size)
        _check(found, batch.index)
        held.append(found)
        size += sum(x.numel() * x.element_size() for pair in found.values() for x in pair)
        if whole or size >= max_bytes:
            yield from merge(held)
            held, size = [], 0
    yield from merge(held)


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


class _Preconditioned:
    """P = (C + λ)⁻¹ ∇m of all queries, in blocks that fit in memory, in their order.

    Held when they are one block or dear to compute; otherwise made again for every run over the training side.
    """

    def __init__(self, queries: list[Pairs], curvature: Curvature, damping: Damping, max_bytes: int):
        self.curvature, self.damping = curvature, damping
        size = sum(o * i for o, i in curvature.shapes.values())
        first = next(iter(queries[0].values()))
        self.parts = [
            {k: Pair(p.a[rows], p.g[rows]) for k, p in found.items()}
            for found in queries
            for rows in chunks(next(iter(found.values())).a.shape[0], 4 * size * first.a.element_size(), max_bytes)
        ]
        hold = len(self.parts) == 1 or not isinstance(curvature, Kronecker)
        self.held = [self._solve(part) for part in self.parts] if hold else None

    def __len__(self) -> int:
        return len(self.parts)

    def __iter__(self) -> Iterator[Matrices]:
        return iter(self.held) if self.held is not None else map(self._solve, self.parts)

    def _solve(self, part: Pairs) -> Matrices:
        return self.curvature.solve({name: pair.matrices() for name, pair in part.items()}, self.damping)


# --- contractions ----------------------------------------------------------------------------------------------


def contract(P: Matrices, training: Pairs, split: bool, max_bytes: int = BYTE_BUDGET) -> Tensor:
    """⟨P_q, Σ_t g_t a_tᵀ⟩ of every query and training example, (Q, b), or (Q, b, L) with split."""
    per_layer = (_contract_layer(P[name], training[name], max_bytes) for name in P)  # each (Q, b)
    if split:
        return torch.stack(list(per_layer), dim=-1)
    return sum(per_layer)  # type: ignore[return-value]


def _contract_layer(P: Tensor, pair: Pair, max_bytes: int) -> Tensor:
    """(Q, o, i) against pairs a (b, T, i), g (b, T, o) → (Q, b)."""
    a, g = pair.a.to(P), pair.g.to(P)
    Q, o, i = P.shape
    b, T = a.shape[:2]
    if T > 1:
        flat = P.flatten(1)  # (Q, o·i)
        columns = [
            flat @ Pair(a[rows], g[rows]).matrices().flatten(1).T
            for rows in chunks(b, o * i * P.element_size(), max_bytes)
        ]
        return torch.cat(columns, dim=1)
    a, g = a[:, 0], g[:, 0]  # (b, i), (b, o)
    if i < o:  # the larger side goes into the matrix product, the smaller is left for the sum
        a, g, P, o = g, a, P.mT, i
    scores = P.new_empty(Q, b)
    for rows in chunks(b, o * P.element_size(), CACHED_BYTES):
        each = (rows.stop - rows.start) * o * P.element_size()
        for some in chunks(Q, each, CACHED_BYTES):
            half = a[rows] @ P[some].flatten(0, 1).T  # (b', Q'·o)
            half = half.reshape(len(half), -1, o).mul_(g[rows, None, :])
            scores[some, rows] = half.sum(-1).T
    return scores


def own_scores(found: Pairs, curvature: Curvature, damping: Damping, max_bytes: int) -> Tensor:
    """∇ℓᵀ (C + λ)⁻¹ ∇ℓ per example and layer's share, (b, L)."""
    if isinstance(curvature, Kronecker):
        inverse = curvature.inverse_eigenvalues(damping)
        shares = []
        for name, pair in found.items():
            a, g = pair.a.to(inverse[name]), pair.g.to(inverse[name])
            if name in curvature.Q_S:
                a, g = a @ curvature.Q_A[name], g @ curvature.Q_S[name]
            shares.append(own_layer(Pair(a, g), inverse[name], max_bytes))
        return torch.stack(shares, dim=-1)
    size = sum(o * i for o, i in curvature.shapes.values())
    first = next(iter(found.values()))
    rows_found = []
    for rows in chunks(first.a.shape[0], size * first.a.element_size(), max_bytes):
        v = {name: Pair(p.a[rows], p.g[rows]).matrices() for name, p in found.items()}
        check_stacks(curvature, v)
        solved = curvature.solve(v, damping)
        rows_found.append(torch.stack([(v[k] * solved[k]).sum((1, 2)) for k in v], dim=-1))
    return torch.cat(rows_found)


def own_layer(rotated: Pair, inverse: Tensor, max_bytes: int) -> Tensor:
    """Σ_jk (G̃_jk)² inverse_jk per example, (b,); for one position G̃² = g̃² ⊗ ã² is never built."""
    a, g = rotated
    if a.shape[1] == 1:
        return ((g[:, 0].square() @ inverse) * a[:, 0].square()).sum(1)
    each = inverse.numel() * inverse.element_size()
    parts = (
        Pair(a[rows], g[rows]).matrices().square().flatten(1) @ inverse.flatten()
        for rows in chunks(len(a), each, max_bytes)
    )
    return torch.cat(list(parts))


def kept(keep: Iterable[str]) -> bool:
    """Whether scores stay split by layer."""
    kept = (keep,) if isinstance(keep, str) else tuple(keep)
    unknown = [axis for axis in kept if axis != "layer"]
    if unknown:
        raise ValueError(f"keep={unknown[0]!r}; expected ('layer',) or (). Leave it out for one score a pair.")
    return bool(kept)


def _check(found: Pairs, batch: int) -> None:
    for name, pair in found.items():
        check_finite(name, "activations", pair.a, batch)
        check_finite(name, "output gradients", pair.g, batch)
