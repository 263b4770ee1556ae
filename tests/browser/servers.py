"""A server on the loopback address for as long as a test needs it, and what of the course it serves."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from build import ROOT, kernel_environment

APPUTILS = "@jupyterlab/apputils-extension"
START_TIMEOUT = 120  # seconds, for JupyterLab on a busy machine


@dataclass(frozen=True)
class Lab:
    """A running JupyterLab: where it listens, the token it wants, and the folder it serves."""

    url: str
    token: str
    root: Path

    @property
    def notebooks(self) -> Path:
        return self.root / "notebooks"

    @property
    def theme_setting(self) -> Path:
        """Where the server of `conftest.lab` writes down the theme that was chosen last."""
        return self.root.parent / "settings" / APPUTILS / "themes.jupyterlab-settings"


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def lab_environment(base: Path) -> dict[str, str]:
    """Every Jupyter folder under `base`: a developer's own settings and state stay out of the test."""
    folders = {
        "JUPYTER_CONFIG_DIR": base / "config",
        "JUPYTER_DATA_DIR": base / "data",
        "JUPYTER_RUNTIME_DIR": base / "runtime",
        "JUPYTERLAB_SETTINGS_DIR": base / "settings",
        "JUPYTERLAB_WORKSPACES_DIR": base / "workspaces",
    }
    return {**kernel_environment(base / "ipython"), **{key: str(folder) for key, folder in folders.items()}}


def copy_course(root: Path) -> None:
    """The notebooks with their paired sources and the data beside them; not what was downloaded."""
    skip = shutil.ignore_patterns("cache", ".ipynb_checkpoints", "__pycache__")
    for name in ("notebooks", "data"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, root / name, ignore=skip)
    (root / "notebooks").mkdir(parents=True, exist_ok=True)
    shutil.copy(ROOT / "jupytext.toml", root)


def answers(url: str, token: str) -> bool:
    request = urllib.request.Request(url, headers={"Authorization": f"token {token}"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # no proxy for the loopback address
    try:
        opener.open(request, timeout=2).close()
    except OSError:
        return False
    return True


def stop(server: subprocess.Popen[bytes]) -> None:
    """SIGINT stops JupyterLab and its kernels; the other two are for one that does not answer."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        if server.poll() is None:
            os.killpg(server.pid, number)
            try:
                server.wait(15)
            except subprocess.TimeoutExpired:
                continue


@contextmanager
def serving(command: list[str], log: Path, url: str, token: str = "", **options: Any) -> Iterator[None]:
    """A server in a process group of its own, once it answers at ``url`` and as long as it is needed."""
    with log.open("wb") as out:
        server = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, start_new_session=True, **options)
    deadline = time.monotonic() + START_TIMEOUT
    try:
        while not answers(url, token):
            if server.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"{command[:3]} did not start:\n{log.read_text()[-4000:]}", pytrace=False)
            time.sleep(0.1)
        yield
    finally:
        stop(server)
