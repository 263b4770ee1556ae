"""A check prints one sentence: not tried yet, what is wrong, or what is right; it never raises.

PYTEST_DONT_REWRITE: pytest would lengthen the assertions' messages, which are what is tested.
"""

from __future__ import annotations

import pytest
import torch

from inflib.lab import exercise


@exercise
def check_double(answer):
    assert answer(3) != 9, "that is the square; double it"
    assert answer(3) == 6, f"came {answer(3)}"
    return "right: twice"


@exercise
def check_seven(answer):
    assert answer == 7, "count\n the days"
    return "right: seven"


def cell(source: str):
    """A function written in a cell of its own, as a reader's is: another file than the check's."""
    return eval(compile(source, "a cell", "eval"))


def says(capsys, check, answer) -> str:
    assert check(answer) is None
    return capsys.readouterr().out


def test_a_right_answer_gets_what_the_check_returns(capsys) -> None:
    assert says(capsys, check_double, lambda x: 2 * x) == "right: twice\n"
    assert says(capsys, check_seven, 7) == "right: seven\n"


@pytest.mark.parametrize("stub", [..., lambda x: ..., lambda x: (1, ...)], ids=["value", "function", "pair"])
def test_a_stub_is_not_tried_yet(capsys, stub) -> None:
    assert says(capsys, check_double, stub) == "not tried yet\n"


def test_a_wrong_answer_gets_the_sentence_that_names_the_mistake(capsys) -> None:
    assert says(capsys, check_double, lambda x: x * x) == "not yet: that is the square; double it\n"
    assert says(capsys, check_double, lambda x: x) == "not yet: came 3\n"
    assert says(capsys, check_seven, 5) == "not yet: count the days\n", "one line, whatever the message has"


def test_an_answer_without_a_return_is_told_so(capsys) -> None:
    assert "is its return missing?" in says(capsys, check_double, lambda x: None)


def test_an_answer_that_raises_is_told_where_and_what_on_one_line(capsys) -> None:
    said = says(capsys, check_double, cell("(\nlambda x:\n1 / (x - 3))"))
    assert said == "not yet: line 3 of your cell raised ZeroDivisionError, division by zero\n"
    said = says(capsys, check_double, lambda x: torch.zeros(2, 3) @ torch.zeros(2, 3))
    assert "RuntimeError" in said and said.count("\n") == 1


def test_an_answer_that_the_check_cannot_use_is_told_so(capsys) -> None:
    said = says(capsys, check_double, cell("lambda: 6"))
    assert said.startswith("not yet: your answer does not fit the check, which raised TypeError, ")
    assert says(capsys, check_double, 6).startswith("not yet: your answer does not fit the check")


def test_an_interrupt_is_not_swallowed() -> None:
    def stopped(x):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check_double(stopped)


def test_a_check_keeps_its_name() -> None:
    assert check_double.__name__ == "check_double"
