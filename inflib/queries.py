"""The query side: what is asked about, gathered once, added up over sets where asked, and preconditioned.

    P_q = (C + diag λ)⁻¹ ∇m_q          P_s = (C + diag λ)⁻¹ Σ_{q in s} ∇m_q          (o, i) in each layer

Queries are few beside training examples, so the inverse is applied to them. A set of queries is one vector whatever
its size: the positions of its members, put in one row, are those of one example whose gradient is their sum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from operator import attrgetter

import torch
from torch import Tensor, nn

from .ahead import Ahead, in_bytes, telling
from .allocation import allocating, by_layer
from .batches import BYTE_BUDGET, Batch, Data, accumulator, chunks, length, walk
from .contractions import Pairs
from .curvature import Curvature, Damping, layers_of
from .ekfac import rotated_gradients
from .finite import check_finite, check_numbers, note_underflow
from .hooks import Matrices, Pair
from .implicit import Implicit
from .kronecker import Kronecker
from .layers import Layer
from .layers.onehot import in_one_row, joined
from .objectives import Measurement, Objective
from .order import Same, check_order
from .placement import plain_numbers
from .proof import Proof
from .solvers import Solution

HELD = 4  # preconditioned queries are held up to so many times ``max_bytes``
SOLVED = 6  # stacks that an iterative solver holds: v, x, r, z, p and C p

Sets = Sequence[int] | Tensor | str | None  # the set that each query belongs to, "all" for one of all


@plain_numbers
@allocating("scores")
def precondition(
    model: nn.Module,
    objective: Objective,
    queries: Data,
    curvature: Curvature,
    damping: Damping = None,
    *,
    measurement: Measurement | None = None,
    sets: Sets = None,
    max_bytes: int = BYTE_BUDGET,
    progress: bool = True,
) -> Solution:
    """(C + diag λ)⁻¹ ∇m of every query: give it to ``influence`` or to an index in place of queries.

    What a refined curvature has found is worth keeping: its solve walks over the data once a step. ``x`` holds stacks
    {layer: (Q, o, i)}, ``residual`` (Q,) how well each query's system is solved, ‖∇m − (C + λ) x‖ / ‖∇m‖, ``steps`` how
    many steps were taken; a direct solve has residual 0 and 0 steps. Arguments and errors as for ``influence``.
    """
    layers, queries = layers_of(model, curvature), check_order(queries, "queries")
    pairs = gather(
        model, layers, objective, queries, "queries", "log_likelihood" if measurement is None else measurement, progress
    )
    solved = list(Preconditioned(added_up(pairs, sets), curvature, damping, max_bytes).solutions())
    x = {k: torch.cat([part.x[k] for part in solved]) for k in layers}
    return Solution(x, torch.cat([part.residual for part in solved]), max(part.steps for part in solved))


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
    proof = Proof(model, layers, objective, measurement, batches=length(data))
    found: list[Pairs] = []
    for batch in walk(data, name=name, progress=progress, what=name):
        found.append(proof.pairs(batch))
        check_pairs(found[-1], batch.index)
        largest = {name: pair.g.abs().amax((1, 2)) for name, pair in found[-1].items()}
        dtype = accumulator(next(iter(found[-1].values())).g.dtype)
        note_underflow(f"{name}: example", largest, dtype, batch.start)
    return list(merge(found))


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
            yield {k: Pair(*(joined([f[k][side] for f in group], dim=0) for side in (0, 1))) for k in group[0]}


def check_pairs(found: Pairs, batch: int) -> None:
    """Raise FloatingPointError where a batch's activations or gradients are not finite."""
    numbers = {name: pair.a for name, pair in found.items() if isinstance(pair.a, Tensor)}  # an embedding's are ids
    check_finite("activations", numbers, batch)
    check_finite("output gradients", {name: pair.g for name, pair in found.items()}, batch)


def examples_in(found: Pairs) -> int:
    """The number of examples that these pairs are of."""
    return len(next(iter(found.values())).g)


# --- sets of queries --------------------------------------------------------------------------------------------


def added_up(queries: list[Pairs], sets: Sets) -> list[Pairs]:
    """One example for each set, whose gradient is the sum of its queries'; ``queries`` themselves for sets=None."""
    if sets is None:
        return queries
    at = set_numbers(sets, sum(examples_in(found) for found in queries))
    found: list[Pairs] = []
    for s in range(int(at.max()) + 1):
        members = picked(queries, (at == s).nonzero()[:, 0])
        found.append({k: Pair(*(_one_row([m[k][side] for m in members]) for side in (0, 1))) for k in members[0]})
    return found


def picked(queries: list[Pairs], rows: Tensor) -> list[Pairs]:
    """The queries of these numbers, ascending, in the groups they came in; some may be empty."""
    found, start = [], 0
    for some in queries:
        own = rows[(rows >= start) & (rows < start + examples_in(some))] - start
        found.append({k: Pair(p.a[own.to(p.a.device)], p.g[own.to(p.g.device)]) for k, p in some.items()})
        start += examples_in(some)
    return found


def set_numbers(sets: Sets, queries: int) -> Tensor:
    """``sets=`` as (Q,) int64 from 0 on, without a gap; ValueError or TypeError for anything else."""
    if isinstance(sets, str) and sets == "all":
        return torch.zeros(queries, dtype=torch.long)
    at = torch.as_tensor(sets, device="cpu") if not isinstance(sets, str) else torch.zeros(0)
    if at.is_floating_point() or at.dtype == torch.bool or at.shape != (queries,):
        came = f"{sets!r}" if isinstance(sets, str) else f"{at.dtype} of shape {tuple(at.shape)}"
        raise ValueError(
            f"sets came as {came}; expected one whole number for each of {queries} queries, the set it belongs to, or "
            "'all' for one set of all."
        )
    numbers = at.long().unique()
    if len(numbers) == 0 or not torch.equal(numbers, torch.arange(len(numbers))):
        raise ValueError(
            f"sets has the numbers {numbers.tolist()}; expected 0, 1, 2, … without a gap: row s of the scores is set "
            "s. Number them anew: torch.as_tensor(sets).unique(return_inverse=True)[1]."
        )
    return at.long()


def _one_row(parts: list[Tensor]) -> Tensor:
    """(n, T, d) of several T as (1, Σ n·T, d): all their positions as one example's."""
    return joined([in_one_row(x) for x in parts], dim=1)


# --- preconditioned ---------------------------------------------------------------------------------------------


def _matrices(pairs: Pairs) -> Matrices:
    """Every example's gradient, (b, o, i) in each layer."""
    return by_layer(pairs, lambda k: pairs[k].matrices())


class Preconditioned:
    """P = (C + λ)⁻¹ ∇m of all queries in their order, in groups of up to ``HELD · max_bytes``.

    Each group meets the whole training side in a pass of its own (``passes``): solving anew for each batch would cost
    more than the pass. Where solving is dear, without a Kronecker basis, there is one group, and as many queries share
    one solve as ``HELD · max_bytes`` holds: an iterative solver walks over its data once a step for all of them.
    """

    def __init__(self, queries: list[Pairs], curvature: Curvature, damping: Damping, max_bytes: int):
        self.curvature, self.damping = curvature, damping
        one = sum(o * i for o, i in curvature.shapes.values()) * next(iter(queries[0].values())).g.element_size()
        kronecker = isinstance(curvature, Kronecker)
        most = HELD * max_bytes // one if kronecker else None  # queries in a group
        self.together = None if kronecker else max(1, HELD * max_bytes // (SOLVED * one))  # queries in a solve
        self.groups: list[list[Pairs]] = []
        room = 0
        for found in queries:
            for rows in chunks(examples_in(found), 4 * one, max_bytes):  # a solve holds some four matrices a query
                part = {k: Pair(p.a[rows], p.g[rows]) for k, p in found.items()}
                if not self.groups or (most is not None and examples_in(part) > room):
                    self.groups.append([])
                    room = most or 0
                self.groups[-1].append(part)
                room -= examples_in(part)

    def __len__(self) -> int:
        return len(self.groups)

    def __iter__(self) -> Iterator[Matrices]:
        return map(attrgetter("x"), self.solutions())  # a generator would hold one while the next is solved

    def solutions(self) -> Iterator[Solution]:
        """Each group's P, with the relative residual of each query and the steps taken."""
        return map(self._solve, self.groups)

    def _solve(self, parts: list[Pairs]) -> Solution:
        if isinstance(self.curvature, Kronecker):
            solved = [Solution(x, *_directly(x)) for x in self._in_eigenbasis(self.curvature, parts)]
        else:
            solved = [self._solve_one(v) for v in self._joined(_matrices(part) for part in parts)]
        # sequences meet P by its columns (``contract``): laid out so once, not for every batch
        once = {k: pair.a.shape[1] == 1 for k, pair in parts[0].items()}

        def joined(k: str) -> Tensor:
            held = [P.x.pop(k) for P in solved]
            return torch.cat(held) if once[k] else torch.cat([x.mT for x in held]).mT

        x = by_layer(once, joined)
        return Solution(x, torch.cat([P.residual for P in solved]), max(P.steps for P in solved))

    def _solve_one(self, v: Matrices) -> Solution:
        if isinstance(self.curvature, Implicit):
            return self.curvature.solve_with_residual(v, self.damping)
        x = self.curvature.solve(v, self.damping)
        return Solution(x, *_directly(x))

    def _in_eigenbasis(self, curvature: Kronecker, parts: list[Pairs]) -> Iterator[Matrices]:
        """``curvature.solve``, with a query's few positions turned into the eigenbasis in place of its matrix."""
        inverse = curvature.inverse_eigenvalues(self.damping)
        for part in parts:

            def rotated(k: str) -> Tensor:
                pair = Pair(part[k].a.to(inverse[k]), part[k].g.to(inverse[k]))  # noqa: B023 (called at once)
                turned = rotated_gradients(pair, curvature.Q_S.get(k), curvature.Q_A.get(k))
                return torch.cat(list(turned)) * inverse[k]

            solved = curvature.rotate_back(by_layer(part, rotated))
            check_numbers("solution (C + λ)⁻¹ v", solved)
            yield solved

    def _joined(self, stacks: Iterator[Matrices]) -> Iterator[Matrices]:
        """The stacks as they come, or joined into as few as may be solved together."""
        if self.together is None:
            yield from stacks
            return
        held = list(stacks)
        whole = {k: torch.cat([v.pop(k) for v in held]) for k in list(held[0])}
        rows = len(next(iter(whole.values())))
        for some in chunks(rows, 1, self.together):
            yield {k: x[some] for k, x in whole.items()}


def _directly(x: Matrices) -> tuple[Tensor, int]:
    """The residuals (K,) and the steps of a solve that is none in steps."""
    first = next(iter(x.values()))
    return first.new_zeros(len(first)), 0


def passes(
    groups: Preconditioned | list[Matrices], train: Same, what: str, progress: bool
) -> Iterator[tuple[Matrices, Iterator[Batch]]]:
    """Each group of preconditioned queries with a pass over the training side, which must keep its order."""
    solved = iter(groups)
    for at in range(len(groups)):
        P = next(solved)
        which = f"{what} ({at + 1} of {len(groups)})" if len(groups) > 1 else what
        walked = walk(train, name="train", progress=progress, what=which)
        ahead = Ahead(what, length(train), len(groups), _holding(P))
        yield P, telling(walked, ahead if progress and at == 0 else None)
        del P  # before the next group is made


def _holding(P: Matrices) -> Callable[[], str]:
    held = sum(x.nbytes for x in P.values())
    return lambda: f"preconditioned queries take {in_bytes(held)}"
