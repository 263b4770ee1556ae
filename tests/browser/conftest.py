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
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from notebook_page import Notebook
from playwright.sync_api import BrowserContext, Locator, expect, sync_playwright
from servers import APPUTILS, Lab, copy_course, free_port, lab_environment, serving

HERE = Path(__file__).resolve().parent
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
expect.set_options(timeout=60_000)  # ms; an event that does not come by then never will


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


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """`jupyter lab` over a copy of the course, offline and without news, update checks or terminals."""
    base = tmp_path_factory.mktemp("lab")
    root = base / "root"
    copy_course(root)
    # the question "Jupyter news?" is the front end's: only its own settings file silences it
    settings = base / "settings" / APPUTILS / "notification.jupyterlab-settings"
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
    url = f"http://127.0.0.1:{port}"
    with serving(command, log, f"{url}/api/status", token, env=lab_environment(base)):
        yield Lab(url, token, root)


@pytest.fixture(scope="session")
def context() -> Iterator[BrowserContext]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_ARGS)
        context = browser.new_context(viewport={"width": 1280, "height": 1000}, accept_downloads=True)
        context.set_default_timeout(60_000)
        yield context
        browser.close()


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
    # the server remembers the theme: a test that ended in the dark would leave the next one there
    lab.theme_setting.unlink(missing_ok=True)
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
