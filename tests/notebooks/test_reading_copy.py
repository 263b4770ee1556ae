"""The reader's copy of the course: what is only run is renewed, what is written stays."""

from __future__ import annotations

import copy as copies
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from reading_copy import lay_out


def write(path: Path, *sources: str, output: str = "") -> bytes:
    cells = [new_markdown_cell("# A heading", id="a")]
    outputs = [new_output("stream", text=output)] if output else []
    cells += [new_code_cell(source, id=f"c{n}", outputs=copies.copy(outputs)) for n, source in enumerate(sources)]
    nbformat.write(new_notebook(cells=cells), path)
    return path.read_bytes()


@pytest.fixture
def course(tmp_path: Path) -> Path:
    (tmp_path / "course" / "images").mkdir(parents=True)
    (tmp_path / "course" / "images" / "one.png").write_bytes(b"a picture")
    (tmp_path / "course" / "notation.md").write_text("| a | an input |")
    write(tmp_path / "course" / "00.ipynb", "1 + 1", output="2")
    write(tmp_path / "course" / "01.ipynb", "3", output="3")
    return tmp_path / "course"


def test_the_first_time_all_is_copied(course, tmp_path) -> None:
    mine = tmp_path / "mine"
    assert lay_out(course, mine) == []
    for name in ("00.ipynb", "01.ipynb", "notation.md", "images/one.png"):
        assert (mine / name).read_bytes() == (course / name).read_bytes()


def test_what_was_written_stays_though_the_course_changes(course, tmp_path) -> None:
    mine = tmp_path / "mine"
    lay_out(course, mine)
    own = write(mine / "00.ipynb", "1 + 1", "my_answer = 2")
    assert lay_out(course, mine) == []
    assert (mine / "00.ipynb").read_bytes() == own
    write(course / "00.ipynb", "1 + 2", output="3")
    for _ in range(2):
        (said,) = lay_out(course, mine)
        assert said.startswith("00.ipynb has changed since you began to write in yours")
        assert (mine / "00.ipynb").read_bytes() == own


def test_what_was_only_run_keeps_its_outputs_until_the_course_changes(course, tmp_path) -> None:
    mine = tmp_path / "mine"
    lay_out(course, mine)
    ran = write(mine / "00.ipynb", "1 + 1", output="two")
    assert lay_out(course, mine) == []
    assert (mine / "00.ipynb").read_bytes() == ran
    new = write(course / "00.ipynb", "1 + 2", output="3")
    assert lay_out(course, mine) == []
    assert (mine / "00.ipynb").read_bytes() == new


def test_a_removed_notebook_is_laid_out_again_and_a_new_one_for_the_first_time(course, tmp_path) -> None:
    mine = tmp_path / "mine"
    lay_out(course, mine)
    write(mine / "00.ipynb", "all wrong")
    (mine / "00.ipynb").unlink()
    write(course / "02.ipynb", "4")
    assert lay_out(course, mine) == []
    assert (mine / "00.ipynb").read_bytes() == (course / "00.ipynb").read_bytes()
    assert (mine / "02.ipynb").is_file()


@pytest.mark.parametrize("content", [b"", b"[]", b'{"cells": [1]}', b"\xff"])
def test_a_file_that_is_no_notebook_any_more_is_the_readers(course, tmp_path, content) -> None:
    mine = tmp_path / "mine"
    lay_out(course, mine)
    (mine / "00.ipynb").write_bytes(content)
    assert lay_out(course, mine) == []
    assert (mine / "00.ipynb").read_bytes() == content


def test_a_file_of_the_readers_own_is_left_alone(course, tmp_path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    own = write(mine / "02.ipynb", "mine before the course had one")
    write(course / "02.ipynb", "4")
    (said,) = lay_out(course, mine)
    assert "02.ipynb" in said
    assert (mine / "02.ipynb").read_bytes() == own
