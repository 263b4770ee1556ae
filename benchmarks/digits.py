"""The digits: MNIST and a plain ReLU network, lightly trained. Pixels are scaled to [-1, 1]."""

from __future__ import annotations

import gzip
import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from workload import Workload, trained

FILES = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")


def model(widths: tuple[int, ...]) -> nn.Sequential:
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
    device: str = "cpu",
) -> Workload:
    """Read the digits, train the network on its part of them, both seeded; `shipped`: never the full data set."""
    source, train_x, train_y, query_x, query_y = read(n_train, n_queries, shipped)
    layers = tuple(str(2 * k) for k in range(len(widths) - 1))
    data = (train_x, train_y), (query_x, query_y)
    how = {"epochs": epochs, "batch_size": 128, "seed": seed, "device": device}
    return trained("digits", source, widths, layers, model, *data, **how)


def read(n_train: int, n_queries: int, shipped: bool) -> tuple[str, Tensor, Tensor, Tensor, Tensor]:
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
