"""A shard from its file, memory-mapped, and refused by its name unless it is the one that was written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from ..fingerprints import checksum
from .manifest import Shard


def read_shard(folder: Path, shard: Shard, count: int, dtype: np.dtype, checked: set[str]) -> np.ndarray:
    """Its records (n,), one of ``count`` shards; its checksum is looked at unless ``checked`` has its name.

    Raises FileNotFoundError or ValueError for one that is missing, damaged or another store's.
    """
    path = folder / shard.name
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: it holds examples {shard.start} to {shard.start + shard.examples - 1}; expected "
            f"{count} shards. Put it back, or make it again: call TrainIndex.build as before."
        )
    try:
        records = np.load(path, mmap_mode="c")  # a copy on writing, which nobody does: torch wants it writable
    except (OSError, ValueError) as error:
        raise ValueError(_damaged(path, f"cannot be read ({error})")) from None
    if records.dtype != dtype or records.shape != (shard.examples,):
        raise ValueError(_damaged(path, f"holds {records.shape} records of {records.dtype.itemsize} bytes"))
    if shard.name not in checked:
        if shard_checksum(records) != shard.checksum:
            raise ValueError(_damaged(path, "has another checksum than the manifest"))
        checked.add(shard.name)
    return records


def shard_checksum(records: np.ndarray) -> str:
    """At the speed of memory: what notices any accidental change."""
    return checksum(torch.from_numpy(records.view(np.uint8).reshape(-1))).hex()


def _damaged(path: Path, what: str) -> str:
    return (
        f"{path} {what}; expected the shard that was written for this store: it is damaged, or another store's. Copy "
        "it again from where it came, or remove it and call TrainIndex.build as before: it makes what is missing."
    )
