"""Labels from uniform numbers, by inversion: the label on whose share of (0, 1) the number falls."""

from __future__ import annotations

import math

import torch
from torch import Tensor

ONE = 0x3FF0000000000000  # the bits of 1 in float64


@torch.no_grad()
def inverse_cdf(p: Tensor, uniforms: Tensor) -> Tensor:
    """The class (...) on whose share of (0, 1) each uniform (..., 1) falls, for probabilities p (..., C) in float64.

    p's memory is used up. Summed in whole numbers of 2⁻⁵²: exactly, so on every device alike. A running sum of
    fractions depends on its order, and torch refuses it on a GPU under ``use_deterministic_algorithms``.
    """
    # between 1 and 2 the numbers that float64 has are 2⁻⁵² apart, and their bits count them
    cdf = p.add_(1).view(torch.int64).sub_(ONE).cumsum(-1)
    drawn = torch.searchsorted(cdf, (uniforms.to(p) * cdf[..., -1:]).long(), right=True)
    return drawn.squeeze(-1).clamp(max=p.shape[-1] - 1)


@torch.no_grad()
def poisson_inverse(rates: Tensor, uniforms: Tensor) -> Tensor:
    """The least count k with P(y ≤ k) ≥ u for y ~ Poisson(rate), rates and uniforms of one shape in float64.

    P(y ≤ k) is the regularised incomplete gamma function Q(k + 1, rate); k is found by halving.
    """
    low = torch.full_like(rates, -1.0)  # P(y ≤ low) < u ≤ P(y ≤ high)
    high = (rates + 40 * rates.sqrt() + 60).floor()
    for _ in range(math.ceil(math.log2(float(high.max()) + 1)) + 1):
        middle = ((low + high) / 2).floor()
        enough = torch.special.gammaincc(middle + 1, rates) >= uniforms
        low, high = torch.where(enough, low, middle), torch.where(enough, middle, high)
    return high
