"""The site builds without network and without a warning, nothing on it leads nowhere, and every public name is on it."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "docs"))

import links  # noqa: E402
import make_site  # noqa: E402
from docstrings import fields  # noqa: E402
from mathematics import mathml  # noqa: E402


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """Built once; Sphinx's warnings are errors."""
    out = tmp_path_factory.mktemp("docs") / "site"
    assert make_site.build(out) == []
    return out


def test_every_notebook_is_a_page_with_its_outputs(site) -> None:
    for book in (ROOT / "notebooks").glob("*.ipynb"):
        page = (site / "notebooks" / f"{book.stem}.html").read_text()
        assert page.count('class="cell_output') > 5, book.stem
        assert "$" not in re.sub(r"<(pre|code|script|math|svg).*?</\1>|<[^>]*>", " ", page, flags=re.S), (
            f"{book.stem}: a formula is left"
        )


@pytest.mark.parametrize("package", make_site.PACKAGES)
def test_every_public_name_is_in_the_reference(site, package) -> None:
    page = (site / "reference" / f"{package}.html").read_text()
    missing = [name for name in importlib.import_module(package).__all__ if f'id="{package}.{name}"' not in page]
    assert missing == []


def test_no_page_asks_another_site_for_anything(site) -> None:
    for path in site.rglob("*.html"):
        asked = re.findall(
            r'<(?:script|img|iframe)[^>]*src="(?:https?:)?//[^"]*|<link[^>]*href="(?:https?:)?//[^"]*', path.read_text()
        )
        assert asked == [], path.name


def test_a_dead_link_is_seen(tmp_path) -> None:
    (tmp_path / "a.html").write_text('<a href="b.html">b</a> <a href="#here">here</a> <img src="c.png"> <p id="there">')
    (tmp_path / "d.html").write_text(
        '<a href="a.html#there">fine</a> <a href="a.html#gone">gone</a> <a href="https://x.y/z">out</a>'
    )
    assert links.dead_links(tmp_path) == [
        "a.html: b.html: no such file",
        "a.html: #here: no such place on that page",
        "a.html: c.png: no such file",
        "d.html: a.html#gone: no such place on that page",
    ]


def test_a_formula_that_cannot_be_drawn_is_refused() -> None:
    assert "<mfrac>" in mathml(r"\frac{a}{b}", block=False)
    with pytest.raises(ValueError, match=r"nosuchcommand.*has no MathML"):
        mathml(r"a \nosuchcommand b", block=True)


def test_arguments_become_a_list_and_stars_stay_stars() -> None:
    lines = ["What it does.", "", "    a, b:  two *things*,", "           on two lines", "    ``c*``: no", "After."]
    assert fields([line.removeprefix("    ") for line in lines]) == [
        "What it does.", "", r":a, b: two \*things\*,", "    on two lines", "", "``c*``: no", "After.",
    ]  # fmt: skip
