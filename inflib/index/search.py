"""The strongest training examples of each query: first candidates by an index's scores, then exact scores of these.

Candidate n is among the first by the store; its exact score takes a forward and a backward pass of that example alone.
What is not a candidate has at most its store's score plus its bound: where that is below the k-th exact score for all
of them, the k are *proved* to be the strongest of all.

That bound holds for every pair, and is many times what most errors are. A tighter one is *audited*: some examples are
drawn by chance and computed exactly too, and c is the share of its bound that an audited error reaches at most, but for
a share ``rate`` of them. Any example drawn in the same way is then farther off than c bounds with that probability at
most (split conformal prediction: Papadopoulos et al. 2002), whatever the errors' distribution is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from ..batches import BYTE_BUDGET
from ..contractions import join, kept
from ..curvature import Damping
from ..finite import check_numbers
from ..kronecker import Kronecker
from ..layers import OneHot
from ..objectives import Objective
from ..placement import plain_numbers
from ..scoring import divided
from ..solvers import Solution
from .basis import asked, in_basis
from .examples import pick
from .products import layer_scores
from .sides import Side, captured, rotated_some


class Known(Protocol):
    """An index: N examples in the eigenbasis of a curvature."""

    @property
    def curvature(self) -> Kronecker: ...

    def __len__(self) -> int: ...


class Searchable(Known, Protocol):
    """An index with scores that may be approximate, bounds for them, and self-influences."""

    def scores(
        self, prepared: Side | Solution, curvature: Kronecker | None, damping: Damping, *,
        layers: Iterable[str] | None, relative: str | None, max_bytes: int,
    ) -> Tensor: ...  # fmt: skip

    def bounds(
        self, prepared: Side | Solution, curvature: Kronecker | None, damping: Damping, *,
        layers: Iterable[str] | None, relative: str | None, max_bytes: int,
    ) -> Tensor: ...  # fmt: skip

    def self_influence(
        self, curvature: Kronecker | None, damping: Damping, *, layers: Iterable[str] | None
    ) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class Found:
    """The k strongest of each of Q queries, strongest first."""

    examples: Tensor  # (Q, k) int64: their numbers
    scores: Tensor  # (Q, k) exact, in the units of ``influence``
    places: Tensor  # (Q, k) int64: where each stands in the index's own order, from 1
    open: Tensor  # (Q,) int64: of how many other examples the bound does not say that they are weaker than the k-th
    candidates: int  # how many were computed exactly for each query, at least
    total: int  # N
    audited: Tensor | None = None  # (Q,) int64: as ``open``, by the audited bound; None without an audit
    rate: float = 0.0  # the share of all examples that may err by more than the audited bound, on average at most

    @property
    def proved(self) -> Tensor:
        """(Q,) bool: no other example of all N belongs among the k."""
        return self.open == 0

    def __repr__(self) -> str:
        k = self.examples.shape[1]
        lines = [f"the {k} strongest of {self.total:,} examples, {self.candidates:,} computed exactly a query"]
        for q, (places, left) in enumerate(zip(self.places.tolist(), self.open.tolist(), strict=True)):
            last = f"the last of them in place {max(places):,} of the index's order" if places else "none"
            sure = "proved" if left == 0 else f"not proved for {left:,} of the rest"
            if self.audited is not None and left:
                sure += f", at a rate of {self.rate:g} open for {int(self.audited[q]):,}"
            lines.append(f"  query {q}: {last}; {sure}")
        return "\n".join(lines)


@plain_numbers
def search(
    index: Searchable,
    model: nn.Module,
    objective: Objective,
    prepared: Side | Solution,
    train: Any,
    k: int,
    candidates: int,
    *,
    curvature: Kronecker | None = None,
    damping: Damping = None,
    layers: Iterable[str] | None = None,
    relative: str | None = None,
    largest: bool = True,
    audit: int = 0,
    rate: float = 0.01,
    seed: int = 0,
    max_bytes: int = BYTE_BUDGET,
) -> Found:
    """The k strongest of each prepared query; see ``Store.search``."""
    N, layers = len(index), layers if layers is None or isinstance(layers, str) else list(layers)
    k, candidates = _checked(k, candidates, N)
    drawn = _drawn(N, audit, rate, seed)
    how: dict[str, Any] = dict(layers=layers, relative=relative, max_bytes=max_bytes)
    near = index.scores(prepared, curvature, damping, **how).cpu()  # (Q, N)
    bound = index.bounds(prepared, curvature, damping, **how).cpu()
    sign = 1 if largest else -1
    first = (sign * near).topk(candidates, dim=1).indices  # (Q, candidates)
    first = torch.cat([first.flatten(), drawn]).unique()  # (U,) those of all queries
    about = index, model, objective, prepared, train, first.tolist(), curvature, damping, layers
    exact = rescore(*about, max_bytes=max_bytes).cpu()
    if relative is not None:
        exact = divided(exact, index.self_influence(curvature, damping, layers=layers).cpu()[first])
    _check_same(exact, near[:, first], bound[:, first], first)
    top = (sign * exact).topk(k, dim=1)  # (Q, k)
    rest = torch.ones(N, dtype=torch.bool, device="cpu")
    rest[first] = False
    shares = (1.0, _share(exact, near, bound, first, drawn, rate))
    left = [(sign * near + c * bound)[:, rest] >= top.values[:, -1:] for c in shares]
    examples = first[top.indices]
    places = torch.stack(
        [(sign * row > sign * row[at, None]).sum(1) + 1 for row, at in zip(near, examples, strict=True)]
    )
    proved, audited = (could.sum(1) for could in left)  # of (Q, N − U)
    found = Found(examples, sign * top.values, places, proved, candidates, N)
    return replace(found, audited=audited, rate=rate) if len(drawn) else found


def _drawn(N: int, audit: int, rate: float, seed: int) -> Tensor:
    """Examples drawn by chance to be audited, (m,); ValueError where they are too few for the rate."""
    if audit and not (0 < rate < 1 and (audit + 1) * rate >= 1 - 1e-9):
        raise ValueError(
            f"audit={audit} examples with rate={rate}; expected 0 < rate < 1 and audit ≥ 1 / rate − 1: so many have to "
            "be seen before one in 1 / rate can be spoken of. Raise one of them, or leave audit at 0."
        )
    draw = np.random.Generator(np.random.Philox(seed))
    return torch.from_numpy(draw.choice(N, min(audit, N), replace=False))


def _share(exact: Tensor, near: Tensor, bound: Tensor, known: Tensor, drawn: Tensor, rate: float) -> Tensor:
    """c (Q, 1): what share of its bound an audited error reaches at most, but for a share ``rate`` of them."""
    if not len(drawn):
        return near.new_ones(len(near), 1)
    error = (exact[:, torch.searchsorted(known, drawn)] - near[:, drawn]).abs()
    ratio = error / bound[:, drawn].clamp_min(torch.finfo(bound.dtype).tiny)
    most = math.ceil((len(drawn) + 1) * (1 - rate) - 1e-9)
    return ratio.sort(dim=1).values[:, min(most, len(drawn)) - 1, None]


def strongest(scores: Tensor, k: int, largest: bool) -> Found:
    """The k strongest by scores (Q, N) that are exact."""
    N = scores.shape[1]
    top = scores.topk(_checked(k, max(k, N), N)[0], dim=1, largest=largest)
    examples = top.indices.cpu()
    places = (torch.zeros_like(examples) + 1).cumsum(1)
    return Found(examples, top.values.cpu(), places, examples.new_zeros(len(examples)), N, N)


def rescore(
    index: Known,
    model: nn.Module,
    objective: Objective,
    prepared: Side | Solution,
    train: Any,
    examples: list[int],
    curvature: Kronecker | None = None,
    damping: Damping = None,
    layers: Iterable[str] | None = None,
    *,
    keep: Iterable[str] = (),
    max_bytes: int = BYTE_BUDGET,
) -> Tensor:
    """Exact scores of some training examples (ascending), (Q, U[, L]): a forward and backward pass of these alone."""
    chosen, axes = in_basis(index.curvature, index.curvature.layers, curvature), kept(keep, ("layer",))
    if layers is not None:
        chosen = chosen.restrict([layers] if isinstance(layers, str) else layers)
    side, weights = asked(index.curvature, prepared, chosen, damping)
    columns: list[Tensor] = []
    own = index.curvature.restrict(chosen.layers)
    batches = list(pick(train, examples, len(index)))
    for _, found in captured(model, objective, batches, "train", own):
        each = {}
        for name, pair in found.items():
            # a gradient of more positions than rows is better added up first
            few = not isinstance(pair.a, OneHot) and pair.a.shape[1] <= min(own.shapes[name])
            some = rotated_some(pair, own, name, once=few)
            each[name] = torch.cat([-layer_scores(side[name], G, weights[name], max_bytes) for G in some], dim=1)
        check_numbers("scores", each)
        columns.append(torch.stack(list(each.values()), dim=-1))
    scores = join(columns, kept(("layer",)))
    return scores if axes.layer else scores.sum(-1)


def _checked(k: int, candidates: int, N: int) -> tuple[int, int]:
    if not 1 <= k <= candidates:
        raise ValueError(f"k={k} with candidates={candidates}; expected 1 ≤ k ≤ candidates.")
    return min(k, N), min(candidates, N)


def _check_same(exact: Tensor, near: Tensor, bound: Tensor, examples: Tensor) -> None:
    """Raise ValueError where an exact score is farther from the index's than any example of the index can be."""
    worst = ((exact - near).abs() / bound.clamp_min(torch.finfo(bound.dtype).tiny)).amax(0)
    if len(worst) and float(worst.max()) > 1:
        n = int(examples[worst.argmax()])
        raise ValueError(
            f"example {n} of train is not the one that the index holds: its exact score is {float(worst.max()):.3g} "
            "times as far from the index's as its norms allow; expected the examples the index was built from, in "
            "their order, and the model and objective of then."
        )
