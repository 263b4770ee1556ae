"""*Run All* leaves solutions unrun; here they run, after the whole notebook, as a reader's answers do.

The last exercise comes first, so none may need another's answer; then wrong answers, each of which has to get the one
sentence that names its mistake.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from build import execute, read_source
from exercise_contract import Exercise, exercises
from nbformat import NotebookNode, v4
from needed_lines import needed
from notebook_files import NOTEBOOKS, TEXTS
from rebound_names import rebound
from wrong_answers import WRONG


def said(cell: NotebookNode) -> list[str]:
    """The lines a cell printed, and the name of an error that it ended with."""
    lines = [line for o in cell.outputs if o.output_type == "stream" for line in o.text.splitlines()]
    return lines + [o.ename for o in cell.outputs if o.output_type == "error"]


def answered(source: Path) -> tuple[list[tuple[Exercise, list[str]]], list[tuple[str, str, list[str]]]]:
    """What the checks say of the solutions, and of the wrong answers, after what they need of the notebook has run."""
    notebook = read_source(source)
    tried, wrong = exercises(notebook)[::-1], WRONG.get(source.stem, [])
    solutions = [v4.new_code_cell(each.solution) for each in tried]
    mistakes = [v4.new_code_cell(code, metadata={"tags": ["raises-exception"]}) for code, _ in wrong]
    own = [cell for each in tried for cell in each.code]
    notebook.cells = needed(notebook.cells, own, [cell.source for cell in solutions + mistakes])
    notebook.cells += solutions + mistakes
    execute(notebook, NOTEBOOKS)
    return (
        [(each, said(cell)) for each, cell in zip(tried, solutions, strict=True)],
        [(code, name, said(cell)) for (code, name), cell in zip(wrong, mistakes, strict=True)],
    )


@pytest.mark.parametrize("source", TEXTS, ids=lambda p: p.stem)
def test_solutions_are_right_and_wrong_answers_are_named(source: Path) -> None:
    solutions, mistakes = answered(source)
    assert solutions, "no exercises found"
    for each, lines in solutions:
        assert lines and not any(line.startswith("not ") for line in lines), f"{each.title}: {lines}"
    for code, name, lines in mistakes:
        assert len(lines) == 1 and lines[0].startswith("not yet: "), f"{code}: expected one sentence, came {lines}"
        assert name in lines[0], f"{code}: expected {name!r} in {lines[0]!r}"


def test_every_exercise_has_a_wrong_answer() -> None:
    for source in TEXTS:
        codes = " ".join(code for code, _ in WRONG.get(source.stem, []))
        for each in exercises(read_source(source)):
            assert f"{each.checks[0].name}(" in codes, f"{source.stem}, {each.title}: no entry in wrong_answers.py"


@pytest.mark.parametrize("source", TEXTS, ids=lambda p: p.stem)
def test_what_an_exercise_reads_is_bound_in_one_cell(source: Path) -> None:
    assert rebound(read_source(source)) == []
