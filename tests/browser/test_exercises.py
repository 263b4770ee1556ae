"""An exercise in a real JupyterLab: the check is folded, the stub untried, the solution unrun and unseen until opened."""

from __future__ import annotations

import nbformat
import pytest
from build import read_source

SOURCE = """\
# %% [markdown]
# ## Exercises
#
# ### 1. A sum (easy, 5 minutes)

# %% jupyter={"source_hidden": true}
from inflib.lab import exercise


@exercise
def check_total(answer):
    assert answer([1, 2]) != 2, "that is the largest; add them"
    assert answer([1, 2]) == 3, "not the sum"
    return "right: the sum"


# %%
def total(numbers):
    return ...


check_total(total)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def total(numbers):
#     return sum(numbers)
#
#
# check_total(total)
# ```
# </details>
"""
STUB = 1  # of the code cells


@pytest.fixture
def opened(notebook, lab, tmp_path):
    source = tmp_path / "exercise.py"
    source.write_text(SOURCE)
    nbformat.write(read_source(source), lab.notebooks / "exercise.ipynb")
    return notebook.open("exercise.ipynb")


def answer(notebook, returned: str) -> str:
    """Write into the stub as a reader does, run it, and read what it says."""
    notebook.page.evaluate(
        """text => { const cell = window.jupyterapp.shell.currentWidget.content.widgets
                       .filter(w => w.model.type === 'code')[1];
                     cell.model.sharedModel.setSource(text); }""",
        f"def total(numbers):\n    return {returned}\n\n\ncheck_total(total)",
    )
    assert notebook.run_all(), notebook.errors()
    return said(notebook)


def said(notebook) -> str:
    cell = notebook.page.locator(".jp-CodeCell").nth(STUB)
    return cell.locator(".jp-OutputArea-output").inner_text().strip()


def test_run_all_leaves_the_exercise_to_the_reader(opened) -> None:
    assert opened.run_all(), opened.errors()
    page = opened.page
    assert said(opened) == "not tried yet"
    check = page.locator(".jp-CodeCell").nth(0)
    assert not check.locator(".cm-editor").is_visible(), "the check's source is open"
    details = page.locator("details", has_text="Solution")
    details.locator("summary").wait_for()
    code = details.locator("pre")
    assert not code.is_visible(), "the solution is seen before it is asked for"
    opened.shot("exercise")
    details.locator("summary").click()
    code.wait_for(state="visible")
    assert "sum(numbers)" in code.inner_text()


def test_an_answer_gets_one_line(opened) -> None:
    assert answer(opened, "max(numbers)") == "not yet: that is the largest; add them"
    assert answer(opened, "numbers + 1").startswith("not yet: line 2 of your cell raised TypeError")
    assert answer(opened, "sum(numbers)") == "right: the sum"
    assert opened.errors() == []
