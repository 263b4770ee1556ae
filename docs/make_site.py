"""Build the course's site: the notebooks as saved, every public name, every source file, search; without network.

    python docs/make_site.py [--out build/site]

Lays the pages out beside each other (``build/site-pages``), runs Sphinx on them with warnings as errors, and looks for
dead links in what came out. Nothing is executed: the outputs are those that CI compares.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import shutil
import sys
from pathlib import Path

from sphinx.cmd.build import main as sphinx

sys.path.insert(0, str(Path(__file__).resolve().parent))
from links import dead_links

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
PACKAGES = {
    "inflib": "What the ten lines use: objectives, curvatures, scores, the index, what is kept on disk.",
    "inflib.validation": "Ground truths to hold scores against.",
    "inflib.conformance": "Is a library sound? Checks of its scores from outside.",
    "inflib.widgets": "What the notebooks show; they take your models and data too.",
    "inflib.lab": "What the notebooks study: data, models, training.",
}


def lay_out(pages: Path) -> None:
    """Put everything that Sphinx reads into an empty folder."""
    shutil.rmtree(pages, ignore_errors=True)
    shutil.copytree(DOCS, pages, ignore=shutil.ignore_patterns("__pycache__", "_build"))
    sources = _source_pages(pages / "source")
    (pages / "notebooks").mkdir()
    for book in sorted((ROOT / "notebooks").glob("*.ipynb")):
        (pages / "notebooks" / book.name).write_text(_notebook(book, sources), encoding="utf-8")
    shutil.copy(ROOT / "notebooks" / "notation.md", pages / "notebooks")
    shutil.copytree(ROOT / "notebooks" / "images", pages / "images")
    shutil.copy(ROOT / "data" / "README.md", pages / "data.md")
    (pages / "reference").mkdir()
    for package, about in PACKAGES.items():
        (pages / "reference" / f"{package}.md").write_text(_reference(package, about), encoding="utf-8")


def _source_pages(folder: Path) -> set[str]:
    """A page for each file of the package; their paths from the root of the repository."""
    paths = [path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "inflib").rglob("*.py"))]
    for path in paths:
        page = folder / f"{path}.md"
        page.parent.mkdir(parents=True, exist_ok=True)
        text = (ROOT / path).read_text(encoding="utf-8")
        page.write_text(f"# {path}\n\n``````python\n{text.rstrip()}\n``````\n", encoding="utf-8")
    entries = "\n".join(f"{path}.md" for path in paths)
    (folder / "index.md").write_text(
        "# The source\n\nEach file is a chapter, and imports only from chapters below its own. Begin with "
        "[inflib/\\_\\_init\\_\\_.py](inflib/__init__.py.md): it has the story and the notation.\n\n"
        f"```{{toctree}}\n:maxdepth: 1\n\n{entries}\n```\n",
        encoding="utf-8",
    )
    return set(paths)


def _notebook(path: Path, sources: set[str]) -> str:
    """A saved notebook with links to source pages, and folded what Lab folds."""
    book = json.loads(path.read_text(encoding="utf-8"))
    for cell in book["cells"]:
        if cell["cell_type"] == "markdown":
            cell["source"] = _relinked("".join(cell["source"]), sources)
        elif cell["metadata"].get("jupyter", {}).get("source_hidden"):
            cell["metadata"].setdefault("tags", []).append("hide-input")
    return json.dumps(book, ensure_ascii=False)


def _relinked(text: str, sources: set[str]) -> str:
    """Links out of the notebooks' folder, to the pages that have what they lead to."""
    text = re.sub(r"\]\(\.\./data/README\.md(#[^)]*)?\)", "](../data.md)", text)

    def to_page(link: re.Match[str]) -> str:
        path = link[1] if link[1].endswith(".py") else f"{link[1].rstrip('/')}/__init__.py"  # a folder's first page
        if path not in sources:
            raise ValueError(f"a notebook links to ../{link[1]}, which the site has no page for.")
        return f"](../source/{path}.md)"

    return re.sub(r"\]\(\.\./(inflib/[^)#]+)(?:#[^)]*)?\)", to_page, text)


def _reference(package: str, about: str) -> str:
    """Every public name of a package, in the order in which the package lists them."""
    module = importlib.import_module(package)
    lines = [f"# {package}", "", about, "", "```{eval-rst}"]
    for name in module.__all__:
        value = getattr(module, name)
        if isinstance(value, type):
            lines += [f".. autoclass:: {package}.{name}", "   :members:", ""]
        elif callable(value):
            lines += [f".. autofunction:: {package}.{name}", ""]
        elif type(value).__module__ == "builtins":  # whose own docstring says nothing of this one
            lines += [f".. py:data:: {package}.{name}", f"   :type: {type(value).__name__}", ""]
        else:
            lines += [f".. autodata:: {package}.{name}", ""]
    return "\n".join([*lines, "```", ""])


def build(out: Path) -> list[str]:
    """The site in ``out``; its dead links. Raises SystemExit where Sphinx warns or fails."""
    pages = out.with_name(f"{out.name}-pages")
    lay_out(pages)
    shutil.rmtree(out, ignore_errors=True)
    status = sphinx(["-q", "-W", "--keep-going", "-j", "2", "-b", "html", str(pages), str(out)])
    if status:
        raise SystemExit(status)
    return dead_links(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "site")
    out = parser.parse_args().out.resolve()
    dead = build(out)
    print("\n".join([*dead, f"{out / 'index.html'}: {len(dead)} dead links"]))
    raise SystemExit(bool(dead))


if __name__ == "__main__":
    main()
