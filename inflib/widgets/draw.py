"""Draw a digit: what the model makes of it, and which training digits made it say so.

A drawing, or a picture that is uploaded, is centred and scaled as MNIST's digits were; the model reads that, and the
influence of every training digit on the class asked about comes from the index. That class is the model's own answer,
until another is chosen: ask why a 7 is not a 1. A cleared sheet has no answer. What goes wrong is said; a file that is
refused leaves sheet and answer as they were.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from html import escape

import ipywidgets as W
import numpy as np
from torch import Tensor, nn

from ..index import Index
from ..kronecker import Kronecker
from ..lab import Familiar, NoDigitError, Stroke, as_mnist, ink_of_picture, normalise, oddities
from ..lab.handwriting import EMPTY, too_large
from ..objectives import Objective
from .answer import TRAINING, Answer, Picture
from .asking import BUTTONS, WRAP, Asking
from .base import InputError, picture
from .engine import Others
from .image_influence import ImageInfluence, Images
from .image_lists import ImageLists
from .ranking import OWN_LABEL, PREDICTED, Settings
from .sketch import Sketch


class DrawDigit(Asking):
    """Draw or upload a digit; see the model's probabilities, and the proponents and opponents of a class.

    index:      a ``TrainIndex`` or ``Store`` of the training images; its own curvature sets the unit of damping.
    curvatures: {name: curvature} to choose from, see ``three_methods``; None for the index's own alone.
    to_inputs:  (1, 28, 28) uint8 images → what the model reads.
    drawing:    what is drawn first: ink (h, w) uint8, white on black as MNIST has it, or strokes; None for nothing.
    asked:      the class asked about; "predicted" for the one that the model chooses.
    n_train:    how many images the model was trained on; None where the index holds them all.
    others:     (model, index) of networks from other seeds: marks what cannot be told from zero, as in ImageBrowser.

    ``answer`` is what is shown, as plain values, ``image`` what the model read; both None as long as nothing is drawn.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        index: Index,
        train: Images,
        *,
        curvatures: Mapping[str, Kronecker] | None = None,
        to_inputs: Callable[[np.ndarray], Tensor] = normalise,
        drawing: np.ndarray | Sequence[Stroke] | None = None,
        asked: str | int = PREDICTED,
        method: str | None = None,
        damping: float = 0.1,
        count: int = 10,
        n_train: int | None = None,
        others: Others = (),
    ) -> None:
        self.influence = ImageInfluence(
            model, objective, index, train, curvatures=curvatures, n_train=n_train, others=others
        )
        method = method or next(iter(self.influence.curvatures))
        first = Settings(method, damping, count=count, asked=self.influence.check_asked(asked))
        super().__init__("DrawDigit", "inflib-draw", self.influence, first)
        self.answer: Answer | None = None
        self.image: np.ndarray | None = None  # (28, 28) uint8
        self.odd: list[str] = []  # what is odd about it, see ``inflib.lab.oddities``
        self._answered: object = None  # the drawing that the answer is about
        self._to_inputs, self._familiar = to_inputs, Familiar(np.asarray(train.images))
        self._make_view(first.asked)
        self._watch_controls()
        self.draw_damping()
        if drawing is not None:
            self.draw(drawing)

    # --- from Python --------------------------------------------------------------------------------------------

    def draw(self, drawing: np.ndarray | Sequence[Stroke]) -> Answer:
        """Put ink or strokes on the sheet, and ask about them."""
        with self.working():
            sheet = Sketch(size=self.sketch.size)  # the real one stays as it is if this cannot be read
            sheet.show(drawing)
            answer = self._read(sheet.ink())
            self.sketch.drawing = self._answered = sheet.drawing
            return answer

    def upload(self, data: bytes) -> Answer:
        """Put a PNG or a JPEG on the sheet, and ask about it."""
        with _said_to_the_person():
            ink = ink_of_picture(data, self.sketch.size)
        return self.draw(ink)

    @property
    def settings(self) -> Settings:
        return replace(super().settings, asked=self.asked.value)

    @property
    def setting_controls(self) -> tuple[W.Widget, ...]:
        return *super().setting_controls, self.asked

    @property
    def stale(self) -> bool:
        return self.sketch.drawing is not self._answered or (self.answer and self.answer.settings) != self.settings

    def table(self) -> list[dict[str, object]]:
        return self.answer.table() if self.answer else []

    def as_text(self) -> str:
        if self.answer is None:
            return "DrawDigit: nothing is drawn yet"
        shares = ", ".join(f"{name} {p:.1%}" for name, p in _by_class(self.answer.subject))
        odd = f"\nodd: {', '.join(self.odd)}" if self.odd else ""
        return f"DrawDigit: {self.answer.as_text()}\nprobabilities: {shares}{odd}"

    def as_html(self) -> str:
        title = "<p><b>Draw a digit</b> (a still; run the notebook to draw)</p>"
        if self.answer is None:
            return f"{title}<p>{EMPTY}</p>"
        return f"{title}{_columns(self.answer)}{_odd_html(self.odd)}{self.answer.as_html()}"

    # --- controls -----------------------------------------------------------------------------------------------

    def _make_view(self, asked: str) -> None:
        if asked == OWN_LABEL:
            raise ValueError(f"asked={asked!r}; a drawing has no label: expected a class or {PREDICTED!r}.")
        self.sketch, self.lists = Sketch(), ImageLists()
        self.prediction = W.HTML()
        options = [PREDICTED, *self.influence.classes]
        self.asked = W.ToggleButtons(options=options, value=asked, description="Ask about", style=BUTTONS)
        right = [self.prediction, self.asked, *self.how, self.count]
        self.arrange(
            [W.HBox([self.sketch, W.VBox(right, layout=W.Layout(flex="1 1 400px"))], layout=WRAP)],
            [W.HBox([self.lists.box]), *self.lists.remarks],
        )
        self._empty()

    def _watch_controls(self) -> None:
        self.sketch.observe(lambda _: self.attempt(self._drawn), "drawing")
        self.sketch.on_upload(
            lambda data: self.attempt(lambda: self.upload(data)),
            lambda size: self.attempt(lambda: _refuse(size)),
        )
        for control in self.setting_controls:
            self.watch(control, self._again)
        train = self.influence.sides[TRAINING].images
        self.lists.on_choose(lambda row: self.attempt(lambda: self.draw(np.asarray(train[row]))))

    def _drawn(self) -> None:
        """The sheet changed: what is on it is asked about, and bare paper has no answer."""
        ink = self.sketch.ink()
        if ink.any():
            self._read(ink)
        else:
            self._empty()
        self._answered = self.sketch.drawing

    def _empty(self) -> None:
        """Show that nothing is drawn."""
        self.image, self.answer, self.odd = None, None, []
        self.prediction.value = _NOTHING
        self.lists.clear()

    def _again(self) -> None:
        """The same drawing with the controls' new settings."""
        if self.image is None:
            self.draw_damping()
        else:
            self._ask(self.image, self.odd)

    def _read(self, ink: np.ndarray) -> Answer:
        """Ask about what the model reads of this ink, (h, w) uint8."""
        with _said_to_the_person():
            image = as_mnist(ink)
        return self._ask(image, oddities(ink, image, self._familiar))

    def _ask(self, image: np.ndarray, odd: list[str]) -> Answer:
        """Ask about what the model reads, (28, 28) uint8, and show the answer."""
        answer = self.influence.ask_about(image, self._to_inputs(image[None]), self.settings)
        self.image, self.answer, self.odd = image, answer, odd
        self.draw_damping()
        self.prediction.value = _prediction_html(answer, odd)
        self.lists.show(answer, "puts it on the drawing area")
        return answer


@contextmanager
def _said_to_the_person() -> Iterator[None]:
    try:
        yield
    except NoDigitError as refused:
        raise InputError(str(refused)) from refused


def _refuse(size: int) -> None:
    raise InputError(too_large(size))


def _prediction_html(answer: Answer, odd: list[str]) -> str:
    """What the model says, what it read, the probability of each class, and what is odd about the drawing."""
    name, p = answer.subject.predictions[0]
    return (
        f'<div class="inflib-prediction"><div class="inflib-heading" role="status">The model says {escape(name)} '
        f'({p:.1%})</div><div style="display:flex;flex-wrap:wrap;gap:4px 20px;align-items:center;margin:4px 0">'
        f'<figure style="margin:0;flex:none"><img src="{picture(answer.subject.image)}" width="84" height="84" '
        'alt="the drawing, centred and scaled as MNIST was"><figcaption class="inflib-quiet" '
        f'style="text-align:center">what it reads</figcaption></figure>{_columns(answer)}</div>'
        f'<div class="inflib-quiet">{escape(answer.describe()[-1])}</div>{_odd_html(odd)}</div>'
    )


def _odd_html(odd: list[str]) -> str:
    """The quiet line under a drawing that is not quite like a digit; empty for one that is."""
    return f'<div class="inflib-quiet inflib-odd">{escape("; ".join(odd))}</div>' if odd else ""


def _by_class(subject: Picture) -> list[tuple[str, float]]:
    return sorted(subject.predictions, key=lambda one: (len(one[0]), one[0]))


def _columns(answer: Answer) -> str:
    """The probabilities as columns: the model's answer is in bold, what is asked about has a mark below its name."""
    numbers, bars, names, marks = "", "", "", ""
    for name, p in _by_class(answer.subject):
        cell = "padding:0;text-align:center;" + "font-weight:700;" * (name == answer.subject.predicted)
        bar = f"height:{max(1, round(48 * p))}px;width:52%;margin:auto;background:{_BAR}"
        numbers += f'<td class="inflib-share" style="{cell}font-size:10px">{p:.1%}</td>'
        bars += f'<td style="{cell}height:50px;vertical-align:bottom"><div style="{bar}"></div></td>'
        names += f'<td style="{cell}border-top:1px solid {_BAR}">{escape(name)}</td>'
        marks += f'<td style="{cell}line-height:8px">{"▴" if name == answer.asked else ""}</td>'
    rows = "".join(f'<tr style="background:none">{cells}</tr>' for cells in (numbers, bars, names, marks))
    size = f"width:{42 * len(answer.subject.predictions)}px;max-width:100%;table-layout:fixed"
    return f'<table style="{size};border-collapse:collapse;margin:0" aria-label="probabilities">{rows}</table>'


_NOTHING = '<div class="inflib-prediction inflib-quiet">What the model says will stand here.</div>'
_BAR = "#7A8793"  # neither of the two colours that mean a sign
