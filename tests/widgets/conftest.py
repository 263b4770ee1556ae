"""The shipped digits with network and factors, and a small language model, prepared once for all widget tests."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from reviewed import N, reviewing

from inflib import CrossEntropy, Kronecker, NextToken, Objective, TrainIndex, ekfac, load
from inflib.lab import (
    Corpus,
    DigitData,
    characters,
    facts,
    load_checkpoint,
    mlp,
    mnist_5k,
    shipped_checkpoint,
    train,
    transformer,
)
from inflib.validation import flip_labels
from inflib.widgets import ImageBrowser, Review, TextBrowser, TextInfluence, suspicion, three_methods


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


@dataclass(frozen=True)
class Talk:
    """A small language model with its corpus, an index of it, and something to ask."""

    corpus: Corpus
    model: torch.nn.Module
    objective: NextToken
    train: list[tuple[dict[str, torch.Tensor], torch.Tensor]]
    index: TrainIndex
    methods: dict[str, Kronecker]
    queries: list[tuple[str, str]]

    @classmethod
    def about(cls, corpus: Corpus, queries: list[tuple[str, str]], epochs: int, layers: str | None = None) -> Talk:
        model = transformer(len(corpus.vocabulary), corpus.context, 8, heads=2, hidden=12, dtype=torch.float64)
        objective = NextToken()
        train(model, objective, *corpus.tensors(), epochs=epochs, batch_size=8, lr=1e-2, progress=False)
        batches = corpus.batches(5)
        curvature = ekfac(model, objective, batches, layers, progress=False)
        index = TrainIndex.build(model, objective, batches, curvature, progress=False)
        methods = three_methods(model, objective, batches, curvature, progress=False)
        return cls(corpus, model, objective, batches, index, methods, queries)

    def influence(self) -> TextInfluence:
        return TextInfluence(self.model, self.objective, self.index, self.corpus, self.methods)

    def browser(self, **kwargs) -> TextBrowser:
        options = {"curvatures": self.methods, **kwargs}
        return TextBrowser(self.model, self.objective, self.index, self.corpus, self.queries, **options)


@pytest.fixture(scope="session")
def talk() -> Talk:
    """Words: a few invented facts."""
    data = facts(told=4, asked=2, distractors=8)
    return Talk.about(data.train, [(fact.prompt, fact.person) for fact in data.facts], epochs=40)


@pytest.fixture(scope="session")
def letters() -> Talk:
    """Characters, the awkward ones among them."""
    texts = [
        "<script>alert(1)</script>",
        "a & b < c > d \"e\" 'f'",
        "\u202eright to left\u202c",
        "\u05e9\u05dc\u05d5\u05dd, world",
        "tab\tline\nline\n",
        "=1+1, @SUM(A1)",
    ]
    return Talk.about(Corpus.of(texts, characters("".join(texts))), [("<scr", "ipt>"), ("tab", "\tline\n")], epochs=5)


@pytest.fixture(scope="session")
def made():
    """300 digits, 30 of them flipped, a small network that has learned them, its index, and 42 clean digits."""
    digits, objective = mnist_5k(), CrossEntropy()
    labels, wrong = flip_labels(digits.train.labels[:N], 0.1)
    noisy = replace(digits.train[:N], labels=labels)
    model = mlp((784, 12, 10), dtype=torch.float64)
    inputs = noisy.inputs.double()
    train(model, objective, inputs, labels, epochs=25, batch_size=50, lr=3e-3, progress=False)
    data = [(inputs, labels)]
    index = TrainIndex.build(model, objective, data, ekfac(model, objective, data, progress=False), progress=False)
    clean = digits.queries[::12]
    return model, objective, index, noisy, clean, wrong, suspicion(model, objective, index, noisy, clean)


@pytest.fixture
def review(made) -> Review:
    return reviewing(made)
