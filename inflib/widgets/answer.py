"""What the image browser shows, as plain values, and the same as text, as HTML and as a table.

An ``Answer`` is about one picture. A query's lists the training pictures that raised its measurement (proponents) and
those that lowered it (opponents); a training picture's lists the queries that it raised and lowered most. Nothing here
knows of controls: the widget and its still are both drawn from this.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from .base import NEGATIVE, POSITIVE, csv_text, picture, signed
from .ranking import Ranking, Scored

QUERY, TRAINING, DRAWING = "query", "training digit", "drawing"


@dataclass(frozen=True, eq=False)
class Picture:
    """A labelled image of either side, or one of neither, and what the model makes of it."""

    side: str  # QUERY, TRAINING or DRAWING
    position: int  # its row on that side; -1 for a drawing
    index: int | None  # in the data set that both sides were taken from; None for a drawing
    image: np.ndarray  # (H, W) uint8
    label: str  # a drawing has none of its own: the one that is asked about
    predictions: tuple[tuple[str, float], ...]  # classes and their probabilities, the likeliest first: two at least
    label_probability: float

    @property
    def predicted(self) -> str:
        return self.predictions[0][0]

    @property
    def wrong(self) -> bool:
        return self.predicted != self.label

    @property
    def name(self) -> str:
        return self.side if self.index is None else f"{self.side} #{self.index}"

    @property
    def file_name(self) -> str:
        """For files about it: query_2209."""
        kind = self.side.split()[0]
        return kind if self.index is None else f"{kind}_{self.index}"

    def describe(self) -> tuple[str, ...]:
        """What it is, its label, the model's prediction, each a line."""
        model = ", ".join(f"{name} ({p:.0%})" for name, p in self.predictions[:2])
        if self.index is None:
            return self.name, f"asked about: label {self.label} ({self.label_probability:.2%})", f"model: {model}"
        outcome = "misclassified" if self.wrong else "classified correctly"
        return self.name, f"label {self.label}", f"model: {model}", outcome


@dataclass(frozen=True, eq=False, kw_only=True)
class Ranked(Scored):
    """A picture in one of the two lists."""

    picture: Picture


@dataclass(frozen=True, eq=False, kw_only=True)
class Answer(Ranking[Ranked]):
    """The subject, the two lists, and how much of the whole they hold."""

    subject: Picture

    @property
    def about_query(self) -> bool:
        """Whether the lists hold training digits; else they hold the queries that a training digit influences."""
        return self.subject.side != TRAINING

    def titles(self) -> tuple[str, str]:
        """A heading for each list."""
        quantity = self.settings.quantity
        if self.about_query:
            what = f"the {quantity} of label {self.subject.label}"
            return f"+ Proponents: training on them raised {what}", f"− Opponents: training on them lowered {what}"
        return (
            f"+ Queries it helps: training on it raised the {quantity} of their label",
            f"− Queries it hurts: training on it lowered the {quantity} of their label",
        )

    def explanation(self) -> str:
        """What the numbers mean, in words."""
        s = self.settings
        if not self.calibrated:
            return (
                "Numbers are gradient dot products. They have no unit: only their signs and their order say something. "
                "Damping plays no role in them."
            )
        whose = f"of label {self.subject.label}" if self.about_query else "of the query's label"
        which = "that digit" if self.about_query else "this training digit"
        return (
            f"Numbers are score ÷ {self.n_train:,}, in {s.unit}: how far the {s.quantity} {whose} is predicted to fall "
            f"(+) or rise (−) if {which} alone is left out of training. A first-order prediction: trust signs "
            "and order before sizes."
        )

    def warning(self) -> str:
        """A remark where the picture would mislead, else empty: the longest bar is as long however small its number."""
        if self.about_query and self.subject.label_probability > 0.999:
            return (
                f"The model is all but certain here (p = {self.subject.label_probability:.5f}), so that no single "
                "digit matters much: read the numbers, not the bars."
            )
        return ""

    # --- the same, as text, as HTML, as a table ----------------------------------------------------------------

    def as_text(self) -> str:
        """A few lines; deterministic."""
        lines = ["; ".join(self.subject.describe()), self.method()]
        for title, note, few in zip(self.titles(), self.notes(), self.lists, strict=True):
            lines.append(f"{title} ({note})")
            lines += [
                f"{signed(r.shown):>12}  #{r.picture.index:<6} label {r.picture.label}, model {r.picture.predicted}"
                for r in few
            ]
        return "\n".join(lines)

    def as_html(self) -> str:
        """Tables and pictures only; readable also where inline styles are taken out."""
        name, *about = self.subject.describe()
        subject = (
            f'<img src="{picture(self.subject.image)}" width="112" height="112" alt="{escape(name)}" '
            f'style="image-rendering:pixelated"><br><b>{escape(name)}</b><br>' + "<br>".join(map(escape, about))
        )
        lists = "".join(
            f"<p><b>{escape(title)}</b><br><small>{escape(note)}</small></p>{_still_row(few)}"
            for title, note, few in zip(self.titles(), self.notes(), self.lists, strict=True)
        )
        remarks = " ".join(text for text in (self.explanation(), self.warning()) if text)
        return (
            f"<p>{escape(self.method())}</p>"
            f"<table><tr><td {_LEFT}>{subject}</td><td {_LEFT}>{lists}</td></tr>"
            f"</table><p><small>{escape(remarks)}</small></p>"
        )

    def table(self) -> list[dict[str, object]]:
        """One row for each picture in the two lists, with all that says how its score was made."""
        names = ("proponent", "opponent") if self.about_query else ("helped", "hurt")
        return [self._table_row(which, place, ranked) for which, place, ranked in self.placed(names)]

    def as_csv(self) -> str:
        """``table`` as CSV text."""
        return csv_text(self.table())

    def _table_row(self, which: str, place: int, ranked: Ranked) -> dict[str, object]:
        one = ranked.picture
        return {
            "about": self.subject.side,
            "about_index": "" if self.subject.index is None else self.subject.index,
            "about_label": self.subject.label,
            "about_prediction": self.subject.predicted,
            "list": which,
            "rank": place,
            "index": one.index,
            "label": one.label,
            "prediction": one.predicted,
            "score": ranked.score,
            "predicted_change_if_removed": "" if ranked.change is None else ranked.change,
            **self.how(),
        }


# JupyterLab's own style overrules the attributes, and GitHub takes the style out
_LEFT = 'valign="top" align="left" style="vertical-align:top;text-align:left"'
_CENTRE = 'valign="top" align="center" style="vertical-align:top;text-align:center"'


def _still_row(few: Sequence[Ranked]) -> str:
    """The pictures of one list, side by side."""
    cells = []
    for r in few:
        colour, width = (POSITIVE if r.shown > 0 else NEGATIVE), max(2, round(56 * r.share))
        model = f"model {escape(r.picture.predicted)}"
        cells.append(
            f'<td {_CENTRE}><img src="{picture(r.picture.image)}" width="56" height="56" '
            f'alt="{escape(r.picture.side)} {r.picture.index}" style="image-rendering:pixelated"><br>'
            f'<b>{signed(r.shown)}</b><div style="height:5px;width:{width}px;margin:auto;background:{colour}"></div>'
            f"<small>label {escape(r.picture.label)}<br>{f'<b>{model}</b>' if r.picture.wrong else model}"
            f"<br>#{r.picture.index}</small></td>"
        )
    return f"<table><tr>{''.join(cells)}</tr></table>" if cells else ""
