"""Curvatures whose matrix is held: all of it, or one block a layer (exact.py computes them).

A damped solve is Cholesky's where the matrix is positive definite, LU's with a warning where it is indefinite (a
Hessian away from a minimum), and an error where it is singular to rounding.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .curvature import (
    A_TENTH,
    Damping,
    Facts,
    IndefiniteWarning,
    Relative,
    check_stacks,
    describe,
    flatten,
    resolve_damping,
    unflatten,
)
from .finite import check_numbers
from .hooks import Matrices
from .notes import note
from .placement import plain_numbers


@dataclass(frozen=True, eq=False)
class Dense:
    """A curvature held as one (D, D) matrix over all layers: exact, and for small models (see ``gauss_newton``)."""

    matrix: Tensor
    shapes: dict[str, tuple[int, int]]
    facts: Facts
    default_damping: float | Relative | None = A_TENTH  # None: damping must be given

    def __post_init__(self) -> None:
        parts = self.matrix.split([o * i for o, i in self.shapes.values()])
        check_numbers("rows of the matrix", dict(zip(self.shapes, parts, strict=True)))

    @property
    def layers(self) -> tuple[str, ...]:
        return tuple(self.shapes)

    def mean_eigenvalues(self) -> dict[str, float]:
        """Each layer's trace over its size, the mean eigenvalue of its block."""
        parts = self.matrix.diagonal().split([o * i for o, i in self.shapes.values()])
        return {name: float(part.mean()) for name, part in zip(self.shapes, parts, strict=True)}

    @plain_numbers
    def matvec(self, v: Matrices) -> Matrices:
        """C v for stacks {layer: (K, o, i)}."""
        check_stacks(self, v)
        return unflatten(flatten(v, self.shapes).to(self.matrix) @ self.matrix, self.shapes)

    @plain_numbers
    def solve(self, v: Matrices, damping: Damping = None) -> Matrices:
        """(C + diag λ)⁻¹ v, λ constant in a layer; warns (IndefiniteWarning) when the damped matrix is indefinite."""
        check_stacks(self, v)
        numbers = resolve_damping(self, damping)
        damped = self.matrix.clone()
        rows = [self.matrix.new_full((o * i,), numbers[k]) for k, (o, i) in self.shapes.items()]
        damped.diagonal().add_(torch.cat(rows))
        solved = unflatten(_solve(damped, flatten(v, self.shapes).T.to(damped), self.facts.method).T, self.shapes)
        check_numbers("solution (C + λ)⁻¹ v", solved)
        return solved

    def to_dense(self) -> Tensor:
        """The matrix itself, (D, D)."""
        return self.matrix

    def __repr__(self) -> str:
        return describe(self)


@dataclass(frozen=True, eq=False)
class BlockDense:
    """A curvature held as one dense block per layer, zero between layers."""

    blocks: dict[str, Tensor]  # (o·i, o·i)
    shapes: dict[str, tuple[int, int]]
    facts: Facts
    default_damping: float | Relative | None = A_TENTH

    def __post_init__(self) -> None:
        check_numbers("block", self.blocks)

    @property
    def layers(self) -> tuple[str, ...]:
        return tuple(self.shapes)

    def mean_eigenvalues(self) -> dict[str, float]:
        """Each block's trace over its size."""
        return {name: float(block.diagonal().mean()) for name, block in self.blocks.items()}

    @plain_numbers
    def matvec(self, v: Matrices) -> Matrices:
        """C v for stacks {layer: (K, o, i)}."""
        check_stacks(self, v)
        return {k: (v[k].flatten(1).to(block) @ block).reshape(v[k].shape) for k, block in self.blocks.items()}

    @plain_numbers
    def solve(self, v: Matrices, damping: Damping = None) -> Matrices:
        """(C + diag λ)⁻¹ v, one solve per layer."""
        check_stacks(self, v)
        numbers, found = resolve_damping(self, damping), {}
        for name, block in self.blocks.items():
            damped = block.clone()
            damped.diagonal().add_(numbers[name])
            flat = _solve(damped, v[name].flatten(1).T.to(block), f"{self.facts.method}, layer {name!r}").T
            found[name] = flat.reshape(v[name].shape)
        check_numbers("solution (C + λ)⁻¹ v", found)
        return found

    def to_dense(self) -> Tensor:
        """The (D, D) block-diagonal matrix."""
        return torch.block_diag(*self.blocks.values())

    def __repr__(self) -> str:
        return describe(self)


def _solve(damped: Tensor, v: Tensor, what: str) -> Tensor:
    """damped⁻¹ v (D, K): Cholesky if positive definite, LU (and a warning) if indefinite, an error if singular."""
    factor, failed = torch.linalg.cholesky_ex(damped)
    rounding = len(damped) * torch.finfo(damped.dtype).eps
    if not bool(failed):
        pivots = factor.diagonal().square()
        if float(pivots.min()) > rounding * float(pivots.max()):
            return torch.cholesky_solve(v, factor)
    values = torch.linalg.eigvalsh(damped)
    low, high = float(values[0]), float(values.abs().max())
    if float(values.abs().min()) <= rounding * high:
        raise ValueError(
            f"{what}: the damped matrix is singular (eigenvalues from {low:.3g} to {high:.3g}); expected damping > 0 "
            "large enough to make it invertible, for instance relative(0.01)."
        )
    if low < 0:
        note(
            f"{what}: the damped matrix is indefinite (smallest eigenvalue {low:.3g}); its inverse raises the loss "
            "along those directions. Give more damping, or use gauss_newton, which has no negative eigenvalues.",
            IndefiniteWarning,
        )
    return torch.linalg.solve(damped, v)
