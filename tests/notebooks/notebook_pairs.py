"""Does a notebook hold what its paired source says: cells, their order, ids, tags? Outputs are nbval's."""

from __future__ import annotations

from itertools import zip_longest
from pathlib import Path

import nbformat
from build import read_source


def first_difference(ours: str, theirs: str) -> tuple[str, str]:
    """The first pair of lines that differ; empty where one text has ended."""
    pairs = zip_longest(ours.splitlines(), theirs.splitlines(), fillvalue="")
    return next((pair for pair in pairs if pair[0] != pair[1]), (ours, theirs))


def differences(source: Path, notebook: Path) -> list[str]:
    """What `make notebooks` would change in the notebook, outputs apart."""
    remedy = f"edit {source.parent.name}/{source.name}, then `make notebooks ONLY={source.stem}`"
    written, saved = read_source(source).cells, nbformat.read(notebook, as_version=4).cells
    found = []
    if len(written) != len(saved):
        found.append(f"{notebook.name} has {len(saved)} cells, {source.name} {len(written)}: {remedy}")
    for n, (w, s) in enumerate(zip(written, saved, strict=False), 1):
        for field in ("cell_type", "source", "metadata", "id"):
            if w[field] != s[field]:
                ours, theirs = first_difference(str(s[field]), str(w[field]))
                found.append(f"cell {n}: its {field} has {ours!r} where the source has {theirs!r}: {remedy}")
                break
    return found
