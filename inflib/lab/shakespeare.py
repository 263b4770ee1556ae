"""Shakespeare's plays, in sequences that know their speaker and line: two of them ship, the rest is downloaded.

Compiled by A. Karpathy for char-rnn (2015), 40,000 lines, 1,115,394 characters. ``two_plays`` is what the model of
notebook 08 was trained on: all of it but its beginning, *Romeo and Juliet*, then *Henry VI, part 3*, in
``data/two_plays.txt.gz``. ``shakespeare`` is everything, found or fetched by ``downloads`` and checked by its SHA-256:
``$INFLIB_DATA/tinyshakespeare/input.txt`` first, then the cache, then the download.
"""

from __future__ import annotations

import gzip
import hashlib
import re
import zlib
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass

from .downloads import FOLDER, TINY_SHAKESPEARE, read
from .text import Corpus, characters

SPEAKER = re.compile(r"(?:\A|(?<=\n\n))([^\n:]+):\n")  # after an empty line, alone on its line


@dataclass(frozen=True)
class Start:
    """Where in the whole file a text begins."""

    character: int = 0
    line: int = 1
    speaker: str = "before the first speaker"


WHOLE = Start()
TWO_PLAYS = slice(448_000, 704_000)  # characters of the whole file
TWO_PLAYS_FILE = FOLDER / "two_plays.txt.gz"
TWO_PLAYS_SHA256 = "1e2f2d21623f53091b17a5c68e7f1d9e25da84f26ec6bf1445e7898e18a62cb1"  # of the text
TWO_PLAYS_START = Start(448_000, 15_820, "BENVOLIO")


def two_plays(length: int = 128) -> Corpus:
    """*Romeo and Juliet* and *Henry VI, part 3* in N = 256,000 // length sequences of ``length`` characters, in order.

    They ship; places are those of the whole file, as for ``shakespeare``. Raises ValueError for a damaged file.
    """
    _check(length)
    try:
        content = gzip.decompress(TWO_PLAYS_FILE.read_bytes())
    except (EOFError, OSError, zlib.error) as problem:
        raise ValueError(f"{TWO_PLAYS_FILE} cannot be read ({problem}); {_AGAIN}") from problem
    sha256 = hashlib.sha256(content).hexdigest()
    if sha256 != TWO_PLAYS_SHA256:
        raise ValueError(f"{TWO_PLAYS_FILE} has SHA-256 {sha256}, expected {TWO_PLAYS_SHA256} (unpacked); {_AGAIN}")
    return _cut(content.decode("ascii"), length, TWO_PLAYS_START)


_AGAIN = "check it out again, or make it anew: python data/build_two_plays.py."


def shakespeare(length: int = 128, *, progress: bool = True) -> Corpus:
    """The plays in N = 1,115,394 // length sequences of ``length`` characters, in order; the remainder is left out.

    ``place(n)`` names the speaker, the line of the file (from 1) and the character (from 0) at which sequence n begins.
    Raises FileNotFoundError where the file is neither on this machine nor to be downloaded, saying where to put it.
    """
    _check(length)
    return _cut(read(TINY_SHAKESPEARE, progress=progress).decode("ascii"), length, WHOLE)


def places(text: str, start: Start = WHOLE) -> Callable[[int], str]:
    """The function from a character's number to its speaker and line in a play written as this file is."""
    lines = [0, *(found.end() for found in re.finditer("\n", text))]
    speakers = [(found.start(1), found[1]) for found in SPEAKER.finditer(text)]
    starts = [begins for begins, _ in speakers]

    def where(at: int) -> str:
        turn = bisect_right(starts, at) - 1
        who = speakers[turn][1] if turn >= 0 else start.speaker
        return f"{who}, line {start.line - 1 + bisect_right(lines, at)}, character {start.character + at}"

    return where


def _cut(text: str, length: int, start: Start) -> Corpus:
    """The text in sequences of ``length`` characters, without gaps; a remainder is left out."""
    pieces = [text[at : at + length] for at in range(0, len(text) - length + 1, length)]
    where = places(text, start)
    return Corpus.of(pieces, characters(text), lambda n: where(n * length))


def _check(length: int) -> None:
    if length < 2:
        raise ValueError(f"length={length}; expected at least 2 characters: the first is never predicted.")
