"""The ladder widget of notebook 05 answers its controls in a real JupyterLab."""

from __future__ import annotations

import re

from playwright.sync_api import Locator, Page, expect

HANGS = """e => [e, e.closest('.inflib-explains')].map(part => getComputedStyle(part).position).concat(
    getComputedStyle(e, '::after').left)"""


def changed(page: Page, part: Locator, before: str) -> str:
    """Wait until a part of the widget shows something else; its new HTML."""
    expect(part).to_be_visible()
    page.wait_for_function("([e, old]) => e.innerHTML !== old", arg=[part.element_handle(), before])
    return part.inner_html()


def test_network_layer_damping_rung_and_query_move_the_ladder(notebook, pixels) -> None:
    nb = notebook.open_for("05_ekfac.ipynb", "Ladder(")
    assert nb.run_all(), nb.errors()
    ladder = nb.page.locator(".inflib-ladder")
    pictures, table, scatter = (ladder.locator(f".inflib-ladder-{part}") for part in ("pictures", "table", "scatter"))
    images = pictures.locator("img")
    expect(images).to_have_count(7)
    ladder.scroll_into_view_if_needed()
    expect(table).to_be_visible()
    names = pictures.locator("figcaption").all_text_contents()
    drawn = dict(zip(names, pixels(images), strict=True))
    assert drawn["K-FAC"] != drawn["EK-FAC"], "it opens where the correction shows"
    nb.shot("05-light", ladder)
    corrected = {rung: error for rung, error, *_ in (row.split("\t") for row in table.inner_text().splitlines()[1:8])}
    assert float(corrected["K-FAC"]) - float(corrected["EK-FAC"]) >= 0.02, "it opens where the correction shows"
    expect(ladder.locator(".inflib-ladder-eigenvalues svg")).to_have_attribute(
        "aria-label", re.compile("K-FAC off by [1-9].*EK-FAC off by 0%")
    )
    columns_say_what_they_mean(nb.page, table)
    nb.theme("JupyterLab Dark")
    nb.shot("05-dark", ladder)
    nb.fits_a_phone(ladder, "05-dark")
    nb.theme("JupyterLab Light")

    network, layer, rung = ladder.locator("select").all()
    opened = table.inner_html()
    network.select_option(label="ReLU 49-8-10")
    changed(nb.page, table, opened)
    expect(layer.locator("option:checked")).to_have_text("all layers")
    expect(ladder.locator(".inflib-busy")).to_have_count(0)
    assert len(set(pixels(images))) == 7, "each rung has a matrix of its own"

    numbers, points, matrices = table.inner_html(), scatter.inner_html(), pixels(images)
    handles = ladder.locator(".noUi-handle")  # damping, query
    handles.first.focus()
    handles.first.press("End")
    expect(ladder.locator(".widget-readout").first).to_have_text("100")
    numbers, points = changed(nb.page, table, numbers), changed(nb.page, scatter, points)
    handles.first.focus()
    handles.first.press("PageDown")
    numbers, points = changed(nb.page, table, numbers), changed(nb.page, scatter, points)
    assert pixels(images) == matrices, "damping belongs to the solve: no matrix may move"

    handles.last.focus()
    handles.last.press("ArrowRight")
    points = changed(nb.page, scatter, points)
    expect(scatter).to_contain_text("query 2")

    rung.select_option(label="K-FAC")
    points = changed(nb.page, scatter, points)
    expect(scatter).to_contain_text("K-FAC")
    assert table.inner_html() == numbers, "another rung in the scatter changes no error"

    layer.select_option(label="out")
    numbers = changed(nb.page, table, numbers)
    nb.page.wait_for_function("n => document.querySelectorAll('.inflib-ladder-pictures img').length === n", arg=7)
    assert not set(pixels(images)) & set(matrices), "one layer's blocks are other matrices"

    network.select_option(label="deep 49-6-6-10")
    changed(nb.page, table, numbers)
    assert "hidden2" in layer.inner_text(), "the layers offered are those of the network shown"
    assert re.search(r"EK-FAC", table.inner_text())
    expect(ladder.locator(".inflib-error")).to_have_count(0)
    assert nb.outside == []
    assert nb.problems == []


def columns_say_what_they_mean(page: Page, table: Locator) -> None:
    """Under the pointer, and at the focus of the keyboard, where the words are seen and read out."""
    columns = table.locator("th span")
    for name, meaning in (("matrix error", "‖C − G‖ / ‖G‖"), ("solve error", "(G + λ)⁻¹v"), ("scores", "1 is exact")):
        column = columns.filter(has_text=name)
        assert meaning in (column.get_attribute("title") or "")
        column.focus()
        page.keyboard.press("Shift+Tab")
        page.keyboard.press("Tab")
        expect(column).to_be_focused()
        assert meaning in column.evaluate("e => getComputedStyle(e, '::after').content")
        assert meaning in (column.get_attribute("aria-label") or "")
        assert column.evaluate(HANGS) == ["static", "relative", "0px"], (
            "it hangs from the table's left side: a phone has it"
        )
