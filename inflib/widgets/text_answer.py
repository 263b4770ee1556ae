"""What the text browser shows, as plain values, and the same as text, as HTML and as a table.

A ``TextAnswer`` is about one question, a prompt and a completion: the training sequences that raised the measurement
(proponents) and those that lowered it (opponents), what each of their tokens adds to their score, and the layers that
carry it. Nothing here knows of controls: the widget and its still are both drawn from this.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from .base import NEGATIVE, POSITIVE, csv_text, signed
from .heat import heat_html, hottest, scale_html, token_name, visible
from .ranking import UNDECIDED, Ranking, Scored

HEATS = {  # what the colour of a token means: its name, and what training at the token is
    "position": ("at each position", "the update at that position, where the model reads it and predicts the next,"),
    "output": ("of each prediction", "training on the prediction of that token, given all before it,"),
    "input": ("of each token read", "making that token's embedding stronger"),
}


@dataclass(frozen=True, eq=False)
class Question:
    """A prompt and a completion, and what the model makes of them."""

    prompt: str
    completion: str
    pieces: tuple[str, ...]  # the completion's tokens
    probabilities: tuple[float, ...]  # of each of them, given all that stands before it
    likeliest: str  # what the model itself would say: as many tokens, the likeliest each time

    @property
    def log_likelihood(self) -> float:
        """log p(completion | prompt) in nats."""
        return sum(map(math.log, self.probabilities)) if all(self.probabilities) else -math.inf

    def describe(self) -> str:
        """The completion's probability, and the model's own choice."""
        p = math.exp(self.log_likelihood)
        same, own = self.likeliest == "".join(self.pieces), visible(self.likeliest.strip(" ") or self.likeliest)
        choice = "it is the model's own choice" if same else f"the model's own choice is “{own}”"
        return f"log p = {signed(self.log_likelihood)} nats (p = {p:.2g}); {choice}"

    def token_probabilities(self) -> str:
        """p of each token of the completion, the first two dozen of them; empty for a single token."""
        each = [f"{token_name(piece)} {p:.2g}" for piece, p in zip(self.pieces, self.probabilities, strict=True)]
        return "" if len(each) < 2 else "p by token: " + ", ".join(each[:24]) + ", …" * (len(each) > 24)


@dataclass(frozen=True, eq=False)
class Passage:
    """A training sequence, and where in the corpus it stands."""

    position: int  # its row in the corpus
    place: str  # in words
    pieces: tuple[str, ...]  # the text of each token
    before: str  # the text of the sequence before it, empty at the beginning
    after: str

    @property
    def text(self) -> str:
        return "".join(self.pieces)


@dataclass(frozen=True, eq=False, kw_only=True)
class RankedText(Scored):
    """A sequence in one of the two lists, with its score split by token and by layer."""

    passage: Passage
    tokens: np.ndarray  # (T,) of each piece of the text; NaN for the one that is only read, or only predicted
    layers: np.ndarray  # (L,) of each layer of the answer; they add up to the score where no layer is chosen

    @property
    def place(self) -> str:
        """Where it stands, and whether its score cannot be told from zero."""
        return f"{self.passage.place}, {UNDECIDED}" if self.undecided else self.passage.place

    @property
    def shown_tokens(self) -> np.ndarray:
        """(T,) in the unit of ``shown``: they add up to it, but for the influence of tokens as they are read."""
        return self.tokens * (self.shown / self.score)


@dataclass(frozen=True, eq=False, kw_only=True)
class TextAnswer(Ranking[RankedText]):
    """The question, the two lists, and what the layers contribute."""

    question: Question
    layers: tuple[str, ...]
    shares: np.ndarray  # (L, 2) the sum of all positive and of all negative scores in each layer, of all N sequences,
    # where scores are per norm each divided by that of all layers: a chosen layer changes no bar

    @property
    def limit(self) -> float:
        """The largest influence of a single token shown: full colour."""
        found = (np.nanmax(np.abs(row.shown_tokens), initial=0) for few in self.lists for row in few)
        return float(max(found, default=0.0))

    def titles(self) -> tuple[str, str]:
        """A heading for each list."""
        what = f"the {self.settings.quantity} of “{visible(_short(self.question.completion, 40))}”"
        return f"+ Proponents: predicted to have raised {what}", f"− Opponents: predicted to have lowered {what}"

    def explanation(self) -> str:
        """What the numbers mean, in words."""
        s = self.settings
        order = "They have no unit: only their signs and their order say something."
        if s.unit_norm:
            over = "scores" if self.calibrated else "gradient dot products"
            return (
                f"Numbers are {over} divided by the norm of the sequence's own gradient, so that long or surprising "
                f"sequences do not win by size alone. {order}"
            )
        if not self.calibrated:
            return f"Numbers are gradient dot products. {order} Damping plays no role in them."
        return (
            f"A contribution is score ÷ {self.n_train:,} ({self.scale.words}): what the {s.quantity} of the "
            "completion is predicted to lose (+), or to gain (−), if that sequence alone is left out of training. "
            "Its size is not checked, and often several times too large: trust signs and order."
        )

    def remarks(self) -> tuple[str, ...]:
        """What stands beneath the lists, each a paragraph."""
        return tuple(text for text in (self.explanation(), self.by_bits(), self.doubt()) if text)

    def legend(self) -> str:
        """What the colours mean, in words."""
        return (
            f"Colour: what {HEATS[self.settings.heat][1]} adds to the number on the left. Orange with a line: +; blue "
            "with dots: −. It grows with the square root, on one scale for all texts shown."
        )

    def colour_scale(self) -> str:
        """What the colours mean, as HTML: from the largest opponent token to the largest proponent one."""
        return scale_html(self.scale.number(-self.limit), self.scale.number(self.limit), self.scale.words)

    def bars(self) -> list[tuple[str, float, float, bool]]:
        """(layer, its positive part, its negative part, chosen) of the sum of all |scores| over layers, in order."""
        total = float(np.abs(self.shares).sum()) or 1.0
        return [
            (name, float(up) / total, float(down) / total, name == self.settings.layer)
            for name, (up, down) in zip(self.layers, self.shares, strict=True)
        ]

    # --- the same, as text, as HTML, as a table ----------------------------------------------------------------

    def as_text(self) -> str:
        """A few lines; deterministic."""
        q = self.question
        lines = [f"“{visible(q.prompt)}” → “{visible(q.completion)}”; {q.describe()}", self.method(), self.numbers()]
        for title, note, few in zip(self.titles(), self.notes(), self.lists, strict=True):
            lines.append(f"{title} ({note})")
            lines += [
                f"{self.scale.number(r.shown):>12}  {r.place}: {visible(_short(r.passage.text, 70))}" for r in few
            ]
        return "\n".join(lines)

    def as_html(self) -> str:
        """Tables and marked text only; readable also where styles are taken out."""
        q = self.question
        lists = "".join(
            f"<p><b>{escape(title)}</b><br><small>{escape(note)}</small></p>{self._still_rows(few)}"
            for title, note, few in zip(self.titles(), self.notes(), self.lists, strict=True)
        )
        return (
            f"<p><code>{escape(visible(q.prompt))}</code> → <code><b>{escape(visible(q.completion))}</b></code><br>"
            f"{escape(q.describe())}<br>{escape(self.method())}<br>{escape(self.numbers())}</p>"
            f"<table><tr><td {_LEFT}>{self._still_bars()}</td><td {_LEFT}>{lists}</td></tr></table>"
            f"<p><small>{self.colour_scale()}<br>{escape(self.legend())} Where colours are taken out, + is underlined "
            f"and − in italics. {escape(' '.join(self.remarks()))}</small></p>"
        )

    def _still_rows(self, few: Sequence[RankedText]) -> str:
        limit = self.limit
        rows = "".join(
            f"<tr><td {_RIGHT}><b>{self.scale.number(r.shown)}</b>{_bar(r.share, r.shown > 0, 56)}</td>"
            f"<td {_LEFT}>{heat_html(*hottest(r.passage.pieces, r.shown_tokens), limit, self.scale.number)}"
            f"<br><small>{escape(r.place)}</small></td></tr>"
            for r in few
        )
        return f"<table>{rows}</table>" if rows else ""

    def _still_bars(self) -> str:
        bars = self.bars()
        most = max((abs(part) for _, *parts, _ in bars for part in parts), default=0.0) or 1.0
        rows = "".join(
            f"<tr><td {_LEFT}><small>{f'<b>{escape(name)}</b>' if chosen else escape(name)}</small></td>"
            f"<td {_RIGHT}><small>−{-down:.0%}</small>{_bar(-down / most, False, 50)}</td>"
            f"<td {_LEFT}><small>+{up:.0%}</small>{_bar(up / most, True, 50)}</td></tr>"
            for name, up, down, chosen in bars
        )
        return f"<p><b>Layers</b><br><small>parts of all influence</small></p><table>{rows}</table>"

    def table(self) -> list[dict[str, object]]:
        """One row for each sequence in the two lists, with its layers' parts and all that says how it was scored."""
        return [
            {
                "prompt": self.question.prompt,
                "completion": self.question.completion,
                "list": which,
                "rank": place,
                "sequence": r.passage.position,
                "place": r.passage.place,
                "text": r.passage.text,
                "score": r.score,
                "contribution": "" if r.contribution is None else r.contribution,
                **({} if r.interval is None else dict(zip(("low", "high"), r.interval, strict=True))),
                **{f"score in {name}": float(part) for name, part in zip(self.layers, r.layers, strict=True)},
                **self.how(),
                "divided_by_norm": self.settings.unit_norm,
            }
            for which, place, r in self.placed(("proponent", "opponent"))
        ]

    def token_table(self) -> list[dict[str, object]]:
        """One row for each token of each sequence shown that has a value: its text and its influence."""
        return [
            {"list": which, "rank": place, "sequence": r.passage.position, "at": t, "token": piece, "score": value}
            for which, place, r in self.placed(("proponent", "opponent"))
            for t, (piece, value) in enumerate(zip(r.passage.pieces, r.tokens.tolist(), strict=True))
            if not math.isnan(value)
        ]

    def as_csv(self) -> str:
        """``table`` as CSV text."""
        return csv_text(self.table())


# JupyterLab's own style overrules the attributes, and GitHub takes the style out
_LEFT = 'valign="top" align="left" style="vertical-align:top;text-align:left"'
_RIGHT = 'valign="top" align="right" style="vertical-align:top;text-align:right"'


def _bar(share: float, positive: bool, width: int) -> str:
    colour = POSITIVE if positive else NEGATIVE
    side = "" if positive else ";margin-left:auto"
    return f'<div style="height:5px;width:{max(1, round(width * share))}px;background:{colour}{side}"></div>'


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
