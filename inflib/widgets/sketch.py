"""A sheet to draw on, with mouse, pen, finger or keyboard, or to put a picture on. In Python it is ink.

By keyboard: arrow keys move the pen (with Shift in small steps, two together aslant), Space puts it down and lifts it,
Ctrl+Z takes the last change back. A drawing is sent when the pen has been lifted for a moment, never while it is drawn.
Pictures are sent as they are; what is too large is refused before that. Undo knows everything that was on the sheet.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import anywidget
import numpy as np
import traitlets

from ..lab.handwriting import MAX_BYTES, Stroke, ink_of_strokes

_ESM = """
const REST = 200;  // ms that the pen has to be up before the drawing is sent
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

function make(tag, className, properties = {}, attributes = {}) {
  const element = Object.assign(document.createElement(tag), { className }, properties);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

// ink is white where there is none: the panel's style turns canvas and pictures over in a dark theme
function paint(canvas, size, paper, strokes) {
  const context = canvas.getContext("2d");
  context.setTransform(canvas.width / size, 0, 0, canvas.height / size, 0, 0);
  context.fillStyle = "#fff";
  context.fillRect(0, 0, size, size);
  if (paper?.byteLength) {
    const sheet = new OffscreenCanvas(size, size), pixels = new ImageData(size, size);
    for (let n = 0; n < size * size; n++) pixels.data.fill(255 - paper.getUint8(n), 4 * n, 4 * n + 3);
    for (let n = 3; n < pixels.data.length; n += 4) pixels.data[n] = 255;
    sheet.getContext("2d").putImageData(pixels, 0, 0);
    context.drawImage(sheet, 0, 0, size, size);
  }
  context.lineCap = context.lineJoin = "round";
  context.fillStyle = "#000";
  for (const { points, width } of strokes) {
    context.lineWidth = width;
    context.beginPath();
    points.forEach(point => context.lineTo(...point));
    context.stroke();
    context.beginPath();  // a line of no length is not drawn: a dot is
    context.arc(...points[0], width / 2, 0, 2 * Math.PI);
    context.fill();
  }
}

function render({ model, el }) {
  const size = model.get("size");
  const root = make("div", "inflib-sketch"), sheet = make("div", "inflib-sheet");
  const canvas = make("canvas", "", { width: 2 * size, height: 2 * size, tabIndex: 0 }, {
    role: "application", "aria-roledescription": "drawing area", "aria-label": "Drawing area",
    "data-lm-suppress-shortcuts": "true",
  });
  const ring = make("div", "inflib-pen"), hint = make("div", "inflib-hint", { textContent: "draw a digit here" });
  const help = make("div", "inflib-help", { textContent:
    "Keyboard: arrow keys move the pen, Space puts it down and lifts it, Ctrl+Z undoes." });
  help.id = "inflib-help-" + Math.random().toString(36).slice(2);
  canvas.setAttribute("aria-describedby", help.id);
  const said = make("div", "inflib-spoken", {}, { role: "status" });
  const button = text => make("button", "jupyter-button", { type: "button", textContent: text });
  const undo = button("Undo"), clear = button("Clear"), upload = button("Upload a picture");
  const file = make("input", "", { type: "file", accept: "image/png,image/jpeg", hidden: true },
    { "aria-label": "Picture of a digit" });
  const width = make("input", "", { type: "range", min: 8, max: 48, step: 2 }, { "aria-label": "Pen width" });
  const label = make("label", "inflib-width"), readout = make("output", "");
  label.append("Pen width", width, readout);

  let { paper, strokes } = model.get("drawing"), mine, stroke, timer;
  // what undoing would have led to, had the strokes been drawn here
  const steps = ({ paper, strokes }) => strokes.map((_, n) => ({ paper, strokes: strokes.slice(0, n) }));
  const past = steps(model.get("drawing")), held = new Set(), pen = { x: size / 2, y: size / 2 };

  const draw = () => {
    paint(canvas, size, paper, stroke ? [...strokes, stroke] : strokes);
    hint.hidden = Boolean(paper?.byteLength || strokes.length || stroke);
    undo.disabled = !past.length;
    const diameter = model.get("width");
    const share = length => 100 * length / size + "%";  // of the sheet, which a narrow page shows smaller
    Object.assign(ring.style, { width: share(diameter), height: share(diameter),
      left: share(pen.x - diameter / 2), top: share(pen.y - diameter / 2) });
    ring.classList.toggle("inflib-down", Boolean(stroke));
  };
  const send = () => {
    mine = { paper, strokes };
    model.set("drawing", mine);
    model.save_changes();
  };
  const become = (next, words) => {
    ({ paper, strokes } = next);
    said.textContent = words;
    clearTimeout(timer);
    timer = setTimeout(send, REST);
    draw();
  };
  const change = (next, words) => { past.push({ paper, strokes }); become(next, words); };
  const down = () => {
    clearTimeout(timer);
    stroke = { points: [[pen.x, pen.y]], width: model.get("width") };
    draw();
  };
  const move = (x, y) => {
    [pen.x, pen.y] = [x, y].map(v => Math.round(10 * v) / 10);
    const last = stroke?.points.at(-1);
    if (last && Math.hypot(pen.x - last[0], pen.y - last[1]) >= 1) stroke.points.push([pen.x, pen.y]);
    draw();
  };
  const up = () => {
    if (!stroke) return;
    const done = stroke;
    stroke = undefined;
    change({ paper, strokes: [...strokes, done] }, `pen up, strokes drawn: ${strokes.length + 1}`);
  };
  const takeBack = () => past.length && become(past.pop(), "undone");

  const at = event => {
    const box = canvas.getBoundingClientRect();
    return [(event.clientX - box.left) * size / box.width, (event.clientY - box.top) * size / box.height];
  };
  canvas.addEventListener("pointerdown", event => {
    if (!event.isPrimary || event.button) return;
    up();  // a stroke begun by keyboard ends here
    canvas.setPointerCapture(event.pointerId);
    move(...at(event));
    down();
  });
  canvas.addEventListener("pointermove", event => {
    if (!event.isPrimary || !canvas.hasPointerCapture(event.pointerId)) return;
    const all = event.getCoalescedEvents?.() ?? [];
    for (const one of all.length ? all : [event]) move(...at(one));
  });
  for (const kind of ["pointerup", "pointercancel"]) canvas.addEventListener(kind, event => event.isPrimary && up());

  canvas.addEventListener("keydown", event => {
    if (event.key in ARROWS) {
      held.add(event.key);
      const step = event.shiftKey ? 2 : 10;
      const [dx, dy] = [0, 1].map(axis => [...held].reduce((sum, key) => sum + step * ARROWS[key][axis], 0));
      move(...[pen.x + dx, pen.y + dy].map(v => Math.min(Math.max(v, 0), size)));
    } else if (event.key === " ") {
      if (event.repeat) {} else if (stroke) up(); else { down(); said.textContent = "pen down"; }
    } else if (event.key.toLowerCase() === "z" && (event.ctrlKey || event.metaKey)) {
      up();
      takeBack();
    } else return;
    event.preventDefault();
    event.stopPropagation();
  });
  canvas.addEventListener("keyup", event => held.delete(event.key));
  canvas.addEventListener("blur", () => { held.clear(); up(); });

  width.addEventListener("input", () => { model.set("width", Number(width.value)); model.save_changes(); });
  undo.addEventListener("click", takeBack);
  clear.addEventListener("click", () => {
    pen.x = pen.y = size / 2;
    change({ paper: new DataView(new ArrayBuffer(0)), strokes: [] }, "cleared");
  });
  upload.addEventListener("click", () => file.click());
  file.addEventListener("change", async () => {
    const [picture] = file.files;
    file.value = "";  // the same file may be chosen again
    if (!picture) return;
    if (picture.size > model.get("limit")) model.send({ refused: picture.size });
    else model.send({ uploaded: picture.name }, undefined, [await picture.arrayBuffer()]);
  });

  const adopt = () => {
    if (model.get("drawing") === mine) return;
    past.push({ paper, strokes });
    clearTimeout(timer);
    stroke = undefined;
    ({ paper, strokes } = mine = model.get("drawing"));
    past.push(...steps(mine));
    draw();
  };
  const resize = () => { width.value = readout.textContent = model.get("width"); draw(); };
  model.on("change:drawing", adopt);
  model.on("change:width", resize);
  sheet.append(canvas, ring, hint);
  const tools = make("div", "inflib-tools");
  tools.append(undo, clear, upload, file);
  root.append(sheet, tools, label, help, said);
  resize();
  el.append(root);
  return () => { clearTimeout(timer); model.off("change:drawing", adopt); model.off("change:width", resize); };
}
export default { render };
"""

_CSS = """
.inflib-sketch { width: 282px; max-width: 100%; }
.inflib-sheet { position: relative; box-sizing: border-box; aspect-ratio: 1; overflow: hidden;
  border: 1px solid var(--jp-border-color1, #bbb); border-radius: 3px; }
.inflib-sheet canvas { display: block; width: 100%; height: 100%; touch-action: none; cursor: crosshair; }
.inflib-sheet canvas:focus { outline: none; }
.inflib-sheet:has(canvas:focus-visible) { outline: 2px solid var(--jp-brand-color1, #1976d2); outline-offset: 1px; }
body[data-jp-theme-light="false"] .inflib-sheet canvas { filter: invert(1); }
.inflib-pen { display: none; position: absolute; box-sizing: border-box; border-radius: 50%; pointer-events: none;
  border: 2px dashed var(--jp-brand-color1, #1976d2); }
.inflib-pen.inflib-down { border-style: solid; }
.inflib-sheet canvas:focus-visible + .inflib-pen { display: block; }
.inflib-hint { position: absolute; inset: 0; display: grid; place-content: center; pointer-events: none;
  color: var(--jp-ui-font-color2, #666); font-size: 15px; }
.inflib-hint[hidden] { display: none; }
.inflib-tools { display: flex; flex-wrap: wrap; gap: 6px; margin: 8px 0 4px; }
.inflib-tools button { flex: 1 1 auto; width: auto; margin: 0; padding: 0 8px; cursor: pointer; }
.inflib-tools button:disabled { cursor: default; }
.inflib-width { display: flex; align-items: center; gap: 8px; height: 28px; }
.inflib-width input { flex: 1; min-width: 0; accent-color: var(--jp-brand-color1, #1976d2); }
.inflib-width output { width: 20px; text-align: right; font-variant-numeric: tabular-nums; }
.inflib-help { font-size: 11px; line-height: 1.35; color: var(--jp-ui-font-color2, #555); }
"""


class Sketch(anywidget.AnyWidget):
    """A square sheet; ``drawing`` is what is on it, ``ink`` what it looks like."""

    _esm = _ESM
    _css = _CSS
    size = traitlets.Int(280).tag(sync=True)  # of the sheet, in its own pixels
    width = traitlets.Int(24).tag(sync=True)  # of the pen
    limit = traitlets.Int(MAX_BYTES).tag(sync=True)  # larger files are not sent
    # paper: size² bytes of ink under the strokes, or none; not echoed: an old drawing must not come back over a new one
    drawing: traitlets.Dict[str, Any] = traitlets.Dict({"paper": b"", "strokes": []}).tag(sync=True, echo_update=False)

    def ink(self) -> np.ndarray:
        """(size, size) uint8: 0 bare paper, 255 full ink."""
        strokes = [Stroke(one["points"], one["width"]) for one in self.drawing["strokes"]]
        ink = ink_of_strokes(strokes, self.size)
        paper = bytes(self.drawing["paper"])
        if not paper:
            return ink
        return np.maximum(ink, np.frombuffer(paper, np.uint8).reshape(self.size, self.size))

    def show(self, what: np.ndarray | Sequence[Stroke]) -> None:
        """Put strokes on the sheet, or ink (h, w) uint8, enlarged to fill it as far as whole factors go."""
        paper, strokes = b"", []
        if isinstance(what, np.ndarray):
            paper = self._filled(what).tobytes()
        else:
            strokes = [{"points": [[*map(float, p)] for p in s.points], "width": s.width} for s in what]
        self.drawing = {"paper": paper, "strokes": strokes}

    def _filled(self, ink: np.ndarray) -> np.ndarray:
        if ink.ndim != 2 or ink.dtype != np.uint8 or not 0 < min(ink.shape) <= max(ink.shape) <= self.size:
            raise ValueError(
                f"ink of shape {ink.shape} and type {ink.dtype} came; expected (h, w) uint8 with sides from 1 to "
                f"{self.size}. inflib.lab.ink_of_picture makes it of a PNG or a JPEG."
            )
        times = self.size // max(ink.shape)
        large = ink.repeat(times, axis=0).repeat(times, axis=1)
        sheet = np.zeros((self.size, self.size), np.uint8)
        top, left = ((self.size - side) // 2 for side in large.shape)
        sheet[top : top + large.shape[0], left : left + large.shape[1]] = large
        return sheet

    def on_upload(self, handler: Callable[[bytes], Any], refused: Callable[[int], Any]) -> None:
        """Call ``handler(data)`` for every file that is uploaded, ``refused(size)`` for one that was too large."""

        def receive(_widget: Any, content: dict[str, Any], buffers: Sequence[memoryview]) -> None:
            if "uploaded" in content:
                handler(bytes(buffers[0]))
            elif "refused" in content:
                refused(int(content["refused"]))

        self.on_msg(receive)
