"""What Lab saves of a panel, and what comes back: the still where no kernel is, the live panel where its kernel is."""

from __future__ import annotations

import nbformat
import pytest
from build import WIDGET_VIEW
from nbconvert import HTMLExporter
from panels import PanelPage
from playwright.sync_api import expect

BOOK = "00_start_here.ipynb"
STILL = "(a still; run the notebook for its controls)"
CONTROLS = "button, input, textarea, select, .noUi-handle"


def panel(nb, pixels) -> PanelPage:
    page = PanelPage(nb, pixels, ".jp-OutputArea .inflib-browser", "subject")
    expect(page.root).to_have_count(1, timeout=60_000)
    page.root.scroll_into_view_if_needed()
    expect(page.root.locator(".inflib-card")).to_have_count(16)
    return page


def unguarded(page: PanelPage) -> list[str]:
    """The controls of a panel for which JupyterLab's own keys still mean something."""
    return page.root.locator(CONTROLS).evaluate_all(
        "all => all.filter(e => e.dataset.lmSuppressShortcuts !== 'true').map(e => e.outerHTML.slice(0, 80))"
    )


def names(page: PanelPage) -> list[str]:
    """The names of a panel's sliders and groups of buttons, as a screen reader has them."""
    return page.root.locator("[role=slider], [role=group]").evaluate_all(
        "all => all.map(e => e.getAttribute('aria-label'))"
    )


def saved_panel(lab) -> dict:
    """What the saved notebook holds of its one panel."""
    book = nbformat.read(lab.notebooks / BOOK, as_version=4)
    bundles = [output.data for cell in book.cells for output in cell.get("outputs", []) if "data" in output]
    (found,) = [data for data in bundles if "ImageBrowser" in data.get("text/plain", "")]
    return found


@pytest.fixture
def nb(notebook, lab):
    """Notebook 00, which is put back as it was."""
    before = (lab.notebooks / BOOK).read_bytes()
    notebook.page.set_viewport_size({"width": 1280, "height": 1500})
    yield notebook.open(BOOK)
    (lab.notebooks / BOOK).write_bytes(before)


def test_a_saved_panel_lives_with_its_kernel_and_is_its_still_without(nb, lab, pixels, tmp_path) -> None:
    assert nb.run_all(), nb.errors()
    named = names(panel(nb, pixels))
    assert {"Query", "Damping", "Method"} <= set(named)
    nb.save()
    look_into_the_file(lab)
    convert_to_html(nb, lab, tmp_path)
    reload_with_its_kernel(nb, pixels, named)
    nb.save()
    reopen_without_its_kernel(nb)
    run_again(nb, pixels)
    assert (nb.errors(), nb.outside, nb.problems) == ([], [], [])


def look_into_the_file(lab) -> None:
    """The still is there for everybody, and a view that would be an error message for nobody."""
    data = saved_panel(lab)
    assert {"text/html", "text/plain"} < set(data)
    assert WIDGET_VIEW not in data
    assert STILL in data["text/html"]


def convert_to_html(nb, lab, tmp_path) -> None:
    """What nbconvert and nbviewer (nbconvert's classic template) make of the saved file."""
    for template in ("lab", "classic"):
        html, _ = HTMLExporter(template_name=template).from_filename(lab.notebooks / BOOK)
        path = tmp_path / f"{template}.html"
        path.write_text(html, encoding="utf-8")
        page = nb.page.context.new_page()
        page.goto(path.as_uri(), wait_until="commit")
        expect(page.get_by_text(STILL)).to_be_visible()
        expect(page.get_by_text("Error displaying widget")).to_have_count(0)
        page.close()


def reload_with_its_kernel(nb, pixels, named: list[str]) -> None:
    """The panel is back, with the names of its controls, and JupyterLab keeps its keys to itself."""
    nb.reload()
    page = panel(nb, pixels)
    expect(nb.page.get_by_text(STILL)).to_have_count(0)
    assert unguarded(page) == []
    assert names(page) == named
    cells = nb.cells()
    for name in ("Query", "Damping"):
        slider = page.root.get_by_role("slider", name=name, exact=True)
        slider.focus()
        for _ in range(2):
            slider.press("d")  # in command mode two of them delete the cell
    assert nb.cells() == cells
    page.changes(page.button("next").click)


def reopen_without_its_kernel(nb) -> None:
    nb.stop_kernel()
    nb.close_tab()
    for come_back in (lambda: nb.open(BOOK), nb.reload):
        come_back()
        still = nb.page.locator(".jp-OutputArea").get_by_text(STILL)
        still.scroll_into_view_if_needed()
        expect(still).to_be_visible()
        expect(nb.page.get_by_text("Error displaying widget")).to_have_count(0)
        expect(nb.page.get_by_text("Loading widget")).to_have_count(0)
    nb.shot("saved-still")


def run_again(nb, pixels) -> None:
    """A new kernel's panel takes the place of the old one's still."""
    assert nb.run_all(), nb.errors()
    page = panel(nb, pixels)
    page.changes(page.button("next").click)
    expect(nb.page.get_by_text(STILL)).to_have_count(0)
