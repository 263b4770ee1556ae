"""Questions about images, answered without a pass over the training data: which raised or lowered this answer?

``ImageInfluence`` holds an index of the training images and the queries, prepared once; ``ask`` ranks the training
images for one query, ``ask_back`` the queries for one training image. All methods get the same damping, in multiples
of EK-FAC's mean eigenvalues: a comparison at their own defaults would compare dampings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from ..batches import Data
from ..curvature import Kronecker, damping_of, identity
from ..hooks import Pair
from ..index import TrainIndex
from ..kfac import second_moments
from ..objectives import Objective
from ..scoring import Pairs, predicted_change
from .answer import ALL_LAYERS, QUERY, TRAINING, Answer, Picture, Ranked, Settings


class Images(Protocol):
    """One side of the data, for instance ``inflib.lab.Digits``; row n is the same image in all four."""

    images: np.ndarray  # (N, H, W) uint8
    inputs: Tensor  # (N, ...) what the model reads
    labels: Tensor  # (N,) class numbers
    index: np.ndarray  # (N,) where the image is in the data set it was taken from


def three_methods(
    model: nn.Module, objective: Objective, train: Data, ekfac: Kronecker, *, progress: bool = True
) -> dict[str, Kronecker]:
    """EK-FAC, K-FAC and the gradient dot product in EK-FAC's eigenbasis: one index answers for all three.

    K-FAC's eigenvalues are λ_S λ_Aᵀ with λ_A = diag(Q_Aᵀ A Q_A) and λ_S = diag(Q_Sᵀ S Q_S). One pass over ``train``,
    which must be the data that EK-FAC was fitted on.
    """
    layers, facts = list(ekfac.layers), ekfac.facts
    moments = second_moments(model, objective, train, layers, facts.labels, facts.draws, facts.seed, progress)
    values = {}
    for name in layers:
        lambda_S = _diagonal(ekfac.Q_S[name], moments.S(name))  # (o,)
        lambda_A = _diagonal(ekfac.Q_A[name], moments.A(name))  # (i,)
        values[name] = torch.outer(lambda_S, lambda_A)
    kfac = replace(ekfac, eigenvalues=values, facts=replace(facts, method="K-FAC"))
    return {"EK-FAC": ekfac, "K-FAC": kfac, "gradient dot product": identity(model, objective, layers=layers)}


def _diagonal(Q: Tensor, moment: Tensor) -> Tensor:
    """diag(Qᵀ M Q), not below 0."""
    return ((moment.to(Q) @ Q) * Q).sum(0).clamp_min(0)


class ImageInfluence:
    """Influence between training images and queries; every question is answered from prepared pairs.

    index:      of the training images, in their order; its own curvature sets the unit of damping.
    curvatures: {name: curvature}, each in the index's eigenbasis or an identity; None for the index's own alone.

    Raises ValueError where index and training images differ in number.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        index: TrainIndex,
        train: Images,
        queries: Images,
        curvatures: Mapping[str, Kronecker] | None = None,
    ) -> None:
        if len(index) != len(train.labels):
            raise ValueError(
                f"the index holds {len(index)} training examples, and {len(train.labels)} training images came; "
                "expected the images that the index was built from, in their order."
            )
        self.model, self.objective, self.index = model, objective, index
        self.curvatures = dict(curvatures) if curvatures else {index.curvature.facts.method: index.curvature}
        self.sides = {TRAINING: train, QUERY: queries}
        self.probabilities = {side: _probabilities(model, images) for side, images in self.sides.items()}
        self._prepared: dict[str, Pairs] = {}

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

    def damping(self, settings: Settings) -> dict[str, float]:
        """{layer: λ} of the layers asked about; 0 for the identity, where damping plays no role."""
        layers = self.layers if settings.layer == ALL_LAYERS else (settings.layer,)
        if not self.calibrated(settings.method):
            return dict.fromkeys(layers, 0.0)
        numbers = damping_of(self.index.curvature, settings.damping)
        return {name: numbers[name] for name in layers}

    def scores(self, side: str, position: int, settings: Settings) -> np.ndarray:
        """(N,) influence of every training image on a query, or (Q,) of a training image on every query."""
        prepared, examples = self._prepare(settings.measurement), None
        if side == QUERY:
            one = slice(position, position + 1)
            prepared = {name: Pair(pair.a[one], pair.g[one]) for name, pair in prepared.items()}
        else:
            examples = [position]
        damping = self.damping(settings)
        curvature = self.curvatures[settings.method]
        scores = self.index.scores(prepared, curvature, damping, layers=list(damping), examples=examples)
        return scores.flatten().cpu().numpy()

    def _prepare(self, measurement: str) -> Pairs:
        """All queries, captured once for each measurement."""
        if measurement not in self._prepared:
            queries, weight = self.sides[QUERY], next(self.model.parameters())
            batches = [(queries.inputs.to(weight), queries.labels.to(weight.device))]
            self._prepared[measurement] = self.index.prepare(self.model, self.objective, batches, measurement)
        return self._prepared[measurement]

    def ask(self, query: int, settings: Settings) -> Answer:
        """The proponents and opponents of the query in this row."""
        return self._answer(QUERY, query, settings)

    def ask_back(self, training: int, settings: Settings) -> Answer:
        """The queries that the training image in this row raised and lowered most."""
        return self._answer(TRAINING, training, settings)

    def _answer(self, side: str, position: int, settings: Settings) -> Answer:
        n, other = len(self.sides[side].labels), TRAINING if side == QUERY else QUERY
        if not 0 <= position < n:
            raise ValueError(f"{side} {position} was asked for; expected a row from 0 to {n - 1}.")
        scores = self.scores(side, position, settings)
        raised, lowered = rank(scores, settings.count)
        largest = max((abs(float(scores[k])) for k in raised[:1] + lowered[:1]), default=1.0)

        def ranked(rows: list[int]) -> tuple[Ranked, ...]:
            found = zip(rows, scores[rows].tolist(), self._changes(scores[rows], settings), strict=True)
            return tuple(
                Ranked(self.picture(other, k), score, change, abs(score) / largest) for k, score, change in found
            )

        positive, negative = scores[scores > 0], scores[scores < 0]
        return Answer(
            self.picture(side, position),
            raised=ranked(raised),
            lowered=ranked(lowered),
            counts=(len(positive), len(negative)),
            parts=(_part(scores[raised], positive), _part(scores[lowered], negative)),
            settings=settings,
            calibrated=self.calibrated(settings.method),
            n_train=len(self.index),
        )

    def _changes(self, scores: np.ndarray, settings: Settings) -> list[float | None]:
        """What removal of the training image is predicted to do to the measurement, where scores have its unit."""
        if not self.calibrated(settings.method):
            return [None] * len(scores)
        changes: list[float | None] = predicted_change(torch.from_numpy(scores).double(), len(self.index)).tolist()
        return changes

    def picture(self, side: str, position: int) -> Picture:
        """The image in this row, with its label and what the model makes of it."""
        images, p = self.sides[side], self.probabilities[side][position]
        likely = np.lexsort((np.arange(len(p)), -p))[:2]
        label = int(images.labels[position])
        return Picture(
            side=side,
            position=position,
            index=int(images.index[position]),
            image=np.asarray(images.images[position]),
            label=str(label),
            predictions=tuple((str(c), float(p[c])) for c in likely),
            label_probability=float(p[label]),
        )


def rank(scores: np.ndarray, count: int) -> tuple[list[int], list[int]]:
    """Positions of the ``count`` largest positive and the ``count`` most negative scores; ties go by position."""
    positions = np.arange(len(scores))
    descending = np.lexsort((positions, -scores))[:count]
    ascending = np.lexsort((positions, scores))[:count]
    return [int(n) for n in descending if scores[n] > 0], [int(n) for n in ascending if scores[n] < 0]


def _part(few: np.ndarray, all_: np.ndarray) -> float:
    return float(few.sum() / all_.sum()) if len(all_) else 0.0


@torch.no_grad()
def _probabilities(model: nn.Module, images: Images) -> np.ndarray:
    """The model's class probabilities, (N, C) float64."""
    weight = next(model.parameters())
    outputs = [model(x.to(weight)) for x in images.inputs.split(1000)]
    return torch.cat(outputs).double().softmax(-1).cpu().numpy()
