"""Exercises: a check that answers in one sentence, whatever the reader's answer does.

An exercise of the course is three cells: the check, whose source is folded; a stub to write in, which calls it; the
solution, a folded text that nothing runs in JupyterLab and that the project's own tests run:

    @exercise
    def check_total(answer):
        assert answer(x) != -total, "two minus signs: one of [3], one of the gradient"    # a likely mistake
        assert answer(x) == total, "not the sum"
        return "right: without a penalty the scores sum to zero"

    def total(x):
        return ...  # your answer

    check_total(total)  # prints: not tried yet
"""

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable
from typing import Any

NOT_TRIED = "not tried yet"


class NotTriedError(Exception):
    """The answer is still the stub's ``...``."""


def exercise(check: Callable[[Any], str]) -> Callable[[Any], None]:
    """Make a check of one answer, a function or a value, print what it found; never a traceback.

    ``check`` returns what it says of a right answer, and asserts the rest: an assertion's message is one sentence
    that names the likely mistake.
    """

    @functools.wraps(check)
    def checked(answer: Any) -> None:
        print(_verdict(check, answer))

    return checked


def _verdict(check: Callable[[Any], str], answer: Any) -> str:
    try:
        return check(_watched(answer) if callable(answer) else _tried(answer))
    except NotTriedError:
        return NOT_TRIED
    except AssertionError as mistake:
        return f"not yet: {_one_line(mistake)}"
    except Exception as problem:
        return f"not yet: {_place(problem, answer)} raised {type(problem).__name__}, {_one_line(problem)}"


def _watched(answer: Callable[..., Any]) -> Callable[..., Any]:
    """The reader's function, whose results are looked at before the check sees them."""

    @functools.wraps(answer)
    def watched(*arguments: Any, **named: Any) -> Any:
        result = _tried(answer(*arguments, **named))
        assert result is not None, "the function returns None; is its return missing?"
        return result

    return watched


def _tried(result: Any) -> Any:
    if result is ... or (isinstance(result, tuple) and any(part is ... for part in result)):
        raise NotTriedError
    return result


def _one_line(problem: BaseException) -> str:
    return " ".join(str(problem).split())


def _place(problem: BaseException, answer: Any) -> str:
    """The last line of the reader's own function that ran; without one, the check could not use the answer."""
    own = getattr(getattr(answer, "__code__", None), "co_filename", None)
    lines = [frame.lineno for frame in traceback.extract_tb(problem.__traceback__) if frame.filename == own]
    return f"line {lines[-1]} of your cell" if lines else "your answer does not fit the check, which"
