"""Handwriting for a network that was trained on MNIST: strokes and pictures as ink, and ink as MNIST would hold it.

    strokes         → ink_of_strokes ┐
    a PNG or a JPEG → ink_of_picture ┴→ ink (H, W) uint8: 0 bare paper, 255 full ink → as_mnist → (28, 28) uint8

MNIST's makers scaled each of NIST's digits to fit a box of 20 × 20 pixels, its proportions kept and its edges made
grey, and moved it in a field of 28 × 28 until its centre of mass was at the centre (LeCun, Cortes, Burges, "The MNIST
database"). ``as_mnist`` does the same: it gives every digit of MNIST, enlarged and moved, back as it was.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

FIELD, BOX = 28, 20  # MNIST's sizes, in pixels
MAX_BYTES, MAX_PIXELS = 8_000_000, 25_000_000  # of a picture: of its file, and once unpacked
KINDS = ("PNG", "JPEG")
EMPTY = "Nothing is drawn yet. Draw a digit, or upload a picture of one."
FAINT = 0.1  # ink of a picture below this share of its full ink is dirt, noise or a trace of compression


class NoDigitError(ValueError):
    """There is nothing to read; the message tells the person who drew or uploaded it why, and what to do."""


@dataclass(frozen=True)
class Stroke:
    """A line drawn without lifting the pen; one point alone is a dot."""

    points: Sequence[Sequence[float]]  # (x, y) in pixels from the upper left corner
    width: float = 24.0  # of the pen, in pixels


def as_mnist(ink: np.ndarray) -> np.ndarray:
    """Ink (H, W) of any size, uint8, as the (28, 28) uint8 image that MNIST would hold.

    The centre of mass comes to lie on pixel 14, to the nearest pixel, as it does in every image of MNIST; less where
    ink would leave the field. Raises NoDigitError where there is no ink.
    """
    if ink.ndim != 2 or ink.dtype != np.uint8:
        raise ValueError(f"as_mnist got ink of shape {ink.shape} and type {ink.dtype}; expected (H, W) uint8.")
    if not ink.any():
        raise NoDigitError(EMPTY)
    rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
    drawn = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].astype(np.float64)  # (h, w)
    scale = BOX / max(drawn.shape)
    down, across = (_averages(n, scale) for n in drawn.shape)
    small = down @ drawn @ across.T  # at most (20, 20)
    top, left = (_shift(small.sum(axis)) for axis in (1, 0))
    field = np.zeros((FIELD, FIELD))
    field[top : top + small.shape[0], left : left + small.shape[1]] = small
    return _grey_levels(field)


def ink_of_strokes(strokes: Sequence[Stroke], size: int = 280) -> np.ndarray:
    """Strokes of a round pen on a square sheet of ``size`` pixels, as ink (size, size) uint8 with smooth edges."""
    cover = np.zeros((size, size))
    for stroke in strokes:
        points = np.asarray(stroke.points, dtype=np.float64).reshape(-1, 2)
        for start, end in zip(points, points[1:] if len(points) > 1 else points, strict=False):
            _draw_segment(cover, start, end, stroke.width / 2)
    return _grey_levels(255 * cover)


def ink_of_picture(data: bytes, side: int = 280) -> np.ndarray:
    """A PNG's or a JPEG's ink, (h, w) uint8 with neither side above ``side``: dark on light, or chalk on a board.

    The ground may be lit unevenly; whatever differs from it is taken for ink, so the digit should be alone and have
    ground all around it. Raises NoDigitError for what is not such a picture, is above ``MAX_BYTES`` or ``MAX_PIXELS``,
    or shows nothing, and TypeError for what is not bytes: a file's name, for instance.
    """
    if not isinstance(data, bytes | bytearray | memoryview):
        raise TypeError(
            f"a {type(data).__name__} came for a picture; expected the bytes of a PNG or a JPEG file: "
            "pathlib.Path('digit.png').read_bytes()."
        )
    grey = _read(data, side)
    light, noise = _above_ground(grey)
    ink = np.maximum(light if light.max() > -light.min() else -light, 0)  # chalk is lighter than its ground
    strong = ink[ink > ink.max() / 2]
    full = float(np.median(strong)) if len(strong) else 0.0
    if full < max(25, 6 * noise):
        raise NoDigitError(
            "No digit can be told from its ground in this picture. "
            "Take one with more contrast, and with ground all around the digit."
        )
    ink[ink < max(FAINT * full, 4 * noise)] = 0
    return _grey_levels(255 * np.minimum(ink / full, 1))


# --- ink to MNIST ----------------------------------------------------------------------------------------------


def _averages(n: int, scale: float) -> np.ndarray:
    """(⌈n · scale⌉, n): row k averages the pixels, and parts of pixels, that make up pixel k of the scaled image."""
    to = math.ceil(n * scale - 1e-9)
    edges, pixels = np.arange(to + 1)[:, None] / scale, np.arange(n)
    overlap = np.minimum(edges[1:], pixels + 1) - np.maximum(edges[:-1], pixels)
    return np.maximum(overlap, 0) * scale


def _shift(mass: np.ndarray) -> int:
    """Where pixel 0 goes so that the centre of this mass, (n,), lies on pixel 14 and all of it in the field."""
    centre = float(mass @ np.arange(len(mass)) / mass.sum())
    return int(np.clip(math.floor(FIELD / 2 - centre + 0.5), 0, FIELD - len(mass)))


def _grey_levels(values: np.ndarray) -> np.ndarray:
    """Rounded to uint8; the last bits of a product, which differ between machines, do not decide a half."""
    return np.floor(np.round(values, 6) + 0.5).astype(np.uint8)


# --- strokes to ink --------------------------------------------------------------------------------------------


def _draw_segment(cover: np.ndarray, start: np.ndarray, end: np.ndarray, radius: float) -> None:
    """Cover, 0 to 1, what lies within ``radius`` of the segment; over one pixel the edge fades."""
    low = np.floor(np.minimum(start, end) - radius - 1).astype(int).clip(0)  # (x, y)
    high = np.ceil(np.maximum(start, end) + radius + 1).astype(int).clip(0)
    part = cover[low[1] : high[1], low[0] : high[0]]
    y, x = np.ogrid[: part.shape[0], : part.shape[1]]
    dx, dy = end - start
    x, y = x + 0.5 + low[0] - start[0], y + 0.5 + low[1] - start[1]
    along = ((x * dx + y * dy) / max(dx * dx + dy * dy, 1e-12)).clip(0, 1)
    distance = np.sqrt((x - along * dx) ** 2 + (y - along * dy) ** 2)
    np.maximum(part, (radius + 0.5 - distance).clip(0, 1), out=part)


# --- pictures to ink -------------------------------------------------------------------------------------------


def _read(data: bytes, side: int) -> np.ndarray:
    """Grey values (h, w), 0 black to 255 white, float64; scaled down before anything else is done."""
    if len(data) > MAX_BYTES:
        raise NoDigitError(too_large(len(data)))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=KINDS)
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            image.draft("L", (side, side))  # a JPEG is unpacked at a fraction of its size
            return _grey(image, side)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise NoDigitError(
            f"This picture has more than {MAX_PIXELS // 10**6} million pixels. Save it smaller and upload it again."
        ) from None
    except Image.UnidentifiedImageError:
        raise NoDigitError("This file is neither a PNG nor a JPEG picture. Upload one of these.") from None
    except Exception as problem:  # a damaged file fails in many ways, in Pillow's parsers and in its codecs
        raise NoDigitError(f"This picture is damaged and cannot be read ({problem}). Save it anew.") from problem


def too_large(size: int) -> str:
    """What to say of a file of so many bytes."""
    return (
        f"This file has {size / 1e6:,.1f} MB; a picture may have up to {MAX_BYTES / 1e6:.0f} MB. "
        "Save it smaller and upload it again."
    )


def _grey(image: Image.Image, side: int) -> np.ndarray:
    """Any mode as grey values; what is transparent becomes the ground that its opaque part stands out from."""
    if image.mode.startswith("I"):  # 16 bits a pixel, which Pillow would cut off at 255
        image = Image.fromarray((np.asarray(image) / 257).astype(np.uint8))
    see_through = "A" in image.getbands() or "transparency" in image.info
    image = image.convert("RGBA" if see_through else "L")
    image.thumbnail((side, side), reducing_gap=2.0)
    image = ImageOps.exif_transpose(image)  # cameras write down how they were held
    grey = np.asarray(image.convert("L"), dtype=np.float64)
    if not see_through:
        return grey
    alpha = np.asarray(image.getchannel("A"), dtype=np.float64) / 255
    ground = 0 if (alpha * grey).sum() > 127 * alpha.sum() else 255
    return alpha * grey + (1 - alpha) * ground


def _above_ground(grey: np.ndarray) -> tuple[np.ndarray, float]:
    """How much lighter each pixel (h, w) is than the ground, and the ground's own noise, in grey values.

    The ground's brightness is a quadratic surface, fitted again and again to the pixels that are close to it, from two
    starts, the darker and the lighter half: one of them holds no ink. The closer fit is taken.
    """
    y, x = (a.ravel() / max(grey.shape) for a in np.mgrid[: grey.shape[0], : grey.shape[1]])
    terms = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=1)  # (h·w, 6)
    values, middle = grey.ravel(), np.median(grey)
    above, noise = min(
        (_fit(terms, values, start) for start in (values <= middle, values >= middle)), key=lambda f: f[1]
    )
    return above.reshape(grey.shape), noise


def _fit(terms: np.ndarray, values: np.ndarray, ground: np.ndarray, rounds: int = 4) -> tuple[np.ndarray, float]:
    """Values less the surface through those of the ground, and their spread around it."""
    above, noise = values, 0.0
    for _ in range(rounds):
        above = values - terms @ np.linalg.lstsq(terms[ground], values[ground], rcond=None)[0]
        noise = 1.4826 * float(np.median(np.abs(above)))
        ground = np.abs(above) <= max(3 * noise, 2.0)
    return above, noise
