"""What the browsers of the course have in common: the controls that say how to score, and the table of what is shown.

A browser is an ``Asking`` panel: an ``Engine`` that answers, one control for each of its ``Settings``, and the answer
that is on show. What is asked about, and how an answer looks, is each browser's own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ipywidgets as W

from .base import Panel, unsigned
from .engine import Engine
from .layer_bars import labels
from .ranking import ALL_LAYERS, PHRASES, Settings

STYLE = {"description_width": "70px"}
BUTTONS = {"description_width": "70px", "button_width": "auto"}
WIDE = {"continuous_update": False, "style": STYLE, "layout": {"width": "362px"}}
NARROW = {"width": "185px"}
DAMPINGS = -4, 2  # powers of ten that the slider goes to
WRAP = {"flex_flow": "row wrap", "grid_gap": "4px 24px"}


class Asking(Panel):
    """A panel with the controls method, damping, layer, measurement and count; ``first`` is what they start at."""

    answer: Any  # what is shown, as plain values: has table() and as_csv()

    def __init__(self, label: str, css_class: str, engine: Engine, first: Settings) -> None:
        _check(first, engine)
        super().__init__(label, css_class)
        self._engine = engine
        names = [(PHRASES.get(name, (name,))[0], name) for name in engine.measurements]
        self.method = W.ToggleButtons(
            options=list(engine.curvatures), value=first.method, description="Method", style=BUTTONS
        )
        self.damping = W.FloatLogSlider(
            value=first.damping,
            min=DAMPINGS[0],
            max=DAMPINGS[1],
            step=0.25,
            readout_format=".3",
            description="Damping",
            **WIDE,
        )
        self.damping_note = W.HTML()
        layers = [(ALL_LAYERS,) * 2, *zip(labels(engine.layers), engine.layers, strict=True)]
        self.layer = W.Dropdown(options=layers, description="Layers", style=STYLE, layout={"width": "208px"})
        self.measurement = W.Dropdown(options=names, description="Measured", style=STYLE, layout={"width": "204px"})
        self.count = W.IntSlider(value=first.count, min=1, max=max(20, first.count), description="How many", **WIDE)
        self.how = [self.method, self.damping, self.damping_note, W.HBox([self.layer, self.measurement])]

    @property
    def settings(self) -> Settings:
        """What the controls say."""
        return Settings(
            self.method.value, self.damping.value, self.layer.value, self.measurement.value, self.count.value
        )

    @property
    def setting_controls(self) -> tuple[W.Widget, ...]:
        """The controls whose change asks the same question anew."""
        return self.count, self.method, self.damping, self.layer, self.measurement

    @property
    def shows(self) -> bool:
        return getattr(self, "answer", None) is not None

    def table(self) -> list[dict[str, object]]:
        """What is shown, a row for each example: index, label, prediction, score, and how it was made."""
        rows: list[dict[str, object]] = self.answer.table()
        return rows

    def to_csv(self, path: str | Path) -> Path:
        """Write ``table`` as a CSV file."""
        path = Path(path)
        path.write_text(self.answer.as_csv(), encoding="utf-8")
        return path

    def draw_damping(self) -> None:
        """Say what the damping is in numbers; where it plays no role its slider rests."""
        used = self._engine.calibrated(self.method.value)
        self.damping.disabled = not used
        note = f"× mean Λ: {self._lambdas()}" if used else "plays no role in gradient dot products"
        self.damping_note.value = f'<div class="inflib-quiet inflib-note" style="margin-left:74px">{note}</div>'

    def _lambdas(self) -> str:
        """λ of the layers asked about; of a layer whose curvature is rounding noise there is none to be said."""
        noisy = self._engine.noisy()
        of_layers = self._engine.damping(self.settings)
        numbers = [x for name, x in of_layers.items() if name not in noisy]
        left_out = sum(name in noisy for name in of_layers)
        whose = (
            "its curvature" if len(of_layers) == 1 else f"the curvature of {left_out} more layer{'s' * (left_out > 1)}"
        )
        why = f"{whose} is rounding noise and counts nothing"
        if not numbers:
            return f"no λ, {why}"
        many = len(numbers) > 4
        shown = (min(numbers), max(numbers)) if many else numbers
        each = (" to " if many else ", ").join(unsigned(x, 2) for x in shown)
        return f"λ = {each}" + f"; {why}" * bool(left_out)


def _check(first: Settings, engine: Engine) -> None:
    """Refuse what the controls cannot be set to: they would show the nearest they can, and score with that."""
    if first.method not in engine.curvatures:
        raise ValueError(f"method={first.method!r}; expected one of {', '.join(map(repr, engine.curvatures))}.")
    low, high = (10.0**power for power in DAMPINGS)
    if not low <= first.damping <= high:
        raise ValueError(
            f"damping={first.damping!r}; expected a multiple of each layer's mean eigenvalue that the slider reaches, "
            f"from {low:g} to {high:g}."
        )
    if not first.count >= 1:
        raise ValueError(f"count={first.count!r}; expected how many examples each list shows, 1 or more.")
