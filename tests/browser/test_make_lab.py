"""`make lab` as a reader starts it: their own copy, no question about news, and nothing that git would call a change."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from build import ROOT
from nbformat.v4 import new_code_cell
from notebook_page import Notebook
from playwright.sync_api import expect
from servers import Lab, free_port, lab_environment, serving

NEWS = "@jupyterlab/apputils-extension:notification"


def git(root: Path, *words: str) -> str:
    name = ("-c", "user.name=reader", "-c", "user.email=reader@example.org")
    return subprocess.run(["git", *name, *words], cwd=root, check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    """What a reader clones."""
    root = tmp_path_factory.mktemp("clone") / "inflib"
    root.mkdir()
    for name in git(ROOT, "ls-files", "--cached", "--others", "--exclude-standard", "-z").split("\0"):
        if name and (ROOT / name).is_file():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, root / name)
    git(root, "init", "-q")
    git(root, "add", "-A")
    git(root, "commit", "-qm", "as cloned")
    return root


@pytest.fixture
def made(clone: Path, tmp_path: Path) -> Iterator[Lab]:
    """`make lab` in the clone, in the environment that the tests run in."""
    port, token, environment = free_port(), secrets.token_hex(16), lab_environment(tmp_path)
    venv = Path(sys.executable).parent.parent
    arguments = f"--no-browser --ip=127.0.0.1 --port={port} --IdentityProvider.token={token}"
    offline = "--LabApp.extension_manager=readonly --LabApp.expose_app_in_browser=True"
    command = ["make", f"--assume-old={venv}/.course", "lab", f"VENV={venv}", f"LAB_ARGS={arguments} {offline}"]
    environment["PYTHONPATH"] = os.pathsep.join([str(clone), *filter(None, [os.environ.get("PYTHONPATH")])])
    with serving(
        command, tmp_path / "lab.log", f"http://127.0.0.1:{port}/api/status", token, cwd=clone, env=environment
    ):
        yield Lab(f"http://127.0.0.1:{port}", token, clone)


def setting(lab: Lab, plugin: str) -> dict:
    """A plugin's settings as JupyterLab reads them: the schema, its defaults overridden."""
    request = urllib.request.Request(
        f"{lab.url}/lab/api/settings/{plugin}", headers={"Authorization": f"token {lab.token}"}
    )
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request) as answer:
        return json.load(answer)


def test_a_reader_runs_the_course_and_writes_in_it_and_git_sees_nothing(made, clone, context) -> None:
    page = context.new_page()
    nb = Notebook(page, made)
    page.goto(f"{made.url}/?token={made.token}")  # where `make lab` leads
    nb.ready()
    assert "my_notebooks/00_start_here.ipynb" in page.url
    assert setting(made, NEWS)["schema"]["properties"]["fetchNews"]["default"] == "false"
    assert nb.run_all(), nb.errors()
    nb.save()
    expect(page.get_by_text("official Jupyter news")).to_have_count(0)
    assert nb.outside == []
    page.close()

    own = clone / "my_notebooks" / "00_start_here.ipynb"
    book = nbformat.read(own, as_version=4)
    assert any(
        "application/vnd.inflib" in kind
        for cell in book.cells
        for o in cell.get("outputs", [])
        for kind in o.get("data", {})
    )
    book.cells.append(new_code_cell("my_answer = 42"))
    nbformat.write(book, own)
    subprocess.run([sys.executable, "notebooks/reading_copy.py"], cwd=clone, check=True)  # as on the second day
    assert "my_answer = 42" in own.read_text(encoding="utf-8")
    assert git(clone, "status", "--porcelain") == ""
