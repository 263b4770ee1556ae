"""The wheel, in an environment that has torch, numpy and what these need, and nothing else."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Iterable
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]


def needs(names: Iterable[str]) -> dict[str, Distribution]:
    """These distributions and those that they require here, by name."""
    found: dict[str, Distribution] = {}
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found[name] = distribution(name)
            wanted = map(Requirement, found[name].requires or [])
            waiting += [r.name for r in wanted if r.marker is None or r.marker.evaluate({"extra": ""})]
    return found


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy, so that the repository stays as it was."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "inflib", source / "inflib", ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", target, source]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (built,) = target.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def bare(wheel, tmp_path_factory) -> Path:
    """The interpreter of an environment that holds the wheel, and what its metadata asks for."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder)
    site = Path(sysconfig.get_path("purelib", "venv", {"base": folder, "installed_base": folder}))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    (metadata,) = site.glob("inflib-*.dist-info")
    asked = [Requirement(r) for r in Distribution.at(metadata).requires or []]
    asked = [r.name for r in asked if r.marker is None or r.marker.evaluate({"extra": ""})]
    assert sorted(asked) == ["numpy", "torch"]
    for held in needs(asked).values():
        for part in {file.parts[0] for file in held.files or ()} - {"..", "__pycache__"}:
            if not (site / part).exists() and not part.endswith(".pth"):
                (site / part).symlink_to(str(held.locate_file(part)))
    return folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")


def run(python: Path, code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([python, "-I", "-c", code], cwd=folder, capture_output=True, text=True, check=False)


def test_it_holds_every_file_of_the_package_and_no_other(wheel) -> None:
    there = {path for path in (ROOT / "inflib").rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert held == {path.relative_to(ROOT).as_posix() for path in there}


def test_the_readmes_ten_lines_run(bare, tmp_path) -> None:
    command = [bare, "-I", ROOT / "tests" / "ten_lines.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("(3, 30) ")
    assert str(bare.parent.parent) in done.stdout


def test_the_chapters_that_need_no_more_are_there(bare, tmp_path) -> None:
    done = run(bare, "import inflib.validation, inflib.distributed, inflib.index, inflib.doubt", tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("part", "lacks"), [("inflib.lab", "PIL, safetensors"), ("inflib.widgets", "IPython, PIL, anywidget, ipywidgets")]
)
def test_what_a_chapter_lacks_is_named_with_what_installs_it(bare, tmp_path, part, lacks) -> None:
    said = run(bare, f"import {part}", tmp_path).stderr.splitlines()[-1]
    assert said.startswith(f"ModuleNotFoundError: {part} needs {lacks}")
    assert said.endswith("pip install 'inflib[course]'.")


def test_what_lies_in_the_repository_only_is_said(wheel, tmp_path) -> None:
    """With all that the course needs installed, and no clone: where the digits are to be had."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from inflib.lab import mnist_5k; mnist_5k()"
    said = run(Path(sys.executable), code, tmp_path).stderr.splitlines()[-1]
    assert said.startswith(f"FileNotFoundError: {tmp_path / 'data' / 'mnist_5k.npz'} is missing")
    assert "clone" in said
    assert not (tmp_path / "data").exists()
