"""TrainIndex: the training side prepared once, so that a new query, damping or layer subset costs no pass over it.

The index keeps training gradients in the eigenbasis, in which every curvature with that basis is diagonal:

    score(q, n) = −⟨G̃_q / (Λ + λ), G̃_n⟩          G̃ = Q_Sᵀ (Σ_t g_t a_tᵀ) Q_A

A layer applied once an example (T = 1) is kept as the two vectors ã_n = Q_Aᵀ a_n and g̃_n = Q_Sᵀ g_n, a layer applied at
many positions as the matrix G̃_n, (o, i) however long the sequence. Exact: the same numbers as ``influence``. The
identity is diagonal in every basis, so one index also answers with K-FAC and with plain gradient dot products.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..batches import BYTE_BUDGET, Batch, Data, accumulator, example_positions, tensors, walk
from ..contractions import kept
from ..curvature import Curvature, Damping, check_stacks, layers_of, resolve_damping
from ..finite import check_numbers
from ..hooks import Matrices, Pair, forward
from ..kronecker import Kronecker
from ..objectives import Measurement, Objective
from ..order import check_order
from ..placement import plain_numbers
from ..positions import masks_of
from ..queries import Sets, precondition
from ..scoring import check_relative, divided
from ..solvers import Solution
from .products import layer_scores, own
from .sides import Side, check_basis, held_examples, rotated, summed, take


@dataclass(frozen=True, eq=False)
class TrainIndex:
    """Rotated gradients of N training examples, layer by layer. Made by ``TrainIndex.build``; see ``inflib.save``."""

    curvature: Kronecker  # whose eigenbasis the gradients are in, and the default for queries
    held: Side

    @classmethod
    @plain_numbers
    def build(
        cls,
        model: nn.Module,
        objective: Objective,
        train: Data,
        curvature: Kronecker,
        *,
        dtype: torch.dtype | None = None,
        progress: bool = True,
    ) -> TrainIndex:
        """One pass over ``train``. Memory: ``TrainIndex.bytes_needed``, said before anything is built.

        dtype: what gradients are kept in; None for the model's (float32 at least). torch.bfloat16 takes half the memory
        and rounds each kept number to three digits, torch.float16 to four, but to 0 below 6e-8. Raises TypeError for a
        curvature without an eigenbasis, ValueError for data that changes its order, FloatingPointError for gradients
        too large for dtype (float16: above 65504).
        """
        check_basis(curvature)
        train = check_order(train, "train")
        return cls(curvature, rotated(model, objective, train, "train", curvature, None, dtype, {}, progress))

    @staticmethod
    def bytes_needed(model: nn.Module, train: Data, curvature: Kronecker, dtype: torch.dtype | None = None) -> int:
        """What an index of ``train`` will hold, in bytes: (o + i) numbers an example in a layer with T = 1, else o · i.

        Costs a walk over the data and a forward pass of its batch with the longest examples.
        """
        check_basis(curvature)
        layers, N, longest = layers_of(model, curvature), 0, None
        for batch in walk(train, name="train", progress=False):
            N += batch.size
            if longest is None or _numbers(batch) > _numbers(longest):
                longest = batch
        assert longest is not None  # walk refuses data without an example
        masks_of(longest.inputs)
        recording = forward(model, layers, longest.inputs, longest.size, raw=True)
        each = 0
        for name, (o, i) in curvature.shapes.items():
            read, modules = layers[name].kind.activations, [module for module, _ in recording.calls[name]]
            a = [read(module, x) for module, x in zip(modules, recording.inputs[name], strict=True)]  # (R, T, i) each
            once = sum(len(x) * x.shape[1] for x in a) == longest.size
            each += (o + i if once else o * i) * (dtype or accumulator(a[0].dtype)).itemsize
        return N * each

    def __len__(self) -> int:
        """N, the number of training examples."""
        return held_examples(next(iter(self.held.values())))

    @property
    def nbytes(self) -> int:
        """Bytes held for the training side."""
        tensors = [x for held in self.held.values() for x in (held if isinstance(held, Pair) else (held,))]
        return sum(x.numel() * x.element_size() for x in tensors)

    @plain_numbers
    def prepare(
        self,
        model: nn.Module,
        objective: Objective,
        queries: Data,
        measurement: Measurement | None = None,
        sets: Sets = None,
    ) -> Side:
        """The query side, captured and rotated: give it to ``scores`` again and again with other dampings.

        sets: as for ``influence``: one row for each set of queries, their sum.
        """
        queries = check_order(queries, "queries")
        what = measurement or "log_likelihood"
        side = rotated(model, objective, queries, "queries", self.curvature, what, None, self.held, False)
        return summed(side, sets)

    @plain_numbers
    def scores(
        self,
        prepared: Side | Solution,
        curvature: Kronecker | None = None,
        damping: Damping = None,
        *,
        layers: Iterable[str] | None = None,
        examples: Sequence[int] | Tensor | None = None,
        keep: Iterable[str] = (),
        relative: str | None = None,
        max_bytes: int = BYTE_BUDGET,
    ) -> Tensor:
        """Scores of prepared queries, (Q, N), or (Q, N, L) with keep=("layer",); exactly those of ``influence``.

        prepared:  from ``prepare``, or what ``precondition`` found with any curvature of these layers, a refined or an
                   exact one: the training side is the same for all, and damping is in it already.
        curvature: another one in the same eigenbasis (K-FAC beside EK-FAC), or an identity; None for the index's own.
        layers:    exact names of some of the layers; None for all. Relative damping is each layer's own either way.
        examples:  positions of some training examples, (N',) columns in that order, or a bool mask (N,); None for all.
        relative:  "loss" or "weights", as for ``influence``; by ``curvature`` at ``damping``, also of solved queries.

        Raises TypeError or ValueError for examples that are neither, or not there; FloatingPointError for scores that
        are not finite.
        """
        check_relative(relative)
        curvature, axes = self._in_basis(curvature), kept(keep, ("layer",))
        if layers is not None:
            curvature = curvature.restrict([layers] if isinstance(layers, str) else layers)
        rows = None if examples is None else example_positions(examples, len(self))
        side, weights = self._asked(prepared, curvature, damping)
        each = []  # (Q, N) a layer
        for name in curvature.layers:
            training = self.held[name] if rows is None else take(self.held[name], rows)
            each.append(-layer_scores(side[name], training, weights[name], max_bytes))  # one minus sign for −∇ℓ
            check_numbers("scores", {name: each[-1]})
        scores: Tensor = torch.stack(each, dim=-1) if axes.layer else sum(each)  # type: ignore[assignment]
        return scores if relative is None else divided(scores, self._sizes(relative, curvature, damping, rows))

    def influence(
        self,
        model: nn.Module,
        objective: Objective,
        queries: Data,
        curvature: Curvature | None = None,
        damping: Damping = None,
        *,
        layers: Iterable[str] | None = None,
        measurement: Measurement | None = None,
        keep: Iterable[str] = (),
        sets: Sets = None,
        relative: str | None = None,
        max_bytes: int = BYTE_BUDGET,
    ) -> Tensor:
        """``prepare`` and ``scores`` in one: what ``inflib.influence`` gives, without a pass over the training data.

        A refined curvature, or an exact one, is solved with for the queries alone; ``precondition`` and ``scores`` in
        its place tell each query's residual. ``relative`` is then by the index's own curvature.
        """
        options: dict[str, Any] = {"layers": layers, "keep": keep, "relative": relative, "max_bytes": max_bytes}
        if curvature is None or isinstance(curvature, Kronecker):
            prepared = self.prepare(model, objective, queries, measurement, sets)
            return self.scores(prepared, curvature, damping, **options)
        asked: dict[str, Any] = {"measurement": measurement, "sets": sets, "max_bytes": max_bytes, "progress": False}
        solved = precondition(model, objective, queries, curvature, damping, **asked)
        return self.scores(solved, None, resolve_damping(curvature, damping), **options)

    @plain_numbers
    def self_influence(self, curvature: Kronecker | None = None, damping: Damping = None) -> Tensor:
        """∇ℓ_nᵀ (C + λ)⁻¹ ∇ℓ_n of every training example, (N,)."""
        inverse = self._in_basis(curvature).inverse_eigenvalues(damping)
        each = {k: own(self.held[k], values) for k, values in inverse.items()}
        check_numbers("self-influences", each)
        return sum(each.values())  # type: ignore[return-value]

    @plain_numbers
    def norms(self, layers: Iterable[str] | None = None) -> Tensor:
        """‖∇ℓ_n‖ of every training example in all layers, or in those named, (N,)."""
        names = self.curvature.layers if layers is None else [layers] if isinstance(layers, str) else list(layers)
        ones = {k: torch.ones_like(self.curvature.eigenvalues[k]) for k in self.curvature.restrict(names).layers}
        each = {k: own(self.held[k], one) for k, one in ones.items()}
        check_numbers("squared norms", each)
        return sum(each.values()).sqrt()  # type: ignore[union-attr]

    def _asked(self, prepared: Side | Solution, curvature: Kronecker, damping: Damping) -> tuple[Side, Matrices]:
        """The query side in the eigenbasis, and what its coordinates are weighted with: 1 / (Λ + λ), or 1 if solved."""
        if not isinstance(prepared, Solution):
            return prepared, curvature.inverse_eigenvalues(damping)
        check_stacks(self.curvature, prepared.x)
        solved = self.curvature.rotate(prepared.x)
        return dict(solved), {name: torch.ones_like(x[0]) for name, x in solved.items()}

    def _sizes(self, relative: str, curvature: Kronecker, damping: Damping, rows: Tensor | None) -> Tensor:
        """The squares of what relative scores are divided by, (N',)."""
        inverse = curvature.inverse_eigenvalues(damping)
        weights = inverse if relative == "loss" else {k: x.square() for k, x in inverse.items()}
        held = {k: self.held[k] if rows is None else take(self.held[k], rows) for k in weights}
        return sum(own(held[k], x) for k, x in weights.items())  # type: ignore[return-value]

    def _in_basis(self, curvature: Kronecker | None) -> Kronecker:
        """The curvature, if the index's pairs are its eigenbasis coordinates."""
        if curvature is None:
            return self.curvature
        for name in curvature.layers:
            if name not in self.held:
                raise ValueError(f"layer {name!r} is not in this index, which has {list(self.held)}; build it anew.")
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
                "with the same data, labels, seed and sharing, or an identity. Build an index for it: TrainIndex.build."
            )
        return curvature


def _numbers(batch: Batch) -> int:
    """How many numbers one example's input has."""
    return sum(x.numel() for x in tensors(batch.inputs)) // batch.size
