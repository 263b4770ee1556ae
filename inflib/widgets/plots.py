"""The course's figures: one style, one palette, and the few plots that several notebooks draw.

Colours are Okabe and Ito's (readable by colour-blind readers); a signed quantity is drawn on a diverging scale,
blue for negative and orange for positive. Every function draws into axes it is given, and returns them. Figures have
no ground of their own, and ``INK``, what is neither data nor sign, reads on white and on black: a page may be either.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from IPython.core.getipython import get_ipython
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib_inline.backend_inline import set_matplotlib_formats

from ..validation.intervals import Interval

BLUE, ORANGE, GREEN, PINK, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#787878"
INK = GREY  # of text, axes and lines that are no data: contrast 4.3 and better on white and on a dark theme's #111111
COLOURS = (BLUE, ORANGE, GREEN, PINK, "#E69F00", "#56B4E9", GREY)
DIVERGING = LinearSegmentedColormap.from_list("blue_orange", ["#08519c", "#6baed6", "#f7f7f7", "#fd8d3c", "#a63603"])


def use_style() -> None:
    """Set matplotlib's defaults for the course: sizes that read in JupyterLab, thin axes, the palette above.

    In a notebook figures have twice as many pixels a side as they take up on the page.
    """
    if get_ipython() is not None:
        # bare paper is said here, not in figure.facecolor: notebooks would then be told to put white behind it
        set_matplotlib_formats("retina", facecolor="none")
    plt.rcParams.update(
        {
            "figure.figsize": (6.4, 3.6),
            "figure.dpi": 96,
            "savefig.dpi": 96,
            "axes.facecolor": "none",
            **dict.fromkeys(
                ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "patch.edgecolor"),
                INK,
            ),
            "figure.constrained_layout.use": True,
            "axes.prop_cycle": plt.cycler(color=COLOURS),
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.titlesize": 10,
            "axes.labelsize": 9,
            "xtick.labelsize": 8,
            "ytick.labelsize": 8,
            "legend.fontsize": 8,
            "legend.frameon": False,
            "image.cmap": "gray",
            "image.interpolation": "nearest",
        }
    )


def against(
    ax: Axes, predicted: Any, actual: Any, *, what: str = "contribution", colour: str = BLUE, **kwargs: Any
) -> Axes:
    """Predicted (x) against actual (y) with the identity line: points on it are right in size, not only in order."""
    x, y = np.asarray(predicted).ravel(), np.asarray(actual).ravel()
    low, high = float(min(x.min(), y.min())), float(max(x.max(), y.max()))
    ax.plot([low, high], [low, high], color=GREY, linewidth=0.8, linestyle="--", label="identity", zorder=1)
    ax.scatter(x, y, s=10, color=colour, alpha=0.7, linewidths=0, zorder=2, **kwargs)
    ax.set_xlabel(f"predicted {what}")
    ax.set_ylabel(f"actual {what}")
    return ax


def matrix(ax: Axes, values: Any, title: str = "", *, limit: float | None = None, colourbar: bool = False) -> Axes:
    """A matrix as an image on the diverging scale, symmetric about zero; ``limit`` is the value at full colour."""
    values = np.asarray(values)
    limit = limit or float(np.abs(values).max()) or 1.0
    image = ax.imshow(values, cmap=DIVERGING, vmin=-limit, vmax=limit)
    ax.set_title(title)
    ax.set_xticks([])
    ax.set_yticks([])
    if colourbar:
        ax.figure.colorbar(image, ax=ax, shrink=0.8)
    return ax


def images(pictures: Any, captions: list[str], *, title: str = "", columns: int = 10, size: float = 0.9) -> Any:
    """A strip of small grey images (K, H, W) with a caption under each, as one figure."""
    rows = -(-len(captions) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(size * columns, (size + 0.35) * rows), squeeze=False)
    for ax in axes.flat:
        ax.axis("off")
    for ax, picture, caption in zip(axes.flat, pictures, captions, strict=False):
        ax.imshow(np.asarray(picture), cmap="gray_r")
        ax.set_title(caption, fontsize=7)
    figure.suptitle(title, fontsize=10)
    return figure


def bars(ax: Axes, values: Mapping[str, float], *, what: str) -> Axes:
    """Horizontal bars, one per name, in the order given from top to bottom."""
    names = list(values)
    ax.barh(names[::-1], [values[name] for name in names[::-1]], color=BLUE)
    ax.set_xlabel(what)
    return ax


def intervals(ax: Axes, values: Mapping[str, Interval], *, what: str, spec: str = ".2f") -> Axes:
    """A dot and its interval on a line for each name, from top to bottom, the mean written at the right."""
    for y, interval in enumerate(values.values()):
        ax.plot([interval.low, interval.high], [y, y], color=BLUE, linewidth=2, solid_capstyle="butt")
        ax.plot([interval.mean], [y], "o", color=BLUE, markersize=4)
        ax.text(1.02, y, f"{interval.mean:{spec}}", transform=ax.get_yaxis_transform(), va="center", fontsize=8)
    ax.set_yticks(range(len(values)), list(values))
    ax.set(xlabel=what, ylim=(len(values) - 0.5, -0.5))
    return ax


def picture_table(
    pictures: Sequence[Sequence[Any]], captions: Sequence[Sequence[str]], headings: Mapping[int, str]
) -> Any:
    """Rows of small grey images on one canvas, a caption under each, as one figure.

    ``pictures`` are rows of (H, W) arrays, None for a gap; ``captions`` has the same form; ``headings`` stand above the
    column that they name, left-aligned.
    """
    height, width = next(p for row in pictures for p in row if p is not None).shape
    step_y, step_x = round(1.55 * height), round(1.2 * width)
    columns = max(map(len, pictures))
    canvas = np.ma.masked_array(np.zeros((step_y * len(pictures), step_x * columns), np.uint8), mask=True)
    figure, ax = plt.subplots(figsize=(0.46 * columns, 0.6 * len(pictures) + 0.3))
    for r, (row, words) in enumerate(zip(pictures, captions, strict=True)):
        for c, (picture, word) in enumerate(zip(row, words, strict=True)):
            if picture is not None:
                canvas[r * step_y : r * step_y + height, c * step_x : c * step_x + width] = picture
                ax.text(c * step_x + width / 2, r * step_y + height + 1, word, ha="center", va="top", fontsize=6)
    for c, heading in headings.items():
        ax.text(c * step_x, -4, heading, ha="left", va="bottom", fontsize=9)
    ax.imshow(canvas, cmap="gray_r", aspect="equal")
    ax.axis("off")
    return figure


def heated_texts(
    texts: Sequence[tuple[Sequence[str], Sequence[float]]], captions: Sequence[str], *, columns: int = 96
) -> Figure:
    """Texts with a colour behind every token, one under the other, as one figure.

    ``texts``: (pieces, values) of each, one value a token; ``captions`` stand above them. Orange is positive, blue
    negative, full colour the largest value of all, growing with the square root; a new line is drawn as ⏎.
    """
    limit = max(abs(value) for _, values in texts for value in values) or 1.0
    blocks = [_lines(pieces, values, columns) for pieces, values in texts]
    height = sum(len(block) + 1.4 for block in blocks)
    widest = max(sum(len(piece) for piece, _ in line) for block in blocks for line in block)
    widest = max(widest, *map(len, captions))
    figure, ax = plt.subplots(figsize=(widest * 0.082 + 0.2, height * 0.2 + 0.1))
    ax.set(xlim=(0, widest), ylim=(height, 0))
    ax.axis("off")
    y = 0.0
    for caption, block in zip(captions, blocks, strict=True):
        ax.text(0, y + 0.5, caption, fontsize=8, color=GREY, va="center")
        for line in block:
            y, x = y + 1, 0.0
            for piece, value in line:
                shade = DIVERGING(0.5 + 0.5 * float(np.sign(value) * np.sqrt(abs(value) / limit)))
                ax.add_patch(Rectangle((x, y + 0.04), len(piece), 0.92, color=shade, linewidth=0))
                text = ax.text(x + len(piece) / 2, y + 0.5, piece, fontsize=9, family="monospace", color=ink_on(shade))
                text.set(ha="center", va="center")
                x += len(piece)
        y += 1.4
    return figure


def ink_on(colour: tuple[float, ...]) -> str:
    """Black or white, whichever reads better on an RGB colour: the one with the larger contrast by WCAG 2.1."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
    return "black" if float(np.dot(linear, (0.2126, 0.7152, 0.0722))) > 0.179 else "white"


def _lines(pieces: Sequence[str], values: Sequence[float], columns: int) -> list[list[tuple[str, float]]]:
    """Tokens with their values, broken into lines of at most ``columns`` characters."""
    lines: list[list[tuple[str, float]]] = [[]]
    for piece, value in zip(pieces, values, strict=True):
        if lines[-1] and sum(len(shown) for shown, _ in lines[-1]) + len(piece) > columns:
            lines.append([])
        lines[-1].append((piece.replace("\n", "⏎"), float(value)))
    return lines
