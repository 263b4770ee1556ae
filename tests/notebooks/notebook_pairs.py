"""Does a notebook hold what its paired source says: cells, their order, ids, tags? Outputs are nbval's."""

from __future__ import annotations

from pathlib import Path

import nbformat
from build import read_source


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
                found.append(f"cell {n}: its {field} is {s[field]!r}, the source's is {w[field]!r}: {remedy}")
                break
    return found
