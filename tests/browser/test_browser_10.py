"""The boxes of notebook 10 in a real JupyterLab: run a check, say what it is, in both themes and on a phone."""

from __future__ import annotations

import nbformat
from build import KERNELSPEC
from nbformat.v4 import new_code_cell, new_notebook
from panels import PanelPage
from playwright.sync_api import expect

SOURCE = """
import numpy as np

from inflib.conformance import PASSED, run
from inflib.lab.mistakes import MISTAKES, broken
from inflib.widgets import Boxes

by_name = {mistake.name: mistake for mistake in MISTAKES}
names = ["sound", "sign", "observed labels", "V for Vᵀ"]
programs = {name: broken(by_name.get(name)) for name in names}
failing = {name: frozenset(o.check for o in run(program) if o.status != PASSED) for name, program in programs.items()}
truth = {"box 1": "sign", "box 2": "sound"}
faces = {name: [np.full((28, 28), 60 * k + 9 * j, dtype=np.uint8) for j in range(5)] for k, name in enumerate(truth)}
Boxes({name: programs[what] for name, what in truth.items()}, truth, failing, faces)
"""


def test_a_reader_finds_out_what_is_in_a_box(notebook, lab, pixels) -> None:
    cells = [new_code_cell(SOURCE.strip())]
    nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": KERNELSPEC}), lab.notebooks / "boxes.ipynb")
    nb = notebook.open("boxes.ipynb")
    assert nb.run_all(), nb.errors()
    page = PanelPage(nb, pixels, ".inflib-boxes >> nth=0", "boxes-face", "boxes-record", "boxes-answer")
    page.root.scroll_into_view_if_needed()
    expect(page.root.get_by_text("4 of 4 explanations are left")).to_be_visible()
    page.select("Check", "a linear model is refitted")
    page.settled()
    page.changes(lambda: page.button("Run the check").click(), pixels=False)
    expect(page.root.get_by_text("3 of 4 explanations are left: sign, observed labels, V for Vᵀ")).to_be_visible()
    page.select("It is", "sound")
    page.settled()
    page.changes(lambda: page.button("Say so").click(), pixels=False)
    expect(page.root.get_by_text("not sound: it would not have given the outcomes below")).to_be_visible()
    page.select("Check", "self influence is the diagonal")
    page.settled()
    page.changes(lambda: page.button("Run the check").press("Enter"), pixels=False)
    page.select("It is", "sign")
    page.settled()
    page.changes(lambda: page.button("Say so").click(), pixels=False)
    expect(page.root.get_by_text("right: sign, after 2 checks")).to_be_visible()
    nb.shot("10-light", page.root)
    page.changes(lambda: page.select("Box", "box 2"))
    expect(page.root.get_by_text("no check was run on this box")).to_be_visible()
    nb.theme("JupyterLab Dark")
    nb.shot("10-dark", page.root)
    nb.fits_a_phone(page.root, "10-dark")
    assert nb.errors() == []
    assert nb.outside == []
    assert nb.problems == []
