"""TrainIndex: the training side prepared once, so that a new query, damping or layer subset costs no pass over it.

For layers applied once an example (T = 1) a training gradient is g_n a_nᵀ. The index keeps ã_n = Q_Aᵀ a_n and
g̃_n = Q_Sᵀ g_n, in which every curvature with that eigenbasis is diagonal:

    score(q, n) = −g̃_nᵀ [(Q_Sᵀ ∇m_q Q_A) / (Λ + λ)] ã_n

Exact: the same numbers as ``influence``. The identity is diagonal in every basis, so one index also answers with K-FAC
and with plain gradient dot products.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .batches import BYTE_BUDGET, Data, check_order, chunks
from .curvature import Damping, Kronecker
from .hooks import Pair
from .objectives import Measurement, Objective
from .scoring import Pairs, contract, gather, kept, layers_of, own_layer


@dataclass(frozen=True, eq=False)
class TrainIndex:
    """Rotated pairs of N training examples: per layer ã (N, 1, i) and g̃ (N, 1, o). Made by ``TrainIndex.build``."""

    curvature: Kronecker  # whose eigenbasis the pairs are in, and the default for queries
    rotated: Pairs

    @classmethod
    def build(
        cls,
        model: nn.Module,
        objective: Objective,
        train: Data,
        curvature: Kronecker,
        *,
        progress: bool = True,
    ) -> TrainIndex:
        """One pass over ``train``. Memory: N · Σ_layers (o + i) numbers, see ``nbytes``.

        Raises ValueError for a curvature that is not Kronecker-factored, a layer applied more than once an example, or
        data that changes its order.
        """
        if not isinstance(curvature, Kronecker):
            raise TypeError(f"an index needs an eigenbasis; {type(curvature).__name__} has none. Use ekfac or kfac.")
        check_order(train, "train")
        layers = layers_of(model, curvature)
        return cls(curvature, _rotated(gather(model, layers, objective, train, "train", None, progress), curvature))

    def __len__(self) -> int:
        """N, the number of training examples."""
        return next(iter(self.rotated.values())).a.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes held for the training side."""
        return sum(x.numel() * x.element_size() for pair in self.rotated.values() for x in pair)

    def prepare(
        self, model: nn.Module, objective: Objective, queries: Data, measurement: Measurement | None = None
    ) -> Pairs:
        """The query side, captured and rotated: give it to ``scores`` again and again with other dampings."""
        layers = layers_of(model, self.curvature)
        check_order(queries, "queries")
        return _rotated(
            gather(model, layers, objective, queries, "queries", measurement or "log_likelihood", False),
            self.curvature,
        )

    def scores(
        self,
        prepared: Pairs,
        curvature: Kronecker | None = None,
        damping: Damping = None,
        *,
        layers: Iterable[str] | None = None,
        examples: Sequence[int] | Tensor | None = None,
        keep: Iterable[str] = (),
        max_bytes: int = BYTE_BUDGET,
    ) -> Tensor:
        """Scores of prepared queries, (Q, N), or (Q, N, L) with keep=("layer",); exactly those of ``influence``.

        curvature: another one in the same eigenbasis (K-FAC beside EK-FAC), or an identity; None for the index's own.
        layers:    exact names of some of the layers; None for all. Relative damping is each layer's own either way.
        examples:  positions of some training examples, (N',) columns in that order, or a bool mask (N,); None for all.
        """
        curvature, split = self._in_basis(curvature), kept(keep)
        if layers is not None:
            curvature = curvature.restrict([layers] if isinstance(layers, str) else layers)
        inverse = curvature.inverse_eigenvalues(damping)
        few = {name: prepared[name] for name in inverse}
        many = {name: _rows(self.rotated[name], examples) for name in inverse}
        swap = 0 < _count(many) < _count(few)  # the form is symmetric: build matrices for the smaller side
        if swap:
            few, many = many, few
        size = sum(values.numel() * values.element_size() for values in inverse.values())
        found = []
        for rows in chunks(_count(few), size, max_bytes):
            P = {k: Pair(few[k].a[rows], few[k].g[rows]).matrices() * values for k, values in inverse.items()}
            found.append(-contract(P, many, split, max_bytes))
        scores = torch.cat(found)
        return scores.transpose(0, 1) if swap else scores

    def influence(
        self,
        model: nn.Module,
        objective: Objective,
        queries: Data,
        curvature: Kronecker | None = None,
        damping: Damping = None,
        *,
        layers: Iterable[str] | None = None,
        measurement: Measurement | None = None,
        keep: Iterable[str] = (),
        max_bytes: int = BYTE_BUDGET,
    ) -> Tensor:
        """``prepare`` and ``scores`` in one: what ``inflib.influence`` gives, without a pass over the training data."""
        prepared = self.prepare(model, objective, queries, measurement)
        return self.scores(prepared, curvature, damping, layers=layers, keep=keep, max_bytes=max_bytes)

    def self_influence(self, curvature: Kronecker | None = None, damping: Damping = None) -> Tensor:
        """∇ℓ_nᵀ (C + λ)⁻¹ ∇ℓ_n of every training example, (N,)."""
        inverse = self._in_basis(curvature).inverse_eigenvalues(damping)
        return sum(own_layer(self.rotated[k], values, BYTE_BUDGET) for k, values in inverse.items())  # type: ignore

    def _in_basis(self, curvature: Kronecker | None) -> Kronecker:
        """The curvature, if the index's pairs are its eigenbasis coordinates."""
        if curvature is None:
            return self.curvature
        for name in curvature.layers:
            if name not in self.rotated:
                raise ValueError(f"layer {name!r} is not in this index, which has {list(self.rotated)}; build it anew.")
        own, other = self.curvature, curvature
        flat = not other.Q_S and all(bool((v == v.flatten()[0]).all()) for v in other.eigenvalues.values())
        same = all(
            torch.equal(Q[name], R.get(name, Q[name][:0]))
            for Q, R in ((own.Q_S, other.Q_S), (own.Q_A, other.Q_A))
            for name in (k for k in other.layers if k in Q)
        )
        if not (flat or (same and bool(own.Q_S) == bool(other.Q_S))):
            raise ValueError(
                f"the {curvature.facts.method} curvature has another eigenbasis than this index; expected one fitted "
                "with the same data, labels and seed, or an identity. Build an index for it: TrainIndex.build(...)."
            )
        return curvature


def _rotated(groups: list[Pairs], curvature: Kronecker) -> Pairs:
    """ã = a Q_A and g̃ = g Q_S, refusing layers applied more than once an example."""
    for name, pair in ((name, pair) for group in groups for name, pair in group.items()):
        if pair.a.shape[1] != 1:
            raise ValueError(
                f"layer {name!r} is applied {pair.a.shape[1]} times an example; this index expects once (T = 1). "
                "Use inflib.influence for such models."
            )
    rotated = {}
    for name, (a, g) in groups[0].items():  # one group: batches are kept apart only where T differs
        if name in curvature.Q_S:
            a, g = (
                a.to(curvature.Q_A[name]) @ curvature.Q_A[name],
                g.to(curvature.Q_S[name]) @ curvature.Q_S[name],
            )
        rotated[name] = Pair(a, g)
    return rotated


def _rows(pair: Pair, rows: Sequence[int] | Tensor | None) -> Pair:
    if rows is None:
        return pair
    at = torch.as_tensor(rows, device=pair.a.device)
    if at.dtype != torch.bool:  # a mask indexes as it is
        at = at.long()
    return Pair(pair.a[at], pair.g[at])


def _count(pairs: Pairs) -> int:
    return next(iter(pairs.values())).a.shape[0]
