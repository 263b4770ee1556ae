"""Heat over text: steps that grow with the root, signs that need no colour, characters that cannot hide or become markup."""

from __future__ import annotations

import re

import numpy as np
import pytest

from inflib.widgets.heat import DEEPEST, heat_css, heat_html, runs, scale_html, shade, steps, token_name, visible


def test_steps_grow_with_the_square_root_and_keep_the_sign() -> None:
    values = np.array([0.0, 1 / 65, 1 / 63, 1 / 4, -1 / 4, 0.99, 1.0, -1.0])
    assert steps(values, 1.0).tolist() == [0, 0, 1, 4, -4, 7, 7, -7]


def test_values_above_the_limit_are_full_colour_and_a_limit_of_zero_is_none() -> None:
    assert steps(np.array([5.0, -5.0]), 1.0).tolist() == [7, -7]
    assert steps(np.zeros(3), 0.0).tolist() == [0, 0, 0]


def test_neighbours_of_one_step_are_one_run_with_their_sum() -> None:
    found = list(runs(("a", "b", "c", "d"), np.array([0.9, 0.8, -0.3, np.nan]), 1.0))
    assert [(run.text, run.step) for run in found] == [("ab", 7), ("c", -4), ("d", 0)]
    assert found[0].total == pytest.approx(1.7)


def test_the_blank_in_front_of_a_word_is_not_marked_but_a_blank_that_is_a_token_is() -> None:
    words = heat_html(("the", " king"), np.array([0.0, 1.0]), 1.0)
    assert re.fullmatch(r"the <ins [^>]*>king</ins>", words)
    characters = heat_html(("a", " ", "b"), np.array([0.0, 1.0, 0.0]), 1.0)
    assert re.fullmatch(r"a<ins [^>]*> </ins>b", characters)


def test_strong_signs_differ_without_colour_and_without_styles() -> None:
    html = heat_html(("up", "down", "faint"), np.array([1.0, -1.0, 0.05]), 1.0)
    assert "underline solid" in html.split("</ins>")[0]
    assert "underline dotted" in html.split("</ins>")[1]
    assert re.sub(r' style="[^"]*"', "", html) == (
        '<ins title="+1.00">up</ins><i title="−1.00">down</i><span title="+0.0500">faint</span>'
    )


@pytest.mark.parametrize("text", ["<script>alert(1)</script>", "a & b", "\"quoted\" 'single'", "</span>"])
def test_text_never_becomes_markup(text) -> None:
    for pieces in ((text,), tuple(text)):
        html = heat_html(pieces, np.linspace(-1, 1, len(pieces)), 1.0)
        assert not re.search(r"<(?!/?(ins|i|span)\b)", html)
        assert "<script" not in html
        assert "</span></span>" not in html


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\nb", "a⏎b"),
        ("a\tb", "a⇥b"),
        ("\u202eevil\u202c", "‹U+202E›evil‹U+202C›"),
        ("\x00\x1b[31m", "‹U+0000›‹U+001B›[31m"),
        ("zero\u200bwidth", "zero‹U+200B›width"),
        ("שלום, 世界 é😀", "שלום, 世界 é😀"),
    ],
)
def test_what_has_no_picture_is_shown_by_its_number(text, shown) -> None:
    assert visible(text) == shown


def test_lines_may_be_broken_where_they_were() -> None:
    assert visible("a\nb", lines=True) == "a⏎\nb"


@pytest.mark.parametrize(
    ("piece", "name"), [(" ", "␣ space"), ("\n", "⏎ new line"), ("\t", "⇥ tab"), (" king", "king"), ("   ", "␣␣␣")]
)
def test_a_token_by_itself_has_a_name_that_can_be_seen(piece, name) -> None:
    assert token_name(piece) == name


def channels(colour: str) -> list[float]:
    return [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]


def luminance(rgb: list[float]) -> float:
    """Relative luminance by the WCAG's formula."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize(("paper", "ink"), [("#ffffff", "#000000"), ("#111111", "#ffffff")])
@pytest.mark.parametrize("step", [s for s in range(-7, 8) if s])
def test_text_can_be_read_on_every_shade(paper, ink, step) -> None:
    alpha = int(shade(step)[7:], 16) / 255
    ground = [alpha * c + (1 - alpha) * p for c, p in zip(channels(shade(step)), channels(paper), strict=True)]
    light, dark = sorted((luminance(ground), luminance(channels(ink))), reverse=True)
    assert (light + 0.05) / (dark + 0.05) >= 4.5


def test_the_style_sheet_has_one_class_a_shade() -> None:
    css = heat_css(".heat")
    assert len(css.splitlines()) == 14
    assert (
        f".heat .p7 {{ text-decoration: underline solid; background: color-mix(in srgb, var(--inflib-plus) {DEEPEST:.0%}"
        in css
    )
    assert ".heat .m7 { text-decoration: underline dotted" in css
    assert ".heat .p1 { text-decoration: none" in css


def test_the_scale_goes_from_the_strongest_opponent_to_the_strongest_proponent() -> None:
    html = scale_html("−250", "+250", "10⁻³ nats")
    assert html.startswith("−250 ")
    assert html.endswith(" +250 10⁻³ nats")
    assert html.count("<span") == 15
