"""kronfluence 1.0.1 as the conformance suite asks it, through its public ``Analyzer``, in float64.

Its conventions, translated or declared here: the loss is summed over a batch; scores are +g_qᵀ (·)⁻¹ g_n with the
query's loss for measurement, which is the suite's sign; damping None is 0.1 · mean Λ of each layer. It wraps a model's
layers in place, so it is given a copy.
"""

from __future__ import annotations

import copy
import tempfile
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from kronfluence.analyzer import Analyzer, prepare_model
from kronfluence.arguments import FactorArguments, ScoreArguments
from kronfluence.task import Task
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from inflib.conformance import OFFERS, PAD, ROUNDING, Case, Examples

warnings.filterwarnings("ignore", category=FutureWarning, module="kronfluence")  # of torch's, on its autocast
DOUBLE = torch.float64
FACTORS, SCORES = "factors", "scores"
LACKS = {
    "expected labels": "labels are drawn, or the data's",
    "trainable layers": "frozen layers count unless others are named",
    "own streams": "labels are drawn by torch's global generator",
    "draws": "one draw for each example",
}


class Losses(Task):
    """The case's loss, summed over a batch and its tokens."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.case = case

    def compute_train_loss(self, batch: tuple[Tensor, Tensor], model: nn.Module, sample: bool = False) -> Tensor:
        x, y = batch
        tokens = self.case.loss == "next token"
        outputs = model(x[:, :-1] if tokens else x)
        if self.case.loss == "squared error":
            y = outputs.detach() + torch.randn_like(outputs) if sample else y
            return 0.5 * (outputs - y).square().sum()
        labels = x[:, 1:] if tokens else y
        if sample:
            p = outputs.detach().softmax(-1)
            labels = torch.multinomial(p.flatten(0, -2), 1).reshape(labels.shape)
        losses = F.cross_entropy(outputs.flatten(0, -2), labels.flatten(), reduction="none").reshape(labels.shape)
        return (losses * y[:, 1:]).sum() if tokens else losses.sum()

    def compute_measurement(self, batch: tuple[Tensor, Tensor], model: nn.Module) -> Tensor:
        return self.compute_train_loss(batch, model)

    def get_influence_tracked_modules(self) -> list[str] | None:
        return None if self.case.layers is None else list(self.case.layers)

    def get_attention_mask(self, batch: tuple[Tensor, Tensor]) -> Tensor | None:
        return (batch[0][:, 1:] != PAD).long() if self.case.loss == "next token" else None


class Kronfluence:
    """EK-FAC from ``fit_all_factors``, scores from ``compute_pairwise_scores`` and ``compute_self_scores``."""

    name, version, rounding = "kronfluence", version("kronfluence"), ROUNDING
    offers, lacks = frozenset(OFFERS) - LACKS.keys(), LACKS

    def fit(self, case: Case) -> tempfile.TemporaryDirectory[str]:
        """The folder in which the library keeps its factors."""
        folder = tempfile.TemporaryDirectory()
        arguments = FactorArguments(
            strategy="ekfac",
            use_empirical_fisher=case.labels == "observed",
            activation_covariance_dtype=DOUBLE,
            gradient_covariance_dtype=DOUBLE,
            eigendecomposition_dtype=DOUBLE,
            per_sample_gradient_dtype=DOUBLE,
            lambda_dtype=DOUBLE,
        )
        _analyzer(case, folder.name).fit_all_factors(
            FACTORS, _data(case.train), per_device_batch_size=case.batch_size, factor_args=arguments
        )
        return folder

    def scores(self, fitted: tempfile.TemporaryDirectory[str], case: Case, damping: float | None) -> Tensor:
        return self._pairwise(fitted, case, damping, split=False)["all_modules"]

    def layer_scores(self, fitted: tempfile.TemporaryDirectory[str], case: Case, damping: float | None) -> Tensor:
        return torch.stack(list(self._pairwise(fitted, case, damping, split=True).values()), -1)

    def self_influence(self, fitted: tempfile.TemporaryDirectory[str], case: Case, damping: float | None) -> Tensor:
        handle = _analyzer(case, fitted.name)
        sides = {"train_dataset": _data(case.train), "per_device_train_batch_size": case.batch_size}
        handle.compute_self_scores(
            SCORES, FACTORS, **sides, score_args=_arguments(damping, False), overwrite_output_dir=True
        )
        return handle.load_self_scores(SCORES)["all_modules"]

    def _pairwise(self, fitted: Any, case: Case, damping: float | None, split: bool) -> dict[str, Tensor]:
        handle = _analyzer(case, fitted.name)
        handle.compute_pairwise_scores(
            SCORES,
            FACTORS,
            query_dataset=_data(case.queries),
            train_dataset=_data(case.train),
            per_device_query_batch_size=case.batch_size,
            per_device_train_batch_size=case.batch_size,
            score_args=_arguments(damping, split),
            overwrite_output_dir=True,
        )
        found: dict[str, Tensor] = handle.load_pairwise_scores(SCORES)
        return found


def _analyzer(case: Case, folder: str) -> Analyzer:
    task = Losses(case)
    model = prepare_model(copy.deepcopy(case.model), task)
    return Analyzer("conformance", model, task, cpu=True, disable_tqdm=True, output_dir=str(Path(folder)))


def _data(examples: Examples) -> TensorDataset:
    return TensorDataset(examples.inputs, examples.targets)


def _arguments(damping: float | None, split: bool) -> ScoreArguments:
    return ScoreArguments(
        damping_factor=damping,
        compute_per_module_scores=split,
        query_gradient_svd_dtype=DOUBLE,
        per_sample_gradient_dtype=DOUBLE,
        precondition_dtype=DOUBLE,
        score_dtype=DOUBLE,
    )
