"""The digits: 5,000 MNIST images that ship with the repository, and all 70,000 where they are at hand.

``mnist_5k()`` gives 4,500 digits to train on and 500 queries, 50 of each class, that no shipped model has seen; the
split never changes. ``mnist_full()`` gives MNIST's own 60,000 and 10,000, found or downloaded by ``downloads``. Every
image knows its position in MNIST. A model reads ``inputs``: pixels divided by 255, then (x − 0.5) / 0.5, so that black
is −1 and white is 1, as in the published experiment. ``data/README.md`` says where the images come from,
``data/build_mnist_5k.py`` rebuilds the file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..fingerprints import hash_tensor
from . import downloads
from .downloads import FOLDER as FOLDER

SCALES = ("small", "full")

# of the arrays, not of the file: another zlib may write the same arrays as other bytes
MNIST_5K_SHA256 = "25a4d02c821d5ad7d0881b54fb85d33d8cae0a6d372e61aa32578ba51fa7174b"
MNIST_5K_ARRAYS = {  # name: type and shape of what the file holds
    "images": ("uint8", (5000, 28, 28)),
    "labels": ("uint8", (5000,)),
    "index": ("int32", (5000,)),  # in MNIST's training set, increasing
    "split": ("uint8", (5000,)),  # 0: train, 1: query
}


@dataclass(frozen=True, eq=False, repr=False)
class Digits:
    """N digits, as arrays to look at and as tensors to train on; row n is the same digit in all four."""

    images: np.ndarray  # (N, 28, 28) uint8, white on black
    inputs: Tensor  # (N, 784) float32 in [-1, 1]
    labels: Tensor  # (N,) int64, 0 to 9
    index: np.ndarray  # (N,) int64, position in MNIST's training set; of mnist_full()'s queries, in its test set

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: slice | list[int] | np.ndarray | Tensor) -> Digits:
        """The digits in these rows (a slice, positions or a mask), as ``Digits`` again."""
        if not isinstance(rows, slice):
            rows = np.atleast_1d(np.asarray(rows))
        return Digits(self.images[rows], self.inputs[rows], self.labels[rows], self.index[rows])

    def batches(
        self, batch_size: int = 500, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> list[tuple[Tensor, Tensor]]:
        """(inputs, targets) batches in order, the form in which inflib takes data."""
        inputs, labels = self.inputs.to(device=device, dtype=dtype), self.labels.to(device)
        return list(zip(inputs.split(batch_size), labels.split(batch_size), strict=True))

    def __repr__(self) -> str:
        counts = ", ".join(map(str, torch.bincount(self.labels, minlength=10).tolist()))
        return f"Digits({len(self)} images; of classes 0 to 9: {counts})"


@dataclass(frozen=True, eq=False)
class DigitData:
    """Digits to train on, and digits to ask about."""

    train: Digits
    queries: Digits


def mnist_5k(path: str | Path | None = None) -> DigitData:
    """The 5,000 digits that ship with the repository: 4,500 to train on and 500 queries, each in MNIST's order.

    ``path`` is a file to read in place of ``data/mnist_5k.npz``. Raises FileNotFoundError where the file is missing
    and ValueError where it holds anything else than expected; both say how to put it right.
    """
    arrays = _read(Path(path) if path is not None else FOLDER / "mnist_5k.npz")
    is_query = arrays["split"] == 1
    return DigitData(_digits(arrays, ~is_query), _digits(arrays, is_query))


def mnist_full(*, progress: bool = True) -> DigitData:
    """All of MNIST: 60,000 digits to train on, and its 10,000 test digits as queries.

    Read from ``$INFLIB_DATA`` or the cache, else downloaded (11 MB, see ``downloads.read``). Raises FileNotFoundError
    where neither works, with where to put the files by hand: ``mnist_5k()`` needs nothing.
    """
    try:
        held = {name: downloads.read(file, progress=progress) for name, file in downloads.MNIST.items()}
    except FileNotFoundError as problem:
        raise FileNotFoundError(f"{problem} The 5,000 digits that ship work without it: mnist_5k().") from problem
    parts = []
    for part, count in (("train", 60_000), ("test", 10_000)):
        # hashes were checked: past the headers, pixels and labels are where they should be
        images = np.frombuffer(held[f"{part}_images"], np.uint8, offset=16).reshape(count, 28, 28).copy()
        labels = np.frombuffer(held[f"{part}_labels"], np.uint8, offset=8)
        parts.append(_digits({"images": images, "labels": labels, "index": np.arange(count)}, slice(None)))
    return DigitData(*parts)


def mnist(scale: str = "small", *, progress: bool = True) -> DigitData:
    """``mnist_5k()`` at scale "small", ``mnist_full()`` at scale "full"."""
    if scale not in SCALES:
        raise ValueError(f"scale={scale!r}; expected one of {', '.join(SCALES)}: 4,500 digits, or 60,000.")
    return mnist_5k() if scale == "small" else mnist_full(progress=progress)


def normalise(images: np.ndarray) -> Tensor:
    """(N, 28, 28) uint8 images as (N, 784) float32 inputs: 0 becomes −1, 255 becomes 1."""
    pixels = torch.from_numpy(np.ascontiguousarray(images)).flatten(1).float() / 255
    return (pixels - 0.5) / 0.5


def content_sha256(arrays: Mapping[str, np.ndarray | Tensor]) -> str:
    """SHA-256 of named arrays: of every name, dtype, shape and value, whatever the order they are given in."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(name.encode())
        hash_tensor(digest, torch.as_tensor(arrays[name]))
    return digest.hexdigest()


# --- reading the file ------------------------------------------------------------------------------------------


def _digits(arrays: Mapping[str, np.ndarray], rows: np.ndarray | slice) -> Digits:
    images = arrays["images"][rows]
    labels = torch.from_numpy(arrays["labels"][rows].astype(np.int64))
    return Digits(images, normalise(images), labels, arrays["index"][rows].astype(np.int64))


def _read(path: Path) -> dict[str, np.ndarray]:
    """The arrays of the file, checked against ``MNIST_5K_ARRAYS`` and ``MNIST_5K_SHA256``."""
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing; expected the 5,000 digits that ship with the repository. {_repair(path)} "
            "If inflib was installed without its repository, clone that and run `pip install -e .` in it."
        )
    arrays = _load(path)
    came = {name: (str(array.dtype), array.shape) for name, array in arrays.items()}
    if came != MNIST_5K_ARRAYS:
        raise ValueError(f"{path} holds {_say(came)}; expected {_say(MNIST_5K_ARRAYS)}. {_repair(path)}")
    sha256 = content_sha256(arrays)
    if sha256 != MNIST_5K_SHA256:
        raise ValueError(
            f"the contents of {path} have SHA-256 {sha256}; expected {MNIST_5K_SHA256}: "
            f"the file was changed or damaged. {_repair(path)}"
        )
    return arrays


def _load(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except Exception as problem:  # a damaged archive fails in some ten ways, in zipfile, in zlib and in numpy
        raise ValueError(
            f"{path} cannot be read ({type(problem).__name__}: {problem}); expected a NumPy archive of "
            f"{', '.join(MNIST_5K_ARRAYS)}, about 820 kB, but {path.stat().st_size:,} bytes came. {_repair(path)}"
        ) from problem


def _repair(path: Path) -> str:
    return f"Restore it with `git checkout data/{path.name}`, or rebuild it with `python data/build_mnist_5k.py`."


def _say(arrays: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {dtype} {shape}" for name, (dtype, shape) in arrays.items()) or "no arrays"
