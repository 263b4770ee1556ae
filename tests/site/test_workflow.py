"""The workflow is one that GitHub would run, and what it runs is there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def complaints(path: Path) -> str:
    """What GitHub's own schema of a workflow says against a file; empty where nothing."""
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows", path]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else done.stdout + done.stderr


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_is_valid(path: Path) -> None:
    assert complaints(path) == ""


def test_a_fault_in_a_workflow_is_seen(tmp_path: Path) -> None:
    broken = tmp_path / "broken.yml"
    broken.write_text(WORKFLOWS[0].read_text().replace("runs-on:", "runs_on:", 1))
    assert "runs_on" in complaints(broken)


def commands(path: Path) -> list[str]:
    """Every line that a workflow's steps run."""
    found = []
    for job in YAML(typ="safe").load(path.read_text())["jobs"].values():
        for values in job.get("strategy", {}).get("matrix", {}).get("include", [{}]):
            for line in (line for step in job["steps"] for line in step.get("run", "").splitlines()):
                found.append(re.sub(r"\$\{\{ matrix\.(\w+) \}\}", lambda m, v=values: v[m[1]], line.strip()))
    return found


def test_what_the_workflow_runs_is_there() -> None:
    lines = [line for path in WORKFLOWS for line in commands(path)]
    makefile = (ROOT / "Makefile").read_text()
    targets = {word for line in lines for word in re.findall(r"^make (\S+)", line)}
    assert {"test", "site", "oldest", "newest", ".venv/.dev"} <= targets
    for target in targets:
        written = target.replace(".venv", "$(VENV)")
        assert f"\n{written}:" in makefile, f"make {target}: the Makefile has no such target"
    for script in (word for line in lines for word in re.findall(r"\S+\.py\b", line)):
        assert (ROOT / script).is_file(), f"{script} is run by the workflow and is not there"
