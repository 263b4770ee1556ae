"""What every library is measured on: data, a small trained model and its loss, the same bits in every process.

Two tasks: `digits.py` prepares a plain ReLU network on MNIST, `characters.py` a two-layer transformer on text. `save`
and `load` carry a `Workload` to the processes that measure. Training is short on purpose: a saturated network has
gradients near zero and would make every comparison of scores a comparison of rounding errors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset, default_collate


@dataclass(frozen=True)
class Workload:
    """Data, on the CPU, and the trained model that is asked about it, on any device."""

    task: str  # "digits" or "characters": the module that builds the model
    source: str  # where the data came from, in words
    shape: tuple[int, ...]  # of the model, see its task's `model`
    layers: tuple[str, ...]  # the layers that influence goes through
    train_x: Tensor  # (N, ...)
    train_y: Tensor  # (N,) classes, or (N, T) tokens
    query_x: Tensor  # (Q, ...)
    query_y: Tensor
    weights: dict[str, Tensor]
    train_loss: float  # nats a label
    train_accuracy: float

    def model(self) -> nn.Module:
        """A fresh copy of the trained model, in evaluation mode, with the weights' dtype and device."""
        model = import_module(self.task).model(self.shape).to(self.device, next(iter(self.weights.values())).dtype)
        model.load_state_dict(self.weights)
        return model.eval()

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(iter(self.weights.values())).device

    def train_set(self) -> TensorDataset:
        return TensorDataset(self.train_x, self.train_y)

    def query_set(self) -> TensorDataset:
        return TensorDataset(self.query_x, self.query_y)

    def cut(self, n_train: int, n_queries: int, dtype: torch.dtype) -> Workload:
        """The first examples and queries only, with floating inputs and weights in another dtype."""

        def cast(x: Tensor) -> Tensor:
            return x.to(dtype) if x.is_floating_point() else x

        facts = vars(self) | {
            "train_x": cast(self.train_x[:n_train]),
            "train_y": self.train_y[:n_train],
            "query_x": cast(self.query_x[:n_queries]),
            "query_y": self.query_y[:n_queries],
            "weights": {name: w.to(dtype) for name, w in self.weights.items()},
        }
        return Workload(**facts)


def summed_loss(outputs: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy summed over a batch, tokens included: logits (..., C), labels (...)."""
    return nn.functional.cross_entropy(outputs.flatten(0, -2), labels.flatten(), reduction="sum")


def trained(
    task: str,
    source: str,
    shape: tuple[int, ...],
    layers: tuple[str, ...],
    build: Callable[[tuple[int, ...]], nn.Module],
    train: tuple[Tensor, Tensor],
    queries: tuple[Tensor, Tensor],
    epochs: int,
    batch_size: int,
    seed: int,
    device: str = "cpu",
) -> Workload:
    """A workload whose model was trained on its part of the data with Adam at 1e-3, seeded."""
    torch.manual_seed(seed)
    model, (x, y) = build(shape).to(device), (part.to(device) for part in train)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    order = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=order).to(device).split(batch_size):
            optimiser.zero_grad()
            (summed_loss(model(x[rows]), y[rows]) / y[rows].numel()).backward()
            optimiser.step()
    loss = right = 0.0
    with torch.no_grad():
        for some, labels in zip(x.split(500), y.split(500), strict=True):
            outputs = model(some)
            loss += summed_loss(outputs, labels).item() / y.numel()
            right += int((outputs.argmax(-1) == labels).sum()) / y.numel()
    weights = {name: w.detach().cpu().clone() for name, w in model.state_dict().items()}
    return Workload(task, source, shape, layers, *train, *queries, weights, loss, right)


def save(work: Workload, path: Path) -> None:
    torch.save({name: getattr(work, name) for name in work.__dataclass_fields__}, path)


def load(path: Path, device: str = "cpu") -> Workload:
    work = Workload(**torch.load(path, weights_only=True))
    return replace(work, weights={name: w.to(device) for name, w in work.weights.items()})


def batches(dataset: TensorDataset, batch_size: int, device: torch.device | str = "cpu") -> DataLoader:
    """The loader every library reads from: in order, no worker processes, each batch moved to the device."""

    def moved(rows: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
        return [x.to(device) for x in default_collate(rows)]

    return DataLoader(dataset, batch_size=batch_size, shuffle=False, collate_fn=moved)
