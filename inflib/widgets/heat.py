"""Text with the influence of each token: how strong in steps, which marks, and characters that nobody would see.

A token's influence v becomes a step from −7 to 7, sign(v) · ⌊8 √(|v| / limit)⌋, with one limit for a whole page, so
that what is below 1/64 of it stays unmarked. Shades are transparent and serve on white and on black; from the third
step on a line under the text says the sign without colour, solid for + and dotted for −.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby

import numpy as np

from .base import NEGATIVE, POSITIVE, signed

STEPS = 7
DEEPEST = 0.64  # the opacity of the last step
LONG = 160  # tokens of a text that are shown at once
UNDERLINED = 3  # the step from which on the sign is marked without colour
STANDINS = {"\n": "⏎", "\t": "⇥"}
NAMES = {"\n": "⏎ new line", "\t": "⇥ tab", " ": "␣ space"}


def visible(text: str, *, lines: bool = False) -> str:
    """The text with ⏎ for a new line, ⇥ for a tab, and ‹U+202E› for what has no picture or turns lines round.

    lines: start a new line after each ⏎.
    """
    shown = "".join(STANDINS.get(c, c if c.isprintable() else f"‹U+{ord(c):04X}›") for c in text)
    return shown.replace("⏎", "⏎\n") if lines else shown


def token_name(piece: str) -> str:
    """A token by itself, to be told apart from its neighbours: spaces get a name."""
    return NAMES.get(piece) or visible(piece).strip() or "␣" * len(piece) or "no text of its own"


def steps(values: np.ndarray, limit: float) -> np.ndarray:
    """Influences (T,) as whole steps from −7 to 7; 0 where there is none (NaN), or where the limit is 0."""
    values = np.nan_to_num(values)
    size = np.sqrt(np.abs(values) / limit) if limit > 0 else np.zeros(len(values))
    return (np.sign(values) * np.minimum(np.floor((STEPS + 1) * size), STEPS)).astype(int)


def hottest(pieces: Sequence[str], values: np.ndarray, most: int = LONG) -> tuple[Sequence[str], np.ndarray]:
    """Pieces and values of a text; of one with more than ``most`` tokens the run of so many that holds most influence.

    An ellipsis without influence stands for what is left out before it and after it; the sum is of absolute values.
    """
    if len(pieces) <= most:
        return pieces, values
    sums = np.convolve(np.abs(np.nan_to_num(values)), np.ones(most), mode="valid")
    at = int(sums.argmax())
    before, after = ["… "] * (at > 0), [" …"] * (at + most < len(pieces))
    none = [np.full(len(side), np.nan) for side in (before, after)]
    return [*before, *pieces[at : at + most], *after], np.concatenate([none[0], values[at : at + most], none[1]])


@dataclass(frozen=True)
class Run:
    """Neighbouring tokens of one step."""

    gap: str  # a blank in front that belongs to no token by itself, and stays unmarked
    text: str  # as shown
    step: int
    total: float  # the sum of their influences


def runs(pieces: Sequence[str], values: np.ndarray, limit: float) -> Iterator[Run]:
    """The text of the pieces, in as few parts as the steps of their values allow; a value of NaN is none."""
    known = np.nan_to_num(values)
    marked = zip(steps(known, limit).tolist(), pieces, known.tolist(), strict=True)
    for step, few in groupby(marked, key=lambda one: one[0]):
        _, texts, numbers = zip(*few, strict=True)
        text, gap = visible("".join(texts)), " " if len(texts[0]) > 1 and texts[0][0] == " " else ""
        yield Run(gap, text[len(gap) :], step, sum(numbers))


def shade(step: int) -> str:
    """A step's colour, #rrggbbaa: orange for + and blue for −, more of it the larger the step."""
    return f"{POSITIVE if step > 0 else NEGATIVE}{round(255 * DEEPEST * abs(step) / STEPS):02x}".lower()


def heat_css(selector: str) -> str:
    """A style sheet with a class for each step, p1 to p7 and m1 to m7."""
    rules = []
    for step in (*range(-STEPS, 0), *range(1, STEPS + 1)):
        sign, colour = ("p", "plus") if step > 0 else ("m", "minus")
        part, line = f"{DEEPEST * abs(step) / STEPS:.0%}", _line(step) or "none"
        rules.append(
            f"{selector} .{sign}{abs(step)} {{ text-decoration: {line};"
            f" background: color-mix(in srgb, var(--inflib-{colour}) {part}, transparent); }}"
        )
    return "\n".join(rules)


def heat_html(pieces: Sequence[str], values: np.ndarray, limit: float, number: Callable[[float], str] = signed) -> str:
    """The text for a still: where styles are taken out, proponents are still underlined and opponents in italics."""
    parts = []
    for run in runs(pieces, values, limit):
        text = escape(run.text)
        parts.append(run.gap)
        if run.step == 0:
            parts.append(text)
        elif abs(run.step) < UNDERLINED:
            parts.append(f'<span title="{number(run.total)}" style="background:{shade(run.step)}">{text}</span>')
        else:
            tag, style = ("ins", "") if run.step > 0 else ("i", "font-style:normal;")
            style += f"background:{shade(run.step)};text-decoration:{_line(run.step)}"
            parts.append(f'<{tag} title="{number(run.total)}" style="{style}">{text}</{tag}>')
    return "".join(parts)


def scale_html(lowest: str, highest: str, unit: str) -> str:
    """The shades from the lowest number to the highest, side by side."""
    swatches = "".join(
        f'<span style="display:inline-block;width:13px;height:9px;background:{shade(step) if step else "transparent"}">'
        "</span>"
        for step in range(-STEPS, STEPS + 1)
    )
    return f"{lowest} {swatches} {highest}{escape(f' {unit}' if unit else '')}"


def _line(step: int) -> str:
    """The line under the text that says the sign; empty for small steps."""
    if abs(step) < UNDERLINED:
        return ""
    return "underline solid" if step > 0 else "underline dotted"
