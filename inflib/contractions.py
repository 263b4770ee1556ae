"""⟨P_q, ∇ℓ_n⟩: preconditioned queries against training gradients that are built only where that is the cheapest way.

A training gradient is Σ_t g_t a_tᵀ. Applied once (T = 1), its product with P is gᵀ P a and needs no matrix; for more
positions and several queries the gradient is built once, in chunks, and meets all queries in one product. Split by
token, the terms g_tᵀ P a_t are kept apart (Grosse et al. 2023, eq. 31); split by layer, the layers' parts (eq. 30).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from .allocation import by_layer
from .batches import BYTE_BUDGET, cached_bytes, chunks
from .blocks import Factor
from .curvature import Curvature, Damping, check_stacks
from .ekfac import rotate, rotated_gradients
from .hooks import Captured, Matrices, Pair
from .kronecker import Kronecker
from .layers import OneHot
from .layers.onehot import against

Pairs = dict[str, Pair]


class Keep(NamedTuple):
    """Which axes scores stay split by; appended to (Q, N) in this order."""

    layer: bool = False
    token: bool = False


def kept(keep: Iterable[str], allowed: tuple[str, ...] = Keep._fields) -> Keep:
    """``keep=`` as a Keep; ValueError for an axis that is not one of ``allowed``."""
    names = (keep,) if isinstance(keep, str) else tuple(keep)
    for name in names:
        if name not in allowed:
            raise ValueError(
                f"keep={name!r}; expected some of {allowed}. Leave it out for one score a pair."
                + (" Split by token with inflib.influence." if name == "token" else "")
            )
    return Keep("layer" in names, "token" in names)


def contract(
    P: Matrices,
    training: Pairs,
    keep: Keep = Keep(),  # noqa: B008 (immutable)
    max_bytes: int = BYTE_BUDGET,
) -> Tensor:
    """⟨P_q, Σ_t g_t a_tᵀ⟩ of every query and training example, (Q, b[, L][, T])."""
    if keep.token:
        assert isinstance(training, Captured)
        runs = {k: _runs(k, training.lengths[k]) for k in P}
        each = list(
            by_layer(P, lambda k: _contract_tokens(P[k], training[k], runs[k], max_bytes)).values()
        )  # (Q, b, T)
        _check_tokens(list(P), each)
    else:
        each = list(by_layer(P, lambda k: _contract_layer(P[k], training[k], max_bytes)).values())  # (Q, b)
    if keep.layer:
        return torch.stack(each, dim=2)
    return sum(each)  # type: ignore[return-value]


def join(columns: list[Tensor], keep: Keep) -> Tensor:
    """Scores of successive training examples side by side, (Q, N, ...); shorter token axes end in zeros."""
    if keep.token:
        T = max(part.shape[-1] for part in columns)
        columns = [F.pad(part, (0, T - part.shape[-1])) for part in columns]
    return torch.cat(columns, dim=1)


def _contract_layer(P: Tensor, pair: Pair, max_bytes: int) -> Tensor:
    """(Q, o, i) against pairs a (b, T, i), g (b, T, o) → (Q, b)."""
    a, g = pair.a.to(P), pair.g.to(P)
    if isinstance(a, OneHot):
        return against(P, a, g, max_bytes).sum(2)
    Q, o, i = P.shape
    b, T = a.shape[:2]
    if T > 1:
        # (i, o) and not (o, i): aᵀg is faster than gᵀa where the bias makes i odd
        columns = [
            inner_products(P.mT, torch.bmm(a[rows].mT, g[rows]))
            for rows in chunks(b, o * i * P.element_size(), max_bytes)
        ]
        return torch.cat(columns, dim=1)
    a, g = a[:, 0], g[:, 0]  # (b, i), (b, o)
    if i < o:  # the larger side goes into the matrix product, the smaller is left for the sum
        a, g, P, o = g, a, P.mT, i
    scores = P.new_empty(Q, b)
    budget = cached_bytes(P)
    for rows in chunks(b, o * P.element_size(), budget):
        each = (rows.stop - rows.start) * o * P.element_size()
        for some in chunks(Q, each, budget):
            half = a[rows] @ P[some].flatten(0, 1).T  # (b', Q'·o)
            half = half.reshape(len(half), -1, o).mul_(g[rows, None, :])
            scores[some, rows] = half.sum(-1).T
    return scores


def inner_products(P: Tensor, G: Tensor) -> Tensor:
    """⟨P_q, G_n⟩ of matrices (Q, r, c) and (b, r, c) → (Q, b)."""
    if P.device.type == "cpu":
        return P.flatten(1) @ G.flatten(1).T
    # few rows and columns over a million terms keep one corner of a GPU busy: so a product for each r, and their sum
    parts = chunks(len(G), P.shape[1] * len(P) * P.element_size(), cached_bytes(P))
    found = [torch.bmm(P.transpose(0, 1), G[rows].permute(1, 2, 0)).sum(0) for rows in parts]
    return torch.cat(found, dim=1) if found else P.new_zeros(len(P), 0)


def _contract_tokens(P: Tensor, pair: Pair, calls: int, max_bytes: int) -> Tensor:
    """g_tᵀ P a_t of every token, (Q, b, T): each position as an example of its own, a layer's calls added up."""
    b, positions = pair.a.shape[:2]
    if isinstance(pair.a, OneHot):
        return against(P, pair.a, pair.g.to(P), max_bytes).reshape(len(P), b, calls, positions // calls).sum(2)
    rows = Pair(pair.a.flatten(0, 1)[:, None], pair.g.flatten(0, 1)[:, None])  # (b·T, 1, ·)
    return _contract_layer(P, rows, max_bytes).reshape(len(P), b, calls, positions // calls).sum(2)


def _runs(name: str, lengths: tuple[int, ...]) -> int:
    """How many runs over the tokens a layer's positions are: its calls, which must be of one length."""
    if len(set(lengths)) > 1:
        raise ValueError(
            f"keep=('token',): layer {name!r} was called on {' and '.join(map(str, lengths))} positions; expected one "
            "token axis. Score such a layer apart: fit with layers=."
        )
    return len(lengths)


def _check_tokens(names: list[str], each: list[Tensor]) -> None:
    for name, scores in zip(names, each, strict=True):
        if scores.shape[2] != each[0].shape[2]:
            raise ValueError(
                f"keep=('token',): layer {names[0]!r} has {each[0].shape[2]} positions an example, layer {name!r} has "
                f"{scores.shape[2]}; expected one token axis for all. Score such layers apart: fit with layers=."
            )


# --- an example with itself ----------------------------------------------------------------------------------------


class OwnScorer(Protocol):
    """A function of pairs → vᵀ (C + λ)⁻¹ ∇ℓ per example and layer's share, (b, L); v another gradient, or ∇ℓ itself."""

    def __call__(self, found: Pairs, other: Pairs | None = None) -> Tensor: ...


def own_scorer(curvature: Curvature, damping: Damping, max_bytes: int, *, moved: bool = False) -> OwnScorer:
    """∇ℓᵀ (C + λ)⁻¹ ∇ℓ per example and layer; moved=True: ‖(C + λ)⁻¹ ∇ℓ‖², how far the example moves the weights."""
    if isinstance(curvature, Kronecker):
        inverse = {  # laid out as ``rotated_gradients`` are
            name: (values.square() if moved else values).mT.contiguous().mT
            for name, values in curvature.inverse_eigenvalues(damping).items()
        }

        def in_eigenbasis(found: Pairs, other: Pairs | None = None) -> Tensor:
            Q_S, Q_A = curvature.Q_S, curvature.Q_A

            def share(k: str) -> Tensor:
                return own_layer(found[k], inverse[k], Q_S.get(k), Q_A.get(k), None if other is None else other[k])

            return torch.stack(list(by_layer(found, share).values()), dim=-1)

        return in_eigenbasis

    def by_solving(found: Pairs, other: Pairs | None = None) -> Tensor:
        size = sum(o * i for o, i in curvature.shapes.values())
        first = next(iter(found.values()))
        rows_found = []
        for rows in chunks(len(first.g), size * first.g.element_size(), max_bytes):
            v = {name: Pair(p.a[rows], p.g[rows]).matrices() for name, p in found.items()}
            check_stacks(curvature, v)
            solved = curvature.solve(v, damping)
            if moved:
                v = solved
            elif other is not None:
                v = {name: Pair(p.a[rows], p.g[rows]).matrices() for name, p in other.items()}
            rows_found.append(torch.stack([(v[k] * solved[k]).sum((1, 2)) for k in v], dim=-1))
        return torch.cat(rows_found)

    return by_solving


def own_layer(pair: Pair, inverse: Tensor, Q_S: Factor | None, Q_A: Factor | None, other: Pair | None = None) -> Tensor:
    """Σ_jk (G̃_jk)² inverse_jk per example, (b,), or Σ_jk G̃_jk H̃_jk inverse_jk with another pair's H.

    For one position G̃ = g̃ ⊗ ã is never built.
    """
    pair = Pair(pair.a.to(inverse), pair.g.to(inverse))
    other = pair if other is None else Pair(other.a.to(inverse), other.g.to(inverse))
    if isinstance(pair.a, OneHot):  # the other's a is the same
        columns, others = (pair.a.columns(p.g) for p in (pair, other))
        each = rotate(columns.rows, Q_S) * rotate(others.rows, Q_S) * inverse.T[columns.token]
        return columns.added(each.sum(1), len(pair.a))
    if pair.a.shape[1] == 1:
        a, g = rotate(pair.a[:, 0], Q_A), rotate(pair.g[:, 0], Q_S)
        b, h = (a, g) if other is pair else (rotate(other.a[:, 0], Q_A), rotate(other.g[:, 0], Q_S))
        return (((g * h) @ inverse) * (a * b)).sum(1)
    if other is pair:
        return torch.cat([weighted(G.square_(), inverse) for G in rotated_gradients(pair, Q_S, Q_A)])
    both = zip(rotated_gradients(pair, Q_S, Q_A), rotated_gradients(other, Q_S, Q_A), strict=True)
    return torch.cat([weighted(G.mul_(H), inverse) for G, H in both])


def weighted(squares: Tensor, inverse: Tensor) -> Tensor:
    """Σ_jk (G̃_jk)² inverse_jk of squared rotated gradients (b, o, i) → (b,)."""
    if squares.mT.is_contiguous():  # as ``rotated_gradients`` leaves them
        squares, inverse = squares.mT, inverse.T
    return squares.flatten(1) @ inverse.flatten()
