"""An index to and from a file, or a curvature: ``save``, ``load_index``.

An exact index's file holds its curvature and the rotated gradients of its training examples. A store is a folder, and
on disk from the beginning: to save it is to copy it.
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
from .building import open_store
from .exact import TrainIndex
from .folder import copy_files
from .manifest import AXES, CURVATURE, MANIFEST
from .sides import Side
from .store import Store


def save(value: Kronecker | TrainIndex | Store, path: str | Path) -> None:
    """Write a Kronecker curvature or an index to ``path``; an existing file is replaced only by a complete new one.

    A store's folder is copied, as it was when the store was opened; FileExistsError where ``path`` is there.
    """
    if isinstance(value, TrainIndex):
        tensors, facts = curvature_parts(value.curvature)
        for name, held in value.held.items():
            parts = {"a": held.a, "g": held.g} if isinstance(held, Pair) else {"G": held}
            tensors |= {f"index/{part}/{name}": x.contiguous().cpu() for part, x in parts.items()}
        write_safetensors(tensors, seal(tensors, facts | {"format": INDEX_FORMAT}), Path(path))
    elif isinstance(value, Kronecker):
        save_curvature(value, Path(path))
    elif isinstance(value, Store):
        _copy(value, Path(path))
    else:
        raise TypeError(
            f"save got a {type(value).__name__}; expected a Kronecker curvature (ekfac, kfac, diagonal, identity) or a "
            "TrainIndex or Store. An exact curvature is made anew: gauss_newton(...)."
        )


def _copy(store: Store, path: Path) -> None:
    """Its own files, whatever is being appended to it meanwhile."""
    shards = store.manifest.shards
    if not store.manifest.complete:
        missing = next(shard for shard in shards if shard.checksum is None)
        raise ValueError(
            f"{store.folder} is not complete: {missing.name} was not written when this store was opened. Finish the "
            "build, open it with load_index and save that."
        )
    names = [CURVATURE, AXES, *(shard.name for shard in shards)]
    copy_files(store.folder, path, names, {MANIFEST: store.manifest.text()})


def load_index(path: str | Path, model: nn.Module) -> TrainIndex | Store:
    """The index at ``path``, a file or a store's folder, on the model's device; refused unless it is of this model.

    Which training examples it was built from is for the caller to know: ``len(index)`` of them, in their order.
    Raises as ``load`` does.
    """
    if Path(path).is_dir():
        return open_store(Path(path), model)
    tensors, metadata = read(Path(path), INDEX_FORMAT)
    curvature = read_curvature(Path(path), tensors, metadata, model)
    check_index(Path(path), tensors, curvature.shapes)
    device, held = next(model.parameters()).device, Side()
    for name in curvature.layers:
        G = tensors.get(f"index/G/{name}")
        a_and_g = (tensors[f"index/{part}/{name}"].to(device) for part in ("a", "g") if G is None)
        held[name] = Pair(*a_and_g) if G is None else G.to(device)
    return TrainIndex(curvature, held)
