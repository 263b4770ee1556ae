"""Lay out my_notebooks/, the reader's own copy of the course: what `make lab` opens.

    python notebooks/reading_copy.py

Running a notebook writes its outputs into its file; in a copy that git ignores this changes nothing that git knows, and
what a reader writes stays over the days. A notebook that comes anew with the course takes the place of one that the
reader has run but not written in; one that was written in is kept, and said. Removed, it is laid out again.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

HERE = Path(__file__).resolve().parent
COPY = HERE.parent / "my_notebooks"
RECORD = ".laid_out.json"  # in the copy: what each notebook was written like when it was laid out


def written(notebook: Path) -> str:
    """A hash of what is written in a notebook, its outputs left out; of the file where that is none."""
    content = notebook.read_bytes()
    try:
        cells = json.loads(content)["cells"]
        content = json.dumps([(cell["cell_type"], "".join(cell["source"])) for cell in cells]).encode()
    except (ValueError, LookupError, TypeError):  # damaged, or no notebook: then the reader has made it so
        pass
    return hashlib.sha256(content).hexdigest()


def lay_out(course: Path = HERE, copy: Path = COPY) -> list[str]:
    """Bring ``copy`` up to date with ``course``; a line for each notebook that was kept though the course's changed."""
    copy.mkdir(exist_ok=True)
    record = copy / RECORD
    before = json.loads(record.read_text()) if record.is_file() else {}
    laid, kept = {}, []
    for notebook in sorted(course.glob("*.ipynb")):
        own, name = copy / notebook.name, notebook.name
        if own.is_file() and written(own) != before.get(name):
            laid[name] = before.get(name)
            if written(notebook) not in (before.get(name), written(own)):
                kept.append(f"{name} has changed since you began to write in yours, which is kept as it is")
        else:
            if not own.is_file() or written(own) != written(notebook):
                shutil.copyfile(notebook, own)
            laid[name] = written(notebook)
    for page in course.glob("*.md"):  # what the notebooks link
        shutil.copyfile(page, copy / page.name)
    shutil.copytree(course / "images", copy / "images", dirs_exist_ok=True)
    record.write_text(json.dumps(laid, indent=1))
    return kept


if __name__ == "__main__":
    print("\n".join(lay_out()), end="")
    print(f"your copy of the course: {COPY.name}/")
