"""Each rule on exercises, prose and names fires on a notebook made to break it, and on none that keeps it."""

from __future__ import annotations

import copy

import pytest
from build import KERNELSPEC
from exercise_contract import EXERCISE_RULES, exercises
from nbformat import NotebookNode, v4
from notebook_contract import Book
from prose_contract import PROSE_RULES, sentences
from rebound_names import rebound

RULES = {**EXERCISE_RULES, **PROSE_RULES}
FOLDED = {"jupyter": {"source_hidden": True}}
CHECK = '@exercise\ndef check_sum(answer):\n    assert answer(x) == 3, f"came {x}; both terms"\n    return "right"'
STUB = "def total(x):\n    return ...\n\n\ncheck_sum(total)"
SOLUTION = (
    "<details><summary>Solution</summary>\n\nAdd.\n\n"
    "```python\ndef total(x):\n    return x + 2\n\n\ncheck_sum(total)\n```\n</details>"
)
TITLES = (
    "## Summary\n\nWords.\n\n## Exercises\n\n### 1. A sum (easy, 5 minutes)",
    "### 2. Two (harder, 9 minutes, pencil and paper)",
)


def stub(source: str = STUB, said: str = "not tried yet\n") -> NotebookNode:
    return v4.new_code_cell(source, outputs=[v4.new_output("stream", name="stdout", text=said)])


def book(
    titles: tuple[str, ...] = TITLES,
    check: NotebookNode | None = None,
    answer: NotebookNode | None = None,
    solution: str = SOLUTION,
    more: list[NotebookNode] | None = None,
    end: str = "## References",
) -> Book:
    """Exercises of three cells each; what is given replaces the good part."""
    cells = [v4.new_code_cell("x = 1")]
    for title in titles:
        cells += [v4.new_markdown_cell(title), check or v4.new_code_cell(CHECK, metadata=FOLDED), answer or stub()]
        cells += [v4.new_markdown_cell(solution), *(more or [])]
    cells = [copy.deepcopy(cell) for cell in [*cells, v4.new_markdown_cell(end)]]
    for n, cell in enumerate(cells):
        cell.id = str(n)
    return Book(v4.new_notebook(cells=cells, metadata={"kernelspec": KERNELSPEC}), 1000)


def checked_by(source: str) -> NotebookNode:
    return v4.new_code_cell(source, metadata=FOLDED)


BAD = [
    ("exercises_are_announced", book(TITLES[:1]), "1 exercises"),
    ("exercises_are_announced", book((TITLES[0], "### 3. Two (easy, 9 minutes, pencil and paper)")), "exercise 2"),
    ("exercises_are_announced", book((TITLES[0], "### 2. Two (hard)")), "minutes"),
    ("exercises_are_announced", book((TITLES[0], "### 2. Two (harder, 9 minutes)")), "pencil and paper"),
    ("exercises_are_whole", book(check=v4.new_code_cell("y = 1")), "0 functions under @exercise"),
    ("exercises_are_whole", book(answer=stub("y = 1")), "0 stub cells"),
    ("exercises_are_whole", book(more=[stub()]), "2 stub cells"),
    ("exercises_are_whole", book(solution="Add."), "no solution"),
    ("exercises_are_whole", book(solution=SOLUTION.replace("check_sum", "check_all")), "does not call check_sum"),
    ("checks_are_folded", book(check=v4.new_code_cell(CHECK)), "is open"),
    ("checks_are_folded", book(more=[checked_by("total = 3")]), "*Run All* runs"),
    ("stubs_are_untried", book(answer=stub(said="right\n")), "expected 'not tried yet'"),
    ("checks_answer_in_one_sentence", book(check=checked_by(CHECK + "\n    assert answer(2)")), "names no mistake"),
    ("checks_answer_in_one_sentence", book(check=checked_by(CHECK.replace("; both", ". Both"))), "more than one"),
    (
        "checks_answer_in_one_sentence",
        book(check=checked_by(CHECK.replace("return", "print(1)\n    return"))),
        "prints",
    ),
    ("has_its_sections", book(end="The end. References"), "no heading '## References'"),
    ("has_its_sections", book((TITLES[0].replace("\n\n## Exercises", " ## Exercises"), TITLES[1])), "'## Exercises'"),
    ("headings_are_headings", book(end="##References"), "begins its line"),
    ("headings_are_headings", book(end="Numerics. ## References"), "begins its line"),
    ("headings_are_headings", book(end="**A title**\n\n## References"), "poses as a heading"),
    ("long_sentences_are_rare", book(end="word " * 26 + ".\n\n## References"), "more than 25 words"),
]


def test_a_good_notebook_keeps_every_rule() -> None:
    assert [found for rule in RULES.values() for found in rule(book())] == []


@pytest.mark.parametrize(("rule", "bad", "message"), BAD, ids=[f"{rule}-{n}" for n, (rule, *_) in enumerate(BAD)])
def test_a_broken_rule_is_found(rule, bad, message) -> None:
    assert message in " ".join(RULES[rule](bad))


def test_every_rule_is_shown_to_fire() -> None:
    assert {rule for rule, *_ in BAD} == set(RULES)


def test_a_solution_is_all_python_of_the_folded_text() -> None:
    two = SOLUTION.replace("Add.", "Add.\n\n```python\ny = 2\n```\n\nThen:")
    each = exercises(book(solution=two).nb)[0]
    assert each.solution.startswith("y = 2\n\n\ndef total(x):")
    assert each.solution.endswith("check_sum(total)\n")


def test_a_sentence_ends_at_its_stop_and_formulas_are_no_words() -> None:
    text = "## Title\n\nOne, by Grosse et al. 2023. Two $a. b$ (*three.*) Four\n\n- five\n- six\n\n| a | table |\n\n$$x$$\n"
    assert sentences(text) == ["One, by Grosse et al 2023.", "Two … (*three.", "Four", "- five", "- six"]


def test_a_name_that_an_exercise_depends_on_is_bound_in_one_cell() -> None:
    cells = {
        "directly": CHECK.replace("came {x}", "came {N}"),
        "through a function": CHECK.replace("answer(x)", "answer(late(x))"),
    }
    for name, check in cells.items():
        notebook = book(TITLES[:1], check=checked_by(check)).nb
        notebook.cells[:0] = [v4.new_code_cell("def late(y):\n    return y + N"), v4.new_code_cell("N = 1")]
        assert rebound(notebook) == [], name
        notebook.cells[:0] = [v4.new_code_cell("for N in range(3):\n    pass")]
        assert [found.split(": ")[1] for found in rebound(notebook)] == ["N is bound in 2 cells"], name
        notebook.cells[0].source = "total = [N for N in range(3)]"
        assert rebound(notebook) == [], "a comprehension's variable stays inside"
