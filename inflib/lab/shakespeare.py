"""Tiny Shakespeare: 40,000 lines of the plays, 1,115,394 characters, in sequences that know their speaker and line.

Compiled by A. Karpathy for char-rnn (2015). The file is found or fetched by ``downloads`` and checked by its SHA-256:
``$INFLIB_DATA/tinyshakespeare/input.txt`` first, then the cache, then the download.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable

from .downloads import TINY_SHAKESPEARE, read
from .text import Corpus, characters

SPEAKER = re.compile(r"(?:\A|(?<=\n\n))([^\n:]+):\n")  # after an empty line, alone on its line


def shakespeare(length: int = 128, *, progress: bool = True) -> Corpus:
    """The plays in N = 1,115,394 // length sequences of ``length`` characters, in order; the remainder is left out.

    ``place(n)`` names the speaker, the line of the file (from 1) and the character (from 0) at which sequence n begins.
    Raises FileNotFoundError where the file is neither on this machine nor to be downloaded, saying where to put it.
    """
    if length < 2:
        raise ValueError(f"length={length}; expected at least 2 characters: the first is never predicted.")
    text = read(TINY_SHAKESPEARE, progress=progress).decode("ascii")
    pieces = [text[at : at + length] for at in range(0, len(text) - length + 1, length)]
    where = places(text)
    return Corpus.of(pieces, characters(text), lambda n: where(n * length))


def places(text: str) -> Callable[[int], str]:
    """The function from a character's number to its speaker and line in a play written as this file is."""
    lines = [0, *(found.end() for found in re.finditer("\n", text))]
    speakers = [(found.start(1), found[1]) for found in SPEAKER.finditer(text)]
    starts = [start for start, _ in speakers]

    def where(at: int) -> str:
        turn = bisect_right(starts, at) - 1
        who = speakers[turn][1] if turn >= 0 else "before the first speaker"
        return f"{who}, line {bisect_right(lines, at)}, character {at}"

    return where
