"""How long training gradients are, as a store knows it, from the numbers it keeps beside the codes.

    ‖∇ℓ_n‖                                  as it was
    ‖t̃_n‖² = s² ‖d ⊙ v‖² + r² + rest²       self-influence at λ₀, exact: s is the best scale, so nothing overlaps

At another damping than λ₀, or of another curvature, ‖t̃‖ would have to be weighed coordinate by coordinate, of which a
store has some in few bits: that is refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from ..batches import chunks
from ..contractions import own_layer
from ..hooks import Pair
from ..kronecker import Kronecker
from ..scoring import check_relative
from .axes import Axes
from .bits import levels, unpack
from .records import Kept

Numbers = Mapping[str, float]


def norms(fields: np.ndarray, axes: Axes | None) -> Tensor:
    """‖∇ℓ_n‖ in one layer, (n,)."""
    if axes is not None:
        return torch.from_numpy(fields["norm"].copy())
    a, g = (torch.from_numpy(fields[key].copy()) for key in ("a", "g"))
    return a.norm(dim=1) * g.norm(dim=1)


def squares(fields: np.ndarray, axes: Axes | None, bits: int, inverse: Tensor) -> Tensor:
    """Σ G̃² / (Λ + λ) in one layer, float64 (n,): at λ₀ where coordinates are kept, at any λ where vectors are."""
    if axes is None:
        a, g = (torch.from_numpy(fields[key].copy()).to(inverse)[:, None] for key in ("a", "g"))
        return own_layer(Pair(a, g), inverse, None, None).double().cpu()
    scale, r, rest = (torch.from_numpy(fields[key].astype(np.float64)) for key in ("scale", "r", "rest"))
    return (scale * _stretched(fields["codes"], axes, bits)).square() + r.square() + rest.square()


def _stretched(codes: np.ndarray, axes: Axes, bits: int) -> Tensor:
    """‖d ⊙ v‖, (n,) or () where all levels are ±½."""
    squares = axes.spread.double().cpu().square()
    if bits == 1:
        return (squares.sum() / 4).sqrt()
    packed = torch.from_numpy(codes)
    codes_of = (unpack(packed[rows], bits, axes.count) for rows in chunks(len(packed), 8 * axes.count))
    return torch.cat([levels(some, bits, torch.float64).square() @ squares for some in codes_of]).sqrt()


def check_own(own: Kronecker, asked: Kronecker, kept: Kept, built: Numbers, now: Numbers) -> None:
    """Raise ValueError for self-influences that a store does not know: of another curvature, or at another damping."""
    for name in asked.layers:
        same = torch.equal(asked.eigenvalues[name], own.eigenvalues[name])
        if kept[name] is not None and not (same and math.isclose(now[name], built[name], rel_tol=1e-6)):
            came = f"damping {now[name]:.6g}" if same else f"a {asked.facts.method} curvature of other eigenvalues"
            raise ValueError(
                f"layer {name!r}: {came} with a store that was built at damping {built[name]:.6g} and by its own "
                "curvature; expected those, at which alone it knows self-influences. Pass damping=store.damping, build "
                "a store at the damping wanted, or use inflib.self_influence(...), a pass over the data."
            )


def check_by_loss(relative: str | None) -> None:
    """Raise ValueError for what ``relative=`` may not be, of a store."""
    check_relative(relative)
    if relative == "weights":
        raise ValueError(
            "relative='weights' asks how far each example moves the weights, which a store does not keep; expected "
            "None or 'loss'. Use inflib.influence(..., relative='weights'), or a TrainIndex in memory."
        )
