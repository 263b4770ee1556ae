"""Text as the course's language models read it: a vocabulary, and a corpus of token sequences that know their place.

A ``Vocabulary`` turns text into token ids, by character or by word, and back. A ``Corpus`` is N sequences of ids with
the vocabulary that made them; ``batches`` gives them in the form in which inflib takes data, ``place(n)`` says where
sequence n stands. The three corpora of notebook 08: ``alternating`` here, ``facts.facts``, ``shakespeare.shakespeare``.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..sequences import token_batches

TokenBatch = tuple[dict[str, Tensor], Tensor]  # ({"input_ids", "attention_mask"}, targets), all (B, T)


@dataclass(frozen=True, repr=False)
class Vocabulary:
    """Token id ↔ text: ``symbols[id]`` is a character, or a word where ``by_word``."""

    symbols: tuple[str, ...]
    by_word: bool = False

    def encode(self, text: str) -> list[int]:
        """The ids of the text's characters, or of its words (separated by blanks).

        Raises ValueError naming the first piece that is not in the vocabulary, and where it stands.
        """
        ids = {symbol: k for k, symbol in enumerate(self.symbols)}
        pieces = text.split() if self.by_word else text
        for at, piece in enumerate(pieces):
            if piece not in ids:
                unit = "word" if self.by_word else "character"
                raise ValueError(
                    f"{piece!r}, {unit} {at + 1} of the text, is not in this vocabulary of {len(self)} {unit}s; "
                    f"expected one of {self._some()}. Write it otherwise, or leave it out."
                )
        return [ids[piece] for piece in pieces]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of these ids: ``decode(encode(text)) == text``, but for the spacing between words."""
        return "".join(self.pieces(ids))

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """The text of each token; joined they are ``decode``, so that a word after the first begins with its blank."""
        found = [self.symbols[int(k)] for k in ids]
        return [" " * (self.by_word and at > 0) + piece for at, piece in enumerate(found)]

    def __len__(self) -> int:
        return len(self.symbols)

    def __repr__(self) -> str:
        return f"Vocabulary({len(self)} {'words' if self.by_word else 'characters'}: {self._some()})"

    def _some(self) -> str:
        """The symbols, or the first of them."""
        shown = self.symbols[:80] if not self.by_word else self.symbols[:12]
        text = " ".join(shown) if self.by_word else repr("".join(shown))
        return text + (f" and {len(self) - len(shown)} more" if len(shown) < len(self) else "")


def characters(text: str) -> Vocabulary:
    """The vocabulary of the characters that occur in the text, sorted."""
    return Vocabulary(tuple(sorted(set(text))))


def words(text: str) -> Vocabulary:
    """The vocabulary of the words that occur in the text, sorted; words are what blanks separate."""
    return Vocabulary(tuple(sorted(set(text.split()))), by_word=True)


@dataclass(frozen=True, eq=False, repr=False)
class Corpus:
    """N training sequences; row n of every score that is made of them is sequence n."""

    sequences: list[list[int]]
    vocabulary: Vocabulary
    places: Callable[[int], str]  # n → where sequence n stands
    around: Callable[[int], tuple[str, str]] | None = None  # n → the texts before and after it; None: rows n − 1, n + 1

    @classmethod
    def of(cls, texts: Sequence[str], vocabulary: Vocabulary, places: Callable[[int], str] | None = None) -> Corpus:
        """The texts, encoded; ``places`` names their places, "sequence n" where it is left out."""
        return cls([vocabulary.encode(text) for text in texts], vocabulary, places or (lambda n: f"sequence {n}"))

    @property
    def texts(self) -> list[str]:
        """The text of every sequence."""
        return [self.vocabulary.decode(ids) for ids in self.sequences]

    @property
    def context(self) -> int:
        """The longest input of these sequences: one less than the longest, whose last token is only predicted."""
        return max(map(len, self.sequences)) - 1

    def place(self, n: int) -> str:
        """Where in the corpus sequence n stands."""
        if not 0 <= n < len(self):
            raise IndexError(f"sequence {n} was asked for; expected 0 to {len(self) - 1}.")
        return self.places(n)

    def neighbours(self, n: int) -> tuple[str, str]:
        """The texts before and after sequence n in the corpus that it was cut from; empty at its beginning and end."""
        if not 0 <= n < len(self):
            raise IndexError(f"neighbours of sequence {n} were asked for; expected 0 to {len(self) - 1}.")
        if self.around is not None:
            return self.around(n)
        before = self.sequences[n - 1] if n > 0 else []
        after = self.sequences[n + 1] if n + 1 < len(self) else []
        return self.vocabulary.decode(before), self.vocabulary.decode(after)

    def batches(self, batch_size: int = 32, **options: Any) -> list[TokenBatch]:
        """(inputs, targets) batches in order, the form in which inflib takes data; options as for ``token_batches``."""
        return token_batches(self.sequences, batch_size, **options)

    def tensors(self) -> TokenBatch:
        """All sequences as one batch: what ``lab.train`` takes."""
        return self.batches(len(self))[0]

    def __getitem__(self, rows: slice | Sequence[int] | Tensor) -> Corpus:
        """The sequences in these rows (a slice, positions or a mask), which keep their places and neighbours."""
        at = torch.arange(len(self))[torch.as_tensor(rows) if not isinstance(rows, slice) else rows].tolist()
        return Corpus(
            [self.sequences[n] for n in at],
            self.vocabulary,
            lambda n: self.places(at[n]),
            lambda n: self.neighbours(at[n]),
        )

    def __len__(self) -> int:
        return len(self.sequences)

    def __repr__(self) -> str:
        tokens = sum(map(len, self.sequences))
        return f"Corpus({len(self)} sequences, {tokens} tokens, {self.vocabulary})"


def alternating(length: int = 200, window: int = 5) -> Corpus:
    """Every window of the string a0b1c2…j9k0…z5a6…: letters and digits in turn, each in its own order.

    The published experiment's corpus, with its character codes as ids (128 of them): 196 windows of 5 characters.
    Raises ValueError where no window fits.
    """
    if not 2 <= window <= length:
        raise ValueError(f"length={length}, window={window}; expected 2 ≤ window ≤ length: length=200, window=5.")
    letters, digits = string.ascii_lowercase, string.digits
    text = "".join(letters[k % 26] + digits[k % 10] for k in range(-(-length // 2)))[:length]
    windows = [text[at : at + window] for at in range(length - window + 1)]
    ascii_codes = Vocabulary(tuple(map(chr, range(128))))
    return Corpus.of(windows, ascii_codes, lambda n: f"characters {n} to {n + window - 1} of {length}")
