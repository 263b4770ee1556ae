"""Draw a digit: what the model makes of it, and which training digits made it say so.

A drawing, or a picture that is uploaded, is centred and scaled as MNIST's digits were; the model reads that, and the
influence of every training digit on the label asked about comes from the index. The label is the model's own answer,
until another is chosen: ask why a 7 is not a 1. What goes wrong is said, and leaves the former answer where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from html import escape

import ipywidgets as W
import numpy as np
from torch import Tensor, nn

from ..index import TrainIndex
from ..kronecker import Kronecker
from ..lab import NoDigitError, Stroke, as_mnist, ink_of_picture, normalise
from ..lab.handwriting import EMPTY, too_large
from ..objectives import Objective
from .answer import TRAINING, Answer, Picture
from .asking import BUTTONS, WRAP, Asking
from .base import InputError, picture
from .image_influence import ImageInfluence, Images
from .image_lists import ImageLists
from .ranking import Settings
from .sketch import Sketch

PREDICTED = "predicted"


class DrawDigit(Asking):
    """Draw or upload a digit; see the model's probabilities, and the proponents and opponents of a label.

    index:      a ``TrainIndex`` of the training images; its own curvature sets the unit of damping.
    curvatures: {name: curvature} to choose from, see ``three_methods``; None for the index's own alone.
    to_inputs:  (1, 28, 28) uint8 images → what the model reads.
    drawing:    what is drawn first: ink (h, w) uint8, white on black as MNIST has it, or strokes; None for nothing.
    label:      the class asked about; None for the one that the model chooses.

    ``answer`` is what is shown, as plain values, ``image`` what the model read; both None as long as nothing is drawn.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        index: TrainIndex,
        train: Images,
        *,
        curvatures: Mapping[str, Kronecker] | None = None,
        to_inputs: Callable[[np.ndarray], Tensor] = normalise,
        drawing: np.ndarray | Sequence[Stroke] | None = None,
        label: int | None = None,
        method: str | None = None,
        damping: float = 0.1,
        count: int = 10,
    ) -> None:
        self.influence = ImageInfluence(model, objective, index, train, curvatures=curvatures)
        first = Settings(method or next(iter(self.influence.curvatures)), damping, count=count)
        super().__init__("DrawDigit", "inflib-draw", self.influence, first)
        self.answer: Answer | None = None
        self.image: np.ndarray | None = None  # (28, 28) uint8
        self._to_inputs = to_inputs
        self._make_view(label)
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
            answer = self._ask(_read(sheet.ink()))
            self.sketch.drawing = sheet.drawing
            return answer

    def upload(self, data: bytes) -> Answer:
        """Put a PNG or a JPEG on the sheet, and ask about it."""
        with _said_to_the_person():
            ink = ink_of_picture(data, self.sketch.size)
        return self.draw(ink)

    @property
    def shows(self) -> bool:
        return self.answer is not None

    def table(self) -> list[dict[str, object]]:
        return self.answer.table() if self.answer else []

    def as_text(self) -> str:
        if self.answer is None:
            return "DrawDigit: nothing is drawn yet"
        shares = ", ".join(f"{name} {p:.1%}" for name, p in _by_class(self.answer.subject))
        return f"DrawDigit: {self.answer.as_text()}\nprobabilities: {shares}"

    def as_html(self) -> str:
        title = "<p><b>Draw a digit</b> (a still; run the notebook to draw)</p>"
        if self.answer is None:
            return f"{title}<p>{EMPTY}</p>"
        return f"{title}{_columns(self.answer.subject)}{self.answer.as_html()}"

    # --- controls -----------------------------------------------------------------------------------------------

    def _make_view(self, label: int | None) -> None:
        classes = self.influence.probabilities[TRAINING].shape[1]
        self.sketch, self.lists = Sketch(), ImageLists()
        self.prediction = W.HTML()
        options = [PREDICTED, *map(str, range(classes))]
        first = PREDICTED if label is None else str(label)
        if first not in options:
            raise ValueError(
                f"label={label!r}; expected a class from 0 to {classes - 1}, or None for what the model says."
            )
        self.label = W.ToggleButtons(options=options, value=first, description="Label", style=BUTTONS)
        right = [self.prediction, self.label, *self.how, self.count]
        self.arrange(
            [W.HBox([self.sketch, W.VBox(right, layout=W.Layout(flex="1 1 400px"))], layout=WRAP)],
            [W.HBox([self.lists.box]), *self.lists.remarks],
        )
        self.prediction.value = _prediction_html(None)

    def _watch_controls(self) -> None:
        self.sketch.observe(lambda _: self.attempt(lambda: self._ask(_read(self.sketch.ink()))), "drawing")
        self.sketch.on_upload(
            lambda data: self.attempt(lambda: self.upload(data)),
            lambda size: self.attempt(lambda: _refuse(size)),
        )
        for control in (self.label, *self.setting_controls):
            self.watch(control, self._again)
        train = self.influence.sides[TRAINING].images
        self.lists.on_choose(lambda row: self.attempt(lambda: self.draw(np.asarray(train[row]))))

    def _again(self) -> None:
        """The same drawing with the controls' new settings."""
        if self.image is None:
            self.draw_damping()
        else:
            self._ask(self.image)

    def _ask(self, image: np.ndarray) -> Answer:
        """Ask about what the model reads, (28, 28) uint8, and show the answer."""
        label = None if self.label.value == PREDICTED else int(self.label.value)
        answer = self.influence.ask_about(image, self._to_inputs(image[None]), self.settings, label)
        self.image, self.answer = image, answer
        self.draw_damping()
        self.prediction.value = _prediction_html(answer.subject)
        self.lists.show(answer, "puts it on the drawing area")
        return answer


@contextmanager
def _said_to_the_person() -> Iterator[None]:
    try:
        yield
    except NoDigitError as refused:
        raise InputError(str(refused)) from refused


def _read(ink: np.ndarray) -> np.ndarray:
    with _said_to_the_person():
        return as_mnist(ink)


def _refuse(size: int) -> None:
    raise InputError(too_large(size))


def _prediction_html(subject: Picture | None) -> str:
    """What the model says, what it read, and the probability of each class."""
    if subject is None:
        return '<div class="inflib-prediction inflib-quiet">What the model says will stand here.</div>'
    name, p = subject.predictions[0]
    return (
        f'<div class="inflib-prediction"><div class="inflib-heading" role="status">The model says {escape(name)} '
        f'({p:.1%})</div><div style="display:flex;flex-wrap:wrap;gap:4px 20px;align-items:center;margin:4px 0">'
        f'<figure style="margin:0;flex:none"><img src="{picture(subject.image)}" width="84" height="84" '
        'alt="the drawing, centred and scaled as MNIST was"><figcaption class="inflib-quiet" '
        f'style="text-align:center">what it reads</figcaption></figure>{_columns(subject)}</div></div>'
    )


def _by_class(subject: Picture) -> list[tuple[str, float]]:
    return sorted(subject.predictions, key=lambda one: (len(one[0]), one[0]))


def _columns(subject: Picture) -> str:
    """The probabilities as columns: the model's answer is in bold, what is asked about has a mark below its name."""
    numbers, bars, names, marks = "", "", "", ""
    for name, p in _by_class(subject):
        cell = "padding:0;text-align:center;" + "font-weight:700;" * (name == subject.predicted)
        bar = f"height:{max(1, round(48 * p))}px;width:52%;margin:auto;background:{_BAR}"
        numbers += f'<td style="{cell}font-size:10px">{p:.1%}</td>'
        bars += f'<td style="{cell}height:50px;vertical-align:bottom"><div style="{bar}"></div></td>'
        names += f'<td style="{cell}border-top:1px solid {_BAR}">{escape(name)}</td>'
        marks += f'<td style="{cell}line-height:8px">{"▴" if name == subject.label else ""}</td>'
    rows = "".join(f'<tr style="background:none">{cells}</tr>' for cells in (numbers, bars, names, marks))
    size = f"width:{42 * len(subject.predictions)}px;max-width:100%;table-layout:fixed"
    return f'<table style="{size};border-collapse:collapse;margin:0" aria-label="probabilities">{rows}</table>'


_BAR = "#7A8793"  # neither of the two colours that mean a sign
