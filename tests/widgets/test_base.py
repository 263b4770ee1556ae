"""Panels say when they are busy, show what goes wrong and have a still; pictures, numbers, tables come out right."""

from __future__ import annotations

import csv
import io
import re
from urllib.parse import unquote

import ipywidgets as W
import numpy as np
import pytest
from PIL import Image

from inflib.widgets.base import InputError, Panel, csv_link, csv_text, picture, png, signed, unsigned


class Doubler(Panel):
    """The smallest panel: a slider, and twice its value."""

    def __init__(self) -> None:
        super().__init__("Doubler", "test-doubler")
        self.slider, self.button, self.twice = W.IntSlider(value=1), W.Button(), W.HTML()
        self.seen_busy: list[bool] = []
        self.arrange([self.slider, self.button], [self.twice])
        self.watch(self.slider, self.draw)
        self.watch(self.button, self.draw)

    def draw(self) -> None:
        self.seen_busy.append("computing" in self.busy.value)
        if self.slider.value == 13:
            raise ValueError("no <b>thirteen</b>, please")
        self.twice.value = str(2 * self.slider.value)

    def as_text(self) -> str:
        return f"Doubler: {self.twice.value}"

    def as_html(self) -> str:
        return f"<p>{self.twice.value}</p>"


def test_a_panel_is_busy_while_it_answers_and_only_then() -> None:
    panel = Doubler()
    assert panel.busy.value == ""
    panel.slider.value = 4
    assert panel.twice.value == "8"
    assert panel.seen_busy == [True]
    assert panel.busy.value == ""


def test_what_an_observer_raises_is_shown_escaped_and_goes_with_the_next_answer() -> None:
    panel = Doubler()
    panel.slider.value = 13
    shown = panel.error.value
    assert "<b>ValueError</b>: no &lt;b&gt;thirteen&lt;/b&gt;, please" in shown
    assert "<b>thirteen" not in shown
    assert "in draw" in shown  # the traceback says where
    assert 'role="alert"' in shown
    assert panel.busy.value == ""
    panel.slider.value = 3
    assert panel.error.value == ""
    assert panel.twice.value == "6"


def test_what_was_entered_wrongly_is_said_without_a_traceback() -> None:
    panel = Doubler()
    panel.attempt(lambda: refuse("the <box> is empty; type something."))
    assert "The &lt;box&gt; is empty; type something." in panel.error.value
    assert "Traceback" not in panel.error.value
    assert "from before this error" in panel.error.value


def refuse(message: str) -> None:
    raise InputError(message)


def test_a_button_is_watched_as_a_slider_is() -> None:
    panel = Doubler()
    panel.slider.value = 13
    panel.error.value = ""
    panel.button.click()
    assert "thirteen" in panel.error.value


def test_controls_moved_by_an_answer_do_not_ask_again() -> None:
    panel = Doubler()

    def answer() -> None:
        panel.slider.value = 9

    panel.attempt(answer)
    assert panel.slider.value == 9
    assert panel.seen_busy == []  # the slider's own observer stayed silent
    panel.slider.value = 10
    assert panel.seen_busy == [True]


def test_a_panel_is_shown_with_its_still() -> None:
    panel = Doubler()
    panel.slider.value = 5
    bundle = panel._repr_mimebundle_()
    assert bundle["text/plain"] == "Doubler: 10"
    assert bundle["text/html"] == "<p>10</p>"
    assert "application/vnd.jupyter.widget-view+json" in bundle


def test_a_panel_without_a_still_says_so() -> None:
    with pytest.raises(NotImplementedError, match=r"Panel must define as_text\(\) -> str"):
        Panel("nothing", "test-nothing").as_text()


@pytest.mark.parametrize("shape", [(28, 28), (1, 1), (300, 400), (7, 5, 3)])
def test_a_png_holds_the_pixels_it_was_given(shape) -> None:
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    with Image.open(io.BytesIO(png(image))) as read:
        read.load()
        np.testing.assert_array_equal(np.asarray(read), image)


def test_a_png_is_the_same_bytes_with_every_zlib() -> None:
    """Stored, not compressed: header, one block, checksum, and the rows as they are."""
    image = np.arange(6, dtype=np.uint8).reshape(2, 3)
    assert bytes([0, 0, 1, 2, 0, 3, 4, 5]) in png(image)


def test_a_png_of_something_else_is_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(3, 3\) and type float64; expected .*uint8"):
        png(np.zeros((3, 3)))


def test_a_picture_is_ink_on_paper() -> None:
    white_on_black = np.zeros((4, 4), dtype=np.uint8)
    assert picture(white_on_black) == picture(white_on_black.copy())
    assert picture(white_on_black) != picture(255 - white_on_black)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1.7256, "+1.73"),
        (-0.03999, "−0.0400"),
        (0.0, "0"),
        (-123.4, "−123"),
        (17_690.2, "+17,700"),
        (1.2345e-5, "+1.23e-05"),
        (0.99999, "+1.00"),
        (9.999e-5, "+0.000100"),
        (9999.9, "+10,000"),
        (float("nan"), "not a number"),
        (float("-inf"), "−∞"),
    ],
)
def test_numbers_carry_their_sign_and_three_digits(value, text) -> None:
    assert signed(value) == text


def test_fewer_digits_are_fewer_digits() -> None:
    assert unsigned(0.00031234, 2) == "0.00031"


ROWS = [{"name": 'a "quoted", name', "value": 1.5}, {"name": "<b>&</b>", "value": ""}]


def test_csv_text_is_read_back_as_it_was() -> None:
    read = list(csv.DictReader(io.StringIO(csv_text(ROWS))))
    assert read == [{"name": 'a "quoted", name', "value": "1.5"}, {"name": "<b>&</b>", "value": ""}]
    assert csv_text([]) == ""


def test_a_csv_link_holds_the_file_itself() -> None:
    link = csv_link(ROWS, 'a"b.csv', "Save <it>")
    assert 'download="a&quot;b.csv"' in link
    assert ">Save &lt;it&gt;<" in link
    address = re.search(r'href="data:text/csv;charset=utf-8,([^"]*)"', link)
    assert address
    assert unquote(address[1]) == csv_text(ROWS)
