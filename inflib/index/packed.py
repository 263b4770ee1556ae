"""⟨w_q, v_n⟩ of queries and packed sequences: whole numbers of 8 bits, multiplied as they lie under a mask.

A mask over a block of bytes leaves one coordinate of each byte, at its place: c · 2ᵉ, a whole number of 8 bits. The
query's weights are whole numbers too, two digits of 8 bits each, w ≈ σ (h + l / 128); so a block costs one mask and one
product of 8-bit matrices, all queries at once, for each coordinate of a byte, and nothing but the block is unpacked.
What two digits leave of w is counted in the certificate. Codes of 8 and 16 bits are multiplied as fractions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..batches import chunks
from .bits import levels, packed_bytes, unpack

BLOCK = 2**22  # bytes of packed codes worked on at a time: few calls, and with the masked copy still in a cache
COLUMNS, FEW = 16, 4  # products of 8-bit matrices are fast for a multiple of 16 columns, or one column at a time
LONGEST = 2**18  # bytes: a sum of so many 64 · 127 still fits 32 bits


@dataclass(frozen=True, eq=False)
class Weights:
    """The weights w (Q, k) that a layer's levels v are multiplied with, as whole numbers where bits ≤ 4."""

    bits: int
    w: Tensor  # (Q, k), on the CPU, where the packed codes are
    digits: Tensor | None  # (fields, columns, nb) int8: h of every query, then l, then zeros
    unit: Tensor  # (Q,) σ
    left: Tensor  # (Q,) ‖w − σ (h + l / 128)‖ · max ‖v‖: what a product with v may miss

    @classmethod
    def of(cls, w: Tensor, bits: int) -> Weights:
        """w as it came from the query's side, on any device."""
        w = w.cpu()
        most = (2**bits - 1) / 2 * w.shape[1] ** 0.5  # max ‖v‖
        rounding = 8 * torch.finfo(w.dtype).eps * w.norm(dim=1)
        if bits > 4:
            return cls(bits, w, None, w.new_ones(len(w)), rounding * most)
        unit = w.abs().amax(1).clamp_min(torch.finfo(w.dtype).tiny) / 127
        first = (w / unit[:, None]).round()
        second = ((w / unit[:, None] - first) * 128).round()
        w_kept = unit[:, None] * (first + second / 128)
        left = (w - w_kept).norm(dim=1) + rounding
        return cls(bits, w_kept, _columns(first, second, bits), unit, left * most)

    def product(self, packed: Tensor) -> Tensor:
        """Σ_j w_qj v_nj for packed codes (n, nb) uint8, (Q, n)."""
        parts = [self._block(packed[rows]) for rows in chunks(len(packed), packed.shape[1], BLOCK)]
        return torch.cat(parts, dim=1) if parts else self.w.new_zeros(len(self.w), 0)

    def _block(self, packed: Tensor) -> Tensor:
        if self.digits is None:
            return self.w @ levels(unpack(packed, self.bits, self.w.shape[1]), self.bits, self.w.dtype).T
        parts = list(chunks(packed.shape[1], 1, LONGEST))
        columns, Q = self.digits.shape[1], len(self.w)
        sums = packed.new_empty(len(self.digits) * len(parts), columns, len(packed), dtype=torch.int32)
        sizes: list[float] = []
        for (masked, size), digits in zip(_fields(packed, self.bits), self.digits, strict=True):
            for part in parts:
                _whole_product(masked[:, part], digits[:, part], sums[len(sizes)])
                sizes.append(1 / size)
        found = torch.tensordot(self.w.new_tensor(sizes), sums.to(self.w.dtype), 1)  # (columns, n)
        whole = found[:Q] + found[Q : 2 * Q] / 128  # Σ (h + l / 128) c
        return self.unit[:, None] * whole - (2**self.bits - 1) / 2 * self.w.sum(1, keepdim=True)


def _whole_product(x: Tensor, y: Tensor, into: Tensor) -> None:
    """y xᵀ of whole numbers of 8 bits, (columns, nb) and (n, nb), written into (columns, n) int32."""
    if len(y) > FEW and y.shape[1] > 1:  # a single row has strides that torch's product misreads
        into.copy_(torch._int_mm(x, y.T).T)
        return
    for row, found in zip(y, into, strict=True):
        torch._int_mm(x, row[:, None], out=found[:, None])


def _fields(packed: Tensor, bits: int) -> Iterator[tuple[Tensor, int]]:
    """(c · 2ᵉ as int8 (n, nb), 2ᵉ) of a byte's coordinates, from its lowest bits on; each is written over the last."""
    mask, masked = 2**bits - 1, packed.new_empty(packed.shape)
    for shift in range(0, 8, bits):
        if shift + bits == 8:  # the highest bit is a sign to a product of 8-bit numbers
            packed, shift = torch.bitwise_right_shift(packed, bits, out=masked), shift - bits
        torch.bitwise_and(packed, mask << shift, out=masked)
        yield masked.view(torch.int8), 1 << shift


def _columns(first: Tensor, second: Tensor, bits: int) -> Tensor:
    """Digits (Q, k) each → (fields, columns, nb) int8, in the order of packed coordinates."""
    (Q, k), fields = first.shape, 8 // bits
    nb = packed_bytes(k, bits)
    columns = 2 * Q if 2 * Q <= FEW else -(-2 * Q // COLUMNS) * COLUMNS
    both = first.new_zeros(columns, fields * nb)
    both[:Q, :k], both[Q : 2 * Q, :k] = first, second
    return both.view(columns, fields, nb).transpose(0, 1).contiguous().to(torch.int8)
