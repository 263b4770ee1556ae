"""The ladder widget: from the Hessian to the identity, as matrices, as solves and as scores, at any damping.

One network, one layer or all: every rung's matrix as an image on one colour scale, its distance from the exact
Gauss-Newton Hessian in three senses, and one query's scores against the exact ones. The damping is the same
{layer: λ} for all rungs, a multiple of the mean eigenvalue of G's own blocks.
"""

from __future__ import annotations

import base64
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape

import ipywidgets as W
import numpy as np
import torch
from torch import Tensor

from ..curvature import Curvature, IndefiniteWarning, damping_of
from ..hooks import Matrices
from .base import Panel, png, unsigned

ALL_LAYERS = "all layers"
PIXELS = 84  # of a matrix's image; larger matrices show the largest entry of each square
ENDS = (np.array([8, 81, 156]), np.array([247, 247, 247]), np.array([166, 54, 3]))  # blue, paper, orange


@dataclass(frozen=True, eq=False)
class Rungs:
    """One network's curvatures, top rung first, with the gradients that scores are made of."""

    curvatures: Mapping[str, Curvature]
    queries: Matrices  # ∇m of K queries, (K, o, i) per layer
    training: Matrices  # ∇ℓ of N training examples, (N, o, i) per layer
    exact: str = "G"  # the rung that the others are measured against


@dataclass(frozen=True)
class Row:
    """How far one rung is from exact G."""

    matrix: float  # ‖C − G‖ / ‖G‖
    solve: float  # ‖x − x_G‖ / ‖x_G‖ over all queries
    scores: float  # mean over queries of the correlation across training examples
    indefinite: bool  # the damped matrix has negative eigenvalues


@dataclass(frozen=True, eq=False)
class Comparison:
    """One network at one damping, in one layer or all."""

    rows: dict[str, Row]
    scores: dict[str, Tensor]  # (K, N) per rung
    matrices: dict[str, Tensor]  # (d, d) per rung
    damping: dict[str, float]


def compare(rungs: Rungs, multiple: float, layer: str | None = None) -> Comparison:
    """Every rung at λ = multiple · mean eigenvalue of G's blocks; ``layer`` looks at one layer's share."""
    exact = rungs.curvatures[rungs.exact]
    damping = damping_of(exact, multiple)
    names = list(exact.layers) if layer is None else [layer]
    training = torch.cat([rungs.training[k].flatten(1) for k in names], dim=1)  # (N, d)
    solved, scores, matrices, indefinite = {}, {}, {}, {}
    for rung, curvature in rungs.curvatures.items():
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always", IndefiniteWarning)
            x = curvature.solve(rungs.queries, damping)
        indefinite[rung] = any(issubclass(w.category, IndefiniteWarning) for w in said)
        solved[rung] = torch.cat([x[k].flatten(1) for k in names], dim=1)  # (K, d)
        scores[rung] = -solved[rung] @ training.T
        matrices[rung] = _block(curvature, layer)
    rows = {
        rung: Row(
            _distance(matrices[rung], matrices[rungs.exact]),
            _distance(solved[rung], solved[rungs.exact]),
            _correlation(scores[rung], scores[rungs.exact]),
            indefinite[rung],
        )
        for rung in rungs.curvatures
    }
    return Comparison(rows, scores, matrices, damping)


class Ladder(Panel):
    """Browse the ladder: network, layer, damping, and one rung's scores against the exact ones.

    networks: {name: Rungs}, small enough for dense matrices. damping: the multiple of the mean eigenvalue shown first.
    """

    def __init__(self, networks: Mapping[str, Rungs], *, damping: float = 0.1) -> None:
        super().__init__("Ladder", "inflib-ladder")
        self._networks = dict(networks)
        first = next(iter(self._networks.values()))
        others = [name for name in first.curvatures if name != first.exact]
        self.network = W.Dropdown(options=list(self._networks), description="Network", **_FORM)
        self.layer = W.Dropdown(
            options=[ALL_LAYERS, *first.curvatures[first.exact].layers], description="Layer", **_FORM
        )
        self.damping = W.FloatLogSlider(
            value=damping, min=-3, max=2, step=0.25, readout_format=".3", description="Damping", **_WIDE
        )
        self.rung = W.Dropdown(
            options=others, value="EK-FAC" if "EK-FAC" in others else others[0], description="Scores of", **_FORM
        )
        self.query = W.IntSlider(value=1, min=1, max=len(_first(first.queries)), description="Query", **_WIDE)
        self.note, self.pictures, self.table, self.scatter = W.HTML(), W.HTML(), W.HTML(), W.HTML()
        for view, name in ((self.pictures, "pictures"), (self.table, "table"), (self.scatter, "scatter")):
            view.add_class(f"inflib-ladder-{name}")
        left, right = W.VBox([self.network, self.layer, self.rung]), W.VBox([self.damping, self.note, self.query])
        self.arrange(
            [W.HBox([left, right], layout=_WRAP)],
            [self.pictures, W.HBox([self.table, self.scatter], layout=_WRAP)],
        )
        for control in (self.layer, self.damping):
            self.watch(control, self._again)
        for control in (self.rung, self.query):
            self.watch(control, self._draw_scatter)
        self.watch(self.network, self._change_network)
        self._again()

    def _change_network(self) -> None:
        """Another network has other layers: back to all of them."""
        rungs = self._networks[self.network.value]
        self.layer.options = [ALL_LAYERS, *rungs.curvatures[rungs.exact].layers]
        self._again()

    def _again(self) -> None:
        rungs = self._networks[self.network.value]
        self.comparison = compare(
            rungs, self.damping.value, None if self.layer.value == ALL_LAYERS else self.layer.value
        )
        numbers = ", ".join(f"{unsigned(x, 2)} ({name})" for name, x in self.comparison.damping.items())
        self.note.value = (
            f'<div class="inflib-quiet" style="margin-left:88px">× mean eigenvalue of G: λ = {escape(numbers)}</div>'
        )
        self.pictures.value = _pictures_html(self.comparison, rungs.exact)
        self.table.value = _table_html(self.comparison)
        self._draw_scatter()

    def _draw_scatter(self) -> None:
        exact = self._networks[self.network.value].exact
        self.scatter.value = _scatter_svg(self.comparison, self.rung.value, exact, self.query.value - 1)

    def as_text(self) -> str:
        where = f"{self.network.value}, {self.layer.value}, damping {self.damping.value:g} × mean eigenvalue"
        width = max(map(len, self.comparison.rows))
        lines = [
            f"  {rung:{width}}  matrix error {row.matrix:5.2f}  solve error {row.solve:5.2f}  "
            f"score correlation {row.scores:5.2f}{'  (indefinite)' if row.indefinite else ''}"
            for rung, row in self.comparison.rows.items()
        ]
        return "\n".join([f"Ladder: {where}", *lines])

    def as_html(self) -> str:
        where = f"{self.network.value}, {self.layer.value}, damping {self.damping.value:g} × mean eigenvalue"
        return (
            f"<p><b>The ladder</b> (a still; run the notebook for its controls): {escape(where)}</p>"
            + self.pictures.value
            + self.table.value
            + self.scatter.value
        )


_FORM = {"style": {"description_width": "80px"}, "layout": {"width": "260px"}}
_WIDE = {"continuous_update": False, "style": {"description_width": "80px"}, "layout": {"width": "400px"}}
_WRAP = {"flex_flow": "row wrap", "grid_gap": "4px 24px"}


# --- numbers ---------------------------------------------------------------------------------------------------


def _block(curvature: Curvature, layer: str | None) -> Tensor:
    """The curvature's dense matrix, or one layer's diagonal block of it."""
    matrix, at = curvature.to_dense(), 0
    for name, (o, i) in curvature.shapes.items():
        if name == layer:
            return matrix[at : at + o * i, at : at + o * i]
        at += o * i
    return matrix


def _distance(found: Tensor, exact: Tensor) -> float:
    return float((found - exact).norm() / exact.norm())


def _correlation(scores: Tensor, exact: Tensor) -> float:
    """Pearson's correlation across training examples, the mean over queries."""
    x, y = (s - s.mean(1, keepdim=True) for s in (scores, exact))
    return float(((x * y).sum(1) / (x.norm(dim=1) * y.norm(dim=1)).clamp_min(1e-300)).mean())


def _first(stacks: Matrices) -> Tensor:
    return next(iter(stacks.values()))


# --- pictures --------------------------------------------------------------------------------------------------


def _pictures_html(comparison: Comparison, exact: str) -> str:
    """Every rung's matrix on one scale: square roots of entries, so that small ones show; the identity in its own."""
    limit = float(comparison.matrices[exact].abs().max())
    figures = []
    for rung, matrix in comparison.matrices.items():
        own = float(matrix.abs().max()) > 5 * limit  # the identity's scale is arbitrary
        image = _coloured(matrix, float(matrix.abs().max()) if own else limit)
        address = "data:image/png;base64," + base64.b64encode(png(image)).decode()
        figures.append(
            '<figure style="display:inline-block;margin:4px 6px 4px 0;text-align:center">'
            f'<img class="inflib-colour" width="112" height="112" style="image-rendering:pixelated" '
            f'alt="the matrix of {escape(rung)}" src="{address}"><figcaption>{escape(rung)}</figcaption></figure>'
        )
    scale = "orange positive, blue negative; colour grows with √|entry|, on one scale (the identity on its own)"
    return f'<div>{"".join(figures)}</div><div class="inflib-quiet">{scale}</div>'


def _coloured(matrix: Tensor, limit: float) -> np.ndarray:
    """(h, w, 3) uint8: the entry of largest size in each square, on the diverging scale.

    Of entries that are equal but for rounding the first, so that every machine draws the same picture.
    """
    size = -(-len(matrix) // PIXELS)
    padded = torch.nn.functional.pad(matrix, (0, -len(matrix) % size) * 2).double()
    squares = padded.unfold(0, size, size).unfold(1, size, size).flatten(2)  # (h, w, size²)
    largest = squares.abs() >= squares.abs().amax(2, keepdim=True) * (1 - 1e-9)
    order = torch.arange(size * size, 0, -1)
    chosen = squares.gather(2, (largest * order).argmax(2, keepdim=True)).squeeze(2)
    depth = (chosen.abs() / limit).clamp(max=1).sqrt().numpy()[..., None]
    end = np.where(chosen.numpy()[..., None] < 0, ENDS[0], ENDS[2])
    return np.round(ENDS[1] + depth * (end - ENDS[1])).astype(np.uint8)


def _table_html(comparison: Comparison) -> str:
    cell = '<td style="text-align:right;padding:1px 10px">'
    head = "".join(
        f'<th style="padding:1px 10px">{text}</th>' for text in ("", "matrix error", "solve error", "scores")
    )
    rows = "".join(
        f'<tr><td style="text-align:left">{escape(rung)}{" *" * row.indefinite}</td>{cell}{row.matrix:.2f}</td>'
        f"{cell}{row.solve:.2f}</td>{cell}{row.scores:.2f}</td></tr>"
        for rung, row in comparison.rows.items()
    )
    note = "* indefinite at this damping" if any(row.indefinite for row in comparison.rows.values()) else ""
    return (
        f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
        '<div class="inflib-quiet">relative errors against G; scores: mean correlation with G\'s over queries '
        f"<br>{note}</div>"
    )


def _scatter_svg(comparison: Comparison, rung: str, exact: str, query: int, size: int = 260) -> str:
    """One query's scores: the rung's (vertical) against the exact ones, each in units of its own largest size."""
    x, y = comparison.scores[exact][query], comparison.scores[rung][query]
    x, y = x / x.abs().max().clamp_min(1e-300), y / y.abs().max().clamp_min(1e-300)
    pad, span = 26, size - 36
    points = "".join(
        f'<circle cx="{pad + round((a + 1) / 2 * span)}" cy="{10 + round((1 - b) / 2 * span)}" r="2"/>'
        for a, b in zip(x.tolist(), y.tolist(), strict=True)
    )
    r = _correlation(comparison.scores[rung][query : query + 1], comparison.scores[exact][query : query + 1])
    ink, quiet = "var(--jp-ui-font-color1, #222)", "var(--jp-border-color1, #999)"
    return (
        f'<svg width="{size}" height="{size}" viewBox="0 0 {size} {size}" role="img" '
        f'aria-label="scores of {escape(rung)} against exact scores, correlation {r:.2f}" '
        'style="font-family:system-ui,sans-serif;font-size:11px">'
        f'<rect x="{pad}" y="10" width="{span}" height="{span}" fill="none" stroke="{quiet}"/>'
        f'<line x1="{pad}" y1="{10 + span}" x2="{pad + span}" y2="10" stroke="{quiet}" stroke-dasharray="4 3"/>'
        f'<g fill="#D55E00" fill-opacity="0.6">{points}</g>'
        f'<text x="{pad + span // 2}" y="{size - 6}" text-anchor="middle" fill="{ink}">exact score</text>'
        f'<text x="12" y="{10 + span // 2}" text-anchor="middle" fill="{ink}" '
        f'transform="rotate(-90 12 {10 + span // 2})">{escape(rung)}</text>'
        f'<text x="{pad + 6}" y="24" fill="{ink}">query {query + 1}: r = {r:.2f}</text></svg>'
    )
