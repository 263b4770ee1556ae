"""What the notebooks study: data sets, models and their training. The core of inflib never imports this package.

downloads   files that others publish, found on this machine or downloaded once
data        the digits that ship with the repository, with a split that never changes, and all of MNIST
handwriting a drawing or a photograph as MNIST would hold it
models      small networks whose layers have readable names
networks    the networks of notebook 07, shipped or trained when first asked for
training    seeded training, and checkpoints that know their weights and their data
"""

from __future__ import annotations

from .data import DigitData, Digits, mnist, mnist_5k, mnist_full, normalise
from .handwriting import NoDigitError, Stroke, as_mnist, ink_of_picture, ink_of_strokes
from .models import cnn, mlp
from .networks import network
from .training import (
    Checkpoint,
    History,
    accuracy,
    load_checkpoint,
    mean_loss,
    save_checkpoint,
    shipped_checkpoint,
    train,
)

__all__ = [
    "Checkpoint",
    "DigitData",
    "Digits",
    "History",
    "NoDigitError",
    "Stroke",
    "accuracy",
    "as_mnist",
    "cnn",
    "ink_of_picture",
    "ink_of_strokes",
    "load_checkpoint",
    "mean_loss",
    "mlp",
    "mnist",
    "mnist_5k",
    "mnist_full",
    "network",
    "normalise",
    "save_checkpoint",
    "shipped_checkpoint",
    "train",
]
