"""kronfluence 1.0.1 on the workload, through its public `Analyzer`.

Its conventions, as this project reads them: the loss is summed over the batch; its scores are +g_qᵀ (·)⁻¹ g_n with the
query's *loss* as measurement, summed over layers and not divided by N, which is what inflib's sign and default
measurement (the log-likelihood, −loss) come to; `damping_factor=None` is 0.1 · mean Λ of each layer. Everything passes
through files in `folder`, because that is how the library keeps its state. Float64 has to be asked for argument by
argument.
"""

from __future__ import annotations

from pathlib import Path

import torch
from kronfluence.analyzer import Analyzer, prepare_model
from kronfluence.arguments import FactorArguments, ScoreArguments
from kronfluence.task import Task
from torch import Tensor, nn
from workload import Workload, summed_loss

FACTORS, SCORES = "factors", "scores"  # names inside the library's output folder


class Labels(Task):
    """Cross-entropy summed over a batch and its tokens, with the model's own labels where the true Fisher is wanted."""

    def __init__(self, layers: tuple[str, ...]):
        super().__init__()
        self.layers = list(layers)

    def compute_train_loss(self, batch: tuple[Tensor, Tensor], model: nn.Module, sample: bool = False) -> Tensor:
        inputs, labels = batch
        outputs = model(inputs)
        if sample:
            with torch.no_grad():
                labels = torch.multinomial(outputs.flatten(0, -2).softmax(-1), 1).reshape(labels.shape)
        return summed_loss(outputs, labels)

    def compute_measurement(self, batch: tuple[Tensor, Tensor], model: nn.Module) -> Tensor:
        return self.compute_train_loss(batch, model)

    def get_influence_tracked_modules(self) -> list[str]:
        return self.layers


def analyzer(work: Workload, folder: Path) -> Analyzer:
    """The library's handle on a fresh copy of the model (it wraps the model's layers in place)."""
    task = Labels(work.layers)
    model = prepare_model(work.model(), task)
    return Analyzer("bench", model, task, cpu=work.device.type == "cpu", disable_tqdm=True, output_dir=str(folder))


def fit(work: Workload, folder: Path, batch_size: int, labels: str, max_examples: int | None = None) -> None:
    """EK-FAC factors, left in the folder. `labels` is "sampled" (one draw) or "observed"."""
    torch.manual_seed(0)
    dtype = _dtype(work)
    arguments = FactorArguments(
        strategy="ekfac",
        use_empirical_fisher=labels == "observed",
        covariance_max_examples=max_examples,
        lambda_max_examples=max_examples,
        activation_covariance_dtype=dtype,
        gradient_covariance_dtype=dtype,
        eigendecomposition_dtype=torch.float64,
        per_sample_gradient_dtype=dtype,
        lambda_dtype=dtype,
    )
    analyzer(work, folder).fit_all_factors(
        FACTORS, work.train_set(), per_device_batch_size=batch_size, factor_args=arguments, overwrite_output_dir=True
    )


def pairwise(work: Workload, folder: Path, batch_size: int, damping: float | None = None) -> Tensor:
    """Scores (Q, N)."""
    handle = analyzer(work, folder)
    handle.compute_pairwise_scores(
        SCORES,
        FACTORS,
        query_dataset=work.query_set(),
        train_dataset=work.train_set(),
        per_device_query_batch_size=len(work.query_x),
        per_device_train_batch_size=batch_size,
        score_args=_score_arguments(_dtype(work), damping),
        overwrite_output_dir=True,
    )
    return handle.load_pairwise_scores(SCORES)["all_modules"]


def self_influence(work: Workload, folder: Path, batch_size: int, damping: float | None = None) -> Tensor:
    """Scores (N,)."""
    handle = analyzer(work, folder)
    handle.compute_self_scores(
        SCORES,
        FACTORS,
        train_dataset=work.train_set(),
        per_device_train_batch_size=batch_size,
        score_args=_score_arguments(_dtype(work), damping),
        overwrite_output_dir=True,
    )
    return handle.load_self_scores(SCORES)["all_modules"]


def mean_eigenvalues(work: Workload, folder: Path) -> dict[str, float]:
    """Mean Λ of each layer; the library stores Λ summed over examples, and their number beside it."""
    factors = analyzer(work, folder).load_lambda_matrices(FACTORS)
    counts = factors["num_lambda_processed"]
    return {name: (total.double().mean() / counts[name]).item() for name, total in factors["lambda_matrix"].items()}


def _dtype(work: Workload) -> torch.dtype:
    return next(iter(work.weights.values())).dtype


def _score_arguments(dtype: torch.dtype, damping: float | None) -> ScoreArguments:
    return ScoreArguments(
        damping_factor=damping,
        query_gradient_svd_dtype=dtype,
        per_sample_gradient_dtype=dtype,
        precondition_dtype=dtype,
        score_dtype=dtype,
    )
