"""What somebody decided about suspicious labels, as plain values: kept, relabelled or removed; undone; as CSV and back.

A file of decisions knows which examples it is about: every row repeats the example's number, the label it had, and a
fingerprint of what the model reads of it. Rows of other data are refused, and then nothing of the file is taken.
"""

from __future__ import annotations

import csv
import io
import operator
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor

from ..batches import tensors
from .base import InputError, csv_text

KEEP, RELABEL, REMOVE = "keep", "relabel", "remove"
COLUMNS = ("example", "given", "decision", "label", "fingerprint")


@dataclass(frozen=True)
class Decision:
    """What becomes of one example; ``label`` is the class it is given where it is relabelled."""

    what: str  # KEEP, RELABEL or REMOVE
    label: int | None = None


@dataclass(frozen=True)
class Read:
    """What reading a file came to."""

    rows: int
    new: int  # about examples that were undecided
    changed: int  # that replace another decision


class Decisions:
    """Decisions about N examples.

    inputs:  what the model reads, (N, ...) tensors; labels (N,) the classes given; classes their names.

    ``of`` has a ``Decision`` for every decided example, by its number.
    """

    def __init__(self, inputs: Any, labels: Tensor, classes: Sequence[str]) -> None:
        self.given, self.classes = labels.detach().cpu(), tuple(classes)
        self.of: dict[int, Decision] = {}
        self._inputs, self._prints = inputs, dict[int, str]()
        self._past: list[tuple[dict[int, Decision | None], int | None]] = []  # what to go back to, and what to show

    def __len__(self) -> int:
        return len(self.of)

    def decide(self, n: int, what: str, label: int | str | None = None) -> bool:
        """Decide about example n; False where that was decided already. ValueError for what cannot be decided.

        A label is a class number, or a class's name; numbers are whole, Python's, numpy's or tensors of one.
        """
        n, decision = self._checked(n, what, label)
        if self.of.get(n) == decision:
            return False
        self._change({n: decision}, n)
        return True

    def decide_all(self, decisions: Mapping[int, tuple[str, int | str | None]]) -> None:
        """Decide about many examples, {n: (what, label)}, all or none of them; one undo takes all of it back."""
        checked = [self._checked(n, what, label) for n, (what, label) in decisions.items()]
        found = dict(checked)
        if len(found) < len(checked):
            twice = Counter(n for n, _ in checked).most_common(1)[0][0]
            raise ValueError(f"example {twice} is decided about twice; expected one decision each: leave one out.")
        if any(self.of.get(n) != decision for n, decision in found.items()):
            self._change(found, None)

    def _checked(self, n: int, what: str, label: int | str | None) -> tuple[int, Decision]:
        n, decision = whole(n, "example"), Decision(what, _number_of(label, self.classes))
        if not 0 <= n < len(self.given):
            raise ValueError(f"example {n} was decided about; expected one from 0 to {len(self.given) - 1}.")
        _check(decision, int(self.given[n]), self.classes)
        return n, decision

    def undo(self) -> int | None:
        """Take the last change back; the example it was about, None for a file's. InputError for no change."""
        if not self._past:
            raise InputError("there is nothing to undo: nothing was decided since the notebook was run")
        before, n = self._past.pop()
        for example, decision in before.items():
            if decision is None:
                del self.of[example]
            else:
                self.of[example] = decision
        return n

    def _change(self, decisions: dict[int, Decision], n: int | None) -> None:
        self._past.append(({k: self.of.get(k) for k in decisions}, n))
        self.of |= decisions

    @property
    def can_undo(self) -> bool:
        return bool(self._past)

    def counts(self) -> Counter[str]:
        """How many were kept, relabelled and removed."""
        return Counter(decision.what for decision in self.of.values())

    def labels(self) -> Tensor:
        """(N,) the labels with those decided on."""
        labels = self.given.clone()
        for n, decision in self.of.items():
            if decision.label is not None:
                labels[n] = decision.label
        return labels

    def kept(self) -> Tensor:
        """(N,) bool: whether an example stays."""
        kept = torch.ones(len(self.given), dtype=torch.bool)
        kept[[n for n, decision in self.of.items() if decision.what == REMOVE]] = False
        return kept

    # --- as CSV -------------------------------------------------------------------------------------------------

    def table(self) -> list[dict[str, object]]:
        """A row for every decision, by the example's number."""
        return [self._row(n, self.of[n]) for n in sorted(self.of)]

    def _row(self, n: int, decision: Decision) -> dict[str, object]:
        label = "" if decision.label is None else self.classes[decision.label]
        given = self.classes[int(self.given[n])]
        return dict(zip(COLUMNS, (n, given, decision.what, label, self.fingerprint(n)), strict=True))

    def as_csv(self) -> str:
        return csv_text(self.table()) or ",".join(COLUMNS) + "\n"

    def fingerprint(self, n: int) -> str:
        """A few digits that another example does not have; marked, so that no spreadsheet reads a number."""
        n = whole(n, "example")
        if n in self._prints:
            return self._prints[n]
        digest = blake2b(digest_size=4)
        for x in tensors(self._inputs):
            row = x[n].detach().cpu()
            digest.update((row.float() if row.is_floating_point() else row.long()).contiguous().numpy().tobytes())
        self._prints[n] = f"#{digest.hexdigest()}"
        return self._prints[n]

    def read(self, text: str) -> Read:
        """Take the decisions of a CSV file over, beside those there are; where both decided, the file's count.

        All of it or nothing: InputError names the line that is not understood, or is about other data.
        """
        found = dict(self._parsed(line, row) for line, row in _rows(text))
        new = sum(n not in self.of for n in found)
        changed = sum(n in self.of and self.of[n] != decision for n, decision in found.items())
        if new or changed:
            self._change(found, None)
        return Read(len(found), new, changed)

    def _parsed(self, line: int, row: Mapping[str, str]) -> tuple[int, Decision]:
        n, where = _number(row["example"], len(self.given), line), f"line {line}"
        given = self.classes[int(self.given[n])]
        if row["given"] != given or row["fingerprint"] != self.fingerprint(n):
            what = f"label {given}" if row["given"] != given else "other contents"
            raise InputError(
                f"{where} is about an example {n} with label {row['given']}; the one here has {what}. Expected "
                "decisions about these training examples, in order and with their given labels. Nothing was read."
            )
        named = row["label"] in self.classes and (row["label"] or row["decision"] == RELABEL)  # "" may be a class
        label = self.classes.index(row["label"]) if named else None
        if row["label"] and label is None:
            raise InputError(
                f"{where} has the label {row['label']!r}; expected a class: {_few(self.classes)}. Nothing was read."
            )
        decision = Decision(row["decision"], label)
        try:
            _check(decision, int(self.given[n]), self.classes)
        except ValueError as refused:
            raise InputError(f"{where}: {refused} Nothing was read.") from refused
        return n, decision


def _check(decision: Decision, given: int, classes: Sequence[str]) -> None:
    if decision.what not in (KEEP, RELABEL, REMOVE):
        raise ValueError(f"decision {decision.what!r}; expected {KEEP}, {RELABEL} or {REMOVE}.")
    if (decision.what == RELABEL) != (decision.label is not None):
        raise ValueError(
            f"{decision.what!r} came with label {decision.label}; expected one where relabelled, and only there."
        )
    if decision.label is not None and not 0 <= decision.label < len(classes):
        raise ValueError(f"class {decision.label}; expected one from 0 to {len(classes) - 1}.")
    if decision.label == given:
        raise ValueError(f"relabelled to {classes[given]}, which is its label; expected another class, or {KEEP}.")


def whole(value: Any, what: str) -> int:
    """The int that a whole number is, Python's, numpy's or a tensor's; ValueError for a fraction or a truth value."""
    truth = isinstance(value, bool) or "bool" in str(getattr(value, "dtype", ""))
    try:
        if not truth and getattr(value, "ndim", 0) == 0:
            return operator.index(value)
    except TypeError:
        pass  # a fraction, a text: refused below
    raise ValueError(f"{what} {value!r} of type {type(value).__name__}; expected a whole number: give int(...) of it.")


def _number_of(name: int | str | None, classes: Sequence[str]) -> int | None:
    if not isinstance(name, str):
        return None if name is None else whole(name, "class")
    if name not in classes:
        raise ValueError(f"class {name!r}; expected its number, or one of {_few(classes)}.")
    return list(classes).index(name)


def _rows(text: str) -> list[tuple[int, dict[str, str]]]:
    """(line, row) of a CSV file with the columns; of one that names an example twice, neither is believed."""
    reader = csv.reader(io.StringIO(text.removeprefix("\ufeff"), newline=""))
    try:
        lines = [(reader.line_num, row) for row in reader if row]
    except csv.Error as error:
        raise InputError(f"this is no CSV file ({error}). Nothing was read.") from error
    header = lines[0][1] if lines else []
    if tuple(header) != COLUMNS:
        raise InputError(
            f"the first line is {','.join(header)[:80]!r}; expected {','.join(COLUMNS)!r}, as a saved file "
            "of decisions begins. Save it with commas, not semicolons. Nothing was read."
        )
    short = [line for line, row in lines if len(row) != len(COLUMNS)]
    if short:
        raise InputError(f"line {short[0]} has not {len(COLUMNS)} fields; was the file cut off? Nothing was read.")
    twice = [n for n, count in Counter(row[0] for _, row in lines[1:]).items() if count > 1]
    if twice:
        raise InputError(f"example {twice[0]} is decided about twice; expected a line each. Nothing was read.")
    return [(line, dict(zip(COLUMNS, row, strict=True))) for line, row in lines[1:]]


def _number(text: str, count: int, line: int) -> int:
    if not (text.isascii() and text.isdigit()) or int(text) >= count:
        raise InputError(
            f"line {line} is about example {text!r}; expected a number from 0 to {count - 1}. Nothing was read."
        )
    return int(text)


def _few(names: Sequence[str], most: int = 12) -> str:
    return ", ".join(names[:most]) + f" and {len(names) - most} more" * (len(names) > most)
