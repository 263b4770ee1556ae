"""Classes that extend a layer and write its forward anew: told so, with what to say of them, and right once it is said."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inflib import CrossEntropy, capture, coverage, ekfac, register
from inflib.layers import _KINDS

pytestmark = [pytest.mark.usefixtures("float64"), pytest.mark.filterwarnings("ignore::inflib.CoverageNote")]


class Rectified(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


class Squashed(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.tanh(), self.weight, self.bias)


class Mixed(nn.Linear):
    """Over the axis before the last."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.mT).mT


class Scaled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, 0.5 * self.weight, self.bias)


class Cosine(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, F.normalize(self.weight), self.bias)


class Standardised(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        w = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, w, self.bias)


class Padded(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (0, 1, 0, 1)))


def around(layer: nn.Module, wide: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(layer, nn.Flatten(), nn.Linear(wide, 3)).eval()


SAID: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "Rectified": (lambda: around(Rectified(3, 4), 4), (3,)),
    "Squashed": (lambda: around(Squashed(3, 4), 4), (3,)),
    "Mixed": (lambda: around(Mixed(3, 4), 8), (3, 2)),
}
LEFT_OUT: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "Scaled": (lambda: around(Scaled(3, 4), 4), (3,)),
    "Cosine": (lambda: around(Cosine(3, 4), 4), (3,)),
    "Standardised": (lambda: around(Standardised(1, 2, 2), 8), (1, 3, 3)),
    "Padded": (lambda: around(Padded(1, 2, 2), 18), (1, 3, 3)),
}


def data(shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(5, *shape), torch.tensor([0, 1, 2, 0, 1])


@pytest.fixture
def registered() -> Iterator[None]:
    before = dict(_KINDS)
    yield
    _KINDS.clear()
    _KINDS.update(before)


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("name", SAID)
def test_a_product_inside_a_forward_of_its_own_is_right_once_it_is_said(name: str) -> None:
    make, shape = SAID[name]
    (x, y), model = data(shape), make()
    with pytest.raises(ValueError, match=rf"{name} has a forward of its own.*inflib.register\({name}, inside=True\)"):
        capture(model, CrossEntropy(), x, y)
    register(type(model[0]), inside=True)
    found = capture(model, CrossEntropy(), x, y)["0"].matrices()
    for n in range(5):
        loss = F.cross_entropy(model(x[n : n + 1]), y[n : n + 1])
        weight, bias = torch.autograd.grad(loss, [model[0].weight, model[0].bias])
        torch.testing.assert_close(found[n], torch.cat([weight, bias[:, None]], 1))


@pytest.mark.parametrize("name", LEFT_OUT)
def test_a_weight_that_is_changed_before_it_is_applied_is_told_so_and_may_be_left_out(name: str) -> None:
    make, shape = LEFT_OUT[name]
    model, batch = make(), data(shape)
    with pytest.raises(ValueError, match=rf"{name} has a forward of its own.*[Ll]eave it out") as refused:
        ekfac(model, CrossEntropy(), [batch], progress=False)
    rule = str(refused.value).rpartition("layers=")[2].rstrip(".")
    choice: Any = eval(rule, {name: type(model[0])})  # the words are there to be copied
    assert ekfac(model, CrossEntropy(), [batch], choice, progress=False).layers == ("2",)


def test_a_class_that_only_adds_to_a_layer_is_one() -> None:
    class Named(nn.Linear):
        def __init__(self) -> None:
            super().__init__(3, 4)
            self.what = "head"

    model, (x, y) = around(Named(), 4), data((3,))
    assert set(capture(model, CrossEntropy(), x, y)) == {"0", "2"}
    assert coverage(model).numbers["uncovered"] == 0
