"""Figures hold what they were given, where it belongs."""

import base64
import io

import matplotlib

matplotlib.use("Agg")

import numpy as np
import pytest
from build import kernel_environment
from matplotlib import pyplot as plt
from matplotlib.colors import to_rgba
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook
from PIL import Image

from inflib.validation.intervals import Interval
from inflib.widgets import plots


@pytest.fixture(autouse=True)
def _closed():
    yield
    plt.close("all")


def test_a_picture_table_puts_every_picture_above_its_caption_and_leaves_gaps_bare():
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
    assert np.ma.count(ax.images[0].get_array()) == 4 * 20
    assert values["last"][0] == values["b"][0] - 2.5
    assert values["first"][1] < 0


def test_rows_of_captions_must_fit_rows_of_pictures():
    picture = np.ones((4, 5), np.uint8)
    with pytest.raises(ValueError, match="shorter"):
        plots.picture_table([[picture, picture]], [["a"]], {})


def luminance(colour):
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgba(colour)[:3]]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    """WCAG 2.1's, 1 to 21."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_words_and_axes_read_on_white_and_on_black():
    with plt.rc_context():
        plots.use_style()
        figure, ax = plt.subplots()
        ax.set(title="title", xlabel="x", ylabel="y")
        (line,) = ax.plot([0, 1], label="line")
        words = [ax.title, ax.xaxis.label, *ax.get_xticklabels(), *ax.legend().get_texts(), figure.suptitle("all")]
        figure.canvas.draw()
        colours = [word.get_color() for word in words] + [ax.spines["left"].get_edgecolor()]
        for ground in ("#ffffff", "#111111", "#0d1117"):
            assert min(contrast(colour, ground) for colour in colours) > 4.2
            assert min(contrast(colour, ground) for colour in (line.get_color(), plots.ORANGE)) > 3


def test_in_a_notebook_figures_have_no_ground_and_twice_the_pixels(tmp_path):
    source = "from inflib.widgets import plots\nplots.use_style()\nfigure, ax = plots.plt.subplots(figsize=(2, 1))"
    notebook = new_notebook(cells=[new_code_cell(source)])
    NotebookClient(notebook, kernel_name="python3").execute(env=kernel_environment(tmp_path))
    (shown,) = notebook.cells[0].outputs
    picture = Image.open(io.BytesIO(base64.b64decode(shown.data["image/png"])))
    size = shown.metadata["image/png"]
    assert picture.size == (2 * size["width"], 2 * size["height"])
    assert set(shown.metadata) == {"image/png"}, "notebooks put a white ground behind what says that it needs one"
    assert np.asarray(picture)[0, 0, 3] == 0
    assert np.asarray(picture)[:, :, 3].max() == 255


def test_letters_on_a_colour_are_black_or_white_whichever_reads_better():
    for share in np.linspace(0, 1, 21):
        shade = plots.DIVERGING(share)
        assert contrast(plots.ink_on(shade), shade) == max(contrast("black", shade), contrast("white", shade))


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


def test_intervals_are_drawn_where_they_lie_from_top_to_bottom():
    _, ax = plt.subplots()
    plots.intervals(ax, {"first": Interval(2.0, 1.0, 4.0), "last": Interval(-1.0, -2.0, 0.5)}, what="loss", spec=".1f")
    lines = [tuple(map(tuple, line.get_xydata())) for line in ax.lines]
    assert lines == [((1, 0), (4, 0)), ((2, 0),), ((-2, 1), (0.5, 1)), ((-1, 1),)]
    assert [text.get_text() for text in ax.texts] == ["2.0", "-1.0"]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["first", "last"]
    low, high = ax.get_ylim()
    assert low > high  # the first name stands above the last
