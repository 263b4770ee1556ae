"""The training side prepared once, so that a new query, damping or layer subset costs no pass over it.

sides.py      both sides captured and rotated into the eigenbasis
products.py   ⟨G̃_q ⊙ 1/(Λ + λ), G̃_n⟩ of one layer
exact.py      TrainIndex: every number of every gradient, in memory
"""

from .exact import TrainIndex
from .saving import load_index, save
from .sides import Rotated, Side, take

__all__ = ["Rotated", "Side", "TrainIndex", "load_index", "save", "take"]
