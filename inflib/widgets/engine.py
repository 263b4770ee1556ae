"""What answers a browser's questions: an index, curvatures to choose from, and one damping for all of them.

All methods get the same damping, in multiples of EK-FAC's mean eigenvalues: a comparison at their own defaults would
compare dampings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..batches import Data
from ..blocks import Factor, whole
from ..curvature import damping_of
from ..doubt import ErrorBars
from ..doubt.error_bars import FACTOR, combined
from ..finite import rounding_noise
from ..index import Index, Side, Store, rescore
from ..kfac import second_moments
from ..kronecker import Kronecker, identity
from ..objectives import Objective
from ..scoring import contribution
from .ranking import ALL_LAYERS, Settings


def three_methods(
    model: nn.Module, objective: Objective, train: Data, ekfac: Kronecker, *, progress: bool = True
) -> dict[str, Kronecker]:
    """EK-FAC, K-FAC and the gradient dot product in EK-FAC's eigenbasis: one index answers for all three.

    K-FAC's eigenvalues are λ_S λ_Aᵀ with λ_A = diag(Q_Aᵀ A Q_A) and λ_S = diag(Q_Sᵀ S Q_S). One pass over ``train``,
    which must be the data that EK-FAC was fitted on.
    """
    layers, facts = list(ekfac.layers), ekfac.facts
    how = layers, facts.labels, facts.draws, facts.seed, progress
    moments = second_moments(model, objective, train, *how, sharing=facts.sharing)
    values = {}
    for name in layers:
        lambda_S = _diagonal(ekfac.Q_S[name], moments.S(name))  # (o,)
        lambda_A = _diagonal(ekfac.Q_A[name], moments.A(name))  # (i,)
        values[name] = torch.outer(lambda_S, lambda_A)
    kfac = replace(ekfac, eigenvalues=values, facts=replace(facts, method="K-FAC"))
    return {"EK-FAC": ekfac, "K-FAC": kfac, "gradient dot product": identity(model, objective, layers=layers)}


def _diagonal(factor: Factor, moment: Factor) -> Tensor:
    """diag(Qᵀ M Q), not below 0; of M in blocks, where Q is."""
    Q = whole(factor)
    return ((whole(moment).to(Q) @ Q) * Q).sum(0).clamp_min(0)


Others = Sequence[tuple[nn.Module, Index]]


class Engine:
    """An index of the training side, in memory or a store, and the curvatures that it answers with.

    curvatures: {name: curvature}, each in the index's eigenbasis or an identity; None for the index's own alone, which
    in either case sets the unit of damping.
    n_train:    N of the mean that training minimised; None where the index holds all that the model was trained on.
    others:     (model, index) of networks trained alike from other seeds, whose indices hold the same examples in the
                same order: with them a score has an error bar.

    Raises ValueError where the index holds more examples than ``n_train``, or another one holds other examples.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        index: Index,
        curvatures: Mapping[str, Kronecker] | None = None,
        n_train: int | None = None,
        others: Others = (),
    ) -> None:
        if n_train is not None and not n_train >= len(index):  # so that NaN is refused too
            raise ValueError(
                f"n_train={n_train}, and the index holds {len(index)} training examples; expected how many the model "
                "was trained on, of which the index holds all or some."
            )
        self.model, self.objective, self.index = model, objective, index
        self.n_train = len(index) if n_train is None else n_train
        self.curvatures = dict(curvatures) if curvatures else {index.curvature.facts.method: index.curvature}
        self.others = [Engine(model, objective, held) for model, held in others]
        for other in self.others:
            if len(other.index) != len(index) or other.layers != self.layers:
                raise ValueError(
                    f"another network's index holds {len(other.index)} training examples, layers "
                    f"{', '.join(other.layers)}; expected the first one's, {len(index)} and {', '.join(self.layers)}."
                )

    @property
    def layers(self) -> tuple[str, ...]:
        return self.index.curvature.layers

    @property
    def measurements(self) -> tuple[str, ...]:
        """Names of what a query can measure."""
        return self.objective.measurements()

    def calibrated(self, method: str) -> bool:
        """Whether scores have the measurement's unit: not where the curvature is the identity."""
        return self.curvatures[method].facts.method != "identity"

    def damping(self, settings: Settings, *, all_layers: bool = False) -> dict[str, float]:
        """{layer: λ} of the layers asked about, or of all; 0 for the identity, where damping plays no role.

        A layer whose curvature is rounding noise has the largest λ of all: relative to its own it would be amplified
        into scores as large as the others', and so it counts nothing.
        """
        layers = self.layers if all_layers or settings.layer == ALL_LAYERS else (settings.layer,)
        if not self.calibrated(settings.method):
            return dict.fromkeys(layers, 0.0)
        numbers = damping_of(self.index.curvature, settings.damping)
        noisy, most = self.noisy(), max(numbers.values())
        return {name: most if name in noisy else numbers[name] for name in layers}

    def noisy(self) -> list[str]:
        """Layers whose curvature is rounding noise, beside that of the others: nothing of theirs is a fact."""
        return list(rounding_noise(self.index.curvature.eigenvalues))

    def contributions(self, scores: np.ndarray, settings: Settings) -> list[float | None]:
        """What the measurement is expected to lose without each training example, where scores have its unit."""
        if settings.unit_norm or not self.calibrated(settings.method):
            return [None] * len(scores)
        found: list[float | None] = contribution(torch.from_numpy(scores).double(), self.n_train).tolist()
        return found

    def intervals(
        self, query: Data | None, settings: Settings, examples: Sequence[int]
    ) -> list[tuple[float, float] | None]:
        """The error bars of these training examples' contributions to one query; None where there are none."""
        bars = None if query is None else self.bars(query, settings, examples)
        if bars is None:
            return [None] * len(examples)
        ends = [contribution(x[0], self.n_train).tolist() for x in (bars.low, bars.high)]
        return list(zip(*ends, strict=True))

    def bars(self, query: Data, settings: Settings, examples: Sequence[int]) -> ErrorBars | None:
        """Error bars of some training examples' scores for one query, (1, N'); see ``inflib.doubt``.

        None where there is no other network, and for scores that the others do not have: of another curvature than the
        index's own, or without a unit. Nor over a store, whose scores they would be of.
        """
        own = self.curvatures[settings.method].facts == self.index.curvature.facts
        if not self.others or not own or settings.unit_norm or not len(examples) or self.by_candidates:
            return None
        return combined([one._at_three_dampings(query, settings, examples) for one in (self, *self.others)])

    def _at_three_dampings(self, query: Data, settings: Settings, examples: Sequence[int]) -> Tensor:
        """Scores by the index's own curvature at λ, λ/3 and 3λ, (1, 3, 1, N')."""
        prepared = self.index.prepare(self.model, self.objective, query, settings.measurement)
        method = next(k for k, c in self.curvatures.items() if c.facts == self.index.curvature.facts)
        numbers = self.damping(replace(settings, method=method))
        found = [
            self.index.scores(
                prepared, None, {k: f * x for k, x in numbers.items()}, layers=list(numbers), examples=list(examples)
            )
            for f in (1.0, 1 / FACTOR, FACTOR)
        ]
        return torch.stack(found)[None].double().cpu()

    @property
    def by_candidates(self) -> bool:
        """Whether the index's scores only say which examples to compute exactly."""
        return isinstance(self.index, Store)

    def exact(self, rows: Sequence[int], prepared: Side, train: Any, settings: Settings) -> np.ndarray:
        """(Q, C, L) exact influence of these examples (ascending) through every layer, by a pass of them alone."""
        damping = self.damping(settings, all_layers=True)
        of, curvature = (self.model, self.objective, prepared, train), self.curvatures[settings.method]
        found = rescore(self.index, *of, list(rows), curvature, damping, keep=("layer",))
        return found.double().cpu().numpy()
