"""Passages of text with a heatmap over their tokens; the pointer, or the arrow keys, say what each token adds.

A click on a text chooses it, and so does the button beside its place.

The piece of the text browser that core ipywidgets lack. A passage is plain values; what the page draws from it is text
nodes in as few elements as its shades allow, so nothing in a text can become markup, and fifty passages stay light.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import anywidget
import traitlets

from .base import NEGATIVE, POSITIVE
from .heat import heat_css

_ESM = """
const make = (tag, name, text) => {
  const part = document.createElement(tag);
  if (name) part.className = name;
  if (text !== undefined) part.textContent = text;
  return part;
};

// how many characters in front of a word are no part of it
const blank = piece => Number(piece.length > 1 && piece.startsWith(" "));

// the text of a passage: one element for each run of tokens of one shade
function heat(item) {
  const text = make("p", "inflib-heat");
  text.dir = "auto";
  for (let at = 0; at < item.pieces.length; ) {
    let end = at + 1;
    while (end < item.pieces.length && item.steps[end] === item.steps[at]) end++;
    const step = item.steps[at], gap = blank(item.pieces[at]), run = item.pieces.slice(at, end).join("").slice(gap);
    text.append(" ".repeat(gap), step ? make("span", (step > 0 ? "p" : "m") + Math.abs(step), run) : run);
    at = end;
  }
  return text;
}

// the neighbours of a passage in the corpus, folded away
function context(item) {
  const more = make("details", "inflib-context"), where = make("summary", "", item.place);
  where.title = "shows it among its neighbours";
  where.tabIndex = -1;
  where.setAttribute("data-lm-suppress-shortcuts", "true");
  const around = make("div", "inflib-around");
  around.dir = "auto";
  around.append(make("div", "", item.before), make("div", "inflib-itself", item.text), make("div", "", item.after));
  more.append(where, around);
  return more;
}

// what a click on the text does, for the keyboard
function choice(item, send) {
  const button = make("button", "inflib-choice", "make it the question");
  button.type = "button";
  button.tabIndex = -1;
  button.setAttribute("data-lm-suppress-shortcuts", "true");
  button.addEventListener("click", () => send(item.key));
  return button;
}

function passage(item, send) {
  const row = make("div", "inflib-passage " + (item.positive ? "inflib-plus" : "inflib-minus"));
  row.dataset.key = item.key;
  row.tabIndex = -1;
  row.setAttribute("role", "group");
  row.setAttribute("aria-label", item.spoken);
  row.setAttribute("data-lm-suppress-shortcuts", "true");
  const side = make("div", "inflib-side"), track = make("span", "inflib-track"), bar = make("span", "inflib-bar");
  bar.style.width = `${Math.max(2, 100 * item.share)}%`;
  track.append(bar);
  side.append(make("span", "inflib-number", item.number), track);
  const main = make("div", "inflib-main");
  const text = heat(item), foot = make("div", "inflib-foot");
  text.addEventListener("click", () => { if (getSelection().isCollapsed) send(item.key); });
  foot.append(context(item), choice(item, send));
  main.append(text, foot);
  row.append(side, main);
  return row;
}

// where in the text the characters [from, to) are: a Range over its text nodes
function range(text, from, to) {
  const found = document.createRange(), walk = document.createTreeWalker(text, NodeFilter.SHOW_TEXT);
  let at = 0, begun = false;
  for (let node; (node = walk.nextNode()); at += node.length) {
    if (!begun && from < at + node.length) { found.setStart(node, from - at); begun = true; }
    if (begun && to <= at + node.length) { found.setEnd(node, to - at); break; }
  }
  return found;
}

// which character of the text is under the pointer; −1 for none
function under(text, event) {
  let node, offset;
  if (document.caretPositionFromPoint) {
    const caret = document.caretPositionFromPoint(event.clientX, event.clientY);
    [node, offset] = [caret?.offsetNode, caret?.offset];
  } else {
    const caret = document.caretRangeFromPoint(event.clientX, event.clientY);
    [node, offset] = [caret?.startContainer, caret?.startOffset];
  }
  if (node?.nodeType !== Node.TEXT_NODE || !text.contains(node)) return -1;
  const before = document.createRange();
  before.setStart(text, 0);
  before.setEnd(node, offset);
  const at = before.toString().length;  // a caret stands between two characters: either may be the one
  for (const k of [at, at - 1]) {
    for (const box of k < 0 ? [] : range(text, k, k + 1).getClientRects()) {
      const inside = box.left <= event.clientX && event.clientX < box.right;
      if (inside && box.top <= event.clientY && event.clientY < box.bottom) return k;
    }
  }
  return -1;
}

function render({ model, el }) {
  const root = make("div", "inflib-passages"), tip = make("div", "inflib-tip"), frame = make("div", "inflib-frame");
  const spoken = make("div", "inflib-spoken");
  spoken.setAttribute("aria-live", "polite");
  tip.setAttribute("role", "tooltip");
  root.setAttribute("role", "group");
  let items = [], shown = { row: -1, token: -1 };

  const rows = () => [...root.querySelectorAll(".inflib-passage")];
  const hide = () => {
    shown = { row: -1, token: -1 };
    tip.style.display = frame.style.display = "none";
  };
  // put the frame round a token and its number beside it
  const point = (row, token) => {
    if (shown.row === row && shown.token === token) return;
    shown = { row, token };
    const item = items[row], text = rows()[row].querySelector(".inflib-heat");
    const start = item.pieces.slice(0, token).join("").length, here = root.getBoundingClientRect();
    const box = range(text, start + blank(item.pieces[token]), start + item.pieces[token].length).getClientRects()[0];
    if (!box) return hide();
    frame.style.cssText = `display:block;left:${box.left - here.left}px;top:${box.top - here.top}px;`
      + `width:${box.width}px;height:${box.height}px`;
    tip.replaceChildren(make("span", "inflib-token", item.names[token]), make("b", "", item.numbers[token]));
    tip.style.cssText = "display:block";
    const left = Math.min(box.left - here.left, here.width - tip.offsetWidth - 2);
    tip.style.cssText = `display:block;left:${Math.max(0, left)}px;top:${box.bottom - here.top + 3}px`;
  };
  const enter = (row) => {
    rows().forEach((one, k) => {
      one.tabIndex = k === row ? 0 : -1;
      one.querySelectorAll("summary, button").forEach(part => { part.tabIndex = k === row ? 0 : -1; });
    });
  };
  const draw = () => {
    const focused = rows().findIndex(row => row.contains(document.activeElement));
    items = model.get("passages");
    root.setAttribute("aria-label", model.get("label"));
    root.replaceChildren(...items.map(item => passage(item, key => model.send({ chosen: key }))), frame, tip, spoken);
    hide();
    enter(Math.max(0, Math.min(focused, items.length - 1)));
    if (focused >= 0) rows()[Math.min(focused, items.length - 1)]?.focus();
  };

  root.addEventListener("mousemove", event => {
    const text = event.target.closest(".inflib-heat");
    const at = text ? under(text, event) : -1;
    if (at < 0) return hide();
    const row = rows().indexOf(text.closest(".inflib-passage"));
    let token = 0;
    for (let end = items[row].pieces[0].length; end <= at; end += items[row].pieces[token].length) token++;
    point(row, token);
  });
  root.addEventListener("mouseleave", hide);
  root.addEventListener("focusout", event => event.target.matches(".inflib-passage") && hide());
  root.addEventListener("focusin", event => {
    const row = rows().indexOf(event.target.closest(".inflib-passage"));
    if (row >= 0) enter(row);
  });
  root.addEventListener("keydown", event => {
    const row = rows().indexOf(event.target);
    if (row < 0) return;
    const last = items[row].pieces.length - 1, here = shown.row === row ? shown.token : -1;
    const down = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    const side = { ArrowRight: Math.min(here + 1, last), ArrowLeft: Math.max(here - 1, 0), Home: 0, End: last };
    const to = side[event.key];
    if (down) rows()[row + down]?.focus();
    else if (to !== undefined) {
      point(row, to);
      spoken.textContent = `${items[row].names[to]}: ${items[row].numbers[to]}`;
    } else if (event.key === "Enter") {
      const more = rows()[row].querySelector("details");
      more.open = !more.open;
      hide();
    } else if (event.key === "Escape") hide();
    else return;
    event.preventDefault();
  });
  model.on("change:passages", draw);
  draw();
  el.append(root);
  return () => model.off("change:passages", draw);
}
export default { render };
"""

_CSS = f"""
.inflib-passages {{ position: relative; margin: 4px 0 14px; --inflib-plus: {POSITIVE}; --inflib-minus: {NEGATIVE}; }}
body[data-jp-theme-light="false"] .inflib-passages {{ --inflib-plus: #f58231; --inflib-minus: #46aef0; }}
.inflib-passage {{ display: grid; grid-template-columns: 84px 1fr; column-gap: 14px; padding: 6px 4px 5px;
  border-top: 1px solid var(--jp-border-color3, #e4e4e4); }}
.inflib-passages .inflib-passage:focus-visible {{ outline: 2px solid var(--jp-brand-color1, #1976d2);
  outline-offset: -2px; }}
.inflib-side {{ text-align: right; padding-top: 2px; }}
.inflib-side .inflib-number {{ font-size: 12px; font-weight: 600; font-variant-numeric: tabular-nums; }}
.inflib-side .inflib-track {{ display: block; width: 100%; height: 4px; margin: 3px 0;
  background: var(--jp-layout-color3, #ddd); }}
.inflib-side .inflib-bar {{ display: block; height: 100%; }}
.inflib-plus .inflib-bar {{ background: {POSITIVE}; }}
.inflib-minus .inflib-bar {{ background: {NEGATIVE}; margin-left: auto; }}
.inflib-heat {{ margin: 0; font-size: 14px; line-height: 1.65; white-space: pre-wrap; overflow-wrap: anywhere;
  color: var(--jp-ui-font-color0, #000); cursor: pointer; }}
.inflib-heat span {{ text-decoration-thickness: 2px; text-underline-offset: 3px; text-decoration-skip-ink: none;
  padding: 1px 0; }}
{heat_css(".inflib-heat")}
.inflib-foot {{ display: flex; flex-wrap: wrap; gap: 0 14px; align-items: baseline; }}
.inflib-context[open] {{ flex-basis: 100%; }}
.inflib-choice {{ font: inherit; font-size: 11px; padding: 0; border: 0; background: none; cursor: pointer;
  color: var(--jp-content-link-color, #0057b8); }}
.inflib-choice:hover {{ text-decoration: underline; }}
.inflib-context {{ font-size: 11px; color: var(--jp-ui-font-color2, #555); margin-top: 1px; }}
.inflib-context summary {{ cursor: pointer; }}
.inflib-main, .inflib-context {{ min-width: 0; max-width: 100%; overflow-wrap: anywhere; }}
.inflib-context summary:hover {{ text-decoration: underline; }}
.inflib-around {{ margin: 4px 0 6px; padding-left: 10px; border-left: 2px solid var(--jp-border-color2, #ccc);
  font-size: 13px; line-height: 1.5; white-space: pre-wrap; overflow-wrap: anywhere;
  max-height: 240px; overflow: auto; }}
.inflib-itself {{ font-weight: 600; color: var(--jp-ui-font-color0, #000); }}
.inflib-frame {{ display: none; position: absolute; pointer-events: none; box-sizing: border-box;
  border: 1px solid var(--jp-ui-font-color1, #222); border-radius: 2px; }}
.inflib-tip {{ display: none; position: absolute; z-index: 5; pointer-events: none; white-space: nowrap;
  font-size: 12px; padding: 2px 8px; border-radius: 3px; color: var(--jp-layout-color0, #fff);
  background: var(--jp-ui-font-color0, #111); font-variant-numeric: tabular-nums; }}
.inflib-token {{ margin-right: 8px; opacity: 0.8; }}
"""


@dataclass(frozen=True)
class HeatedText:
    """What one passage shows."""

    key: int
    number: str
    share: float  # of the longest bar, 0 to 1
    positive: bool
    place: str
    pieces: tuple[str, ...]  # the text of each token, as shown
    names: tuple[str, ...]  # of each token by itself
    steps: tuple[int, ...]  # its shade, −7 to 7
    numbers: tuple[str, ...]  # its influence
    text: str  # the whole, with its line breaks
    before: str  # the text before it in the corpus, and after it
    after: str
    spoken: str  # read by a screen reader before the text


class Passages(anywidget.AnyWidget):
    """Heated passages, one under the other; ``on_choose`` is told the key of the one that was clicked."""

    _esm = _ESM
    _css = _CSS
    label = traitlets.Unicode().tag(sync=True)  # what the list is, for screen readers
    passages: traitlets.List[Any] = traitlets.List().tag(sync=True)

    def show(self, passages: Sequence[HeatedText], label: str) -> None:
        """Draw these passages in place of those there were."""
        with self.hold_sync():
            self.label = label
            self.passages = [vars(passage) for passage in passages]

    def on_choose(self, handler: Callable[[int], Any]) -> None:
        """Call ``handler(key)`` for every passage that is chosen."""
        self.on_msg(lambda _widget, content, _buffers: handler(content["chosen"]) if "chosen" in content else None)
