"""Exploration."""

import time
from playwright.sync_api import expect


def test_look(notebook):
    nb = notebook.open("00_start_here.ipynb")
    t = time.time()
    assert nb.run_all(), nb.errors()
    print("run all", time.time() - t)
    b = nb.page.locator(".inflib-browser")
    expect(b.locator(".inflib-card")).to_have_count(16)
    b.scroll_into_view_if_needed()
    nb.shot("00-light", b)
    nb.page.wait_for_timeout(500)
    nb.shot("00-page")
    print(b.aria_snapshot())
    nb.theme("JupyterLab Dark")
    nb.page.wait_for_timeout(500)
    nb.shot("00-dark", b)
    nb.theme("JupyterLab Light")
    print(nb.outside, nb.problems)
