"""The README's moving picture: on the page of `make demo`, a digit is drawn, answered, changed, and answered anew.

    python docs/moving_picture.py [--out notebooks/images/drawing.gif]

Drives a real Chromium with the helpers of tests/browser; the strokes are always the same.
"""

from __future__ import annotations

import argparse
import io
import secrets
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from playwright.sync_api import Locator, Page, expect, sync_playwright

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests" / "browser"), str(ROOT / "notebooks")]
from conftest import CHROMIUM, CHROMIUM_ARGS  # noqa: E402
from servers import free_port, lab_environment, serving  # noqa: E402

SIZE = {"width": 900, "height": 1300}
WIDTH = 720  # pixels of the picture
SEVEN = [(75, 70), (205, 66), (165, 150), (125, 235)]
CROSS = [(105, 152), (190, 146)]
LOOP = [(75, 70), (70, 130), (120, 150), (180, 125)]  # closes the seven's top: a nine
STROKE, LOOK = 60, 2600  # milliseconds a frame is shown


class Film:
    """Frames of one element of a page, with how long each is shown."""

    def __init__(self, page: Page, what: Locator, sheet: Locator) -> None:
        self.page, self.what, self.sheet = page, what, sheet
        self.frames: list[Image.Image] = []
        self.times: list[int] = []

    def frame(self, milliseconds: int) -> None:
        self.frames.append(Image.open(io.BytesIO(self.what.screenshot())).convert("RGB"))
        self.times.append(milliseconds)

    def draw(self, points: list[tuple[float, float]]) -> None:
        """A stroke with the mouse, a frame for every few millimetres of it."""
        box = self.sheet.bounding_box()
        assert box is not None, "the sheet is not on the page"
        for n, (x, y) in enumerate(_along(points)):
            self.page.mouse.move(box["x"] + x * box["width"] / 280, box["y"] + y * box["height"] / 280, steps=4)
            if n == 0:
                self.page.mouse.down()
            self.frame(STROKE)
        self.page.mouse.up()

    def save(self, path: Path) -> None:
        """One palette for all frames, of the last one: only the small parts that change are written."""
        height = max(frame.height for frame in self.frames)
        sheets = [_on_paper(frame, height) for frame in self.frames]
        palette = sheets[-1].quantize(48)
        first, *rest = [sheet.quantize(palette=palette, dither=Image.Dither.NONE) for sheet in sheets]
        first.save(path, save_all=True, append_images=rest, duration=self.times, loop=0, optimize=True)


def _along(points: list[tuple[float, float]], every: float = 28.0) -> list[tuple[float, float]]:
    """Points on the way through these, evenly spread."""
    path = np.array(points)
    length = np.concatenate([[0.0], np.hypot(*np.diff(path, axis=0).T).cumsum()])
    at = np.linspace(0, length[-1], max(3, round(length[-1] / every)))
    return list(zip(np.interp(at, length, path[:, 0]), np.interp(at, length, path[:, 1]), strict=True))


def _on_paper(frame: Image.Image, height: int) -> Image.Image:
    sheet = Image.new("RGB", (frame.width, height), frame.getpixel((0, 0)))
    sheet.paste(frame)
    return sheet.resize((WIDTH, round(height * WIDTH / frame.width)), Image.Resampling.LANCZOS)


def film(page: Page) -> Film:
    """Draw, look, add a stroke, look again."""
    root = page.locator(".inflib-draw").first
    sheet, says = root.locator("canvas"), root.locator(".inflib-prediction")
    expect(page.locator("#inflib-waiting")).to_have_count(0, timeout=120_000)
    made = Film(page, root, sheet)
    for strokes, digit in (([SEVEN, CROSS], 7), ([LOOP], 9)):
        for stroke in strokes:
            made.draw(stroke)
        page.mouse.move(5, 5)
        expect(says).to_contain_text(f"The model says {digit}", timeout=60_000)
        expect(root.locator(".inflib-busy")).to_have_count(0)
        page.wait_for_timeout(700)
        made.frame(LOOK)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the README's moving picture.")
    parser.add_argument("--out", type=Path, default=ROOT / "notebooks" / "images" / "drawing.gif", metavar="FILE")
    out, port, token = parser.parse_args().out, free_port(), secrets.token_hex(16)
    venv, url = Path(sys.executable).parent.parent, f"http://127.0.0.1:{port}"
    command = ["make", f"--assume-old={venv}/.course", "demo", f"VENV={venv}"]
    command += [f"DEMO_ARGS=--no-browser --ip=127.0.0.1 --port={port} --IdentityProvider.token={token}"]
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        base = Path(folder)
        with serving(command, base / "lab.log", f"{url}/api/status", token, cwd=ROOT, env=lab_environment(base)):
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_ARGS)
            page = browser.new_page(viewport=SIZE)
            page.goto(f"{url}/?token={token}")
            film(page).save(out)
            browser.close()
    print(f"{out}: {out.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
