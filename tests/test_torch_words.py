"""What torch would say in words of its own is said in inflib's, or is right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from oracle import assert_close
from torch import Tensor, nn
from torch.nn.utils import parametrizations, rnn

from inflib import SquaredError, ekfac, gauss_newton, hessian, identity, influence

pytestmark = pytest.mark.usefixtures("float64")
QUIET: dict[str, Any] = {"progress": False}


class Asks(nn.Module):
    """Its forward asks for a gradient in its input."""

    def __init__(self) -> None:
        super().__init__()
        self.l = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.l(x.detach().requires_grad_())


class Twos(Asks):
    """It takes its batch by positions that a batch of one lacks."""

    def forward(self, x: Tensor) -> Tensor:
        return self.l(x[[0, 1, 2, 3]])


class Packed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.read, self.out = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        lengths = torch.tensor([2] * len(x))
        packed = rnn.pack_padded_sequence(x[:, None].expand(-1, 2, -1), lengths, batch_first=True)
        return self.out(self.read(packed)[1][0][-1])


def hooked() -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    model[1].register_full_backward_hook(lambda module, gi, go: None)
    return model


@pytest.mark.parametrize("make", [hooked, Asks, Packed, Twos])
def test_what_an_exact_curvature_cannot_follow_is_named_and_the_others_do_without(make: Callable[[], Any]) -> None:
    torch.manual_seed(0)
    model, data = make().eval(), [(torch.randn(4, 3), torch.randn(4, 2))]
    with pytest.raises(RuntimeError, match=r"exact derivative follows the model .*; expected .* use ekfac") as caught:
        gauss_newton(model, SquaredError(), data, **QUIET)
    assert len(str(caught.value)) < 700
    ekfac(model, SquaredError(), data, **QUIET)


def test_a_hessian_says_so_too() -> None:
    with pytest.raises(RuntimeError, match="exact derivative follows the model"):
        hessian(hooked().eval(), SquaredError(), [(torch.randn(4, 3), torch.randn(4, 2))], **QUIET)


def test_an_embedding_whose_gradient_is_sparse_is_like_any_other() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(7, 3, sparse=True), nn.Flatten(), nn.Linear(6, 2)).eval()
    data = [(torch.randint(0, 7, (4, 2)), torch.randn(4, 2))]

    def scores() -> Tensor:
        plain = identity(model, SquaredError(), data, "all", **QUIET)
        return influence(model, SquaredError(), data, data, plain, **QUIET)

    sparse = scores()
    model[0].sparse = False
    assert_close(sparse, scores(), 1e-12)


def test_weights_without_a_shape_yet_are_named() -> None:
    lazy = nn.Sequential(nn.LazyLinear(4), nn.Tanh(), nn.LazyLinear(2))
    data = [(torch.randn(4, 3), torch.randn(4, 2))]
    with pytest.raises(ValueError, match=r"parameter '0.weight' has no shape yet .*expected .*Run it on a batch once"):
        ekfac(lazy, SquaredError(), data, **QUIET)
    lazy(data[0][0])
    assert ekfac(lazy.eval(), SquaredError(), data, **QUIET).layers == ("0", "2")


def test_a_model_whose_weights_are_all_made_of_others_says_what_to_take_off() -> None:
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(3, 2)))
    with pytest.raises(ValueError, match=r"selects no layer; expected .*remove_parametrizations"):
        ekfac(model, SquaredError(), [(torch.randn(4, 3), torch.randn(4, 2))], **QUIET)
