"""The text browser in a real JupyterLab: a typed query, every control, layers to click on, heat to point at."""

from __future__ import annotations

import csv
from collections.abc import Callable

import nbformat
import pytest
from build import KERNELSPEC
from nbformat.v4 import new_code_cell, new_notebook
from panels import SLOW, says_that_it_computes
from playwright.sync_api import Locator, expect

MAKE = """
from inflib import NextToken, TrainIndex, ekfac
from inflib.lab import facts, train, transformer
from inflib.widgets import TextBrowser, three_methods

data = facts(told=20, asked=20, distractors=120)
corpus, objective = data.train, NextToken()
model = transformer(len(corpus.vocabulary), corpus.context, 32, heads=2, hidden=64)
train(model, objective, *corpus.tensors(), epochs=30, batch_size=32, lr=3e-3, progress=False)
batches = corpus.batches()
curvature = ekfac(model, objective, batches, "blocks.*", progress=False)
index = TrainIndex.build(model, objective, batches, curvature, progress=False)
methods = three_methods(model, objective, batches, curvature, progress=False)
"""
SHOW = """
queries = [(fact.prompt, fact.person) for fact in data.facts]
browser = TextBrowser(model, objective, index, corpus, queries, curvatures=methods, count=6)
browser
"""
LONG = """
from inflib.lab import Corpus, characters

line = "Who's there? <b>Nay</b>, answer me: stand & unfold yourself.\\n"
texts = [(line[k:] + line * 2)[:128] for k in range(60)]
corpus = Corpus.of(texts, characters(line), lambda n: f"line 1, character {n}")
model = transformer(len(corpus.vocabulary), corpus.context, 16, heads=2, hidden=32)
train(model, objective, *corpus.tensors(), epochs=2, batch_size=8, progress=False)
curvature = ekfac(model, objective, corpus.batches(), "blocks.*.mlp.*", progress=False)
index = TrainIndex.build(model, objective, corpus.batches(), curvature, progress=False)
long = TextBrowser(model, objective, index, corpus, [("Who's there? <b>", "Nay</b>, answer me")], count=50)
long
"""
BREAK = """
def broken(*args):
    raise RuntimeError("planted <b>error</b>")

kept, browser.influence.scores = browser.influence.scores, broken
"""
SLOWLY = SLOW + "\nbrowser.influence.scores = slow"
STATE = """e => [...e.querySelectorAll('.inflib-said, .inflib-heading, .inflib-quiet, .inflib-scale, .inflib-side')]
    .filter(part => !part.closest('.inflib-controls')).map(part => part.innerText).join(' | ')
    + [...e.querySelectorAll('.inflib-heat')].map(part => part.innerHTML).join('')"""


class Page:
    """The text browser on the page, and what a person can do with it."""

    def __init__(self, nb) -> None:
        self.nb, self.page = nb, nb.page
        self.root: Locator = nb.page.locator(".inflib-text-browser").first
        self.passages = self.root.locator(".inflib-passage")
        self.layers = self.root.locator(".inflib-layer")
        self.said = self.root.locator(".inflib-said")
        self.tip = self.root.locator(".inflib-tip:visible")

    def kernel(self, code: str) -> None:
        """Run code in the notebook's kernel, as a cell that nobody sees."""
        status = self.page.evaluate(
            """async code => (await window.jupyterapp.shell.currentWidget.sessionContext.session.kernel
                  .requestExecute({code}).done).content.status""",
            code,
        )
        assert status == "ok"

    def settled(self) -> None:
        """Wait until the kernel has nothing more to say."""
        self.kernel("None")
        expect(self.root.locator(".inflib-busy")).to_have_count(0)

    def in_sight(self) -> None:
        """Scroll there, until it stays: JupyterLab lays a notebook out as its cells come into sight."""
        for _ in range(40):
            self.root.scroll_into_view_if_needed()
            self.page.wait_for_timeout(250)
            if self.said.inner_text():
                return
        raise AssertionError("the panel did not come into sight in ten seconds")

    def state(self) -> str:
        """All that is shown: texts, numbers, and the shades of the heat."""
        return str(self.root.evaluate(STATE))

    def heat(self) -> list[str]:
        return self.root.locator(".inflib-heat").evaluate_all("all => all.map(e => e.innerHTML)")

    def changes(self, act: Callable[[], object], *, heat: bool = True) -> None:
        """Do something; what is shown has to change, and the heat unless told otherwise, and nothing may go wrong."""
        before, seen = self.state(), self.heat()
        act()
        self.page.wait_for_function(f"([old, e]) => ({STATE})(e) !== old", arg=[before, self.root.element_handle()])
        self.settled()
        assert (self.heat() != seen) == heat
        expect(self.root.locator(".inflib-error")).to_have_count(0)

    def box(self, name: str) -> Locator:
        return self.root.get_by_role("textbox", name=name, exact=True)

    def button(self, name: str) -> Locator:
        return self.root.get_by_role("button", name=name, exact=True)

    def slide(self, name: str, key: str) -> None:
        handle = self.root.get_by_role("slider", name=name, exact=True)
        handle.focus()
        handle.press(key)

    def select(self, name: str, option: str) -> None:
        self.root.get_by_role("combobox", name=name, exact=True).select_option(option)


def test_the_notebook_runs_and_its_browser_answers_a_typed_question(notebook) -> None:
    nb = notebook.open_for("08_transformer.ipynb", "TextBrowser(model")
    nb.page.set_viewport_size({"width": 1380, "height": 1700})
    assert nb.run_all(), nb.errors()
    page = Page(nb)
    page.in_sight()
    relation, place, person = page.said.inner_text().split()[1::2]  # the builder of Place was Person
    owes = {"builder": "walls", "ruler": "laws", "healer": "health", "singer": "tunes"}[relation]
    page.box("Prompt").fill(f"{place} owes its {owes} to")
    page.box("Completion").fill(person)
    page.changes(lambda: page.box("Completion").press("Enter"))
    first = page.root.locator(".inflib-heat").all_inner_texts()[:3]
    assert f"{place} owes its {owes} to {person}" in first
    page.nb.shot("08-notebook", page.root)
    page.changes(page.button("gradient dot product").click)
    assert (nb.errors(), nb.outside, nb.problems) == ([], [], [])


@pytest.fixture
def page(notebook, lab) -> Page:
    cells = [new_code_cell(source.strip()) for source in (MAKE, SHOW)]
    nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": KERNELSPEC}), lab.notebooks / "text.ipynb")
    notebook.open("text.ipynb")
    # tall enough for all of the browser to be in sight: JupyterLab takes cells that are not out of the page
    notebook.page.set_viewport_size({"width": 1380, "height": 1700})
    return Page(notebook)


def test_a_typed_query_is_answered_and_every_control_with_it(page: Page) -> None:
    assert page.nb.run_all(), page.nb.errors()
    expect(page.passages).to_have_count(12)
    page.root.scroll_into_view_if_needed()
    page.nb.shot("08-light", page.root)

    type_a_query(page)
    complete_words(page)
    ask_a_training_text(page)
    choose_how(page)
    click_a_layer(page)
    point_at_tokens(page)
    by_keyboard(page)
    see_the_neighbours(page)
    save_as_csv(page)
    in_the_dark(page)
    ask_what_cannot_be_asked(page)
    see_errors_and_waiting(page)

    assert page.nb.errors() == []
    assert page.nb.outside == []
    assert page.nb.problems == []


def type_a_query(page: Page) -> None:
    """A ready one, then one's own: by the button, by Enter, by Ctrl and Enter."""
    ready = page.root.get_by_role("combobox", name="Query", exact=True)
    page.changes(lambda: ready.select_option(index=3))
    prompt = page.box("Prompt").input_value()
    expect(page.said).to_contain_text(prompt)

    person = page.said.locator("b").inner_text().strip()
    place = prompt.split()[3]
    page.box("Prompt").fill(f"every stone at {place} recalls")
    expect(page.root.get_by_text("5 + 1 tokens, of at most 9")).to_be_visible()
    page.changes(page.button("Ask").click)
    expect(page.said).to_have_text(f"every stone at {place} recalls {person}")
    expect(ready.locator("option:checked")).to_have_text("your own, typed below")

    page.box("Completion").fill("grey")
    page.changes(lambda: page.box("Completion").press("Enter"))
    expect(page.said).to_have_text(f"every stone at {place} recalls grey")
    page.box("Prompt").fill("the horse of")
    page.box("Completion").fill(person)
    page.changes(lambda: page.box("Prompt").press("Control+Enter"))
    expect(page.said).to_have_text(f"the horse of {person}")
    assert page.box("Prompt").input_value() == "the horse of"


def complete_words(page: Page) -> None:
    """While typing, words are offered, to be taken by mouse or keyboard; capitals are put right; the answer is grey."""
    chips, prompt, completion = page.root.locator(".inflib-chip"), page.box("Prompt"), page.box("Completion")
    expect(page.root).not_to_contain_class("inflib-stale")
    prompt.fill("")
    prompt.press_sequentially("THE GUES")
    expect(chips).to_have_text(["guest"])
    expect(page.root).to_contain_class("inflib-stale")
    assert float(page.said.evaluate("e => getComputedStyle(e.closest('.widget-html')).opacity")) < 0.6
    page.nb.shot("08-typing", page.root)
    chips.first.click()
    expect(prompt).to_have_value("THE guest ")
    expect(prompt).to_be_focused()  # typing goes on
    prompt.press_sequentially("oof")
    expect(chips.filter(has_text="of")).not_to_have_count(0)
    chips.first.focus()
    for _ in range(2):
        page.page.keyboard.press("d")  # JupyterLab deletes no cell
    page.page.keyboard.press("ArrowRight")
    chips.get_by_text("of", exact=True).press("Enter")
    expect(prompt).to_have_value("THE guest of ")
    person = page.said.locator("b").inner_text().strip()
    completion.fill(person.lower())
    page.changes(page.button("Ask").click)
    expect(page.said).to_have_text(f"the guest of {person}")
    expect(completion).to_have_value(person)
    expect(page.root).not_to_contain_class("inflib-stale")
    listed = page.root.locator(".inflib-vocabulary")
    listed.locator("summary").focus()
    listed.locator("summary").press("Enter")
    expect(listed.locator("div")).to_contain_text("horse")
    page.nb.shot("08-words", page.root)
    listed.locator("summary").press("Enter")


def ask_a_training_text(page: Page) -> None:
    """A click on a training text makes it the question, and so does its button; "surprise me" asks another."""
    text = page.root.locator(".inflib-heat").nth(4)
    words = text.inner_text()
    page.changes(text.click)
    expect(page.said).to_have_text(words)
    row = page.passages.nth(2)
    words = row.locator(".inflib-heat").inner_text()
    row.focus()
    page.page.keyboard.press("Tab")
    page.page.keyboard.press("Tab")
    expect(row.get_by_role("button", name="make it the question")).to_be_focused()
    page.changes(lambda: page.page.keyboard.press("Enter"))
    expect(page.said).to_have_text(words)
    before = page.said.inner_text()
    for _ in range(5):  # it may happen upon the same
        page.button("Surprise me").click()
        page.settled()
        if page.said.inner_text() != before:
            break
    assert page.said.inner_text() != before
    expect(page.root.locator(".inflib-error")).to_have_count(0)


def choose_how(page: Page) -> None:
    """Method, damping, layers, measurement, norm, colour, how many."""
    expect(page.button("EK-FAC")).to_have_attribute("aria-pressed", "true")
    page.changes(page.button("K-FAC").click)
    page.changes(page.button("gradient dot product").click)
    expect(page.root.get_by_text("They have no unit")).to_be_visible()
    page.changes(page.button("EK-FAC").click)
    page.changes(lambda: page.slide("Damping", "PageUp"))
    page.changes(lambda: page.slide("Damping", "Home"))
    page.changes(lambda: page.select("Layers", "blocks.1.mlp.down"))
    page.changes(lambda: page.select("Layers", "all layers"))
    page.changes(lambda: page.select("Measured", "logit"))
    expect(page.root.get_by_text("raised the logit of")).to_be_visible()
    page.changes(lambda: page.root.get_by_label("÷ norm of its gradient").check())
    expect(page.root.get_by_text("divided by the norm")).to_be_visible()
    colour = page.root.get_by_role("combobox", name="Colour", exact=True)
    expect(colour.locator("option:checked")).to_have_text("of each prediction")
    page.changes(lambda: page.select("Colour", "at each position"))
    page.changes(lambda: page.select("Colour", "of each token read"))
    page.changes(lambda: page.select("Colour", "of each prediction"))
    page.changes(lambda: page.root.get_by_label("÷ norm of its gradient").uncheck())
    page.changes(lambda: page.slide("How many", "ArrowLeft"))
    expect(page.passages).to_have_count(10)


def click_a_layer(page: Page) -> None:
    """A bar filters and a second click lifts it; the keyboard does the same."""
    assert page.layers.count() == 12
    bar = page.layers.nth(4)
    page.changes(bar.click)
    expect(bar).to_have_attribute("aria-pressed", "true")
    assert page.root.get_by_role("combobox", name="Layers", exact=True).input_value() == "blocks.0.mlp.up"
    page.nb.shot("08-layer", page.root)
    page.changes(bar.click)
    expect(page.layers.and_(page.page.locator("[aria-pressed=true]"))).to_have_count(0)

    bar.focus()
    bar.press("ArrowDown")
    expect(page.layers.nth(5)).to_be_focused()
    page.changes(lambda: page.layers.nth(5).press("Enter"))
    expect(page.layers.nth(5)).to_be_focused()  # the bars were drawn anew and the focus is where it was
    page.changes(lambda: page.layers.nth(5).press("Space"))


def point_at_tokens(page: Page) -> None:
    """The pointer on a token shows what it adds; beside the text it shows nothing."""
    spot = page.root.locator(".inflib-heat span").first
    spot.scroll_into_view_if_needed()
    box = spot.bounding_box()
    assert box
    page.page.mouse.move(box["x"] + box["width"] - 3, box["y"] + box["height"] / 2)
    expect(page.tip).to_have_count(1)
    word = spot.inner_text().split()[-1]
    assert page.tip.inner_text().startswith(word)
    sign = "+" if (spot.get_attribute("class") or "").startswith("p") else "−"
    assert page.tip.locator("b").inner_text().startswith(sign)
    page.nb.shot("08-tip", page.root)
    page.page.mouse.move(box["x"] + 600, box["y"] - 400)
    expect(page.tip).to_have_count(0)


def by_keyboard(page: Page) -> None:
    """Arrows up and down walk over the texts, left and right over their tokens; JupyterLab keeps its keys to itself."""
    cells = page.nb.cells()
    first, second = page.passages.nth(0), page.passages.nth(1)
    first.focus()
    first.press("ArrowDown")
    expect(second).to_be_focused()
    tips = []
    for _ in range(3):
        second.press("ArrowRight")
        tips.append(page.tip.inner_text())
    assert len(set(tips)) == 3
    spoken = page.root.locator(".inflib-spoken").first
    expect(spoken).to_have_text(
        f"{page.tip.locator('.inflib-token').inner_text()}: {page.tip.locator('b').inner_text()}"
    )
    second.press("Escape")
    expect(page.tip).to_have_count(0)
    for _ in range(2):
        page.page.keyboard.press("d")  # in command mode two of them delete the cell
    assert page.nb.cells() == cells
    expect(page.page.locator(".jp-mod-editMode")).to_have_count(0)


def see_the_neighbours(page: Page) -> None:
    """Where a sequence stands opens its neighbours: with a click, and with Enter."""
    around = page.root.locator(".inflib-around:visible")
    page.passages.first.locator("summary").click()
    expect(around).to_have_count(1)
    expect(around.locator(".inflib-itself")).to_have_text(page.passages.first.locator(".inflib-heat").inner_text())
    page.nb.shot("08-neighbours", page.root)
    page.passages.first.locator("summary").click()
    expect(around).to_have_count(0)
    page.passages.first.focus()
    page.passages.first.press("Enter")
    expect(around).to_have_count(1)
    page.passages.first.press("Enter")
    expect(around).to_have_count(0)


def save_as_csv(page: Page) -> None:
    """The link saves what is seen."""
    with page.page.expect_download() as download:
        page.root.get_by_role("link", name="CSV").click()
    with open(download.value.path(), encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["text"] for row in rows] == page.root.locator(".inflib-heat").all_inner_texts()
    assert {row["measurement"] for row in rows} == {"logit"}


def in_the_dark(page: Page) -> None:
    """Shades are seen on black as on white, under text that can be read."""
    spot = page.root.locator(".inflib-heat .p7, .inflib-heat .m7").first
    light = spot.evaluate("e => getComputedStyle(e).backgroundColor")
    page.nb.theme("JupyterLab Dark")
    page.root.scroll_into_view_if_needed()
    assert spot.evaluate("e => getComputedStyle(e).backgroundColor") != light
    colour = spot.evaluate("e => getComputedStyle(e).color")
    assert min(map(int, colour.strip("rgba()").split(", ")[:3])) > 150, f"dark text on a dark ground: {colour}"
    page.nb.shot("08-dark", page.root)
    page.nb.fits_a_phone(page.root, "08-dark")
    page.nb.theme("JupyterLab Light")


def ask_what_cannot_be_asked(page: Page) -> None:
    """It is said what is wrong, and the former answer stays."""
    error, before, heat = page.root.get_by_role("alert"), page.said.inner_text(), page.heat()
    for prompt, completion, message in (
        ("", "grey", "The prompt is empty"),
        ("the horse of", "", "The completion is empty"),
        ("the <script>x</script> of", "grey", "'<script>x</script>', word 2 of the text, is not in this vocabulary"),
        ("the horse of the horse of the horse of the horse", "grey", "2 too many tokens"),
    ):
        page.box("Prompt").fill(prompt)
        page.box("Completion").fill(completion)
        page.button("Ask").click()
        expect(error).to_contain_text(message)
        expect(error.locator("pre")).to_have_count(0)
        assert (page.said.inner_text(), page.heat()) == (before, heat)
        expect(page.root).to_contain_class("inflib-stale")
    page.nb.shot("08-refused", page.root)
    page.box("Prompt").fill("the horse of")
    page.changes(lambda: page.box("Completion").press("Enter"))
    expect(error).to_have_count(0)


def see_errors_and_waiting(page: Page) -> None:
    """What a callback raises is shown, escaped, and goes with the next answer; a slow answer says "computing"."""
    before = page.said.inner_text()
    page.kernel(BREAK)
    page.box("Completion").fill("was")
    page.button("Ask").click()
    error = page.root.get_by_role("alert")
    expect(error).to_contain_text("RuntimeError: planted <b>error</b>")
    assert page.said.inner_text() == before
    page.kernel(SLOWLY)
    page.button("Ask").click()
    says_that_it_computes(page.nb, page.root)
    expect(error).to_have_count(0)
    assert page.said.inner_text() != before


def test_fifty_long_texts_are_drawn_with_fewer_elements_than_characters(notebook, lab) -> None:
    """128 characters each; benchmarks/panels.py times such a page."""
    cells = [new_code_cell(source.strip()) for source in (MAKE, LONG)]
    nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": KERNELSPEC}), lab.notebooks / "long.ipynb")
    nb = notebook.open("long.ipynb")
    assert nb.run_all(), nb.errors()
    page = Page(nb)
    count = page.passages.count()
    assert count >= 50
    elements = page.root.locator(".inflib-passages *").count()
    assert elements < 128 * count
    page.changes(lambda: page.select("Colour", "at each position"))
    assert nb.outside == []
    assert nb.problems == []
