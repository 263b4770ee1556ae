"""An exercise is a check whose source is folded, a stub to write in, and a solution that nothing runs in JupyterLab.

`exercises` reads them from a notebook; the rules say what each must hold; test_solutions.py runs the solutions.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from nbformat import NotebookNode
from notebook_contract import Book, Rule, parse, texts

from inflib.lab.exercises import NOT_TRIED

HEADING = re.compile(r"^### (?P<title>\d+\. .+)$", re.MULTILINE)
TITLE = re.compile(r"(?P<number>\d+)\. .+ \((easy|medium|harder), \d+ minutes(?P<paper>, pencil and paper)?\)")
SOLUTION = re.compile(r"\A<details><summary>Solution</summary>\n\n(.+)\n</details>\Z", re.DOTALL)
FENCED = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
SENTENCE_ENDS = re.compile(r"[.!?]\s+\S")
EXERCISE_RULES: dict[str, Rule] = {}


def rule(function: Rule) -> Rule:
    EXERCISE_RULES[function.__name__] = function
    return function


@dataclass
class Exercise:
    """One exercise: its heading and every cell up to the next heading."""

    title: str
    cells: list[NotebookNode] = field(default_factory=list)

    @property
    def code(self) -> list[NotebookNode]:
        return [cell for cell in self.cells if cell.cell_type == "code"]

    @property
    def checks(self) -> list[ast.FunctionDef]:
        return [function for cell in self.code for function in check_functions(cell)]

    @property
    def stubs(self) -> list[NotebookNode]:
        """Cells that call the check and define none: where the reader writes."""
        called = [f"{check.name}(" for check in self.checks]
        return [c for c in self.code if not check_functions(c) and any(name in c.source for name in called)]

    @property
    def solution(self) -> str | None:
        """The code of the folded solution; None without one."""
        folded = [SOLUTION.match(cell.source) for cell in self.cells if cell.cell_type == "markdown"]
        blocks = [code for match in folded if match for code in FENCED.findall(match[1])]
        return "\n\n".join(blocks) if blocks else None


def check_functions(cell: NotebookNode) -> list[ast.FunctionDef]:
    functions = [node for node in parse(cell.source).body if isinstance(node, ast.FunctionDef)]
    return [f for f in functions if any(getattr(d, "id", "") == "exercise" for d in f.decorator_list)]


def folded(cell: NotebookNode) -> bool:
    return bool(cell.metadata.get("jupyter", {}).get("source_hidden"))


def exercises(notebook: NotebookNode) -> list[Exercise]:
    found: list[Exercise] = []
    inside = False
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            inside = (inside or bool(re.search(r"^## Exercises$", cell.source, re.MULTILINE))) and not re.search(
                r"^## References", cell.source, re.MULTILINE
            )
            found += [Exercise(title["title"]) for title in HEADING.finditer(cell.source) if inside]
        if inside and found:
            found[-1].cells.append(cell)
    return found


def exercise_cells(book: Book) -> list[NotebookNode]:
    """Code cells that check nothing by themselves: the checks' definitions and the stubs."""
    return [c for e in exercises(book.nb) for c in e.code if check_functions(c) or c in e.stubs]


# -------------------------------------------------------------------------------------------------------- rules


@rule
def exercises_are_announced(book: Book) -> Iterator[str]:
    found = exercises(book.nb)
    if not 2 <= len(found) <= 5:
        yield f"{len(found)} exercises under '## Exercises'; expected two to five"
    for n, each in enumerate(found, 1):
        title = TITLE.fullmatch(each.title)
        if not title or int(title["number"]) != n:
            yield f"exercise {n}: the heading {each.title!r} is not '{n}. Title (easy|medium|harder, M minutes)'"
    if found and not any("pencil and paper" in each.title for each in found):
        yield "no exercise with pencil and paper: '(medium, 10 minutes, pencil and paper)' in its heading"


@rule
def exercises_are_whole(book: Book) -> Iterator[str]:
    for each in exercises(book.nb):
        if len(each.checks) != 1:
            yield f"{each.title}: {len(each.checks)} functions under @exercise; expected one check"
        if len(each.stubs) != 1:
            yield f"{each.title}: {len(each.stubs)} stub cells that call the check; expected one"
        if each.solution is None:
            yield f"{each.title}: no solution: a markdown cell <details><summary>Solution</summary> with ```python"
        elif each.checks and f"{each.checks[0].name}(" not in each.solution:
            yield f"{each.title}: its solution does not call {each.checks[0].name}"


@rule
def checks_are_folded(book: Book) -> Iterator[str]:
    for each in exercises(book.nb):
        for cell in each.code:
            if check_functions(cell) and not folded(cell):
                yield f'{each.title}: the check\'s source is open: # %% jupyter={{"source_hidden": true}}'
            if folded(cell) and not check_functions(cell):
                yield f"{each.title}: a folded cell that *Run All* runs; a solution is text in <details>"


@rule
def stubs_are_untried(book: Book) -> Iterator[str]:
    for each in exercises(book.nb):
        for cell in each.stubs:
            said = [text for _, text in texts(cell)]
            if said != [f"{NOT_TRIED}\n"]:
                yield f"{each.title}: the stub says {said}, expected {NOT_TRIED!r}: its answer is '...'"


@rule
def checks_answer_in_one_sentence(book: Book) -> Iterator[str]:
    for each in exercises(book.nb):
        for node in (node for check in each.checks for node in ast.walk(check)):
            if isinstance(node, ast.Assert) and node.msg is None:
                yield f"{each.title}: 'assert {ast.unparse(node.test)}' names no mistake"
            if isinstance(node, ast.Assert) and node.msg and SENTENCE_ENDS.search(literal(node.msg)):
                yield f"{each.title}: more than one sentence: {literal(node.msg)!r}"
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print":
                yield f"{each.title}: the check prints; it returns what it says of a right answer"


def literal(message: ast.expr) -> str:
    """What of a message stands in the source; a value to be filled in counts as a word."""
    parts = message.values if isinstance(message, ast.JoinedStr) else [message]
    return "".join(str(part.value) if isinstance(part, ast.Constant) else "x" for part in parts)
