"""A pass with queries at low rank, some pairs of which meet exactly as well: a note says how far the two are apart."""

from __future__ import annotations

from numbers import Integral, Real

import numpy as np
import torch
from torch import Tensor

from ..ahead import Ahead, in_bytes, telling
from ..batches import double, walk
from ..contractions import Pairs, contract
from ..curvature import Curvature, Damping
from ..finite import check_numbers
from ..hooks import Pair
from ..kronecker import Kronecker
from ..layers import OneHot
from ..notes import note
from ..order import Same
from ..proof import Proof
from ..queries import Preconditioned, check_pairs, examples_in, picked
from .folded import Folded
from .leading import leading_queries
from .terms import term_queries

PAIRS, QUERIES = 1000, 16  # of a query and an example, and how many queries, on which the error is measured

LowRank = int | float | None


class LowRankNote(UserWarning):
    """Says which ranks scores were made with, and how far they are from exact ones on pairs drawn by chance."""


def check_low_rank(low_rank: LowRank, otherwise: bool) -> None:
    """Raise ValueError for what ``low_rank=`` may not be, or where scores are asked for in another way."""
    if low_rank is None:
        return
    whole = isinstance(low_rank, Integral) and not isinstance(low_rank, bool) and int(low_rank) >= 1
    share = isinstance(low_rank, Real) and not isinstance(low_rank, Integral) and 0 < float(low_rank) < 1
    if not (whole or share):
        raise ValueError(
            f"low_rank={low_rank!r}; expected a rank, a whole number from 1, or a tolerance between 0 and 1. Try "
            "low_rank=16, or leave it out: scores are then exact."
        )
    if otherwise:
        raise ValueError(
            "low_rank= came with keep=('token',), relative= or solved queries; expected plain scores. Leave it out: "
            "scores are then exact."
        )


class LowRankQueries:
    """Queries as short sums of products: what ``contract`` is to preconditioned ones, without a matrix."""

    def __init__(
        self, queries: list[Pairs], curvature: Kronecker, damping: Damping, low_rank: int | float, max_bytes: int
    ):
        self.low_rank, inverse = low_rank, curvature.inverse_eigenvalues(damping)
        self.folded = {k: _folded([found[k] for found in queries], k, curvature, inverse[k], low_rank) for k in inverse}
        self.shapes = curvature.shapes
        self._draw = np.random.Generator(np.random.Philox(0))
        one = sum(x.nbytes for x in inverse.values())
        asked = sorted(self._draw.permutation(len(self))[: min(QUERIES, max(1, max_bytes // one))])
        self._asked = torch.tensor(asked)  # whose pairs are computed exactly as well
        (self._exact,) = Preconditioned(picked(queries, self._asked), curvature, damping, max_bytes)
        self._seen: list[tuple[Tensor, Tensor]] = []  # exact and low-rank scores of pairs drawn by chance
        self._counted = [0, 0]  # multiplications, these and those of exact contractions

    @classmethod
    def of(
        cls, queries: list[Pairs], curvature: Curvature, damping: Damping, low_rank: int | float, max_bytes: int
    ) -> LowRankQueries:
        """For a curvature that has eigenvalues; TypeError for another."""
        if not isinstance(curvature, Kronecker):
            raise TypeError(
                f"low_rank= with a {type(curvature).__name__} curvature; expected one with eigenvalues, ekfac or kfac. "
                "Leave it out: scores are then exact."
            )
        return cls(queries, curvature, damping, low_rank, max_bytes)

    def scores(self, proof: Proof, train: Same, keep_layers: bool, progress: bool) -> Tensor:
        """Scores (Q, N), or (Q, N, L), of a pass over the training side; says how exact they are."""
        columns = []
        walked = walk(train, name="train", progress=progress, what="influence")
        held = sum(x.a.nbytes + x.g.nbytes for x in self.folded.values())
        ahead = Ahead("influence", proof.batches, 1, lambda: f"queries of low rank take {in_bytes(held)}")
        for batch in telling(walked, ahead if progress else None):
            found = proof.pairs(batch)
            columns.append(-self.contract(found, keep_layers))  # one minus sign for −∇ℓ
            if not bool(columns[-1].isfinite().all()):
                check_pairs(found, batch.index)
                check_numbers("summed scores", {", ".join(self.folded): columns[-1]})
            self._watch(found, columns[-1], proof.batches)
            del found  # or it would be held while the next batch is recorded
        self._say()
        return torch.cat(columns, dim=1)

    def __len__(self) -> int:
        return len(next(iter(self.folded.values())).ranks)

    def contract(self, found: Pairs, keep_layers: bool) -> Tensor:
        """⟨P_q, Σ_t g_t a_tᵀ⟩ of the short sums, (Q, b[, L])."""
        each = [folded.contract(found[name]) for name, folded in self.folded.items()]
        return torch.stack(each, dim=2) if keep_layers else sum(each)  # type: ignore[return-value]

    # --- how far from exact -------------------------------------------------------------------------------------

    def _watch(self, found: Pairs, scores: Tensor, batches: int | None) -> None:
        """Compare some of a batch's scores (Q, b), or (Q, b, L), with exact ones: of ``batches``, PAIRS in all."""
        b = examples_in(found)
        for name, folded in self.folded.items():
            (o, i), T = self.shapes[name], found[name].a.shape[1]
            self._counted[0] += b * folded.multiplications(T)
            self._counted[1] += b * (len(self) + (T if T > 1 else 0)) * o * i  # of one position no gradient is built
        count = min(b, -(-PAIRS // ((batches or 32) * len(self._asked))))
        n = torch.from_numpy(self._draw.permutation(b)[:count])
        some = {k: Pair(*(x[n.to(x.device)] for x in found[k])) for k in self.folded}
        came = scores[self._asked.to(scores.device)][:, n.to(scores.device)]
        self._seen.append((-contract(self._exact, some), came if came.ndim == 2 else came.sum(-1)))

    def errors(self) -> tuple[float, float]:
        """(root mean square error over root mean square score, correlation) on the pairs seen."""
        exact, came = (double(torch.cat([x.flatten() for x in part])) for part in zip(*self._seen, strict=True))
        both = torch.corrcoef(torch.stack([exact, came]))
        return float((came - exact).norm() / exact.norm()), float(both[0, 1])

    def _say(self) -> None:
        """Warn (LowRankNote) what the short sums cost in precision, and what they save."""
        ranks = ", ".join(f"{_span(x.ranks)} of {min(self.shapes[name])} ({name!r})" for name, x in self.folded.items())
        error, correlation = self.errors()
        count, share = sum(x.numel() for x, _ in self._seen), self._counted[0] / self._counted[1]
        dear = " Exact scores would cost less: ask fewer at a time, a lower rank, or leave it out." if share > 1 else ""
        note(
            f"low_rank={self.low_rank}: ranks {ranks}. On {count:,} pairs of a query and an example drawn by chance, "
            f"the error is {error:.2g} of the scores' root mean square, the correlation with exact ones "
            f"{correlation:.6g}. Meeting the examples took {share:.2g} of the multiplications of exact scores.{dear}",
            LowRankNote,
        )


def _folded(pairs: list[Pair], name: str, curvature: Kronecker, inverse: Tensor, low_rank: int | float) -> Folded:
    """One layer's queries, of one position in all batches or of more in some."""
    if isinstance(pairs[0].a, OneHot):
        raise ValueError(
            f"low_rank=: layer {name!r} is an embedding, whose inputs are token numbers; expected layers that "
            "multiply. Leave low_rank= out, or fit without that layer, layers=."
        )
    if all(pair.a.shape[1] == 1 for pair in pairs):
        whole = Pair(*(torch.cat(side) for side in zip(*pairs, strict=True)))
        return term_queries(whole, name, curvature, inverse, low_rank)
    return Folded.joined([leading_queries(pair, name, curvature, inverse, low_rank) for pair in pairs])


def _span(ranks: tuple[int, ...]) -> str:
    low, high = min(ranks), max(ranks)
    return f"{low}" if low == high else f"{low} to {high}"
