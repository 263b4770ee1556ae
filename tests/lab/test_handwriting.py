"""Ink comes out as MNIST would hold it; pictures are read whatever their ground, and what cannot be read is refused."""

from __future__ import annotations

import io
import struct
import zlib
from contextlib import suppress

import numpy as np
import pytest
from PIL import Image, ImageFile

from inflib.lab.handwriting import (
    MAX_BYTES,
    NoDigitError,
    Stroke,
    as_mnist,
    ink_of_picture,
    ink_of_strokes,
)


@pytest.fixture(scope="module")
def images(digits) -> np.ndarray:
    return np.concatenate([digits.train.images, digits.queries.images])


def cut_out(image: np.ndarray) -> np.ndarray:
    """What lies between the first and the last row and column with ink."""
    rows, columns = np.flatnonzero(image.any(1)), np.flatnonzero(image.any(0))
    return image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def enlarged(image: np.ndarray, times: int) -> np.ndarray:
    return image.repeat(times, axis=0).repeat(times, axis=1)


def on_sheet(image: np.ndarray, top: int, left: int, size: int = 400) -> np.ndarray:
    sheet = np.zeros((size, size), np.uint8)
    sheet[top : top + len(image), left : left + image.shape[1]] = image
    return sheet


def smooth(image: np.ndarray, size: int) -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC))


def difference(found: np.ndarray, image: np.ndarray) -> float:
    """Mean absolute difference in grey values of 255."""
    return float(np.abs(found.astype(int) - image.astype(int)).mean())


def encoded(image: np.ndarray | Image.Image, kind: str = "PNG", **options) -> bytes:
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


# --- as_mnist --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("times", [1, 10])
def test_every_shipped_digit_enlarged_and_moved_comes_back_as_it_was(images, times) -> None:
    """Pixel for pixel, but for the one digit of 5,000 whose longer side is 19 pixels and not 20."""
    rng, other = np.random.default_rng(0), []
    for image in images:
        big = enlarged(cut_out(image), times)
        sheet = on_sheet(big, *(int(rng.integers(0, 401 - side)) for side in big.shape))
        if max(big.shape) == 20 * times:
            np.testing.assert_array_equal(as_mnist(sheet), image)
        else:
            other.append(difference(as_mnist(sheet), image))
    assert len(other) == 1
    assert other[0] < 15


def test_a_smoothly_enlarged_digit_comes_back_near_itself(images) -> None:
    """Smoothing spreads the ink, by more than a pixel of MNIST's; 8.7 of 255 on the average of all 5,000."""
    found = [difference(as_mnist(smooth(image, 280)), image) for image in images[::10]]
    apart = [difference(image, other) for image, other in zip(images[::10], images[5::10], strict=True)]
    assert np.mean(found) < 10
    assert np.mean(apart) > 40


def test_the_same_ink_anywhere_on_the_sheet_is_the_same_image(images) -> None:
    digit = enlarged(images[7], 5)
    corners = [as_mnist(on_sheet(digit, top, left)) for top, left in ((0, 0), (260, 0), (0, 260), (131, 57))]
    for other in corners[1:]:
        np.testing.assert_array_equal(other, corners[0])


def test_the_centre_of_mass_lies_on_pixel_14() -> None:
    seven = ink_of_strokes([Stroke([(20, 20), (110, 25), (50, 160)], width=14)])
    image = as_mnist(seven).astype(float)
    for axis in (0, 1):
        mass = image.sum(axis)
        assert mass @ np.arange(28) / mass.sum() == pytest.approx(14, abs=0.5)
    rows, columns = np.flatnonzero(image.any(1)), np.flatnonzero(image.any(0))
    assert max(np.ptp(rows), np.ptp(columns)) + 1 == 20


def test_proportions_are_kept() -> None:
    bar = np.zeros((400, 400), np.uint8)
    bar[100:300, 180:205] = 255  # 200 × 25, so 20 × 2.5
    image = as_mnist(bar)
    assert image.astype(float).sum() / 255 == pytest.approx(20 * 2.5, rel=0.01)
    assert sorted(set(image.flatten())) == [0, 128, 255]


def test_ink_is_not_lost_at_the_field_s_edge_however_it_is_heaped() -> None:
    heap = np.zeros((100, 100), np.uint8)
    heap[:30, :30] = 255
    heap[99, 99] = 1  # far from the centre of mass
    image = as_mnist(heap)
    assert image.astype(float).sum() == pytest.approx(heap.astype(float).sum() * 0.2**2, rel=0.02)


def test_one_dot_is_a_digit_like_any_other() -> None:
    image = as_mnist(ink_of_strokes([Stroke([(33.0, 250.0)], width=8)]))
    assert image[14, 14] == 255
    assert image[:4].max() == 0
    tiny = np.zeros((280, 280), np.uint8)
    tiny[3, 270] = 9
    assert as_mnist(tiny).max() == 9


def test_no_ink_is_an_error_that_says_what_to_do() -> None:
    for blank in (np.zeros((280, 280), np.uint8), ink_of_strokes([])):
        with pytest.raises(NoDigitError, match=r"Nothing is drawn yet\. Draw a digit"):
            as_mnist(blank)


def test_ink_of_another_kind_is_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(3, 3\) and type float64; expected \(H, W\) uint8"):
        as_mnist(np.ones((3, 3)))


# --- strokes ---------------------------------------------------------------------------------------------------


def test_a_stroke_covers_what_is_within_half_its_width() -> None:
    ink = ink_of_strokes([Stroke([(40, 100), (160, 100)], width=20)], size=200)
    y, x = np.mgrid[:200, :200] + 0.5
    distance = np.hypot(x - x.clip(40, 160), y - 100)
    assert (ink[distance < 9.5] == 255).all()
    assert (ink[distance > 10.5] == 0).all()
    edge = ink[(distance > 9.6) & (distance < 10.4)]
    assert edge.min() > 0
    assert edge.max() < 255


def test_strokes_leave_the_sheet_without_harm_and_cover_no_more_than_once() -> None:
    crossing = [Stroke([(-50, 100), (250, 100)], 20), Stroke([(100, -90), (100, 400)], 20)]
    ink = ink_of_strokes(crossing, size=200)
    assert ink.max() == 255
    assert (ink[95:105] == 255).all()
    assert not ink_of_strokes([Stroke([(-500, -500)], 20), Stroke([(900, 90)], 20)], size=200).any()


# --- pictures --------------------------------------------------------------------------------------------------


def test_ink_on_paper_and_chalk_on_a_board_are_the_same_digit(images) -> None:
    for image in images[::250]:
        chalk, ink = (as_mnist(ink_of_picture(encoded(picture))) for picture in (image, 255 - image))
        assert difference(chalk, ink) < 1
        assert difference(chalk, image) < 20
    near = [difference(as_mnist(ink_of_picture(encoded(255 - image))), image) for image in images[::25]]
    assert np.mean(near) < 2


LIGHT = {  # the ground's grey values at x, y from −1 to 1; how near the digits come back, on the average
    "from one side": (lambda x, y: 165 + 45 * x + 10 * y, 10),
    "brightest in the middle": (lambda x, y: 220 - 65 * (x**2 + y**2), 10),
    "from a lamp": (lambda x, y: 110 + 120 * np.exp(-1.28 * (x - 0.25) ** 2 - 0.72 * (y + 0.17) ** 2), 7),
}


def photograph(image: np.ndarray, light: str, rng: np.random.Generator) -> bytes:
    """Grey ink on paper that is unevenly lit, with noise, as a JPEG of 800 × 600."""
    ink = np.zeros((600, 800))
    ink[100:500, 200:600] = smooth(image, 400) / 255
    y, x = np.mgrid[-1:1:600j, -1:1:800j]
    grey = LIGHT[light][0](x, y) * (1 - 0.7 * ink) + rng.normal(0, 4, ink.shape)
    return encoded(grey.clip(0, 255).astype(np.uint8), "JPEG", quality=85)


@pytest.mark.parametrize("light", LIGHT)
def test_an_unevenly_lit_noisy_photograph_is_read(images, light) -> None:
    rng = np.random.default_rng(0)
    near = [difference(as_mnist(ink_of_picture(photograph(image, light, rng))), image) for image in images[::160]]
    assert np.mean(near) < LIGHT[light][1]
    assert np.max(near) < 30


def colours(image: np.ndarray) -> dict[str, Image.Image]:
    """The same digit in every mode that a PNG or a JPEG can have."""
    grey = Image.fromarray(255 - image)
    ink = Image.fromarray(image)
    black, white = Image.new("L", (28, 28), 0), Image.new("L", (28, 28), 255)
    return {
        "grey": grey,
        "grey of 16 bits": Image.fromarray((255 - image).astype(np.uint16) * 256),
        "colour": grey.convert("RGB"),
        "palette": grey.convert("P"),
        "black ink on nothing": Image.merge("LA", (black, ink)),
        "white ink on nothing": Image.merge("RGBA", (white, white, white, ink)),
        "opaque with an alpha channel": Image.merge("LA", (grey, white)),
    }


@pytest.mark.parametrize("mode", colours(np.zeros((28, 28), np.uint8)))
def test_every_kind_of_png_is_read(images, mode) -> None:
    image = images[40]
    expected = as_mnist(ink_of_picture(encoded(255 - image)))
    assert difference(as_mnist(ink_of_picture(encoded(colours(image)[mode]))), expected) < 1


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_every_kind_of_jpeg_is_read(images, mode) -> None:
    picture = Image.fromarray(255 - smooth(images[40], 560)).convert(mode)
    assert difference(as_mnist(ink_of_picture(encoded(picture, "JPEG", quality=90))), images[40]) < 25


def test_a_picture_taken_sideways_is_turned_as_its_camera_says(images) -> None:
    upright = Image.fromarray(255 - smooth(images[3], 280))
    turned = Image.Exif()
    turned[0x0112] = 6  # to be seen upright, turn by 90° clockwise
    sideways = encoded(upright.transpose(Image.Transpose.ROTATE_90), "JPEG", quality=95, exif=turned)
    assert difference(as_mnist(ink_of_picture(sideways)), as_mnist(ink_of_picture(encoded(upright)))) < 3


def test_large_pictures_are_scaled_down_and_small_ones_are_left(images) -> None:
    large = encoded(255 - smooth(images[3], 3000), "JPEG")
    assert ink_of_picture(large, side=280).shape == (280, 280)
    assert ink_of_picture(encoded(smooth(images[3], 600)[:, 150:450]), side=280).shape == (280, 140)
    assert ink_of_picture(encoded(images[3]), side=280).shape == (28, 28)


def test_a_picture_of_nothing_is_refused() -> None:
    rng = np.random.default_rng(0)
    grain = (200 + rng.normal(0, 5, (300, 300))).clip(0, 255).astype(np.uint8)
    for blank in (np.full((28, 28), 255, np.uint8), np.zeros((1, 1), np.uint8), grain):
        with pytest.raises(NoDigitError, match="No digit can be told from its ground"):
            ink_of_picture(encoded(blank))


def test_what_is_neither_png_nor_jpeg_is_refused(images) -> None:
    gif = encoded(images[0], "GIF")
    for data in (b"", b"a text file\n" * 20, b"<svg xmlns='http://www.w3.org/2000/svg'/>", gif):
        with pytest.raises(NoDigitError, match="neither a PNG nor a JPEG picture"):
            ink_of_picture(data)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_picture_that_was_cut_off_is_refused(images, kind) -> None:
    whole = encoded(smooth(images[0], 280), kind)
    with pytest.raises(NoDigitError, match="damaged"):
        ink_of_picture(whole[: len(whole) // 2])


def test_a_damaged_picture_never_raises_anything_else(images) -> None:
    rng = np.random.default_rng(0)
    for kind in ("PNG", "JPEG"):
        whole = encoded(smooth(images[0], 64), kind)
        for _ in range(150):
            data = bytearray(whole)
            for at in rng.integers(0, len(data), 4):
                data[at] = rng.integers(256)
            with suppress(NoDigitError):
                ink_of_picture(bytes(data))


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few hundred bytes that says it is so wide and so high."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(9999))) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("side", [5_001, 10_000, 60_000])
def test_a_picture_that_would_unpack_to_too_much_is_refused_before_it_does(side, recwarn, monkeypatch) -> None:
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda _: pytest.fail("it was unpacked"))
    with pytest.raises(NoDigitError, match="more than 25 million pixels"):
        ink_of_picture(bomb(side, side))
    assert not recwarn.list


def test_a_file_that_is_too_large_is_refused_unread() -> None:
    with pytest.raises(NoDigitError, match=r"8\.0 MB; a picture may have up to 8 MB\. Save it smaller"):
        ink_of_picture(b"\x89PNG\r\n\x1a\n" + bytes(MAX_BYTES))


def test_a_files_name_is_not_taken_for_a_picture() -> None:
    with pytest.raises(TypeError, match=r"a str came for a picture; expected the bytes .*read_bytes"):
        ink_of_picture("picture.png")
