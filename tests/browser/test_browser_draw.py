"""Draw a digit in a real JupyterLab: with the mouse, a finger, the keyboard, a picture; and see what made the answer."""

from __future__ import annotations

import nbformat
import pytest
from build import KERNELSPEC
from nbformat.v4 import new_code_cell, new_notebook
from panels import SLOW, says_that_it_computes
from playwright.sync_api import expect
from sheets import SheetPage, use_every_control

SOURCES = (
    """
import torch

from inflib import CrossEntropy, TrainIndex, load
from inflib.lab import load_checkpoint, mlp, mnist_5k, shipped_checkpoint
from inflib.widgets import DrawDigit, three_methods

torch.set_num_threads(1)
digits, model, objective = mnist_5k(), mlp(dtype=torch.float64), CrossEntropy()
load_checkpoint(shipped_checkpoint("mnist_mlp"), model, data=(digits.train.inputs, digits.train.labels))
curvature = load(shipped_checkpoint("mnist_mlp_ekfac"), model)
train = digits.train.batches(dtype=torch.float64)
index = TrainIndex.build(model, objective, train, curvature)
methods = three_methods(model, objective, train, curvature)
""",
    """
panel = DrawDigit(model, objective, index, digits.train, curvatures=methods)
panel
""",
)
SEVEN = [(60, 60), (215, 62), (170, 140), (120, 240)]
BREAK = """
def broken(*args):
    raise RuntimeError("planted <b>error</b>")

kept, panel.influence.ask_about = panel.influence.ask_about, broken
"""
SLOWLY = SLOW + "\npanel.influence.ask_about = slow"


@pytest.fixture
def page(notebook, lab, pixels) -> SheetPage:
    cells = [new_code_cell(source.strip()) for source in SOURCES]
    nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": KERNELSPEC}), lab.notebooks / "draw.ipynb")
    nb = notebook.open("draw.ipynb")
    # tall enough for all of the panel to be in sight: JupyterLab takes cells that are not out of the page
    nb.page.set_viewport_size({"width": 1280, "height": 1700})
    assert nb.run_all(), nb.errors()
    page = SheetPage(nb, pixels, "draw")
    page.root.scroll_into_view_if_needed()
    expect(page.sheet).to_be_visible()
    return page


def test_a_drawing_is_answered_and_so_is_every_control(page: SheetPage) -> None:
    draw_with_the_mouse(page)
    use_every_control(page)
    see_errors_and_waiting(page)
    assert page.nb.errors() == []
    assert page.nb.outside == []
    assert page.nb.problems == []


def draw_with_the_mouse(page: SheetPage) -> None:
    """Nothing is asked while the pen is down; after it is lifted the answer comes."""
    expect(page.root.get_by_text("draw a digit here")).to_be_visible()
    expect(page.prediction).to_contain_text("What the model says will stand here")
    expect(page.cards).to_have_count(0)
    page.nb.shot("draw-empty", page.root)
    page.stroke(SEVEN, lift=False)
    assert page.ink() > 0.03
    page.page.wait_for_timeout(700)
    page.settled()
    expect(page.cards).to_have_count(0)
    page.page.mouse.up()
    expect(page.cards).to_have_count(20)
    expect(page.root.get_by_text("draw a digit here")).to_be_hidden()
    expect(page.prediction).to_contain_text("The model says 7")
    expect(page.prediction.get_by_text("%", exact=False)).to_have_count(11)
    expect(page.root.get_by_text("raised the log-likelihood of class 7")).to_be_visible()
    page.nb.shot("draw-light", page.root)
    page.changes(lambda: page.stroke([(80, 150), (190, 150)]))  # the bar of a 7, as in Europe


def see_errors_and_waiting(page: SheetPage) -> None:
    before = page.text()
    page.kernel(BREAK)
    page.stroke(SEVEN)
    expect(page.error).to_contain_text("RuntimeError: planted <b>error</b>")
    assert page.text() == before
    page.kernel(SLOWLY)
    page.stroke([(30, 30), (30, 60)])
    says_that_it_computes(page.nb, page.root)
    expect(page.error).to_have_count(0)
    assert page.text() != before
