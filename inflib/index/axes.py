"""Which coordinates of a gradient a store keeps: the axes with the largest Λ, or principal components of these.

    t̃ = G̃ / √(Λ + λ₀)                      half-whitened: at damping λ₀ a score is −⟨t̃_q, t̃_n⟩
    y = G̃_q √(Λ + λ₀) / (Λ' + λ)           the query's side, for any Λ' and λ: the score is −⟨y, t̃_n⟩
    z = t̃_J, or P t̃_J                      what is kept: the axes J, or k components of them, P Pᵀ = I
    rest = ‖t̃ − what z stands for‖         what is not, by its length

Whitening makes axes alike, so that many of them in few bits say more than few in many. The components are those of a
sample of training examples: without them, which axes are kept depends on the curvature alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..batches import double


@dataclass(frozen=True, eq=False)
class Axes:
    """What is kept of one layer's half-whitened gradient, of D = o · i numbers in row-major order."""

    at: Tensor  # (K,) int64, ascending: the axes J
    spread: Tensor  # (k,) float32: how far each kept coordinate spreads over the examples, from Λ or the sample
    P: Tensor | None  # (k, K) orthonormal rows; None where z is t̃_J itself
    size: int  # D

    @property
    def count(self) -> int:
        """k, how many coordinates are kept."""
        return len(self.spread)

    def coordinates(self, t: Tensor) -> Tensor:
        """z (B, k) of half-whitened gradients t (B, D), or of queries."""
        some = self._some(t)
        return some if self.P is None else some @ self.P.to(t).T

    def rest(self, t: Tensor, z: Tensor) -> Tensor:
        """The length of what z (B, k) leaves out of t (B, D), (B,); a sum of squares, so that nothing cancels."""
        left = t.square() @ self._outside(t)
        if self.P is not None:
            left = left + (self._some(t) - z @ self.P.to(t)).square().sum(1)
        return left.sqrt()

    def to(self, device: torch.device) -> Axes:
        """The same on another device."""
        P = None if self.P is None else self.P.to(device)
        return Axes(self.at.to(device), self.spread.to(device), P, self.size)

    def _some(self, t: Tensor) -> Tensor:
        return t if len(self.at) == self.size else t.index_select(1, self.at)

    def _outside(self, t: Tensor) -> Tensor:
        mask = t.new_ones(self.size)
        mask[self.at] = 0
        return mask


def largest(eigenvalues: Tensor, axes: float | int) -> Tensor:
    """The positions of the largest Λ (o, i), row-major, ascending: a share of them (a float) or a number (an int)."""
    D = eigenvalues.numel()
    K = min(D, axes) if isinstance(axes, int) else max(1, round(axes * D))
    return eigenvalues.flatten().argsort(descending=True, stable=True)[:K].sort().values


def by_eigenvalue(eigenvalues: Tensor, damping: float, axes: float | int) -> Axes:
    """The axes with the largest Λ, and as their spread √(Λ / (Λ + λ₀)), which is what Λ expects of them."""
    at = largest(eigenvalues, axes)
    chosen = double(eigenvalues.flatten()[at])
    return Axes(at, _spread(chosen / (chosen + damping)), None, eigenvalues.numel())


def by_components(plain: Axes, sample: Tensor, components: int) -> Axes:
    """The ``components`` directions in which the sample's z (n, K) is largest, by its uncentred second moment."""
    exact = double(sample)
    squares, U = torch.linalg.eigh(exact @ exact.T)  # (n, n): the sample is smaller than K
    at = squares.argsort(descending=True)[:components]
    P, _ = torch.linalg.qr(exact.T @ U[:, at])  # (K, k)
    spread = _spread((exact @ P).square().mean(0))
    return Axes(plain.at, spread.to(sample.device), P.T.contiguous().to(sample), plain.size)


def _spread(squares: Tensor) -> Tensor:
    """√ of mean squares (k,), kept off 0: an axis that never moves in the sample may still move."""
    root = squares.sqrt().float()
    return root.clamp_min(float(root.max()) * 1e-6 or 1.0)
