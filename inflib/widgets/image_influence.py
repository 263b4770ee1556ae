"""Questions about images, answered without a pass over the training data: which raised or lowered this answer?

``ImageInfluence`` holds an index of the training images and the queries, prepared once; ``ask`` ranks the training
images for one query, ``ask_back`` the queries for one training image.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from ..curvature import Kronecker
from ..hooks import Pair
from ..index import TrainIndex
from ..objectives import Objective
from ..scoring import Pairs
from .answer import QUERY, TRAINING, Answer, Picture, Ranked
from .engine import Engine
from .ranking import Settings, two_lists


class Images(Protocol):
    """One side of the data, for instance ``inflib.lab.Digits``; row n is the same image in all four."""

    images: np.ndarray  # (N, H, W) uint8
    inputs: Tensor  # (N, ...) what the model reads
    labels: Tensor  # (N,) class numbers
    index: np.ndarray  # (N,) where the image is in the data set it was taken from


class ImageInfluence(Engine):
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
        super().__init__(model, objective, index, curvatures)
        self.sides = {TRAINING: train, QUERY: queries}
        self.probabilities = {side: _probabilities(model, images) for side, images in self.sides.items()}
        self._prepared: dict[str, Pairs] = {}

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
        lists = two_lists(scores, settings.count)

        def ranked(rows: tuple[int, ...]) -> tuple[Ranked, ...]:
            few = scores[list(rows)]
            found = zip(rows, few.tolist(), self.changes(few, settings), strict=True)
            return tuple(
                Ranked(picture=self.picture(other, n), score=score, change=change, share=abs(score) / lists.largest)
                for n, score, change in found
            )

        return Answer(
            subject=self.picture(side, position),
            raised=ranked(lists.raised),
            lowered=ranked(lists.lowered),
            counts=lists.counts,
            parts=lists.parts,
            settings=settings,
            calibrated=self.calibrated(settings.method),
            n_train=len(self.index),
        )

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


@torch.no_grad()
def _probabilities(model: nn.Module, images: Images) -> np.ndarray:
    """The model's class probabilities, (N, C) float64."""
    weight = next(model.parameters())
    outputs = [model(x.to(weight)) for x in images.inputs.split(1000)]
    return torch.cat(outputs).double().softmax(-1).cpu().numpy()
