"""dattri 0.3.0 as the conformance suite asks it: ``IFAttributorEKFAC``, in float64.

Its conventions, translated or declared here: the loss is the mean of a batch, which it multiplies by the batch's size;
scores are +g_qᵀ (·)⁻¹ g_n of the losses, training examples in rows, here turned. Its documentation offers sequences,
with a mask that its program does not take: padding is left to the loss. Where results are collected it takes torch's
default dtype, which is float64 meanwhile.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import torch
import torch.nn.functional as F
from dattri.algorithm.influence_function import IFAttributorEKFAC
from dattri.task import AttributionTask
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from inflib.conformance import OFFERS, ROUNDING, Case, Examples

LACKS = {
    "expected labels": "its curvature is made from the data's labels",
    "sampled labels": "as expected labels",
    "trainable layers": "without a choice it takes every linear layer",
    "layer scores": "the layers are summed",
    "default damping": "one number for all layers, 0 by itself",
    "own streams": "it draws no labels",
    "draws": "it draws no labels",
}


class Dattri:
    """``cache`` fits, ``attribute`` and ``self_attribute`` score."""

    name, version, rounding = "dattri", version("dattri"), ROUNDING
    offers, lacks = frozenset(OFFERS) - LACKS.keys(), LACKS

    def fit(self, case: Case) -> IFAttributorEKFAC:
        model = copy.deepcopy(case.model)

        def loss(parameters: dict[str, Tensor], data: tuple[Tensor, Tensor]) -> Tensor:
            x, y = data
            if case.loss == "next token":
                logits = torch.func.functional_call(model, parameters, (x[:, :-1],))
                losses = F.cross_entropy(logits.transpose(1, 2), x[:, 1:], reduction="none")
                return (losses * y[:, 1:]).sum() / len(x)
            outputs = torch.func.functional_call(model, parameters, (x,))
            if case.loss == "squared error":
                return 0.5 * (outputs - y).square().sum() / len(x)
            return F.cross_entropy(outputs, y)

        task = AttributionTask(loss, model, model.state_dict())
        names = [k for k, m in model.named_modules() if isinstance(m, nn.Linear)]
        with _double():
            fitted = IFAttributorEKFAC(task, module_name=list(case.layers or names))
            fitted.cache(_loader(case, case.train))
        return fitted

    def scores(self, fitted: IFAttributorEKFAC, case: Case, damping: float | None) -> Tensor:
        fitted.damping = damping
        with _double():
            found: Tensor = fitted.attribute(_loader(case, case.train), _loader(case, case.queries))
        return found.T

    def layer_scores(self, fitted: Any, case: Case, damping: float | None) -> Tensor:
        raise NotImplementedError

    def self_influence(self, fitted: IFAttributorEKFAC, case: Case, damping: float | None) -> Tensor:
        fitted.damping = damping
        with _double():
            found: Tensor = fitted.self_attribute(_loader(case, case.train))
        return found


@contextmanager
def _double() -> Iterator[None]:
    """float64 for whatever the library makes itself; and quiet."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.set_default_dtype(before)


def _loader(case: Case, examples: Examples) -> DataLoader[Any]:
    return DataLoader(TensorDataset(examples.inputs, examples.targets), batch_size=case.batch_size)
