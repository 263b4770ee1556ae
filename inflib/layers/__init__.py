"""Which modules are understood, and how a call of one yields pairs (a, g).

kinds.py          a Kind, how a module is read as a matrix; a Layer, which is chosen; what a user may ask for
registry.py       the module types that are understood, and how to teach one more
convolutions.py   patches of the input, or of the output's gradient
elementwise.py    a normalisation's scale and shift, a bias alone
onehot.py         an embedding's activations, without their zeros
"""

from .kinds import Choice, Exactly, Kind, Layer, LayerSpec, everything, positions_last, untied, without_biases
from .onehot import OneHot
from .registry import _KINDS, alone, forward_of_its_own, kind_of, kinds_of, register

__all__ = [
    "_KINDS",
    "Choice",
    "Exactly",
    "Kind",
    "Layer",
    "LayerSpec",
    "OneHot",
    "alone",
    "everything",
    "forward_of_its_own",
    "kind_of",
    "kinds_of",
    "positions_last",
    "register",
    "untied",
    "without_biases",
]
