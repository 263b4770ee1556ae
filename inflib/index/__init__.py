"""The training side prepared once, so that a new query, damping or layer subset costs no pass over it.

In memory, every number of every gradient:

    sides.py         both sides captured and rotated into the eigenbasis; basis.py: whose eigenbasis it is
    rounding.py      what half precision loses of it, as scores count it
    products.py      ⟨G̃_q ⊙ 1/(Λ + λ), G̃_n⟩ of one layer
    exact.py         TrainIndex

On disk, in few bits:

    survey.py        how many examples, and which layers are applied once an example
    axes.py          which coordinates are kept; fitting.py: fitted, and their file
    bits.py          few bits for each of them
    records.py       what is kept of one example
    manifest.py      what is in a store's folder; folder.py: written whole or not at all, by one process
    building.py      shard by shard, from where it stopped
    packed.py        products that need no unpacking
    certificate.py   how far a score is from the exact one at most
    shards.py        a shard from its file
    lengths.py       norms and self-influences
    store.py         Store

    search.py        the strongest examples, exact; examples.py: fetched by their numbers
    saving.py        save, load_index
"""

from .building import StoreNote
from .exact import TrainIndex
from .saving import load_index, save
from .search import Found, rescore
from .sides import Rotated, Side, take
from .store import Store

Index = TrainIndex | Store

__all__ = [
    "Found",
    "Index",
    "Rotated",
    "Side",
    "Store",
    "StoreNote",
    "TrainIndex",
    "load_index",
    "rescore",
    "save",
    "take",
]
