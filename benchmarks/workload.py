"""The one workload every library is measured on: MNIST digits, a plain ReLU network, seeded and lightly trained.

`prepare` reads the digits, trains the network and returns a `Workload`; `save` and `load` carry it, bit for bit, to the
processes that measure. Pixels are scaled to [-1, 1]. Training is short on purpose: a saturated network has gradients
near zero and would make every comparison of scores a comparison of rounding errors.
"""

from __future__ import annotations

import gzip
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = ROOT / "data" / "mnist_5k.npz"


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


def mlp(widths: tuple[int, ...]) -> nn.Sequential:
    """Linear layers with biases, a ReLU between any two: submodules "0", "2", "4", …"""
    layers: list[nn.Module] = []
    for i, o in zip(widths[:-1], widths[1:], strict=True):
        layers += [nn.Linear(i, o), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def prepare(widths: tuple[int, ...], n_train: int, n_queries: int, epochs: int = 2, seed: int = 0) -> Workload:
    """Read the digits, train the network on the training part, both seeded."""
    source, train_x, train_y, query_x, query_y = _digits(n_train, n_queries)
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


def _digits(n_train: int, n_queries: int) -> tuple[str, Tensor, Tensor, Tensor, Tensor]:
    """The full data set where `INFLIB_DATA` has it, else the 5,000 digits that ship with the repository."""
    folder = Path(os.environ.get("INFLIB_DATA", "")) / "mnist"
    if os.environ.get("INFLIB_DATA") and folder.is_dir():
        train = [_idx(folder / f"train-{part}") for part in ("images-idx3-ubyte.gz", "labels-idx1-ubyte.gz")]
        test = [_idx(folder / f"t10k-{part}") for part in ("images-idx3-ubyte.gz", "labels-idx1-ubyte.gz")]
        source = "MNIST, the first images of its training and test sets"
    else:
        train, test = _shipped()
        source = f"data/{SHIPPED.name}, its training and query parts (INFLIB_DATA/mnist not found)"
    for name, wanted, part in (("training examples", n_train, train), ("queries", n_queries, test)):
        if len(part[0]) < wanted:
            source += f"; only {len(part[0]):,} {name}"
    x, y = _tensors(train, n_train)
    query_x, query_y = _tensors(test, n_queries)
    return source, x, y, query_x, query_y


def _idx(path: Path) -> np.ndarray:
    """One array from the IDX format: two zero bytes, type, number of axes, big-endian sizes, then the bytes."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; expected the four gzipped MNIST files beside it, or INFLIB_DATA unset")
    raw = gzip.decompress(path.read_bytes())
    axes = raw[3]
    shape = tuple(int.from_bytes(raw[4 + 4 * k : 8 + 4 * k], "big") for k in range(axes))
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * axes).reshape(shape)


def _tensors(part: list[np.ndarray], n: int) -> tuple[Tensor, Tensor]:
    images, labels = part[0][:n], part[1][:n]
    x = torch.from_numpy(images.reshape(len(images), -1).astype(np.float32)) / 127.5 - 1
    return x, torch.from_numpy(labels.astype(np.int64))
