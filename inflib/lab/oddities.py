"""What is odd about a drawing, so that what a network makes of it deserves a doubt.

    enlarged     ``as_mnist`` enlarges it until it is as large as MNIST's digits, and its pen with it
    shapes       separate pieces of ink: the network was trained on one digit a picture
    unlike all   its nearest training digit is farther away than the training digits' own nearest neighbours are

Distance is Euclidean between images of half the size, which forgives a line its last pixel. A piece of ink counts from
15% of all ink on. The limits are such that MNIST's own digits seldom exceed them: one in a hundred is unlike all
others, by the definition of ``UNLIKE``, and one in two hundred and fifty has two shapes.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ..batches import BYTE_BUDGET, chunks
from .handwriting import BOX, FIELD

ENLARGED = 3.0  # times, from which on it is worth a word
FAINTEST, SHARE = 32, 0.15  # of a piece: the grey value of its ink, and its part of all ink
UNLIKE = 0.99  # of the training digits have a nearer neighbour than this quantile
SAMPLE = 500  # training digits whose nearest neighbours set the limit
NUMBERS = ("no", "one", "two", "three", "four", "five", "six")


class Familiar:
    """Training digits, to tell what is like none of them. ``images`` (N, 28, 28) uint8; three at least."""

    def __init__(self, images: np.ndarray) -> None:
        self._known = _halved(images)  # (N, 196)

    def distance(self, image: np.ndarray) -> float:
        """From this image (28, 28) uint8 to the nearest training digit."""
        return float(torch.cdist(_halved(image[None]), self._known).min())

    @cached_property
    def limit(self) -> float:
        """What all but one in a hundred training digits keep to with their own nearest neighbour."""
        N = len(self._known)
        rows, nearest = torch.arange(0, N, max(1, N // SAMPLE)), []
        for some in chunks(len(rows), 4 * N, BYTE_BUDGET):
            distance = torch.cdist(self._known[rows[some]], self._known)  # (r, N)
            distance[torch.arange(len(distance)), rows[some]] = torch.inf  # no digit is its own neighbour
            nearest.append(distance.min(1).values)
        return float(torch.cat(nearest).quantile(UNLIKE))


def oddities(ink: np.ndarray, image: np.ndarray, familiar: Familiar) -> list[str]:
    """What is odd about the ink of a sheet (H, W), read as ``image`` (28, 28): a few words each, none for a digit."""
    times, pieces = enlargement(ink), shapes(image)
    found = [f"enlarged {times:.0f} ×"] if times >= ENLARGED else []
    if pieces > 1:
        found.append(f"{NUMBERS[pieces]} shapes")
    return found + ["unlike all training digits"] * (familiar.distance(image) > familiar.limit)


def enlargement(ink: np.ndarray) -> float:
    """How many times larger ``as_mnist`` makes ink (H, W) than a sheet of 28 × 28 would have it."""
    rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
    drawn = max(rows[-1] - rows[0], columns[-1] - columns[0]) + 1
    return BOX / FIELD * max(ink.shape) / float(drawn)


def shapes(image: np.ndarray) -> int:
    """How many separate pieces an image (H, W) uint8 has, by corners joined, that hold 15% of its ink or more."""
    inked = image > FAINTEST
    pieces = np.where(inked, np.arange(1, image.size + 1).reshape(image.shape), 0)
    while True:  # the largest number of a piece spreads to all of it
        around = np.lib.stride_tricks.sliding_window_view(np.pad(pieces, 1), (3, 3)).max((2, 3))
        spread = np.where(inked, around, 0)
        if (spread == pieces).all():
            break
        pieces = spread
    mass = np.bincount(pieces.ravel(), weights=image.ravel())[1:]
    return int((mass >= SHARE * mass.sum()).sum()) if len(mass) else 0


def _halved(images: np.ndarray) -> Tensor:
    """(N, 28, 28) uint8 as (N, 196) float32, every four pixels their mean, 1 full ink."""
    N, H, W = images.shape
    return torch.from_numpy(images.reshape(N, H // 2, 2, W // 2, 2).mean((2, 4), dtype=np.float32)).flatten(1) / 255
