"""The digits asked about with a small convolutional network: seeded, untrained, so far from saturation."""

from __future__ import annotations

from digits import read
from torch import nn
from workload import Workload, trained

CHANNELS = (4, 6)


def model(channels: tuple[int, ...]) -> nn.Sequential:
    """Two convolutions of stride 2, the second without a bias, and a Linear layer: submodules "1", "3" and "6"."""
    first, second = channels
    return nn.Sequential(
        nn.Unflatten(1, (1, 28, 28)),
        nn.Conv2d(1, first, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(first, second, 3, stride=2, padding=1, bias=False),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(second * 7 * 7, 10),
    )


def prepare(n_train: int, n_queries: int, shipped: bool = False) -> Workload:
    """The digits of `digits.prepare`, and the untrained network."""
    source, *data = read(n_train, n_queries, shipped)
    pairs = (data[0], data[1]), (data[2], data[3])
    layers = ("1", "3", "6")
    return trained("convolutions", source, CHANNELS, layers, model, *pairs, epochs=0, batch_size=128, seed=0)
