"""Would nbval notice? A notebook's saved outputs, played back against themselves with one digit changed.

A replay notebook has one cell for every place where a saved output shows a digit: the cell emits the saved
outputs as they are, and its reference has that one digit changed, so nbval has to turn every such cell red.
One unchanged cell for each original cell has to stay green. Comments and tags travel along, so a cell that
nbval is told not to compare shows up as one that did not turn red. The kernel only prints, so a long notebook
takes seconds.
"""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import nbformat
from build import KERNELSPEC, NBVAL, ROOT, kernel_environment
from nbformat import NotebookNode, v4
from nbval.plugin import get_sanitize_patterns
from notebook_contract import NOT_COMPARED, ignored

SANITIZE = dict(get_sanitize_patterns((ROOT / "tests/notebooks/sanitize.cfg").read_text()))

PLAYER = """
import json
from IPython.display import publish_display_data

def play(saved):
    for output in json.loads(saved):
        if output["output_type"] == "stream":
            print(output["text"], end="")
        elif output["output_type"] == "error":
            raise type(output["ename"], (Exception,), {})(output["evalue"])
        else:
            publish_display_data(output["data"], output["metadata"])
"""


def bump(text: str) -> str | None:
    """`text` with its last digit changed, of those that the comparison does not blank; None without one."""
    blanked = [range(*m.span()) for pattern in SANITIZE for m in re.finditer(pattern, text)]
    digits = [m.start() for m in re.finditer("[0-9]", text) if not any(m.start() in span for span in blanked)]
    if not digits:
        return None
    at = digits[-1]
    return f"{text[:at]}{(int(text[at]) + 1) % 10}{text[at + 1 :]}"


def altered(outputs: list[NotebookNode]) -> Iterator[list[NotebookNode]]:
    """Copies of a cell's outputs, each with a digit changed in one compared text."""
    for n, output in enumerate(outputs):
        holders = [(output, "text"), (output, "evalue")]
        holders += [(output.get("data", {}), kind) for kind in output.get("data", {}) if kind not in NOT_COMPARED]
        for holder, key in holders:
            changed = bump(holder[key]) if isinstance(holder.get(key), str) else None
            if changed is not None:
                other = copy.deepcopy(outputs)
                target = other[n] if holder is output else other[n].data
                target[key] = changed
                yield other


def replay(notebook: NotebookNode) -> tuple[NotebookNode, list[tuple[str, bool]]]:
    """The replay notebook, and for each of its cells (what it is, whether nbval has to turn it red)."""
    cells, expected = [v4.new_code_cell(PLAYER.strip(), execution_count=1)], [("the player", False)]
    for n, cell in enumerate((c for c in notebook.cells if c.cell_type == "code"), 1):
        if ignored(cell) or not cell.outputs:
            continue
        comments = [line for line in cell.source.splitlines() if line.lstrip().startswith("#")]
        source = "\n".join([*comments, f"play({json.dumps(cell.outputs)!r})"])
        for change, reference in enumerate([cell.outputs, *altered(cell.outputs)]):
            twin = v4.new_code_cell(source, outputs=reference, metadata=cell.metadata)
            twin.execution_count = cell.execution_count
            cells.append(twin)
            expected.append((f"code cell {n}, change {change}" if change else f"code cell {n} as saved", change > 0))
    return v4.new_notebook(cells=cells, metadata={"kernelspec": KERNELSPEC}), expected


def run_nbval(path: Path) -> list[bool]:
    """Whether nbval turned each code cell red, run as the checks run it."""
    report = path.with_suffix(".xml")
    command = [
        sys.executable,
        "-m",
        "pytest",
        *NBVAL,
        "-q",
        "-p",
        "no:cacheprovider",
        f"--junitxml={report}",
        path.name,
    ]
    outer = {key for key in os.environ if key.startswith("PYTEST_")}
    environment = {k: v for k, v in kernel_environment(path.parent / "ipython").items() if k not in outer}
    done = subprocess.run(command, cwd=path.parent, env=environment, capture_output=True, text=True, check=False)
    if not report.is_file():
        raise RuntimeError(f"nbval did not run:\n{done.stdout}{done.stderr}")
    cases = {int(case.get("name", "").split()[-1]): case for case in ET.parse(report).iter("testcase")}
    return [cases[n].find("failure") is not None for n in sorted(cases)]


def unnoticed(notebook: NotebookNode, folder: Path) -> list[str]:
    """What nbval got wrong: changed digits that it let pass, saved outputs that it refused."""
    played, expected = replay(notebook)
    if not any(must_be_red for _, must_be_red in expected):
        return ["no digit of any saved output is compared"]
    path = folder / "replay.ipynb"
    nbformat.write(played, path)
    red = run_nbval(path)
    if len(red) != len(expected):
        raise RuntimeError(f"nbval reported {len(red)} cells of {len(expected)}")
    return [
        f"{what}: {'a changed digit is not noticed' if must_be_red else 'refused, though it is unchanged'}"
        for (what, must_be_red), is_red in zip(expected, red, strict=True)
        if is_red != must_be_red
    ]
