"""A panel of the course on a page of JupyterLab: read it, move its controls, wait for its answer."""

from __future__ import annotations

from collections.abc import Callable

from playwright.sync_api import Locator, expect

SLOW = """
import time
from pathlib import Path


def slow(*args):
    while not Path("go-on").exists():
        time.sleep(0.01)
    return kept(*args)
"""


def says_that_it_computes(nb, root: Locator) -> None:
    """``slow`` (above) has been asked something: the panel says so until it is let go on."""
    expect(root.get_by_text("computing")).to_be_visible()
    flag = nb.lab.notebooks / "go-on"
    flag.touch()
    expect(root.get_by_text("computing")).to_have_count(0)
    flag.unlink()


class PanelPage:
    """The panel that ``selector`` finds; ``parts`` are its own pieces of text, beside headings, remarks and cards."""

    def __init__(self, nb, pixels, selector: str, *parts: str) -> None:
        self.nb, self.page, self._pixels = nb, nb.page, pixels
        self.root: Locator = nb.page.locator(selector)
        spoken = ", ".join(f".inflib-{name}" for name in (*parts, "heading", "quiet", "card"))
        self._read = f"[...e.querySelectorAll('{spoken}')].map(part => part.innerText).join(' | ')"

    def kernel(self, code: str) -> None:
        """Run code in the notebook's kernel, as a cell that nobody sees."""
        status = self.page.evaluate(
            """async code => (await window.jupyterapp.shell.currentWidget.sessionContext.session.kernel
                  .requestExecute({code}).done).content.status""",
            code,
        )
        assert status == "ok"

    def text(self) -> str:
        """All that the panel says."""
        return self.root.evaluate(f"e => {self._read}")

    def pixels(self) -> list[str]:
        """A hash for every picture."""
        return self._pixels(self.root.locator("img"))

    def changes(self, act: Callable[[], object], *, pixels: bool = True) -> None:
        """Do something; the text has to change, and the pictures unless told otherwise, and nothing may go wrong."""
        text, seen = self.text(), self.pixels()
        act()
        self.page.wait_for_function(
            f"([old, e]) => {self._read} !== old",
            arg=[text, self.root.element_handle()],
        )
        self.settled()
        assert (self.pixels() != seen) == pixels
        expect(self.root.locator(".inflib-error")).to_have_count(0)

    def settled(self) -> None:
        """Wait until the kernel has nothing more to say."""
        self.kernel("None")
        expect(self.root.locator(".inflib-busy")).to_have_count(0)

    def slide(self, name: str, key: str) -> None:
        handle = self.root.get_by_role("slider", name=name, exact=True)
        handle.focus()
        handle.press(key)

    def select(self, name: str, option: str) -> None:
        self.root.get_by_role("combobox", name=name, exact=True).select_option(option)

    def readout(self, name: str) -> str:
        return self.root.locator(".widget-readout").and_(self.page.get_by_label(name, exact=True)).inner_text()

    def button(self, name: str) -> Locator:
        return self.root.get_by_role("button", name=name)
