"""What a store keeps of one example: a record, the same number of bytes for each.

    layer with T > 1   scale s · norm ‖∇ℓ_n‖ · r · rest as float32, then the packed codes
    layer with T = 1   the two vectors ã and g̃, as they are: such layers are exact

r and rest are rounded up, so that the certificate stays one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..ekfac import rotate, rotated_gradients
from ..finite import check_finite
from ..hooks import Pair
from ..kronecker import Kronecker
from .axes import Axes
from .bits import packed_bytes, quantise

NUMBERS = ("scale", "norm", "r", "rest")
Kept = Mapping[str, Axes | None]  # layer → what is kept of it; None for its vectors


def record(kept: Kept, shapes: Mapping[str, tuple[int, int]], bits: int, dtype: torch.dtype) -> np.dtype:
    """The NumPy dtype of one example: a field "0", "1", … for each layer, in their order."""
    number = np.dtype("<f8" if dtype == torch.float64 else "<f4")
    fields: list[Any] = []
    for at, (name, axes) in enumerate(kept.items()):
        o, i = shapes[name]
        if axes is None:
            parts: list[Any] = [("a", number, (i,)), ("g", number, (o,))]
        else:
            parts = [*((key, "<f4") for key in NUMBERS), ("codes", "u1", (packed_bytes(axes.count, bits),))]
        fields.append((str(at), np.dtype(parts)))
    return np.dtype(fields)


def fill(
    records: np.ndarray, found: Mapping[str, Pair], curvature: Kronecker, kept: Kept, damping: Mapping[str, float],
    bits: int, batch: int,
) -> None:  # fmt: skip
    """Write a batch's pairs into its records (B,)."""
    for at, (name, axes) in enumerate(kept.items()):
        pair, Q_S, Q_A = found[name], curvature.Q_S.get(name), curvature.Q_A.get(name)
        into = records[str(at)]
        if axes is None:
            _check_once(name, pair, batch)
            into["a"], into["g"] = _numpy(rotate(pair.a[:, 0], Q_A)), _numpy(rotate(pair.g[:, 0], Q_S))
            continue
        white = whitening(curvature.eigenvalues[name], damping[name])
        start = 0
        for G in rotated_gradients(pair, Q_S, Q_A):
            _encode(into[start : start + len(G)], G.flatten(1), white.to(G), axes, bits)
            start += len(G)
        check_finite("half-whitened gradients", {name: torch.from_numpy(into["norm"].copy())}, batch)


def _encode(into: np.ndarray, G: Tensor, white: Tensor, axes: Axes, bits: int) -> None:
    """Gradients G (b, D) in the eigenbasis as records of one layer."""
    t = G * white
    z = axes.coordinates(t)
    codes, scale, r = quantise(z, axes.spread, bits)
    into["codes"], into["scale"] = _numpy(codes), _numpy(scale)
    into["norm"], into["r"], into["rest"] = (_numpy(up(x)) for x in (G.norm(dim=1), r, axes.rest(t, z)))


def whitening(eigenvalues: Tensor, damping: float) -> Tensor:
    """1 / √(Λ + λ₀), (D,) row-major."""
    return (eigenvalues + damping).rsqrt().flatten()


def up(x: Tensor) -> Tensor:
    """float32 that is not below x ≥ 0, which came from sums in its own dtype."""
    wide = x.double() * (1 + 64 * torch.finfo(x.dtype).eps)
    return torch.nextafter(wide.float(), torch.tensor(math.inf, device=x.device)) * (wide > 0)


def _check_once(name: str, pair: Pair, batch: int) -> None:
    if pair.a.shape[1] != 1:
        raise ValueError(
            f"layer {name!r} was applied at {pair.a.shape[1]} positions an example in batch {batch}, and the store "
            "keeps it as the vectors of one; expected one position, as in the longest example it was planned from. "
            "Build a store of its own for such examples."
        )


def _numpy(x: Tensor) -> np.ndarray:
    return x.cpu().numpy()
