"""How long the image panels take to answer, and the page to draw a hundred texts.

    python benchmarks/panels.py                  # the shipped digits, then 60,000: half a CPU-minute
    CHROMIUM=/path/to/chromium python benchmarks/panels.py

An answer over the shipped digits should take under half a CPU-second, by 60,000 under two; a page of texts should be
drawn in a fraction of a second. No test holds them to it, for a busy machine is no fault of the code.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch
from measure import Cost

from inflib import CrossEntropy, TrainIndex, ekfac, load
from inflib.lab import DigitData, Stroke, as_mnist, ink_of_strokes, load_checkpoint, mlp, mnist_5k, shipped_checkpoint
from inflib.widgets import DrawDigit, ImageBrowser, three_methods
from inflib.widgets.passages import HeatedText, Passages

SEVEN = [Stroke([(70, 60), (205, 62), (165, 140), (130, 240)])]
CONTROLS = {"position": 7, "method": "K-FAC", "damping": 1.0, "layer": "out", "measurement": "logit", "count": 20}
TEXTS, CHARACTERS = 100, 128
PAGE = """async ([esm, passages]) => {
  const { default: { render } } = await import("data:text/javascript," + encodeURIComponent(esm));
  const state = { passages: [], label: "texts" }, heard = {};
  const model = { get: key => state[key], on: (what, act) => heard[what] = act, off() {}, send() {} };
  render({ model, el: document.body });
  state.passages = passages;
  const start = performance.now();
  heard["change:passages"]();
  document.body.getBoundingClientRect();
  return performance.now() - start;
}"""


def main() -> None:
    torch.set_num_threads(1)
    digits, model, objective = mnist_5k(), mlp(dtype=torch.float64), CrossEntropy()
    load_checkpoint(shipped_checkpoint("mnist_mlp"), model, data=(digits.train.inputs, digits.train.labels))
    curvature = load(shipped_checkpoint("mnist_mlp_ekfac"), model)
    train = digits.train.batches(dtype=torch.float64)
    index = timed("build the index", lambda: TrainIndex.build(model, objective, train, curvature))
    methods = three_methods(model, objective, train, curvature)
    browser = ImageBrowser(model, objective, index, digits.train, digits.queries, curvatures=methods)
    for name, value in CONTROLS.items():
        timed(f"browser: another {name}", lambda: setattr(getattr(browser, name), "value", value))  # noqa: B023
    timed("browser: a click on a card", lambda: browser.ask_back(17))
    sheet = DrawDigit(model, objective, index, digits.train, curvatures=methods)
    timed("a drawing as the model reads it", lambda: as_mnist(ink_of_strokes(SEVEN)))
    timed("a drawing, 4,500 digits", lambda: sheet.draw(SEVEN))
    timed("a drawing, 60,000 digits", by_sixty_thousand(model, digits))
    print(f"{TEXTS} texts of {CHARACTERS} characters in the page {drawn_in_page():8.0f} ms")


def by_sixty_thousand(model: torch.nn.Module, digits: DigitData) -> Callable[[], object]:
    """The shipped digits over and over, in float32, stand for all of MNIST."""
    many = digits.train[np.arange(60_000) % len(digits.train)]
    single = deepcopy(model).float()
    curvature = ekfac(single, CrossEntropy(), digits.train.batches())
    index = TrainIndex.build(single, CrossEntropy(), many.batches(2000), curvature)
    sheet = DrawDigit(single, CrossEntropy(), index, many)
    return lambda: sheet.draw(SEVEN)


def drawn_in_page() -> float:
    """Milliseconds in which Chromium draws the list of texts, each character coloured otherwise than the one before."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = os.environ.get("CHROMIUM", "/usr/bin/chromium")
        page = playwright.chromium.launch(executable_path=Path(chromium), args=["--no-sandbox"]).new_page()
        return float(page.evaluate(PAGE, [Passages._esm, passages()]))


def passages() -> list[dict[str, object]]:
    """What the list of texts is given to draw."""
    pieces, steps = ("a",) * CHARACTERS, tuple(k % 15 - 7 for k in range(CHARACTERS))
    texts = (pieces, pieces, steps, ("+1.0",) * CHARACTERS)  # as shown, by name, shades, numbers
    one = HeatedText(0, "+1.0", 1.0, True, "line 1", *texts, "a" * CHARACTERS, "before", "after", "first of a hundred")
    return [vars(one) for _ in range(TEXTS)]


def timed(what: str, act: Callable[[], object]) -> object:
    """Do it, and say what it cost."""
    with Cost() as cost:
        result = act()
    print(f"{what:36} {cost.cpu_s:8.2f} CPU-s {cost.wall_s:8.2f} s", flush=True)
    return result


if __name__ == "__main__":
    os.environ["TQDM_DISABLE"] = "1"
    main()
