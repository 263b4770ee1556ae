"""Notebook 07 in a real JupyterLab: it runs, its browser answers, and its sheet takes a drawing and another label."""

from __future__ import annotations

from panels import PanelPage
from playwright.sync_api import expect


def test_the_notebook_runs_and_its_two_panels_answer(notebook, pixels) -> None:
    nb = notebook.open("07_mnist.ipynb")
    nb.page.set_viewport_size({"width": 1280, "height": 1700})
    assert nb.run_all(), nb.errors()
    sheet = PanelPage(nb, pixels, ".inflib-draw", "prediction")
    sheet.root.scroll_into_view_if_needed()
    expect(sheet.root.locator(".inflib-card")).not_to_have_count(0)
    expect(sheet.root.locator(".inflib-prediction")).to_contain_text("7")
    sheet.changes(lambda: sheet.root.get_by_role("button", name="2", exact=True).click())
    nb.shot("07-sheet", sheet.root)

    canvas = sheet.root.locator("canvas")
    box = canvas.bounding_box()

    def underline() -> None:
        nb.page.mouse.move(box["x"] + 0.25 * box["width"], box["y"] + 0.85 * box["height"])
        nb.page.mouse.down()
        nb.page.mouse.move(box["x"] + 0.8 * box["width"], box["y"] + 0.85 * box["height"], steps=8)
        nb.page.mouse.up()

    sheet.changes(underline)
    assert (nb.errors(), nb.outside, nb.problems) == ([], [], [])
