"""Kept coordinates in 1, 2, 4, 8 or 16 bits each, and how they are packed into bytes.

    z_j ≈ s · d_j · v_j          v_j ∈ {−(2ᵇ − 1)/2, …, −½, ½, …, (2ᵇ − 1)/2}, b bits

d_j is the axis's spread, s one scale for the sequence: the best one, once the levels v are chosen. One bit keeps the
sign. ``r`` = ‖z − s · d ⊙ v‖ is kept beside them, for the certificate.

Byte m of nb holds the coordinates m, nb + m, 2 nb + m, …: its lowest bits the first of them. So a mask over all bytes
gives a run of coordinates, and a matrix product needs no unpacking (packed.py).
"""

from __future__ import annotations

import torch
from torch import Tensor

BITS = (1, 2, 4, 8, 16)
STEPS = {2: 0.9957, 4: 0.3352}  # of a uniform quantiser with the least square error for a unit Gaussian (Max 1960)


def packed_bytes(count: int, bits: int) -> int:
    """How many bytes ``count`` coordinates take."""
    return -(-count * bits // 8)


def quantise(z: Tensor, spread: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """z (B, k) → codes (B, nb) uint8, scales s (B,) float32 and r (B,) = ‖z − s · d ⊙ v‖."""
    spread = spread.to(z)
    codes = _codes(z / spread, bits)
    kept = spread * levels(codes, bits, z.dtype)
    scale = ((z * kept).sum(1) / kept.square().sum(1)).float()
    return pack(codes, bits), scale, (z - scale.to(z)[:, None] * kept).norm(dim=1)


def _codes(u: Tensor, bits: int) -> Tensor:
    """The nearest levels of u (B, k), numbered from 0, int32."""
    if bits == 1:
        return (u > 0).to(torch.int32)
    top = 2**bits - 1
    if bits in STEPS:
        step = STEPS[bits] * u.square().mean(1, keepdim=True).sqrt()
    else:
        step = 2 * u.abs().amax(1, keepdim=True) / top
    step = step.clamp_min(torch.finfo(u.dtype).tiny)
    return (u / step + top / 2).round().clamp(0, top).to(torch.int32)


def levels(codes: Tensor, bits: int, dtype: torch.dtype) -> Tensor:
    """v of codes."""
    return codes.to(dtype) - (2**bits - 1) / 2


def pack(codes: Tensor, bits: int) -> Tensor:
    """Codes (B, k) int32 → (B, nb) uint8."""
    if bits == 16:
        low_high = torch.stack([codes & 255, codes >> 8], dim=-1)
        return low_high.flatten(1).to(torch.uint8)
    fields = 8 // bits
    nb = packed_bytes(codes.shape[1], bits)
    padded = torch.nn.functional.pad(codes, (0, fields * nb - codes.shape[1])).view(-1, fields, nb)
    shifts = torch.arange(0, 8, bits, dtype=torch.int32, device=codes.device)
    return (padded << shifts[:, None]).sum(1).to(torch.uint8)


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """Packed (B, nb) uint8 → codes (B, k) int32: the inverse of ``pack``."""
    wide = packed.to(torch.int32)
    if bits == 16:
        return wide[:, 0::2] + (wide[:, 1::2] << 8)
    fields = [(wide >> shift) & (2**bits - 1) for shift in range(0, 8, bits)]
    return torch.cat(fields, dim=1)[:, :count]
