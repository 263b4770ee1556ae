"""Wide layers in blocks: A and S block-diagonal, so that neither grows with the square of a layer's side.

    A ≈ blockdiag(A_1, …, A_k)      S ≈ blockdiag(S_1, …, S_k)            (Grosse et al. 2023, appendix A)

A block is a run of neighbouring coordinates, as long as the others to one; the bias's column is in the last. Of a side
d, k blocks take d²/k numbers in place of d², d³/k² operations for eigenvectors in place of d³, and 1/k of each
rotation. What is lost are the moments between blocks; Λ is corrected in the eigenbasis of the blocks all the same, and
remains (o, i).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from numbers import Integral

import torch
from torch import Tensor

Sizes = tuple[int, ...]


@dataclass(frozen=True)
class AtMost:
    """Blocks of at most so many coordinates."""

    size: int


Blocks = None | int | AtMost


def at_most(size: int) -> AtMost:
    """``blocks=at_most(4096)``: sides of up to 4,096 coordinates whole, wider ones in the fewest blocks no larger."""
    return AtMost(size)


def check_blocks(blocks: Blocks) -> None:
    """Raise ValueError for what is neither a number of blocks nor a size."""
    number = blocks.size if isinstance(blocks, AtMost) else blocks
    if blocks is not None and not (isinstance(number, Integral) and not isinstance(number, bool) and number >= 1):
        raise ValueError(
            f"blocks={blocks!r}; expected None (whole factors), a whole number of blocks in each factor, or "
            "at_most(4096), their size. Leave it at blocks=None where the factors fit."
        )


def say_blocks(blocks: Blocks) -> str:
    """As a curvature's facts have it; '' for whole factors."""
    if isinstance(blocks, AtMost):
        return f"at most {blocks.size}"
    return "" if blocks in (None, 1) else f"{blocks}"


def cut(side: int, blocks: Blocks) -> Sizes:
    """The sizes of a side's blocks, in order, as equal as whole numbers allow."""
    count = -(-side // blocks.size) if isinstance(blocks, AtMost) else min(blocks or 1, side)
    return tuple(side * (k + 1) // count - side * k // count for k in range(count))


@dataclass(frozen=True, eq=False)
class BlockDiagonal:
    """A (d, d) matrix of square blocks along its diagonal, of which those alone are held."""

    flat: Tensor  # (Σ b²,): the blocks, row-major, one after the other
    sizes: Sizes  # b of each
    turned: bool = False  # transposed

    @property
    def blocks(self) -> list[Tensor]:
        """Views of the blocks, (b, b) each."""
        parts = self.flat.split([b * b for b in self.sizes])
        found = [part.view(b, b) for part, b in zip(parts, self.sizes, strict=True)]
        return [block.T for block in found] if self.turned else found

    @property
    def T(self) -> BlockDiagonal:
        return replace(self, turned=not self.turned)

    def to(self, like: Tensor | torch.device) -> BlockDiagonal:
        return replace(self, flat=self.flat.to(like))

    def __len__(self) -> int:
        return sum(self.sizes)

    def __matmul__(self, x: Tensor) -> Tensor:
        """Block times rows, x (..., d, n)."""
        parts = x.split(self.sizes, dim=-2)
        return torch.cat([block @ part for block, part in zip(self.blocks, parts, strict=True)], dim=-2)

    def __rmatmul__(self, x: Tensor) -> Tensor:
        """Columns times block, x (..., n, d)."""
        parts = x.split(self.sizes, dim=-1)
        return torch.cat([part @ block for block, part in zip(self.blocks, parts, strict=True)], dim=-1)

    def __add__(self, other: BlockDiagonal) -> BlockDiagonal:
        return replace(self, flat=self.flat + other.flat)

    def __truediv__(self, number: float) -> BlockDiagonal:
        return replace(self, flat=self.flat / number)


Factor = Tensor | BlockDiagonal  # whole, or of an embedding its diagonal; or in blocks


def joined(blocks: Iterable[Tensor]) -> BlockDiagonal:
    """The block-diagonal matrix of these blocks."""
    found = list(blocks)
    return BlockDiagonal(torch.cat([block.flatten() for block in found]), tuple(map(len, found)))


def numbers(factor: Factor) -> Tensor:
    """All numbers that are held of a factor, as one tensor: what is added up, saved and compared."""
    return factor.flat if isinstance(factor, BlockDiagonal) else factor


def like(tensor: Tensor, sizes: Sizes) -> Factor:
    """The factor of which ``numbers`` gave this tensor."""
    return BlockDiagonal(tensor, sizes) if len(sizes) > 1 else tensor


def zeros(like: Tensor, sizes: Sizes) -> Factor:
    """A factor of zeros, of the dtype and device of ``like``."""
    flat = like.new_zeros(sum(b * b for b in sizes))
    return BlockDiagonal(flat, sizes) if len(sizes) > 1 else flat.view(sizes[0], sizes[0])


def each_block(factor: Factor, function: Callable[[Tensor], Tensor]) -> Factor:
    """``function`` of the matrix, or of each of its blocks."""
    return joined(map(function, factor.blocks)) if isinstance(factor, BlockDiagonal) else function(factor)


def equal(one: Factor, other: Factor) -> bool:
    """Whether they are cut alike, and hold the same numbers."""
    if isinstance(one, BlockDiagonal) and isinstance(other, BlockDiagonal):
        return (one.sizes, one.turned) == (other.sizes, other.turned) and torch.equal(one.flat, other.flat)
    return isinstance(one, Tensor) and isinstance(other, Tensor) and torch.equal(one, other)


def whole(factor: Factor) -> Tensor:
    """As one matrix, (d, d)."""
    return torch.block_diag(*factor.blocks) if isinstance(factor, BlockDiagonal) else factor
