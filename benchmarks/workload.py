"""The one workload every library is measured on: MNIST digits, a plain ReLU network, seeded and lightly trained.

`prepare` reads the digits, trains the network and returns a `Workload`; `save` and `load` carry it, bit for bit, to the
processes that measure. Pixels are scaled to [-1, 1]. Training is short on purpose: a saturated network has gradients
near zero and would make every comparison of scores a comparison of rounding errors.
"""

from __future__ import annotations

import gzip
import os
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

FILES = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")


@dataclass(frozen=True)
class Workload:
    """Digits and the trained network that is asked about them."""

    source: str  # where the digits came from, in words
    widths: tuple[int, ...]  # of the layers, input to output
    train_x: Tensor  # (N, 784) in [-1, 1]
    train_y: Tensor  # (N,)
    query_x: Tensor  # (Q, 784)
    query_y: Tensor  # (Q,)
    weights: dict[str, Tensor]
    train_loss: float
    train_accuracy: float

    def model(self) -> nn.Sequential:
        """A fresh copy of the trained network, in evaluation mode and the digits' dtype."""
        model = mlp(self.widths).to(self.train_x.dtype)
        model.load_state_dict(self.weights)
        return model.eval()

    def train_set(self) -> TensorDataset:
        return TensorDataset(self.train_x, self.train_y)

    def query_set(self) -> TensorDataset:
        return TensorDataset(self.query_x, self.query_y)

    def cut(self, n_train: int, n_queries: int, dtype: torch.dtype) -> Workload:
        """The first examples and queries only, with digits and weights in another dtype."""
        facts = vars(self) | {
            "train_x": self.train_x[:n_train].to(dtype),
            "train_y": self.train_y[:n_train],
            "query_x": self.query_x[:n_queries].to(dtype),
            "query_y": self.query_y[:n_queries],
            "weights": {name: w.to(dtype) for name, w in self.weights.items()},
        }
        return Workload(**facts)


class Convolutional(Workload):
    """The same digits asked about with a small convolutional network: seeded, untrained, so far from saturation."""

    def model(self) -> nn.Sequential:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            layers = [
                nn.Unflatten(1, (1, 28, 28)),
                nn.Conv2d(1, 4, 3, stride=2, padding=1),
                nn.ReLU(),
                nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False),
                nn.ReLU(),
                nn.Flatten(),
                nn.Linear(6 * 7 * 7, 10),
            ]
        return nn.Sequential(*layers).to(self.train_x.dtype).eval()


def mlp(widths: tuple[int, ...]) -> nn.Sequential:
    """Linear layers with biases, a ReLU between any two: submodules "0", "2", "4", …"""
    layers: list[nn.Module] = []
    for i, o in pairwise(widths):
        layers += [nn.Linear(i, o), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def prepare(
    widths: tuple[int, ...],
    n_train: int,
    n_queries: int,
    epochs: int = 2,
    seed: int = 0,
    shipped: bool = False,
) -> Workload:
    """Read the digits, train the network on its part of them, both seeded; `shipped`: never the full data set."""
    source, train_x, train_y, query_x, query_y = _digits(n_train, n_queries, shipped)
    torch.manual_seed(seed)
    model = mlp(widths)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    order = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for rows in torch.randperm(len(train_x), generator=order).split(128):
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(train_x[rows]), train_y[rows]).backward()
            optimiser.step()
    with torch.no_grad():
        outputs = model(train_x)
        loss = nn.functional.cross_entropy(outputs, train_y).item()
        accuracy = (outputs.argmax(1) == train_y).float().mean().item()
    weights = {name: w.detach().clone() for name, w in model.state_dict().items()}
    return Workload(source, widths, train_x, train_y, query_x, query_y, weights, loss, accuracy)


def save(work: Workload, path: Path) -> None:
    torch.save({name: getattr(work, name) for name in work.__dataclass_fields__}, path)


def load(path: Path) -> Workload:
    return Workload(**torch.load(path, weights_only=True))


def batches(dataset: TensorDataset, batch_size: int) -> DataLoader:
    """The loader every library reads from: in order, no worker processes."""
    return DataLoader(dataset, batch_size=batch_size, shuffle=False)


def _digits(n_train: int, n_queries: int, shipped: bool) -> tuple[str, Tensor, Tensor, Tensor, Tensor]:
    """The full data set where `INFLIB_DATA` has it, else the 5,000 digits that ship with the repository."""
    folder = os.environ.get("INFLIB_DATA", "")
    if folder and (Path(folder) / "mnist").is_dir() and not shipped:
        source = "MNIST, the first images of its training and of its test set"
        parts = [_idx(Path(folder) / "mnist" / f"{name}-ubyte.gz") for name in FILES]
        x, y, query_x, query_y = (torch.from_numpy(part) for part in parts)
        x, query_x = (images[:n].flatten(1) / 127.5 - 1 for images, n in ((x, n_train), (query_x, n_queries)))
    else:
        source = "the digits in data/mnist_5k.npz" + ("" if shipped else " (no INFLIB_DATA/mnist)")
        from inflib.lab import mnist_5k  # here, so that the other libraries' processes never import inflib

        digits = mnist_5k()
        x, y = digits.train.inputs, digits.train.labels
        query_x, query_y = digits.queries.inputs, digits.queries.labels
    return source, x[:n_train].clone(), y[:n_train].long(), query_x[:n_queries].clone(), query_y[:n_queries].long()


def _idx(path: Path) -> np.ndarray:
    """One array from the IDX format: two zero bytes, type, number of axes, big-endian sizes, then the bytes."""
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing; expected {', '.join(FILES)} there; unset INFLIB_DATA "
            "to use the digits that ship with the repository"
        )
    raw = gzip.decompress(path.read_bytes())
    axes = raw[3]
    shape = tuple(int.from_bytes(raw[4 + 4 * k : 8 + 4 * k], "big") for k in range(axes))
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * axes).reshape(shape).copy()  # writable, as torch wants it
