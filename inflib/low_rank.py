"""All pairs of queries and examples in layers applied once: 1/(Λ + λ) as a short sum of products.

There a gradient is g aᵀ, a score Σ_jk (g̃_q ⊙ g̃_n)_j (ã_q ⊙ ã_n)_k / (Λ_jk + λ). With 1/(Λ + λ) ≈ Σ_r u_r v_rᵀ it is

    Σ_r ⟨Q_S (u_r ⊙ g̃_q), g_n⟩ ⟨Q_A (v_r ⊙ ã_q), a_n⟩                      r (o + i) multiplications in place of o · i

and no training example is rotated. u and v come from the singular value decomposition of W ⊙ 1/(Λ + λ), the weights
W_jk = w_j w_k divided out again: w_j = Σ_k Λ_jk is what g̃_j² is on average, w_k = Σ_j Λ_jk what ã_k² is, so that
entries count as much as scores ask for them. What is left out bounds the error of one pair, |error| ≤ σ_{r+1} ·
‖(g̃_q ⊙ g̃_n) / w‖ · ‖(ã_q ⊙ ã_n) / w‖; what it comes to is measured on pairs drawn by chance.
"""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral, Real

import numpy as np
import torch
from torch import Tensor

from .batches import cached_bytes, chunks, double, walk
from .blocks import Factor
from .contractions import Pairs
from .curvature import Curvature, Damping
from .ekfac import rotate
from .finite import check_numbers
from .hooks import Pair
from .kronecker import Kronecker
from .notes import note
from .order import Same
from .proof import Proof
from .queries import check_pairs

FLOOR = 1e-6  # of the largest weight: what an input that is always 0 weighs
PAIRS = 1000  # of a query and an example, on which the error is measured

LowRank = int | float | None


class LowRankNote(UserWarning):
    """Says which ranks scores were made with, and how far they are from exact ones on pairs drawn by chance."""


@dataclass(frozen=True)
class Terms:
    """1/(Λ + λ) of one layer ≈ U Vᵀ, with the weights it is closest in and the largest singular value left out."""

    U: Tensor  # (o, r)
    V: Tensor  # (i, r)
    w_S: Tensor  # (o,)
    w_A: Tensor  # (i,)
    left: float

    @property
    def rank(self) -> int:
        return self.U.shape[1]


def terms(values: Tensor, inverse: Tensor, low_rank: int | float) -> Terms:
    """The terms of 1/(Λ + λ) ``inverse`` (o, i): so many, or as many as leave that share of the weighted norm out."""
    Λ, target = double(values), double(inverse)
    w_S, w_A = _weights(Λ.sum(1)), _weights(Λ.sum(0))
    weighted = w_S[:, None] * target * w_A  # (o, i)
    swap = weighted.shape[0] > weighted.shape[1]
    M = weighted.T if swap else weighted
    squares, left = torch.linalg.eigh(M @ M.T)  # of the shorter side: half the digits, of which a few are asked
    σ, left = squares.clamp_min(0).sqrt().flip(0), left.flip(1)
    r = min(_rank(σ, low_rank), int((σ > 1e-7 * σ[0]).sum()))
    first, second = left[:, :r], M.T @ left[:, :r]  # M ≈ first secondᵀ
    U, V = (second, first) if swap else (first, second)
    rest = float(σ[r]) if r < len(σ) else 0.0
    return Terms((U / w_S[:, None]).to(inverse), (V / w_A[:, None]).to(inverse), w_S.to(inverse), w_A.to(inverse), rest)


def _weights(sums: Tensor) -> Tensor:
    largest = float(sums.max())
    return sums.clamp_min(FLOOR * largest) / largest if largest > 0 else torch.ones_like(sums)


def _rank(σ: Tensor, low_rank: int | float) -> int:
    if isinstance(low_rank, Integral):
        return min(int(low_rank), len(σ))
    rest = σ.square().flip(0).cumsum(0).flip(0).sqrt()  # of σ_r, σ_{r+1}, ...
    return max(1, int((rest > low_rank * rest[0]).sum()))


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
            "low_rank= came with keep=('token',), relative= or solved queries; expected plain scores of layers applied "
            "once an example. Leave it out: scores are then exact."
        )


class LowRankQueries:
    """Queries with their terms folded in: what ``contract`` is to preconditioned ones, in r (o + i) multiplications."""

    def __init__(self, queries: list[Pairs], curvature: Kronecker, damping: Damping, low_rank: int | float):
        self.curvature, self.inverse = curvature, curvature.inverse_eigenvalues(damping)
        self.terms = {k: terms(curvature.eigenvalues[k], x, low_rank) for k, x in self.inverse.items()}
        self.low_rank = low_rank
        self.rotated: dict[str, Pair] = {}  # ã_q (Q, i) and g̃_q (Q, o)
        self.folded: dict[str, Pair] = {}  # Q_A (v_r ⊙ ã_q) (Q · r, i) and Q_S (u_r ⊙ g̃_q) (Q · r, o)
        for name, t in self.terms.items():
            a, g = (torch.cat([self._once(name, found[name])[side] for found in queries]) for side in (0, 1))
            Q_A, Q_S = curvature.Q_A.get(name), curvature.Q_S.get(name)
            self.rotated[name] = Pair(rotate(a, Q_A), rotate(g, Q_S))
            self.folded[name] = Pair(_folded(self.rotated[name].a, t.V, Q_A), _folded(self.rotated[name].g, t.U, Q_S))
        self._draw = np.random.Generator(np.random.Philox(0))
        self._seen: list[tuple[Tensor, Tensor]] = []  # exact and low-rank scores of pairs drawn by chance

    @classmethod
    def of(cls, queries: list[Pairs], curvature: Curvature, damping: Damping, low_rank: int | float) -> LowRankQueries:
        """For a curvature that has eigenvalues; TypeError for another."""
        if not isinstance(curvature, Kronecker):
            raise TypeError(
                f"low_rank= with a {type(curvature).__name__} curvature; expected one with eigenvalues, ekfac or kfac. "
                "Leave it out: scores are then exact."
            )
        return cls(queries, curvature, damping, low_rank)

    def scores(self, proof: Proof, train: Same, keep_layers: bool, progress: bool) -> Tensor:
        """Scores (Q, N), or (Q, N, L), of a pass over the training side; says how exact they are."""
        columns = []
        for batch in walk(train, name="train", progress=progress, what="influence"):
            found = proof.pairs(batch)
            columns.append(-self.contract(found, keep_layers))  # one minus sign for −∇ℓ
            if not bool(columns[-1].isfinite().all()):
                check_pairs(found, batch.index)
                check_numbers("summed scores", {", ".join(self.terms): columns[-1]})
            self._watch(found, columns[-1], proof.batches)
            del found  # or it would be held while the next batch is recorded
        self._say()
        return torch.cat(columns, dim=1)

    def __len__(self) -> int:
        return len(next(iter(self.rotated.values())).a)

    def contract(self, found: Pairs, keep_layers: bool) -> Tensor:
        """⟨P_q, Σ_t g_t a_tᵀ⟩ to the terms' precision, (Q, b[, L])."""
        each = [self._layer(name, found[name]) for name in self.terms]
        return torch.stack(each, dim=2) if keep_layers else sum(each)  # type: ignore[return-value]

    def _layer(self, name: str, pair: Pair) -> Tensor:
        folded, r = self.folded[name], self.terms[name].rank
        a, g = pair.a.to(folded.a), pair.g.to(folded.g)
        b, T = a.shape[:2]
        parts = []
        for rows in chunks(b, T * len(folded.a) * a.element_size(), cached_bytes(a)):
            x = a[rows].flatten(0, 1) @ folded.a.T  # (b · T, Q · r)
            x *= g[rows].flatten(0, 1) @ folded.g.T
            parts.append(x.reshape(-1, T, len(self), r).sum((1, 3)))
        return torch.cat(parts).T

    def _once(self, name: str, pair: Pair) -> Pair:
        if pair.a.shape[1] != 1:
            raise ValueError(
                f"low_rank=: layer {name!r} has {pair.a.shape[1]} positions in a query (or a set of queries); expected "
                "layers applied once an example. Leave low_rank= out, or fit without that layer, layers=."
            )
        like = self.inverse[name]
        return Pair(pair.a[:, 0].to(like), pair.g[:, 0].to(like))

    # --- how far from exact -------------------------------------------------------------------------------------

    def _watch(self, found: Pairs, scores: Tensor, batches: int | None) -> None:
        """Compare some of a batch's scores (Q, b), or (Q, b, L), with exact ones: of ``batches``, PAIRS in all."""
        b = scores.shape[1]
        if next(iter(found.values())).a.shape[1] != 1:
            return
        count = -(-PAIRS // (batches or 32))
        q, n = (torch.from_numpy(self._draw.integers(0, size, count)).to(scores.device) for size in (len(self), b))
        exact = torch.stack([self._exact(name, found[name], q, n)[0] for name in self.terms]).sum(0)
        came = scores[q, n] if scores.ndim == 2 else scores[q, n].sum(-1)
        self._seen.append((-exact, came))

    def _exact(self, name: str, pair: Pair, q: Tensor, n: Tensor) -> tuple[Tensor, Tensor]:
        """Exact ⟨P_q, g_n a_nᵀ⟩ of pairs (q, n), and the bound on what the terms miss, (count,) each."""
        held, t, inverse = self.rotated[name], self.terms[name], self.inverse[name]
        a, g = pair.a[n, 0].to(inverse), pair.g[n, 0].to(inverse)
        a = rotate(a, self.curvature.Q_A.get(name)) * held.a[q]
        g = rotate(g, self.curvature.Q_S.get(name)) * held.g[q]
        return ((g @ inverse) * a).sum(1), t.left * (g / t.w_S).norm(dim=1) * (a / t.w_A).norm(dim=1)

    def errors(self) -> tuple[float, float]:
        """(root mean square error over root mean square score, correlation) on the pairs seen."""
        exact, came = (double(torch.cat(part)) for part in zip(*self._seen, strict=True))
        both = torch.corrcoef(torch.stack([exact, came]))
        return float((came - exact).norm() / exact.norm()), float(both[0, 1])

    def _say(self) -> None:
        """Warn (LowRankNote) what the terms cost in precision."""
        if not self._seen:
            return
        ranks = ", ".join(f"{t.rank} of {min(self.inverse[k].shape)} ({k!r})" for k, t in self.terms.items())
        error, correlation = self.errors()
        count = sum(len(exact) for exact, _ in self._seen)
        note(
            f"low_rank={self.low_rank}: ranks {ranks}. On {count:,} pairs of a query and an example drawn by chance, "
            f"the error is {error:.2g} of the scores' root mean square, the correlation with exact ones "
            f"{correlation:.6g}.",
            LowRankNote,
        )


def _folded(x: Tensor, factor: Tensor, Q: Factor | None) -> Tensor:
    """Q (factor_r ⊙ x_q), (Q · r, d), of x (Q, d) and factor (d, r)."""
    spread = (x[:, None, :] * factor.T).flatten(0, 1)
    return spread if Q is None else spread @ Q.T
