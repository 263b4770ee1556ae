"""The notebooks as Google Colab opens them: each with a first cell that fetches the course and what is missing there.

    python docs/colab.py [--out build/colab] [--repository ADDRESS]

Colab opens a notebook alone, in a machine that has torch but neither the course nor inflib. The course's own notebooks
stay as they are: the workflow pushes these copies to the branch `colab`, which the README's button opens.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import nbformat
import tomllib
from nbformat import NotebookNode, v4

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
OWN = ("ipykernel", "jupyterlab")  # Colab has its own, which cannot be exchanged
SETUP = """\
# On Colab: fetch the course, install what is missing there, let widgets live
!git clone -q --depth 1 {repository} inflib-course
%cd -q inflib-course/notebooks
%pip install -q {packages}
import sys
from pathlib import Path

sys.path.insert(0, str(Path.cwd().parent))
if "google.colab" in sys.modules:
    from google.colab import output

    output.enable_custom_widget_manager()"""


def setup_cell(repository: str) -> NotebookNode:
    asked = [line for line in PROJECT["optional-dependencies"]["course"] if not line.startswith(OWN)]
    packages = " ".join(f'"{line}"' for line in asked)
    return v4.new_code_cell(SETUP.format(repository=repository, packages=packages), id="colab")


def lay_out(folder: Path, repository: str) -> list[Path]:
    """Write every notebook into ``folder/notebooks``, its outputs with it."""
    (folder / "notebooks").mkdir(parents=True, exist_ok=True)
    written = []
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        notebook.cells.insert(0, setup_cell(repository))
        written.append(folder / "notebooks" / path.name)
        nbformat.write(notebook, written[-1])
    return written


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the notebooks as Google Colab opens them.")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "colab", metavar="FOLDER")
    parser.add_argument("--repository", default=PROJECT["urls"]["Source"], metavar="ADDRESS")
    asked = parser.parse_args()
    for path in lay_out(asked.out, asked.repository):
        print(path)


if __name__ == "__main__":
    main()
