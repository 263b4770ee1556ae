"""The file that a review keeps its decisions in: read at the start, written whole after every change."""

from __future__ import annotations

import os
from pathlib import Path

from .base import InputError
from .review_decisions import Decisions


class DecisionFile:
    """Decisions and the CSV file at ``path``, which they are read from if it is there; None: kept nowhere.

    Raises InputError for a file that cannot be read as decisions about these examples; it stays as it is.
    """

    def __init__(self, path: str | Path | None, decisions: Decisions) -> None:
        self.path, self._decisions = None if path is None else Path(path), decisions
        self._written = self._there()
        if self._written:
            decisions.read(self._written)

    @property
    def where(self) -> str:
        """Where decisions are kept, for the person who makes them."""
        return (
            "kept in this kernel only: save them"
            if self.path is None
            else f"every decision is kept in {self.path.name}"
        )

    def _there(self) -> str:
        return text_of(self.path) if self.path is not None and self.path.exists() else ""

    def keep(self) -> None:
        """Write the decisions, unless somebody else has written there meanwhile."""
        if self.path is None:
            return
        if self._there() != self._written:
            raise InputError(
                f"{self.path.name} was changed by somebody else, and is left as it is; the decision is kept here. Save "
                "the decisions as CSV, or read that file and name another."
            )
        text = self._decisions.as_csv()
        write_whole(self.path, text)
        self._written = text


def text_of(path: Path) -> str:
    """The file's text with its line ends as they are: a class's name may have some."""
    with path.open(encoding="utf-8", newline="") as file:
        return file.read()


def write_whole(path: Path, text: str) -> Path:
    """The text as a file: beside its place first, so that the old one is there until the new one is whole."""
    beside = path.with_name(f"{path.name}.part")
    beside.write_text(text, encoding="utf-8", newline="")
    os.replace(beside, path)
    return path
