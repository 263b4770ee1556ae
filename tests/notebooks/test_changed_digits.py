"""A changed digit in any saved output of any notebook turns nbval red."""

from __future__ import annotations

import copy
from pathlib import Path

import nbformat
import pytest
from build import execute, read_source
from notebook_files import BOOKS
from notebook_replay import bump, replay, run_nbval, unnoticed

SOURCE = """\
# %%
from IPython.display import HTML, display

x = 41

# %%
print("x is", x)
display(HTML("<b>7</b> <a title='0x7f00aa11'>here</a>"))
x + 1

# %%
# NBVAL_IGNORE_OUTPUT
import random
print(random.random())

# %% tags=["raises-exception"]
raise ValueError(f"expected 3, got {x}")

# %%
print("no digit here")
"""


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A real notebook, really executed: stdout, HTML, a value, an ignored cell, an error that is meant."""
    folder = tmp_path_factory.mktemp("small")
    source = folder / "small.py"
    source.write_text(SOURCE)
    return execute(read_source(source), folder)


@pytest.mark.parametrize("path", BOOKS, ids=lambda p: p.stem)
def test_a_changed_digit_is_noticed(path: Path, tmp_path: Path) -> None:
    found = unnoticed(nbformat.read(path, as_version=4), tmp_path)
    assert not found, "\n".join(found)


def test_the_small_notebook_passes(small, tmp_path) -> None:
    assert unnoticed(small, tmp_path) == []


def test_every_compared_text_is_changed_once(small) -> None:
    _, expected = replay(small)
    changes = [what for what, must_be_red in expected if must_be_red]
    # the printed line, the HTML, its text/plain is an object without digits, the value; the error's message
    assert changes == [
        "code cell 2, change 1",
        "code cell 2, change 2",
        "code cell 2, change 3",
        "code cell 4, change 1",
    ]


def test_the_replay_agrees_with_running_the_notebook_itself(small, tmp_path) -> None:
    """The same changes made to the notebook and run by nbval for real: red exactly where the replay says."""
    path = tmp_path / "real.ipynb"
    changed = copy.deepcopy(small)
    code = [cell for cell in changed.cells if cell.cell_type == "code"]
    code[1].outputs[0].text = bump(code[1].outputs[0].text)
    code[2].outputs[0].text = bump(code[2].outputs[0].text)
    code[3].outputs[0].evalue = bump(code[3].outputs[0].evalue)
    nbformat.write(changed, path)
    assert run_nbval(path) == [False, True, False, True, False]
    nbformat.write(small, path)
    assert run_nbval(path) == [False] * 5


def test_cells_that_nbval_does_not_compare_are_found(small, tmp_path) -> None:
    """Three of the ways: skipped, ignored by the marker's old name, ignored by a tag's old name."""
    damaged = copy.deepcopy(small)
    cells = [copy.deepcopy(small.cells[1]) for _ in range(3)]
    cells[0].source = "# NBVAL_SKIP\n" + cells[0].source
    cells[1].source = "# PYTEST_VALIDATE_IGNORE_OUTPUT\n" + cells[1].source
    cells[2].metadata.tags = ["pytest-validate-ignore-output"]
    damaged.cells = [*cells, small.cells[1]]
    found = unnoticed(damaged, tmp_path)
    assert {line.split(",")[0] for line in found} == {f"code cell {n}" for n in (1, 2, 3)}, found
    assert all("not noticed" in line for line in found)


def test_a_notebook_without_digits_is_found(small, tmp_path) -> None:
    empty = copy.deepcopy(small)
    empty.cells = [small.cells[0], small.cells[4]]
    assert unnoticed(empty, tmp_path) == ["no digit of any saved output is compared"]


def test_a_digit_that_the_comparison_blanks_is_not_the_one_changed() -> None:
    assert bump("3 <Thing at 0x7f00aa11>") == "4 <Thing at 0x7f00aa11>"
    assert bump("<Thing at 0x7f00aa11>") is None
    assert bump("9") == "0"
    assert bump("none") is None
