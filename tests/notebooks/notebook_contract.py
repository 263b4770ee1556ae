"""What nbval never checks: that a notebook gives it something to check, and that the course's rules are kept.

Pure reading, no kernel. A rule is a function from a `Book` to the problems it found, each a sentence that
names the cell and the fix; `RULES` holds them all by name.
"""

from __future__ import annotations

import ast
import html
import re
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import nbformat
from build import KERNELSPEC, WIDGET_VIEW
from nbformat import NotebookNode

MAX_BYTES = 1_500_000
MIN_COMPARED = 0.5  # share of the code cells
MAX_LINES, MAX_MEDIAN_LINES = 30, 8  # of code, in a cell
MIN_WORDS_PER_LINE = 6  # of prose, per line of code
MAX_DIGITS = 6  # significant ones, in a printed number

PICTURES = {"image/png", "image/jpeg"}
NOT_COMPARED = {*PICTURES, WIDGET_VIEW}

MARKER = re.compile(r"(?:nbval|pytest[_-]validate)[_-]\w+", re.IGNORECASE)
IGNORE = re.compile(r"^\s*#\s*NBVAL_IGNORE_OUTPUT\s*$", re.MULTILINE)
CHECK_CALL = re.compile(r"(check|assert)(_|$)")
ONLY_AN_ADDRESS = re.compile(r"<.*( at 0x[0-9a-f]+| size .*|)>", re.DOTALL)
ELIDED = re.compile(r"…|[\[\s,]\.\.\.[\s,\]]")
ABSOLUTE_PATH = re.compile(r"(?<![\w./:<>~-])~?/(?:[\w.-]+/)+[\w.-]+|\b[A-Za-z]:\\\w+")
TIME = re.compile(
    r"\b\d+(\.\d+)?\s?(ns|[µμu]s|ms|seconds?|secs?|minutes?|mins?)\b|\b\d+\.\d+\s?s\b"
    r"|\b\d{1,2}:\d\d:\d\d\b|\b20\d\d-\d\d-\d\d\b|\bCPU times\b|\bWall time\b|\bper loop\b|\bit/s\b"
)
DEVICE = re.compile(r"\bcuda\b|\bmps:\d|\bdevice\W{0,3}cpu\b|\bNVIDIA\b", re.IGNORECASE)
DECIMAL = re.compile(r"(?<![\w./])(\d+)\.(\d+)(?:e[+-]?\d+)?(?![\w.]*\.\d)")
OUTSIDE = re.compile(
    r"(\bsrc\s*=\s*[\"']?|\burl\(\s*[\"']?|@import\s+[\"']?|\bimport\(?\s*[\"']|<link\b[^>]*?href\s*=\s*[\"']?)"
    r"(https?:)?//",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Book:
    """A notebook as saved: its nodes and its size in bytes."""

    nb: NotebookNode
    size: int

    @classmethod
    def read(cls, path: Path) -> Book:
        return cls(nbformat.read(path, as_version=4), path.stat().st_size)

    @property
    def code(self) -> list[NotebookNode]:
        return [c for c in self.nb.cells if c.cell_type == "code" and c.source.strip()]

    @property
    def numbered(self) -> Iterator[tuple[str, NotebookNode]]:
        """Code cells with the name a message gives them: the number in brackets that the notebook shows."""
        return ((f"code cell {n}", cell) for n, cell in enumerate(self.code, 1))


Rule = Callable[[Book], Iterator[str]]
RULES: dict[str, Rule] = {}


def rule(function: Rule) -> Rule:
    RULES[function.__name__] = function
    return function


# --------------------------------------------------------------------------------------------- reading a cell


def parse(source: str) -> ast.Module:
    """The cell's syntax tree, without IPython's own lines; empty where it is not Python."""
    lines = [line for line in source.splitlines() if not line.lstrip().startswith(("%", "!"))]
    try:
        return ast.parse("\n".join(lines))
    except SyntaxError:
        return ast.Module(body=[], type_ignores=[])


def executed(tree: ast.AST) -> Iterator[ast.AST]:
    """The nodes that running the cell runs: not the bodies of functions and classes it only defines."""
    for node in ast.iter_child_nodes(tree):
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)):
            yield node
            yield from executed(node)


def called_name(node: ast.AST) -> str:
    if not isinstance(node, ast.Call):
        return ""
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def asserts(cell: NotebookNode) -> bool:
    """Does running the cell check something: an assert that can fail, a call of check_... or assert_...?"""
    nodes = list(executed(parse(cell.source)))
    can_fail = any(isinstance(n, ast.Assert) and not isinstance(n.test, ast.Constant) for n in nodes)
    return can_fail or any(CHECK_CALL.match(called_name(n)) for n in nodes)


def tags(cell: NotebookNode) -> list[str]:
    return list(cell.metadata.get("tags", []))


def ignored(cell: NotebookNode) -> bool:
    """Is nbval told not to compare the cell's output?"""
    return bool(IGNORE.search(cell.source)) or "nbval-ignore-output" in tags(cell)


def texts(cell: NotebookNode) -> Iterator[tuple[str, str]]:
    """(kind, text) of everything that nbval compares."""
    for output in cell.outputs:
        if output.output_type == "stream":
            yield output.name, output.text
        for kind, text in output.get("data", {}).items():
            if kind not in NOT_COMPARED:
                yield kind, str(text)


def visible(kind: str, text: str) -> str:
    """The words a reader sees: HTML without its tags, styles and scripts."""
    if kind not in {"text/html", "image/svg+xml"}:
        return text
    text = re.sub(r"<(style|script)\b.*?</\1>", " ", text, flags=re.DOTALL | re.IGNORECASE)
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", text)).split())


def printed(book: Book) -> Iterator[tuple[str, str]]:
    """(cell, text) of everything shown to the reader whose output is compared."""
    for where, cell in book.numbered:
        if not ignored(cell):
            yield from ((where, visible(kind, text)) for kind, text in texts(cell))


def compared(cell: NotebookNode) -> bool:
    """Is there text that nbval compares and that says more than an object's address?"""
    return not ignored(cell) and any(
        text.strip() and not (kind == "text/plain" and ONLY_AN_ADDRESS.fullmatch(text.strip()))
        for kind, text in texts(cell)
    )


def lines_of_code(cell: NotebookNode) -> int:
    return sum(bool(line.strip()) and not line.lstrip().startswith("#") for line in cell.source.splitlines())


def words(markdown: str) -> int:
    """Words of prose: code, formulas, HTML and addresses do not count."""
    for other in (
        r"```.*?```",
        r"\$\$.*?\$\$",
        r"\$[^$]*\$",
        r"`[^`]*`",
        r"<[^>]*>",
        r"\]\([^)]*\)",
        r"https?://\S+",
    ):
        markdown = re.sub(other, " ", markdown, flags=re.DOTALL)
    return len(re.findall(r"[^\W\d_][\w'’-]*", markdown))


# ---------------------------------------------------------------------------------------- the file as a whole


@rule
def small(book: Book) -> Iterator[str]:
    if book.size > MAX_BYTES:
        yield f"{book.size} bytes, more than {MAX_BYTES}: save smaller pictures"


@rule
def clean_metadata(book: Book) -> Iterator[str]:
    if book.nb.metadata != {"kernelspec": KERNELSPEC}:
        extra = sorted(set(book.nb.metadata) - {"kernelspec"})
        what = f"holds {', '.join(extra)}" if extra else "names another kernel"
        yield f"its metadata {what}; expected python3 alone: save notebooks with `make notebooks`"
    for n, cell in enumerate(book.nb.cells, 1):
        if noise := sorted({"execution", "collapsed", "scrolled", "trusted"} & set(cell.metadata)):
            yield f"cell {n}: its metadata holds {', '.join(noise)}: save notebooks with `make notebooks`"


@rule
def run_in_order(book: Book) -> Iterator[str]:
    counts = [cell.execution_count for cell in book.code]
    if counts != list(range(1, len(counts) + 1)):
        yield f"counts {counts}: not run top to bottom in one fresh kernel"


@rule
def half_is_checked(book: Book) -> Iterator[str]:
    checked = sum(asserts(cell) or compared(cell) for cell in book.code)
    if not book.code or checked / len(book.code) < MIN_COMPARED:
        yield f"only {checked} of {len(book.code)} code cells are compared or assert something"


@rule
def enough_prose(book: Book) -> Iterator[str]:
    lines = sum(map(lines_of_code, book.code))
    total = sum(words(cell.source) for cell in book.nb.cells if cell.cell_type == "markdown")
    if total < MIN_WORDS_PER_LINE * lines:
        yield f"{total} words of prose for {lines} lines of code; expected {MIN_WORDS_PER_LINE} a line"


@rule
def short_cells(book: Book) -> Iterator[str]:
    counts = {where: lines_of_code(cell) for where, cell in book.numbered}
    yield from (f"{where}: {n} lines of code, more than {MAX_LINES}" for where, n in counts.items() if n > MAX_LINES)
    if counts and statistics.median(counts.values()) > MAX_MEDIAN_LINES:
        yield f"a median of {statistics.median(counts.values()):g} lines a cell, more than {MAX_MEDIAN_LINES}"


# ---------------------------------------------------------------------------------------------- how cells run


@rule
def nothing_skipped(book: Book) -> Iterator[str]:
    for where, cell in book.numbered:
        if any("skip" in mark.lower() for mark in MARKER.findall(cell.source) + tags(cell)):
            yield f"{where}: NBVAL_SKIP is not allowed: a cell that cannot run does not belong in the course"


@rule
def markers_are_read(book: Book) -> Iterator[str]:
    for where, cell in book.numbered:
        in_tags = [tag for tag in tags(cell) if MARKER.search(tag) and tag != "nbval-ignore-output"]
        in_source = [m for m in MARKER.findall(cell.source) if "skip" not in m.lower()]
        if len(in_source) != len(IGNORE.findall(cell.source)) or [t for t in in_tags if "skip" not in t.lower()]:
            yield f"{where}: nbval reads '# NBVAL_IGNORE_OUTPUT' alone on its line, spelt exactly so"


@rule
def ignored_output_is_asserted(book: Book) -> Iterator[str]:
    for where, cell in book.numbered:
        if ignored(cell) and not asserts(cell):
            yield f"{where}: its output is ignored and it asserts nothing"


@rule
def no_trailing_semicolon(book: Book) -> Iterator[str]:
    for where, cell in book.numbered:
        if cell.source.rstrip().endswith(";"):
            yield f"{where}: a trailing ';' hides nothing from nbval; assign the value to _ instead"


@rule
def errors_are_meant(book: Book) -> Iterator[str]:
    for where, cell in book.numbered:
        names = [output.ename for output in cell.outputs if output.output_type == "error"]
        meant = "raises-exception" in tags(cell) or "NBVAL_RAISES_EXCEPTION" in cell.source
        if names and not meant:
            yield f"{where}: a saved error, {names[0]}"
        if meant and not names:
            yield f"{where}: tagged raises-exception, and no error is saved"


@rule
def no_stderr(book: Book) -> Iterator[str]:
    for where, cell in book.numbered:
        if any(output.output_type == "stream" and output.name == "stderr" for output in cell.outputs):
            yield f"{where}: stderr is saved (a warning or a progress bar): prevent it, or catch and show it"


# -------------------------------------------------------------------------------------------- what cells show


@rule
def widgets_have_a_still(book: Book) -> Iterator[str]:
    for where, cell in book.numbered:
        if any(WIDGET_VIEW in o.get("data", {}) and "text/html" not in o.data for o in cell.outputs):
            yield f"{where}: a widget without a text/html still: blank on GitHub and in nbconvert"


@rule
def widgets_show_their_errors(book: Book) -> Iterator[str]:
    for where, cell in book.numbered:
        names = {getattr(n, "attr", getattr(n, "id", "")) for n in ast.walk(parse(cell.source))}
        if used := sorted({"interact", "interactive", "interact_manual", "Output"} & names):
            yield f"{where}: {', '.join(used)} loses what an observer raises; use inflib.widgets"


@rule
def nothing_elided(book: Book) -> Iterator[str]:
    for where, text in printed(book):
        if found := ELIDED.search(text):
            around = text[max(found.start() - 20, 0) : found.end() + 20]
            yield f"{where}: cut by an ellipsis, and what lies behind it is not compared: {around!r}"


@rule
def nothing_of_one_machine(book: Book) -> Iterator[str]:
    for where, text in printed(book):
        for what, pattern in (("an absolute path", ABSOLUTE_PATH), ("a time", TIME), ("a device", DEVICE)):
            if found := pattern.search(text):
                yield f"{where}: prints {what}, {found[0]!r}: differs from machine to machine"


@rule
def no_path_in_tracebacks(book: Book) -> Iterator[str]:
    """nbval does not compare them, and they are saved all the same."""
    for where, cell in book.numbered:
        for output in cell.outputs:
            trace = re.sub(r"\x1b\[[\d;]*m", "", "\n".join(output.get("traceback", [])))
            if found := ABSOLUTE_PATH.search(trace):
                yield f"{where}: {found[0]!r} in its traceback: catch the error and print its message"


@rule
def few_digits(book: Book) -> Iterator[str]:
    for where, text in printed(book):
        for number in DECIMAL.finditer(text):
            if len((number[1] + number[2]).lstrip("0")) > MAX_DIGITS:
                yield f"{where}: prints {number[0]}, more than {MAX_DIGITS} significant digits"
                break


@rule
def nothing_from_outside(book: Book) -> Iterator[str]:
    for where, cell in book.numbered:
        for kind, text in texts(cell):
            if kind != "text/plain" and (found := OUTSIDE.search(text)):
                yield f"{where}: its output loads {text[found.start() : found.end() + 30]!r} from outside"


def problems(book: Book) -> list[str]:
    return [found for check in RULES.values() for found in check(book)]
