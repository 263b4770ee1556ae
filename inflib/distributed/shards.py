"""A store by several processes: each writes its own shards into one folder, and the manifest joins them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from ..batches import Data
from ..index import Store, TrainIndex
from ..index.manifest import with_notes
from ..kronecker import Kronecker
from ..objectives import Objective
from .ranks import Ranks
from .shares import agreed


def build_store(
    ranks: Ranks,
    model: nn.Module,
    objective: Objective,
    train: Data,
    curvature: Kronecker,
    path: str | Path,
    **options: Any,
) -> Store:
    """``TrainIndex.build(..., path=)`` of all the data: the same bytes, in a folder that every process can reach.

    Process r of R takes the shards r, r + R, r + 2R, …; ``shard=``, how many examples one holds, is what makes shares
    even. ``train`` is the whole data in every process, which walks over it and computes its own part. Where there are
    fewer shards than processes, some have none. After a stop, the same command goes on from the shards that are there,
    by any number of processes. Other arguments, and what is raised, as for ``TrainIndex.build``.
    """
    if "part" in options:
        raise ValueError("part= is each process's own rank here; expected it left out. Leave part= out.")
    agreed(ranks, model, train)
    options["progress"] = options.get("progress", True) and ranks.rank == 0
    part = ranks.rank, ranks.size
    store = TrainIndex.build(model, objective, train, curvature, path=path, part=part, **options)
    ranks.together("the shards of the store")
    return replace(store, manifest=with_notes(store.folder))
