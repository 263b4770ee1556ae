"""Where the course's notebooks and their sources are."""

from __future__ import annotations

from build import HERE as NOTEBOOKS
from build import SOURCES

BOOKS = sorted(NOTEBOOKS.glob("*.ipynb"))
TEXTS = sorted(SOURCES.glob("*.py"))


__all__ = ["BOOKS", "NOTEBOOKS", "SOURCES", "TEXTS"]
