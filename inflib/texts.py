"""Text for a language model: a prompt and its completion as the ids of whoever's tokenizer, and the text of each token.

A tokenizer is anything with ``encode(text)`` and ``decode(ids)``: Hugging Face's, tiktoken's, or a vocabulary of one's
own. It is asked for the text as a whole, prompt and completion together, and the ids are parted where the completion
begins: tokens cut a text otherwise alone than in context (" badger" is " bad|ger", "badger" may be "b|adger").
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import nn

from .notes import note

LONGEST = 16  # tokens that a message shows


class TokenNote(UserWarning):
    """Says that a completion is tokenised otherwise after its prompt than alone, and which of the two is used."""


class Parted(NamedTuple):
    """A text's ids, parted where its completion begins."""

    prompt: list[int]
    completion: list[int]


def part(tokenizer: Any, prompt: Any, completion: Any) -> Parted:
    """The ids of prompt + completion as one text, parted; what the tokenizer puts in front of every text stays there.

    Where one token holds the end of the prompt and the beginning of the completion, it counts to the completion. Warns
    with a TokenNote there, and where the completion alone would have other ids. Raises TypeError for what is no text,
    ValueError for an empty one.
    """
    for what, text in (("prompt", prompt), ("completion", completion)):
        if not isinstance(text, str):
            raise TypeError(
                f"the {what} is {text!r:.60}, beside a tokenizer; expected text. Leave tokenizer= out for token ids."
            )
    if not completion:
        raise ValueError("the completion is empty; expected at least one character, whose probability is asked about.")
    front, whole = _in_front(tokenizer), plain_ids(tokenizer, prompt + completion)
    alone = plain_ids(tokenizer, prompt) if prompt else []
    begins = next((k for k, (one, two) in enumerate(zip(alone, whole, strict=False)) if one != two), len(alone))
    then, by_itself = whole[begins:], plain_ids(tokenizer, completion)
    if begins < len(alone):
        _note(
            f"the prompt's end and the completion's beginning share a token, {_say(tokenizer, then)}; it counts to the "
            "completion. End the prompt where a token ends (before a blank, for most tokenizers)"
        )
    elif then != by_itself:
        _note(
            f"the completion is {_say(tokenizer, then)} after its prompt, and {_say(tokenizer, by_itself)} alone; what "
            "follows the prompt is asked about"
            + ("" if completion[:1].isspace() else ". Did you mean to begin it with a blank?")
        )
    return Parted(front + whole[:begins], then)


def plain_ids(tokenizer: Any, text: str) -> list[int]:
    """The ids of a text's own tokens, without those that a tokenizer adds around every text."""
    try:
        return list(tokenizer.encode(text, add_special_tokens=False))
    except TypeError:  # a tokenizer that adds none knows of no such argument
        return list(tokenizer.encode(text))


def _in_front(tokenizer: Any) -> list[int]:
    """The ids that the tokenizer puts before every text, as Llama's does and GPT-2's does not."""
    probe = "a"
    own, found = plain_ids(tokenizer, probe), list(tokenizer.encode(probe))
    starts = (k for k in range(len(found) - len(own) + 1) if found[k : k + len(own)] == own)
    return found[: next(starts, 0)]


def pieces(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """The text of each token; joined they are the text, whatever the tokenizer: bytes, word pieces, sentences.

    A token is decoded after the one before it, as some tokenizers leave out a first blank. A character of several
    tokens (an emoji in bytes) stands at the last of them, the others are empty.
    """
    found: list[str] = []
    last, begun = 0, 0  # where the last whole characters begin, and those that are under way
    for k in range(len(ids)):
        before, until = _decoded(tokenizer, ids[last:begun]), _decoded(tokenizer, ids[last : k + 1])
        if until.endswith("\ufffd") and k < len(ids) - 1:
            found.append("")
            continue
        found.append(until[len(before) :])
        last, begun = begun, k + 1
    return found


def _decoded(tokenizer: Any, ids: Sequence[int]) -> str:
    """The text of these ids as it stands: no special token left out, no blank tidied away."""
    try:
        return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))
    except TypeError:
        return str(tokenizer.decode(list(ids)))


def context_of(model: nn.Module) -> int | None:
    """How many positions a Hugging Face model reads at most, by its config; None where that does not say."""
    found = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    return found if isinstance(found, int) and found > 0 else None


def check_ids(model: nn.Module, ids: Sequence[int], tokenizer: Any = None) -> None:
    """Raise ValueError for ids that the model's embedding has no row for, or a tokenizer with far fewer than it has.

    Models round their rows up, to a multiple of 128 or so; a tokenizer that lacks an eighth of them is another's.
    """
    embed = getattr(model, "get_input_embeddings", lambda: None)()
    rows = getattr(embed, "num_embeddings", None)
    if rows is None:
        return
    known = len(tokenizer) if hasattr(tokenizer, "__len__") else None
    if max(ids, default=0) >= rows or (known is not None and not 7 / 8 * rows <= known <= rows):
        tells = f"a tokenizer of {known:,} tokens" if known is not None else f"the token id {max(ids):,}"
        raise ValueError(
            f"{tells} came with a model of {rows:,}; expected the model's own tokenizer. Load both by one name: "
            f"AutoTokenizer.from_pretrained({getattr(getattr(model, 'config', None), '_name_or_path', '') or '...'!r})."
        )


def _say(tokenizer: Any, ids: Sequence[int]) -> str:
    shown = "|".join(pieces(tokenizer, list(ids)[:LONGEST]))
    return repr(shown + ("|…" if len(ids) > LONGEST else ""))


def _note(text: str) -> None:
    note(f"{text}.", TokenNote)
