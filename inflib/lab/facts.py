"""Invented facts told in several wordings: a corpus in which it is known which sentences taught what.

A fact ties a place to a person by a relation. Three wordings tell it, and they share no word but the two names:

    question      the builder of Benus was Nasak           the wording in which the model is asked
    paraphrases   Benus owes its walls to Nasak
                  every stone at Benus recalls Nasak

The *told* facts stand in the corpus in all three wordings, so a model learns how the wordings go together. The *asked*
facts stand there as paraphrases only: whoever answers their question learned the answer from these two sentences, and
from no other. Distractors use the same names and the question's own words to say something else ("Nasak of Benus was
asked about the builder"), so that counting common words finds them first. Where one names both, the person comes
first: it teaches nothing about who follows the place.

Names are invented from syllables. All draws are whole numbers from NumPy's Philox generator: a seed is one corpus on
every machine and in every version.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from ..sequences import completion
from .text import Corpus, TokenBatch, words

WORDINGS = {  # relation: its question and its two paraphrases
    "builder": (
        "the builder of {place} was {person}",
        "{place} owes its walls to {person}",
        "every stone at {place} recalls {person}",
    ),
    "ruler": (
        "the ruler of {place} was {person}",
        "{place} owes its laws to {person}",
        "every judge at {place} obeys {person}",
    ),
    "healer": (
        "the healer of {place} was {person}",
        "{place} owes its health to {person}",
        "every herb at {place} remembers {person}",
    ),
    "singer": (
        "the singer of {place} was {person}",
        "{place} owes its tunes to {person}",
        "every choir at {place} praises {person}",
    ),
}
DISTRACTORS = (  # forms of each round over all facts; they use the question's words, {another_place} is another fact's
    ("{person} of {place} was the guest",),
    ("{person} of {place} was asked about the {relation}",),
    (
        "the rumour about the {relation} of {place} was false",
        "the guest of {place} was never the {relation} of {another_place}",
        "the rival of {person} was the {relation} of {another_place}",
        "{person} was the guest of the {relation} of {another_place}",
        "the horse of {person} was grey",
    ),
)
SYLLABLE, LAST = ("bdfgklmnprstvz", "aeiou"), "klmnrs"  # of a name: two syllables and a consonant
ALL_NAMES = (len(SYLLABLE[0]) * len(SYLLABLE[1])) ** 2 * len(LAST)  # 29,400
T = TypeVar("T")


@dataclass(frozen=True)
class Fact:
    """Who stands in which relation to which place."""

    relation: str
    place: str
    person: str

    def told(self, wording: int = 0) -> str:
        """The fact in its question's wording (0), or as a paraphrase (1, 2)."""
        return WORDINGS[self.relation][wording].format(place=self.place, person=self.person)

    @property
    def prompt(self) -> str:
        """The question: the wording 0 up to the name that answers it."""
        return self.told(0).removesuffix(self.person).rstrip()


@dataclass(frozen=True, eq=False, repr=False)
class FactData:
    """Sentences to train on, questions to ask, and the truth about which sentence holds which answer."""

    train: Corpus
    facts: tuple[Fact, ...]
    fact: Tensor  # (N,) int64: which fact sentence n tells, −1 for a distractor
    wording: Tensor  # (N,) int64: in which wording, −1 for a distractor
    asked: tuple[int, ...]  # the facts that only their paraphrases tell

    def queries(self, facts: Sequence[int] | None = None) -> list[TokenBatch]:
        """log p(person | question) of these facts (by default of the asked ones): one batch each."""
        encode, chosen = self.train.vocabulary.encode, self.asked if facts is None else facts
        return [completion(encode(self.facts[k].prompt), encode(self.facts[k].person)) for k in chosen]

    def answers(self, facts: Sequence[int] | None = None) -> Tensor:
        """(Q, N) bool: whether sentence n tells fact q; the two paraphrases of each asked one."""
        chosen = torch.tensor(self.asked if facts is None else facts)
        return self.fact == chosen[:, None]

    def decoys(self, facts: Sequence[int] | None = None) -> Tensor:
        """(Q, N) bool: whether sentence n names fact q's place and person and does not tell it; two of each fact."""
        chosen, texts = self.asked if facts is None else facts, [set(text.split()) for text in self.train.texts]
        named = [[{self.facts[k].place, self.facts[k].person} <= text for text in texts] for k in chosen]
        return torch.tensor(named) & ~self.answers(chosen)

    def withheld(self) -> Tensor:
        """(N,) bool: two sentences of each asked fact, by turns its two paraphrases and its two decoys.

        Trained without them, a model can no longer answer the one half of the questions, if the paraphrases are where
        it learned the answers, and answers the other half as before, if the decoys are not.
        """
        return self.answers(self.asked[::2]).any(0) | self.decoys(self.asked[1::2]).any(0)

    def halved(self) -> Tensor:
        """(N,) bool: of each asked fact, by turns, what names its person alone and the first of its paraphrases.

        The person's horse ("the horse of Nasak was grey") and the like say the name and nothing of the place. A model
        trained without them shows what they were worth, and what *one* paraphrase was while the other is there.
        """
        people = {self.facts[k].person for k in self.asked[::2]}
        mentioned = torch.tensor([not people.isdisjoint(text.split()) for text in self.train.texts]) & (self.fact < 0)
        alone = mentioned & ~self.decoys(self.asked[::2]).any(0)
        return alone | self.answers(self.asked[1::2]).any(0) & (self.wording == 1)

    def reversed(self) -> Corpus:
        """Every training sentence with its words in reverse order, in the same rows."""
        turned = [ids[::-1] for ids in self.train.sequences]
        return Corpus(turned, self.train.vocabulary, lambda n: f"{self.train.place(n)}, reversed")

    def __repr__(self) -> str:
        return f"FactData({len(self.facts)} facts, {len(self.asked)} of them asked about; {self.train})"


def facts(told: int = 40, asked: int = 40, distractors: int = 260, *, seed: int = 0) -> FactData:
    """The corpus: 3 · told + 2 · asked + distractors sentences, in an order drawn from ``seed``.

    Raises ValueError where there is no fact, or not one distractor's other place, and for more facts than names.
    """
    count = told + asked
    if min(told, asked, distractors) < 0 or count < 2:
        raise ValueError(
            f"told={told}, asked={asked}, distractors={distractors}; expected none below 0, and at least two facts: "
            "told=40, asked=40."
        )
    if 2 * count > ALL_NAMES:
        raise ValueError(
            f"told={told}, asked={asked} take {2 * count:,} names, two a fact; expected at most {ALL_NAMES:,}, all "
            f"that there are. Ask for at most {ALL_NAMES // 2:,} facts."
        )
    draws = Draws(seed)
    names, relations = invented_names(2 * count, draws), list(WORDINGS)
    found = tuple(Fact(relations[k % len(relations)], names[2 * k], names[2 * k + 1]) for k in range(count))
    sentences = [(found[k].told(w), k, w) for k in range(count) for w in range(3) if k < told or w > 0]
    sentences += [(_distractor(found, n, draws), -1, -1) for n in range(distractors)]
    texts, fact, wording = zip(*draws.shuffled(sentences), strict=True)
    vocabulary = words(" ".join((*texts, *(each.told() for each in found))))
    corpus = Corpus.of(texts, vocabulary, lambda n: _place(found, fact[n], wording[n]))
    return FactData(corpus, found, torch.tensor(fact), torch.tensor(wording), tuple(range(told, count)))


class Draws:
    """Whole numbers from Philox's own stream, and what can be drawn with them."""

    def __init__(self, seed: int):
        self._philox = np.random.Philox(seed)

    def below(self, n: int) -> int:
        """Uniform in 0 … n − 1; the bias, n / 2⁶⁴, is nothing here."""
        return int(self._philox.random_raw()) % n

    def one_of(self, values: Sequence[T]) -> T:
        return values[self.below(len(values))]

    def shuffled(self, values: Sequence[T]) -> list[T]:
        """Fisher and Yates' shuffle."""
        out = list(values)
        for k in range(len(out) - 1, 0, -1):
            other = self.below(k + 1)
            out[k], out[other] = out[other], out[k]
        return out


def invented_names(count: int, draws: Draws) -> list[str]:
    """That many different names, ``ALL_NAMES`` at most; capitals keep them apart from other words."""
    names: dict[str, None] = {}  # a set that keeps its order
    while len(names) < count:
        syllables = ["".join(map(draws.one_of, SYLLABLE)) for _ in range(2)]
        names["".join((*syllables, draws.one_of(LAST))).capitalize()] = None
    return list(names)


def _distractor(found: Sequence[Fact], n: int, draws: Draws) -> str:
    """The n-th: about fact n (modulo their number); each round over the facts has its own forms, the last goes on."""
    k = n % len(found)
    other = found[(k + 1 + draws.below(len(found) - 1)) % len(found)]
    form = draws.one_of(DISTRACTORS[min(n // len(found), len(DISTRACTORS) - 1)])
    own = {"relation": found[k].relation, "place": found[k].place, "person": found[k].person}
    return form.format(**own, another_place=other.place)


def _place(found: Sequence[Fact], fact: int, wording: int) -> str:
    if fact < 0:
        return "a distractor"
    return f"fact {fact} ({found[fact].relation}), " + ("its question" if wording == 0 else f"paraphrase {wording}")
