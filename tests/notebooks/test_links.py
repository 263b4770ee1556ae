"""Where a notebook's prose points into the source, the file is there and defines what is named."""

import ast
import re

import pytest
from notebook_files import SOURCES, TEXTS

LINK = re.compile(r"\[([^\]]+)\]\((\.\./[\w/]+\.py)\)")


def defined(tree, outer=""):
    """The functions and classes of a module, methods as Class.method."""
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield outer + node.name
        if isinstance(node, ast.ClassDef):
            yield from defined(node, f"{node.name}.")


def broken(text):
    """A sentence for each link of a notebook's source that leads nowhere."""
    for label, target in LINK.findall(text):
        path = (SOURCES.parent / target).resolve()
        if not path.is_file():
            yield f"{target} is not there"
        elif label.strip("`").removeprefix(f"{path.stem}.") not in set(
            defined(ast.parse(path.read_text(encoding="utf-8")))
        ):
            yield f"{target} defines no {label}"


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: text.stem)
def test_links_into_the_source_name_what_the_file_defines(text):
    assert list(broken(text.read_text(encoding="utf-8"))) == []


def test_a_link_that_leads_nowhere_is_noticed():
    good = "[`Kronecker.solve`](../inflib/kronecker.py), [`kronecker.ekfac`](../inflib/kronecker.py)"
    assert not list(broken(good))
    assert list(broken("[`Kronecker.melt`](../inflib/kronecker.py)"))
    assert list(broken("[`ekfac`](../inflib/nowhere.py)"))
