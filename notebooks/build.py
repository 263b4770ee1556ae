"""Execute the course: every notebooks/src/NAME.py becomes notebooks/NAME.ipynb, outputs included.

    python notebooks/build.py [--only NAME ...]

The text (jupytext, py:percent) is what is written; the notebook is what is read, committed with its outputs.
The same text gives the same file, byte for byte: one thread, no GPU, a fresh kernel, cell ids from the cells'
own text, no times, no widget state. Outputs that a browser shows as a live widget keep only their still
(text/html): without its kernel a saved widget is an error message.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode

from inflib.lab.smollm2 import Q4_1, q4_1_folder

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
SOURCES = HERE / "src"
KERNELSPEC = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
CELL_TIMEOUT = 600  # seconds: a whole notebook takes three minutes on an idle core, and longer on a shared one
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
ADDRESS = re.compile(r"\b0x[0-9a-f]{6,}\b")  # of an object; the comparison blanks it too

# How pytest re-runs notebooks and compares what they show: strictly, in the kernel of this environment.
NBVAL = (
    "--nbval",
    "--nbval-current-env",
    f"--nbval-sanitize-with={ROOT / 'tests' / 'notebooks' / 'sanitize.cfg'}",
    f"--nbval-cell-timeout={CELL_TIMEOUT}",
)

ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "CUDA_VISIBLE_DEVICES": "",
    "PYTHONHASHSEED": "0",
    "TQDM_DISABLE": "1",
    "PYDEVD_DISABLE_FILE_VALIDATION": "1",  # else the debugger warns on stderr
}


def kernel_environment(scratch: Path) -> dict[str, str]:
    """What kernels run under wherever outputs are saved or compared: nothing of one machine.

    Settings of this project (INFLIB_DATA, ...), the notebook that is open where this is typed (JPY_SESSION_NAME) and
    start-up files of the person who builds stay out; nothing is downloaded, and nothing that was is found, but for the
    language model of notebook 12 (`make smollm2`).
    """
    lend(scratch / "cache")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("INFLIB_", "JPY_"))}
    ours = {"INFLIB_OFFLINE": "1", "INFLIB_CACHE": str(scratch / "cache"), "IPYTHONDIR": str(scratch)}
    return {**kept, **ENVIRONMENT, **ours}


def lend(cache: Path) -> None:
    """Put the one download that a notebook cannot do without, its hash checked when it is read, into that cache."""
    found = q4_1_folder()
    there = cache / Q4_1
    if found is not None and not there.exists():
        there.parent.mkdir(parents=True, exist_ok=True)
        there.symlink_to(found, target_is_directory=True)


def warm_up() -> None:
    """Build matplotlib's font cache now: on a fresh machine the first figure would warn on stderr."""
    import matplotlib.font_manager  # noqa: F401


def read_source(source: Path) -> NotebookNode:
    """The notebook that a py:percent file describes: stable ids, no outputs, no metadata but the kernel."""
    notebook = jupytext.read(source, fmt="py:percent")
    notebook.metadata = nbformat.from_dict({"kernelspec": KERNELSPEC})
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    seen: Counter[str] = Counter()
    for cell in notebook.cells:
        cell.source = cell.source.rstrip()
        digest = hashlib.sha256(f"{cell.cell_type}\n{cell.source}".encode()).hexdigest()[:8]
        seen[digest] += 1
        cell.id = digest if seen[digest] == 1 else f"{digest}-{seen[digest]}"
    return notebook


def execute(notebook: NotebookNode, folder: Path) -> NotebookNode:
    """Run every cell in a fresh kernel working in `folder`; the outputs land in `notebook`."""
    client = NotebookClient(
        notebook,
        timeout=CELL_TIMEOUT,
        startup_timeout=120,
        kernel_name=KERNELSPEC["name"],
        store_widget_state=False,
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(folder)}},
    )
    with tempfile.TemporaryDirectory() as scratch:
        client.execute(env=kernel_environment(Path(scratch)))
    return tidy(notebook)


def tidy(notebook: NotebookNode) -> NotebookNode:
    """Drop what differs from run to run or from reader to reader."""
    notebook.metadata = nbformat.from_dict({"kernelspec": KERNELSPEC})
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "text/html" in data:
                data.pop(WIDGET_VIEW, None)
            for holder, key in ((data, "text/plain"), (output, "text")):
                if key in holder:
                    holder[key] = ADDRESS.sub("0x000000000000", holder[key])
    return notebook


def build(source: Path, target: Path) -> None:
    """Execute one source and write its notebook; on a failing cell `target` stays as it was."""
    notebook = execute(read_source(source), target.parent)
    nbformat.validate(notebook)
    nbformat.write(notebook, target)


def sources(only: Sequence[str]) -> list[Path]:
    """The source files asked for by name (with or without a folder and an ending), or all of them."""
    there = {path.stem: path for path in sorted(SOURCES.glob("*.py"))}
    wanted = [Path(name).stem for name in only] or list(there)
    unknown = [name for name in wanted if name not in there]
    if unknown or not there:
        names = ", ".join(there) or "nothing"
        raise SystemExit(f"{SOURCES}: no source for {', '.join(unknown) or 'any notebook'}; there is {names}.")
    return [there[name] for name in wanted]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Execute notebooks/src/NAME.py into notebooks/NAME.ipynb.")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="build these notebooks, not all")
    chosen = sources(parser.parse_args(arguments).only)
    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"  # the kernel of this environment, not of the home directory
    warm_up()
    failed = []
    for source in chosen:
        target, start = HERE / f"{source.stem}.ipynb", time.perf_counter()
        print(f"{source.stem:32}", end=" ", flush=True)
        try:
            build(source, target)
        except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
            failed.append(source.stem)
            print(f"failed; {target.name} is left as it was\n{error}", flush=True)
        else:
            seconds, kilobytes = time.perf_counter() - start, target.stat().st_size / 1000
            print(f"{seconds:6.1f} s  {kilobytes:6.0f} kB", flush=True)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
