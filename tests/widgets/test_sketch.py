"""What is on the sheet is ink in Python, whether it was drawn, put there, or came from the browser."""

from __future__ import annotations

import numpy as np
import pytest

from inflib.lab import Stroke, as_mnist, ink_of_strokes
from inflib.widgets.sketch import Sketch

STROKES = [Stroke([(60, 60), (215, 62), (120, 240)], width=20), Stroke([(80, 150), (190, 150)], width=20)]


def test_an_empty_sheet_has_no_ink() -> None:
    assert not Sketch().ink().any()


def test_strokes_are_the_ink_of_the_lab(shipped) -> None:
    sheet = Sketch()
    sheet.show(STROKES)
    np.testing.assert_array_equal(sheet.ink(), ink_of_strokes(STROKES, 280))
    assert sheet.drawing["strokes"][1] == {"points": [[80.0, 150.0], [190.0, 150.0]], "width": 20}


def test_a_small_picture_fills_the_sheet_and_is_read_as_itself(shipped) -> None:
    digit = shipped.digits.queries.images[225]
    sheet = Sketch()
    sheet.show(digit)
    np.testing.assert_array_equal(sheet.ink(), digit.repeat(10, axis=0).repeat(10, axis=1))
    np.testing.assert_array_equal(as_mnist(sheet.ink()), digit)


def test_a_picture_that_is_not_square_lies_in_the_middle() -> None:
    sheet = Sketch()
    sheet.show(np.full((10, 100), 200, np.uint8))
    rows, columns = np.flatnonzero(sheet.ink().any(1)), np.flatnonzero(sheet.ink().any(0))
    assert (rows[0], rows[-1], columns[0], columns[-1]) == (130, 149, 40, 239)


def test_strokes_lie_over_the_picture() -> None:
    sheet = Sketch()
    sheet.show(np.full((280, 280), 100, np.uint8))
    drawn = {"paper": sheet.drawing["paper"], "strokes": [{"points": [[140, 140]], "width": 50}]}
    sheet.drawing = {**drawn, "paper": memoryview(drawn["paper"])}  # as it comes from the browser
    assert sheet.ink()[140, 140] == 255
    assert sheet.ink()[10, 10] == 100


def test_what_does_not_fit_the_sheet_is_refused_and_changes_nothing() -> None:
    sheet = Sketch()
    sheet.show(STROKES)
    before = sheet.drawing
    shapes = (281, 3), (9, 9, 3), (0, 0), (0, 5)
    for wrong in (np.zeros((9, 9)), *(np.zeros(shape, np.uint8) for shape in shapes)):
        with pytest.raises(ValueError, match=r"expected \(h, w\) uint8 with sides from 1 to 280"):
            sheet.show(wrong)
    assert sheet.drawing == before


def test_uploads_and_refusals_are_told_apart() -> None:
    sheet, data, sizes = Sketch(), [], []
    sheet.on_upload(data.append, sizes.append)
    sheet._handle_custom_msg({"uploaded": "three.png"}, [memoryview(b"PNG")])
    sheet._handle_custom_msg({"refused": 9_000_000}, [])
    sheet._handle_custom_msg({"something": "else"}, [])
    assert (data, sizes) == ([b"PNG"], [9_000_000])
