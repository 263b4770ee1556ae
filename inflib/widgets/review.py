"""Review suspicious labels, and see what repairing them does.

Training examples come in the order of a signal, each with what speaks against its label; every decision can be undone,
is kept in a file where one is named, and comes back from it the next day. Then the network is trained again with the
decisions, and what became better stands beside what was predicted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import ipywidgets as W
import torch
from torch import Tensor, nn

from ..curvature import Damping
from ..index import TrainIndex
from ..objectives import Objective
from .base import InputError, Panel, csv_link
from .review_case import Case, card, still_of
from .review_decisions import KEEP, RELABEL, REMOVE, Decisions, Read, whole
from .review_desk import Desk
from .review_effects import Judged, Repair, Retrain, check_worth, judge, repair
from .review_examples import batches, check_fits, few, outputs_of
from .review_file import DecisionFile, text_of, write_whole
from .review_order import ANY, ANY_LABEL, DECIDED, UNDECIDED, Queue
from .review_signals import suspicion
from .review_view import progress_html, progress_text, repair_html, repair_lines, repair_note


class Review(Panel):
    """Review the labels of training examples, the most suspicious first, and retrain with what was decided.

    index:    a ``TrainIndex`` of the training examples under the labels that they have.
    train:    ``Examples``: inputs, labels, and images or texts to look at; or ``inflib.lab.Digits``.
    clean:    the same of other examples, whose labels can be trusted: they judge retraining, and give the harm.
    classes:  the classes' names; None for their numbers.
    signals:  {name: (N,) suspicion}, what to order by, the first at the start; None: ``suspicion`` of these arguments.
    retrain:  (labels (N,), kept (N,) bool) → the network trained with them; ``retraining`` makes one for a recipe.
    path:     a CSV file that every decision is written to, and that is read at the start if it is there.
    count:    how many opponents are shown.

    ``decisions`` has what was decided, ``repair`` what retraining came to. Raises ValueError for signals, labels or an
    index that do not fit the examples, and InputError for a file that holds other decisions; the file stays as it is.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        index: TrainIndex,
        train: Any,
        clean: Any = None,
        *,
        classes: Sequence[str] | None = None,
        signals: Mapping[str, Tensor] | None = None,
        retrain: Retrain | None = None,
        path: str | Path | None = None,
        damping: Damping = None,
        count: int = 6,
    ) -> None:
        super().__init__("Review", "inflib-review")
        self._model, self._objective, self._index, self._damping = model, objective, index, damping
        self._train, self._clean, self._retrain, self._count = train, clean, retrain, count
        self._probabilities = outputs_of(model, batches(model, train.inputs, train.labels)).softmax(1)
        names = tuple(map(str, range(self._probabilities.shape[1]))) if classes is None else tuple(classes)
        self.signals = dict(signals or suspicion(model, objective, index, train, clean, damping=damping))
        check_fits(self.signals, train.labels, names, self._probabilities.shape[1], len(index))
        self.decisions = Decisions(train.inputs, train.labels, names)
        self._queue = Queue(self.signals, self.decisions)
        self.repair: Repair | None = None
        self._before: Judged | None = None
        self._file = DecisionFile(path, self.decisions)
        self.case: Case | None = None
        self._make_controls(names)
        self._watch_controls()
        self._match()
        self._go(self._queue.first())

    # --- from Python --------------------------------------------------------------------------------------------

    def decide(self, example: int, what: str, label: int | str | None = None) -> None:
        """Decide about an example: "keep", "relabel" with a label, or "remove"; if it is on show, go on to the next."""
        with self.working():
            self._decide(example, what, label)

    def decide_all(self, decisions: Mapping[int, tuple[str, int | str | None]]) -> None:
        """Decide about many examples, {example: (what, label)}, all or none of them; one undo takes all of it back."""
        with self.working():
            self.decisions.decide_all(decisions)
            self._changed(self._queue.first)

    def undo(self) -> None:
        """Take the last decision back, and show the example it was about."""
        with self.working():
            self._undo()

    def show(self, example: int) -> None:
        """Show this example; filters that hide it are lifted."""
        with self.working():
            self._go(example)

    def order(self) -> list[int]:
        """The examples in the order of the signal chosen, whatever the filters."""
        return self._queue.order(self.signal.value)

    def to_csv(self, path: str | Path) -> Path:
        """Write the decisions as a CSV file, whole or not at all."""
        return write_whole(Path(path), self.decisions.as_csv())

    def read_csv(self, path: str | Path) -> Read:
        """Take the decisions of a CSV file over; see ``Decisions.read``."""
        return self.read(text_of(Path(path)))

    def read(self, text: str) -> Read:
        """The same of the contents of a file."""
        with self.working():
            found = self.decisions.read(text)
            self._changed(self._queue.first)
            return found

    def retrain(self) -> Repair:
        """Train again with the decisions and, once, without; show what changed on the clean set."""
        with self.working():
            if self._retrain is None or self._clean is None:
                raise InputError("there is nothing to retrain with: give Review retrain= and clean=")
            check_worth(self.decisions)
            if self._before is None:
                everything = torch.ones(len(self.decisions.given), dtype=torch.bool)
                unchanged = self._retrain(self.decisions.given, everything).eval()
                self._before = judge(unchanged, self._objective, self._clean)
            how = self._model, self._objective, self._index.curvature, self._train, self._clean, self.decisions
            done = self.repair = repair(*how, self._retrain, self._before, self._damping)
            self._repaired = dict(self.decisions.of)
            self._draw_repair()
            return done

    def as_text(self) -> str:
        lines = [f"Review: {progress_text(self.decisions)}; by {self.signal.value}"]
        if self.case is not None:
            about = "; ".join(f"{what} {value}" for what, value in self.case.lines(self.decisions.classes)[:3])
            lines.append(f"  {self.case.name}: {about}")
        if self.repair is not None:
            lines += [
                f"  {what}: {before} before, {after} after" for what, before, after, _ in repair_lines(self.repair)
            ]
            lines.append(f"  {repair_note(self.repair)}")
        return "\n".join(lines)

    def as_html(self) -> str:
        shown = still_of(self.case, self._train, self.decisions)
        title = "<p><b>Review of labels</b> (a still; run the notebook for its controls)</p>"
        return f"{title}{progress_html(self.decisions)}{shown}{self.outcome.value}"

    # --- controls -----------------------------------------------------------------------------------------------

    def _make_controls(self, classes: Sequence[str]) -> None:
        self.signal = W.Dropdown(options=list(self.signals), description="Order by", **_FORM)
        self.filter = W.Dropdown(options=[ANY, UNDECIDED, DECIDED], description="Show", **_FORM)
        there = sorted(set(self.decisions.given.tolist()))
        options = [("any label", ANY_LABEL), *((classes[c], c) for c in there)]
        self.label_filter = W.Dropdown(options=options, description="Label", **_FORM)
        self.place = W.IntSlider(min=1, max=len(self.decisions.given), description="Place", **_WIDE)
        self.where, self.progress, self.outcome, self.csv = W.HTML(), W.HTML(), W.HTML(), W.HTML()
        self.desk = Desk()
        self.upload = W.FileUpload(accept=".csv", description="Read decisions", layout={"width": "160px"})
        self.again = W.Button(description="Retrain with the decisions", layout={"width": "210px"})
        self.again.disabled = self._retrain is None or self._clean is None
        left = W.VBox([W.HBox([self.signal, self.filter, self.label_filter], layout=_WRAP), self.place, self.where])
        kept = W.HTML(f'<div class="inflib-quiet">{escape(self._file.where)}</div>')
        files = W.HBox([self.csv, kept, self.upload, self.again], layout=_WRAP | {"align_items": "center"})
        self.arrange([left, self.progress], [self.desk, files, self.outcome])

    def _watch_controls(self) -> None:
        for control in (self.signal, self.filter, self.label_filter):
            self.watch(control, self._refilter)
        self.watch(self.place, self._go_to_place)
        self.watch(self.upload, self._uploaded)
        self.watch(self.again, self.retrain)
        self.desk.on_act(lambda *what: self.attempt(lambda: self._act(*what)))

    def _act(self, action: str, example: int, label: Any) -> None:
        if action == "undo":
            self._undo()
        elif action == "show":
            self._go(example)
        elif action in (KEEP, RELABEL, REMOVE):
            self._decide(example, action, label if action == RELABEL else None)
        else:
            self._step({"next": 1, "previous": -1}[action])

    def _decide(self, example: int, what: str, label: int | str | None) -> None:
        example = whole(example, "example")
        shown = self.case is not None and self.case.n == example
        following = self._queue.following(example) if shown else None
        new = self.decisions.decide(example, what, label)
        self._match()
        if shown:
            self._go(following)
        else:
            self._draw()
        if new:
            self._file.keep()

    def _undo(self) -> None:
        n = self.decisions.undo()
        self._changed(lambda: self._queue.first() if n is None else n)

    def _changed(self, shown: Callable[[], int | None]) -> None:
        """Many decisions changed: draw them, whether or not they can be kept."""
        self._match()
        self._go(shown())
        self._file.keep()

    def _step(self, steps: int) -> None:
        if self.case is not None and self._queue.matching:
            self._go(self._queue.step(self.case.n, steps))

    def _go_to_place(self) -> None:
        there = self._queue.matching
        self._go(there[self.place.value - 1] if there else None)

    def _uploaded(self) -> None:
        files, self.upload.value = self.upload.value, ()
        for file in files:
            try:
                text = bytes(file["content"]).decode("utf-8-sig")
            except UnicodeDecodeError as error:
                raise InputError(
                    f"{file['name']} is no text in UTF-8; expected a CSV file. Nothing was read."
                ) from error
            found = self.read(text)
            self.busy.value = ""
            said = f"{file['name']}: {found.rows:,} decisions, {found.new:,} new, {found.changed:,} in place of others."
            self.where.value += f'<div class="inflib-quiet inflib-note" role="status">{escape(said)}</div>'

    # --- what is shown ------------------------------------------------------------------------------------------

    def _match(self) -> None:
        self._queue.match(self.signal.value, self.filter.value, self.label_filter.value)

    def _refilter(self) -> None:
        self._match()
        n = None if self.case is None else self.case.n
        self._go(n if n in self._queue.matching else self._queue.first())

    def _go(self, n: int | None) -> None:
        """Show an example."""
        n = None if n is None else whole(n, "example")
        if n is not None and not 0 <= n < len(self.decisions.given):
            raise ValueError(f"example {n}; expected one from 0 to {len(self.decisions.given) - 1}.")
        if n is not None and n not in self._queue.matching:
            self.filter.value, self.label_filter.value = ANY, ANY_LABEL
            self._match()
        if n is None or self.case is None or self.case.n != n:
            self.case = None if n is None else self._look(n)
        self._draw()

    def _look(self, n: int) -> Case:
        one = batches(self._model, few(self._train.inputs, [n]), self._train.labels[[n]])
        how: dict[str, Any] = {"damping": self._damping, "measurement": "margin", "relative": "loss"}
        scores = self._index.influence(self._model, self._objective, one, **how)[0].double().cpu()
        places = {name: int(place[n]) for name, place in self._queue.places.items()}
        return Case.of(n, self._train, self._probabilities[n], scores, places, self._count)

    def _draw(self) -> None:
        case, total = self.case, len(self._queue.matching)
        said = f"{total:,} by {self.signal.value}"
        if case is None:
            found = {"key": -1, "empty": "No example matches: all of these are decided, or none is.", "can_undo": True}
        else:
            found = card(case, self._train, self.decisions)
        self.desk.card = found
        self.place.disabled = total < 2
        if case is not None:
            at = self._queue.matching.index(case.n) + 1
            self.place.max = max(self.place.max, at)
            self.place.value, self.place.max = at, total
            said = f"{at:,} of {said}"
        self.where.value = f'<div class="inflib-quiet inflib-note">{escape(said)}</div>'
        self.progress.value = progress_html(self.decisions)
        self.csv.value = csv_link(self.decisions.table(), "decisions.csv", "Save decisions as CSV")
        self._draw_repair()

    def _draw_repair(self) -> None:
        if self.repair is not None:
            former = self._repaired != self.decisions.of
            self.outcome.value = repair_html(self.repair, self._clean, self.decisions.classes, former=former)


_FORM = {"style": {"description_width": "64px"}, "layout": {"width": "250px"}}
_WIDE = {"continuous_update": False, "style": {"description_width": "64px"}, "layout": {"width": "380px"}}
_WRAP = {"flex_flow": "row wrap", "grid_gap": "4px 18px"}
