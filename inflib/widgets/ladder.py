"""The ladder widget: from the Hessian to the identity, as matrices, as solves and as scores, at any damping.

One network, one layer or all: every rung's matrix as an image on one colour scale, its distance from the exact
Gauss-Newton Hessian in three senses, and one query's scores against the exact ones. The damping is the same
{layer: λ} for all rungs, a multiple of the mean eigenvalue of G's own blocks.
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

import ipywidgets as W

from .base import Panel, unsigned
from .ladder_view import eigenvalues_svg, pictures_html, scatter_svg, table_html
from .rungs import Rungs, compare, eigenvalues, most_corrected

ALL_LAYERS = "all layers"


class Ladder(Panel):
    """Browse the ladder: network, layer, damping, and one rung's scores against the exact ones.

    networks: {name: Rungs}, small enough for dense matrices. damping: the multiple of the mean eigenvalue shown first.
    network, layer: what is shown first; None for where the correction of the eigenvalues makes the largest difference.
    """

    def __init__(
        self,
        networks: Mapping[str, Rungs],
        *,
        damping: float = 0.1,
        network: str | None = None,
        layer: str | None = None,
    ) -> None:
        super().__init__("Ladder", "inflib-ladder")
        self._networks = dict(networks)
        if network is None and layer is None:
            network, layer = most_corrected(self._networks)
        network = network or next(iter(self._networks))
        first = self._networks[network]
        others = [name for name in first.curvatures if name != first.exact]
        self.network = W.Dropdown(options=list(self._networks), value=network, description="Network", **_FORM)
        layers = [ALL_LAYERS, *first.curvatures[first.exact].layers]
        self.layer = W.Dropdown(options=layers, value=layer or ALL_LAYERS, description="Layer", **_FORM)
        self.damping = W.FloatLogSlider(
            value=damping, min=-3, max=2, step=0.25, readout_format=".3", description="Damping", **_WIDE
        )
        self.rung = W.Dropdown(
            options=others, value="EK-FAC" if "EK-FAC" in others else others[0], description="Scores of", **_FORM
        )
        self.query = W.IntSlider(
            value=1, min=1, max=len(next(iter(first.queries.values()))), description="Query", **_WIDE
        )
        self.note, self.pictures, self.table, self.scatter = W.HTML(), W.HTML(), W.HTML(), W.HTML()
        self.eigenvalues = W.HTML()
        views = {"pictures": self.pictures, "table": self.table, "scatter": self.scatter}
        for name, view in {**views, "eigenvalues": self.eigenvalues}.items():
            view.add_class(f"inflib-ladder-{name}")
        left, right = W.VBox([self.network, self.layer, self.rung]), W.VBox([self.damping, self.note, self.query])
        self.arrange(
            [W.HBox([left, right], layout=_WRAP)],
            [self.pictures, W.HBox([self.table, W.HBox([self.eigenvalues, self.scatter], layout=_WRAP)], layout=_WRAP)],
        )
        for control in (self.layer, self.damping):
            self.watch(control, self._again)
        for control in (self.rung, self.query):
            self.watch(control, self._draw_scatter)
        self.watch(self.network, self._change_network)
        self._again()

    def _asked(self) -> tuple[object, ...]:
        return self.network.value, self.layer.value, self.damping.value

    @property
    def stale(self) -> bool:
        return self._asked() != self._compared

    def _change_network(self) -> None:
        """Another network has other layers: back to all of them."""
        rungs = self._networks[self.network.value]
        self.layer.options = [ALL_LAYERS, *rungs.curvatures[rungs.exact].layers]
        self.layer.value = ALL_LAYERS  # options that are the same leave it where it was
        self._again()

    def _again(self) -> None:
        rungs = self._networks[self.network.value]
        asked, layer = self._asked(), None if self.layer.value == ALL_LAYERS else self.layer.value
        self.comparison = compare(rungs, self.damping.value, layer)
        self._compared = asked
        numbers = ", ".join(f"{unsigned(x, 2)} ({name})" for name, x in self.comparison.damping.items())
        self.note.value = (
            f'<div class="inflib-quiet" style="margin-left:88px">× mean eigenvalue of G: λ = {escape(numbers)}</div>'
        )
        self.pictures.value = pictures_html(self.comparison, rungs.exact)
        self.table.value = table_html(self.comparison)
        self.eigenvalues.value = eigenvalues_svg(eigenvalues(rungs, layer))
        self._draw_scatter()

    def _draw_scatter(self) -> None:
        exact = self._networks[self.network.value].exact
        self.scatter.value = scatter_svg(self.comparison, self.rung.value, exact, self.query.value - 1)

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
            + self.eigenvalues.value
            + self.scatter.value
        )


_FORM = {"style": {"description_width": "80px"}, "layout": {"width": "260px"}}
_WIDE = {"continuous_update": False, "style": {"description_width": "80px"}, "layout": {"width": "400px"}}
_WRAP = {"flex_flow": "row wrap", "grid_gap": "4px 24px"}
