"""A notebook open in JupyterLab: run it, save it, come back to it, and see what went wrong."""

from __future__ import annotations

from pathlib import Path

import nbformat
from needed_lines import needed
from playwright.sync_api import Locator, Page
from servers import Lab

GROUND = """light => {
    const probe = document.createElement('div');
    probe.style.color = 'var(--jp-layout-color0)';
    document.body.append(probe);
    const [red] = getComputedStyle(probe).color.match(/\\d+/g);
    probe.remove();
    return (red > 127) === light;
}"""
SHOTS = Path(__file__).resolve().parent / "shots"


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
        return self.ready()

    def open_for(self, name: str, *calls: str) -> Notebook:
        """Open a copy of notebooks/NAME that has the cells with these calls, and what they need: nbval runs it whole."""
        book = nbformat.read(self.lab.notebooks / name, as_version=4)
        own = [cell for cell in book.cells if cell.cell_type == "code" and any(call in cell.source for call in calls)]
        book.cells = needed(book.cells, own, [])
        nbformat.write(book, self.lab.notebooks / f"part_of_{name}")
        return self.open(f"part_of_{name}")

    def reload(self) -> Notebook:
        """Load the page anew, as F5 does, and wait until the notebook's kernel is idle."""
        self.page.reload()
        return self.ready()

    def ready(self) -> Notebook:
        """Wait until a notebook is there and its kernel is idle."""
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

    def cells(self) -> int:
        """How many cells the notebook has; JupyterLab has only some of them in the page."""
        return int(self.page.evaluate("() => window.jupyterapp.shell.currentWidget.context.model.cells.length"))

    def theme(self, name: str) -> None:
        """Switch to "JupyterLab Light" or "JupyterLab Dark"."""
        self.page.evaluate("t => window.jupyterapp.commands.execute('apputils:change-theme', {theme: t})", name)
        light = "false" if "Dark" in name else "true"
        self.page.wait_for_function("l => document.body.dataset.jpThemeLight === l", arg=light)
        self.page.wait_for_function(GROUND, arg=light == "true")  # its style sheet comes later than its name

    def cut_off(self, what: Locator) -> list[str]:
        """The parts of an element that reach beyond its right side, those that scroll or are only spoken left out."""
        return list(
            what.evaluate(
                """whole => [...whole.querySelectorAll('*')].filter(e => e.getClientRects().length
                    && e.getBoundingClientRect().right > whole.getBoundingClientRect().right + 1
                    && !e.closest('.inflib-spoken')).map(e => e.outerHTML.slice(0, 120))"""
            )
        )

    def fits_a_phone(self, panel: Locator, name: str) -> None:
        """At 390 pixels, JupyterLab's own side panel folded away, nothing of a panel is cut off."""
        before = self.page.viewport_size
        self.page.set_viewport_size({"width": 390, "height": 1700})
        self.page.evaluate("() => window.jupyterapp.shell.collapseLeft()")
        self.page.wait_for_function("e => e.getBoundingClientRect().width > 200", arg=panel.element_handle())
        panel.scroll_into_view_if_needed()
        self.shot(f"{name}-phone", panel)
        cut_off = self.cut_off(panel)
        assert not cut_off, "\n".join(cut_off)
        self.page.set_viewport_size(before)
        self.at_rest(panel)

    def at_rest(self, what: Locator) -> dict[str, float]:
        """Where an element is once JupyterLab has stopped laying its page out: the same place in ten frames in a row."""
        what.evaluate(
            """e => new Promise(done => {
                let last = '', same = 0;
                const look = () => {
                    const now = JSON.stringify(e.getBoundingClientRect());
                    same = now === last ? same + 1 : 0;
                    last = now;
                    same < 10 ? requestAnimationFrame(look) : done();
                };
                look();
            })"""
        )
        box = what.bounding_box()
        assert box is not None, "the element is not on the page"
        return box

    def shot(self, name: str, what: Locator | None = None) -> Path:
        """Save a picture of the page, or of one element, where git does not look."""
        SHOTS.mkdir(exist_ok=True)
        path = SHOTS / f"{name}.png"
        (what or self.page).screenshot(path=path)
        return path
