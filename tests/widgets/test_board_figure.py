"""The board's figure: a line a method, its interval, the ceiling."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pytest

from inflib.validation.board import Board, Row
from inflib.validation.intervals import Interval
from inflib.widgets.board import board_figure

BOARD = Board(
    (
        Row("EK-FAC", 0.1, "expected", "LDS", 0.5, 0.4, 0.6, 3),
        Row("EK-FAC", 0.1, "expected", "slope", 0.05, 0.04, 0.07, 3),
        Row("refined", 2.0, "expected", "LDS", 0.7, 0.65, 0.75, 60),
        Row("refined", 2.0, "expected", "slope", 0.9, 0.8, 1.1, 60),
    ),
    {"LDS": Interval(0.97, 0.96, 0.98)},
)


def drawn(ax):
    """The intervals (low, high) and values at each method's height."""
    lines = [line.get_xydata().tolist() for line in ax.lines]
    return [line for line in lines if len(line) == 2 and line[0][1] == line[1][1]], [x for x in lines if len(x) == 1]


def test_every_method_has_its_value_and_interval_in_every_panel():
    figure = board_figure(BOARD)
    first, second = figure.axes
    assert drawn(first) == ([[[0.4, 0], [0.6, 0]], [[0.65, 1], [0.75, 1]]], [[[0.5, 0]], [[0.7, 1]]])
    assert drawn(second)[1] == [[[0.05, 0]], [[0.9, 1]]]
    assert [label.get_text() for label in first.get_yticklabels()] == ["EK-FAC", "refined"]
    assert (first.get_xlabel(), second.get_xlabel()) == ("LDS", "slope")
    assert first.get_ylim()[0] > first.get_ylim()[1]  # the first method at the top
    plt.close(figure)


def test_the_ceiling_is_drawn_where_there_is_one():
    figure = board_figure(BOARD)
    lines = [[line.get_xdata()[0] for line in ax.lines if line.get_label() == "ceiling"] for ax in figure.axes]
    assert lines == [[0.97], []]
    plt.close(figure)


def test_only_what_is_asked_for_is_drawn():
    figure = board_figure(BOARD, ["slope"])
    assert [ax.get_xlabel() for ax in figure.axes] == ["slope"]
    plt.close(figure)
    with pytest.raises(ValueError, match="measurement 'flips' is not on the board; expected some of LDS, slope"):
        board_figure(BOARD, ["flips"])
