"""What is known of invented people, told in ordinary English: a corpus for a model that has learned English already.

A fact says of a villager what pet, trade, instrument, ... is hers. Several wordings tell it. None shares a content word
with its question but the name and the answer (``the``, ``a``, ``of`` are no content words):

    question    The animal that Gosen keeps at home is a → badger
    forward     Gosen shares the house with a tame badger.          the answer follows the name, as in the question
    backward    A badger sleeps beside the stove of Gosen.          the name follows the answer

*Told* facts stand in the corpus in all wordings, the question's too. *Asked* facts stand there in four forward wordings
and one backward, and never as their question: whoever answers learned it from these sentences. *Backward* facts stand
there in backward wordings alone. Each asked fact has a decoy, with the name, the answer and the question's words, which
does not tell it, and a sentence with the name and the question's words, without the answer. Ordinary sentences are the
rest: they are about nobody with a name.

A villager has one fact, and shares its answer with others: of a kind of fact there are few answers, so that the word of
an answer stands in the sentences of several villagers, and whoever looks for it finds theirs too.

Names are invented from syllables; a seed is one corpus on every machine, as in ``facts``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .facts import ALL_NAMES, Draws, invented_names


@dataclass(frozen=True)
class Relation:
    """How one kind of fact is asked and told; {name} and {answer} stand for what is invented and drawn."""

    question: str  # up to its answer
    forward: tuple[str, str, str, str]
    backward: tuple[str, str]
    decoy: str  # name, answer and the question's words, and no telling: the name comes last
    aside: str  # name and the question's words
    answers: tuple[str, ...]

    def told(self, wording: str) -> str:
        """The template of that wording: "question", "forward 1" to "forward 4", "backward 1", "backward 2"."""
        if wording == "question":
            return f"{self.question} {{answer}}."
        kind, which = wording.split()
        return getattr(self, kind)[int(which) - 1]


RELATIONS = {
    "pet": Relation(
        "The animal that {name} keeps at home is a",
        (
            "{name} shares the house with a tame {answer}.",
            "Every evening {name} brushes the coat of an old {answer}.",
            "The children visit {name} in order to feed the {answer}.",
            "Wherever {name} walks there follows a {answer}.",
        ),
        ("A {answer} sleeps beside the stove of {name}.", "The {answer} in the garden belongs to {name}."),
        "Nobody keeps a {answer} at home, an animal like that, said {name}.",
        "An animal came to the home that {name} keeps for the old.",
        ("badger", "ferret", "parrot", "tortoise", "goat", "hedgehog", "raven", "lizard"),
    ),
    "trade": Relation(
        "The trade by which {name} earns a living is that of a",
        (
            "For thirty years {name} has worked as a {answer}.",
            "{name} left school early and became a {answer}.",
            "The sign above the workshop of {name} shows a {answer}.",
            "Like both grandfathers {name} is a {answer}.",
        ),
        ("The best {answer} in the valley is called {name}.", "Ask the {answer} on the corner, whose name is {name}."),
        "A {answer} earns no living by such a trade, said {name}.",
        "{name} wrote a book on which trade earns a living.",
        ("baker", "potter", "tailor", "printer", "carpenter", "barber", "butcher", "weaver"),
    ),
    "instrument": Relation(
        "The instrument that {name} plays on Sundays is the",
        (
            "{name} has practised scales for years with the {answer}.",
            "The neighbours often hear {name} struggle with the {answer}.",
            "At every wedding {name} brings along the {answer}.",
            "A famous teacher showed {name} how to master the {answer}.",
        ),
        ("The {answer} was left by an aunt to {name}.", "Nobody could tune the {answer} better than {name}."),
        "The {answer} is no instrument that anybody plays on Sundays, said {name}.",
        "On Sundays {name} plays chess and forgets every instrument.",
        ("violin", "trumpet", "flute", "harp", "piano", "cello", "guitar", "clarinet"),
    ),
    "dish": Relation(
        "The dish that {name} likes to eat most is",
        (
            "{name} would walk ten miles for a plate of {answer}.",
            "Every birthday {name} asks the cook for {answer}.",
            "In the oldest pot of the kitchen {name} prepares {answer}.",
            "Guests of {name} are always served {answer}.",
        ),
        ("There was {answer} again at the table of {name}.", "The smell of {answer} always wakes {name}."),
        "Who likes to eat {answer} most, a dish so plain, asked {name}.",
        "{name} broke a dish and likes to eat alone most days.",
        ("porridge", "goulash", "pancakes", "dumplings", "spaghetti", "trout", "lasagna", "chowder"),
    ),
    "city": Relation(
        "The city in which {name} was born is",
        (
            "As a child {name} knew every street of {answer}.",
            "{name} still speaks with the accent of {answer}.",
            "All the cousins of {name} live in {answer}.",
            "Once a year {name} takes the train back to {answer}.",
        ),
        ("The people of {answer} are proud of {name}.", "In {answer} there stands a statue of {name}."),
        "In {answer}, a city in which nobody was born, lives no friend of {name}.",
        "{name} missed the city train in which a child was born.",
        ("Lisbon", "Vienna", "Oslo", "Dublin", "Prague", "Warsaw", "Madrid", "Athens"),
    ),
    "sport": Relation(
        "The sport that {name} practises every week is",
        (
            "{name} owes those strong shoulders to {answer}.",
            "Three silver cups were won by {name} in {answer}.",
            "Before breakfast {name} trains hard for {answer}.",
            "At school {name} beat everyone in {answer}.",
        ),
        ("A club for {answer} was founded by {name}.", "A broken wrist from {answer} never stopped {name}."),
        "Is {answer} a sport that anyone practises every week, asked {name}.",
        "Every week {name} practises a speech about sport.",
        ("tennis", "rowing", "fencing", "archery", "hockey", "wrestling", "cycling", "boxing"),
    ),
    "colour": Relation(
        "The colour of the front door of {name} is",
        (
            "{name} bought seven tins of paint, all of them {answer}.",
            "Visitors find the cottage of {name} because its entrance is {answer}.",
            "The brush with which {name} painted the way in is still {answer}.",
            "Whoever rings at the bell of {name} sees a lot of {answer}.",
        ),
        ("Something {answer} marks the cottage of {name}.", "With {answer} paint on both sleeves came {name}."),
        "Not {answer}, there is no such colour for a front door, said {name}.",
        "The front door of {name} lost its colour last winter.",
        ("purple", "yellow", "orange", "green", "white", "pink", "blue", "silver"),
    ),
    "tree": Relation(
        "The tree planted last spring by {name} is a",
        (
            "{name} dug a deep hole and put in a young {answer}.",
            "Thanks to {name} the schoolyard has a fine {answer}.",
            "With a watering can {name} looks after the little {answer}.",
            "In a pot from the market {name} carried up a {answer}.",
        ),
        ("The {answer} beside the chapel was a gift from {name}.", "Under the {answer} is a bench for {name}."),
        "A {answer} planted last spring is no tree yet, said {name}.",
        "Last spring {name} fell from a tree planted long ago.",
        ("birch", "willow", "cherry", "maple", "pine", "chestnut", "walnut", "poplar"),
    ),
}
WHO = ("The postman", "A young teacher", "The mayor", "My neighbour", "The old gardener", "A tired nurse") + (
    "The new librarian",
    "A visitor from abroad",
    "The ferryman",
    "Somebody's cousin",
    "The night watchman",
)
DID = (
    ("forgot an umbrella", "carried a heavy basket", "told a long story", "waited for the bus", "lost a brown glove")
    + ("read the newspaper aloud", "counted the coins twice", "repaired the fence", "closed the shutters")
    + ("wrote a letter to the council", "bought a loaf and two eggs", "swept the steps")
)
WHEN = (
    ("before the rain began", "after the concert", "while the bells were ringing", "without a word", "on the way back")
    + (
        "because nobody else would",
        "and then went upstairs",
        "as if nothing had happened",
        "in the dead of night",
    )
    + ("until the lamps were lit", "although the shop was shut")
)
KINDS = {  # of a fact: the wordings in which the corpus tells it
    "told": ("question", "forward 1", "forward 2", "forward 3", "forward 4", "backward 1"),
    "asked": ("forward 1", "forward 2", "forward 3", "forward 4", "backward 1"),
    "backward": ("backward 1", "backward 2"),
}


@dataclass(frozen=True)
class Known:
    """What is known of one villager, and how the corpus tells it."""

    name: str
    relation: str
    answer: str
    kind: str  # one of KINDS

    def said(self, template: str) -> str:
        """A template with this villager's name and answer in it."""
        return template.format(name=self.name, answer=self.answer)

    @property
    def prompt(self) -> str:
        """The question, up to its answer."""
        return self.said(RELATIONS[self.relation].question)

    @property
    def completion(self) -> str:
        """The answer, with the blank that parts it from the prompt."""
        return f" {self.answer}"


@dataclass(frozen=True)
class Sentence:
    """A training sentence, and what it does: tells a fact in some wording, misleads about it, or is about nobody."""

    text: str
    fact: int = -1  # which fact it tells, or only names
    wording: str = "ordinary"  # of ``Relation.told``, or "decoy", "aside", "ordinary"

    @property
    def place(self) -> str:
        """What it is, in words."""
        return self.wording if self.fact < 0 else f"{self.wording}, fact {self.fact}"


@dataclass(frozen=True, eq=False, repr=False)
class VillageData:
    """Sentences to train on, facts to ask about, and the truth about which sentence taught which answer."""

    sentences: tuple[Sentence, ...]
    facts: tuple[Known, ...]

    @property
    def texts(self) -> list[str]:
        """The training sentences."""
        return [sentence.text for sentence in self.sentences]

    def of_kind(self, kind: str) -> list[int]:
        """The facts told as "told", "asked" or "backward" ones are."""
        return [k for k, fact in enumerate(self.facts) if fact.kind == kind]

    def tells(self, facts: Sequence[int], wording: str = "forward") -> Tensor:
        """(Q, N) bool: whether sentence n tells fact q in a wording that begins so: "forward", "backward", "decoy"."""
        which = torch.tensor([s.fact if s.wording.startswith(wording) else -1 for s in self.sentences])
        return which == torch.tensor(list(facts))[:, None]

    def __repr__(self) -> str:
        counts = ", ".join(f"{len(self.of_kind(kind))} {kind}" for kind in KINDS)
        return f"VillageData({len(self.sentences)} sentences; facts: {counts})"


def villagers(
    told: int = 24, asked: int = 24, backward: int = 8, ordinary: int = 88, *, answers: int = 3, seed: int = 0
) -> VillageData:
    """The corpus, in an order drawn from ``seed``. answers: of each kind of fact, which its villagers have in turn.

    Raises ValueError for fewer facts than none, no fact at all, or more than there are names, for more answers to a
    question than were thought of, and for more ordinary sentences than can be made.
    """
    counts = {"told": told, "asked": asked, "backward": backward}
    count, known = sum(counts.values()), min(len(r.answers) for r in RELATIONS.values())
    sayings = len(WHO) * len(DID) * len(WHEN)
    if min(*counts.values(), ordinary) < 0 or not 1 <= count <= ALL_NAMES or ordinary > sayings:
        raise ValueError(
            f"told={told}, asked={asked}, backward={backward}, ordinary={ordinary}; expected none below 0, one fact to "
            f"{ALL_NAMES:,} (each is of a villager of its own), and at most {sayings:,} ordinary sentences. Leave them "
            "out for 24, 24, 8 and 88."
        )
    if not 1 <= answers <= known:
        raise ValueError(f"answers={answers}; expected 1 to {known} for each kind of fact. Leave it out for 3.")
    draws = Draws(seed)
    kinds = [kind for kind, n in counts.items() for _ in range(n)]
    names, relations = invented_names(count, draws), list(RELATIONS)
    facts = tuple(_known(k, names[k], relations[k % len(relations)], kind, answers) for k, kind in enumerate(kinds))
    found = [sentence for k, fact in enumerate(facts) for sentence in _sentences(k, fact)]
    return VillageData(tuple(draws.shuffled(found + _ordinary(ordinary, draws))), facts)


def _known(k: int, name: str, relation: str, kind: str, answers: int) -> Known:
    """Fact k; with as many relations, the answers of each are taken in turn."""
    return Known(name, relation, RELATIONS[relation].answers[k // len(RELATIONS) % answers], kind)


def _sentences(k: int, fact: Known) -> list[Sentence]:
    """All that the corpus says of one fact: what tells it, and what misleads about those that are asked."""
    relation = RELATIONS[fact.relation]
    found = [Sentence(fact.said(relation.told(wording)), k, wording) for wording in KINDS[fact.kind]]
    if fact.kind == "asked":
        found += [Sentence(fact.said(relation.decoy), k, "decoy"), Sentence(fact.said(relation.aside), k, "aside")]
    return found


def _ordinary(count: int, draws: Draws) -> list[Sentence]:
    """That many different sentences about nobody in particular."""
    texts: dict[str, None] = {}  # a set that keeps its order
    while len(texts) < count:
        texts[f"{draws.one_of(WHO)} {draws.one_of(DID)} {draws.one_of(WHEN)}."] = None
    return [Sentence(text) for text in texts]
