"""Figures hold what they were given, where it belongs."""

import matplotlib

matplotlib.use("Agg")

import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.colors import to_rgba

from inflib.widgets import plots


@pytest.fixture(autouse=True)
def _closed():
    yield
    plt.close("all")


def test_a_picture_table_puts_every_picture_above_its_caption_and_leaves_gaps_white():
    one, two, three = (np.full((4, 5), value, np.uint8) for value in (10, 20, 30))
    figure = plots.picture_table(
        [[one, None, two], [three, None, one]], [["a", "", "b"], ["c", "", "d"]], {0: "first", 2: "last"}
    )
    (ax,) = figure.axes
    canvas = np.asarray(ax.images[0].get_array())
    values = {text.get_text(): text.get_position() for text in ax.texts}
    assert list(values) == ["a", "b", "c", "d", "first", "last"]
    for word, value in (("a", 10), ("b", 20), ("c", 30), ("d", 10)):
        x, y = values[word]
        above = canvas[round(y) - 5 : round(y) - 1, round(x - 2.5) : round(x + 2.5)]
        assert above.shape == (4, 5)
        assert (above == value).all()
    assert (canvas > 0).sum() == 4 * 20
    assert values["last"][0] == values["b"][0] - 2.5
    assert values["first"][1] < 0


def test_rows_of_captions_must_fit_rows_of_pictures():
    picture = np.ones((4, 5), np.uint8)
    with pytest.raises(ValueError, match="shorter"):
        plots.picture_table([[picture, picture]], [["a"]], {})


def parts(figure):
    """(texts drawn, colours behind the tokens) of the only axes."""
    (ax,) = figure.axes
    return [text.get_text() for text in ax.texts], [patch.get_facecolor() for patch in ax.patches]


def test_every_token_is_drawn_once_under_its_caption():
    texts, colours = parts(plots.heated_texts([(["the", " cat"], [1.0, -1.0]), (["a"], [0.0])], ["first", "second"]))
    assert texts == ["first", "the", " cat", "second", "a"]
    assert len(colours) == 3


def test_orange_is_positive_blue_negative_and_size_counts_over_all_texts():
    _, (large, small, none, negative) = parts(
        plots.heated_texts([(["a", "b", "c"], [4.0, 1.0, 0.0]), (["d"], [-4.0])], ["", ""])
    )
    assert large == to_rgba(plots.DIVERGING(1.0))
    assert small == to_rgba(plots.DIVERGING(0.75))  # the square root of a quarter, half way
    assert none == to_rgba(plots.DIVERGING(0.5))
    assert negative == to_rgba(plots.DIVERGING(0.0))


def test_long_texts_are_broken_between_tokens_and_new_lines_are_visible():
    (ax,) = plots.heated_texts([(["abc", "de\n", "fgh"], [1.0, 1.0, 1.0])], [""], columns=6).axes
    drawn = {text.get_text(): text.get_position() for text in ax.texts if text.get_text()}
    assert set(drawn) == {"abc", "de⏎", "fgh"}
    assert drawn["abc"][1] == drawn["de⏎"][1] < drawn["fgh"][1]
    assert drawn["abc"][0] < drawn["de⏎"][0]


def test_texts_without_influence_are_drawn_without_colour():
    _, colours = parts(plots.heated_texts([(["a"], [0.0])], [""]))
    assert colours == [to_rgba(plots.DIVERGING(0.5))]
