"""`make demo`: the sheet and the browser on a page, no code in sight, on a desk and on a phone, by day and by night."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from build import ROOT
from notebook_page import Notebook
from panels import PanelPage
from playwright.sync_api import Page, expect
from servers import Lab, free_port, lab_environment, serving
from sheets import SheetPage

SEVEN = [(60, 60), (215, 62), (170, 140), (120, 240)]
PHONE, DESK = {"width": 390, "height": 844}, {"width": 1280, "height": 1600}
# of a notebook's page: what it is written and steered with
OF_A_NOTEBOOK = ".cm-editor, .jp-SideBar, .jp-Toolbar, .jp-InputPrompt, .jp-OutputPrompt, #jp-menu-panel, .lm-TabBar"


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Iterator[Lab]:
    """`make demo`, in the environment that the tests run in."""
    base, port, token = tmp_path_factory.mktemp("demo"), free_port(), secrets.token_hex(16)
    venv = Path(sys.executable).parent.parent
    arguments = f"--no-browser --ip=127.0.0.1 --port={port} --IdentityProvider.token={token}"
    command = ["make", f"--assume-old={venv}/.course", "demo", f"VENV={venv}"]
    command += [f"DEMO_ARGS={arguments} --LabApp.expose_app_in_browser=True --LabApp.extension_manager=readonly"]
    url = f"http://127.0.0.1:{port}"
    with serving(command, base / "lab.log", f"{url}/api/status", token, cwd=ROOT, env=lab_environment(base)):
        yield Lab(url, token, ROOT / "demo")


@pytest.fixture(params=["desk by day", "phone by night"])
def nb(request, demo, context) -> Iterator[Notebook]:
    page = context.new_page()
    page.set_viewport_size(DESK if "desk" in request.param else PHONE)
    page.emulate_media(color_scheme="dark" if "night" in request.param else "light")
    nb = Notebook(page, demo)
    page.goto(f"{demo.url}/?token={demo.token}")
    wait(page)
    yield nb
    page.close()


def wait(page: Page) -> None:
    expect(page.get_by_role("status").get_by_text("One moment")).to_be_visible()
    expect(page.locator("#inflib-waiting")).to_have_count(0)


def test_a_drawing_is_answered_and_no_code_is_in_sight(nb, demo, pixels, request) -> None:
    before = (demo.root / "digits.ipynb").read_bytes()
    name = request.node.callspec.id.replace(" ", "-")
    use(nb, pixels, name)
    nb.page.reload()
    wait(nb.page)
    use(nb, pixels, name)
    assert not nb.page.evaluate("() => window.jupyterapp.shell.currentWidget.context.model.dirty")
    assert (demo.root / "digits.ipynb").read_bytes() == before
    assert (nb.errors(), nb.outside, nb.problems) == ([], [], [])


def use(nb: Notebook, pixels, name: str) -> None:
    expect(nb.page.locator(OF_A_NOTEBOOK).filter(visible=True)).to_have_count(0)
    sheet = SheetPage(nb, pixels, f"demo-{name}")
    sheet.stroke(SEVEN)
    expect(sheet.prediction).to_contain_text("The model says 7")
    expect(sheet.cards).to_have_count(20)
    browser = PanelPage(nb, pixels, ".inflib-browser", "subject")
    browser.changes(browser.button("next").click)
    for panel in (sheet, browser):
        assert nb.cut_off(panel.root) == []
        nb.shot(f"demo-{name}-{panel.root.get_attribute('class').split('inflib-')[-1]}", panel.root)
    theme = nb.page.evaluate("() => getComputedStyle(document.querySelector('.inflib-sheet canvas')).filter")
    assert theme == ("invert(1)" if "night" in name else "none")
    for key in "dd":
        nb.page.locator(".jp-MarkdownCell").first.press(key)  # elsewhere two of them delete the cell
    expect(nb.page.locator(".jp-Cell")).to_have_count(4)
