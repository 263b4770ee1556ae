"""One side of the scores, captured and rotated into the eigenbasis: the training examples', or the queries'.

ã = Q_Aᵀ a, g̃ = Q_Sᵀ g where T = 1          G̃ = Q_Sᵀ (Σ_t g_t a_tᵀ) Q_A, (o, i), where T > 1
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

import torch
from torch import Tensor, nn

from ..ahead import Ahead, in_bytes, telling
from ..allocation import of_layer
from ..batches import Batch, Data, length, walk
from ..curvature import layers_of
from ..ekfac import rotate, rotated_gradients
from ..finite import check_finite
from ..hooks import Captured, Pair
from ..kronecker import Kronecker
from ..layers import OneHot
from ..objectives import Measurement, Objective
from ..order import Same
from ..proof import Proof
from ..queries import Sets, check_pairs, set_numbers
from .rounding import Rounding

Rotated = Pair | Tensor  # of N examples in one layer: ã (N, 1, i) and g̃ (N, 1, o), or G̃ (N, o, i)
Side = dict[str, Rotated]


def captured(
    model: nn.Module,
    objective: Objective,
    data: Data,
    name: str,
    curvature: Kronecker,
    measurement: Measurement | None = None,
    progress: bool = False,
    skip: Collection[int] = (),
    ahead: Ahead | None = None,
) -> Iterator[tuple[Batch, Captured]]:
    """Every batch not in ``skip`` with its pairs (a, g), finite and shown to be its examples'."""
    layers = layers_of(model, curvature)  # whose weights are those of the fit, then
    proof = Proof(model, layers, objective, measurement, length(data), weights=curvature.facts.weights)
    walked = walk(data, name=name, progress=progress, what="index" if name == "train" else name)
    wanted = (batch for batch in walked if batch.index not in skip)
    for batch in telling(wanted, ahead if progress else None):
        found = proof.pairs(batch)
        check_pairs(found, batch.index)
        yield batch, found
        del found  # or it would be held while the next batch is recorded


def rotated(
    model: nn.Module,
    objective: Objective,
    data: Same,
    name: str,
    curvature: Kronecker,
    measurement: Measurement | None,
    dtype: torch.dtype | None,
    whole: Collection[str],
    progress: bool,
) -> Side:
    """Every example's gradient in the eigenbasis: as pairs where T = 1 and the layer is not in ``whole``."""
    side: Side = {}
    N, rounding = count(data, name), None if dtype is None else Rounding(curvature, dtype)
    ahead = Ahead("index", length(data), 1, lambda: f"it takes {in_bytes(held_bytes(side))}")
    for batch, found in captured(model, objective, data, name, curvature, measurement, progress, (), ahead):
        for layer, pair in found.items():
            once = applied_once(pair) and layer not in whole and isinstance(side.get(layer, pair), Pair)
            at, before = batch.start, side.get(layer)
            with of_layer(layer):
                for rows in rotated_some(pair, curvature, layer, once):
                    if rounding is not None:
                        rounding.see(layer, rows)
                    side[layer] = _put(side.get(layer), rows, at, N, dtype)
                    at += held_examples(rows)
            if dtype is not None:
                start = batch.start if type(side[layer]) is type(before) else 0  # pairs may have become matrices
                _check_kept(layer, take(side[layer], slice(start, at)), dtype, batch.index)
    if rounding is not None:
        rounding.say(N)
    return side


def summed(side: Side, sets: Sets) -> Side:
    """Σ G̃_q over the queries of each set, (S, o, i) in each layer; the side itself for sets=None."""
    if sets is None:
        return side
    at = set_numbers(sets, held_examples(next(iter(side.values()))))
    members = [(at == s).nonzero()[:, 0] for s in range(int(at.max()) + 1)]
    return {name: torch.stack([_sum(take(held, rows)) for rows in members]) for name, held in side.items()}


def _sum(held: Rotated) -> Tensor:
    """Σ_n G̃_n, (o, i)."""
    return held.g[:, 0].T @ held.a[:, 0] if isinstance(held, Pair) else held.sum(0)


def rotated_some(pair: Pair, curvature: Kronecker, layer: str, once: bool) -> Iterable[Rotated]:
    """A batch's pairs in the eigenbasis, all as one where ``once``, or its matrices, some examples at a time."""
    Q_S, Q_A = curvature.Q_S.get(layer), curvature.Q_A.get(layer)
    return [Pair(rotate(pair.a, Q_A), rotate(pair.g, Q_S))] if once else rotated_gradients(pair, Q_S, Q_A)


def _check_kept(layer: str, kept: Rotated, dtype: torch.dtype, batch: int) -> None:
    """Raise FloatingPointError where a rotated gradient does not fit ``dtype``."""
    for x in kept if isinstance(kept, Pair) else (kept,):
        check_finite(f"gradients, kept as {dtype},", {layer: x}, batch)


def _put(held: Rotated | None, rows: Rotated, at: int, N: int, dtype: torch.dtype | None) -> Rotated:
    """``rows`` written into ``held`` from ``at`` on, made where needed, or turned from pairs into matrices."""
    if isinstance(rows, Pair):
        if held is None:
            held = Pair(*(x.new_empty(N, *x.shape[1:], dtype=dtype) for x in rows))
        for whole, part in zip(held, rows, strict=True):
            whole[at : at + len(part)] = part
        return held
    if not isinstance(held, Tensor):
        before, held = held, rows.new_empty(N, *rows.shape[1:], dtype=dtype)
        if before is not None:  # sequences of one position came first
            held[:at] = take(before, slice(0, at)).matrices()  # type: ignore[union-attr]
    held[at : at + len(rows)] = rows
    return held


def held_bytes(side: Side) -> int:
    """Bytes of all layers' examples."""
    return sum(x.nbytes for held in side.values() for x in (held if isinstance(held, Pair) else (held,)))


def applied_once(pair: Pair) -> bool:
    """Whether a gradient is kept as two vectors: an embedding's a, which is as long as the vocabulary, never is."""
    return pair.a.shape[1] == 1 and not isinstance(pair.a, OneHot)


def take(held: Rotated, rows: slice | Tensor) -> Rotated:
    """Some of the examples, by slice or positions."""
    if isinstance(rows, Tensor):
        rows = rows.to((held.a if isinstance(held, Pair) else held).device)
    return Pair(held.a[rows], held.g[rows]) if isinstance(held, Pair) else held[rows]


def held_examples(held: Rotated) -> int:
    return len(held.a) if isinstance(held, Pair) else len(held)


def count(data: Data, name: str) -> int:
    """The number of examples in the data."""
    return sum(batch.size for batch in walk(data, name=name, progress=False))
