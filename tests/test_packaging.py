"""The package as others meet it: what it needs, and what importing it costs."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CORE = sorted((ROOT / "inflib").glob("*.py"))
ALWAYS = {"inflib", "numpy", "torch", *sys.stdlib_module_names}
WHERE_INSTALLED = {"bm25s", "safetensors", "tqdm"}


def imports(tree: ast.AST) -> Iterator[tuple[str, bool]]:
    """Every imported top-level package, and whether the import waits inside a function."""
    for node in ast.iter_child_nodes(tree):
        inside = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        if isinstance(node, ast.Import):
            yield from ((alias.name.split(".")[0], False) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield (node.module or "").split(".")[0], False
        yield from ((name, lazy or inside) for name, lazy in imports(node))


def unwanted(source: str) -> list[str]:
    return [
        name
        for name, lazy in imports(ast.parse(source))
        if name not in ALWAYS and not (lazy and name in WHERE_INSTALLED)
    ]


def test_the_core_is_there() -> None:
    assert {"__init__.py", "ekfac.py", "scoring.py"} <= {path.name for path in CORE}


@pytest.mark.parametrize("path", CORE, ids=lambda p: p.stem)
def test_a_core_file_imports_only_torch_and_numpy(path: Path) -> None:
    assert unwanted(path.read_text()) == [], f"{path.name} needs more than torch and numpy"


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import torch.nn as nn\nfrom . import hooks\nimport math", []),
        ("import scipy.linalg", ["scipy"]),
        ("def f():\n    from matplotlib import pyplot", ["matplotlib"]),
        ("import tqdm", ["tqdm"]),
        ("try:\n    from tqdm.auto import tqdm\nexcept ImportError:\n    pass", ["tqdm"]),
        ("class C:\n    def f(self):\n        from tqdm.auto import tqdm", []),
    ],
)
def test_the_search_for_imports_sees_them(source: str, found: list[str]) -> None:
    assert unwanted(source) == found


def test_importing_inflib_loads_nothing_but_its_two_dependencies() -> None:
    """Checked in a fresh interpreter in which everything the course adds refuses to be imported."""
    refused = ["IPython", "anywidget", "bm25s", "ipywidgets", "matplotlib", "PIL", "safetensors", "tqdm"]
    code = f"import sys; sys.modules.update(dict.fromkeys({refused!r})); import inflib; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "inflib.lab" not in done.stdout
    assert "inflib.widgets" not in done.stdout


def test_every_requirement_of_the_course_is_an_exact_pin() -> None:
    for path in [*ROOT.glob("requirements*.txt"), *ROOT.glob("benchmarks/requirements*.txt")]:
        name = path.relative_to(ROOT)
        lines = [line for line in (ROOT / name).read_text().splitlines() if line and line[0] not in "#-"]
        assert lines, f"{name} pins nothing"
        for line in lines:
            assert re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][0-9A-Za-z.]*", line), f"{name}: {line!r} is not name==version"


def version(written: str) -> tuple[int, ...]:
    """1.0 and 1 and 1.0.0 are one version."""
    return tuple(map(int, re.sub(r"(\.0)+$", "", written).split(".")))


def test_the_oldest_versions_that_are_tried_are_those_that_are_promised() -> None:
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    promised = dict(bound.split(">=") for bound in project["dependencies"] + extras["course"] + extras["llm"])
    lines = (ROOT / "requirements-oldest.txt").read_text().splitlines()
    tried = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert {name: version(v) for name, v in tried.items()} == {name: version(v) for name, v in promised.items()}
