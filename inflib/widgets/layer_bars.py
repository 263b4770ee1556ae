"""Bars by layer, each to be chosen with a click or with Enter and Space; arrow keys go from one to the next."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import anywidget
import traitlets

from .base import NEGATIVE, POSITIVE

LONGEST = 24  # characters of a name that the chart has room for

_ESM = """
const make = (tag, name, text) => {
  const part = document.createElement(tag);
  part.className = name;
  if (text !== undefined) part.textContent = text;
  return part;
};

function half(name, share, text) {
  const side = make("span", "inflib-half " + name), bar = make("span", "inflib-bar");
  bar.style.width = `${100 * share}%`;
  side.append(bar, make("span", "inflib-percent", text));
  return side;
}

function row(item, send) {
  const button = make("button", "inflib-layer" + (item.chosen ? " inflib-chosen" : ""));
  button.type = "button";
  button.title = item.tip;
  button.setAttribute("aria-label", item.spoken);
  button.setAttribute("aria-pressed", String(item.chosen));
  button.setAttribute("data-lm-suppress-shortcuts", "true");
  button.addEventListener("click", () => send(item.name));
  button.append(make("span", "inflib-name", item.label), half("inflib-down", item.down, item.down_text),
    half("inflib-up", item.up, item.up_text));
  return button;
}

function render({ model, el }) {
  const chart = make("div", "inflib-layers");
  chart.setAttribute("role", "group");
  const draw = () => {
    const focused = [...chart.children].indexOf(document.activeElement);
    chart.setAttribute("aria-label", model.get("label"));
    chart.classList.toggle("inflib-filtered", model.get("bars").some(bar => bar.chosen));
    chart.replaceChildren(...model.get("bars").map(item => row(item, name => model.send({ chosen: name }))));
    chart.children[focused]?.focus();
  };
  chart.addEventListener("keydown", event => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const rows = [...chart.children];
    rows[rows.indexOf(document.activeElement) + step]?.focus();
  });
  model.on("change:bars", draw);
  draw();
  el.append(chart);
  return () => model.off("change:bars", draw);
}
export default { render };
"""

_CSS = f"""
.inflib-layers {{ display: grid; gap: 1px; margin: 4px 0; }}
.inflib-layer {{ display: grid; grid-template-columns: 122px 1fr 1fr; align-items: center;
  padding: 2px 4px; border: 0; border-radius: 3px; background: none;
  color: var(--jp-ui-font-color1, #222); font: inherit; font-size: 11px; line-height: 1.35; cursor: pointer;
  text-align: left; }}
.inflib-layer:hover {{ background: var(--jp-layout-color2, #eee); }}
.inflib-layers .inflib-layer:focus-visible {{ outline: 2px solid var(--jp-brand-color1, #1976d2);
  outline-offset: -1px; }}
.inflib-filtered .inflib-layer {{ opacity: 0.55; }}
.inflib-filtered .inflib-chosen {{ opacity: 1; background: var(--jp-layout-color2, #eee); font-weight: 600; }}
.inflib-name {{ white-space: nowrap; overflow: hidden; text-overflow: ellipsis; }}
.inflib-half {{ display: flex; align-items: center; gap: 4px; height: 14px; }}
.inflib-half .inflib-bar {{ display: block; height: 9px; flex: none; }}
.inflib-down {{ flex-direction: row-reverse; border-right: 1px solid var(--jp-border-color1, #bbb); }}
.inflib-down .inflib-bar {{ background: {NEGATIVE}; }}
.inflib-up .inflib-bar {{ background: {POSITIVE}; }}
.inflib-percent {{ font-size: 10px; color: var(--jp-ui-font-color2, #555); font-variant-numeric: tabular-nums; }}
"""


@dataclass(frozen=True)
class LayerBar:
    """One layer's two bars."""

    name: str
    label: str  # the name as it is shown, see ``labels``
    up: float  # length of the bar of positive influence, 0 to 1 of its half
    down: float
    up_text: str
    down_text: str
    chosen: bool
    tip: str  # shown under the pointer
    spoken: str  # read by a screen reader in place of all the rest


def labels(names: Sequence[str]) -> list[str]:
    """Names as they are shown side by side: of long ones, the parts in which they differ, a number after its name.

    Of "model.layers.21.mlp.down_proj" and "model.layers.24.mlp.down_proj": "layers 21" and "layers 24".
    """
    parts = [name.split(".") for name in names]
    if len(parts) < 2 or max(map(len, names)) <= LONGEST or len({len(each) for each in parts}) > 1:
        return list(names)
    differ = [len(set(column)) > 1 for column in zip(*parts, strict=True)]
    first, last = differ.index(True), len(differ) - differ[::-1].index(True)
    if first and parts[0][first].isdigit():
        differ[first := first - 1] = True
    return [_joined(each[first:last], differ[first:last]) for each in parts]


def _joined(parts: Sequence[str], differ: Sequence[bool]) -> str:
    """The parts that differ, and an ellipsis for each run of those that do not."""
    found = [part if own else "…" for part, own in zip(parts, differ, strict=True)]
    return " ".join(part for k, part in enumerate(found) if part != "…" or found[k - 1] != "…")


class LayerBars(anywidget.AnyWidget):
    """Bars, one for each layer; ``on_choose`` is told the name of the one that was clicked."""

    _esm = _ESM
    _css = _CSS
    label = traitlets.Unicode().tag(sync=True)  # what the chart is, for screen readers
    bars: traitlets.List[Any] = traitlets.List().tag(sync=True)

    def show(self, bars: Sequence[LayerBar], label: str) -> None:
        """Draw these bars in place of those there were."""
        with self.hold_sync():
            self.label = label
            self.bars = [asdict(bar) for bar in bars]

    def on_choose(self, handler: Callable[[str], Any]) -> None:
        """Call ``handler(name)`` for every layer that is chosen."""
        self.on_msg(lambda _widget, content, _buffers: handler(content["chosen"]) if "chosen" in content else None)
