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

from .batches import BYTE_BUDGET, Data, check_order, chunks, walk
from .contractions import Pairs, contract, join, kept, own_scorer
from .curvature import Curvature, Damping
from .hooks import Matrices, Pair, check_capture, check_finite, forward, pairs
from .kronecker import Kronecker
from .layers import Layer, Untied
from .objectives import Measurement, Objective
from .positions import check_batch
from .selection import select


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
    max_bytes:      the largest temporary array; only speed depends on it.

    Units: dm/dε of (1/N) Σ ℓ + ε ℓ_n, see ``predicted_change``. Score > 0: a proponent. The model is left exactly as
    it was. Raises ValueError for data that changes its order, layers the model lacks, a singular damped curvature.
    """
    layers = layers_of(model, curvature)
    axes = kept(keep)
    check_order(train, "train")
    check_order(queries, "queries")
    calls = _calls(model, layers, objective, train) if axes.token else None
    query_pairs = gather(model, layers, objective, queries, "queries", measurement or "log_likelihood", progress)
    blocks = Preconditioned(query_pairs, curvature, damping, max_bytes)
    columns = []
    for training in _buffered(model, layers, objective, train, max_bytes, progress, whole=len(blocks) == 1):
        # one minus sign for −∇ℓ
        columns.append(torch.cat([-contract(P, training, axes, max_bytes, calls) for P in blocks]))
        del training  # or it would be held while the next batch is recorded
    return join(columns, axes)


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
    check_order(data, "data")
    own = own_scorer(curvature, damping, max_bytes)
    parts = []
    for batch in walk(data, name="data", progress=progress, what="self-influence"):
        if batch.index == 0:
            check_capture(model, layers, objective, batch.inputs, batch.targets, batch.size)
        found = pairs(model, layers, objective, batch.inputs, batch.targets, batch.size)
        check_pairs(found, batch.index)
        parts.append(own(found))
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
        check_pairs(found[-1], batch.index)
    return list(merge(found))


def _calls(model: nn.Module, layers: dict[str, Layer], objective: Objective, data: Data) -> dict[str, int]:
    """How often the model calls each layer, seen on the first batch: a tied layer's calls line up along T."""
    batch = next(walk(data, name="train", progress=False))
    check_batch(objective, batch.inputs, batch.targets)
    recording = forward(model, layers, batch.inputs, batch.size)
    return {name: len(calls) for name, calls in recording.calls.items()}


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
        check_pairs(found, batch.index)
        held.append(found)
        size += sum(x.numel() * x.element_size() for pair in found.values() for x in pair)
        if whole or size >= max_bytes:
            del found
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


class Preconditioned:
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
        P = self.curvature.solve({name: pair.matrices() for name, pair in part.items()}, self.damping)
        # sequences meet P by its columns (``contract``): laid out so once, not for every batch
        return {k: x if part[k].a.shape[1] == 1 else x.mT.contiguous().mT for k, x in P.items()}


def check_pairs(found: Pairs, batch: int) -> None:
    """Raise FloatingPointError where a batch's activations or gradients are not finite."""
    check_finite("activations", {name: pair.a for name, pair in found.items()}, batch)
    check_finite("output gradients", {name: pair.g for name, pair in found.items()}, batch)
