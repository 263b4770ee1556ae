"""Each rule of the contract fires on a notebook made to break it, and on no notebook that keeps it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from build import KERNELSPEC, WIDGET_VIEW
from nbformat import NotebookNode, v4
from notebook_contract import MAX_BYTES, RULES, Book, asserts, problems, words

PROSE = "What to look for before the figure, and what was seen after it, in words that a reader can follow. " * 4


def stdout(text: str, name: str = "stdout") -> NotebookNode:
    return v4.new_output("stream", name=name, text=text)


def shown(**data: str) -> NotebookNode:
    """A display; keyword names stand for media types, so plain= is text/plain."""
    kinds = {"plain": "text/plain", "html": "text/html", "png": "image/png", "widget": WIDGET_VIEW}
    return v4.new_output("display_data", data={kinds[key]: value for key, value in data.items()})


def error(name: str = "ValueError", traceback: str = "ValueError: no") -> NotebookNode:
    return v4.new_output("error", ename=name, evalue="no", traceback=[traceback])


def code(source: str, *outputs: NotebookNode, tags: tuple[str, ...] = ()) -> NotebookNode:
    return v4.new_code_cell(source, outputs=list(outputs), metadata={"tags": list(tags)} if tags else {})


def book(*cells: NotebookNode, prose: str = PROSE, size: int = 1000) -> Book:
    nb = v4.new_notebook(cells=[v4.new_markdown_cell(prose), *cells], metadata={"kernelspec": KERNELSPEC})
    result = Book(nb, size)
    for n, cell in enumerate(result.code, 1):
        cell.execution_count = n
    return result


def edited(good: Book, edit: Callable[[NotebookNode], object]) -> Book:
    edit(good.nb)
    return good


LONG = "\n".join(f"x{n} = {n}" for n in range(31))
NINE = "\n".join(f"x{n} = {n}" for n in range(9))
ASSERTED = "assert 1 + 1 == 2"

GOOD = {
    "text": book(code("print(1)", stdout("1\n"))),
    "asserting": book(code(ASSERTED)),
    "ignored but asserting": book(code(f"# NBVAL_IGNORE_OUTPUT\n{ASSERTED}\nprint(t)", stdout("0.53 s on cuda:0\n"))),
    "ignored by tag": book(code(ASSERTED, stdout("/home/me/x\n"), tags=("nbval-ignore-output",))),
    "a figure": book(code(f"plot()\n{ASSERTED}", shown(plain="<Figure size 640x480 with 1 Axes>", png="iVBO"))),
    "a widget with a still": book(code("w", shown(plain="Gallery", widget="{}", html="<p>still</p>"))),
    "an error that is meant": book(code("1 / 0", error(), tags=("raises-exception",)), code(ASSERTED)),
    "numbers": book(code("print(x)", stdout("0.123456 -1.5e-16 3.14159 version 2.13.0 12345678 0.000123456\n"))),
    "what looks like a path or a time": book(
        code("x", shown(plain="1/2, and/or, a / b, 3 minuses, 7 s 8 t, https://arxiv.org/abs/2308.03296"))
    ),
    "a link, a data address, a style in html": book(
        code(
            "w",
            shown(
                html="<style>p{transition:0.25s}</style><a href='https://arxiv.org/'>x</a>"
                "<img src='data:image/png;base64,//8=' style='opacity:0.12345678'/>"
            ),
        )
    ),
    "a cell that only prints an address": book(code("o", shown(plain="<Thing at 0x7f00aa>")), code(ASSERTED)),
    "thirty lines once": book(code("\n".join(["x = 1"] * 30)), code(ASSERTED), code("assert x"), prose=PROSE * 3),
    "dots in prose": book(code("print('wait...')", stdout("wait...\n"))),
}

BAD = [
    ("small", book(code(ASSERTED), size=MAX_BYTES + 1), f"more than {MAX_BYTES}"),
    ("clean_metadata", edited(book(code(ASSERTED)), lambda nb: nb.metadata.update(widgets={})), "widgets"),
    (
        "clean_metadata",
        edited(book(code(ASSERTED)), lambda nb: nb.metadata.pop("kernelspec")),
        "another kernel",
    ),
    (
        "clean_metadata",
        edited(book(code(ASSERTED)), lambda nb: nb.cells[1].metadata.update(execution={"x": 1})),
        "execution",
    ),
    (
        "run_in_order",
        edited(book(code(ASSERTED)), lambda nb: nb.cells[1].update(execution_count=None)),
        "fresh kernel",
    ),
    ("run_in_order", edited(book(code("x"), code("y")), lambda nb: nb.cells.reverse()), "fresh kernel"),
    ("half_is_checked", book(code("x = 1"), code("y = 1"), code(ASSERTED)), "only 1 of 3"),
    ("half_is_checked", book(code("o", shown(plain="<Thing at 0x7f00aa>"))), "only 0 of 1"),
    (
        "half_is_checked",
        book(code("plot()", shown(plain="<Figure size 640x480 with 1 Axes>", png="i"))),
        "only 0 of 1",
    ),
    ("half_is_checked", book(code("# assert x\n'assert x'\nx = 'assert y'")), "only 0 of 1"),
    ("half_is_checked", book(code("assert True")), "only 0 of 1"),
    ("half_is_checked", book(code("def f():\n    assert 1 + 1 == 2")), "only 0 of 1"),
    ("half_is_checked", book(code("m = checkpoint(3)")), "only 0 of 1"),
    ("half_is_checked", book(), "only 0 of 0"),
    (
        "enough_prose",
        book(code("x = 1\ny = 2\nz = 3"), prose="Too few words."),
        "3 words of prose for 3 lines",
    ),
    ("short_cells", book(code(LONG), code("x = 1"), prose=PROSE * 9), "31 lines of code, more than 30"),
    ("short_cells", book(code(NINE), prose=PROSE * 9), "a median of 9 lines"),
    ("nothing_skipped", book(code("# NBVAL_SKIP\nx")), "NBVAL_SKIP"),
    ("nothing_skipped", book(code("x", tags=("nbval-skip",))), "NBVAL_SKIP"),
    ("nothing_skipped", book(code("x", tags=("skip-execution",))), "NBVAL_SKIP"),
    ("markers_are_read", book(code(f"{ASSERTED}  # NBVAL_IGNORE_OUTPUT")), "alone on its line"),
    ("markers_are_read", book(code(f"# nbval_ignore_output\n{ASSERTED}")), "alone on its line"),
    ("markers_are_read", book(code(f"# PYTEST_VALIDATE_IGNORE_OUTPUT\n{ASSERTED}")), "alone on its line"),
    ("markers_are_read", book(code(f"# NBVAL_IGNORE_OUTPUTS\n{ASSERTED}")), "alone on its line"),
    ("markers_are_read", book(code(f"# NBVAL_CHECK_OUTPUT\n{ASSERTED}")), "alone on its line"),
    ("markers_are_read", book(code(ASSERTED, tags=("nbval-ignore-outputs",))), "alone on its line"),
    (
        "ignored_output_is_asserted",
        book(code("# NBVAL_IGNORE_OUTPUT\nprint(1)", stdout("1"))),
        "asserts nothing",
    ),
    ("ignored_output_is_asserted", book(code("x", tags=("nbval-ignore-output",))), "asserts nothing"),
    ("no_trailing_semicolon", book(code("plot();")), "';'"),
    ("errors_are_meant", book(code("1 / 0", error("ZeroDivisionError"))), "ZeroDivisionError"),
    ("errors_are_meant", book(code("x", tags=("raises-exception",))), "no error is saved"),
    ("no_stderr", book(code("x", stdout("UserWarning: x", name="stderr"))), "stderr"),
    ("widgets_have_a_still", book(code("w", shown(plain="Gallery", widget="{}"))), "text/html"),
    ("widgets_show_their_errors", book(code("from ipywidgets import Output\nOutput()")), "Output"),
    ("widgets_show_their_errors", book(code("W.interact(f, x=3)")), "interact"),
    ("nothing_elided", book(code("s", shown(plain="'aaaa…"))), "ellipsis"),
    ("nothing_elided", book(code("x", shown(plain="tensor([0., 1., ..., 9.])"))), "ellipsis"),
    ("nothing_elided", book(code("print(x)", stdout("[0. 1. ... 9.]\n"))), "ellipsis"),
    ("nothing_elided", book(code("t", shown(html="<td>aaaa…</td>"))), "ellipsis"),
    ("nothing_of_one_machine", book(code("p", stdout("saved to /home/me/data.npz\n"))), "/home/me/data.npz"),
    ("nothing_of_one_machine", book(code("p", shown(plain="PosixPath('/srv/a/b')"))), "/srv/a/b"),
    ("nothing_of_one_machine", book(code("p", stdout(r"C:\Users\me"))), "absolute path"),
    ("nothing_of_one_machine", book(code("p", stdout("took 0.53 s"))), "0.53 s"),
    ("nothing_of_one_machine", book(code("p", stdout("12ms"))), "12ms"),
    ("nothing_of_one_machine", book(code("p", shown(html="<b>1.5</b> seconds"))), "a time"),
    ("nothing_of_one_machine", book(code("p", stdout("2026-01-31"))), "2026-01-31"),
    ("nothing_of_one_machine", book(code("p", stdout("12:31:07"))), "12:31:07"),
    ("nothing_of_one_machine", book(code("p", stdout("running on cuda:0"))), "a device"),
    ("nothing_of_one_machine", book(code("p", stdout("device: cpu"))), "a device"),
    (
        "no_path_in_tracebacks",
        book(code("f()", error(traceback="File \x1b[32m/home/me/x.py:3\x1b[0m"), tags=("raises-exception",))),
        "/home/me/x.py",
    ),
    ("few_digits", book(code("x", shown(plain="0.3333333"))), "0.3333333"),
    ("few_digits", book(code("x", stdout("a 12.34567 b"))), "12.34567"),
    ("few_digits", book(code("x", stdout("4.440892e-16"))), "4.440892e-16"),
    ("few_digits", book(code("x", shown(html="<td>0.1234567</td>"))), "0.1234567"),
    (
        "nothing_from_outside",
        book(code("w", shown(html="<script src='https://a.b/c.js'></script>"))),
        "outside",
    ),
    ("nothing_from_outside", book(code("w", shown(html='<img src="//a.b/c.png">'))), "outside"),
    ("nothing_from_outside", book(code("w", shown(html="<style>@import 'http://a.b'</style>"))), "outside"),
    (
        "nothing_from_outside",
        book(code("w", shown(html="<script>import('https://a.b/c.js')</script>"))),
        "outside",
    ),
]


@pytest.mark.parametrize("good", GOOD)
def test_a_good_notebook_has_no_problems(good) -> None:
    assert problems(GOOD[good]) == []


@pytest.mark.parametrize(("rule", "bad", "message"), BAD, ids=[f"{rule}-{n}" for n, (rule, *_) in enumerate(BAD)])
def test_a_bad_notebook_is_found(rule, bad, message) -> None:
    found = list(RULES[rule](bad))
    assert found
    assert message in " ".join(found)


def test_every_rule_is_shown_to_fire() -> None:
    assert {rule for rule, *_ in BAD} == set(RULES)


def test_check_helpers_count_as_assertions() -> None:
    for source in (
        "check_close(a, b)",
        "torch.testing.assert_close(a, b)",
        "check(x)",
        "for x in y:\n    assert x",
    ):
        assert asserts(code(source)), source


def test_words_are_words_of_prose() -> None:
    assert words("# The *sum* over 10 tokens, $\\sum_t g_t$: `code here` [link](https://a.b/c)\n```\nx = 1\n```") == 5
