"""The board of notebook 09 in a real JupyterLab: every dial moves the table or the scatter, in both themes, on a phone."""

from __future__ import annotations

import re

import nbformat
from build import KERNELSPEC
from nbformat.v4 import new_code_cell, new_notebook
from panels import PanelPage
from playwright.sync_api import expect

SOURCE = """
import torch

from inflib import TrainIndex, ekfac, kfac
from inflib.lab import banks
from inflib.widgets import BelieveBoard

torch.set_num_threads(1)
recipe, bank = banks.recipe("logistic"), banks.bank_of("logistic")
network = recipe.train(0, progress=False).model(0).double()
train, asked = recipe.data(500, torch.float64), recipe.asked(torch.float64)
few = [(asked[0][0][::20], asked[0][1][::20])]
made = {"EK-FAC": ekfac, "K-FAC": kfac}
curvatures = {name: make(network, recipe.objective, train, progress=False) for name, make in made.items()}
index = {name: TrainIndex.build(network, recipe.objective, train, C, progress=False) for name, C in curvatures.items()}


def scorer(name):
    def at(dials):
        damping = {k: dials.damping * mean for k, mean in curvatures["EK-FAC"].mean_eigenvalues().items()}
        how = dict(damping=damping, measurement=dials.measurement)
        return index[name].influence(network, recipe.objective, few, **how) * (1 + 0.05 * dials.steps)

    return at


captions = [f"a {label}" for label in few[0][1].tolist()]
BelieveBoard(bank, {name: scorer(name) for name in made}, range(0, 200, 20), captions, refined=["K-FAC"])
"""


def test_every_dial_of_the_board_moves_it(notebook, lab, pixels) -> None:
    cells = [new_code_cell(SOURCE.strip())]
    nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": KERNELSPEC}), lab.notebooks / "board.ipynb")
    nb = notebook.open("board.ipynb")
    assert nb.run_all(), nb.errors()
    page = PanelPage(nb, pixels, ".inflib-believe >> nth=0", "believe-table", "believe-scatter")
    page.root.scroll_into_view_if_needed()
    scatter = page.root.locator(".inflib-believe-scatter")
    expect(scatter.locator("circle")).to_have_count(100)
    expect(page.root.locator("td").filter(has_text="ceiling")).to_be_visible()
    nb.shot("09-light", page.root)
    page.changes(lambda: page.slide("Query", "ArrowRight"), pixels=False)
    page.changes(lambda: page.select("Method", "K-FAC"), pixels=False)
    page.changes(lambda: page.slide("Damping", "End"), pixels=False)
    page.changes(lambda: page.slide("Steps", "End"), pixels=False)
    page.changes(lambda: page.select("Measured", "log-likelihood"), pixels=False)
    expect(scatter.locator("svg")).to_have_attribute("aria-label", re.compile(r"a \d: rank correlation"))
    nb.theme("JupyterLab Dark")
    nb.shot("09-dark", page.root)
    nb.fits_a_phone(page.root, "09-dark")
    assert nb.errors() == []
    assert nb.outside == []
    assert nb.problems == []
