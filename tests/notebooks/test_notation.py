"""One table of symbols for the whole course: every letter of every formula stands in it, once, and is linked."""

from __future__ import annotations

from collections import Counter

import pytest
from build import read_source
from notation import EVERYWHERE, TABLE, Row, letters, occurs, rows, spelt, used
from notebook_contract import parse
from notebook_files import TEXTS
from rebound_names import bound


@pytest.mark.parametrize("source", TEXTS, ids=lambda p: p.stem)
def test_every_letter_of_every_formula_is_in_the_table(source) -> None:
    known = {letter for row in rows() for letter in row.letters} | EVERYWHERE
    unknown = {letter: formula.strip() for letter, formula in used(source) if letter not in known}
    assert not unknown, f"not in {TABLE.name}: {unknown}"


@pytest.mark.parametrize("source", TEXTS, ids=lambda p: p.stem)
def test_a_single_letter_in_code_is_in_the_table(source) -> None:
    known = {letter for row in rows() for letter in row.letters} | EVERYWHERE
    cells = [cell for cell in read_source(source).cells if cell.cell_type == "code"]
    names = {name for cell in cells for name in bound(parse(cell.source)) if len(name) == 1 and name not in "_F"}
    single = {spelt(name) for name in names}
    assert single <= known, f"one letter, one meaning: {sorted(single - known)} are in no row of {TABLE.name}"


def test_a_letter_has_one_row() -> None:
    counts = Counter(letter for row in rows() if row.is_a_letter for letter in row.letters)
    assert [letter for letter, n in counts.items() if n > 1] == []


@pytest.mark.parametrize("row", rows(), ids=lambda row: row.symbols)
def test_the_table_says_where_a_symbol_is_used_first(row) -> None:
    where = [text.stem[:2] for text in TEXTS if occurs(row, text)]
    assert where, "no notebook uses it"
    assert row.first == where[0]


@pytest.mark.parametrize("source", TEXTS, ids=lambda p: p.stem)
def test_a_notebook_links_the_table(source) -> None:
    first = "".join(cell.source for cell in read_source(source).cells[:1])
    assert f"]({TABLE.name})" in first, "link it under 'What you need to know': [one table](notation.md)"


def test_letters_are_read_as_a_reader_reads_them() -> None:
    assert letters(r"\mathcal I_m(n) = -\nabla m^\top H_{\rm out}^{-1}\,\mathbb E[\mathrm{diag}(p)]") == [
        *("cal-I", "m", "n", "m", "H", "bb-E", "p")
    ]
    assert letters(r"\frac{d\theta^\star}{d\varepsilon}\text{ if } \tfrac12\lVert\Delta\rVert") == [
        *("d", "theta", "d", "varepsilon", "Delta")
    ]
    assert Row("x, X", "01").is_a_letter and not Row(r"D\theta", "03").is_a_letter and not Row("e_c", "02").is_a_letter
