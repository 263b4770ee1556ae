"""The desk of a review: one example with its label, what speaks against it, and three buttons with keys.

K keeps the label, R gives the one beside the button, X removes the example, U takes the last decision back, the left
and right arrows go on without deciding; a digit chooses the class of that name. Every message names the example that
was on show when the key was pressed, so that nobody decides about one unseen, however fast he types. All that is shown
arrives as text nodes and ``img``, so nothing in an example can become markup.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anywidget
import traitlets

from .base import NEGATIVE

_ESM = """
function make(tag, className, properties = {}, attributes = {}) {
  const element = Object.assign(document.createElement(tag), { className }, properties);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}
const GUARD = { "data-lm-suppress-shortcuts": "true" };  // JupyterLab's own keys (x cuts the cell) mean nothing here

function show(item, className) {
  if (item.text === undefined)
    return make("img", className + (item.colour ? " inflib-colour" : ""), { src: item.picture, alt: "" });
  return make("div", className + " inflib-document", { textContent: item.text });
}

function opponent(item, send) {
  const button = make("button", "inflib-opponent" + (item.text === undefined ? "" : " inflib-wide"),
    { type: "button", title: `shows ${item.name}` }, { ...GUARD, "aria-label": item.spoken });
  button.dataset.key = item.key;
  button.addEventListener("click", () => send("show", { of: item.key }));
  const track = make("span", "inflib-against"), bar = make("span", "");
  bar.style.width = `${Math.max(2, 100 * item.share)}%`;
  track.append(bar);
  button.append(show(item, "inflib-small"), make("span", "inflib-strong", { textContent: item.label }), track);
  return button;
}

function render({ model, el }) {
  const desk = make("div", "inflib-desk", { tabIndex: 0 },
    { ...GUARD, role: "group", "aria-label": "Example under review" });
  const said = make("div", "inflib-spoken", {}, { role: "status" });
  const view = make("div", "inflib-case"), buttons = make("div", "inflib-verdicts");
  const select = make("select", "", {}, { ...GUARD, "aria-label": "Class to relabel to" });
  const card = () => model.get("card");
  const send = (action, more = {}) => card().key >= 0 || action === "undo"
    ? model.send({ action, key: card().key, label: action === "relabel" ? Number(select.value) : null, ...more })
    : null;
  const button = (text, key, action) => {
    const made = make("button", "jupyter-button inflib-verdict", { type: "button", title: `key ${key}` },
      { ...GUARD, "data-action": action });
    made.append(make("span", "", { textContent: text }), make("kbd", "", { textContent: key }));
    made.addEventListener("click", () => { send(action); desk.focus({ preventScroll: true }); });
    return made;
  };
  const relabel = make("span", "inflib-pair");
  relabel.append(button("Relabel to", "R", "relabel"), select);
  buttons.append(button("Keep", "K", "keep"), relabel, button("Remove", "X", "remove"), button("Undo", "U", "undo"),
    button("Back", "←", "previous"), button("Skip", "→", "next"));
  const KEYS = { k: "keep", r: "relabel", x: "remove", delete: "remove", u: "undo", arrowleft: "previous",
    arrowright: "next" };
  desk.addEventListener("keydown", event => {
    const key = event.key.toLowerCase(), command = event.ctrlKey || event.metaKey;
    if (event.target === select) {  // which keeps its own keys, but for these two
      if (key === "enter") { event.preventDefault(); send("relabel"); desk.focus({ preventScroll: true }); }
      if (key === "escape") desk.focus({ preventScroll: true });
      return;
    }
    if (event.altKey || (command && key !== "z")) return;
    const action = command ? "undo" : KEYS[key];
    const named = [...select.options].find(option => option.text === event.key);
    if (!action && !named) return;
    event.preventDefault();
    event.stopPropagation();
    if (event.repeat && action !== "next" && action !== "previous") return;  // a key held down decides once
    if (action) { send(action); return; }
    select.value = named.value;
    said.textContent = `relabel to ${named.text}`;
  });
  const draw = () => {
    const item = card(), held = desk.contains(document.activeElement);
    view.replaceChildren();
    rebuild(item);
    // what had the focus may be gone: the next key would be JupyterLab's
    if (held && !document.activeElement?.closest(".inflib-desk")?.isSameNode(desk)) desk.focus({ preventScroll: true });
  };
  const rebuild = item => {
    if (item.key < 0) { view.append(make("div", "inflib-quiet", { textContent: item.empty })); return; }
    const left = make("div", "inflib-subject"), right = make("div", "inflib-rest");
    left.append(show(item, "inflib-large"));
    const facts = make("div", "inflib-facts");
    facts.append(make("div", "inflib-heading", { textContent: item.name }));
    for (const [what, value] of item.lines) {
      const line = make("div", "");
      line.append(make("span", "inflib-quiet", { textContent: what + " " }), make("b", "", { textContent: value }));
      facts.append(line);
    }
    if (item.decided) facts.append(make("div", "inflib-decided", { textContent: item.decided }));
    left.append(facts);
    right.append(make("div", "inflib-heading", { textContent: item.heading }),
      make("div", "inflib-quiet", { textContent: item.note }));
    const strip = make("div", "inflib-opponents");
    strip.append(...item.opponents.map(one => opponent(one, send)));
    right.append(strip);
    view.append(left, right);
    select.replaceChildren(...item.classes.map(([name, value]) => make("option", "", { textContent: name, value })));
    select.value = String(item.target);
    for (const part of view.querySelectorAll(".inflib-large.inflib-document"))
      for (const [name, value] of Object.entries({ ...GUARD, tabindex: "0", "aria-label": "the text" }))
        part.setAttribute(name, value);
    said.textContent = item.spoken;
  };
  model.on("change:card", draw);
  draw();
  const help = make("div", "inflib-quiet inflib-help", { textContent: "Click here or tab to it, then decide by keys: " +
    "K keep, R relabel, X remove, U undo, arrows go on. A digit chooses the class of that name." });
  desk.append(view, buttons, help, said);
  el.append(desk);
  return () => model.off("change:card", draw);
}
export default { render };
"""

_CSS = f"""
.inflib-desk {{ border: 1px solid var(--jp-border-color2, #ccc); border-radius: 3px; padding: 10px; margin: 6px 3px; }}
.inflib-desk:focus {{ outline: 2px solid var(--jp-brand-color1, #1976d2); outline-offset: 1px; }}
.inflib-case {{ display: flex; flex-wrap: wrap; gap: 10px 24px; min-height: 40px; }}
.inflib-desk .inflib-subject {{ flex: 1 1 250px; max-width: 420px; }}
.inflib-rest {{ flex: 2 1 300px; min-width: 0; }}
.inflib-large {{ max-width: 100%; }}
img.inflib-large {{ width: 140px; height: auto; }}
.inflib-document {{ white-space: pre-wrap; overflow-wrap: anywhere; }}
.inflib-large.inflib-document {{ max-height: 220px; overflow: auto; padding: 6px 8px; font-size: 14px;
  background: var(--jp-layout-color2, #eee); }}
.inflib-decided {{ font-weight: 600; border-left: 4px solid var(--jp-brand-color1, #1976d2); padding-left: 8px;
  margin-top: 4px; }}
.inflib-opponents {{ display: flex; flex-wrap: wrap; gap: 6px; margin: 4px 0; }}
.inflib-opponent {{ display: flex; flex-direction: column; align-items: center; width: 73px; padding: 5px 3px 4px;
  color: var(--jp-ui-font-color1, #222); background: var(--jp-layout-color1, #fff); font: inherit; font-size: 11px;
  border: 1px solid var(--jp-border-color2, #ccc); border-radius: 3px; cursor: pointer; overflow-wrap: anywhere; }}
.inflib-opponent:hover {{ background: var(--jp-layout-color2, #eee); }}
.inflib-opponent.inflib-wide {{ width: 100%; align-items: flex-start; text-align: left; padding: 5px 8px; }}
.inflib-small.inflib-document {{ max-height: 3.9em; overflow: hidden; font-size: 12px; line-height: 1.3; }}
img.inflib-small {{ width: 56px; height: auto; }}
.inflib-against {{ display: block; width: 100%; height: 5px; margin-top: 2px;
  background: var(--jp-layout-color3, #ddd); }}
.inflib-against span {{ display: block; height: 100%; margin-left: auto; background: {NEGATIVE}; }}
.inflib-verdicts {{ display: flex; flex-wrap: wrap; gap: 6px 8px; margin: 10px 0 6px; align-items: center; }}
.inflib-verdict {{ flex: none; padding: 0 12px; height: 30px; line-height: 28px; width: auto;
  color: var(--jp-ui-font-color1, #222);
  background: var(--jp-layout-color2, #eee); border: 1px solid var(--jp-border-color1, #bbb); border-radius: 3px;
  font: inherit; cursor: pointer; }}
.inflib-verdict kbd {{ margin-left: 8px; font-size: 11px; color: var(--jp-ui-font-color2, #555); }}
.inflib-pair {{ display: inline-flex; flex-wrap: wrap; gap: 3px; align-items: center; max-width: 100%; }}
.inflib-pair select {{ height: 30px; max-width: min(220px, 100%); min-width: 60px; font: inherit;
  color: var(--jp-ui-font-color1, #222);
  background: var(--jp-layout-color1, #fff); border: 1px solid var(--jp-border-color1, #bbb); }}
"""


class Desk(anywidget.AnyWidget):
    """Shows one ``card``; ``on_act`` is told what somebody did about it."""

    _esm = _ESM
    _css = _CSS
    card: traitlets.Dict[str, Any] = traitlets.Dict({"key": -1, "empty": ""}).tag(sync=True)

    def on_act(self, handler: Callable[[str, int, Any], Any]) -> None:
        """Call ``handler(action, example, label)``; for "show" the example is the one to be shown."""

        def told(_widget: Any, content: dict[str, Any], _buffers: Any) -> None:
            if "action" in content:
                handler(content["action"], content.get("of", content["key"]), content.get("label"))

        self.on_msg(told)
