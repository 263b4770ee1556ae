"""What a file must hold to be believed: every tensor, in shapes that fit, finite, Λ ≥ 0, Q orthogonal; every fact."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..batches import double
from ..blocks import BlockDiagonal
from ..curvature import Facts, Relative

Shapes = dict[str, tuple[int, int]]
PROBES = 8  # vectors that Q must keep: what keeps them all is orthogonal, but for chance


def read_facts(path: Path, metadata: Mapping[str, Any]) -> tuple[Facts, Shapes, float | Relative]:
    """A curvature's facts, its layers' shapes and its default damping; ValueError for what is missing or not known."""
    facts, layers, damping = (_parsed(path, metadata, key) for key in ("facts", "layers", "damping"))
    known = {field.name: field for field in fields(Facts)}
    missing = [k for k, field in known.items() if k not in facts and field.default is MISSING]
    newer = [k for k in facts if k not in known]
    if missing or newer:
        what = f"lacks the fact {missing[0]!r}" if missing else f"has the fact {newer[0]!r}, unknown to this inflib"
        raise ValueError(
            _wrong(path, what, f"{', '.join(known)}", "Read it with the inflib that wrote it, or fit again.")
        )
    for k, value in facts.items():
        if type(value).__name__ != known[k].type:
            raise ValueError(_wrong(path, f"has {value!r} as its fact {k!r}", f"a value of type {known[k].type}"))
    shapes = {name: tuple(shape) for name, shape in layers.items() if _is_shape(shape)}
    if not shapes or len(shapes) != len(layers):
        raise ValueError(_wrong(path, f"has the layers {layers!r:.80}", "{layer: [o, i]}, at least one"))
    number = damping.get("relative") if isinstance(damping, dict) else damping
    if isinstance(number, bool) or not isinstance(number, (int, float)) or not 0 <= number < math.inf:
        raise ValueError(_wrong(path, f"has the damping {damping!r:.80}", "a number ≥ 0, or {'relative': number}"))
    return Facts(**facts), shapes, Relative(number) if isinstance(damping, dict) else number


def check_curvature(
    path: Path,
    tensors: Mapping[str, Tensor],
    shapes: Shapes,
    axes: Collection[str] = (),
    blocks: Mapping[str, Sequence[int]] = {},
) -> None:
    """Raise ValueError unless there are Λ for every layer, and Q_S and Q_A for all layers or for none.

    axes: those that are not there, as an embedding's factor is diagonal; blocks: the sizes of the blocks of some.
    """
    wanted: dict[str, tuple[int, ...]] = {f"eigenvalues/{name}": shape for name, shape in shapes.items()}
    if any(key.startswith("Q_") for key in tensors):
        sides = {
            f"{part}/{name}": shape[at] for name, shape in shapes.items() for at, part in enumerate(("Q_S", "Q_A"))
        }
        for key, d in sides.items():
            if key not in axes:
                wanted[key] = (sum(b * b for b in _blocks(path, key, d, blocks)),) if key in blocks else (d, d)
    held = {key: x for key, x in tensors.items() if not key.startswith("index/")}
    _check_tensors(path, held, wanted)
    for key, x in held.items():
        if key.startswith("eigenvalues/") and bool((x < 0).any()):
            raise ValueError(_wrong(path, f"has the negative eigenvalue {float(x.min()):.3g} in {key!r}", "Λ ≥ 0"))
        if key.startswith("Q_"):
            for block in BlockDiagonal(x, tuple(blocks[key])).blocks if key in blocks else [x]:
                _check_orthogonal(path, key, block)


def _blocks(path: Path, key: str, d: int, blocks: Mapping[str, Sequence[int]]) -> Sequence[int]:
    sizes = blocks[key]
    if not (isinstance(sizes, list) and all(type(b) is int and b > 0 for b in sizes) and sum(sizes) == d):
        raise ValueError(_wrong(path, f"has the blocks {sizes!r:.80} of {key!r}", f"sizes that add up to {d}"))
    return sizes


def check_index(path: Path, tensors: Mapping[str, Tensor], shapes: Shapes) -> None:
    """Raise ValueError unless every layer has ã (N, 1, i) and g̃ (N, 1, o), or G̃ (N, o, i), of one N."""
    held = {key: x for key, x in tensors.items() if key.startswith("index/")}
    N = len(next(iter(held.values()))) if held and next(iter(held.values())).ndim else 0
    wanted: dict[str, tuple[int, ...]] = {}
    for name, (o, i) in shapes.items():
        if f"index/G/{name}" in held:
            wanted[f"index/G/{name}"] = (N, o, i)
        else:
            wanted |= {f"index/a/{name}": (N, 1, i), f"index/g/{name}": (N, 1, o)}
    _check_tensors(path, held, wanted)


def _check_tensors(path: Path, held: Mapping[str, Tensor], wanted: Mapping[str, tuple[int, ...]]) -> None:
    """Raise ValueError unless ``held`` has exactly these tensors, of these shapes, finite, of one dtype."""
    for key in [*wanted, *held]:
        if key not in held or key not in wanted:
            what = f"lacks the tensor {key!r}" if key in wanted else f"has the tensor {key!r} of no layer"
            raise ValueError(_wrong(path, what, f"{len(wanted)} tensors: {', '.join(wanted)}"))
        if tuple(held[key].shape) != wanted[key]:
            raise ValueError(_wrong(path, f"has {key!r} of shape {tuple(held[key].shape)}", f"{wanted[key]}"))
    dtypes = {x.dtype for x in held.values()}
    if len(dtypes) != 1 or not next(iter(dtypes)).is_floating_point:
        raise ValueError(_wrong(path, f"holds {', '.join(sorted(map(str, dtypes)))}", "one floating-point dtype"))
    for key, x in held.items():
        if not bool(x.isfinite().all()):
            raise ValueError(_wrong(path, f"holds NaN or infinity in {key!r}", "finite numbers"))


def _check_orthogonal(path: Path, key: str, Q: Tensor) -> None:
    """Raise ValueError unless ‖Q z‖ = ‖z‖ and Qᵀ Q z = z, to rounding, for a few z drawn at random."""
    z = torch.randn(len(Q), PROBES, generator=torch.Generator().manual_seed(0), dtype=torch.float64, device="cpu")
    exact = double(Q).cpu()
    error = float((exact.T @ (exact @ z) - z).norm() / z.norm())
    if error > (100 + len(Q)) * torch.finfo(Q.dtype).eps:
        raise ValueError(_wrong(path, f"has {key!r}, which is not orthogonal (by {error:.2g})", "QᵀQ = I to rounding"))


def _parsed(path: Path, metadata: Mapping[str, Any], key: str) -> Any:
    if key not in metadata:
        raise ValueError(_wrong(path, f"has no {key!r} in its metadata", "facts, layers and damping"))
    try:
        found = json.loads(metadata[key])
    except (TypeError, ValueError):
        raise ValueError(_wrong(path, f"has {metadata[key]!r:.40} for {key!r}, which is no JSON", "JSON")) from None
    if key != "damping" and not isinstance(found, dict):
        raise ValueError(_wrong(path, f"has {found!r:.40} for {key!r}", "a JSON object"))
    return found


def _is_shape(shape: Any) -> bool:
    return isinstance(shape, list) and len(shape) == 2 and all(type(n) is int and n > 0 for n in shape)


def _wrong(path: Path, came: str, expected: str, fix: str = "Copy it again from where it came, or fit again.") -> str:
    return f"{path} {came}; expected {expected}. {fix}"
