"""A day of reviewing in a real JupyterLab, by mouse and by keyboard; and the next morning, from the file."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from build import KERNELSPEC
from nbformat.v4 import new_code_cell, new_notebook
from panels import PanelPage
from playwright.sync_api import expect

BOOK = "review.ipynb"
SOURCE = """
import torch

from inflib import CrossEntropy, TrainIndex, ekfac
from inflib.lab import mlp, mnist_5k, train
from inflib.validation import Training, flip_labels
from inflib.widgets import Examples, Review, retraining

torch.set_num_threads(1)
digits, objective = mnist_5k(), CrossEntropy()
few = digits.train[:400]
labels, wrong = flip_labels(few.labels, 0.1)
noisy = Examples(few.inputs, labels, images=few.images, ink=True)
model = mlp((784, 16, 10))
train(model, objective, noisy.inputs, labels, epochs=30, batch_size=50, lr=3e-3, progress=False)
curvature = ekfac(model, objective, [(noisy.inputs, labels)], progress=False)
index = TrainIndex.build(model, objective, [(noisy.inputs, labels)], curvature, progress=False)
recipe = Training(epochs=10, batch_size=50, lr=3e-3, optimiser="adam")
again = retraining(lambda seed: mlp((784, 16, 10), seed=seed), objective, noisy.inputs, recipe)
review = Review(model, objective, index, noisy, digits.queries, retrain=again, path="decisions.csv")
review
"""


TEXTS = """
class Bag(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(60, 8)
        self.out = torch.nn.Linear(8, 30)

    def forward(self, ids):
        return self.out(self.embed(ids).mean(1))


torch.manual_seed(0)
kinds = torch.arange(120) % 30
ids = torch.randint(0, 2, (120, 9)) + 2 * kinds[:, None]
told = kinds.clone()
told[::12] = (told[::12] + 1) % 30
documents = [f"Letter {n}:\\n" + " ".join(f"word{w}" for w in row) * 60 for n, row in enumerate(ids.tolist())]
letters = Examples(ids, told, texts=documents, names=lambda n: f"letter_{n}.txt")
bag = Bag()
train(bag, objective, ids, told, epochs=40, batch_size=20, lr=3e-2, progress=False)
its_curvature = ekfac(bag, objective, [(ids, told)], ["out"], progress=False)
its_index = TrainIndex.build(bag, objective, [(ids, told)], its_curvature, progress=False)
names = [f"department {n}, with a rather long name" for n in range(30)]
Review(bag, objective, its_index, letters, classes=names)
"""


class ReviewPage(PanelPage):
    """The panel, and what a reviewer reads off it; the pictures' is the first, the letters' the second."""

    def __init__(self, nb, pixels, at: int = 0) -> None:
        selector = f".jp-OutputArea .inflib-review >> nth={at}"
        super().__init__(nb, pixels, selector, "desk", "progress", "repair", "note")
        self.desk, self.progress = self.root.locator(".inflib-desk"), self.root.locator(".inflib-progress")
        self.error = self.root.locator(".inflib-error")

    def name(self) -> str:
        return self.desk.locator(".inflib-facts .inflib-heading").inner_text()

    def says(self, progress: str) -> None:
        expect(self.progress).to_contain_text(progress)
        self.settled()

    def press(self, key: str, progress: str) -> None:
        self.page.keyboard.press(key)
        self.says(progress)

    def upload(self, name: str, data: bytes) -> None:
        with self.page.expect_file_chooser() as chooser:
            self.button("Read decisions").click()
        chooser.value.set_files({"name": name, "mimeType": "text/csv", "buffer": data})


@pytest.fixture
def nb(notebook, lab):
    nbformat.write(
        new_notebook(
            cells=[new_code_cell(source.strip()) for source in (SOURCE, TEXTS)], metadata={"kernelspec": KERNELSPEC}
        ),
        lab.notebooks / BOOK,
    )
    notebook.page.set_viewport_size({"width": 1280, "height": 1500})
    return notebook.open(BOOK)


def test_labels_are_reviewed_repaired_and_there_the_next_day(nb, lab, pixels) -> None:
    assert nb.run_all(), nb.errors()
    page = ReviewPage(nb, pixels)
    page.root.scroll_into_view_if_needed()
    expect(page.desk.locator(".inflib-opponent").first).to_be_visible()
    nb.shot("review-light", page.root)
    decide_by_mouse(page)
    decide_by_keyboard(page)
    filter_and_go_to_an_opponent(page)
    text = save_and_read_csv(page)
    retrain(page)
    review_letters(nb, pixels)
    nb.theme("JupyterLab Dark")
    nb.shot("review-dark", page.root)
    nb.fits_a_phone(page.root, "review-dark")
    nb.theme("JupyterLab Light")
    assert (lab.notebooks / "decisions.csv").read_text() == text
    the_next_day(nb, pixels)
    assert (nb.errors(), nb.outside, nb.problems) == ([], [], [])


def decide_by_mouse(page: ReviewPage) -> None:
    """Each button decides about the example on show, and the next one comes."""
    page.says("0 of 400 decided")
    first = page.name()
    page.changes(page.desk.get_by_role("button", name="Keep").click)
    page.says("1 of 400 decided (0.2%): 1 kept, 0 relabelled, 0 removed")
    assert page.name() != first
    page.changes(page.desk.get_by_role("button", name="Undo").click)
    page.says("0 of 400 decided")
    assert page.name() == first
    page.desk.get_by_label("Class to relabel to").select_option(index=2)
    page.changes(page.desk.get_by_role("button", name="Relabel to").click)
    page.says("0 kept, 1 relabelled, 0 removed")


def decide_by_keyboard(page: ReviewPage) -> None:
    """The focus is on the desk after a click; JupyterLab keeps x (which cuts the cell) and the others to itself."""
    expect(page.desk).to_be_focused()
    cells = page.nb.cells()
    page.press("r", "2 relabelled, 0 removed")
    page.press("x", "2 relabelled, 1 removed")
    page.press("k", "1 kept, 2 relabelled, 1 removed")
    page.press("u", "0 kept, 2 relabelled, 1 removed")
    undone = page.name()
    page.press("Control+z", "0 kept, 2 relabelled, 0 removed")
    assert page.name() != undone
    page.press("x", "2 relabelled, 1 removed")
    page.changes(lambda: page.page.keyboard.press("ArrowLeft"))
    expect(page.desk.locator(".inflib-decided")).to_have_text("decided: removed")
    page.changes(lambda: page.page.keyboard.press("ArrowRight"))
    select = page.desk.get_by_label("Class to relabel to")
    given = page.desk.locator(".inflib-facts b").first.inner_text()
    other = "3" if given != "3" else "4"
    page.page.keyboard.press(other)
    assert select.evaluate("e => e.selectedOptions[0].text") == other
    page.press("r", "3 relabelled, 1 removed")
    assert page.nb.cells() == cells


def filter_and_go_to_an_opponent(page: ReviewPage) -> None:
    """The decided alone; an example that the filter hides lifts it when it is asked for."""
    page.changes(lambda: page.select("Show", "the decided"))
    expect(page.root.get_by_text("1 of 4 by opposition")).to_be_visible()
    page.changes(page.desk.locator(".inflib-opponent").first.click)
    assert page.root.get_by_role("combobox", name="Show").input_value() == "all"
    expect(page.desk).to_be_focused()  # the picture that was clicked is gone, and the next key is the desk's
    page.changes(lambda: page.select("Order by", "loss"), pixels=False)
    page.changes(lambda: page.slide("Place", "Home"))
    expect(page.root.get_by_text("1 of 400 by loss")).to_be_visible()


def save_and_read_csv(page: ReviewPage) -> str:
    """What is saved can be read after it was undone; what is no file of decisions is refused, and nothing is lost."""
    with page.page.expect_download() as download:
        page.root.get_by_role("link", name="Save decisions as CSV").click()
    text = Path(download.value.path()).read_text(encoding="utf-8")
    assert text.count("\n") == 5
    for _ in range(4):
        page.desk.get_by_role("button", name="Undo").click()
    page.says("0 of 400 decided")
    before = page.text()
    page.upload("other.csv", b"name,age\nAda,36\n")
    expect(page.error).to_contain_text("The first line is 'name,age'")
    expect(page.error.locator("details")).to_have_count(0)
    page.upload("damaged.csv", text.replace("relabel,", "relabelled,", 1).encode())
    expect(page.error).to_contain_text("Line 2: decision 'relabelled'; expected keep, relabel or remove.")
    page.nb.shot("review-refused", page.root)
    assert page.text() == before
    page.upload("decisions.csv", text.encode())
    page.says("4 of 400 decided (1.0%): 0 kept, 3 relabelled, 1 removed")
    expect(page.root.get_by_text("decisions.csv: 4 decisions, 4 new")).to_be_visible()
    expect(page.error).to_have_count(0)
    return text


def retrain(page: ReviewPage) -> None:
    page.button("Retrain with the decisions").click()
    expect(page.root.get_by_text("Retrained with 3 relabelled and 1 removed")).to_be_visible()
    expect(page.root.locator(".inflib-repair circle")).to_have_count(500)
    page.settled()
    expect(page.error).to_have_count(0)
    page.nb.shot("review-retrained", page.root)


def review_letters(nb, pixels) -> None:
    """Long texts under thirty long names: all of it can be read, a class is chosen by the list's own keys."""
    page = ReviewPage(nb, pixels, 1)
    page.root.scroll_into_view_if_needed()
    expect(page.root.get_by_text("kept in this kernel only: save them")).to_be_visible()
    text = page.desk.locator(".inflib-large.inflib-document")
    assert text.evaluate("e => e.scrollHeight > e.clientHeight && e.tabIndex === 0")
    expect(page.desk.locator(".inflib-opponent.inflib-wide").first).to_be_visible()
    nb.shot("review-letters", page.root)
    nb.fits_a_phone(page.root, "review-letters")
    select = page.desk.get_by_label("Class to relabel to")
    select.focus()
    page.page.keyboard.type("department 27")
    assert select.evaluate("e => e.selectedOptions[0].text") == "department 27, with a rather long name"
    page.page.keyboard.press("Enter")
    page.says("0 kept, 1 relabelled, 0 removed")
    expect(page.desk).to_be_focused()


def the_next_day(nb, pixels) -> None:
    """A still without the kernel; with a new one, the decisions from their file, and JupyterLab's keys do no harm."""
    nb.save()
    nb.stop_kernel()
    nb.close_tab()
    nb.open(BOOK)
    still = nb.page.locator(".jp-OutputArea").get_by_text("Review of labels").first
    expect(still).to_be_visible()
    nb.shot("review-still")
    assert nb.run_all(), nb.errors()
    page = ReviewPage(nb, pixels)
    page.says("4 of 400 decided (1.0%): 0 kept, 3 relabelled, 1 removed")
    nb.save()
    nb.reload()
    page.says("4 of 400 decided")
    page.root.scroll_into_view_if_needed()
    cells = nb.cells()
    page.desk.focus()
    for key in "dd":  # in command mode they delete the cell
        page.page.keyboard.press(key)
    page.press("k", "5 of 400 decided")
    assert nb.cells() == cells
