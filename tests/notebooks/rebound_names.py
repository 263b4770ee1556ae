"""Names that an exercise depends on, bound by more than one cell: a reader who runs a cell again would be lost."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator

from exercise_contract import Exercise, exercises
from nbformat import NotebookNode
from notebook_contract import parse

SCOPES = (ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def bound(tree: ast.AST) -> Iterator[str]:
    """The names that running the code binds for the cells after it."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name
        elif not isinstance(node, SCOPES):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                yield node.id
            if isinstance(node, ast.alias):
                yield (node.asname or node.name).split(".")[0]
            yield from bound(node)


def read(tree: ast.AST) -> set[str]:
    """The names that code takes from the notebook: what it loads, less what it binds itself."""
    nodes = list(ast.walk(tree))
    own = {node.arg for node in nodes if isinstance(node, ast.arg)}
    own |= {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    return {node.id for node in nodes if isinstance(node, ast.Name)} - own


def depends_on(exercise: Exercise, functions: dict[str, ast.FunctionDef]) -> set[str]:
    """What the check and the solution read, directly or through a function of the notebook."""
    trees = [parse(cell.source) for cell in exercise.code] + [parse(exercise.solution or "")]
    names: set[str] = set()
    fresh = set().union(*map(read, trees))
    while fresh:
        names |= fresh
        fresh = set().union(*(read(functions[name]) for name in fresh if name in functions)) - names
    return names


def rebound(notebook: NotebookNode) -> list[str]:
    """A sentence for each name that an exercise depends on and that several cells bind."""
    found, tried = [], exercises(notebook)
    stubs = [id(stub) for each in tried for stub in each.stubs]
    trees = [parse(c.source) for c in notebook.cells if c.cell_type == "code" and id(c) not in stubs]
    times = Counter(name for tree in trees for name in set(bound(tree)))
    functions = {node.name: node for tree in trees for node in tree.body if isinstance(node, ast.FunctionDef)}
    for each in tried:
        names = sorted(name for name in depends_on(each, functions) if times[name] > 1)
        found += [f"{each.title}: {name} is bound in {times[name]} cells" for name in names]
    return found
