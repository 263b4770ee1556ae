"""A row of words to choose from, each a button; arrow keys go from one to the next.

Once one is chosen the focus is back in the box that was typed in, so that typing goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import anywidget
import traitlets

_ESM = """
function render({ model, el }) {
  const row = document.createElement("div");
  row.className = "inflib-chips";
  row.setAttribute("role", "group");
  let box;  // the one that was typed in last
  const remember = event => { if (event.target.matches("textarea, input[type=text]")) box = event.target; };
  const chip = word => {
    const button = document.createElement("button");
    Object.assign(button, { type: "button", className: "inflib-chip", textContent: word });
    button.setAttribute("data-lm-suppress-shortcuts", "true");
    button.addEventListener("click", () => { box?.focus(); model.send({ chosen: word }); });
    return button;
  };
  const draw = () => {
    const inside = row.contains(document.activeElement);
    const lead = Object.assign(document.createElement("span"), { textContent: model.get("label") });
    row.setAttribute("aria-label", model.get("label"));
    row.replaceChildren(...model.get("words").length ? [lead, ...model.get("words").map(chip)] : []);
    if (inside) (row.querySelector("button") ?? box)?.focus();
  };
  row.addEventListener("keydown", event => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const chips = [...row.querySelectorAll("button")];
    chips[chips.indexOf(document.activeElement) + step]?.focus();
  });
  document.addEventListener("focusin", remember);
  model.on("change:words", draw);
  model.on("change:label", draw);
  draw();
  el.append(row);
  return () => {
    document.removeEventListener("focusin", remember);
    model.off("change:words", draw);
    model.off("change:label", draw);
  };
}
export default { render };
"""

_CSS = """
.inflib-chips { display: flex; flex-wrap: wrap; gap: 4px; align-items: baseline; font-size: 12px;
  color: var(--jp-ui-font-color2, #555); }
.inflib-chip { font: inherit; padding: 1px 8px; border: 1px solid var(--jp-border-color1, #bbb); border-radius: 10px;
  color: var(--jp-ui-font-color1, #222); background: var(--jp-layout-color1, #fff); cursor: pointer; }
.inflib-chip:hover { background: var(--jp-layout-color2, #eee); }
"""


class Chips(anywidget.AnyWidget):
    """Words in a row; ``on_choose`` is told the one that was clicked."""

    _esm = _ESM
    _css = _CSS
    label = traitlets.Unicode().tag(sync=True)  # what they are, said in front of them
    words: traitlets.List[str] = traitlets.List(traitlets.Unicode()).tag(sync=True)

    def show(self, words: Sequence[str], label: str) -> None:
        """Offer these words in place of those there were; none is an empty row."""
        with self.hold_sync():
            self.label = label
            self.words = list(words)

    def on_choose(self, handler: Callable[[str], Any]) -> None:
        """Call ``handler(word)`` for every word that is chosen."""
        self.on_msg(lambda _widget, content, _buffers: handler(content["chosen"]) if "chosen" in content else None)
