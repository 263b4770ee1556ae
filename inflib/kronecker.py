"""Identity, diagonal, K-FAC and EK-FAC as one class: an orthogonal basis and eigenvalues in it.

    C v = Q_S [Λ ⊙ (Q_Sᵀ V Q_A)] Q_Aᵀ          (C + λI)⁻¹ v = Q_S [(Q_Sᵀ V Q_A) / (Λ + λ)] Q_Aᵀ

in each layer, with different Λ and Q (Grosse et al. 2023, eq. 21): K-FAC has the products of its factors' eigenvalues,
EK-FAC the same basis with the eigenvalues that fit best, the diagonal and the identity have no basis.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from .ahead import Ahead, in_bytes
from .allocation import allocating, by_layer
from .batches import Data, accumulator, double, length
from .blocks import Blocks, Factor, whole
from .curvature import A_TENTH, Damping, Facts, Relative, check_known, check_stacks, describe, facts_of, resolve_damping
from .ekfac import corrected_eigenvalues, eigenbasis
from .finite import check_inverse, check_numbers, note_rounding
from .hooks import Matrices
from .kfac import accumulate_moments, check_uses
from .layers import LayerSpec
from .objectives import Objective
from .passes import Fit
from .placement import plain_numbers


@dataclass(frozen=True, eq=False)
class Kronecker:
    """C = (Q_S ⊗ Q_A) diag(Λ) (Q_S ⊗ Q_A)ᵀ in each layer, zero between layers; a missing Q means the axes."""

    eigenvalues: dict[str, Tensor]  # Λ (o, i)
    Q_S: dict[str, Factor]  # (o, o), columns eigenvectors; block-diagonal where S was cut into blocks
    Q_A: dict[str, Factor]  # (i, i)
    facts: Facts
    default_damping: float | Relative = A_TENTH

    def __post_init__(self) -> None:
        check_numbers("eigenvalues Λ", self.eigenvalues)

    @property
    def layers(self) -> tuple[str, ...]:
        return tuple(self.eigenvalues)

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """{layer: (o, i)}, i counting the bias's column."""
        return {name: (values.shape[0], values.shape[1]) for name, values in self.eigenvalues.items()}

    def mean_eigenvalues(self) -> dict[str, float]:
        """mean(Λ_layer): the unit of relative damping; to the last digit, for any number of threads."""
        rows = {name: double(values).sum(-1).tolist() for name, values in self.eigenvalues.items()}
        return {name: math.fsum(sums) / self.eigenvalues[name].numel() for name, sums in rows.items()}

    def restrict(self, layers: Iterable[str]) -> Kronecker:
        """The same curvature on some of its layers only."""
        wanted = set(layers)
        check_known(wanted, self.layers)
        keep = [name for name in self.layers if name in wanted]
        Q_S, Q_A = ({k: Q[k] for k in keep if k in Q} for Q in (self.Q_S, self.Q_A))
        return replace(self, eigenvalues={k: self.eigenvalues[k] for k in keep}, Q_S=Q_S, Q_A=Q_A)

    def rotate(self, v: Matrices) -> Matrices:
        """Q_Sᵀ V Q_A: the coordinates in the eigenbasis."""

        def rotated(k: str) -> Tensor:
            x = v[k].to(self.eigenvalues[k])
            x = self.Q_S[k].T @ x if k in self.Q_S else x
            return x @ self.Q_A[k] if k in self.Q_A else x

        return by_layer(v, rotated)

    def rotate_back(self, v: Matrices) -> Matrices:
        """Q_S V Q_Aᵀ: from eigenbasis coordinates to weight matrices."""

        def back(k: str) -> Tensor:
            x = self.Q_S[k] @ v[k] if k in self.Q_S else v[k]
            return x @ self.Q_A[k].T if k in self.Q_A else x

        return by_layer(v, back)

    @plain_numbers
    def matvec(self, v: Matrices) -> Matrices:
        """C v for stacks {layer: (K, o, i)}."""
        check_stacks(self, v)
        return self.rotate_back({k: x * self.eigenvalues[k] for k, x in self.rotate(v).items()})

    @plain_numbers
    def solve(self, v: Matrices, damping: Damping = None) -> Matrices:
        """(C + diag λ)⁻¹ v for stacks {layer: (K, o, i)}; see ``resolve_damping`` for what damping may be."""
        check_stacks(self, v)
        inverse = self.inverse_eigenvalues(damping)
        solved = self.rotate_back({k: x * inverse[k] for k, x in self.rotate(v).items()})
        check_numbers("solution (C + λ)⁻¹ v", solved)
        return solved

    def inverse_eigenvalues(self, damping: Damping = None) -> dict[str, Tensor]:
        """1 / (Λ + λ), (o, i) per layer; ValueError where λ = 0 meets a Λ that is singular to rounding."""
        numbers = resolve_damping(self, damping)
        return {name: self._inverse(name, numbers[name]) for name in self.layers}

    def _inverse(self, name: str, number: float) -> Tensor:
        values = self.eigenvalues[name]
        low, high = float(values.min()), float(values.max())
        if number == 0 and high == 0:
            raise ValueError(
                f"layer {name!r}: all its eigenvalues are 0 (no gradient reaches it, or their squares underflow "
                f"{values.dtype}), so relative damping is 0 too; expected damping > 0. Give it as a number, or "
                "leave the layer out with layers=, or use float64."
            )
        if number == 0 and low <= 10 * high * torch.finfo(values.dtype).eps:
            raise ValueError(
                f"layer {name!r}: damping 0 with a singular curvature (smallest eigenvalue {low:.3g}, largest "
                f"{high:.3g}); expected damping > 0. Leave it at None (0.1 · mean eigenvalue) or use relative(0.01)."
            )
        inverse = 1 / (values + number)
        check_inverse(name, inverse, values, number)
        return inverse

    @plain_numbers
    def to_dense(self) -> Tensor:
        """The (D, D) matrix, row-major in each (o, i), layers in order: for small models."""
        blocks = []
        for name, values in self.eigenvalues.items():
            block = torch.diag(values.flatten())
            if name in self.Q_S or name in self.Q_A:
                axes = [torch.eye(side, dtype=values.dtype, device=values.device) for side in values.shape]
                Q_S, Q_A = (whole(held.get(name, side)) for held, side in zip((self.Q_S, self.Q_A), axes, strict=True))
                Q = torch.kron(Q_S.contiguous(), Q_A.contiguous())
                block = Q @ block @ Q.T
            blocks.append(block)
        return torch.block_diag(*blocks)

    def __repr__(self) -> str:
        return describe(self)


@plain_numbers
@allocating("fit")
def ekfac(
    model: nn.Module,
    objective: Objective,
    train: Data,
    layers: LayerSpec = None,
    labels: str | None = None,
    draws: int = 1,
    seed: int = 0,
    progress: bool = True,
    *,
    sharing: str = "expand",
    blocks: Blocks = None,
    checkpoint: str | Path | None = None,
) -> Kronecker:
    """EK-FAC curvature of the objective at the model's weights: two passes over ``train``, one eigh per factor.

    train:  re-iterable of (inputs, targets) batches; the model in eval mode where that matters.
    layers: None (every matrix that was trained), "all" (embeddings and normalisations too), a glob, a list of globs, a
            predicate (name, module) → bool, or untied(...), everything(...), without_biases(...) of one of these.
    labels: "expected", "sampled" (``draws`` labels an example from the model, fresh in each pass, from ``seed``),
            "observed" (the empirical Fisher), or None for the objective's default.
    sharing: in a layer applied at many positions, what makes a row of A and S: "expand", each position; "reduce", the
            mean of a and the sum of g over an example's positions (see kfac.py); "gradients", whole gradients in every
            layer, which with many positions costs what Λ costs once more (see gradient_moments.py). Λ is exact in any.
    blocks: for wide layers, into how many diagonal blocks A and S are each cut (a whole number), or ``at_most(4096)``
            coordinates a block, which leaves narrower sides whole; None for whole factors (see blocks.py).
    checkpoint: a folder for the sums so far, saved now and then, and for the eigenvectors. The same call goes on where
            a call that was killed stopped, and ends with the same bits. Remove it once the curvature is saved.

    Returns a Kronecker curvature, mean over the examples; the model is left exactly as it was. Raises ValueError,
    TypeError, RuntimeError or FloatingPointError with the layer or argument, what came, what was expected, and the fix.
    Source: George et al. 2018; Grosse et al. 2023, eq. 16–21 and, for ``blocks``, appendix A; Eschenhagen et al. 2023
    for ``sharing``.
    """
    fit = Fit.of(model, objective, train, layers, labels, draws, seed, progress, sharing, checkpoint, blocks=blocks)
    with fit.kept as kept:
        basis = eigenbasis(accumulate_moments(fit, passes=2), kept)
        squares = corrected_eigenvalues(fit, basis)
    return _noted(Kronecker(squares.means(), basis.Q_S, basis.Q_A, facts_of(fit, "EK-FAC", squares.examples)), fit)


@plain_numbers
@allocating("fit")
def kfac(
    model: nn.Module,
    objective: Objective,
    train: Data,
    layers: LayerSpec = None,
    labels: str | None = None,
    draws: int = 1,
    seed: int = 0,
    progress: bool = True,
    *,
    sharing: str = "expand",
    blocks: Blocks = None,
    checkpoint: str | Path | None = None,
) -> Kronecker:
    """K-FAC curvature, S ⊗ A: Λ = λ_S λ_Aᵀ. One pass over ``train``. Arguments and errors as for ``ekfac``.

    Source: Martens & Grosse 2015; Grosse et al. 2023, eq. 16–17.
    """
    fit = Fit.of(model, objective, train, layers, labels, draws, seed, progress, sharing, checkpoint, blocks=blocks)
    with fit.kept as kept:
        check_uses(fit.layers)
        moments = accumulate_moments(fit)
        basis = eigenbasis(moments, kept)
    values = {name: torch.outer(basis.lambda_S[name], basis.lambda_A[name]) for name in fit.layers}
    return _noted(Kronecker(values, basis.Q_S, basis.Q_A, facts_of(fit, "K-FAC", moments.examples)), fit)


@plain_numbers
@allocating("fit")
def diagonal(
    model: nn.Module,
    objective: Objective,
    train: Data,
    layers: LayerSpec = None,
    labels: str | None = None,
    draws: int = 1,
    seed: int = 0,
    progress: bool = True,
    *,
    checkpoint: str | Path | None = None,
) -> Kronecker:
    """The curvature's diagonal, Λ = E[Dθ²], exact under ``labels``. One pass. Arguments as for ``ekfac``."""
    fit = Fit.of(model, objective, train, layers, labels, draws, seed, progress, checkpoint=checkpoint)
    with fit.kept:
        squares = corrected_eigenvalues(fit, None, check=True, ahead=_ahead(fit))
    return _noted(Kronecker(squares.means(), {}, {}, facts_of(fit, "diagonal", squares.examples)), fit)


@plain_numbers
def identity(
    model: nn.Module,
    objective: Objective,
    train: Data = (),
    layers: LayerSpec = None,
    labels: str | None = None,
    draws: int = 1,
    seed: int = 0,
    progress: bool = True,
) -> Kronecker:
    """C = I, with damping 0 by default: scores become plain gradient dot products. No pass over ``train``."""
    fit = Fit.of(model, objective, train, layers, labels, draws, seed, progress)
    values = {
        k: layer.weight.new_ones(layer.shape, dtype=accumulator(layer.weight.dtype)) for k, layer in fit.layers.items()
    }
    return Kronecker(values, {}, {}, facts_of(fit, "identity", 0), default_damping=0.0)


def _ahead(fit: Fit) -> Ahead:
    """What a fit without factors has before it."""
    held = sum(
        o * i * accumulator(layer.weight.dtype).itemsize for layer in fit.layers.values() for o, i in [layer.shape]
    )
    return Ahead("fit", length(fit.data), 1, lambda: f"the diagonal takes {in_bytes(held)}")


def _noted(curvature: Kronecker, fit: Fit) -> Kronecker:
    """The curvature, with a note where it is rounding noise."""
    note_rounding(curvature.eigenvalues, {name: layer.weight for name, layer in fit.layers.items()})
    return curvature
