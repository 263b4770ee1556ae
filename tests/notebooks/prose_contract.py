"""What a reader of a notebook's text trips over: headings that are none, and sentences that are too long."""

from __future__ import annotations

import re
from collections.abc import Iterator

from notebook_contract import Book, Rule, words

SECTIONS = ("Summary", "Exercises", "References")
LONG = 25  # words of prose in a sentence, formulas and code not counted
MAX_LONG = 0.05  # share of the sentences
DISPLAYED, INLINE = re.compile(r"\$\$.*?\$\$", re.DOTALL), re.compile(r"\$[^$]*\$")
BLOCK = re.compile(r"\n\s*\n|\n(?=\s*(?:[-*] |\d+\. |\||#))")
ABBREVIATION = re.compile(r"\b(et al|e\.g|i\.e|cf|vs)\.")
SENTENCE_END = re.compile(r"(?<=[.!?])[\"”)*]*\s+(?=\S)")
PROSE_RULES: dict[str, Rule] = {}


def rule(function: Rule) -> Rule:
    PROSE_RULES[function.__name__] = function
    return function


def markdown(book: Book) -> Iterator[str]:
    """The text of every markdown cell, without code blocks."""
    for cell in book.nb.cells:
        if cell.cell_type == "markdown":
            yield re.sub(r"```.*?```", "", cell.source, flags=re.DOTALL)


def sentences(text: str) -> list[str]:
    """The sentences of a markdown text; headings and tables are none, an item of a list begins one."""
    blocks = (block.strip() for block in BLOCK.split(INLINE.sub("…", DISPLAYED.sub(" ", text))))
    prose = (" ".join(block.split()) for block in blocks if not block.startswith(("#", "|")))
    split = (SENTENCE_END.split(ABBREVIATION.sub(r"\1", block)) for block in prose)
    return [sentence for block in split for sentence in block if words(sentence)]


@rule
def has_its_sections(book: Book) -> Iterator[str]:
    """Each by a heading of its own: one that has run into the line before it is none."""
    lines = {line for text in markdown(book) for line in text.splitlines()}
    for name in SECTIONS:
        if f"## {name}" not in lines:
            yield f"no heading '## {name}' on a line of its own: has it run into the text before it?"


@rule
def headings_are_headings(book: Book) -> Iterator[str]:
    for text in markdown(book):
        for line in text.splitlines():
            if re.match(r"#+[^#\s]|\s+#+\s", line) or re.search(r"\S\s+#{2,}\s", line):
                yield f"{line!r}: a heading begins its line with # and a space"
            if re.fullmatch(r"(\*\*|__)[^*_]+\1:?", line.strip()):
                yield f"{line!r}: bold on a line of its own poses as a heading"


@rule
def long_sentences_are_rare(book: Book) -> Iterator[str]:
    texts = [text for text in markdown(book) if not text.startswith("## References")]
    counts = {sentence: words(sentence) for text in texts for sentence in sentences(text)}
    long = sorted((n, sentence) for sentence, n in counts.items() if n > LONG)
    if len(long) > MAX_LONG * len(counts):
        longest = "\n".join(f"    {n} words: {sentence}" for n, sentence in reversed(long))
        yield f"{len(long)} of {len(counts)} sentences have more than {LONG} words, over {MAX_LONG:.0%}:\n{longest}"
