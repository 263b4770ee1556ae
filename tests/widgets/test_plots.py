"""Figures hold what they were given, where it belongs."""

import matplotlib

matplotlib.use("Agg")

import numpy as np
import pytest
from matplotlib import pyplot as plt

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
