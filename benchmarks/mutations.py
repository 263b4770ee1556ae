"""Single-point changes of a source file, made from its syntax tree: what `mutants.py` runs the tests against.

An operator or comparison becomes its neighbour, a number the next, a condition its negation; a statement is dropped,
two arguments are swapped, a slice loses an end. Messages, documentation, annotations and assertions are left alone.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from typing import NamedTuple

OPERATORS: dict[type, type] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Div,
    ast.Pow: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.And: ast.Or,
    ast.Or: ast.And,
}
LEFT_ALONE = ("warnings.warn", "replace", "field", "TypeVar", "NamedTuple")  # calls: texts, types
NO_ORDER = ("isinstance", "getattr", "hasattr")  # swapping their arguments breaks at once


class Mutant(NamedTuple):
    """One change of one file: the text from ``start`` to ``end`` (bytes) replaced by ``new``.

    ``first`` to ``last`` are the lines of the statement, or of its head, and ``inside`` says whether it stands in a
    function: what stands outside is run by the import.
    """

    file: str
    line: int
    kind: str
    start: int
    end: int
    new: str
    first: int
    last: int
    inside: bool

    @property
    def key(self) -> str:
        return hashlib.sha256(f"{self.file}:{self.line}:{self.kind}:{self.start}:{self.new}".encode()).hexdigest()[:12]


def mutants_of(source: bytes, name: str) -> Iterator[Mutant]:
    """Every single-point change of the file ``name``, in the order of the text."""
    starts = [0, *(k + 1 for k, byte in enumerate(source) if byte == 10)]
    for node, (first, last), inside in _places(ast.parse(source), (1, 1), False):
        begin = starts[node.lineno - 1] + node.col_offset
        end = starts[node.end_lineno - 1] + node.end_col_offset
        for kind, new in _changes(node):
            yield Mutant(name, node.lineno, kind, begin, end, new, first, last, inside)


def statements(source: bytes) -> int:
    """How many statements a file has."""
    return sum(isinstance(node, ast.stmt) for node in ast.walk(ast.parse(source)))


def _places(tree: ast.AST, head: tuple[int, int], inside: bool) -> Iterator[tuple[ast.AST, tuple[int, int], bool]]:
    """(node, the lines of its statement, in a function?) of all nodes of which a change could be noticed."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.Raise, ast.JoinedStr, ast.Import, ast.ImportFrom, ast.Assert)):
            continue
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            continue
        if isinstance(node, ast.Call) and ast.unparse(node.func) in LEFT_ALONE:
            continue
        if isinstance(node, ast.keyword) and node.arg == "strict":  # of zip: an assertion, as are those above
            continue
        _forget_annotations(node)
        lines = _head(node) if isinstance(node, ast.stmt) else head
        if hasattr(node, "lineno"):
            yield node, lines, inside
        yield from _places(node, lines, inside or isinstance(node, (ast.FunctionDef, ast.Lambda)))


def _head(node: ast.stmt) -> tuple[int, int]:
    body = getattr(node, "body", None)
    return node.lineno, max(node.lineno, body[0].lineno - 1) if body else node.end_lineno


def _forget_annotations(node: ast.AST) -> None:
    if isinstance(node, ast.AnnAssign):
        node.annotation = ast.Constant(value=None)  # without a place
    for part in ("returns", "annotation"):
        if isinstance(node, (ast.FunctionDef, ast.arg)) and getattr(node, part, None) is not None:
            setattr(node, part, None)


def _changes(node: ast.AST) -> Iterator[tuple[str, str]]:
    """(kind, new text) of the changes of one node."""
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        other = OPERATORS[type(node.op)]()
        yield "operator", f"({ast.unparse(ast.BinOp(node.left, other, node.right))})"
    elif isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in OPERATORS:
        other = OPERATORS[type(node.ops[0])]()
        yield "comparison", f"({ast.unparse(ast.Compare(node.left, [other], node.comparators))})"
    elif isinstance(node, ast.BoolOp):
        yield "and/or", f"({ast.unparse(ast.BoolOp(OPERATORS[type(node.op)](), node.values))})"
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.Not, ast.USub)):
        yield "sign", f"({ast.unparse(node.operand)})"
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield "flag", str(not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
        yield "number", repr(node.value + 1 if isinstance(node.value, int) else node.value * 2)
    elif isinstance(node, ast.IfExp):
        yield "other branch", f"({ast.unparse(ast.IfExp(node.test, node.orelse, node.body))})"
    elif isinstance(node, ast.Slice):
        yield from _shorter_slices(node)
    elif isinstance(node, ast.Call):
        yield from _swapped(node)
    elif isinstance(node, (ast.AugAssign, ast.Delete)) or _is_call(node):
        yield "dropped", "pass"


def _is_call(node: ast.AST) -> bool:
    """A statement that is a call, of something other than a warning."""
    called = isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
    return called and ast.unparse(node.value.func) not in LEFT_ALONE


def _shorter_slices(node: ast.Slice) -> Iterator[tuple[str, str]]:
    for part in ("lower", "upper"):
        if getattr(node, part) is not None:
            kept = {name: getattr(node, name) for name in ("lower", "upper", "step")} | {part: None}
            yield f"slice without {part}", ast.unparse(ast.Slice(**kept))


def _swapped(node: ast.Call) -> Iterator[tuple[str, str]]:
    starred = any(isinstance(argument, ast.Starred) for argument in node.args)
    if len(node.args) >= 2 and not starred and ast.unparse(node.func) not in NO_ORDER:
        args = [node.args[1], node.args[0], *node.args[2:]]
        yield "swapped arguments", ast.unparse(ast.Call(node.func, args, node.keywords))
