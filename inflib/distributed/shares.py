"""Each process's share of the data: a stretch of its batches, none padded and none counted twice."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler, Subset

from ..batches import Data, batch_size, say
from ..fingerprints import hash_weights
from ..placement import check_mode
from .ranks import Ranks


@dataclass(frozen=True)
class Share:
    """Some batches of the data, and the position of their first example among all."""

    data: Data
    start: int
    batches: int


def share(data: Data, rank: int, size: int) -> Share:
    """The ``rank``-th of ``size`` stretches of the data's batches, as even as whole batches allow; it may be empty.

    Raises TypeError for data that is neither a list nor a DataLoader that keeps its order.
    """
    if isinstance(data, DataLoader) and _in_order(data):
        assert data.batch_size is not None
        first, last = (len(data) * k // size for k in (rank, rank + 1))
        lo, hi = (min(k * data.batch_size, len(data.dataset)) for k in (first, last))  # type: ignore[arg-type]
        part = DataLoader(
            Subset(data.dataset, range(lo, hi)),
            batch_size=data.batch_size,
            collate_fn=data.collate_fn,
            num_workers=data.num_workers,
            pin_memory=data.pin_memory,
        )
        return Share(part, lo, last - first)
    if isinstance(data, (list, tuple)):
        first, last = (len(data) * k // size for k in (rank, rank + 1))
        before = sum(batch_size(item[1], "train", at) for at, item in enumerate(data[:first]))
        return Share(list(data[first:last]), before, last - first)
    raise TypeError(
        f"the data to be shared is {say(data)}; expected a list of (inputs, targets) batches, or a DataLoader over a "
        "dataset with shuffle=False: each process takes a stretch of it, and an example is known by its position."
    )


def _in_order(loader: DataLoader) -> bool:
    batches = loader.batch_sampler
    return type(batches) is BatchSampler and type(batches.sampler) is SequentialSampler


def shared(ranks: Ranks, model: nn.Module, data: Data) -> Share:
    """This process's share, once all are seen to have the same model and as many batches."""
    part = share(data, ranks.rank, ranks.size)
    agreed(ranks, model, data)
    return part


def agreed(ranks: Ranks, model: nn.Module, data: Data) -> None:
    """Raise ValueError unless all processes have the same model and as many batches, at least one."""
    check_mode(model)
    ranks.agree("the model (hash of its weights)", hash_weights(model))
    count = len(data)  # type: ignore[arg-type]
    ranks.agree("the number of batches", count)
    if not count:
        raise ValueError("train is empty: it has no batch. Expected at least one (inputs, targets) batch.")
