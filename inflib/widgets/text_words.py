"""What a text browser may be asked with: the words, or the characters, that its model was trained on.

``Words`` lists them, completes the one that is being typed, and finds those that were meant where one is unknown:
with other capitals, which are put right, or with other letters, which are offered.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches

OFFERED = 8


@dataclass(frozen=True)
class Offer:
    """Words for one place of a text."""

    words: tuple[str, ...]
    start: int = 0  # of the place, and where it ends
    end: int = 0
    known: bool = True  # False: what stands there cannot be asked with

    def put_into(self, text: str, word: str) -> str:
        """The text with this word there, and a blank behind it where more may follow."""
        return text[: self.start] + word + (text[self.end :] or " ")


class Words:
    """The pieces of text that a model knows, each once; ``by_word`` where some are longer than a character."""

    def __init__(self, pieces: Iterable[str]) -> None:
        self.all = tuple(sorted({piece.strip() or piece for piece in pieces}))
        self.by_word = any(len(piece) > 1 for piece in self.all)
        self._known = set(self.all)
        self._cased = {piece.casefold(): piece for piece in reversed(self.all)}

    def describe(self) -> str:
        """How many there are of what."""
        return f"{len(self.all):,} {'words' if self.by_word else 'characters'}"

    def recased(self, text: str) -> str:
        """The text with every unknown piece that differs from a known one in its capitals alone put right.

        Blanks at either end of words mean nothing, and go.
        """
        pieces = re.split(r"(\s+)", text.strip()) if self.by_word else text
        return "".join(piece if piece in self._known else self._cased.get(piece.casefold(), piece) for piece in pieces)

    def offer(self, text: str) -> Offer:
        """Words for the first unknown one of a text, else such as complete its last; none for characters."""
        if not self.by_word:
            return Offer(())
        typed = list(re.finditer(r"\S+", text))
        for place in typed:
            last = place.end() == len(text)
            found = self._completing(place.group()) if last else ()
            if place.group().casefold() not in self._cased:
                return Offer(found or self._like(place.group()), *place.span(), known=False)
            if last:
                return Offer(found, *place.span())
        return Offer(())

    def _completing(self, start: str) -> tuple[str, ...]:
        folded = start.casefold()
        return tuple(word for word in self.all if word.casefold().startswith(folded) and word.casefold() != folded)[
            :OFFERED
        ]

    def _like(self, word: str) -> tuple[str, ...]:
        """The known words nearest to an unknown one."""
        found = get_close_matches(word.casefold(), list(self._cased), OFFERED)
        return tuple(self._cased[one] for one in found)
