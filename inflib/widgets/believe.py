"""The board as a widget: methods against a bank of retrainings, at any damping, with one query's changes beside it.

Left, every method's linear datamodeling score and slope at the settings of the dials, and the ceiling. Right, one
query: what a method's scores predict for each retraining on half of the data, against what the bank measured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

import ipywidgets as W
import torch
from torch import Tensor

from ..validation import Bank, bank_calibration, ceiling, datamodeling
from ..validation.datamodeling import sides
from .base import Panel, unsigned
from .ladder_view import square

UNITS = {"margin": "nats of log odds", "log_likelihood": "nats", "loss": "nats"}


@dataclass(frozen=True)
class Dials:
    """The settings at which scores are asked for."""

    damping: float  # in mean eigenvalues of each layer
    steps: int  # conjugate-gradient steps of refined methods; others have none
    measurement: str


Scorer = Callable[[Dials], Tensor]  # → scores (Q, N) of the queries shown, as ``influence`` gives them


class BelieveBoard(Panel):
    """Browse how far to believe a method: its score on a bank, its sizes, one query's predictions against the truth.

    bank:    networks retrained on subsets; its measurements are the dial's options.
    methods: {name: Dials → scores (Q, N)}; asked once for each setting.
    queries: positions in the bank of the Q queries; captions: what each is, Q texts.
    refined: names of the methods that ``steps`` matters to.
    damping, steps, method: what is shown first.

    Raises ValueError for no method, and for captions or scores that do not fit the queries.
    """

    def __init__(
        self,
        bank: Bank,
        methods: Mapping[str, Scorer],
        queries: Sequence[int] | Tensor,
        captions: Sequence[str],
        *,
        refined: Sequence[str] = (),
        damping: float = 0.1,
        steps: int = 5,
        method: str | None = None,
    ) -> None:
        super().__init__("BelieveBoard", "inflib-believe")
        if not methods or len(captions) != len(queries):
            raise ValueError(
                f"{len(methods)} methods, {len(queries)} queries and {len(captions)} captions; expected at least one "
                "method and a caption for each query."
            )
        self._bank, self._methods, self._refined = bank, dict(methods), frozenset(refined)
        self._queries, self._captions = torch.as_tensor(queries), list(captions)
        self._held: dict[tuple[str, Dials], tuple[Tensor, str, str]] = {}
        names = list(self._methods)
        self.method = W.Dropdown(options=names, value=method or names[0], description="Method", **_FORM)
        self.measurement = W.Dropdown(
            options=[(name.replace("_", "-"), name) for name in bank.values], description="Measured", **_FORM
        )
        if "margin" in bank.values:
            self.measurement.value = "margin"
        self.damping = W.FloatLogSlider(
            value=damping, min=-2, max=1, step=0.25, readout_format=".3", description="Damping", **_WIDE
        )
        self.steps = W.IntSlider(value=steps, min=0, max=20, description="Steps", **_WIDE)
        self.query = W.IntSlider(value=1, min=1, max=len(self._captions), description="Query", **_WIDE)
        self.table, self.scatter = W.HTML(), W.HTML()
        for name, view in {"table": self.table, "scatter": self.scatter}.items():
            view.add_class(f"inflib-believe-{name}")
        left, right = W.VBox([self.method, self.measurement]), W.VBox([self.damping, self.steps, self.query])
        self.arrange([W.HBox([left, right], layout=_WRAP)], [W.HBox([self.table, self.scatter], layout=_WRAP)])
        for control in (self.damping, self.steps, self.measurement):
            self.watch(control, self._again)
        for control in (self.method, self.query):
            self.watch(control, self._draw_scatter)
        self._again()

    @property
    def dials(self) -> Dials:
        return Dials(self.damping.value, self.steps.value, self.measurement.value)

    @property
    def stale(self) -> bool:
        return self.dials != self._shown

    def _answer(self, method: str) -> tuple[Tensor, str, str]:
        """A method's scores (Q, N), its datamodeling score and its slope as texts, made once for each setting."""
        dials = self.dials if method in self._refined else Dials(self.dials.damping, 0, self.dials.measurement)
        key = (method, dials)
        if key not in self._held:
            scores = self._methods[method](dials)
            about = scores, self._bank, dials.measurement
            found = datamodeling(*about, queries=self._queries, resamples=200)
            slope = bank_calibration(*about, queries=self._queries).slope
            self._held[key] = scores, f"{found.interval:.2f}", f"{slope:.2f}"
        return self._held[key]

    def _again(self) -> None:
        asked = self.dials
        rows = {name: self._answer(name)[1:] for name in self._methods}
        top = f"{ceiling(self._bank, asked.measurement, queries=self._queries):.2f}" if self._bank.seeds > 1 else "–"
        self.rows, self.ceiling, self._shown = rows, top, asked
        self.table.value = _table_html(rows, top, asked)
        self._draw_scatter()

    def _draw_scatter(self) -> None:
        row = self.query.value - 1
        predicted, actual = sides(
            self._answer(self.method.value)[0], self._bank, self._shown.measurement, self._queries
        )
        self.scatter.value = _scatter_svg(
            predicted[row], actual[row], self.method.value, self._captions[row], UNITS.get(self._shown.measurement, "")
        )

    def as_text(self) -> str:
        width = max(map(len, self.rows))
        lines = [f"  {name:{width}}  LDS {score}  slope {slope}" for name, (score, slope) in self.rows.items()]
        return "\n".join([f"BelieveBoard: {_where(self._shown)}", *lines, f"  {'ceiling':{width}}  LDS {self.ceiling}"])

    def as_html(self) -> str:
        return (
            f"<p><b>The board</b> (a still; run the notebook for its controls): {escape(_where(self._shown))}</p>"
            + self.table.value
            + self.scatter.value
        )


def _where(dials: Dials) -> str:
    return f"{dials.measurement}, damping {dials.damping:g} × mean Λ, {dials.steps} steps where there are any"


def _table_html(rows: Mapping[str, tuple[str, str]], top: str, dials: Dials) -> str:
    cell = '<td style="text-align:right;padding:1px 10px">'
    head = "".join(
        f'<th style="padding:1px 10px"><span class="inflib-explained" tabindex="0" title="{escape(what)}" '
        f'data-says="{escape(what)}" aria-label="{name}: {escape(what)}" data-lm-suppress-shortcuts="true">'
        f"{name}</span></th>"
        for name, what in _COLUMNS.items()
    )
    lines = [
        f'<tr><td style="text-align:left">{escape(name)}</td>{cell}{score}</td>{cell}{slope}</td></tr>'
        for name, (score, slope) in {**rows, "ceiling": (top, "1")}.items()
    ]
    return (
        f'<div class="inflib-explains"><table><thead><tr><th></th>{head}</tr></thead><tbody>{"".join(lines)}</tbody>'
        '</table></div><div class="inflib-quiet" style="max-width:360px">'
        f"of the {escape(dials.measurement.replace('_', '-'))}; intervals of 95% over queries and retrainings</div>"
    )


_COLUMNS = {
    "LDS": "Spearman's correlation over the retrainings, mean over the queries; 1 is the right order",
    "slope": "actual change per predicted change; 1 is the right size, 0.1 is ten times too large",
}


def _scatter_svg(predicted: Tensor, actual: Tensor, method: str, caption: str, unit: str, size: int = 260) -> str:
    """One query: predicted change of each retraining across, actual change upward, both about their means."""
    x, y = (values - values.mean() for values in (predicted, actual))
    wide, high = (float(v.abs().max().clamp_min(1e-300)) for v in (x, y))
    pad, span = 26, size - 36
    points = "".join(
        f'<circle cx="{pad + round((a / wide + 1) / 2 * span)}" cy="{10 + round((1 - b / high) / 2 * span)}" r="2.5"/>'
        for a, b in zip(x.tolist(), y.tolist(), strict=True)
    )
    ranks = [v.argsort().argsort().double() for v in (x, y)]
    r = float(torch.corrcoef(torch.stack(ranks))[0, 1])
    said = f"{caption}: rank correlation {r:.2f}"
    return square(
        f'<g fill="#D55E00" fill-opacity="0.65">{points}</g><text x="{pad + 6}" y="24" '
        f'fill="var(--jp-ui-font-color1, #222)">{escape(said)}</text>',
        f"actual against predicted change, {said}",
        (f"predicted by {method}: ±{unsigned(wide, 2)} {unit}", f"actual: ±{unsigned(high, 2)} {unit}"),
        size,
        diagonal=False,
    )


_FORM = {"style": {"description_width": "80px"}, "layout": {"width": "260px"}}
_WIDE = {"continuous_update": False, "style": {"description_width": "80px"}, "layout": {"width": "400px"}}
_WRAP = {"flex_flow": "row wrap", "grid_gap": "4px 24px"}
