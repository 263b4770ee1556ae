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
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor, nn

from ..allocation import allocating, of_layer
from ..batches import BYTE_BUDGET, Data, example_positions
from ..contractions import kept
from ..curvature import Curvature, Damping
from ..finite import check_numbers
from ..kronecker import Kronecker
from ..objectives import Measurement, Objective
from ..order import check_order
from ..placement import plain_numbers
from ..queries import Sets
from ..scoring import check_relative, divided
from ..solvers import Solution
from .basis import ask_with, asked, check_basis, in_basis
from .building import build_store
from .fitting import record_bytes
from .products import layer_scores, own
from .search import Found, strongest
from .sides import Side, held_bytes, held_examples, rotated, summed, take
from .store import Store
from .survey import survey


@dataclass(frozen=True, eq=False)
class TrainIndex:
    """Rotated gradients of N training examples, layer by layer. Made by ``TrainIndex.build``; see ``inflib.save``."""

    curvature: Kronecker  # whose eigenbasis the gradients are in, and the default for queries
    held: Side

    @overload
    @classmethod
    def build(
        cls, model: nn.Module, objective: Objective, train: Data, curvature: Kronecker, *,
        dtype: torch.dtype | None = None, progress: bool = True,
    ) -> TrainIndex: ...  # fmt: skip

    @overload
    @classmethod
    def build(
        cls, model: nn.Module, objective: Objective, train: Data, curvature: Kronecker, *, path: str | Path,
        axes: float | int = 1.0, bits: int = 1, components: int | None = None, damping: Damping = None,
        sample: int = 1024, seed: int = 0, shard: int | None = None, part: tuple[int, int] = (0, 1),
        append: bool = False, progress: bool = True,
    ) -> Store: ...  # fmt: skip

    @classmethod
    @plain_numbers
    @allocating("index")
    def build(
        cls,
        model: nn.Module,
        objective: Objective,
        train: Data,
        curvature: Kronecker,
        *,
        dtype: torch.dtype | None = None,
        path: str | Path | None = None,
        axes: float | int | None = None,
        bits: int | None = None,
        components: int | None = None,
        damping: Damping = None,
        sample: int = 1024,
        seed: int = 0,
        shard: int | None = None,
        part: tuple[int, int] = (0, 1),
        append: bool = False,
        progress: bool = True,
    ) -> TrainIndex | Store:
        """One pass over ``train``. Memory: ``TrainIndex.bytes_needed``, said before anything is built.

        dtype: what gradients are kept in; None for the model's (float32 at least). torch.bfloat16 takes half the memory
        and rounds each kept number to three digits, torch.float16 to four, but to 0 below 6e-8.

        With ``path``, a folder, a ``Store`` in it instead, compressed and never more than a shard of it in memory:

        axes:       the share of each layer's axes that are kept (a float), or their number (an int): the largest Λ.
        bits:       1, 2, 4, 8 or 16, for each kept coordinate.
        components: so many principal components of the axes in place of them, of ``sample`` examples drawn by ``seed``.
        damping:    λ₀, at which gradients are whitened; any other can be asked for afterwards.
        shard:      how many examples a file holds; None for files of 256 MiB.
        part:       (which, of how many): this call writes every so-many-th shard, for several processes with one path.
        append:     ``train`` are new examples, numbered on from the store's, which answers as before until all are in.

        A build that was killed goes on where it stopped when the same call is made again, to the same bytes. Layers
        with T = 1 keep their vectors, exact. Raises TypeError for a curvature without an eigenbasis, ValueError for
        data that changes its order or a folder with another store, BlockingIOError while another process builds it,
        OSError where the disk is full, FloatingPointError for gradients too large for dtype (float16: above 65504).
        """
        check_basis(curvature)
        _check_dtype(dtype)
        train = check_order(train, "train")
        if path is None:
            _check_exact(axes=axes, bits=bits, components=components, append=append or None)
            return cls(curvature, rotated(model, objective, train, "train", curvature, None, dtype, (), progress))
        if dtype is not None:
            raise ValueError(f"dtype={dtype} with a store at path={str(path)!r}; expected bits=, 1, 2, 4, 8 or 16.")
        chosen: dict[str, Any] = dict(
            axes=1.0 if axes is None else axes, bits=1 if bits is None else bits, components=components
        )
        options: dict[str, Any] = dict(damping=damping, sample=sample, seed=seed, shard=shard, part=part, append=append)
        return build_store(model, objective, train, curvature, Path(path), **chosen, **options, progress=progress)

    @staticmethod
    def bytes_needed(
        model: nn.Module,
        train: Data,
        curvature: Kronecker,
        dtype: torch.dtype | None = None,
        *,
        axes: float | int | None = None,
        bits: int | None = None,
        components: int | None = None,
    ) -> int:
        """What an index of ``train`` will hold, in bytes: (o + i) numbers an example in a layer with T = 1, else o · i.

        With axes, bits or components: what a store will take on disk. Costs a walk over the data and a forward pass of
        its batch with the longest examples.
        """
        check_basis(curvature)
        _check_dtype(dtype)
        known = survey(model, train, curvature)
        if axes is None and bits is None and components is None:
            numbers = {k: o + i if known.once[k] else o * i for k, (o, i) in curvature.shapes.items()}
            return known.examples * sum(numbers.values()) * (dtype or known.dtype).itemsize
        options: dict[str, Any] = dict(
            axes=1.0 if axes is None else axes, bits=1 if bits is None else bits, components=components
        )
        return known.examples * record_bytes(curvature, known, **options)

    def __len__(self) -> int:
        """N, the number of training examples."""
        return held_examples(next(iter(self.held.values())))

    @property
    def nbytes(self) -> int:
        """Bytes held for the training side."""
        return held_bytes(self.held)

    def restrict(self, layers: Iterable[str]) -> TrainIndex:
        """The index of some of its layers only, by their exact names: the same gradients, held once."""
        curvature = self.curvature.restrict([layers] if isinstance(layers, str) else layers)
        return TrainIndex(curvature, {name: self.held[name] for name in curvature.layers})

    @plain_numbers
    @allocating("scores")
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
        what = "log_likelihood" if measurement is None else measurement
        whole = [name for name, held in self.held.items() if isinstance(held, Tensor)]
        side = rotated(model, objective, queries, "queries", self.curvature, what, None, whole, False)
        return summed(side, sets)

    @plain_numbers
    @allocating("scores")
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
        curvature, axes = in_basis(self.curvature, self.held, curvature), kept(keep, ("layer",))
        if layers is not None:
            curvature = curvature.restrict([layers] if isinstance(layers, str) else layers)
        rows = None if examples is None else example_positions(examples, len(self))
        side, weights = asked(self.curvature, prepared, curvature, damping)
        each = []  # (Q, N) a layer
        for name in curvature.layers:
            with of_layer(name):
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
        found = ask_with(self, model, objective, queries, curvature, damping, measurement, sets, max_bytes)
        return self.scores(*found, **options)

    def search(
        self,
        model: nn.Module,
        objective: Objective,
        queries: Data,
        train: Any = None,
        k: int = 10,
        *,
        candidates: int | None = None,
        curvature: Curvature | None = None,
        damping: Damping = None,
        layers: Iterable[str] | None = None,
        measurement: Measurement | None = None,
        relative: str | None = None,
        largest: bool = True,
        max_bytes: int = BYTE_BUDGET,
    ) -> Found:
        """The k strongest proponents of each query, as ``Store.search``; exact without ``train`` and ``candidates``."""
        found = ask_with(self, model, objective, queries, curvature, damping, measurement, None, max_bytes)
        return strongest(self.scores(*found, layers=layers, relative=relative, max_bytes=max_bytes), k, largest)

    @plain_numbers
    def self_influence(self, curvature: Kronecker | None = None, damping: Damping = None) -> Tensor:
        """∇ℓ_nᵀ (C + λ)⁻¹ ∇ℓ_n of every training example, (N,)."""
        inverse = in_basis(self.curvature, self.held, curvature).inverse_eigenvalues(damping)
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

    def _sizes(self, relative: str, curvature: Kronecker, damping: Damping, rows: Tensor | None) -> Tensor:
        """The squares of what relative scores are divided by, (N',)."""
        inverse = curvature.inverse_eigenvalues(damping)
        weights = inverse if relative == "loss" else {k: x.square() for k, x in inverse.items()}
        held = {k: self.held[k] if rows is None else take(self.held[k], rows) for k in weights}
        return sum(own(held[k], x) for k, x in weights.items())  # type: ignore[return-value]


def _check_dtype(dtype: Any) -> None:
    """Raise TypeError for a dtype that gradients cannot be kept in: whole numbers would cut them off at the point."""
    kept = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    if dtype is not None and dtype not in kept:
        raise TypeError(
            f"dtype={dtype!r}; expected None (the model's) or one of {', '.join(map(str, kept))}, in which gradients "
            "are kept. For fewer bits than 16 build a store: path=, bits=8."
        )


def _check_exact(**options: object) -> None:
    given = [f"{key}={value!r}" for key, value in options.items() if value is not None]
    if given:
        raise ValueError(f"{', '.join(given)} without path=; expected the folder that a store is to be built in.")
