"""What every widget of the course shares: an area for errors, a busy state, and a still for where nothing runs.

A widget is a ``Panel``: controls call its methods through ``watch``, which says that work is going on and shows
whatever a method raises (JupyterLab loses it otherwise). Saved in a notebook, a Panel is its still, ``as_text`` and
``as_html``: the same view without a kernel, for GitHub, nbviewer and nbconvert, for a notebook that is opened again,
and what nbval compares. Hence everything in a still is deterministic down to the bytes of its pictures.
"""

from __future__ import annotations

import base64
import csv
import io
import math
import struct
import traceback
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from html import escape
from typing import Any
from urllib.parse import quote

import ipywidgets as W
import numpy as np

from .keyboard import Keyboard
from .live import Live

# Okabe and Ito's orange and blue, told apart by colour-blind readers and readable on white and on black
POSITIVE, NEGATIVE = "#D55E00", "#2A8BCB"

STYLE = """<style>
.inflib-panel { color: var(--jp-ui-font-color1, #222); font-family: var(--jp-ui-font-family, system-ui, sans-serif);
  font-size: 13px; line-height: 1.4; max-width: 1060px; container-type: inline-size; }
.inflib-panel .widget-inline-hbox { min-width: 0; max-width: calc(100% - 4px); }
.inflib-panel .widget-html-content { min-width: 0; max-width: 100%; }
.inflib-panel .widget-hbox > *, .inflib-panel .widget-container { max-width: 100%; }
@container (max-width: 560px) { .inflib-panel .widget-hbox { flex-wrap: wrap; row-gap: 4px; } }
@container (max-width: 560px) { .inflib-panel .inflib-one-line { white-space: normal; } }
@container (max-width: 320px) { .inflib-panel .inflib-share { font-size: 7px !important; } }
.inflib-panel .widget-html-content { line-height: 1.4; }
.inflib-panel .inflib-heading { font-weight: 600; }
.inflib-panel .inflib-note { line-height: 28px; padding-left: 6px; }
.inflib-panel .inflib-quiet { color: var(--jp-ui-font-color2, #555); }
.inflib-panel .inflib-controls { border-bottom: 1px solid var(--jp-border-color2, #ccc); padding-bottom: 6px; }
.inflib-panel .inflib-status { min-height: 26px; }
.inflib-panel .widget-toggle-buttons { display: flex; align-items: baseline; }
.inflib-panel .widget-checkbox .widget-label-basic { display: flex; align-items: center; gap: 6px; }
.inflib-panel .widget-checkbox input { margin: 0; }
.inflib-panel a { color: var(--jp-content-link-color, #0057b8); text-decoration: underline; }
.inflib-panel .widget-toggle-buttons > .widget-label { text-align: right; margin-right: 8px; flex: none; }
.inflib-panel .widget-toggle-buttons .widget-toggle-button { margin: 2px 4px 2px 0; }
.inflib-panel .widget-toggle-buttons .mod-active { font-weight: 600;
  box-shadow: inset 0 -3px 0 var(--jp-brand-color1, #1976d2); }
.inflib-panel .inflib-spoken { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
.inflib-panel textarea { font-family: inherit; }
.inflib-panel .inflib-said { font-size: 16px; line-height: 1.5; white-space: pre-wrap; overflow-wrap: anywhere; }
.inflib-panel .inflib-one-line { white-space: nowrap; overflow: hidden; text-overflow: ellipsis; max-width: 264px; }
.inflib-panel .inflib-scale { font-size: 11px; font-variant-numeric: tabular-nums; margin: 2px 0 6px; }
.inflib-panel .inflib-busy { color: var(--jp-ui-font-color2, #555); animation: inflib-appear 0.2s 0.15s both; }
.inflib-panel .inflib-busy::before { content: "◌"; display: inline-block; margin-right: 6px;
  animation: inflib-turn 1s linear infinite; }
@keyframes inflib-appear { from { opacity: 0; } to { opacity: 1; } }
@keyframes inflib-turn { to { transform: rotate(360deg); } }
@media (prefers-reduced-motion: reduce) { .inflib-panel .inflib-busy::before { animation: none; } }
.inflib-panel .inflib-error { border-left: 4px solid var(--jp-error-color1, #b00020); padding: 4px 10px;
  background: var(--jp-layout-color2, #eee); }
.inflib-panel.inflib-stale > .inflib-status ~ *, .inflib-panel.inflib-stale .inflib-prediction {
  opacity: 0.4; filter: grayscale(1); }
.inflib-panel .inflib-explains { position: relative; }
.inflib-panel .inflib-explained { cursor: help; text-decoration: underline dotted; }
.inflib-panel .inflib-explained:focus-visible::after { content: attr(data-says); position: absolute; z-index: 5;
  left: 0; margin-top: 1.5em; width: 230px; padding: 4px 8px; border-radius: 3px; text-align: left; font-weight: 400;
  color: var(--jp-layout-color0, #fff); background: var(--jp-ui-font-color0, #111); }
.inflib-panel .inflib-error pre { max-height: 220px; overflow: auto; font-size: 11px; margin: 4px 0; }
.inflib-panel :focus-visible { outline: 2px solid var(--jp-brand-color1, #1976d2); outline-offset: 1px; }
.inflib-panel img { image-rendering: pixelated; }
body[data-jp-theme-light="false"] .inflib-panel img:not(.inflib-colour) { filter: invert(1); }
</style>"""


class InputError(ValueError):
    """What was entered cannot be answered; a panel shows the message, which says why, without a traceback."""


class Panel(W.VBox):
    """Base of the course's widgets. A subclass builds its controls, calls ``arrange``, and defines its still."""

    def __init__(self, label: str, css_class: str) -> None:
        self.busy, self.error = W.HTML(), W.HTML()
        self._working = False
        super().__init__()
        self.add_class("inflib-panel")
        self.add_class(css_class)
        self._label, self._live = label, Live(self)

    def arrange(self, controls: Sequence[W.Widget], view: Sequence[W.Widget]) -> None:
        """Controls above, what they show below, and between them the place for "busy" and for errors."""
        top = W.VBox(list(controls))
        top.add_class("inflib-controls")
        status = W.VBox([self.busy, self.error])
        status.add_class("inflib-status")
        unseen = W.Layout(display="none")
        self.children = [W.HTML(STYLE, layout=unseen), Keyboard(layout=unseen), top, status, *view]

    def watch(self, control: W.Widget, answer: Callable[[], object]) -> None:
        """Call ``answer`` whenever the control's value changes, or when it is a button that is pressed."""
        if isinstance(control, W.Button):
            control.on_click(lambda _: self.attempt(answer))
        else:
            control.observe(lambda _: self.attempt(answer), "value")

    def attempt(self, answer: Callable[[], object]) -> None:
        """Run ``answer``, busy meanwhile; show what it raises.

        Silent when called from inside itself: what an answer does to other controls is its own doing.
        """
        if self._working:
            return
        with self.working():
            try:
                answer()
            except Exception as error:
                self.error.value = _error_html(error, former=self.shows)

    @contextmanager
    def working(self) -> Iterator[None]:
        """The busy state: said on the panel, and controls that change meanwhile answer nothing."""
        if self._working:
            yield
            return
        self._working = True
        self.error.value = ""
        self.busy.value = '<span class="inflib-busy" role="status">computing</span>'
        try:
            yield
        finally:
            self._working = False
            self.busy.value = ""
            self.draw_stale()

    @property
    def shows(self) -> bool:
        """Whether there is an answer on show."""
        return True

    @property
    def stale(self) -> bool:
        """Whether what is shown answers another question than the controls now ask."""
        return False

    def draw_stale(self) -> None:
        """Grey out an answer that belongs to no question."""
        (self.add_class if self.shows and self.stale else self.remove_class)("inflib-stale")

    def as_text(self) -> str:
        """What is shown, in a few lines of plain text; deterministic."""
        raise NotImplementedError(f"{type(self).__name__} must define as_text() -> str")

    def as_html(self) -> str:
        """What is shown, as HTML that needs no kernel, no script and no style sheet; deterministic."""
        raise NotImplementedError(f"{type(self).__name__} must define as_html() -> str")

    def __repr__(self) -> str:
        return self._label

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, Any]:
        bundle = self._live.instead_of_view(super()._repr_mimebundle_(**kwargs))
        return {**bundle, "text/plain": self.as_text(), "text/html": self.as_html()}


def _error_html(error: Exception, *, former: bool) -> str:
    said, rest = escape(str(error)), "<br>What is shown is from before this error." if former else ""
    if isinstance(error, InputError):
        return f'<div class="inflib-error" role="alert">{said[:1].upper()}{said[1:]}{rest}</div>'
    trace = "".join(traceback.format_exception(error))
    return (
        f'<div class="inflib-error" role="alert"><b>{escape(type(error).__name__)}</b>: {said}{rest}'
        f"<details><summary>Where it was raised</summary><pre>{escape(trace)}</pre></details></div>"
    )


# --- numbers, pictures, tables -----------------------------------------------------------------------------------


def signed(value: float, digits: int = 3) -> str:
    """A number with its sign, + or −, and so many significant digits: +0.0123, −45.6, +1.20e-05."""
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else ("+∞" if value > 0 else "−∞")
    sign = "+" if value > 0 else "−" if value < 0 else ""
    return sign + unsigned(abs(value), digits)


def unsigned(value: float, digits: int = 3) -> str:
    """``signed`` without the sign: 0.0123, 45.6, 17,700, 1.20e-05."""
    if value == 0:
        return "0"
    rounded = float(f"{value:.{digits}g}")
    if 1e4 <= rounded < 1e7:
        return f"{rounded:,.0f}"
    if 1e-4 <= rounded < 1e4:
        return f"{rounded:#.{digits}g}".rstrip(".")
    return f"{value:.{digits - 1}e}"


def png(image: np.ndarray) -> bytes:
    """A PNG of (H, W) grey or (H, W, 3) RGB uint8, uncompressed: every zlib packs its own way, stills must be equal."""
    if image.dtype != np.uint8 or image.shape[2:] not in ((), (3,)) or image.ndim < 2:
        raise ValueError(
            f"png got an image of shape {image.shape} and type {image.dtype}; expected (H, W) or (H, W, 3) uint8."
        )
    height, width = image.shape[:2]
    rows = b"".join(b"\0" + row.tobytes() for row in image)  # filter 0 before each row
    blocks = [rows[k : k + 65535] for k in range(0, len(rows), 65535)]
    stored = b"".join(
        struct.pack("<BHH", block is blocks[-1], len(block), 65535 - len(block)) + block for block in blocks
    )
    data = b"\x78\x01" + stored + struct.pack(">I", zlib.adler32(rows))
    header = struct.pack(">IIBBBBB", width, height, 8, 2 if image.ndim == 3 else 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def picture(image: np.ndarray) -> str:
    """An (H, W) uint8 image, white on black as MNIST has it, as the data: address of ink on paper."""
    return png_address(255 - image)


def png_address(image: np.ndarray) -> str:
    """An image as ``png`` takes it, as a data: address."""
    return "data:image/png;base64," + base64.b64encode(png(image)).decode()


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows with the same keys as CSV, with a header line; empty text for no rows."""
    if not rows:
        return ""
    return "".join(_csv_line(row) for row in (list(rows[0]), *(row.values() for row in rows)))


def _csv_line(values: Iterable[Any]) -> str:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\r\n").writerow(values)  # which has a field with either of the two in quotes
    return text.getvalue().removesuffix("\r\n") + "\n"


def csv_link(rows: Sequence[Mapping[str, Any]], name: str, label: str) -> str:
    """A link that saves the rows as a CSV file, without asking any server."""
    address = "data:text/csv;charset=utf-8," + quote(csv_text(rows))
    return f'<a class="inflib-csv" download="{escape(name)}" href="{escape(address)}">{escape(label)}</a>'
