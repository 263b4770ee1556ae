"""Draw images/shakespeare.png: what notebook 08's own cells show where the plays are at hand.

INFLIB_DATA=/folder/that/holds/tinyshakespeare python notebooks/shakespeare_figure.py
"""

from __future__ import annotations

from typing import Any

from build import HERE, SOURCES, read_source
from matplotlib import pyplot as plt

TARGET = HERE / "images" / "shakespeare.png"


def ask_the_plays(scale: str = "small") -> dict[str, Any]:
    """What the notebook's first cell and its cells on Shakespeare define, run at this scale."""
    cells = read_source(SOURCES / "08_transformer.py").cells
    sources: dict[str, list[str]] = {heading: [] for heading in ("", "## Shakespeare", "## Summary")}
    heading = ""
    for cell in cells:
        if cell.cell_type == "code":
            sources[heading].append(cell.source)
        else:
            heading = next((line for line in cell.source.splitlines() if line in sources), heading)
    names: dict[str, Any] = {"__name__": "08_transformer"}
    exec(sources[""][0], names)
    names["scale"] = scale
    for source in sources["## Shakespeare"]:
        exec(source, names)
    return names


def main() -> None:
    if ask_the_plays()["plays"] is None:
        raise SystemExit("tinyshakespeare/input.txt is not at hand; let INFLIB_DATA name the folder that holds it.")
    plt.gcf().savefig(TARGET, bbox_inches="tight", metadata={"Software": None})
    print(f"images/{TARGET.name} is drawn")


if __name__ == "__main__":
    main()
