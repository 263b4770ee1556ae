"""Run notebook 07 at full scale and keep what it measured, in data/mnist_full_scale.json.

    INFLIB_DATA=/folder/with/mnist python data/build_full_scale.py

The notebook's own cells run, up to its heading "## At full size", with scale = "full" in the first of them: all of
MNIST, found or downloaded. Networks that the cache does not hold are trained first. Without a GPU that takes some
twenty minutes of one processor, most of them for training, and four gigabytes.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "notebooks"))
from build import SOURCES, read_source  # noqa: E402

TARGET = ROOT / "data" / "mnist_full_scale.json"
UNTIL = "## At full size"


def code_until_the_table() -> list[str]:
    """The notebook's code at full scale, a string for each cell, up to where the table is shown."""
    cells = read_source(SOURCES / "07_mnist.py").cells
    end = next(n for n, cell in enumerate(cells) if cell.cell_type == "markdown" and UNTIL in cell.source)
    return [c.source.replace('scale = "small"', 'scale = "full"') for c in cells[:end] if c.cell_type == "code"]


def main() -> None:
    matplotlib.use("Agg")
    names: dict[str, Any] = {"__name__": "07_mnist"}
    for source in code_until_the_table():
        exec(source, names)
    TARGET.write_text(json.dumps(names["measured"], ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    print(f"{TARGET.name}: {len(names['measured'])} rows")


if __name__ == "__main__":
    main()
