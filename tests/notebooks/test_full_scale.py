"""Notebooks 07 and 08 at ``scale = "full"``: all of their code, with every assertion, on a GPU and the full data.

pytest -m cuda -s tests/notebooks/test_full_scale.py       # with what they print, and what they took
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from build import ROOT, SOURCES, read_source

from inflib.lab.downloads import MNIST, TINY_SHAKESPEARE, PublishedFile, at_hand

SMALL = 'scale = "small"'
MEMORY = (
    'print(f"{torch.cuda.get_device_name()}: {torch.cuda.max_memory_allocated() / 1e9:.1f} GB of its memory at most")'
)
TYPED = """
for prompt, then in lines:
    start = time.perf_counter()
    rows = browser.ask(prompt, then).raised
    print(f"{prompt + then!r} against {len(browser.influence.corpus):,} texts: {time.perf_counter() - start:.2f} s")
    for row in rows[:3]:
        print(f"    {row.score:+.1f}  {row.passage.place}: {row.passage.text!r}")
"""


@dataclass(frozen=True)
class FullScale:
    """A notebook, the files it needs, what it prints when all went well, and what is asked of it afterwards."""

    book: str
    files: tuple[PublishedFile, ...]
    prints: tuple[str, ...]
    afterwards: str = ""

    def code(self, scale: str) -> str:
        """What the notebook's cells run at a scale."""
        notebook = read_source(SOURCES / f"{self.book}.py")
        source = "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
        assert source.count(SMALL) == 1
        return source.replace(SMALL, f'scale = "{scale}"')

    def script(self, scale: str) -> str:
        """The same, with what is asked afterwards."""
        return "\n".join([self.code(scale), "import time", self.afterwards, MEMORY])

    def run(self, scale: str, folder: Path) -> str:
        """What the notebook prints in a process of its own; nothing is drawn on a screen."""
        script = folder / f"{self.book}.py"
        script.write_text(self.script(scale), encoding="utf-8")
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        quiet = {"MPLBACKEND": "Agg", "TQDM_DISABLE": "1", "PYTHONPATH": path}
        ran = subprocess.run([sys.executable, script], env=os.environ | quiet, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-3000:]
        return ran.stdout


BOOKS = [
    FullScale(
        "07_mnist",
        tuple(MNIST.values()),
        ("60,000 digits to train on, 250 queries\n", "right: ten proponents of 60,000 hold"),
    ),
    FullScale(
        "08_transformer", (TINY_SHAKESPEARE,), ("4357 sequences, the first of them:", "against 273 texts"), TYPED
    ),
]


@pytest.mark.parametrize("full", BOOKS, ids=lambda full: full.book)
def test_the_scale_is_set_in_one_place(full: FullScale) -> None:
    assert full.code("small") != full.code("full")
    compile(full.script("full"), full.book, "exec")


@pytest.mark.cuda
@pytest.mark.parametrize("full", BOOKS, ids=lambda full: full.book)
def test_the_full_scale_runs_on_a_gpu(full: FullScale, tmp_path: Path) -> None:
    if not all(map(at_hand, full.files)):
        pytest.skip("needs the whole data on this machine: see data/README.md")
    start = time.perf_counter()
    printed = full.run("full", tmp_path)
    print(f"\n{full.book} took {time.perf_counter() - start:.0f} s\n{printed}")
    assert all(words in printed for words in full.prints)
