"""A corpus of anybody's documents for the text browser, read with the tokenizer of the model that learned them.

The documents stay where they are: ``texts`` is whatever gives text n when asked for it, a list, a column of a
``datasets.Dataset``, lines of a file on disk; only those that are shown are tokenised. Any text may be asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ..texts import Parted, part, pieces, plain_ids


class TokenizerVocabulary:
    """Text ↔ token ids by a tokenizer with ``encode`` and ``decode``; ``begin`` stands before every text, unseen."""

    def __init__(self, tokenizer: Any, begin: str = "") -> None:
        self.tokenizer = tokenizer
        self.begin = plain_ids(tokenizer, begin) if begin else []

    def encode(self, text: str) -> list[int]:
        """The ids of a text from its beginning."""
        return [*self.begin, *plain_ids(self.tokenizer, text)]

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """The text of each token; that of the ids which begin every text is empty."""
        found, hidden = pieces(self.tokenizer, ids), len(self.begin)
        return [""] * hidden + found[hidden:] if hidden and list(ids[:hidden]) == self.begin else found

    def part(self, prompt: str, completion: str) -> Parted:
        """The ids of both as one text. Where two words meet, a blank is put between them."""
        meets = prompt[-1:].isalnum() and completion[:1].isalnum()
        ids = part(self.tokenizer, prompt, f" {completion}" if meets else completion)
        return Parted([*self.begin, *ids.prompt], ids.completion)


class Texts:
    """N documents: a corpus for ``TextBrowser``, in the order of the index.

    context: how many tokens of a document the model was trained on at most; the rest of a longer one was cut off.
    begin:   a text that stands before each in training, "<|endoftext|>" for one.
    places:  n → where document n stands, in words; "document n" where it is left out.
    """

    def __init__(
        self,
        texts: Sequence[str],
        tokenizer: Any,
        *,
        context: int,
        begin: str = "",
        places: Callable[[int], str] | None = None,
    ) -> None:
        self.texts, self.context = texts, context
        self.vocabulary = TokenizerVocabulary(tokenizer, begin)
        self.sequences = _Sequences(texts, self.vocabulary, context)
        self._places = places or (lambda n: f"document {n:,}")

    def place(self, n: int) -> str:
        """Where document n stands."""
        return self._places(n)

    def neighbours(self, n: int) -> tuple[str, str]:
        """Documents have none."""
        return "", ""


class _Sequences(Sequence[list[int]]):
    """The documents' token ids, made when one is asked for."""

    def __init__(self, texts: Sequence[str], vocabulary: TokenizerVocabulary, context: int) -> None:
        self._texts, self._vocabulary, self._context = texts, vocabulary, context

    def __len__(self) -> int:
        return len(self._texts)

    def __getitem__(self, n: Any) -> Any:
        if isinstance(n, slice):
            return [self[k] for k in range(*n.indices(len(self)))]
        return self._vocabulary.encode(self._texts[n])[: self._context + 1]

    def __iter__(self) -> Iterator[list[int]]:
        return (self[n] for n in range(len(self)))
