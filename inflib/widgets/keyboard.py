"""What ipywidgets' controls lack for somebody without a mouse, or without sight; every panel holds it.

Sliders get their label as a name, toggle buttons say which is pressed, and JupyterLab's single-key commands (d d
deletes the cell) mean nothing while a control has the focus. JupyterLab takes panels out of the page and puts them
back as it scrolls, and restores them in its own time when the page is loaded anew: an element of its own is told by
the browser whenever it comes into the page.
"""

from __future__ import annotations

import anywidget

_ESM = """
const set = (part, key, value) => part.getAttribute(key) !== value && part.setAttribute(key, value);
function tell(panel) {
  panel.querySelectorAll("button, input, textarea, select, .noUi-handle").forEach(
    control => set(control, "data-lm-suppress-shortcuts", "true"));
  for (const control of panel.querySelectorAll(".widget-slider, .widget-toggle-buttons")) {
    const name = control.querySelector(".widget-label")?.textContent ?? "";
    control.querySelectorAll(".noUi-handle, .widget-readout").forEach(part => set(part, "aria-label", name));
    if (!control.matches(".widget-toggle-buttons")) continue;
    set(control, "role", "group");
    set(control, "aria-label", name);
    control.querySelectorAll("button").forEach(
      button => set(button, "aria-pressed", String(button.classList.contains("mod-active"))));
  }
}
// in a box of several lines Enter is a new line, and Ctrl-Enter presses the panel's primary button
function press(event) {
  if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey) || !event.target.matches("textarea")) return;
  event.preventDefault();
  event.currentTarget.querySelector(".mod-primary")?.click();
}
class Keyboard extends HTMLElement {
  connectedCallback() {
    this.panel = this.parentElement.parentElement;  // which need not have got its class yet
    tell(this.panel);
    this.panel.addEventListener("keydown", press, true);  // a box of several lines keeps its keys to itself
    this.observer = new MutationObserver(() => tell(this.panel));
    this.observer.observe(this.panel, { childList: true, subtree: true, attributes: true, attributeFilter: ["class"] });
  }
  disconnectedCallback() {
    this.observer.disconnect();
    this.panel.removeEventListener("keydown", press, true);
  }
}
if (!customElements.get("inflib-keyboard")) customElements.define("inflib-keyboard", Keyboard);
export default { render({ el }) { el.append(document.createElement("inflib-keyboard")); } };
"""


class Keyboard(anywidget.AnyWidget):
    """Shows nothing; has to be one of the children of the panel that it serves."""

    _esm = _ESM
