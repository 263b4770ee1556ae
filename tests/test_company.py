"""A loss, or a measurement, that depends on its batch in a way that no gradient passes through, or has no gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inflib import CrossEntropy, Objective, capture, ekfac, gauss_newton, identity, influence, self_influence

pytestmark = pytest.mark.usefixtures("float64")
QUIET: dict[str, Any] = {"progress": False}


class Own(Objective):
    """A loss of one's own: a function of outputs and targets."""

    def __init__(self, function: Callable[[Tensor, Tensor], Any]):
        self.function = function

    def loss(self, outputs: Tensor, targets: Tensor) -> Any:
        return self.function(outputs, targets)


def each(f: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(f, y, reduction="none")


def hardest(f: Tensor, y: Tensor) -> Tensor:
    losses = each(f, y)
    return losses * (losses >= losses.topk(len(losses) // 2 + 1).values[-1]).detach()


IN_COMPANY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "over the batch's size": lambda f, y: each(f, y) / len(y),
    "over its labels' counts": lambda f, y: each(f, y) / torch.bincount(y, minlength=3)[y],
    "times a detached maximum": lambda f, y: each(f, y) * f.detach().amax().exp(),
    "over a detached spread": lambda f, y: each(f, y) / f.detach().std(0).mean(),
    "of the hardest half": hardest,
}
CUT_OFF: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "no_grad": lambda f, y: torch.no_grad()(each)(f, y),
    "item": lambda f, y: torch.tensor([v.item() for v in each(f, y)]),
    "NumPy": lambda f, y: torch.as_tensor(-np.take(f.numpy(), [0], 1)[:, 0]),
    "NumPy, detached": lambda f, y: torch.as_tensor(f.detach().numpy()[:, 0]),
    "mistakes": lambda f, y: (f.argmax(1) != y).to(f),
}


def problem() -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    torch.manual_seed(0)
    y = torch.tensor([0, 0, 0, 1, 2, 1, 0, 2])
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).eval(), [(2 * torch.randn(8, 3), y)]


@pytest.mark.parametrize("how", IN_COMPANY)
def test_a_loss_that_only_its_batch_explains_is_refused_by_scores_too(how: str) -> None:
    """Identity asks the loss for nothing before the scores do, so a fit's own checks are not enough."""
    (model, data), objective = problem(), Own(IN_COMPANY[how])
    plain = identity(model, objective, data, **QUIET)
    for ask in (
        lambda: influence(model, objective, data, data, plain, **QUIET),
        lambda: self_influence(model, objective, data, plain, **QUIET),
        lambda: ekfac(model, objective, data, labels="observed", **QUIET),
        lambda: gauss_newton(model, objective, data, **QUIET),
        lambda: capture(model, objective, *data[0]),
    ):
        with pytest.raises(
            ValueError, match=r"(has another slope in a batch of|by itself and .* in a batch of) .*expected"
        ):
            ask()


@pytest.mark.parametrize("how", IN_COMPANY)
def test_so_is_a_measurement(how: str) -> None:
    model, data = problem()
    plain = identity(model, CrossEntropy(), data, **QUIET)
    with pytest.raises(ValueError, match=r"the measurement of example \d has another slope .*each example's own"):
        influence(model, CrossEntropy(), data, data, plain, measurement=IN_COMPANY[how], **QUIET)


def test_batches_of_one_have_no_company() -> None:
    model, data = problem()
    x, y = data[0]
    ones = [(x[n : n + 1], y[n : n + 1]) for n in range(8)]
    objective = Own(IN_COMPANY["over the batch's size"])
    plain = identity(model, objective, ones, **QUIET)
    found = influence(model, objective, ones, ones, plain, **QUIET)
    torch.testing.assert_close(found, influence(model, CrossEntropy(), data, data, plain, **QUIET))


@pytest.mark.parametrize("how", CUT_OFF)
def test_a_loss_without_a_gradient_is_said_to_have_none(how: str) -> None:
    (model, data), objective = problem(), Own(CUT_OFF[how])
    plain = identity(model, objective, data, **QUIET)
    for ask in (
        lambda: influence(model, objective, data, data, plain, **QUIET),
        lambda: influence(model, CrossEntropy(), data, data, plain, measurement=CUT_OFF[how], **QUIET),
        lambda: ekfac(model, objective, data, **QUIET),
        lambda: gauss_newton(model, objective, data, **QUIET),
    ):
        with pytest.raises(ValueError, match=r"cut off from the outputs: .*expected .* torch can differentiate"):
            ask()


def test_a_loss_that_is_no_tensor_is_named() -> None:
    model, data = problem()
    objective = Own(lambda f, y: each(f, y).tolist())
    plain = identity(model, objective, data, **QUIET)
    for ask in (
        lambda: influence(model, objective, data, data, plain, **QUIET),
        lambda: gauss_newton(model, objective, data, **QUIET),
    ):
        with pytest.raises(ValueError, match="the loss has shape list; expected one number per example"):
            ask()


def test_a_measurement_that_is_closed_over_the_batchs_size_is_taken() -> None:
    model, data = problem()
    plain, directions = identity(model, CrossEntropy(), data, **QUIET), torch.randn(8, 3)
    found = influence(
        model, CrossEntropy(), data, data, plain, measurement=lambda f, y: (f * directions).sum(1), **QUIET
    )
    for q in range(8):
        query = [(data[0][0][q : q + 1], data[0][1][q : q + 1])]
        alone = influence(
            model, CrossEntropy(), data, query, plain, measurement=lambda f, y, q=q: f @ directions[q], **QUIET
        )
        torch.testing.assert_close(found[q : q + 1], alone)
