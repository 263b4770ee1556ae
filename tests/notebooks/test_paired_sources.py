"""The notebooks are what their py:percent sources say, and none is missing on either side."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from build import read_source
from notebook_files import BOOKS, SOURCES, TEXTS
from notebook_pairs import differences

SOURCE = """\
# %% [markdown]
# # Title
# Some words.

# %% tags=["nbval-ignore-output"]
x = 1
assert x == 1
x

# %%
print(x)
"""


def test_every_source_has_its_notebook_and_every_notebook_its_source() -> None:
    assert [path.stem for path in TEXTS] == [path.stem for path in BOOKS]


@pytest.mark.parametrize("path", BOOKS, ids=lambda p: p.stem)
def test_a_notebook_equals_its_source(path: Path) -> None:
    found = differences(SOURCES / f"{path.stem}.py", path)
    assert not found, "\n".join(found)


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    source, notebook = tmp_path / "pair.py", tmp_path / "pair.ipynb"
    source.write_text(SOURCE)
    nbformat.write(read_source(source), notebook)
    return source, notebook


def test_a_fresh_pair_has_no_differences(pair) -> None:
    assert differences(*pair) == []


def test_outputs_and_counts_are_no_difference(pair) -> None:
    nb = nbformat.read(pair[1], as_version=4)
    nb.cells[1].execution_count = 1
    nb.cells[1].outputs = [nbformat.v4.new_output("stream", text="1\n")]
    nbformat.write(nb, pair[1])
    assert differences(*pair) == []


def drop_a_cell(nb) -> None:
    del nb.cells[-1]


def change_code(nb) -> None:
    nb.cells[1].source = nb.cells[1].source.replace("x = 1", "x = 2")


def change_prose(nb) -> None:
    nb.cells[0].source += " More."


def change_tags(nb) -> None:
    nb.cells[1].metadata.tags = []


def swap_cells(nb) -> None:
    nb.cells[1], nb.cells[2] = nb.cells[2], nb.cells[1]


def change_type(nb) -> None:
    nb.cells[2] = nbformat.v4.new_markdown_cell(nb.cells[2].source)


@pytest.mark.parametrize("edit", [drop_a_cell, change_code, change_prose, change_tags, swap_cells, change_type])
def test_an_edited_notebook_differs_from_its_source(pair, edit) -> None:
    source, notebook = pair
    nb = nbformat.read(notebook, as_version=4)
    edit(nb)
    nbformat.write(nb, notebook)
    assert differences(source, notebook)
