"""What was trained is what counts: frozen layers, frozen biases, adapters, and weights that are no numbers to derive."""

from __future__ import annotations

import warnings

import pytest
import torch
from oracle import assert_close
from torch import Tensor, nn

from inflib import (
    CoverageNote,
    SquaredError,
    TrainIndex,
    coverage,
    ekfac,
    gauss_newton,
    identity,
    influence,
    refine,
    save,
    self_influence,
)
from inflib.storage import load

pytestmark = pytest.mark.usefixtures("float64")


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.LayerNorm(4), nn.Linear(4, 2)).eval()


def data() -> list[tuple[Tensor, Tensor]]:
    torch.manual_seed(1)
    return [(torch.randn(6, 3), torch.randn(6, 2))]


def said(model: nn.Module, **options: object) -> str:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ekfac(model, SquaredError(), data(), progress=False, **options)  # type: ignore[arg-type]
    return " ".join(str(w.message) for w in caught if issubclass(w.category, CoverageNote))


def test_a_frozen_layer_does_not_count_unless_it_is_named() -> None:
    model = net()
    model[0].requires_grad_(False)
    text = said(model)
    assert "2 parameters (16 numbers) are frozen (they ask for no gradient" in text and "0.weight, 0.bias" in text
    assert "2 parameters (8 numbers) are not covered" in text and "2.weight, 2.bias" in text
    for layers, names in ((None, ("3",)), ("*", ("0", "3")), (["0"], ("0",)), (lambda n, m: n == "0", ("0",))):
        fit = gauss_newton(model, SquaredError(), data(), layers=layers, progress=False)
        assert fit.layers == names
    assert coverage(model).numbers == {"covered": 10, "frozen": 16, "uncovered": 8}
    assert repr(coverage(model)).endswith("10 of 18 numbers covered, 8 uncovered; 16 more are frozen")


def test_where_nothing_asks_for_a_gradient_everything_counts_and_that_is_said() -> None:
    model = net().requires_grad_(False)
    assert "nothing in the model asks for a gradient, so every understood layer counts as trained" in said(model)
    assert coverage(model).numbers == {"covered": 26, "frozen": 0, "uncovered": 8}
    assert said(model, layers="3") == ""


def test_a_model_whose_layers_are_all_frozen_is_refused_with_the_names() -> None:
    model = net()
    model[0].requires_grad_(False), model[3].requires_grad_(False)
    with pytest.raises(ValueError, match=r"no matrix was trained: only 2.weight, 2.bias ask .*layers='all'"):
        ekfac(model, SquaredError(), data(), progress=False)


def each_gradient(model: nn.Module, names: list[str]) -> Tensor:
    """∇ℓ_n in the named parameters, one example at a time, (N, D)."""
    (x, y), wanted = data()[0], [dict(model.named_parameters())[name] for name in names]
    asked = [p.requires_grad for p in wanted]
    for p in wanted:
        p.requires_grad_(True)
    rows = []
    for n in range(len(x)):
        loss = 0.5 * (model(x[n : n + 1]) - y[n : n + 1]).square().sum()
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, wanted)]))
    for p, was in zip(wanted, asked, strict=True):
        p.requires_grad_(was)
    return torch.stack(rows)


@pytest.mark.filterwarnings("ignore::inflib.CoverageNote")
def test_a_frozen_bias_is_left_out_of_its_layer_everywhere(tmp_path) -> None:
    model = net()
    model[0].bias.requires_grad_(False)
    fit = ekfac(model, SquaredError(), data(), progress=False)
    assert fit.shapes == {"0": (4, 3), "3": (2, 5)}
    plain = identity(model, SquaredError(), data(), progress=False)
    rows = each_gradient(model, ["0.weight", "3.weight", "3.bias"])
    dots = rows @ rows.T
    index = TrainIndex.build(model, SquaredError(), data(), fit, progress=False)
    assert_close(influence(model, SquaredError(), data(), data(), plain, progress=False), dots, 1e-12)
    assert_close(self_influence(model, SquaredError(), data(), plain, progress=False), dots.diagonal(), 1e-12)
    assert_close(index.influence(model, SquaredError(), data(), plain), dots, 1e-12)
    exact = gauss_newton(model, SquaredError(), data(), progress=False)
    refined = refine(fit, model, SquaredError(), data(), tolerance=1e-12, progress=False)
    assert_close(refined.to_dense(), exact.to_dense(), 1e-10)
    save(fit, tmp_path / "fit")
    assert load(tmp_path / "fit", model).shapes == fit.shapes
    named = ekfac(model, SquaredError(), data(), layers="*", progress=False)
    assert named.shapes == {"0": (4, 4), "3": (2, 5)}


class Adapted(nn.Module):
    """A base weight in whole numbers, with a low-rank adapter beside it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.base = nn.Linear(3, 2, bias=False)
        self.base.weight = nn.Parameter(torch.randint(-9, 9, (2, 3), dtype=torch.int8), requires_grad=False)
        self.down, self.up = nn.Linear(3, 1, bias=False), nn.Linear(1, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.base.weight.to(x.dtype) / 9).T + self.up(self.down(x))


def test_weights_in_whole_numbers_are_never_touched_and_named() -> None:
    model = Adapted().eval()
    text = said(model)
    assert "1 parameters (6 numbers) are frozen" in text and "base.weight (Linear, int8)" in text
    assert coverage(model).rows == (("down", "Linear", 1, 3), ("up", "Linear", 2, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CoverageNote)
        plain = identity(model, SquaredError(), data(), progress=False)
    rows = each_gradient(model, ["down.weight", "up.weight"])
    assert_close(influence(model, SquaredError(), data(), data(), plain, progress=False), rows @ rows.T, 1e-12)
    with pytest.raises(ValueError, match=r"layers='base' has a weight of torch.int8; expected floating-point"):
        coverage(model, ["base", "up"])


def test_a_hook_on_a_parameters_gradient_is_said_not_to_be_applied() -> None:
    model = net()
    model[0].weight.register_hook(lambda g: g * (torch.arange(len(g)) > 1)[:, None])  # two rows were not trained
    with pytest.warns(CoverageNote, match=r"^0.weight have hooks on their gradients.*not applied.*layers="):
        ekfac(model, SquaredError(), data(), layers="0", progress=False)
    model = net()
    model[0].weight.register_post_accumulate_grad_hook(lambda p: None)
    with warnings.catch_warnings():
        warnings.simplefilter("error", CoverageNote)
        ekfac(model, SquaredError(), data(), layers="0", progress=False)
