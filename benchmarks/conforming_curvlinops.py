"""curvlinops 3.0.1 as the conformance suite asks it: its EK-FAC, inverted, between gradients by ``torch.func``.

The library scores nothing; what is checked is its curvature. Its mean squared error is 2 / C of the suite's
½‖f − y‖², C outputs, which the adapter puts right in the matrix and in the damping. Damping is a number, exact, the
same for all layers.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import torch
from curvlinops import EKFACLinearOperator, FisherType, KFACInverseLinearOperator
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from inflib.conformance import OFFERS, ROUNDING, Case, oracle

FISHER = {"sampled": FisherType.MC, "expected": FisherType.TYPE2, "observed": FisherType.EMPIRICAL}
LOSSES = {"cross-entropy": nn.CrossEntropyLoss, "squared error": nn.MSELoss}
LACKS = {
    "next token": "its EK-FAC refuses outputs of more than two axes, by a ValueError where its K-FAC takes them",
    "padding": "as sequences",
    "layers": "its user picks parameters; no check that gives a number for damping needs a choice",
    "trainable layers": "its user picks parameters",
    "layer scores": "it scores nothing, and inverts all layers together",
    "self-influence": "it scores nothing",
    "default damping": "its user gives the number",
    "own streams": "one generator draws for all examples",
}


class Curvlinops:
    """``EKFACLinearOperator`` and ``KFACInverseLinearOperator``, weight and bias together."""

    name, version, rounding = "curvlinops", version("curvlinops-for-pytorch"), ROUNDING
    offers, lacks = frozenset(OFFERS) - LACKS.keys(), LACKS

    def fit(self, case: Case) -> EKFACLinearOperator:
        data = TensorDataset(case.train.inputs, case.train.targets)
        return EKFACLinearOperator(
            case.model,
            LOSSES[case.loss](reduction="mean"),
            list(case.model.parameters()),
            DataLoader(data, batch_size=case.batch_size),
            check_deterministic=False,
            fisher_type=FISHER[case.labels],
            mc_samples=case.draws,
            num_per_example_loss_terms=1,
            separate_weight_and_bias=False,
            num_data=len(case.train),
        )

    def scores(self, fitted: EKFACLinearOperator, case: Case, damping: float | None) -> Tensor:
        assert damping is not None
        of_queries, of_train = oracle.gradients(case, case.queries), oracle.gradients(case, case.train)
        outputs = next(m for m in reversed(list(case.model.modules())) if isinstance(m, nn.Linear)).out_features
        scale = 2 / outputs if case.loss == "squared error" else 1.0  # theirs = scale · ours
        inverse = KFACInverseLinearOperator(fitted, damping=scale * damping, use_exact_damping=True)
        solved = scale * _flat(case.model, inverse @ _columns(case.model, of_queries))
        return solved @ of_train.T

    def layer_scores(self, fitted: Any, case: Case, damping: float | None) -> Tensor:
        raise NotImplementedError

    def self_influence(self, fitted: Any, case: Case, damping: float | None) -> Tensor:
        raise NotImplementedError


def _columns(model: nn.Module, rows: Tensor) -> list[Tensor]:
    """(K, D), a layer's weights with the bias behind each row of them, as a tensor (…, K) for every parameter."""
    columns, at = [], 0
    for layer in (m for m in model.modules() if isinstance(m, nn.Linear)):
        o, i = layer.weight.shape
        part = rows[:, at : at + o * (i + 1)].reshape(-1, o, i + 1).movedim(0, -1)
        columns += [part[:, :-1].contiguous(), part[:, -1].contiguous()]
        at += o * (i + 1)
    return columns


def _flat(model: nn.Module, columns: list[Tensor]) -> Tensor:
    """The same back."""
    pairs = zip(columns[::2], columns[1::2], strict=True)
    return torch.cat([torch.cat([w, b[:, None]], 1).movedim(-1, 0).flatten(1) for w, b in pairs], 1)
