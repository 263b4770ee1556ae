"""The board as a figure: a line a method, its value with its interval, and the ceiling that nothing can pass.

One panel for each measurement; methods keep their place from panel to panel, the first at the top.
"""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..validation.board import Board, Row
from .plots import COLOURS, GREY, INK


def board_figure(board: Board, measurements: Sequence[str] | None = None, *, width: float = 3.6) -> Figure:
    """Draw the board's measurements side by side, each ``width`` inches; None: all, in its order.

    Raises ValueError for a measurement that is not on the board.
    """
    known = list(dict.fromkeys(row.measurement for row in board.rows))
    asked = known if measurements is None else list(measurements)
    missing = [name for name in asked if name not in known]
    if missing or not asked:
        came = repr(missing[0]) if missing else "none"
        raise ValueError(f"measurement {came} is not on the board; expected some of {', '.join(known)}.")
    methods = list(dict.fromkeys(row.method for row in board.rows))
    figure, axes = plt.subplots(
        1, len(asked), sharey=True, squeeze=False, figsize=(1.6 + width * len(asked), 0.8 + 0.32 * len(methods))
    )
    for ax, name in zip(axes[0], asked, strict=True):
        _panel(ax, [row for row in board.rows if row.measurement == name], methods)
        _ceiling(ax, board, name)
        ax.set_xlabel(name)
    axes[0, 0].set_yticks(range(len(methods)), methods)
    axes[0, 0].set_ylim(len(methods) - 0.4, -0.6)
    return figure


def _panel(ax: Axes, rows: Sequence[Row], methods: Sequence[str]) -> None:
    for row in rows:
        at = methods.index(row.method)
        colour = COLOURS[at % len(COLOURS)]
        ax.plot([row.low, row.high], [at, at], color=colour, linewidth=2, solid_capstyle="butt")
        ax.plot([row.value], [at], "o", color=colour, markersize=5)
        dial = f"  λ {row.dial:g}" if isinstance(row.dial, (int, float)) else ""
        ax.annotate(
            f"{row.value:.2f}{dial}", (row.value, at), (0, 5), textcoords="offset points", fontsize=7, color=INK
        )
    ax.axvline(0, color=GREY, linewidth=0.6)
    ax.margins(x=0.12)


def _ceiling(ax: Axes, board: Board, name: str) -> None:
    """The ceiling as a line with its interval behind it."""
    top = board.ceilings.get(name)
    if top is None:
        return
    ax.axvspan(top.low, top.high, color=GREY, alpha=0.2, linewidth=0)
    ax.axvline(top.mean, color=GREY, linewidth=1, linestyle="--", label="ceiling")
    ax.annotate("ceiling", (top.mean, -0.55), ha="right", va="top", fontsize=7, rotation=90, color=INK)
