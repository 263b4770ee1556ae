"""The rungs of the ladder as numbers: how far each curvature is from the exact one, and what its scores are.

All rungs are solved at the same {layer: λ}, a multiple of the mean eigenvalue of G's own blocks. Their eigenvalues are
compared where K-FAC and EK-FAC differ: in their common eigenvectors q, against the exact qᵀ G q.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..blocks import whole
from ..curvature import Curvature, IndefiniteWarning, damping_of
from ..hooks import Matrices
from ..kronecker import Kronecker

CORRECTED, UNCORRECTED = "EK-FAC", "K-FAC"  # the rungs between which the eigenvalues are corrected


@dataclass(frozen=True, eq=False)
class Rungs:
    """One network's curvatures, top rung first, with the gradients that scores are made of."""

    curvatures: Mapping[str, Curvature]
    queries: Matrices  # ∇m of K queries, (K, o, i) per layer
    training: Matrices  # ∇ℓ of N training examples, (N, o, i) per layer
    exact: str = "G"  # the rung that the others are measured against


@dataclass(frozen=True)
class Row:
    """How far one rung is from exact G."""

    matrix: float  # ‖C − G‖ / ‖G‖
    solve: float  # ‖x − x_G‖ / ‖x_G‖ over all queries
    scores: float  # mean over queries of the correlation across training examples
    indefinite: bool  # the damped matrix has negative eigenvalues


@dataclass(frozen=True, eq=False)
class Comparison:
    """One network at one damping, in one layer or all."""

    rows: dict[str, Row]
    scores: dict[str, Tensor]  # (K, N) per rung
    matrices: dict[str, Tensor]  # (d, d) per rung
    damping: dict[str, float]


def compare(rungs: Rungs, multiple: float, layer: str | None = None) -> Comparison:
    """Every rung at λ = multiple · mean eigenvalue of G's blocks; ``layer`` looks at one layer's share."""
    exact = rungs.curvatures[rungs.exact]
    damping = damping_of(exact, multiple)
    names = list(exact.layers) if layer is None else [layer]
    training = torch.cat([rungs.training[k].flatten(1) for k in names], dim=1)  # (N, d)
    solved, scores, matrices, indefinite = {}, {}, {}, {}
    for rung, curvature in rungs.curvatures.items():
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always", IndefiniteWarning)
            x = curvature.solve(rungs.queries, damping)
        indefinite[rung] = any(issubclass(w.category, IndefiniteWarning) for w in said)
        solved[rung] = torch.cat([x[k].flatten(1) for k in names], dim=1)  # (K, d)
        scores[rung] = -solved[rung] @ training.T
        matrices[rung] = _block(curvature, layer)
    rows = {
        rung: Row(
            _distance(matrices[rung], matrices[rungs.exact]),
            _distance(solved[rung], solved[rungs.exact]),
            correlation(scores[rung], scores[rungs.exact]),
            indefinite[rung],
        )
        for rung in rungs.curvatures
    }
    return Comparison(rows, scores, matrices, damping)


def eigenvalues(rungs: Rungs, layer: str | None = None) -> dict[str, tuple[Tensor, Tensor]]:
    """{rung: (exact, its own)} eigenvalues (d,) of K-FAC and EK-FAC, of one layer or of all; none for other rungs.

    Exact is qᵀ G q for each of the rung's own eigenvectors q: what its eigenvalues would have to be.
    """
    exact, found = rungs.curvatures[rungs.exact], {}
    for rung in (UNCORRECTED, CORRECTED):
        curvature = rungs.curvatures.get(rung)
        if isinstance(curvature, Kronecker):
            names = list(curvature.layers) if layer is None else [layer]
            both = [(_diagonal(exact, curvature, name), curvature.eigenvalues[name].flatten()) for name in names]
            found[rung] = torch.cat([a for a, _ in both]), torch.cat([b for _, b in both])
    return found


def most_corrected(networks: Mapping[str, Rungs]) -> tuple[str | None, str | None]:
    """The network and layer whose matrix the correction brings closest to exact G; None, None where there is none."""
    gains: dict[tuple[str, str | None], float] = {}
    for name, rungs in networks.items():
        if CORRECTED in rungs.curvatures and UNCORRECTED in rungs.curvatures:
            for layer in (None, *rungs.curvatures[rungs.exact].layers):
                before, after, exact = (
                    _block(rungs.curvatures[k], layer) for k in (UNCORRECTED, CORRECTED, rungs.exact)
                )
                gains[name, layer] = _distance(before, exact) - _distance(after, exact)
    return max(gains, key=gains.__getitem__) if gains else (None, None)


def _diagonal(exact: Curvature, curvature: Kronecker, layer: str) -> Tensor:
    """qᵀ G q (o · i,) for every eigenvector q of a layer."""
    block, Q = _block(exact, layer), torch.kron(whole(curvature.Q_S[layer]), whole(curvature.Q_A[layer]))
    return ((block.to(Q) @ Q) * Q).sum(0)


def _block(curvature: Curvature, layer: str | None) -> Tensor:
    """The curvature's dense matrix, or one layer's diagonal block of it."""
    matrix, at = curvature.to_dense(), 0
    for name, (o, i) in curvature.shapes.items():
        if name == layer:
            return matrix[at : at + o * i, at : at + o * i]
        at += o * i
    return matrix


def _distance(found: Tensor, exact: Tensor) -> float:
    return float((found - exact).norm() / exact.norm())


def correlation(scores: Tensor, exact: Tensor) -> float:
    """Pearson's correlation across training examples, the mean over queries."""
    x, y = (s - s.mean(1, keepdim=True) for s in (scores, exact))
    return float(((x * y).sum(1) / (x.norm(dim=1) * y.norm(dim=1)).clamp_min(1e-300)).mean())
