"""Store: an index that is kept on disk in few bits, for more training examples than memory holds.

It answers what a TrainIndex answers, approximately (axes.py, bits.py), with a bound for every score (certificate.py);
``search`` takes the first candidates by it and computes those exactly (search.py). A store is linear in the gradient,
so one store serves any damping, layer subset, measurement, and any curvature with its eigenbasis.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..batches import BYTE_BUDGET, Data, example_positions
from ..contractions import kept as kept_axes
from ..curvature import Curvature, Damping, resolve_damping
from ..finite import check_numbers
from ..hooks import Pair
from ..kronecker import Kronecker
from ..objectives import Measurement, Objective
from ..order import check_order
from ..placement import plain_numbers
from ..queries import Sets
from ..scoring import divided
from ..solvers import Solution
from .basis import ask_with, asked, in_basis
from .certificate import ROUNDINGS, Asked, ask
from .lengths import check_by_loss, check_own, norms, squares
from .manifest import Manifest, Shard
from .products import layer_scores
from .records import Kept, record, whitening
from .search import Found, search
from .shards import read_shard
from .sides import Rotated, Side, rotated, summed

Question = Asked | tuple[Rotated, Tensor]  # of a layer: packed, or its queries and 1/(Λ' + λ)


@dataclass(frozen=True, eq=False)
class Store:
    """N training examples in few bits each, in a folder. Made by ``TrainIndex.build``, read by ``load_index``."""

    folder: Path
    curvature: Kronecker  # whose eigenbasis the store is in, and the default for queries
    kept: Kept  # what of each layer; None for layers with T = 1, whose vectors are kept
    damping: dict[str, float]  # λ₀, at which gradients are whitened
    bits: int
    manifest: Manifest
    _checked: set[str] = field(default_factory=set)  # shards whose checksum this process has seen to be right

    def __len__(self) -> int:
        """N, the number of training examples."""
        return self.manifest.examples

    @property
    def record(self) -> np.dtype:
        """What is kept of one example."""
        dtype = next(iter(self.curvature.eigenvalues.values())).dtype
        return record(self.kept, self.curvature.shapes, self.bits, dtype)

    @property
    def nbytes(self) -> int:
        """Bytes kept for the training side, on disk."""
        return len(self) * self.record.itemsize

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
        whole = [name for name, axes in self.kept.items() if axes is not None]
        what = "log_likelihood" if measurement is None else measurement
        side = rotated(model, objective, queries, "queries", self.curvature, what, None, whole, False)
        return summed(side, sets)

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
        """The store's scores of queries, prepared or solved, (Q, N[, L]); arguments as for ``TrainIndex.scores``.

        Approximate: at one bit, sizes come out smaller by a common factor. See ``bounds`` and ``search``.
        relative: "loss", by ``self_influence``, at the damping the store was built at alone; "weights" it cannot tell.

        Raises ValueError or FileNotFoundError for a shard that is missing, damaged or another store's, by its name.
        """
        axes = kept_axes(keep, ("layer",))
        found = self._answer(prepared, curvature, damping, layers, examples, relative, max_bytes, bounds=False)
        return found if axes.layer else found.sum(-1)

    def bounds(
        self,
        prepared: Side | Solution,
        curvature: Kronecker | None = None,
        damping: Damping = None,
        *,
        layers: Iterable[str] | None = None,
        examples: Sequence[int] | Tensor | None = None,
        relative: str | None = None,
        max_bytes: int = BYTE_BUDGET,
    ) -> Tensor:
        """For each of ``scores``, how far it is from the exact score at most, (Q, N)."""
        return self._answer(prepared, curvature, damping, layers, examples, relative, max_bytes, bounds=True).sum(-1)

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
        """``prepare`` and ``scores`` in one; a refined curvature, or an exact one, is solved with for the queries."""
        found = ask_with(self, model, objective, queries, curvature, damping, measurement, sets, max_bytes)
        return self.scores(*found, layers=layers, keep=keep, relative=relative, max_bytes=max_bytes)

    def search(
        self,
        model: nn.Module,
        objective: Objective,
        queries: Data,
        train: Any,
        k: int = 10,
        *,
        candidates: int = 100,
        curvature: Curvature | None = None,
        damping: Damping = None,
        layers: Iterable[str] | None = None,
        measurement: Measurement | None = None,
        relative: str | None = None,
        largest: bool = True,
        audit: int = 0,
        rate: float = 0.01,
        seed: int = 0,
        max_bytes: int = BYTE_BUDGET,
    ) -> Found:
        """The k strongest proponents of each query, their scores exact; opponents with largest=False.

        train:      the examples the store was built from, to be fetched by number: a list of batches, or a data set.
        candidates: how many of the first by the store are computed exactly, a forward and backward pass of these.
        audit:      so many examples drawn by ``seed`` are, too: for a tighter bound, which an example drawn by chance
                    breaks with probability ``rate`` at most (199 for .01, see search.py).

        What is returned is ranked exactly, and says for each query whether it is *proved* that no other example belongs
        among the k, or for how many that remains open. Raises ValueError where ``train`` is not what the store holds.
        """
        prepared, kronecker, damping = ask_with(
            self, model, objective, queries, curvature, damping, measurement, None, max_bytes
        )
        options: dict[str, Any] = dict(curvature=kronecker, damping=damping, layers=layers, relative=relative)
        options |= dict(largest=largest, audit=audit, rate=rate, seed=seed, max_bytes=max_bytes)
        return search(self, model, objective, prepared, train, k, candidates, **options)

    @plain_numbers
    def self_influence(
        self, curvature: Kronecker | None = None, damping: Damping = None, *, layers: Iterable[str] | None = None
    ) -> Tensor:
        """∇ℓ_nᵀ (C + λ₀)⁻¹ ∇ℓ_n of every training example, (N,), exact, at the damping the store was built at.

        Raises ValueError for another damping, or a curvature with other eigenvalues, where a layer is kept in bits.
        """
        return torch.cat([self._sizes(records, curvature, damping, layers) for records in self._chosen(None)])

    @plain_numbers
    def norms(self, layers: Iterable[str] | None = None) -> Tensor:
        """‖∇ℓ_n‖ of every training example in all layers, or in those named, (N,)."""
        names = list(self.kept) if layers is None else [layers] if isinstance(layers, str) else list(layers)
        chosen = self.curvature.restrict(names).layers
        parts = []
        for shard in self.manifest.shards:
            records = self._read(shard)
            parts.append(sum(norms(records[self._field(name)], self.kept[name]).square() for name in chosen))
        return torch.cat(parts).sqrt()  # type: ignore[arg-type]

    # --- shard by shard --------------------------------------------------------------------------------------------

    @plain_numbers
    def _answer(
        self,
        prepared: Side | Solution,
        curvature: Kronecker | None,
        damping: Damping,
        layers: Iterable[str] | None,
        examples: Sequence[int] | Tensor | None,
        relative: str | None,
        max_bytes: int,
        bounds: bool,
    ) -> Tensor:
        """Scores or their bounds, (Q, N', L)."""
        check_by_loss(relative)
        questions = self._questions(prepared, curvature, damping, layers)
        columns = []
        for records in self._chosen(examples):
            answer = self._bounds if bounds else self._scores
            each = {name: answer(name, question, records, max_bytes) for name, question in questions.items()}
            check_numbers("scores", each)
            columns.append(torch.stack(list(each.values()), dim=-1))
            if relative is not None:
                columns[-1] = divided(columns[-1], self._sizes(records, curvature, damping, layers).to(columns[-1]))
        first = next(iter((prepared.x if isinstance(prepared, Solution) else prepared).values()))
        like = first.a if isinstance(first, Pair) else first
        if not columns:
            return like.new_zeros(len(like), 0, len(questions))
        found = torch.cat(columns, dim=1).to(like.device)
        return found if examples is None else found[:, self._order(examples)]

    def _questions(
        self, prepared: Side | Solution, curvature: Kronecker | None, damping: Damping, layers: Iterable[str] | None
    ) -> dict[str, Question]:
        curvature = in_basis(self.curvature, self.kept, curvature)
        if layers is not None:
            curvature = curvature.restrict([layers] if isinstance(layers, str) else layers)
        questions: dict[str, Question] = {}
        side, weights = asked(self.curvature, prepared, curvature, damping)
        for name in curvature.layers:
            axes, G, inverse = self.kept[name], side[name], weights[name]
            if axes is None:
                questions[name] = (G, inverse)
            else:
                assert isinstance(G, Tensor)  # prepare made it so
                white = whitening(self.curvature.eigenvalues[name], self.damping[name])
                questions[name] = ask(G, inverse, white, axes, self.bits)
        return questions

    def _scores(self, name: str, question: Question, records: np.ndarray, max_bytes: int) -> Tensor:
        fields = records[self._field(name)]
        if isinstance(question, Asked):
            return -question.scores(torch.from_numpy(fields["codes"]), torch.from_numpy(fields["scale"].copy()))
        G, inverse = question
        return -layer_scores(G, self._vectors(records, name), inverse, max_bytes).cpu()

    def _bounds(self, name: str, question: Question, records: np.ndarray, max_bytes: int) -> Tensor:
        fields = records[self._field(name)]
        if isinstance(question, Asked):
            return question.bounds(*(torch.from_numpy(fields[key].copy()) for key in ("scale", "norm", "r", "rest")))
        G, inverse = question
        queries = G.g.norm(dim=(1, 2)) * G.a.norm(dim=(1, 2)) if isinstance(G, Pair) else G.flatten(1).norm(dim=1)
        eps = ROUNDINGS * torch.finfo(inverse.dtype).eps * float(inverse.max())
        return torch.outer(eps * queries.cpu(), norms(fields, None))

    def _sizes(
        self, records: np.ndarray, curvature: Kronecker | None, damping: Damping, layers: Iterable[str] | None
    ) -> Tensor:
        """Self-influences of a shard's records, (n,); ValueError for those that a store does not know."""
        chosen = in_basis(self.curvature, self.kept, curvature)
        if layers is not None:
            chosen = chosen.restrict([layers] if isinstance(layers, str) else layers)
        check_own(self.curvature, chosen, self.kept, self.damping, resolve_damping(chosen, damping))
        inverse = chosen.inverse_eigenvalues(damping)
        each = [squares(records[self._field(k)], self.kept[k], self.bits, inverse[k]) for k in chosen.layers]
        return torch.stack(each).sum(0).to(next(iter(inverse.values())).dtype)

    def _vectors(self, records: np.ndarray, name: str) -> Pair:
        fields, like = records[self._field(name)], self.curvature.eigenvalues[name]
        return Pair(*(torch.from_numpy(fields[key].copy()).to(like.device)[:, None] for key in ("a", "g")))

    def _field(self, name: str) -> str:
        return str(list(self.kept).index(name))

    def _chosen(self, examples: Sequence[int] | Tensor | None) -> Iterator[np.ndarray]:
        """The records of each shard, or those of its examples that are asked for."""
        rows = None if examples is None else example_positions(examples, len(self)).cpu().numpy()
        for shard in self.manifest.shards:
            if rows is None:
                yield self._read(shard)
            else:
                there = rows[(rows >= shard.start) & (rows < shard.start + shard.examples)] - shard.start
                if len(there):
                    yield self._read(shard)[there]

    def _order(self, examples: Sequence[int] | Tensor) -> Tensor:
        """Where each example asked for is among the columns, which come shard by shard."""
        rows = example_positions(examples, len(self)).cpu()
        starts = rows.new_tensor([shard.start for shard in self.manifest.shards])
        return torch.argsort(torch.argsort(torch.searchsorted(starts, rows, right=True), stable=True))

    def _read(self, shard: Shard) -> np.ndarray:
        return read_shard(self.folder, shard, len(self.manifest.shards), self.record, self._checked)
