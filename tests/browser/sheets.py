"""The drawing panel on a page of JupyterLab: what a person can do with it, and what has to come of it."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
from panels import PanelPage
from PIL import Image
from playwright.sync_api import expect

from inflib.lab import mnist_5k
from inflib.lab.handwriting import MAX_BYTES


class SheetPage(PanelPage):
    """The drawing panel on the page, and what a person can do with it."""

    def __init__(self, nb, pixels, name: str) -> None:
        super().__init__(nb, pixels, ".inflib-draw >> nth=0", "prediction")
        self.name = name  # of its screenshots
        self.sheet = self.root.locator("canvas")
        self.cards = self.root.locator(".inflib-card")
        self.prediction = self.root.locator(".inflib-prediction")
        self.error = self.root.get_by_role("alert")

    def stroke(self, points: list[tuple[float, float]], *, lift: bool = True) -> None:
        """Draw through these points of the sheet with the mouse."""
        self.sheet.scroll_into_view_if_needed()
        box = self.nb.at_rest(self.sheet)
        places = [(box["x"] + x * box["width"] / 280, box["y"] + y * box["height"] / 280) for x, y in points]
        self.page.mouse.move(*places[0])
        self.page.mouse.down()
        for place in places[1:]:
            self.page.mouse.move(*place, steps=8)
        if lift:
            self.page.mouse.up()

    def touch(self, points: list[tuple[float, float]]) -> None:
        """Draw through these points with a finger."""
        box = self.nb.at_rest(self.sheet)
        touch = self.page.context.new_cdp_session(self.page)
        for kind, some in (
            ("touchStart", points[:1]),
            *(("touchMove", [point]) for point in points[1:]),
            ("touchEnd", []),
        ):
            at = [{"x": box["x"] + x * box["width"] / 280, "y": box["y"] + y * box["height"] / 280} for x, y in some]
            touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": at})

    def ink(self) -> float:
        """How much of the sheet is drawn on, 0 to 1."""
        return self.sheet.evaluate(
            "c => { const p = c.getContext('2d').getImageData(0, 0, c.width, c.height).data; let n = 0;"
            "for (let k = 0; k < p.length; k += 4) n += 255 - p[k]; return n / (255 * p.length / 4); }"
        )

    def clear(self) -> None:
        """Take everything off the sheet: the answer goes with it, and nothing went wrong."""
        self.button("Clear").click()
        expect(self.cards).to_have_count(0)
        expect(self.prediction).to_have_text("What the model says will stand here.")
        expect(self.error).to_have_count(0)
        assert self.ink() == 0
        expect(self.root.get_by_text("draw a digit here")).to_be_visible()
        self.settled()

    def upload(self, name: str, data: bytes) -> None:
        self.root.locator("input[type=file]").set_input_files({"name": name, "mimeType": "", "buffer": data})

    def refuses(self, act, message: str) -> None:
        """Do something; the message has to be said, and everything else has to stay."""
        before, seen = self.text(), self.pixels()
        act()
        expect(self.error).to_contain_text(message)
        expect(self.error.locator("details")).to_have_count(0)
        assert (self.text(), self.pixels()) == (before, seen)


def png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


# --- what a person can do with it ------------------------------------------------------------------------------


def use_every_control(page: SheetPage) -> None:
    """With a 7 on the sheet: every control, every way to draw, everything that is refused; both themes."""
    change_the_label(page)
    choose_how(page)
    click_a_card_and_undo(page)
    upload_pictures(page)
    clear_and_undo(page)
    draw_by_keyboard(page)
    draw_by_touch(page)
    tap_a_dot(page)
    save_as_csv(page)
    in_the_dark(page)


def change_the_label(page: SheetPage) -> None:
    """The same drawing, another label: other training digits."""
    own = page.root.get_by_role("button", name="predicted")
    expect(own).to_have_attribute("aria-pressed", "true")
    drawn = page.pixels()[0]
    strips = page.root.locator(".inflib-strip")
    before = strips.all_inner_texts()
    page.changes(page.root.get_by_role("button", name="2", exact=True).click)
    assert strips.all_inner_texts() != before
    assert page.pixels()[0] == drawn
    expect(page.root.get_by_text("raised the log-likelihood of class 2")).to_be_visible()
    expect(page.prediction.get_by_text("▴")).to_have_count(1)
    page.changes(own.click)
    assert strips.all_inner_texts() == before


def choose_how(page: SheetPage) -> None:
    """Method, damping, layers, measurement, how many, pen."""
    page.changes(page.root.get_by_role("button", name="K-FAC", exact=True).click)
    page.changes(page.button("gradient dot product").click)
    expect(page.root.get_by_text("plays no role in gradient dot products")).to_be_visible()
    page.changes(page.button("EK-FAC").click)
    page.changes(lambda: page.slide("Damping", "End"))
    page.changes(lambda: page.slide("Damping", "Home"))
    page.changes(lambda: page.select("Layers", "out"))
    page.changes(lambda: page.select("Layers", "all layers"))
    page.changes(lambda: page.select("Measured", "log odds"), pixels=False)
    page.changes(lambda: page.select("Measured", "log-likelihood"), pixels=False)
    page.changes(lambda: page.slide("How many", "ArrowLeft"))
    expect(page.cards).to_have_count(18)
    page.changes(lambda: page.slide("How many", "ArrowRight"))
    pen = page.root.get_by_label("Pen width", exact=True)
    assert pen.input_value() == "24"
    pen.focus()
    pen.press("End")
    expect(page.root.locator("output")).to_have_text("48")
    before = page.ink()
    page.changes(lambda: page.stroke([(40, 260), (240, 260)]))
    thick = page.ink() - before
    page.changes(page.button("Undo").click)
    pen.focus()
    pen.press("Home")
    page.changes(lambda: page.stroke([(40, 260), (240, 260)]))
    assert page.ink() - before < thick / 4
    page.changes(page.button("Undo").click)
    assert page.ink() == before
    pen.focus()
    for _ in range(8):
        pen.press("ArrowRight")
    assert pen.input_value() == "24"


def click_a_card_and_undo(page: SheetPage) -> None:
    """A click puts a training digit on the sheet; undo brings the drawing back."""
    text, ink = page.text(), page.ink()
    page.changes(page.cards.nth(2).click)
    assert page.ink() != ink
    page.nb.shot(f"{page.name}-card", page.root)
    page.changes(page.button("Undo").click)
    assert (page.text(), page.ink()) == (text, ink)


def upload_pictures(page: SheetPage) -> None:
    """A picture is read; a text file, a huge one and a damaged one are refused, and what was there stays."""
    digits = mnist_5k().queries
    row = int((digits.labels == 3).nonzero()[0])
    paper = 255 - digits.images[row].repeat(20, axis=0).repeat(20, axis=1)
    page.changes(lambda: page.upload("three.png", png(paper)))
    expect(page.prediction).to_contain_text("The model says 3")
    page.nb.shot(f"{page.name}-upload", page.root)
    ink = page.ink()
    page.refuses(lambda: page.upload("notes.txt", b"not a picture\n"), "neither a PNG nor a JPEG picture")
    page.nb.shot(f"{page.name}-refused", page.root)
    page.refuses(lambda: page.upload("huge.png", bytes(MAX_BYTES + 1)), "a picture may have up to 8 MB")
    page.refuses(lambda: page.upload("cut.png", png(paper)[:300]), "damaged")
    page.refuses(lambda: page.upload("white.png", png(np.full((9, 9), 255, np.uint8))), "No digit can be told")
    assert page.ink() == ink
    padded = png(255 - digits.images[int((digits.labels == 6).nonzero()[0])]).ljust(MAX_BYTES, b"\0")
    page.changes(lambda: page.upload("largest.png", padded))  # a file of the largest size reaches the kernel
    expect(page.prediction).to_contain_text("The model says 6")


def clear_and_undo(page: SheetPage) -> None:
    """A cleared sheet has no answer, and that is no error; undo brings both back."""
    before = page.text()
    page.clear()
    page.nb.shot(f"{page.name}-cleared", page.root)
    page.button("Undo").click()
    expect(page.cards).to_have_count(20)
    assert page.ink() > 0.01
    page.settled()
    assert page.text() == before


def draw_by_keyboard(page: SheetPage) -> None:
    """Arrow keys and Space draw a 1; JupyterLab keeps its own keys to itself."""
    cells = page.nb.cells()
    page.clear()
    keys = page.page.keyboard
    page.sheet.focus()
    for _ in range(2):
        keys.press("d")  # in command mode two of them delete the cell
    expect(page.root.locator(".inflib-pen")).to_be_visible()
    for _ in range(9):
        keys.press("ArrowUp")
    assert page.ink() == 0
    keys.press("Space")
    for _ in range(18):
        keys.press("ArrowDown")
    for _ in range(5):
        keys.press("Shift+ArrowDown")
    page.nb.shot(f"{page.name}-keyboard", page.root)
    keys.press("Space")
    expect(page.error).to_have_count(0)
    expect(page.prediction).to_contain_text("The model says 1")
    page.settled()
    page.changes(lambda: draw_a_bar(keys))
    page.changes(lambda: keys.press("Control+z"))
    expect(page.sheet).to_be_focused()
    assert page.nb.cells() == cells


def draw_a_bar(keys) -> None:
    keys.press("Space")
    for _ in range(7):
        keys.press("ArrowRight")
    keys.press("Space")


def draw_by_touch(page: SheetPage) -> None:
    page.clear()
    page.touch([(140 + 80 * np.cos(a), 140 - 100 * np.sin(a)) for a in np.linspace(0, 2 * np.pi, 30)])
    expect(page.error).to_have_count(0)
    expect(page.prediction).to_contain_text("The model says 0")
    page.settled()


def tap_a_dot(page: SheetPage) -> None:
    """What is seen is what is read: a tap is a disc as wide as the pen; it is odd, and that is said quietly."""
    page.clear()
    page.stroke([(140, 140)])
    expect(page.cards).to_have_count(20)
    disc = np.pi * 12**2 / 280**2  # the pen is 24 wide
    assert abs(page.ink() / disc - 1) < 0.05, f"the tap drew {page.ink():.5f} of the sheet, expected {disc:.5f}"
    expect(page.root.locator(".inflib-odd")).to_have_text("enlarged 8 ×; unlike all training digits")
    page.settled()
    page.nb.shot(f"{page.name}-dot", page.root)


def save_as_csv(page: SheetPage) -> None:
    with page.page.expect_download() as download:
        page.root.get_by_role("link", name="CSV").click()
    assert download.value.suggested_filename == "influence_drawing.csv"
    with Path(download.value.path()).open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["about"] for row in rows] == ["drawing"] * 20
    lines = [card.locator(".inflib-line").all_inner_texts() for card in page.cards.all()]
    assert [[f"label {row['label']}", f"model {row['prediction']}", f"#{row['index']}"] for row in rows] == lines


def in_the_dark(page: SheetPage) -> None:
    """Ink on paper in the light theme is chalk on a board in the dark one."""
    assert page.sheet.evaluate("e => getComputedStyle(e).filter") == "none"
    page.nb.theme("JupyterLab Dark")
    page.root.scroll_into_view_if_needed()
    assert page.sheet.evaluate("e => getComputedStyle(e).filter") == "invert(1)"
    for part in (page.prediction, page.root.locator(".inflib-help")):
        colour = part.evaluate("e => getComputedStyle(e).color")
        assert min(map(int, colour.strip("rgba()").split(", ")[:3])) > 150, f"dark text on a dark ground: {colour}"
    page.nb.shot(f"{page.name}-dark", page.root)
    page.nb.fits_a_phone(page.root, f"{page.name}-dark")
    page.nb.theme("JupyterLab Light")
