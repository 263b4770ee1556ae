"""Notebook 07 in a real JupyterLab: it runs, its browser answers, and its sheet takes all that a person can do to it."""

from __future__ import annotations

from panels import PanelPage
from playwright.sync_api import expect
from sheets import SheetPage, use_every_control


def test_the_notebook_runs_and_its_two_panels_answer(notebook, pixels) -> None:
    nb = notebook.open_for("07_mnist.ipynb", "ImageBrowser(", "DrawDigit(")
    # tall enough for all of a panel to be in sight: JupyterLab takes cells that are not out of the page
    nb.page.set_viewport_size({"width": 1280, "height": 1700})
    assert nb.run_all(), nb.errors()
    browser = PanelPage(nb, pixels, ".inflib-browser", "subject")
    browser.root.scroll_into_view_if_needed()
    browser.changes(browser.button("next").click)

    sheet = SheetPage(nb, pixels, "07")
    sheet.root.scroll_into_view_if_needed()
    expect(sheet.cards).to_have_count(20)
    expect(sheet.prediction).to_contain_text("The model says 7")
    with_crossbar = sheet.ink()
    sheet.changes(sheet.button("Undo").click)
    assert sheet.ink() < with_crossbar
    expect(sheet.prediction).to_contain_text("The model says 7")
    use_every_control(sheet)
    assert (nb.errors(), nb.outside, nb.problems) == ([], [], [])
