"""The fixtures hold what they promise: a widget runs and moves in a real Lab, and what goes wrong is seen."""

from __future__ import annotations

import nbformat
import pytest
from build import KERNELSPEC
from nbformat.v4 import new_code_cell, new_notebook, new_output
from playwright.sync_api import expect

SQUARE = """
import io

import ipywidgets as W
from PIL import Image


def png(value):
    buffer = io.BytesIO()
    Image.new("L", (8, 8), 25 * value).save(buffer, "PNG")
    return buffer.getvalue()


side = W.IntSlider(value=3, min=0, max=9, description="side", continuous_update=False)
area, picture = W.HTML(), W.Image(format="png", width=64, height=64)


def draw(_=None):
    area.value, picture.value = f"area {side.value**2}", png(side.value)


side.observe(draw, "value")
draw()
square = W.VBox([side, area, picture])
square.add_class("test-square")
square
"""


def write(lab, name: str, *sources: str) -> str:
    """A notebook of the test's own in the folder that JupyterLab serves; its name."""
    cells = [new_code_cell(source.strip()) for source in sources]
    nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": KERNELSPEC}), lab.notebooks / name)
    return name


def test_a_slider_moves_text_and_pixels(notebook, lab, pixels) -> None:
    nb = notebook.open(write(lab, "square.ipynb", SQUARE))
    assert nb.run_all(), nb.errors()
    square = nb.page.locator(".test-square")
    expect(square.locator(".widget-html-content").last).to_have_text("area 9")
    images = square.locator("img")
    expect(images).to_have_count(1)
    before, address = pixels(images), images.get_attribute("src")
    assert pixels(images) == before

    handle = square.locator(".noUi-handle")
    handle.focus()
    handle.press("ArrowRight")
    expect(square.locator(".widget-readout")).to_have_text("4")
    expect(square.locator(".widget-html-content").last).to_have_text("area 16")
    expect(images).not_to_have_attribute("src", address)
    assert pixels(images) != before

    nb.theme("JupyterLab Dark")
    assert nb.shot("square", square).stat().st_size > 500
    assert nb.errors() == []
    assert nb.outside == []
    assert nb.problems == []


def test_a_cell_that_raises_is_reported(notebook, lab) -> None:
    nb = notebook.open(write(lab, "raises.ipynb", "1 / 0"))
    assert not nb.run_all()
    assert nb.errors() == ["ZeroDivisionError: division by zero"]


def test_a_saved_output_does_not_pass_for_a_new_one(notebook, lab) -> None:
    cell = new_code_cell("x = 1", outputs=[new_output("stream", text="from long ago")])
    nbformat.write(new_notebook(cells=[cell], metadata={"kernelspec": KERNELSPEC}), lab.notebooks / "old.ipynb")
    nb = notebook.open("old.ipynb")
    expect(nb.page.get_by_text("from long ago")).to_be_visible()
    assert nb.run_all()
    expect(nb.page.get_by_text("from long ago")).to_have_count(0)


@pytest.mark.parametrize(
    "html",
    ["<img src='https://example.com/a.png'>", "<script>import('https://example.com/a.js')</script>"],
    ids=["image", "script"],
)
def test_a_request_that_leaves_the_machine_is_seen(notebook, lab, html) -> None:
    source = f"from IPython.display import HTML\nHTML({html!r})"
    nb = notebook.open(write(lab, "outside.ipynb", source))
    with nb.page.expect_console_message(lambda message: "ERR_NAME_NOT_RESOLVED" in message.text):
        assert nb.run_all()
    assert [url.split("/a.")[0] for url in nb.outside] == ["https://example.com"]
    assert any("ERR_NAME_NOT_RESOLVED" in problem for problem in nb.problems)


def test_an_exception_in_the_page_is_seen(notebook, lab) -> None:
    source = "from IPython.display import HTML\nHTML('<script>throw new Error(\"lost\")</script>')"
    nb = notebook.open(write(lab, "throws.ipynb", source))
    with nb.page.expect_event("pageerror"):
        assert nb.run_all()
    assert any("lost" in problem for problem in nb.problems)


def test_kernels_are_those_of_the_checks(notebook, lab) -> None:
    """One thread, no GPU, no network, no settings of this machine: as where the saved outputs were made."""
    check = "import os\nassert os.environ['OMP_NUM_THREADS'] == '1'\nassert os.environ['CUDA_VISIBLE_DEVICES'] == ''"
    ours = "assert {k for k in os.environ if 'INFLIB_' in k} == {'INFLIB_OFFLINE', 'INFLIB_CACHE'}"
    nb = notebook.open(write(lab, "env.ipynb", check, ours))
    assert nb.run_all(), nb.errors()
