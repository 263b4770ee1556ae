"""Decisions as plain values: which numbers name an example or a class, and files of them that come back or are refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from inflib.widgets.base import InputError, csv_text
from inflib.widgets.review_decisions import Decisions

GOOD = Decisions(torch.arange(12.0).reshape(4, 3), torch.tensor([0, 1, 2, 0]), ["a", "b, or c", "=1+1"])


def lines_of(*decided: tuple) -> list[str]:
    made = Decisions(GOOD._inputs, GOOD.given, GOOD.classes)
    for decision in decided:
        made.decide(*decision)
    return made.as_csv().splitlines(keepends=True)


HEAD, KEPT, OTHER = lines_of((1, "keep"), (3, "relabel", 2))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "first line is ''"),
        ((HEAD + KEPT).replace(",", ";"), "with commas, not semicolons"),
        (HEAD + KEPT[:-14], "fields; was the file cut off"),
        (HEAD + KEPT[:-4], "the one here has other contents"),
        (HEAD + KEPT + KEPT, "example 1 is decided about twice"),
        (HEAD + KEPT.replace("keep", "kept"), "line 2: decision 'kept'; expected keep, relabel or remove"),
        (HEAD + KEPT + "9" + OTHER[1:], "line 3 is about example '9'; expected a number from 0 to 3"),
        (HEAD + "-" + KEPT, "line 2 is about example '-1'"),
        (HEAD + OTHER.replace("=1+1", "d"), "line 2 has the label 'd'; expected a class: a, b, or c, =1+1"),
        (HEAD + OTHER.replace("=1+1", ""), "came with label None"),
        (HEAD + OTHER.replace("=1+1", "a"), "relabelled to a, which is its label"),
        (HEAD + KEPT.replace('"b, or c"', "a"), "example 1 with label a; the one here has label b, or c"),
        (HEAD + "3" + KEPT[1:].replace('"b, or c"', "a"), "the one here has other contents"),
        (HEAD + KEPT + OTHER[:2] + '"' + OTHER[2:], "fields; was the file cut off"),
    ],
)
def test_a_bad_file_is_refused_with_its_line_and_nothing_is_lost(text, message) -> None:
    there = Decisions(GOOD._inputs, GOOD.given, GOOD.classes)
    there.decide(0, "remove")
    before = dict(there.of)
    with pytest.raises(InputError) as refused:
        there.read(text)
    assert message in str(refused.value) and str(refused.value).endswith("Nothing was read.")
    assert there.of == before


def test_a_file_may_come_back_from_a_spreadsheet_with_a_mark_and_other_line_ends() -> None:
    there = Decisions(GOOD._inputs, GOOD.given, GOOD.classes)
    there.read("\ufeff" + (HEAD + KEPT + OTHER).replace("\n", "\r\n"))
    assert {n: (d.what, d.label) for n, d in there.of.items()} == {1: ("keep", None), 3: ("relabel", 2)}


def fresh(classes=("a", "b", "c"), count: int = 9) -> Decisions:
    inputs = torch.arange(2.0 * count).reshape(count, 2)
    return Decisions(inputs, torch.arange(count) % len(classes), classes)


KINDS = [int, np.int64, np.uint8, torch.tensor, lambda n: torch.tensor(n, dtype=torch.int32)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_second_thought_replaces_the_first_whatever_kind_of_number(kind) -> None:
    there = fresh()
    there.decide(kind(7), "relabel", kind(2))
    assert there.as_csv().splitlines()[1].startswith("7,b,relabel,c,#")
    there.decide(7, "keep")
    assert (int(there.labels()[7]), len(there)) == (1, 1)
    there.decide_all({kind(7): ("remove", None), kind(3): ("remove", None), kind(4): ("relabel", kind(0))})
    assert (~there.kept()).nonzero().flatten().tolist() == [3, 7] and int(there.labels()[4]) == 0
    assert {type(n) for n in there.of} == {int} and type(there.of[4].label) is int
    assert there.fingerprint(kind(3)) == there.fingerprint(3)
    there.undo()
    assert {n: d.what for n, d in there.of.items()} == {7: "keep"}


WRONG = [True, np.True_, np.array(True), torch.tensor(True), 2.0, 1.6, np.float64(2), torch.tensor(2.0)]
WRONG += [torch.tensor([2]), np.array([2])]


@pytest.mark.parametrize("wrong", WRONG, ids=repr)
def test_truth_values_fractions_and_lists_name_neither_an_example_nor_a_class(wrong) -> None:
    there = fresh()
    with pytest.raises(ValueError, match=r"^class .* of type .*; expected a whole number: give int"):
        there.decide(0, "relabel", wrong)
    with pytest.raises(ValueError, match=r"^example .* of type .*; expected a whole number: give int"):
        there.decide(wrong, "keep")
    with pytest.raises(ValueError, match=r"^class .* of type .*; expected a whole number: give int"):
        there.decide_all({1: ("keep", None), 0: ("relabel", wrong)})
    with pytest.raises(ValueError, match=r"^example .* of type .*; expected a whole number: give int"):
        there.fingerprint(wrong)
    assert not there.of and not there.can_undo


def test_one_example_under_two_numbers_is_decided_about_once() -> None:
    there = fresh()
    with pytest.raises(ValueError, match="example 7 is decided about twice; expected one decision each"):
        there.decide_all({3: ("keep", None), torch.tensor(7): ("keep", None), 7: ("remove", None)})
    assert not there.of


NAMES = ["", "\r", "a\rb", "end\r", "\rstart", "c\r\nd", "\r\n", "e\nf", "\n", 'say "g"', "h, i", " ", "=1", "\t"]


@pytest.mark.parametrize("name", NAMES, ids=repr)
def test_decisions_about_a_class_of_any_name_come_back(name) -> None:
    classes = ("plain", name, "z")
    there, back = fresh(classes), fresh(classes)
    for n in range(9):
        what = ("keep", "relabel", "remove")[n // 3]
        there.decide(n, what, (n + 1) % 3 if what == "relabel" else None)
    back.read(there.as_csv())
    assert back.of == there.of


def test_a_table_with_a_return_in_a_field_has_it_in_quotes_and_ends_its_lines_as_ever() -> None:
    assert csv_text([{"a": "x\ry", "b": 1}, {"a": "p,q", "b": None}]) == 'a,b\n"x\ry",1\n"p,q",\n'
