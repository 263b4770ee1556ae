"""What the notebooks study: data sets, models and their training. The core of inflib never imports this package.

data        the digits that ship with the repository, with a split that never changes
models      small networks whose layers have readable names
training    seeded training, and checkpoints that know their weights and their data
"""

from __future__ import annotations

from .data import DigitData, Digits, mnist_5k, normalise
from .models import mlp
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
    "accuracy",
    "load_checkpoint",
    "mean_loss",
    "mlp",
    "mnist_5k",
    "normalise",
    "save_checkpoint",
    "shipped_checkpoint",
    "train",
]
