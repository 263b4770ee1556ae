"""What is odd about a drawing is said of odd drawings, and seldom of MNIST's own digits."""

from __future__ import annotations

import numpy as np
import pytest

from inflib.lab import Familiar, Stroke, as_mnist, ink_of_strokes, mnist_5k, oddities
from inflib.lab.oddities import enlargement, shapes

ODD = {
    "a dot": ([[(140, 140)]], ["enlarged 8 ×", "unlike all training digits"]),
    "a small 1": ([[(140, 120), (140, 146)]], ["enlarged 4 ×"]),
    "two ones": ([[(70, 40), (70, 240)], [(210, 40), (210, 240)]], ["two shapes"]),
    "a cross": ([[(40, 40), (240, 240)], [(240, 40), (40, 240)]], ["unlike all training digits"]),
    "a square": ([[(40, 40), (240, 40), (240, 240), (40, 240), (40, 40)]], ["unlike all training digits"]),
    "a 1": ([[(150, 40), (135, 240)]], []),
    "a 7": ([[(70, 60), (205, 62), (165, 140), (130, 240)]], []),
    "a 5 in two strokes": (
        [[(105, 50), (95, 125), (150, 120), (185, 155), (180, 205), (80, 220)], [(105, 50), (190, 50)]],
        [],
    ),
}


@pytest.fixture(scope="module")
def digits():
    return mnist_5k()


@pytest.fixture(scope="module")
def familiar(digits) -> Familiar:
    return Familiar(digits.train.images)


def ink_of(digit: np.ndarray) -> np.ndarray:
    """An image of MNIST as the ink of a sheet, ten times as large."""
    return digit.repeat(10, axis=0).repeat(10, axis=1)


@pytest.mark.parametrize("name", ODD)
def test_odd_drawings_are_remarked_on_and_digits_are_not(familiar, name) -> None:
    strokes, expected = ODD[name]
    ink = ink_of_strokes([Stroke(points) for points in strokes])
    assert oddities(ink, as_mnist(ink), familiar) == expected


def test_few_ordinary_digits_are_remarked_on(digits, familiar) -> None:
    """500 digits that no limit was set on: about one in a hundred is unlike all others, as the limit is defined."""
    found = [oddities(ink_of(image), image, familiar) for image in digits.queries.images]
    assert sum(bool(odd) for odd in found) <= 0.03 * len(found)
    assert sum("unlike all training digits" in odd for odd in found) <= 0.02 * len(found)
    assert sum("two shapes" in odd for odd in found) <= 0.01 * len(found)
    assert not any("enlarged" in words for odd in found for words in odd)


def test_the_limit_is_the_training_digits_own(digits) -> None:
    """The 99th percentile of their distances to the nearest other, at half the resolution."""
    few = digits.train.images[:200]
    halves = few.reshape(200, 14, 2, 14, 2).astype(float).mean((2, 4)).reshape(200, -1) / 255
    nearest = [
        min(np.linalg.norm(one - other) for m, other in enumerate(halves) if m != n) for n, one in enumerate(halves)
    ]
    familiar = Familiar(few)
    assert familiar.limit == pytest.approx(float(np.quantile(nearest, 0.99)), rel=1e-4)
    assert familiar.distance(few[3]) == pytest.approx(0, abs=1e-2)
    moved = np.roll(few[3], 6, axis=1)
    truth = min(np.linalg.norm(moved.reshape(14, 2, 14, 2).mean((1, 3)).ravel() / 255 - other) for other in halves)
    assert familiar.distance(moved) == pytest.approx(truth, rel=1e-4)


@pytest.mark.parametrize(("extent", "times"), [(25, 8.0), (100, 2.0), (200, 1.0)])
def test_a_drawing_is_enlarged_by_what_it_lacks_in_size(extent, times) -> None:
    ink = np.zeros((280, 280), np.uint8)
    ink[30 : 30 + extent, 100:110] = 255
    assert enlargement(ink) == pytest.approx(times)
    assert enlargement(ink.T.copy()) == pytest.approx(times)


def test_pieces_are_joined_by_corners_and_specks_are_none() -> None:
    image = np.zeros((28, 28), np.uint8)
    assert shapes(image) == 0
    image[4:10, 4:10] = 255
    image[10:16, 10:16] = 255  # touches the first at a corner
    assert shapes(image) == 1
    image[4:10, 20:26] = 200
    assert shapes(image) == 2
    image[20:22, 4:6] = 255  # a speck
    assert shapes(image) == 2
    image[10, 10:16] = image[:, 9] = 0
    assert shapes(image) == 3


def test_a_long_winding_line_is_one_piece() -> None:
    image = np.zeros((28, 28), np.uint8)
    image[::2] = 255
    for row in range(1, 28, 4):
        image[row, -1] = image[(row + 2) % 28, 0] = 255
    assert shapes(image) == 1
