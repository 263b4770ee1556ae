"""On Colab a notebook stands alone: its first cell brings the course, and all cells after it are the course's own."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import nbformat
import pytest
from build import execute
from colab import ROOT, lay_out, setup_cell
from nbformat import v4


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> Path:
    """A small repository of the package, laid out as the course's is."""
    folder = tmp_path_factory.mktemp("repository")
    shutil.copytree(ROOT / "inflib", folder / "inflib", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "notebooks").mkdir()
    shutil.copy(ROOT / "notebooks" / "notation.md", folder / "notebooks")
    who = ("-c", "user.name=A reader", "-c", "user.email=reader@example.org")
    for words in (("init", "-q"), ("add", "."), (*who, "commit", "-q", "-m", "As it is")):
        subprocess.run(["git", *words], cwd=folder, check=True, capture_output=True)
    return folder


def test_the_first_cell_brings_the_course(repository, tmp_path) -> None:
    asks = v4.new_code_cell(
        "import os, inflib.widgets\nprint(os.getcwd(), os.path.dirname(inflib.__file__), sep='\\n')"
    )
    ran = execute(v4.new_notebook(cells=[setup_cell(f"file://{repository}"), asks]), tmp_path)
    course = tmp_path.resolve() / "inflib-course"
    assert ran.cells[1].outputs[0].text.splitlines() == [str(course / "notebooks"), str(course / "inflib")]


def test_every_other_cell_is_the_courses(tmp_path) -> None:
    for path in lay_out(tmp_path, "https://example.org/course"):
        here, there = (nbformat.read(book, as_version=4) for book in (ROOT / "notebooks" / path.name, path))
        assert there.cells[1:] == here.cells
        assert "https://example.org/course" in there.cells[0].source
        nbformat.validate(there)
