"""The shipped digits, network and factors, prepared once for all widget tests."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from inflib import CrossEntropy, Kronecker, Objective, TrainIndex, load
from inflib.lab import DigitData, load_checkpoint, mlp, mnist_5k, shipped_checkpoint
from inflib.widgets import ImageBrowser, three_methods


@dataclass(frozen=True)
class Shipped:
    """What notebook 00 has at hand when it opens the browser."""

    digits: DigitData
    model: torch.nn.Module
    objective: Objective
    train: list[tuple[torch.Tensor, torch.Tensor]]
    index: TrainIndex
    methods: dict[str, Kronecker]

    def browser(self, **kwargs) -> ImageBrowser:
        return ImageBrowser(
            self.model,
            self.objective,
            self.index,
            self.digits.train,
            self.digits.queries,
            **{"curvatures": self.methods, "query": 225, **kwargs},
        )


@pytest.fixture(scope="session")
def shipped() -> Shipped:
    digits, model, objective = mnist_5k(), mlp(dtype=torch.float64), CrossEntropy()
    load_checkpoint(shipped_checkpoint("mnist_mlp"), model, data=(digits.train.inputs, digits.train.labels))
    curvature = load(shipped_checkpoint("mnist_mlp_ekfac"), model)
    train = digits.train.batches(dtype=torch.float64)
    index = TrainIndex.build(model, objective, train, curvature, progress=False)
    methods = three_methods(model, objective, train, curvature, progress=False)
    return Shipped(digits, model, objective, train, index, methods)
