"""Is there room? What a fit will hold, layer by layer, is compared with the memory there is before any of it is made.

K-FAC's factors grow with the square of a layer's sides: an unembedding of 50,000 tokens has an S of 50,000 × 50,000,
which no allocator grants, and none says why. So it is said here, with the layer's name and what leaves it out.
"""

from __future__ import annotations

from pathlib import Path

import torch

from .batches import accumulator
from .blocks import Blocks, cut
from .layers import Layer

LIMIT: int | None = None  # bytes that a fit's factors may take together; None for what the device has free
WORK = 4  # float64 matrices that an eigendecomposition holds: the factor, its eigenvectors, and what LAPACK asks for


def check_factors(layers: dict[str, Layer], blocks: Blocks = None) -> None:
    """Raise MemoryError where A, S, their eigenvectors and Λ of all layers do not fit; the largest layers are named."""
    held, work = {}, {}
    for name, layer in layers.items():
        o, i = layer.shape
        sides = [side for factor, side in (("S", o), ("A", i)) if layer.diagonal != factor]  # a diagonal takes no room
        sizes = [b for side in sides for b in cut(side, blocks)]
        held[name] = (2 * sum(b * b for b in sizes) + o * i) * accumulator(layer.weight.dtype).itemsize
        work[name] = WORK * max(sizes) ** 2 * torch.float64.itemsize
    instead = "blocks=at_most(4096), which cuts wide factors, or diagonal(...), which has none"
    _check(layers, held, work, "its factors S (o, o) and A (i, i)", instead)


def factor_bytes(layers: dict[str, Layer], blocks: Blocks = None) -> int:
    """Bytes of A and S of all layers with their eigenvectors."""
    held = 0
    for layer in layers.values():
        sides = [d for side, d in zip("SA", layer.shape, strict=True) if layer.diagonal != side]
        numbers = sum(b * b for d in sides for b in cut(d, blocks))
        held += 2 * numbers * accumulator(layer.weight.dtype).itemsize
    return held


def check_dense(layers: dict[str, Layer], blocks: bool) -> None:
    """Raise MemoryError where the exact matrix (D, D), or each layer's block of it, does not fit (twice)."""
    sizes = {name: layer.shape[0] * layer.shape[1] for name, layer in layers.items()}
    whole = sum(sizes.values())
    item = max(layer.weight.dtype.itemsize for layer in layers.values())
    held = {name: 2 * size * (size if blocks else whole) * item for name, size in sizes.items()}
    _check(layers, held, dict.fromkeys(layers, 0), "its rows of the exact matrix", "ekfac(...) and refine(...)")


def _check(layers: dict[str, Layer], held: dict[str, int], work: dict[str, int], what: str, instead: str) -> None:
    room = free_bytes(next(iter(layers.values())).weight.device)
    if room is None or _total(held, work) <= room:
        return
    left = sorted(layers, key=lambda name: held[name] + work[name])
    out = [left.pop()]
    while left and _total({k: held[k] for k in left}, work) > room:
        out.append(left.pop())
    first, (o, i) = out[0], layers[out[0]].shape
    raise MemoryError(
        f"layer {first!r} with (o, i) = ({o:,}, {i:,}) takes {say_bytes(held[first] + work[first])} for {what}, all "
        f"layers {say_bytes(_total(held, work))}; expected at most {say_bytes(room)}, what is free. Leave it out, "
        f"layers=lambda name, module: name not in {out!r}, or use {instead}."
    )


def _total(held: dict[str, int], work: dict[str, int]) -> int:
    return sum(held.values()) + max((work[name] for name in held), default=0)


def say_bytes(count: int) -> str:
    """A number of bytes in a message."""
    return f"{count / 2**30:,.1f} GiB" if count >= 2**30 else f"{count:,} bytes"


def free_bytes(device: torch.device) -> int | None:
    """Bytes that may still be allocated on a device: LIMIT where that is set, None where nobody knows."""
    if LIMIT is not None:
        return LIMIT
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    if device.type != "cpu":
        return None
    known = [n for n in (_available(Path("/proc/meminfo")), _left_of(Path("/sys/fs/cgroup"))) if n is not None]
    return min(known, default=None)


def _available(meminfo: Path) -> int | None:
    """MemAvailable of Linux's /proc/meminfo; None elsewhere."""
    try:
        lines = meminfo.read_text().splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), None)


def _left_of(cgroup: Path) -> int | None:
    """What a container's limit leaves, files that were only read not counted; None where there is no limit."""
    try:
        limit, used = ((cgroup / name).read_text().strip() for name in ("memory.max", "memory.current"))
        stat = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return None
    return None if limit == "max" else int(limit) - int(used) + int(stat.get("inactive_file", 0))
