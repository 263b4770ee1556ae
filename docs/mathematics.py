"""Formulas as MathML, which browsers draw by themselves: no script, no fonts from elsewhere."""

from __future__ import annotations

import html
import re

from docutils import nodes
from latex2mathml.converter import convert

# what latex2mathml 3.81 leaves as text, or draws badly
WRITTEN_OTHERWISE = (
    (re.compile(r"\\arg\s*\\(min|max)"), r"\\operatorname*{arg\\,\1}"),
    (re.compile(r"\\[bB]igg?[lr]?\s*(\\[lr]angle|\\\||[()|\[\]])"), r"\1"),
    (re.compile(r"\{\\rm\s+([^{}]*)\}"), r"\\text{\1}"),
    (re.compile(r"\\ "), r"\\;"),
    (re.compile(r"\\top(?![A-Za-z])"), r"\\mathsf{T}"),  # as an operator it stands too high without a mathematical font
)


def as_mathml(translator, node: nodes.math | nodes.math_block) -> None:
    """Write a formula into the page; a renderer of Sphinx's. Raises SkipNode, as renderers do."""
    block = isinstance(node, nodes.math_block)
    translator.body.append(mathml(node.astext(), block=block))
    raise nodes.SkipNode


def mathml(latex: str, *, block: bool) -> str:
    """A formula's MathML. Raises ValueError naming what has been left in LaTeX."""
    written = latex.strip()
    for pattern, otherwise in WRITTEN_OTHERWISE:
        written = pattern.sub(otherwise, written)
    found = convert(written, display="block" if block else "inline")
    left = re.search(r"\\[A-Za-z]+", re.sub(r"<[^>]*>", " ", found))
    if left:
        raise ValueError(
            f"{left[0]} in the formula {latex!r} has no MathML; write it otherwise, or add it to {__name__}."
        )
    label = html.escape(latex.strip(), quote=True)
    found = found.replace("<math ", f'<math aria-label="{label}" ', 1)
    return f'<div class="formula">{found}</div>' if block else found
