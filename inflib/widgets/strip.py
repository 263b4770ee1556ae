"""A strip of pictures that can be chosen with a click or with Enter and Space; arrow keys go from one to the next.

The one piece of the image browser that core ipywidgets lack. A card is plain values; what the browser draws from it
is text nodes and one ``img``, so nothing in a card can become markup.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import anywidget
import traitlets

from .base import NEGATIVE, POSITIVE

_ESM = """
function card(item, send) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "inflib-card " + (item.positive ? "inflib-plus" : "inflib-minus");
  button.dataset.key = item.key;
  button.title = item.tip;
  button.setAttribute("aria-label", item.spoken);
  // JupyterLab's own keys (d d deletes the cell) mean nothing on what has this; its parents do not count
  button.setAttribute("data-lm-suppress-shortcuts", "true");
  button.addEventListener("click", () => send(item.key));
  const image = document.createElement("img");
  image.src = item.picture;
  image.alt = "";
  const number = document.createElement("span");
  number.className = "inflib-number";
  number.textContent = item.number;
  const track = document.createElement("span");
  track.className = "inflib-track";
  const bar = document.createElement("span");
  bar.className = "inflib-bar";
  bar.style.width = `${Math.max(2, 100 * item.share)}%`;
  track.append(bar);
  button.append(image, number, track);
  for (const line of item.lines) {
    const caption = document.createElement("span");
    caption.className = "inflib-line" + (line.strong ? " inflib-strong" : "");
    caption.textContent = line.text;
    button.append(caption);
  }
  return button;
}

function render({ model, el }) {
  const strip = document.createElement("div");
  strip.className = "inflib-strip";
  strip.setAttribute("role", "group");
  const draw = () => {
    const focused = [...strip.children].indexOf(document.activeElement);
    strip.setAttribute("aria-label", model.get("label"));
    strip.replaceChildren(...model.get("cards").map(item => card(item, key => model.send({ chosen: key }))));
    if (focused >= 0) strip.children[Math.min(focused, strip.children.length - 1)]?.focus();
  };
  strip.addEventListener("keydown", event => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const cards = [...strip.children];
    cards[cards.indexOf(document.activeElement) + step]?.focus();
  });
  model.on("change:cards", draw);
  model.on("change:label", draw);
  draw();
  el.append(strip);
  return () => { model.off("change:cards", draw); model.off("change:label", draw); };
}
export default { render };
"""

_CSS = f"""
.inflib-strip {{ display: grid; grid-template-columns: repeat(auto-fill, 73px); gap: 6px; min-height: 20px;
  margin: 4px 0 10px; }}
.inflib-card {{ display: flex; flex-direction: column; align-items: center; padding: 5px 3px 4px;
  color: var(--jp-ui-font-color1, #222); background: var(--jp-layout-color1, #fff); font: inherit; font-size: 11px;
  line-height: 1.35; border: 1px solid var(--jp-border-color2, #ccc); border-radius: 3px; cursor: pointer; }}
.inflib-card:hover {{ background: var(--jp-layout-color2, #eee); }}
.inflib-card:focus-visible {{ outline: 2px solid var(--jp-brand-color1, #1976d2); outline-offset: 1px; }}
.inflib-card img {{ width: 56px; height: 56px; }}
.inflib-number {{ font-size: 11px; font-weight: 600; font-variant-numeric: tabular-nums; margin-top: 3px;
  white-space: nowrap; }}
.inflib-track {{ display: block; width: 100%; height: 5px; margin: 2px 0 3px;
  background: var(--jp-layout-color3, #ddd); }}
.inflib-bar {{ display: block; height: 100%; }}
.inflib-plus .inflib-bar {{ background: {POSITIVE}; }}
.inflib-minus .inflib-bar {{ background: {NEGATIVE}; margin-left: auto; }}
.inflib-line {{ white-space: nowrap; color: var(--jp-ui-font-color2, #555); }}
.inflib-strong {{ font-weight: 700; color: var(--jp-ui-font-color0, #000); }}
"""


@dataclass(frozen=True)
class Line:
    """One line of a card's caption."""

    text: str
    strong: bool = False


@dataclass(frozen=True)
class Card:
    """What one picture of a strip shows, and the key by which it is chosen."""

    key: int
    picture: str  # a data: address
    number: str
    share: float  # of the longest bar, 0 to 1
    positive: bool
    lines: tuple[Line, ...]
    tip: str  # shown under the pointer
    spoken: str  # read by a screen reader in place of all the rest


class Strip(anywidget.AnyWidget):
    """Cards in a row; ``on_choose`` is told the key of the one that was clicked."""

    _esm = _ESM
    _css = _CSS
    label = traitlets.Unicode().tag(sync=True)  # what the strip is, for screen readers
    cards: traitlets.List[Any] = traitlets.List().tag(sync=True)

    def show(self, cards: Sequence[Card], label: str) -> None:
        """Draw these cards in place of those there were."""
        with self.hold_sync():
            self.label = label
            self.cards = [asdict(card) for card in cards]

    def on_choose(self, handler: Callable[[int], Any]) -> None:
        """Call ``handler(key)`` for every card that is chosen."""
        self.on_msg(lambda _widget, content, _buffers: handler(content["chosen"]) if "chosen" in content else None)
