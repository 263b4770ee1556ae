"""The image browser: which training images raised or lowered the model's answer to a query, and the way back.

Choose a query, a method, a damping; look at its proponents and opponents; click on one to see which queries it
influences most. Nothing refits and nothing is trained: see ``ImageInfluence``, which answers, and ``Answer``, which is
what is shown.
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path

import ipywidgets as W
from torch import nn

from ..curvature import Kronecker
from ..index import TrainIndex
from ..objectives import Objective
from .answer import QUERY, Answer, Ranked
from .base import Panel, csv_link, picture, signed, unsigned
from .image_influence import ImageInfluence, Images
from .ranking import ALL_LAYERS, PHRASES, Settings
from .strip import Card, Line, Strip

ANY_LABEL = "any"


class ImageBrowser(Panel):
    """Browse the influence of training images on queries, and of one training image on all queries.

    index:      a ``TrainIndex`` of the training images; its own curvature sets the unit of damping.
    curvatures: {name: curvature} to choose from, see ``three_methods``; None for the index's own alone.
    query, method, damping, count: what is shown first. Afterwards the controls decide, or ``ask`` and ``ask_back``.

    ``answer`` is what is shown, as plain values; ``table()`` and ``to_csv(path)`` hand it out.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        index: TrainIndex,
        train: Images,
        queries: Images,
        *,
        curvatures: Mapping[str, Kronecker] | None = None,
        query: int = 0,
        method: str | None = None,
        damping: float = 0.1,
        count: int = 8,
    ) -> None:
        super().__init__("ImageBrowser", "inflib-browser")
        self.influence = ImageInfluence(model, objective, index, train, queries, curvatures)
        self.answer: Answer
        self._queries = [self.influence.picture(QUERY, row) for row in range(len(queries.labels))]
        self._matching = list(range(len(self._queries)))  # rows of the queries that the filters let through
        self._query = query  # the last one asked about: where "back" leads
        first = Settings(method or next(iter(self.influence.curvatures)), damping, count=count)
        self._make_query_controls()
        self._make_setting_controls(first)
        self._make_view()
        self._watch_controls()
        self.ask(query)

    # --- from Python --------------------------------------------------------------------------------------------

    @property
    def settings(self) -> Settings:
        """What the controls say."""
        return Settings(
            self.method.value, self.damping.value, self.layer.value, self.measurement.value, self.count.value
        )

    def ask(self, query: int) -> Answer:
        """Show the proponents and opponents of the query in this row; filters that hide it are lifted."""
        with self.working():
            answer = self.influence.ask(query, self.settings)
            if query not in self._matching:
                self.misclassified.value, self.label_filter.value = False, ANY_LABEL
                self._match()
            self._query = query
            return self._draw(answer)

    def ask_back(self, training: int) -> Answer:
        """Show the queries that the training image in this row raised and lowered most."""
        with self.working():
            return self._draw(self.influence.ask_back(training, self.settings))

    def table(self) -> list[dict[str, object]]:
        """What is shown, a row for each picture: index, label, prediction, score, and how it was made."""
        return self.answer.table()

    def to_csv(self, path: str | Path) -> Path:
        """Write ``table`` as a CSV file."""
        path = Path(path)
        path.write_text(self.answer.as_csv(), encoding="utf-8")
        return path

    def as_text(self) -> str:
        return f"ImageBrowser: {self.answer.as_text()}"

    def as_html(self) -> str:
        return f"<p><b>Image browser</b> (a still; run the notebook for its controls)</p>{self.answer.as_html()}"

    # --- controls -----------------------------------------------------------------------------------------------

    def _make_query_controls(self) -> None:
        labels = sorted({one.label for one in self._queries}, key=lambda label: (len(label), label))
        self.position = W.IntSlider(min=0, max=len(self._queries) - 1, description="Query", **_WIDE)
        self.previous = W.Button(description="◀ previous", layout=W.Layout(width="96px"))
        self.next = W.Button(description="next ▶", layout=W.Layout(width="96px"))
        self.matches = W.HTML()
        self.label_filter = W.Dropdown(options=[ANY_LABEL, *labels], description="Label", style=_STYLE, layout=_NARROW)
        self.misclassified = W.Checkbox(description="only the misclassified", indent=False, layout=_NARROW)

    def _make_setting_controls(self, first: Settings) -> None:
        """Method, damping, layers, measurement, how many."""
        names = [(PHRASES.get(name, (name,))[0], name) for name in self.influence.measurements]
        self.method = W.ToggleButtons(
            options=list(self.influence.curvatures), value=first.method, description="Method", style=_BUTTONS
        )
        self.damping = W.FloatLogSlider(
            value=first.damping, min=-4, max=2, step=0.25, readout_format=".2g", description="Damping", **_WIDE
        )
        self.damping_note = W.HTML()
        layers = [ALL_LAYERS, *self.influence.layers]
        self.layer = W.Dropdown(options=layers, description="Layers", style=_STYLE, layout=_NARROW)
        self.measurement = W.Dropdown(options=names, description="Measured", style=_STYLE, layout=_NARROW)
        self.count = W.IntSlider(value=first.count, min=1, max=max(20, first.count), description="How many", **_WIDE)

    def _make_view(self) -> None:
        self.subject, self.explanation, self.csv = W.HTML(), W.HTML(), W.HTML()
        self.back = W.Button(description="◀ back to the query", layout=W.Layout(width="170px"))
        self.headings, self.strips = (W.HTML(), W.HTML()), (Strip(), Strip())
        indent = W.HTML(layout=W.Layout(width="74px"))
        ask = [
            self.position,
            W.HBox([indent, self.previous, self.next, self.matches]),
            W.HBox([self.label_filter, self.misclassified]),
            self.count,
        ]
        how = [self.method, self.damping, self.damping_note, W.HBox([self.layer, self.measurement])]
        left = W.VBox([self.subject, self.back], layout=W.Layout(flex="0 0 172px"))
        lists = [W.VBox(pair) for pair in zip(self.headings, self.strips, strict=True)]
        right = W.VBox(lists, layout=W.Layout(flex="1 1 400px"))
        self.arrange(
            [W.HBox([W.VBox(ask), W.VBox(how)], layout=_WRAP)],
            [W.HBox([left, right], layout=_WRAP), self.explanation, self.csv],
        )

    def _watch_controls(self) -> None:
        for control in (self.count, self.method, self.damping, self.layer, self.measurement):
            self.watch(control, self._again)
        for control in (self.misclassified, self.label_filter):
            self.watch(control, self._refilter)
        self.watch(self.position, lambda: self._move(0))
        self.watch(self.previous, lambda: self._move(-1))
        self.watch(self.next, lambda: self._move(+1))
        self.watch(self.back, lambda: self.ask(self._query))
        for strip in self.strips:
            strip.on_choose(lambda row: self.attempt(lambda: self._choose(row)))

    def _again(self) -> None:
        """The same subject with the controls' new settings."""
        subject = self.answer.subject
        (self.ask if subject.side == QUERY else self.ask_back)(subject.position)

    def _choose(self, row: int) -> None:
        """A picture was clicked: a training image is asked back, a query is asked."""
        (self.ask_back if self.answer.about_query else self.ask)(row)

    def _move(self, steps: int) -> None:
        """The query so many steps from where the slider is."""
        at = min(max(self.position.value + steps, 0), len(self._matching) - 1)
        self.ask(self._matching[at])

    def _refilter(self) -> None:
        """The filters changed: stay with the query if it still matches, else go to the first that does."""
        self._match()
        if not self._matching:
            self._draw(self.answer)
        else:
            self.ask(self._query if self._query in self._matching else self._matching[0])

    def _match(self) -> None:
        label, wrong = self.label_filter.value, self.misclassified.value
        self._matching = [
            row for row, one in enumerate(self._queries) if label in (ANY_LABEL, one.label) and (one.wrong or not wrong)
        ]

    # --- drawing ------------------------------------------------------------------------------------------------

    def _draw(self, answer: Answer) -> Answer:
        """Show the answer, and make the controls agree with it."""
        self.answer = answer
        self._draw_query_controls()
        self._draw_damping()
        self.subject.value = _subject_html(answer)
        self.back.layout.display = "none" if answer.about_query else ""
        for heading, strip, title, note, few in zip(
            self.headings, self.strips, answer.titles(), answer.notes(), answer.lists, strict=True
        ):
            heading.value = (
                f'<div class="inflib-heading">{escape(title)}</div><div class="inflib-quiet">{escape(note)}</div>'
            )
            strip.show([_card(ranked, answer) for ranked in few], title)
        remarks = (answer.explanation(), answer.warning())
        self.explanation.value = "".join(f'<div class="inflib-quiet">{escape(text)}</div>' for text in remarks if text)
        name = f"influence_{answer.subject.side.split()[0]}_{answer.subject.index}.csv"
        self.csv.value = csv_link(answer.table(), name, "Save what is shown as CSV")
        return answer

    def _draw_query_controls(self) -> None:
        n, there = len(self._matching), self._query in self._matching
        for control in (self.position, self.previous, self.next):
            control.disabled = not n
        if there:
            at = self._matching.index(self._query)
            self.position.max = max(self.position.max, at)  # a value may never be above its maximum
            self.position.value, self.position.max = at, n - 1
            self.previous.disabled, self.next.disabled = at == 0, at == n - 1
        found = f"{n} match" if n != 1 else "1 matches"
        self.matches.value = f'<div class="inflib-quiet inflib-note">{found}</div>'

    def _draw_damping(self) -> None:
        used = self.influence.calibrated(self.method.value)
        self.damping.disabled = not used
        numbers = ", ".join(unsigned(number, 2) for number in self.influence.damping(self.settings).values())
        note = f"× mean Λ: λ = {numbers}" if used else "plays no role in gradient dot products"
        self.damping_note.value = f'<div class="inflib-quiet inflib-note" style="margin-left:74px">{note}</div>'


_STYLE = {"description_width": "70px"}
_BUTTONS = {"description_width": "70px", "button_width": "auto"}
_WIDE = {"continuous_update": False, "style": _STYLE, "layout": {"width": "362px"}}
_NARROW = {"width": "185px"}
_WRAP = {"flex_flow": "row wrap", "grid_gap": "4px 24px"}


def _subject_html(answer: Answer) -> str:
    """The picture asked about, large, and what is known of it."""
    name, label, model, outcome = map(escape, answer.subject.describe())
    outcome = f"<b>{outcome}</b>" if answer.subject.wrong else outcome
    return (
        f'<div class="inflib-subject"><img src="{picture(answer.subject.image)}" width="140" height="140" alt="">'
        f'<div class="inflib-heading">{name}</div><div>{label}</div><div>{model}</div><div>{outcome}</div></div>'
    )


def _card(ranked: Ranked, answer: Answer) -> Card:
    """A picture of one of the lists."""
    one, number = ranked.picture, signed(ranked.shown)
    then = "shows the queries that it influences most" if answer.about_query else "shows what influences it most"
    spoken = f"{one.side} {one.index}, label {one.label}, the model says {one.predicted}, {number}; {then}"
    return Card(
        key=one.position,
        picture=picture(one.image),
        number=number,
        share=ranked.share,
        positive=ranked.shown > 0,
        lines=(Line(f"label {one.label}"), Line(f"model {one.predicted}", strong=one.wrong), Line(f"#{one.index}")),
        tip=f"{one.side} #{one.index}: a click {then}",
        spoken=spoken,
    )
