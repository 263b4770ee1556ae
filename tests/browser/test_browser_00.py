"""Notebook 00 in a real JupyterLab: the image browser opens, answers every control, and says what goes wrong."""

from __future__ import annotations

import csv

import pytest
from panels import SLOW, PanelPage, says_that_it_computes
from playwright.sync_api import expect

BREAK = """
def broken(*args):
    raise RuntimeError("planted <b>error</b>")

kept, browser.influence._scores = browser.influence._scores, broken
"""
SLOWLY = SLOW + "\nbrowser.influence._scores = slow"


class Page(PanelPage):
    """The image browser on the page, and what a person can do with it."""

    def __init__(self, nb, pixels) -> None:
        super().__init__(nb, pixels, ".inflib-browser", "subject")
        self.strips = self.root.locator(".inflib-strip")
        self.cards = self.root.locator(".inflib-card")
        self.subject = self.root.locator(".inflib-subject")


@pytest.fixture
def page(notebook, pixels) -> Page:
    notebook.open("00_start_here.ipynb")
    # tall enough for all of the browser to be in sight: JupyterLab takes cells that are not out of the page
    notebook.page.set_viewport_size({"width": 1280, "height": 1500})
    return Page(notebook, pixels)


def test_the_browser_opens_and_answers_every_control(page: Page) -> None:
    assert page.nb.run_all(), page.nb.errors()
    expect(page.cards).to_have_count(16)
    page.root.scroll_into_view_if_needed()
    expect(page.subject).to_contain_text("query, MNIST #2209")
    page.nb.shot("00-light", page.root)

    choose_a_query(page)
    choose_how(page)
    click_there_and_back(page)
    by_keyboard(page)
    save_as_csv(page)
    in_the_dark(page)
    see_errors_and_waiting(page)

    assert page.nb.errors() == []
    assert page.nb.outside == []
    assert page.nb.problems == []


def choose_a_query(page: Page) -> None:
    """The slider, the buttons, the two filters."""
    expect(page.root.get_by_text("226 of 500, MNIST #2209", exact=True)).to_be_visible()
    for act, at in (
        (lambda: page.slide("Query", "ArrowRight"), "227"),
        (page.button("next").click, "228"),
        (page.button("previous").click, "227"),
    ):
        page.changes(act)
        assert page.readout("Query") == at
        number = page.subject.locator(".inflib-heading").inner_text().split(", ")[1]
        expect(page.root.get_by_text(f"{at} of 500, {number}", exact=True)).to_be_visible()

    page.changes(lambda: page.root.get_by_label("only the misclassified").check(), pixels=False)  # 227 is one
    expect(page.root.get_by_text("of 33 misclassified, MNIST #")).to_be_visible()
    expect(page.subject).to_contain_text("misclassified")
    page.changes(lambda: page.select("Label", "4"))
    expect(page.subject).to_contain_text("label 4")
    expect(page.root.get_by_text("1 of 3 misclassified with label 4, MNIST #")).to_be_visible()
    page.changes(lambda: page.root.get_by_label("only the misclassified").uncheck(), pixels=False)
    expect(page.root.get_by_text("of 50 with label 4, MNIST #")).to_be_visible()
    page.select("Label", "any")
    expect(page.root.get_by_text("of 500, MNIST #")).to_be_visible()
    page.settled()


def choose_how(page: Page) -> None:
    """Method, damping, layers, measurement, how many."""
    expect(page.button("EK-FAC")).to_have_attribute("aria-pressed", "true")
    page.changes(page.root.get_by_role("button", name="K-FAC", exact=True).click)
    expect(page.root.get_by_role("button", name="K-FAC", exact=True)).to_have_attribute("aria-pressed", "true")
    page.changes(page.button("gradient dot product").click)
    expect(page.root.get_by_text("have no unit")).to_be_visible()
    expect(page.root.get_by_text("plays no role in gradient dot products")).to_be_visible()
    page.changes(page.button("EK-FAC").click)

    page.changes(lambda: page.slide("Damping", "End"))
    assert page.readout("Damping") == "100"
    page.changes(lambda: page.slide("Damping", "Home"))
    page.changes(lambda: page.select("Layers", "out"))
    page.changes(lambda: page.select("Layers", "all layers"))
    # ∇ log odds = ∇ log p / (1 − p): other numbers for the same pictures
    page.changes(lambda: page.select("Measured", "log odds"), pixels=False)
    expect(page.root.get_by_text("raised the log odds of class 4")).to_be_visible()
    page.changes(lambda: page.select("Measured", "logit"))
    why_not_a_six(page)
    page.changes(lambda: page.slide("How many", "ArrowLeft"))
    expect(page.cards).to_have_count(14)
    page.changes(lambda: page.slide("How many", "Home"))
    expect(page.cards).to_have_count(2)
    page.changes(lambda: page.slide("How many", "End"))
    expect(page.cards).to_have_count(40)


def why_not_a_six(page: Page) -> None:
    """The same picture, another class: other training digits, and its own probability."""
    name = page.subject.locator(".inflib-heading").inner_text()
    own = page.subject.inner_text()
    page.changes(lambda: page.select("Ask about", "6"))
    expect(page.root.get_by_text("raised the logit of class 6")).to_be_visible()
    expect(page.subject).to_contain_text("asked about: class 6, p = ")
    assert page.subject.locator(".inflib-heading").inner_text() == name
    page.changes(lambda: page.select("Ask about", "what the model says"))
    page.changes(lambda: page.select("Ask about", "its label"))
    assert page.subject.inner_text() == own


def click_there_and_back(page: Page) -> None:
    """A training digit shows its queries; one of them shows its training digits; the button leads back."""
    query = page.subject.inner_text()
    expect(page.button("back to the query")).to_be_hidden()
    name = page.cards.nth(3).locator(".inflib-line").nth(2).inner_text()
    page.changes(page.cards.nth(3).click)
    expect(page.subject).to_contain_text(f"training digit, MNIST {name}")
    expect(page.root.get_by_text("Queries it helps")).to_be_visible()
    page.nb.shot("00-back", page.root)
    page.changes(page.button("back to the query").click)
    assert page.subject.inner_text() == query

    page.changes(page.cards.nth(0).click)
    name = page.cards.nth(1).locator(".inflib-line").nth(2).inner_text()
    page.changes(page.cards.nth(1).click)
    expect(page.subject).to_contain_text(f"query, MNIST {name}")


def by_keyboard(page: Page) -> None:
    """Arrow keys walk along a strip, Enter and Space choose, and JupyterLab keeps its own keys to itself."""
    cells = page.nb.cells()
    first = page.cards.first
    first.focus()
    first.press("ArrowRight")
    expect(page.cards.nth(1)).to_be_focused()
    page.cards.nth(1).press("ArrowLeft")
    expect(first).to_be_focused()
    page.changes(lambda: first.press("Enter"))
    expect(page.subject).to_contain_text("training digit")
    expect(page.cards.first).to_be_focused()  # the strip was drawn anew and the focus is where it was
    for _ in range(2):
        page.page.keyboard.press("d")  # in command mode two of them delete the cell
    page.changes(lambda: page.page.keyboard.press("Space"))
    expect(page.subject).to_contain_text("query")
    for control in (page.button("next"), page.root.get_by_role("slider", name="Query", exact=True)):
        control.focus()
        for _ in range(2):
            page.page.keyboard.press("d")
    page.button("next").focus()
    page.changes(lambda: page.page.keyboard.press("Enter"))
    assert page.nb.cells() == cells
    expect(page.page.locator(".jp-mod-editMode")).to_have_count(0)


def save_as_csv(page: Page) -> None:
    """The link saves what is seen."""
    with page.page.expect_download() as download:
        page.root.get_by_role("link", name="CSV").click()
    assert download.value.suggested_filename.startswith("influence_query_")
    with open(download.value.path(), encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 40
    lines = [card.locator(".inflib-line").all_inner_texts() for card in page.cards.all()]
    saved = [[f"label {row['label']}", f"model {row['prediction']}", f"#{row['index']}"] for row in rows]
    assert saved == lines
    assert {row["measurement"] for row in rows} == {"logit"}


def in_the_dark(page: Page) -> None:
    """Digits are ink on paper in the light theme and chalk on a board in the dark one."""
    image = page.cards.first.locator("img")
    assert image.evaluate("e => getComputedStyle(e).filter") == "none"
    page.slide("How many", "Home")
    expect(page.cards).to_have_count(2)
    for _ in range(7):
        page.slide("How many", "ArrowRight")
    expect(page.cards).to_have_count(16)
    page.nb.theme("JupyterLab Dark")
    page.root.scroll_into_view_if_needed()
    expect(page.root).to_be_visible()
    assert image.evaluate("e => getComputedStyle(e).filter") == "invert(1)"
    colour = page.cards.first.evaluate("e => getComputedStyle(e).color")
    assert min(map(int, colour.strip("rgba()").split(", ")[:3])) > 150, f"dark text on a dark ground: {colour}"
    page.nb.shot("00-dark", page.root)
    page.nb.fits_a_phone(page.root, "00-dark")
    page.nb.theme("JupyterLab Light")


def see_errors_and_waiting(page: Page) -> None:
    """What a callback raises is shown, escaped, and goes with the next answer; a slow answer says "computing"."""
    before = page.subject.inner_text()
    page.kernel(BREAK)
    page.button("next").click()
    error = page.root.get_by_role("alert")
    expect(error).to_contain_text("RuntimeError: planted <b>error</b>")
    expect(error.locator("pre")).to_contain_text("in broken")
    assert page.subject.inner_text() == before
    page.slide("Damping", "ArrowRight")  # which asks something that gets no answer
    expect(page.root).to_contain_class("inflib-stale")
    assert float(page.subject.evaluate("e => getComputedStyle(e.closest('.widget-hbox')).opacity")) < 0.6
    page.nb.shot("00-error", page.root)

    page.kernel(SLOWLY)
    page.button("next").click()
    says_that_it_computes(page.nb, page.root)
    expect(error).to_have_count(0)
    assert page.subject.inner_text() != before
