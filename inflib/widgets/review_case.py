"""One example under review as plain values: its label, what the model and its opponents say, what is decided."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from torch import Tensor

from .review_decisions import RELABEL, Decision, Decisions
from .review_examples import name_of, shown
from .review_view import WORDS, example_html

VOTERS = 10  # opponents whose labels are counted


@dataclass(frozen=True, eq=False)
class Case:
    """What there is to know of example ``n``."""

    n: int
    name: str
    label: int
    opinion: tuple[tuple[int, float], ...]  # classes and their probabilities, the likeliest first
    opponents: tuple[tuple[int, float], ...]  # training examples and their relative scores < 0, the strongest first
    votes: dict[int, float]  # {class: strength} of the opponents that carry another label
    places: dict[str, int]  # {signal: place from 1}

    @property
    def target(self) -> int:
        """The class to relabel to: the model's, where it is another; else the opponents'; else the model's second."""
        predicted, second = (c for c, _ in self.opinion[:2])
        if predicted != self.label:
            return predicted
        return max(self.votes, key=lambda c: (self.votes[c], -c)) if self.votes else second

    @classmethod
    def of(cls, n: int, train: Any, probabilities: Tensor, scores: Tensor, places: dict[str, int], count: int) -> Case:
        """From the probabilities (C,) and the relative scores (N,) of all examples on this one's log odds."""
        labels, scores = train.labels, scores.clone()
        scores[n] = 0  # nobody is an opponent of himself, also where the loss is smoothed
        order = scores.argsort(stable=True)[: max(count, VOTERS)].tolist()
        against = tuple((k, float(scores[k])) for k in order if scores[k] < 0)
        votes: dict[int, float] = {}
        for k, score in against[:VOTERS]:
            if int(labels[k]) != int(labels[n]):
                votes[int(labels[k])] = votes.get(int(labels[k]), 0.0) - score
        likeliest = probabilities.argsort(descending=True, stable=True).tolist()
        opinion = tuple((c, float(probabilities[c])) for c in likeliest)
        return cls(n, name_of(train, n), int(labels[n]), opinion, against[:count], votes, places)

    def lines(self, classes: Sequence[str]) -> list[tuple[str, str]]:
        """(what, value) of what is said beside the picture."""
        model = ", ".join(f"{classes[c]} ({p:.0%})" for c, p in self.opinion[:2])
        total = sum(self.votes.values())
        share = self.votes.get(self.target, 0.0) / total if total else 0.0
        vote = f"{classes[self.target]} ({share:.0%} of their strength)" if share else "no other class than the model"
        return [
            ("label", classes[self.label]),
            ("model", model),
            ("opponents say", vote if self.opponents else "nothing, there are none"),
            ("place", ", ".join(f"{place:,} by {name}" for name, place in self.places.items())),
        ]


def decided_text(decision: Decision | None, classes: Sequence[str]) -> str:
    """What was decided about an example, empty for nothing."""
    if decision is None:
        return ""
    to = f" to {classes[decision.label]}" if decision.what == RELABEL and decision.label is not None else ""
    return f"decided: {WORDS[decision.what]}{to}"


def card(case: Case, train: Any, decisions: Decisions) -> dict[str, Any]:
    """The case as the desk draws it."""
    classes = decisions.classes
    decision = decisions.of.get(case.n)
    target = case.target if decision is None or decision.label is None else decision.label
    lines, strongest = case.lines(classes), max((-score for _, score in case.opponents), default=1.0)
    decided = decided_text(decision, classes)
    said = ", ".join(f"{what} {value}" for what, value in lines[:3])
    return {
        "key": case.n,
        "name": case.name,
        **shown(train, case.n),
        "lines": [list(line) for line in lines],
        "decided": decided,
        "heading": "Strongest opponents",
        "note": f"training examples whose influence speaks most against the label {classes[case.label]}; "
        "a click shows one"
        if case.opponents
        else "no training example speaks against this label",
        "opponents": [_opponent(k, -score / strongest, train, classes) for k, score in case.opponents],
        "classes": [[name, str(c)] for c, name in enumerate(classes) if c != case.label],
        "target": target,
        "can_undo": decisions.can_undo,
        "spoken": f"{case.name}, {said}{', ' + decided if decided else ''}",
    }


def _opponent(k: int, share: float, train: Any, classes: Sequence[str]) -> dict[str, Any]:
    name, label = name_of(train, k), classes[int(train.labels[k])]
    return {
        "key": k,
        **shown(train, k),
        "name": name,
        "label": label,
        "share": share,
        "spoken": f"opponent {name}, label {label}; shows it",
    }


def still_of(case: Case | None, train: Any, decisions: Decisions) -> str:
    """The case for where no script runs."""
    if case is None:
        return ""
    classes = decisions.classes
    lines = [*case.lines(classes), ("", decided_text(decisions.of.get(case.n), classes))]
    about = "".join(f"<div>{escape(what)} <b>{escape(value)}</b></div>" for what, value in lines if value)
    against = "".join(
        f'<figure style="margin:0 6px 6px 0;display:inline-block;max-width:100%">{example_html(train, k, 56)}'
        f"<figcaption>{escape(classes[int(train.labels[k])])}</figcaption></figure>"
        for k, _ in case.opponents
    )
    return (
        f"<div>{example_html(train, case.n, 112)}<div>{escape(case.name)}</div>{about}</div>"
        f"<div>strongest opponents</div>{against}"
    )
