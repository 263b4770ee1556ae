"""bergson 2.5.1 as the conformance suite asks it: factors by its fit, gradients by its collectors, its preconditioner.

Its conventions, translated or declared here. It knows next-token losses alone, so that an example of a classifier is
the sequence (n, n) with y_n for its second label: token n looks up row n of the inputs, an embedding that is fixed.
Scores are +g_qᵀ (·)⁻¹ g_n of losses summed over tokens, training examples in rows, here turned. Damping is a number
("absolute_damped_inverse"), or 0.1 · mean Λ of each layer ("damped_inverse"). Its factors are fitted in float64, and
read and inverted in float32: hence ``rounding``.
"""

from __future__ import annotations

import copy
import logging
import tempfile
from importlib.metadata import version
from types import SimpleNamespace
from typing import Any

import torch
from bergson import CollectorComputer, GradientProcessor, IndexConfig, InMemoryCollector, Scorer
from bergson.config.config import HessianConfig, InversionConfig
from bergson.hessians.hessian_approximations import fit_factored_hessians
from bergson.hessians.preconditioner import FactoredPreconditioner
from bergson.score.score_writer import InMemorySequenceScoreWriter
from datasets import Dataset
from datasets.table import InMemoryTable
from torch import Tensor, nn

from inflib.conformance import OFFERS, PAD, Case, Examples

DOUBLE = torch.float64
LACKS = {
    "expected labels": "labels are drawn, or the data's",
    "squared error": "its losses are of tokens",
    "trainable layers": "frozen layers count unless others are named",
    "layer scores": "the layers are summed",
    "self-influence": "it scores pairs alone",
    "own streams": "labels are drawn by torch's global generator",
    "draws": "one draw for each example",
}
logging.disable(logging.INFO)  # what it tells of every pass


class Bergson:
    """``fit_factored_hessians`` fits, ``FactoredPreconditioner`` solves, a ``Scorer`` in a collector scores."""

    name, version, rounding = "bergson", version("bergson"), 1e-5  # measured: 3e-7 at most
    offers, lacks = frozenset(OFFERS) - LACKS.keys(), LACKS

    def fit(self, case: Case) -> tempfile.TemporaryDirectory[str]:
        """The folder in which the library keeps its factors."""
        folder = tempfile.TemporaryDirectory()
        asked = Asked(case, case.train, folder.name)
        asked.config.partial_run_path.mkdir()
        observed = case.labels == "observed"
        how = HessianConfig("kfac", ev_correction=True, hessian_dtype="fp64", use_dataset_labels=observed)
        chosen = dict(target_modules=asked.layers, attention_cfgs={}, batches=asked.batches, path=folder.name)
        fit_factored_hessians(asked.model, asked.data, asked.config, how, do_eigendecomposition=True, **chosen)
        return folder

    def scores(self, fitted: tempfile.TemporaryDirectory[str], case: Case, damping: float | None) -> Tensor:
        inversion = InversionConfig("damped_inverse", 0.1)
        if damping is not None:
            inversion = InversionConfig("absolute_damped_inverse", damping)
        inverse = FactoredPreconditioner.from_path(fitted.name, inversion_cfg=inversion, ev_correction=True)
        queries, train = (Asked(case, examples, fitted.name) for examples in (case.queries, case.train))
        solved = inverse.apply(queries.collected().gradients)
        writer = InMemorySequenceScoreWriter(len(case.train), len(case.queries), DOUBLE)
        train.collected(scorer=Scorer(solved, list(solved), writer, torch.device("cpu"), DOUBLE))
        return writer.scores.T

    def layer_scores(self, fitted: Any, case: Case, damping: float | None) -> Tensor:
        raise NotImplementedError

    def self_influence(self, fitted: Any, case: Case, damping: float | None) -> Tensor:
        raise NotImplementedError


class Asked:
    """A case's model and some of its examples in the library's form."""

    def __init__(self, case: Case, examples: Examples, folder: str) -> None:
        self.model, self.data = Causal(case, examples), _data(case, examples)
        self.layers = None if case.layers is None else set(case.layers)
        self.batches = [each.tolist() for each in torch.arange(len(examples)).split(case.batch_size)]
        self.config = IndexConfig(f"{folder}/run", model="none", include_bias=True)

    def collected(self, **how: Any) -> InMemoryCollector:
        """A collector after its pass: it has gradients by layer, or the scores of the scorer that it is given."""
        collector = InMemoryCollector(
            model=self.model.base_model,
            data=self.data,
            cfg=self.config,
            target_modules=self.layers,
            processor=GradientProcessor(include_bias=True),
            **how,
        )
        pass_over = CollectorComputer(self.model, self.data, collector=collector, batches=self.batches, cfg=self.config)
        pass_over.run_with_collector_hooks()
        return collector


class Causal(nn.Module):
    """A case's model as the library calls one: token ids (B, T) in, ``.logits`` (B, T, V) out."""

    device, dtype = torch.device("cpu"), DOUBLE

    def __init__(self, case: Case, examples: Examples) -> None:
        super().__init__()
        self.base_model = copy.deepcopy(case.model)
        self.base_model.device = self.device  # as theirs have
        self.rows = None if case.loss == "next token" else examples.inputs  # (N, i)

    def forward(self, ids: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.base_model(ids if self.rows is None else self.rows[ids]))


def _data(case: Case, examples: Examples) -> Dataset:
    """Token ids with labels, −100 where a token is not in the loss."""
    if case.loss == "next token":
        ids = [x[x != PAD] for x in examples.inputs]
        labels = [x.where(y[: len(x)], -100) for x, y in zip(ids, examples.targets, strict=True)]
    else:
        ids = [torch.tensor([n, n]) for n in range(len(examples))]
        labels = [torch.tensor([-100, y]) for y in examples.targets]
    columns = {"input_ids": ids, "labels": labels}
    lengths = {"length": [len(x) for x in ids]}
    table = InMemoryTable.from_pydict({name: [x.tolist() for x in rows] for name, rows in columns.items()} | lengths)
    return Dataset(table, fingerprint="case")
