"""Notebooks are built and compared in kernels that show nothing of the machine they run on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import build
import pytest
from build import build as build_one
from build import execute, kernel_environment, main, read_source, sources
from nbclient.exceptions import CellExecutionError

SLOW_WALK = """\
# %%
import time

import torch

from inflib.batches import walk


class Slow:
    def __iter__(self):
        for _ in range(3):
            time.sleep(1)
            yield torch.zeros(2, 1), torch.zeros(2)


assert sum(batch.size for batch in walk(Slow())) == 6
"""


def run(text: str, folder: Path):
    source = folder / "trial.py"
    source.write_text(text)
    return execute(read_source(source), folder)


def test_no_progress_bar_appears_in_a_saved_output_however_slow_the_machine(tmp_path, monkeypatch) -> None:
    assert run(SLOW_WALK, tmp_path).cells[0].outputs == []
    monkeypatch.setitem(build.ENVIRONMENT, "TQDM_DISABLE", "")
    assert run(SLOW_WALK, tmp_path).cells[0].outputs != [], "this walk is too quick to show the bar that is hidden"


def test_kernels_see_one_thread_no_gpu_and_no_setting_of_this_machine(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("INFLIB_DATA", str(tmp_path))
    nb = run(
        "# %%\nimport os, sys, torch\n"
        "print(torch.get_num_threads(), torch.cuda.is_available(), 'INFLIB_DATA' in os.environ, os.getcwd())\n"
        "print(sys.executable)\n",
        tmp_path,
    )
    assert nb.cells[0].outputs[0].text == f"1 False False {tmp_path}\n{sys.executable}\n"


def test_kernels_find_no_downloaded_file_and_fetch_none(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("INFLIB_DATA", str(tmp_path))
    (tmp_path / "tinyshakespeare").mkdir()
    (tmp_path / "tinyshakespeare" / "input.txt").touch()
    nb = run(
        "# %%\nfrom inflib.lab import downloads\n"
        "try:\n    downloads.read(downloads.TINY_SHAKESPEARE)\n"
        "except FileNotFoundError as problem:\n    print('INFLIB_OFFLINE forbids' in str(problem))\n",
        tmp_path,
    )
    assert nb.cells[0].outputs[0].text == "True\n"


def test_kernels_are_lent_the_language_model_and_nothing_else_of_the_cache(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("INFLIB_CACHE", str(tmp_path / "own"))
    monkeypatch.delenv("INFLIB_DATA", raising=False)
    assert not (Path(kernel_environment(tmp_path / "bare")["INFLIB_CACHE"]) / "smollm2").exists()
    for name in ("smollm2/q4_1/model.safetensors", "mnist/train-labels-idx1-ubyte.gz"):
        path = tmp_path / "own" / name
        path.parent.mkdir(parents=True)
        path.write_bytes(b"held")
    cache = Path(kernel_environment(tmp_path / "scratch")["INFLIB_CACHE"])
    assert [path.name for path in cache.iterdir()] == ["smollm2"]
    assert (cache / "smollm2" / "q4_1" / "model.safetensors").read_bytes() == b"held"


def test_the_same_text_gives_the_same_file(tmp_path) -> None:
    source, target = tmp_path / "twice.py", tmp_path / "twice.ipynb"
    source.write_text("# %% [markdown]\n# Words.\n\n# %%\nx = {'b', 'a'}\nprint(x)\nobject()\n\n# %%\n1\n\n# %%\n1\n")
    build_one(source, target)
    first = target.read_bytes()
    build_one(source, target)
    assert target.read_bytes() == first
    assert b"execution" not in first.replace(b"execution_count", b"")


def test_a_failing_cell_leaves_the_notebook_as_it_was(tmp_path) -> None:
    source, target = tmp_path / "fails.py", tmp_path / "fails.ipynb"
    source.write_text("# %%\n1 / 0\n")
    target.write_text("as it was")
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        build_one(source, target)
    assert target.read_text() == "as it was"


def test_a_notebook_that_fails_does_not_stop_the_next_and_fails_the_command(tmp_path, monkeypatch, capsys) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "a.py").write_text("# %%\n1 / 0\n")
    (tmp_path / "src" / "b.py").write_text("# %%\n1\n")
    monkeypatch.setattr(build, "HERE", tmp_path)
    monkeypatch.setattr(build, "SOURCES", tmp_path / "src")
    assert main([]) == 1
    assert not (tmp_path / "a.ipynb").exists()
    assert (tmp_path / "b.ipynb").exists()
    assert "failed: a" in capsys.readouterr().err


def test_asking_for_an_unknown_notebook_lists_those_there_are(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(build, "SOURCES", tmp_path)
    (tmp_path / "00_start_here.py").touch()
    assert [path.stem for path in sources(["notebooks/src/00_start_here.py"])] == ["00_start_here"]
    with pytest.raises(SystemExit, match=r"no source for nope; there is 00_start_here"):
        sources(["nope"])


def test_the_summary_counts_steps_and_a_failure_fails(tmp_path) -> None:
    """The script that runs every check, on two steps that cost nothing: one that passes, one that cannot."""
    checks = build.ROOT / ".ci" / "check.py"
    trial = tmp_path / "trial.py"
    trial.write_text(
        f"import runpy, sys\n"
        f"check = runpy.run_path({str(checks)!r})\n"
        f"steps = (check['Step']('good', (sys.executable, '-c', '')),"
        f" check['Step']('bad', (sys.executable, '-c', 'raise SystemExit(3)')))\n"
        f"check['main'].__globals__['STEPS'] = steps\n"
        f"sys.exit(check['main'](sys.argv[1:]))\n"
    )
    every = subprocess.run([sys.executable, trial], capture_output=True, text=True, check=False)
    assert every.returncode == 1, every.stderr
    assert every.stdout.splitlines()[-1] == "1 passed, 1 failed"
    good = subprocess.run([sys.executable, trial, "good"], capture_output=True, text=True, check=False)
    assert good.returncode == 0
    assert good.stdout.splitlines()[-1] == "1 passed, 0 failed"
    assert subprocess.run([sys.executable, trial, "nope"], capture_output=True, check=False).returncode == 2
