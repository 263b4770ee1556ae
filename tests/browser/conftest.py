"""A real JupyterLab on the loopback address and a real headless Chromium, as pytest fixtures.

`notebook` is what a test uses: open a notebook (of the course, or one the test wrote into `lab.notebooks`), run all
of it, drive `notebook.page` with Playwright, and ask for errors, requests that left the machine and complaints of
the browser's console. The server sees a copy of notebooks/ and data/, so no test changes the repository, and its
settings, state and kernels are its own.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from build import kernel_environment
from playwright.sync_api import BrowserContext, Locator, Page, sync_playwright

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
SHOTS = HERE / "shots"
CHROMIUM = Path(os.environ.get("CHROMIUM", "/usr/bin/chromium"))
CHROMIUM_ARGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    # only the loopback address resolves: what a widget fetches from a CDN fails here as it would offline
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]
START_TIMEOUT = 120  # seconds, for JupyterLab on a busy machine


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker("browser")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Without Chromium: skipped with the reason, or an error under INFLIB_REQUIRE_BROWSER=1."""
    if CHROMIUM.exists():
        return
    reason = f"no browser at {CHROMIUM}; apt-get install chromium, or set CHROMIUM to a Chromium or Chrome"
    if os.environ.get("INFLIB_REQUIRE_BROWSER") == "1":
        pytest.fail(f"INFLIB_REQUIRE_BROWSER=1: {reason}", pytrace=False)
    pytest.skip(reason)


@dataclass(frozen=True)
class Lab:
    """A running JupyterLab: where it listens, the token it wants, and the folder it serves."""

    url: str
    token: str
    root: Path

    @property
    def notebooks(self) -> Path:
        return self.root / "notebooks"


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
    request = urllib.request.Request(f"{url}/api/status", headers={"Authorization": f"token {token}"})
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


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """`jupyter lab` over a copy of the course, offline and without news, update checks or terminals."""
    base = tmp_path_factory.mktemp("lab")
    root = base / "root"
    copy_course(root)
    # the question "Jupyter news?" is the front end's: only its own settings file silences it
    settings = base / "settings" / "@jupyterlab" / "apputils-extension" / "notification.jupyterlab-settings"
    settings.parent.mkdir(parents=True)
    settings.write_text(json.dumps({"fetchNews": "false", "checkForUpdates": False}))

    port, token, log = free_port(), secrets.token_hex(16), base / "lab.log"
    command = [
        *(sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}"),
        "--ServerApp.port_retries=0",
        f"--IdentityProvider.token={token}",
        f"--ServerApp.root_dir={root}",
        "--ServerApp.terminals_enabled=False",
        "--LabApp.news_url=None",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
        "--LabApp.extension_manager=readonly",  # looks nothing up in a package index
        "--LabApp.expose_app_in_browser=True",  # window.jupyterapp: commands instead of clicks in menus
        "--LanguageServerManager.autodetect=False",
    ]
    with log.open("wb") as out:
        server = subprocess.Popen(
            command, env=lab_environment(base), stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
    url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + START_TIMEOUT
    try:
        while not answers(url, token):
            if server.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"JupyterLab did not start:\n{log.read_text()[-4000:]}", pytrace=False)
            time.sleep(0.1)
        yield Lab(url, token, root)
    finally:
        stop(server)


@pytest.fixture(scope="session")
def context() -> Iterator[BrowserContext]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_ARGS)
        context = browser.new_context(viewport={"width": 1280, "height": 1000}, accept_downloads=True)
        context.set_default_timeout(30_000)
        yield context
        browser.close()


class Notebook:
    """One notebook open in JupyterLab, and what happened around it."""

    def __init__(self, page: Page, lab: Lab) -> None:
        self.page, self.lab = page, lab
        self.outside: list[str] = []  # requests that left the machine
        self.problems: list[str] = []  # errors of the browser's console, uncaught exceptions
        # listened to, not routed: a route would switch the browser's cache off
        page.on("request", lambda request: self._note_request(request.url))
        page.on("console", lambda m: self.problems.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: self.problems.append(str(error)))

    def _note_request(self, url: str) -> None:
        if not url.startswith((self.lab.url, "data:", "blob:")):
            self.outside.append(url)

    def open(self, name: str) -> Notebook:
        """Open notebooks/NAME and wait until its kernel is idle."""
        # &reset forgets the workspace: else the tabs of the test before come back
        self.page.goto(f"{self.lab.url}/lab/tree/notebooks/{name}?token={self.lab.token}&reset")
        return self._ready()

    def reload(self) -> Notebook:
        """Load the page anew, as F5 does, and wait until the notebook's kernel is idle."""
        self.page.reload()
        return self._ready()

    def _ready(self) -> Notebook:
        self.page.locator(".jp-NotebookPanel .jp-Notebook").wait_for()
        self.page.wait_for_function(
            """() => { const s = window.jupyterapp?.shell.currentWidget?.sessionContext;
                       return s?.isReady && s.session?.kernel?.status === 'idle'; }""",
            timeout=90_000,
        )
        return self

    def run_all(self) -> bool:
        """Run every cell; False when one raised. Saved outputs go first, so that none passes for a new one."""
        self.page.evaluate(
            """() => window.jupyterapp.shell.currentWidget.context.model.sharedModel.cells
                     .forEach(c => c.cell_type === 'code' && c.setOutputs([]))"""
        )
        return bool(self.page.evaluate("() => window.jupyterapp.commands.execute('notebook:run-all-cells')"))

    def save(self) -> None:
        self.page.evaluate("() => window.jupyterapp.commands.execute('docmanager:save')")

    def stop_kernel(self) -> None:
        self.page.evaluate("() => window.jupyterapp.shell.currentWidget.sessionContext.shutdown()")

    def close_tab(self) -> None:
        self.page.evaluate("() => window.jupyterapp.commands.execute('application:close')")
        self.page.locator(".jp-NotebookPanel").wait_for(state="detached")

    def errors(self) -> list[str]:
        """What the cells raised."""
        return list(
            self.page.evaluate(
                """() => window.jupyterapp.shell.currentWidget.context.model.sharedModel.cells
                         .flatMap(c => c.toJSON().outputs ?? []).filter(o => o.output_type === 'error')
                         .map(o => `${o.ename}: ${o.evalue}`)"""
            )
        )

    def theme(self, name: str) -> None:
        """Switch to "JupyterLab Light" or "JupyterLab Dark"."""
        self.page.evaluate("t => window.jupyterapp.commands.execute('apputils:change-theme', {theme: t})", name)
        light = "false" if "Dark" in name else "true"
        self.page.wait_for_function("l => document.body.dataset.jpThemeLight === l", arg=light)

    def shot(self, name: str, what: Locator | None = None) -> Path:
        """Save a picture of the page, or of one element, where git does not look."""
        SHOTS.mkdir(exist_ok=True)
        path = SHOTS / f"{name}.png"
        (what or self.page).screenshot(path=path)
        return path


@pytest.fixture
def pixels() -> Callable[[Locator], list[str]]:
    """pixels(images): hashes of what they show; their addresses change even when the picture does not."""
    return _pixels


def _pixels(images: Locator) -> list[str]:
    shown = images.evaluate_all(
        """async images => Promise.all(images.map(async image => {
            await image.decode();
            const canvas = document.createElement('canvas');
            [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
            const context = canvas.getContext('2d');
            context.drawImage(image, 0, 0);
            return context.getImageData(0, 0, canvas.width, canvas.height).data.join();
        }))"""
    )
    return [hashlib.sha256(picture.encode()).hexdigest() for picture in shown]


@pytest.fixture
def notebook(context: BrowserContext, lab: Lab, request: pytest.FixtureRequest) -> Iterator[Notebook]:
    page = context.new_page()
    opened = Notebook(page, lab)
    yield opened
    try:
        if request.session.testsfailed > request.node.stash.get(FAILED_BEFORE, 0):
            opened.shot(f"failed-{request.node.name}")
        # each test begins with a kernel of its own
        page.evaluate("async () => { await window.jupyterapp?.shell.currentWidget?.sessionContext?.shutdown() }")
    finally:
        page.close(run_before_unload=False)


FAILED_BEFORE = pytest.StashKey[int]()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> None:
    item.stash[FAILED_BEFORE] = item.session.testsfailed
