"""Every notebook of the course keeps every rule of the contract."""

from __future__ import annotations

import pytest
from exercise_contract import EXERCISE_RULES
from notebook_contract import RULES, Book
from notebook_files import BOOKS, NOTEBOOKS, TEXTS
from prose_contract import PROSE_RULES


def test_there_is_at_least_notebook_00() -> None:
    assert NOTEBOOKS / "00_start_here.ipynb" in BOOKS, (
        "no notebook 00: every check of this folder would pass on nothing"
    )


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("path", BOOKS, ids=lambda p: p.stem)
def test_a_notebook_keeps_the_rule(path, rule) -> None:
    found = list(RULES[rule](Book.read(path)))
    assert not found, "\n".join(found)


COURSE_RULES = {**EXERCISE_RULES, **PROSE_RULES}


@pytest.mark.parametrize("rule", COURSE_RULES)
@pytest.mark.parametrize("name", [text.stem for text in TEXTS])
def test_a_notebook_keeps_the_rules_of_the_course(name, rule) -> None:
    found = list(COURSE_RULES[rule](Book.read(NOTEBOOKS / f"{name}.ipynb")))
    assert not found, "\n".join(found)
