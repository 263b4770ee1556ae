"""The image browser: which training images raised or lowered the model's answer to a query, and the way back.

Choose a query, a method, a damping; look at its proponents and opponents; click on one to see which queries it
influences most. Nothing refits and nothing is trained: see ``ImageInfluence``, which answers, and ``Answer``, which is
what is shown.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from html import escape

import ipywidgets as W
from torch import nn

from ..index import Index
from ..kronecker import Kronecker
from ..objectives import Objective
from .answer import QUERY, Answer
from .asking import NARROW, STYLE, WIDE, WRAP, Asking
from .base import picture
from .engine import Others
from .image_influence import ImageInfluence, Images
from .image_lists import ImageLists
from .ranking import OWN_LABEL, PREDICTED, Settings

ANY_LABEL = "any"


class ImageBrowser(Asking):
    """Browse the influence of training images on queries, and of one training image on all queries.

    index:      a ``TrainIndex`` or ``Store`` of the training images; its own curvature sets the unit of damping.
    curvatures: {name: curvature} to choose from, see ``three_methods``; None for the index's own alone.
    query, method, damping, count: what is shown first. Afterwards the controls decide, or ``ask`` and ``ask_back``.
    asked:      the class asked about: each query's own label, the model's prediction, or a class: "why not 6?".
    source:     the name of the data set that the pictures' ``index`` counts in.
    n_train:    how many images the model was trained on; None where the index holds them all.
    others:     (model, index) of networks from other seeds, trained and indexed alike: where they, or dampings within a
                factor of three, do not agree on a sign, the picture is marked as not to be told from zero.

    ``answer`` is what is shown, as plain values; ``table()`` and ``to_csv(path)`` hand it out.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        index: Index,
        train: Images,
        queries: Images,
        *,
        curvatures: Mapping[str, Kronecker] | None = None,
        query: int = 0,
        method: str | None = None,
        damping: float = 0.1,
        count: int = 8,
        asked: str | int = OWN_LABEL,
        source: str = "MNIST",
        n_train: int | None = None,
        others: Others = (),
    ) -> None:
        self.influence = ImageInfluence(model, objective, index, train, queries, curvatures, source, n_train, others)
        method = method or next(iter(self.influence.curvatures))
        first = Settings(method, damping, count=count, asked=self.influence.check_asked(asked))
        super().__init__("ImageBrowser", "inflib-browser", self.influence, first)
        self.answer: Answer
        self._queries = [self.influence.picture(QUERY, row) for row in range(len(queries.labels))]
        self._matching = list(range(len(self._queries)))  # rows of the queries that the filters let through
        self._query = query  # the last one asked about: where "back" leads
        self._make_query_controls(first.asked)
        self._make_view()
        self._watch_controls()
        self.ask(query)

    # --- from Python --------------------------------------------------------------------------------------------

    @property
    def settings(self) -> Settings:
        return replace(super().settings, asked=self.asked.value)

    @property
    def setting_controls(self) -> tuple[W.Widget, ...]:
        return *super().setting_controls, self.asked

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

    @property
    def stale(self) -> bool:
        there = self._matching[self.position.value - 1] if self._matching else None
        return there != self._query or self.settings != self.answer.settings

    def as_text(self) -> str:
        return f"ImageBrowser: {self.answer.as_text()}"

    def as_html(self) -> str:
        return f"<p><b>Image browser</b> (a still; run the notebook for its controls)</p>{self.answer.as_html()}"

    # --- controls -----------------------------------------------------------------------------------------------

    def _make_query_controls(self, asked: str) -> None:
        labels = sorted({str(one.label) for one in self._queries}, key=lambda label: (len(label), label))
        self.position = W.IntSlider(min=1, max=len(self._queries), description="Query", **WIDE)
        self.previous = W.Button(description="◀ previous", layout=W.Layout(width="96px"))
        self.next = W.Button(description="next ▶", layout=W.Layout(width="96px"))
        self.matches = W.HTML()
        self.label_filter = W.Dropdown(options=[ANY_LABEL, *labels], description="Label", style=STYLE, layout=NARROW)
        classes = self.influence.classes
        self.asked = W.Dropdown(
            options=[(OWN_LABEL,) * 2, ("what the model says", PREDICTED), *zip(classes, classes, strict=True)],
            value=asked,
            description="Ask about",
            style=STYLE,
            layout=ASKED,
        )
        self.misclassified = W.Checkbox(description="only the misclassified", indent=False, layout=NARROW)

    def _make_view(self) -> None:
        self.subject, self.lists = W.HTML(), ImageLists()
        self.headings, self.strips = self.lists.headings, self.lists.strips
        self.explanation, self.csv = self.lists.remarks
        self.back = W.Button(description="◀ back to the query", layout=W.Layout(width="170px"))
        indent = W.HTML(layout=W.Layout(width="74px"))
        ask = [
            self.position,
            W.HBox([indent, self.previous, self.next, self.matches]),
            W.HBox([self.label_filter, self.misclassified]),
            self.asked,
            self.count,
        ]
        left = W.VBox([self.subject, self.back], layout=W.Layout(flex="0 0 172px"))
        self.arrange(
            [W.HBox([W.VBox(ask), W.VBox(self.how)], layout=WRAP)],
            [W.HBox([left, self.lists.box], layout=WRAP), *self.lists.remarks],
        )

    def _watch_controls(self) -> None:
        for control in self.setting_controls:
            self.watch(control, self._again)
        for control in (self.misclassified, self.label_filter):
            self.watch(control, self._refilter)
        self.watch(self.position, lambda: self._move(0))
        self.watch(self.previous, lambda: self._move(-1))
        self.watch(self.next, lambda: self._move(+1))
        self.watch(self.back, lambda: self.ask(self._query))
        self.lists.on_choose(lambda row: self.attempt(lambda: self._choose(row)))

    def _again(self) -> None:
        """The same subject with the controls' new settings."""
        subject = self.answer.subject
        (self.ask if subject.side == QUERY else self.ask_back)(subject.position)

    def _choose(self, row: int) -> None:
        """A picture was clicked: a training image is asked back, a query is asked."""
        (self.ask_back if self.answer.about_query else self.ask)(row)

    def _move(self, steps: int) -> None:
        """The query so many steps from where the slider is."""
        at = min(max(self.position.value - 1 + steps, 0), len(self._matching) - 1)
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
        self.draw_damping()
        self.subject.value = _subject_html(answer)
        self.back.layout.display = "none" if answer.about_query else ""
        then = "shows the queries that it influences most" if answer.about_query else "shows what influences it most"
        self.lists.show(answer, then)
        return answer

    def _draw_query_controls(self) -> None:
        n, there = len(self._matching), self._query in self._matching
        for control in (self.position, self.previous, self.next):
            control.disabled = not n
        where = f"0 of {len(self._queries):,} match"
        if there:
            at = self._matching.index(self._query) + 1
            self.position.max = max(self.position.max, at)  # a value may never be above its maximum
            self.position.value, self.position.max = at, n
            self.previous.disabled, self.next.disabled = at == 1, at == n
            where = f"{at} of {n:,}{self._filters()}, {self._queries[self._query].number}"
        self.matches.value = f'<div class="inflib-quiet inflib-note">{escape(where)}</div>'

    def _filters(self) -> str:
        """Which queries are stepped through, in words; empty for all."""
        wrong, label = self.misclassified.value, self.label_filter.value
        return " misclassified" * wrong + f" with label {label}" * (label != ANY_LABEL)


ASKED = {"width": "262px"}


def _subject_html(answer: Answer) -> str:
    """The picture asked about, large, and what is known of it."""
    name, *about = map(escape, answer.describe())
    lines = "".join(f"<div>{'<b>misclassified</b>' if line == 'misclassified' else line}</div>" for line in about)
    return (
        f'<div class="inflib-subject"><img src="{picture(answer.subject.image)}" width="140" height="140" alt="">'
        f'<div class="inflib-heading">{name}</div>{lines}</div>'
    )
