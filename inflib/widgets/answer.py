"""What the image browser shows, as plain values, and the same as text, as HTML and as a table.

An ``Answer`` is about one picture. A query's lists the training pictures that raised its measurement (proponents) and
those that lowered it (opponents); a training picture's lists the queries that it raised and lowered most. Three classes
are told apart everywhere: a picture's *label*, what the *model* says, and the *class* asked about. Nothing here knows
of controls: the widget and its still are both drawn from this.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from .base import NEGATIVE, POSITIVE, csv_text, picture
from .ranking import OWN_LABEL, PREDICTED, UNDECIDED, Ranking, Scored

QUERY, TRAINING, DRAWING = "query", "training digit", "drawing"


@dataclass(frozen=True, eq=False)
class Picture:
    """An image of either side, or one of neither, and what the model makes of it."""

    side: str  # QUERY, TRAINING or DRAWING
    position: int  # its row on that side; -1 for a drawing
    source: str  # the data set that both sides were taken from
    index: int | None  # in that data set; None for a drawing
    image: np.ndarray  # (H, W) uint8
    label: str | None  # None for a drawing
    predictions: tuple[tuple[str, float], ...]  # classes and their probabilities, the likeliest first: two at least

    @property
    def predicted(self) -> str:
        return self.predictions[0][0]

    @property
    def wrong(self) -> bool:
        return self.label is not None and self.predicted != self.label

    @property
    def number(self) -> str:
        """Where it is in its data set: MNIST #2209."""
        return f"{self.source} #{self.index}"

    @property
    def name(self) -> str:
        return self.side if self.index is None else f"{self.side}, {self.number}"

    @property
    def file_name(self) -> str:
        """For files about it: query_2209."""
        kind = self.side.split()[0]
        return kind if self.index is None else f"{kind}_{self.index}"

    def probability(self, name: str) -> float:
        """What the model gives this class."""
        return dict(self.predictions)[name]

    def asked(self, asked: str) -> str:
        """The class that this stands for: itself, the picture's label, or the model's prediction."""
        own = self.predicted if self.label is None else self.label
        return {OWN_LABEL: own, PREDICTED: self.predicted}.get(asked, asked)

    def describe(self) -> tuple[str, ...]:
        """What it is, its label, the model's prediction, each a line."""
        model = "model: " + ", ".join(f"{name} ({p:.0%})" for name, p in self.predictions[:2])
        if self.label is None:
            return self.name, model
        return self.name, f"label {self.label}", model, "misclassified" if self.wrong else "classified correctly"


@dataclass(frozen=True, eq=False, kw_only=True)
class Ranked(Scored):
    """A picture in one of the two lists."""

    picture: Picture


@dataclass(frozen=True, eq=False, kw_only=True)
class Answer(Ranking[Ranked]):
    """The subject, the two lists, and how much of the whole they hold."""

    subject: Picture

    @property
    def asked(self) -> str | None:
        """The class asked about; None where that differs from query to query."""
        if self.about_query:
            return self.subject.asked(self.settings.asked)
        return None if self.settings.asked in (OWN_LABEL, PREDICTED) else self.settings.asked

    @property
    def about_query(self) -> bool:
        """Whether the lists hold training digits; else they hold the queries that a training digit influences."""
        return self.subject.side != TRAINING

    def describe(self) -> tuple[str, ...]:
        """The subject, and how likely the model finds the class asked about, each a line."""
        if self.asked is None or not self.about_query:
            return self.subject.describe()
        return *self.subject.describe(), f"asked about: class {self.asked}, p = {self._probability():.2g}"

    def _probability(self) -> float:
        return self.subject.probability(self.subject.asked(self.settings.asked))

    def _whose(self) -> str:
        """Of which class the measurement is, in words."""
        if self.asked is not None:
            return f"of class {self.asked}"
        return "of their label" if self.settings.asked == OWN_LABEL else "of the class that the model says"

    def titles(self) -> tuple[str, str]:
        """A heading for each list."""
        what = f"the {self.settings.quantity} {self._whose()}"
        if self.about_query:
            return f"+ Proponents: predicted to have raised {what}", f"− Opponents: predicted to have lowered {what}"
        return (
            f"+ Queries it helps: predicted to have raised {what}",
            f"− Queries it hurts: predicted to have lowered {what}",
        )

    def explanation(self) -> str:
        """What the numbers mean, in words."""
        if not self.calibrated:
            return (
                "Gradient dot products have no unit: only their signs and their order say something. "
                "Damping plays no role in them."
            )
        which = "that digit" if self.about_query else "this training digit"
        return (
            f"A contribution is score ÷ {self.n_train:,} ({self.scale.words}): what the {self.settings.quantity} "
            f"{self._whose()} is predicted to lose (+), or to gain (−), if {which} alone is left out of training. "
            "Its size is not checked, and often several times too large: trust signs and order."
        )

    def remarks(self) -> tuple[str, ...]:
        """What stands beneath both lists, each a paragraph."""
        said = self.explanation(), self.by_bits(), self.doubt(), self.warning()
        return tuple(text for text in said if text)

    def warning(self) -> str:
        """A remark where the picture would mislead, else empty: the longest bar is as long however small its number."""
        if self.about_query and self._probability() > 0.999:
            return (
                f"The model is all but certain here (p = {self._probability():.5f}), so that no single digit matters "
                "much: read the numbers, not the bars."
            )
        return ""

    def captions(self, ranked: Ranked) -> tuple[tuple[str, bool], ...]:
        """Lines under a picture, and whether each is in bold: where it is a query, with p of the class asked about."""
        one = ranked.picture
        lines = [(f"label {one.label}", False), (f"model {one.predicted}", one.wrong), (f"#{one.index}", False)]
        if not self.about_query:
            name = one.asked(self.settings.asked)
            lines.append((f"p({name}) {_percent(one.probability(name))}", False))
        if ranked.undecided:
            lines.append((UNDECIDED, False))
        return tuple(lines)

    # --- the same, as text, as HTML, as a table ----------------------------------------------------------------

    def as_text(self) -> str:
        """A few lines; deterministic."""
        lines = ["; ".join(self.describe()), self.method(), self.numbers()]
        for title, note, few in zip(self.titles(), self.notes(), self.lists, strict=True):
            lines.append(f"{title} ({note})")
            lines += [
                f"{self.scale.number(r.shown):>12}  #{r.picture.index:<6} "
                f"label {r.picture.label}, model {r.picture.predicted}{f', {UNDECIDED}' if r.undecided else ''}"
                for r in few
            ]
        return "\n".join(lines)

    def as_html(self) -> str:
        """Tables and pictures only; readable also where inline styles are taken out."""
        name, *about = self.describe()
        subject = (
            f'<img src="{picture(self.subject.image)}" width="112" height="112" alt="{escape(name)}" '
            f'style="image-rendering:pixelated"><br><b>{escape(name)}</b><br>' + "<br>".join(map(escape, about))
        )
        lists = "".join(
            f"<p><b>{escape(title)}</b><br><small>{escape(note)}</small></p>{self._still_row(few)}"
            for title, note, few in zip(self.titles(), self.notes(), self.lists, strict=True)
        )
        remarks = " ".join(self.remarks())
        return (
            f"<p>{escape(self.method())}<br>{escape(self.numbers())}</p>"
            f"<table><tr><td {_LEFT}>{subject}</td><td {_LEFT}>{lists}</td></tr>"
            f"</table><p><small>{escape(remarks)}</small></p>"
        )

    def _still_row(self, few: Sequence[Ranked]) -> str:
        """The pictures of one list, side by side."""
        cells = []
        for r in few:
            colour, width = (POSITIVE if r.shown > 0 else NEGATIVE), max(2, round(56 * r.share))
            lines = [f"<b>{escape(text)}</b>" if strong else escape(text) for text, strong in self.captions(r)]
            cells.append(
                f'<td {_CENTRE}><img src="{picture(r.picture.image)}" width="56" height="56" '
                f'alt="{escape(r.picture.side)} {r.picture.index}" style="image-rendering:pixelated"><br>'
                f"<b>{self.scale.number(r.shown)}</b>"
                f'<div style="height:5px;width:{width}px;margin:auto;background:{colour}"></div>'
                f"<small>{'<br>'.join(lines)}</small></td>"
            )
        return f"<table><tr>{''.join(cells)}</tr></table>" if cells else ""

    def table(self) -> list[dict[str, object]]:
        """One row for each picture in the two lists, with all that says how its score was made."""
        names = ("proponent", "opponent") if self.about_query else ("helped", "hurt")
        return [self._table_row(which, place, ranked) for which, place, ranked in self.placed(names)]

    def as_csv(self) -> str:
        """``table`` as CSV text."""
        return csv_text(self.table())

    def _table_row(self, which: str, place: int, ranked: Ranked) -> dict[str, object]:
        one = ranked.picture
        asked = self.subject if self.about_query else one  # the query of the two
        return {
            "about": self.subject.side,
            "about_index": "" if self.subject.index is None else self.subject.index,
            "about_label": "" if self.subject.label is None else self.subject.label,
            "about_prediction": self.subject.predicted,
            "asked_class": asked.asked(self.settings.asked),
            "asked_probability": asked.probability(asked.asked(self.settings.asked)),
            "list": which,
            "rank": place,
            "index": one.index,
            "label": one.label,
            "prediction": one.predicted,
            "score": ranked.score,
            "contribution": "" if ranked.contribution is None else ranked.contribution,
            **({} if ranked.interval is None else dict(zip(("low", "high"), ranked.interval, strict=True))),
            **self.how(),
        }


# JupyterLab's own style overrules the attributes, and GitHub takes the style out
_LEFT = 'valign="top" align="left" style="vertical-align:top;text-align:left"'
_CENTRE = 'valign="top" align="center" style="vertical-align:top;text-align:center"'


def _percent(p: float) -> str:
    return "<0.1%" if p < 0.0005 else f"{p:.1%}"
