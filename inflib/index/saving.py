"""An index to and from a file, or a curvature: ``save``, ``load_index``.

An exact index's file holds its curvature and the rotated gradients of its training examples.
"""

from __future__ import annotations

from pathlib import Path

from torch import nn

from ..hooks import Pair
from ..kronecker import Kronecker
from ..storage import (
    INDEX_FORMAT,
    check_index,
    curvature_parts,
    read,
    read_curvature,
    save_curvature,
    seal,
    write_safetensors,
)
from .exact import TrainIndex
from .sides import Side


def save(value: Kronecker | TrainIndex, path: str | Path) -> None:
    """Write a Kronecker curvature or an index to ``path``; an existing file is replaced only by a complete new one."""
    if isinstance(value, TrainIndex):
        tensors, facts = curvature_parts(value.curvature)
        for name, held in value.held.items():
            parts = {"a": held.a, "g": held.g} if isinstance(held, Pair) else {"G": held}
            tensors |= {f"index/{part}/{name}": x.contiguous().cpu() for part, x in parts.items()}
        write_safetensors(tensors, seal(tensors, facts | {"format": INDEX_FORMAT}), Path(path))
    elif isinstance(value, Kronecker):
        save_curvature(value, Path(path))
    else:
        raise TypeError(
            f"save got a {type(value).__name__}; expected a Kronecker curvature (ekfac, kfac, diagonal, identity) or a "
            "TrainIndex. An exact curvature is made anew: gauss_newton(...)."
        )


def load_index(path: str | Path, model: nn.Module) -> TrainIndex:
    """The index saved at ``path``, on the model's device; refused unless it was built at this model's weights.

    Which training examples it was built from is for the caller to know: ``len(index)`` of them, in their order.
    Raises as ``load`` does.
    """
    tensors, metadata = read(Path(path), INDEX_FORMAT)
    curvature = read_curvature(Path(path), tensors, metadata, model)
    check_index(Path(path), tensors, curvature.shapes)
    device, held = next(model.parameters()).device, Side()
    for name in curvature.layers:
        G = tensors.get(f"index/G/{name}")
        a_and_g = (tensors[f"index/{part}/{name}"].to(device) for part in ("a", "g") if G is None)
        held[name] = Pair(*a_and_g) if G is None else G.to(device)
    return TrainIndex(curvature, held)
