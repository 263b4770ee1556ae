"""The table of symbols, and the symbols that the notebooks' formulas use.

A symbol is a letter: Latin, Greek, or one in a script of its own. Subscripts made of words, operators' names, and
LaTeX's own commands are none.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from build import HERE, read_source

TABLE = HERE / "notation.md"
GREEK = "alpha beta gamma delta epsilon varepsilon zeta eta theta iota kappa lambda mu nu xi pi rho sigma tau phi chi psi omega"
GREEK_LETTERS = {name for word in GREEK.split() for name in (word, word.capitalize())} | {"ell"}
FORMULA = re.compile(r"\$\$(.*?)\$\$|\$([^$]+)\$", re.DOTALL)
WORDS = re.compile(r"\\(?:text|textit|mathrm|operatorname|begin|end)\s*\{[^}]*\}|\{\\rm [^}]*\}|\\rm \w+|\\[,;!: ]")
SCRIPT = re.compile(r"\\math(cal|bb)\s*\{?\s*(\w)\s*\}?")
TOKEN = re.compile(r"(?:cal|bb)-\w|\\[a-zA-Z]+|[A-Za-z]")
EVERYWHERE = {"d", "e", "bb-E", "bb-R"}  # differential, exponential, expectation, real numbers


@dataclass(frozen=True)
class Row:
    """A line of the table: its letters, and the number of the notebook that uses them first."""

    symbols: str
    first: str

    @property
    def letters(self) -> list[str]:
        return letters(self.symbols)

    @property
    def is_a_letter(self) -> bool:
        """Letters alone, separated by commas: no subscript, no star, no product of two."""
        return all(len(letters(part)) == 1 and not re.search(r"[_^]", part) for part in self.symbols.split(","))


def letters(formula: str) -> list[str]:
    """The letters of one formula, in order."""
    spoken = SCRIPT.sub(lambda m: f" {m[1]}-{m[2]} ", WORDS.sub(" ", formula))
    tokens = (token.removeprefix("\\") for token in TOKEN.findall(spoken))
    return [token for token in tokens if len(token) == 1 or token in GREEK_LETTERS or "-" in token]


def spelt(name: str) -> str:
    """The letter that a name of one letter writes: σ is sigma."""
    kind, _, word = unicodedata.name(name).lower().rpartition(" ")
    if not kind.startswith("greek"):
        return name
    word = {"lamda": "lambda", "epsilon": "varepsilon"}.get(word, word)
    return word.capitalize() if "capital" in kind else word


def plain(formula: str) -> str:
    """A formula without the spaces and braces that do not show."""
    return re.sub(r"[\s{}]|\\[,;!]", "", formula)


def rows() -> list[Row]:
    lines = [line for line in TABLE.read_text().splitlines() if line.startswith("| $")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    return [Row(each[0].strip("$"), each[4]) for each in cells]


@cache
def formulas(source: Path) -> list[str]:
    """Every formula in a notebook's text."""
    text = (cell.source for cell in read_source(source).cells if cell.cell_type == "markdown")
    bare = (re.sub(r"```.*?```|`[^`]*`", "", part, flags=re.DOTALL) for part in text)
    return [m[1] or m[2] for part in bare for m in FORMULA.finditer(part)]


def used(source: Path) -> Iterator[tuple[str, str]]:
    """(letter, formula) of every letter in a notebook's formulas."""
    for formula in formulas(source):
        yield from ((letter, formula) for letter in letters(formula))


def occurs(row: Row, source: Path) -> bool:
    """Does the notebook use the symbol? A letter by itself, a composed symbol as it stands in the table."""
    if row.is_a_letter:
        return bool(set(row.letters) & {letter for letter, _ in used(source)})
    return any(plain(part) in plain(formula) for part in row.symbols.split(",") for formula in formulas(source))
