"""L-BFGS for many functions at once: each row of u (M, D) descends on its own function, all in one evaluation a step.

    u ← u − t H g          H the inverse Hessian that the last pairs s = Δu, y = Δg of the row imply, t = 1, ½, ¼, ...

Made for the proximal objectives of pbrf.py: M problems that share their data, in coordinates where every Hessian is
near the identity, so that a full step is nearly always taken. Source: Nocedal 1980, "Updating quasi-Newton matrices
with limited storage".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

HISTORY = 50  # pairs kept of each row
HALVINGS = 20
PATIENCE = 20
HALVED = 50  # steps within which a gradient's smallest norm must halve, or the value fall
STALLED = 1e-6  # by this share of all its fall
Function = Callable[
    [Tensor, Tensor], tuple[Tensor, Tensor]
]  # u (m, D), which rows (m,) → values (m,), gradients (m, D)


class Minimum(NamedTuple):
    """Where M descents ended."""

    u: Tensor  # (M, D)
    gradient_norm: Tensor  # relative to that at the start, (M,)
    steps: int


def minimise(function: Function, start: Tensor, tolerance: float, max_steps: int) -> Minimum:
    """Descend from ``start`` (M, D) until each gradient's norm is ``tolerance`` times that at the start.

    A row also stops where its value no longer falls, as on a kink: by less than tolerance² of all its fall over
    ``PATIENCE`` steps, or by no step along the gradient at all; and where in ``HALVED`` steps its gradient's norm does
    not halve and its value hardly falls, for then no number would do. Nothing is raised: the gradient norms tell.
    """
    rows = torch.arange(len(start), device=start.device)  # those still going
    at = _Point(start, *function(start, rows))
    u, value, first = start.clone(), at.value, at.gradient.norm(dim=1)
    final, earlier = first.clone(), at.value + torch.inf  # gradient norms (M,); values PATIENCE steps ago (m,)
    least, before = first.clone(), torch.full_like(first, torch.inf)  # smallest norms, now and HALVED steps ago (M,)
    higher = value + torch.inf  # values HALVED steps ago (M,)
    stuck = torch.zeros_like(rows, dtype=torch.bool)
    memory = _Memory(known=stuck.clone())
    step = 0
    while True:
        norm = at.gradient.norm(dim=1)
        u[rows], final[rows] = at.u, norm
        going = (norm > tolerance * first[rows]) & (memory.known | ~stuck)
        if step % PATIENCE == 0:
            going &= earlier - at.value > tolerance**2 * (value[rows] - at.value)
            earlier = at.value
        least[rows] = torch.minimum(least[rows], norm)
        if step % HALVED == 0:
            falls = higher[rows] - at.value > STALLED * (value[rows] - at.value)
            going &= falls | (least[rows] <= 0.5 * before[rows])
            before[rows], higher[rows] = least[rows], at.value
        rows, at, stuck, earlier = rows[going], at.take(going), stuck[going], earlier[going]
        memory.take(going)
        if len(rows) == 0 or step == max_steps:
            return Minimum(u, final / first.clamp_min(torch.finfo(u.dtype).tiny), step)
        new, stuck = _line_search(function, at, -memory.times(at.gradient), rows)
        memory.forget(stuck)  # a bad direction; the next one is the gradient's own
        memory.add(new.u - at.u, new.gradient - at.gradient)
        at, step = new, step + 1


class _Point(NamedTuple):
    u: Tensor  # (m, D)
    value: Tensor  # (m,)
    gradient: Tensor  # (m, D)

    def take(self, rows: Tensor) -> _Point:
        return _Point(self.u[rows], self.value[rows], self.gradient[rows])


def _line_search(function: Function, at: _Point, direction: Tensor, rows: Tensor) -> tuple[_Point, Tensor]:
    """Each row's first step 1, ½, ¼, ... that lowers its value enough; rows without one stay, and are marked."""
    found = _Point(at.u.clone(), at.value.clone(), at.gradient.clone())
    slope = (direction * at.gradient).sum(1)
    norm = at.gradient.norm(dim=1)
    searching = torch.arange(len(rows), device=rows.device)
    size = 1.0
    for _ in range(HALVINGS):
        tried = at.u[searching] + size * direction[searching]
        value, gradient = function(tried, rows[searching])
        before = at.value[searching]
        lower = value <= before + 1e-4 * size * slope[searching]
        # near the minimum the fall in value drowns in rounding, and the gradient's is the better judge
        rounding = torch.finfo(value.dtype).eps * before.abs().clamp_min(1)
        level = (value <= before + rounding) & (gradient.norm(dim=1) < norm[searching])
        good = lower | level
        for kept, new in zip(found, (tried, value, gradient), strict=True):
            kept[searching[good]] = new[good]
        searching = searching[~good]
        if len(searching) == 0:
            break
        size /= 2
    stuck = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
    stuck[searching] = True
    return found, stuck


@dataclass
class _Memory:
    """The last pairs (s, y) of every row, and 1 / sᵀy, which is 0 where a pair says nothing about curvature."""

    known: Tensor  # whether a row has a pair that says something, (m,)
    pairs: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list)

    def add(self, s: Tensor, y: Tensor) -> None:
        sy = (s * y).sum(1)
        useful = sy > 1e-10 * s.norm(dim=1) * y.norm(dim=1)
        self.known = self.known | useful
        self.pairs.append((s, y, torch.where(useful, 1 / sy.where(useful, torch.ones_like(sy)), 0)))
        del self.pairs[:-HISTORY]

    def take(self, rows: Tensor) -> None:
        """Keep these rows only."""
        self.known = self.known[rows]
        if not bool(rows.all()):
            self.pairs = [(s[rows], y[rows], inverse[rows]) for s, y, inverse in self.pairs]

    def forget(self, rows: Tensor) -> None:
        self.known = self.known & ~rows
        for _, _, inverse in self.pairs:
            inverse[rows] = 0

    def times(self, gradient: Tensor) -> Tensor:
        """H g by the two loops; without pairs, g."""
        q, shares = gradient.clone(), []
        scale = torch.ones_like(gradient[:, 0])  # sᵀy / yᵀy of the newest useful pair
        for s, y, inverse in reversed(self.pairs):
            shares.append(inverse * (s * q).sum(1))
            q -= shares[-1][:, None] * y
        if self.pairs:
            s, y, inverse = self.pairs[-1]
            scale = torch.where(inverse > 0, (s * y).sum(1) / y.square().sum(1).clamp_min(1e-300), scale)
        q *= scale[:, None]
        for (s, y, inverse), share in zip(self.pairs, reversed(shares), strict=True):
            q += (share - inverse * (y * q).sum(1))[:, None] * s
        return q
