"""What of a notebook some code after it needs, statement by statement.

Solutions and wrong answers stand at a notebook's end and read few of its results, and nbval runs the whole notebook elsewhere.
Walking from the end to the beginning, a statement is needed when it binds a name that is read further down, or changes
what such a name holds: it assigns to a part of it, calls one of its methods for no result, or hands it to a function for
no result. What this leaves out wrongly is not passed over in silence: a name is missing then, or a check gets another number.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator

from nbformat import NotebookNode, v4
from notebook_contract import parse
from rebound_names import SCOPES, bound, read

SHOWS = {"print", "display"}  # functions that change nothing of what they are given
SURE = (ast.Assign, ast.AnnAssign, ast.FunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom)


Functions = dict[str, ast.FunctionDef]


def changed(statement: ast.stmt, functions: Functions) -> Iterator[str]:
    """The names whose contents a statement changes without binding them."""
    for node in () if isinstance(statement, (ast.FunctionDef, ast.ClassDef)) else ast.walk(statement):
        if isinstance(node, (ast.Attribute, ast.Subscript)) and not isinstance(node.ctx, ast.Load):
            yield from root(node)
        if isinstance(node, ast.AugAssign):
            yield from root(node.target)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            yield from handed(node.value, functions)


def handed(call: ast.Call, functions: Functions) -> Iterator[str]:
    """``model`` for ``model.eval()`` and for ``load(path, model)``; a class, a panel say, only looks."""
    name = getattr(call.func, "id", "")
    if isinstance(call.func, ast.Attribute):
        yield from root(call.func)
    elif not (name in SHOWS or name[:1].isupper() or (name in functions and leaves_arguments_alone(functions[name]))):
        yield from (name for argument in call.args for name in root(argument))


def leaves_arguments_alone(function: ast.FunctionDef) -> bool:
    arguments = {node.arg for node in ast.walk(function.args) if isinstance(node, ast.arg)}
    return not arguments & {name for statement in function.body for name in changed(statement, {})}


def root(node: ast.AST) -> Iterator[str]:
    """``model`` for ``model.layers[0].weight``."""
    while isinstance(node, (ast.Attribute, ast.Subscript, ast.Call)):
        node = node.func if isinstance(node, ast.Call) else node.value
    if isinstance(node, ast.Name):
        yield node.id


def binds(statement: ast.stmt) -> set[str]:
    return {*bound(ast.Module([statement], []))}


def loads(tree: ast.AST) -> set[str]:
    """The names that code reads of those around it: not a function's arguments, nor what it binds itself."""
    if isinstance(tree, (ast.FunctionDef, *SCOPES)):
        return read(tree)
    if isinstance(tree, ast.For):
        inside: set[str] = set()
        for statement in reversed(tree.body + tree.orelse):
            inside = inside - surely(statement) | loads(statement)
        return loads(tree.iter) | inside - {*bound(ast.Module([ast.Expr(tree.target)], []))}
    own = {tree.id} if isinstance(tree, ast.Name) and isinstance(tree.ctx, ast.Load) else set()
    return own.union(*map(loads, ast.iter_child_nodes(tree)))


def surely(statement: ast.stmt) -> set[str]:
    """What a statement binds whenever it runs: not in a branch or a loop."""
    return binds(statement) if isinstance(statement, SURE) else set()


def through(names: set[str], functions: Functions) -> set[str]:
    """These names, and all that the notebook's functions among them read when they are called."""
    fresh = seen = names
    while fresh:
        fresh = set().union(*(read(functions[name]) for name in fresh if name in functions)) - seen
        seen = seen | fresh
    return seen


def needed(cells: list[NotebookNode], own: Iterable[NotebookNode], after: Iterable[str]) -> list[NotebookNode]:
    """New cells: the exercises' ``own`` as they are, and of the others the lines that these and ``after`` need."""
    mine, code = {id(cell) for cell in own}, [cell for cell in cells if cell.cell_type == "code"]
    trees = [parse(cell.source) for cell in code]
    functions = {f.name: f for tree in trees for f in tree.body if isinstance(f, ast.FunctionDef)}
    names = through(set().union(*(read(parse(text)) for text in after)), functions)
    kept: list[NotebookNode] = []
    for cell, tree in zip(code[::-1], trees[::-1], strict=True):
        lines = []
        for statement in reversed(tree.body):
            if id(cell) in mine or names & (binds(statement) | {*changed(statement, functions)}):
                lines.append(text_of(statement, cell.source))
                names = names - (surely(statement) - {*changed(statement, functions)})
                names = names | through(loads(statement), functions)
        kept += [v4.new_code_cell("\n".join(lines[::-1]), metadata=cell.metadata)] if lines else []
    return kept[::-1]


def text_of(statement: ast.stmt, source: str) -> str:
    """A statement's own lines, its decorators with it."""
    first = min([statement.lineno, *(d.lineno for d in getattr(statement, "decorator_list", []))])
    return "\n".join(source.splitlines()[first - 1 : statement.end_lineno])
