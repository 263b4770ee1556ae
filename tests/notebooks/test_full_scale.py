"""Notebook 07 at ``scale = "full"``: all of its code, with every assertion, on a GPU and MNIST's 60,000 digits."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from build import ROOT, SOURCES, read_source

from inflib.lab.downloads import MNIST, at_hand

SMALL = 'scale = "small"'


def code(scale: str) -> str:
    """What the notebook's cells run at a scale."""
    notebook = read_source(SOURCES / "07_mnist.py")
    source = "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    assert source.count(SMALL) == 1
    return source.replace(SMALL, f'scale = "{scale}"')


def run(scale: str, folder: Path) -> str:
    """What the notebook prints in a process of its own; nothing is drawn on a screen."""
    script = folder / f"{scale}.py"
    script.write_text(code(scale), encoding="utf-8")
    quiet = {"MPLBACKEND": "Agg", "TQDM_DISABLE": "1", "PYTHONPATH": str(ROOT)}
    ran = subprocess.run([sys.executable, script], env={**os.environ, **quiet}, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-3000:]
    return ran.stdout


def test_the_scale_is_set_in_one_place() -> None:
    assert code("small") != code("full")
    compile(code("full"), "07_mnist", "exec")


@pytest.mark.cuda
@pytest.mark.skipif(
    not all(map(at_hand, MNIST.values())), reason="needs all of MNIST on this machine: see data/README.md"
)
def test_the_full_scale_runs_on_a_gpu(tmp_path: Path) -> None:
    printed = run("full", tmp_path)
    assert printed.startswith("60,000 digits to train on, 250 queries\n")
    assert "right: ten proponents of 60,000 hold" in printed
