"""Questions about images, answered without a pass over the training data: which raised or lowered this answer?

``ImageInfluence`` holds an index of the training images and the queries, prepared once; ``ask`` ranks the training
images for one query, ``ask_about`` for a picture that is in no data set, and ``ask_back`` the queries for one training
image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from ..batches import Data
from ..index import Index, Side, take
from ..kronecker import Kronecker
from ..objectives import Objective
from .answer import DRAWING, QUERY, TRAINING, Answer, Picture, Ranked
from .candidates import exactly
from .engine import Engine, Others
from .ranking import OWN_LABEL, PREDICTED, Settings, two_lists


class Images(Protocol):
    """One side of the data, for instance ``inflib.lab.Digits``; row n is the same image in all four."""

    images: np.ndarray  # (N, H, W) uint8
    inputs: Tensor  # (N, ...) what the model reads
    labels: Tensor  # (N,) class numbers
    index: np.ndarray  # (N,) where the image is in the data set it was taken from


class ImageInfluence(Engine):
    """Influence between training images and queries; every question is answered from prepared pairs.

    index:      of the training images, in their order; its own curvature sets the unit of damping.
    queries:    None where only pictures that are in no data set will be asked about.
    source:     the name of the data set that both were taken from, and that their ``index`` counts in.
    curvatures: {name: curvature}, each in the index's eigenbasis or an identity; None for the index's own alone.
    n_train:    how many images the model was trained on; None where the index holds them all.
    others:     (model, index) of networks from other seeds: what they do not agree on is marked, see ``Engine``.

    Raises ValueError where index and training images differ in number, and where the index holds more than ``n_train``.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        index: Index,
        train: Images,
        queries: Images | None = None,
        curvatures: Mapping[str, Kronecker] | None = None,
        source: str = "MNIST",
        n_train: int | None = None,
        others: Others = (),
    ) -> None:
        if len(index) != len(train.labels):
            raise ValueError(
                f"the index holds {len(index)} training examples, and {len(train.labels)} training images came; "
                "expected the images that the index was built from, in their order."
            )
        super().__init__(model, objective, index, curvatures, n_train, others)
        self.sides = {TRAINING: train} if queries is None else {TRAINING: train, QUERY: queries}
        self.probabilities = {side: _probabilities(model, images.inputs) for side, images in self.sides.items()}
        self.source = source
        self._prepared: dict[tuple[str, str], Side] = {}

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes that a question may be about."""
        return tuple(map(str, range(self.probabilities[TRAINING].shape[1])))

    def check_asked(self, asked: str | int) -> str:
        """The class asked about as a setting; ValueError for one that the model does not have."""
        if str(asked) not in (OWN_LABEL, PREDICTED, *self.classes):
            raise ValueError(
                f"class {asked} was asked about; expected one from 0 to {len(self.classes) - 1}, {OWN_LABEL!r} or "
                f"{PREDICTED!r}."
            )
        return str(asked)

    def scores(self, side: str, position: int, settings: Settings) -> np.ndarray:
        """(N,) influence of every training image on a query, or (Q,) of a training image on every query."""
        if side == QUERY:
            return self._scores(self._one_query(position, settings), settings)
        prepared = self._prepare(settings.measurement, settings.asked)
        if self.by_candidates:
            return self._exact([position], prepared, settings)[:, 0]
        return self._scores(prepared, settings, [position])

    def _one_query(self, position: int, settings: Settings) -> Side:
        prepared, one = self._prepare(settings.measurement, settings.asked), slice(position, position + 1)
        return {name: take(held, one) for name, held in prepared.items()}

    def _scores(self, prepared: Side, settings: Settings, examples: list[int] | None = None) -> np.ndarray:
        damping, curvature = self.damping(settings), self.curvatures[settings.method]
        scores = self.index.scores(prepared, curvature, damping, layers=list(damping), examples=examples)
        return scores.flatten().cpu().numpy()

    def _prepare(self, measurement: str, asked: str) -> Side:
        """All queries, captured once for each measurement and class asked about."""
        key = measurement, asked
        if key not in self._prepared:
            queries = [self.picture(QUERY, row) for row in range(len(self.sides[QUERY].labels))]
            classes = torch.tensor([int(one.asked(self.check_asked(asked))) for one in queries])
            self._prepared[key] = self._capture(self.sides[QUERY].inputs, classes, measurement)
        return self._prepared[key]

    def _capture(self, inputs: Tensor, labels: Tensor, measurement: str) -> Side:
        weight = next(self.model.parameters())
        batches = [(inputs.to(weight), labels.to(weight.device))]
        return self.index.prepare(self.model, self.objective, batches, measurement)

    def ask(self, query: int, settings: Settings) -> Answer:
        """The proponents and opponents of the query in this row."""
        return self._answer(QUERY, query, settings)

    def ask_about(self, image: np.ndarray, inputs: Tensor, settings: Settings) -> Answer:
        """The proponents and opponents of a picture that is in no data set, and whose own label nobody knows.

        image: (H, W) uint8, to look at; inputs: (1, ...), what the model reads of it.
        """
        subject = _picture(DRAWING, -1, self.source, None, image, None, _probabilities(self.model, inputs)[0])
        asked = int(subject.asked(self.check_asked(settings.asked)))
        prepared = self._capture(inputs, torch.tensor([asked]), settings.measurement)
        scores, among = self._found(prepared, settings)
        return self._rank(subject, scores, TRAINING, settings, self._one(inputs, asked), among)

    def ask_back(self, training: int, settings: Settings) -> Answer:
        """The queries that the training image in this row raised and lowered most."""
        return self._answer(TRAINING, training, settings)

    def _answer(self, side: str, position: int, settings: Settings) -> Answer:
        n, other = len(self.sides[side].labels), TRAINING if side == QUERY else QUERY
        if not 0 <= position < n:
            raise ValueError(f"{side} {position} was asked for; expected a row from 0 to {n - 1}.")
        subject = self.picture(side, position)
        if side == TRAINING:
            return self._rank(subject, self.scores(side, position, settings), other, settings)
        asked = int(subject.asked(self.check_asked(settings.asked)))
        query = self._one(self.sides[QUERY].inputs[position : position + 1], asked)
        scores, among = self._found(self._one_query(position, settings), settings)
        return self._rank(subject, scores, other, settings, query, among)

    def _one(self, inputs: Tensor, asked: int) -> Data:
        """One picture and the class asked about, as a batch."""
        weight = next(self.model.parameters())
        return [(inputs.to(weight), torch.tensor([asked], device=weight.device))]

    def _found(self, prepared: Side, settings: Settings) -> tuple[np.ndarray, np.ndarray | None]:
        """The scores (N,) of one query, and of a store which of them are exact, the candidates; None for all."""
        scores = self._scores(prepared, settings)
        if not self.by_candidates:
            return scores, None
        exact = lambda rows: self._exact(rows, prepared, settings)[0][:, None]  # noqa: E731
        parts, among = exactly(scores[:, None], scores, settings.count, exact)
        return parts[:, 0], among

    def _exact(self, rows: Sequence[int], prepared: Side, settings: Settings) -> np.ndarray:
        """(Q, C) exact influence of these training images in the layers asked about."""
        weight, train = next(self.model.parameters()), self.sides[TRAINING]
        batch = (train.inputs.to(weight), torch.as_tensor(train.labels).to(weight.device))
        found = self.exact(rows, prepared, [batch], settings)
        return found[..., [self.layers.index(name) for name in self.damping(settings)]].sum(-1)

    def _rank(
        self,
        subject: Picture,
        scores: np.ndarray,
        other: str,
        settings: Settings,
        query: Data | None = None,
        among: np.ndarray | None = None,
    ) -> Answer:
        """The answer about a subject, from its scores (N,) with all pictures of the other side; a query's has bars."""
        lists = two_lists(scores, settings.count, among)

        def ranked(rows: tuple[int, ...]) -> tuple[Ranked, ...]:
            few = scores[list(rows)]
            intervals = self.intervals(query, settings, rows)
            found = zip(rows, few.tolist(), self.contributions(few, settings), intervals, strict=True)
            return tuple(
                Ranked(
                    picture=self.picture(other, n),
                    score=score,
                    contribution=part,
                    share=abs(score) / lists.largest,
                    interval=interval,
                )
                for n, score, part, interval in found
            )

        return Answer(
            subject=subject,
            raised=ranked(lists.raised),
            lowered=ranked(lists.lowered),
            counts=lists.counts,
            parts=lists.parts,
            settings=settings,
            calibrated=self.calibrated(settings.method),
            n_train=self.n_train,
            computed=None if among is None else len(among),
        )

    def picture(self, side: str, position: int) -> Picture:
        """The image in this row, with its label and what the model makes of it."""
        images, p = self.sides[side], self.probabilities[side][position]
        index, label = int(images.index[position]), int(images.labels[position])
        return _picture(side, position, self.source, index, np.asarray(images.images[position]), str(label), p)


def _picture(
    side: str, position: int, source: str, index: int | None, image: np.ndarray, label: str | None, p: np.ndarray
) -> Picture:
    predictions = tuple((str(c), float(p[c])) for c in _likeliest(p))
    return Picture(side, position, source, index, image, label, predictions)


def _likeliest(p: np.ndarray) -> list[int]:
    """Classes by probability, the likeliest first; ties go by number."""
    return [int(c) for c in np.lexsort((np.arange(len(p)), -p))]


@torch.no_grad()
def _probabilities(model: nn.Module, inputs: Tensor) -> np.ndarray:
    """The model's class probabilities, (N, C) float64."""
    weight = next(model.parameters())
    outputs = [model(x.to(weight)) for x in inputs.split(1000)]
    return torch.cat(outputs).double().softmax(-1).cpu().numpy()
