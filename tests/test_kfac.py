"""K-FAC: its factors against second moments written out, and the cases where the product is the exact curvature."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from networks import Case, Positions, Tokens, batches, cases, drawn, make, perceptron, snapshot, zoo
from oracle import LOSSES, Problem, assert_close, block_diag, kron, perceptron_moments
from torch import Tensor, nn

from inflib import CrossEntropy, SquaredError, ekfac, kfac
from inflib.kfac import second_moments
from inflib.symmetric import STRIP

FUNCTIONS = {"tanh": torch.tanh, "relu": torch.relu, "linear": lambda h: h}
pytestmark = pytest.mark.usefixtures("float64")


def moments_by_hand(case: Case) -> list[tuple[Tensor, Tensor]]:
    linears = [m for m in case.model if isinstance(m, nn.Linear)]
    weights = [m.weight.detach() for m in linears]
    biases = [None if m.bias is None else m.bias.detach() for m in linears]
    return perceptron_moments(weights, biases, FUNCTIONS[case.activation], LOSSES[case.name], case.x, case.y)


@given(cases(activations=tuple(FUNCTIONS)))
@drawn(30)
def test_factors_are_the_second_moments_of_inputs_and_output_gradients(case: Case) -> None:
    found = second_moments(case.model, case.objective, case.train, progress=False)
    assert found.examples == len(case.y)
    for name, (A, S) in zip(case.layers, moments_by_hand(case), strict=True):
        assert_close(found.A(name), A, 1e-12)
        assert_close(found.S(name), S, 1e-12)


@given(cases(activations=tuple(FUNCTIONS)))
@drawn(20)
def test_kfac_is_the_kronecker_product_of_its_factors_gradient_side_first(case: Case) -> None:
    expected = block_diag(*(kron(S, A) for A, S in moments_by_hand(case)))
    assert_close(kfac(case.model, case.objective, case.train, progress=False).to_dense(), expected, 1e-11)


def test_the_activation_moment_ends_in_the_bias_column() -> None:
    case = make()
    A = second_moments(case.model, case.objective, case.train, progress=False).A("fc0")
    assert float(A[-1, -1]) == pytest.approx(1)
    assert torch.allclose(A[-1, :-1], case.x.mean(0))


def test_positions_divide_A_and_examples_divide_S() -> None:
    case = zoo("tokens")
    case.y = case.y[:4]
    case.x = case.x[:4]
    found = second_moments(case.model, case.objective, batches(case.x, case.y, 3), progress=False)
    assert found.positions["up"] == 4 * 5
    assert found.examples == 4
    rows = torch.cat([case.x.reshape(20, 3), torch.ones(20, 1)], dim=1)
    assert_close(found.A("up"), sum(torch.outer(r, r) for r in rows) / 20, 1e-13)


def test_S_of_a_layer_called_twice_sums_over_its_calls() -> None:
    case = zoo("called twice", "SquaredError")
    found = second_moments(case.model, case.objective, case.train, progress=False)
    same, out = case.model.same, case.model.out
    total = torch.zeros(3, 3)
    for x in case.x:
        z1 = torch.zeros(3), torch.zeros(3)

        def outputs(d1: Tensor, d2: Tensor, x: Tensor = x) -> Tensor:
            return out(torch.tanh(same(torch.tanh(same(x) + d1)) + d2))

        for J in torch.func.jacrev(outputs, argnums=(0, 1))(*z1):
            total += J.T @ J
    assert_close(found.S("same"), total.detach() / 6, 1e-12)
    assert found.positions["same"] == 12


@pytest.mark.parametrize("labels", ["expected", "observed", "sampled"])
def test_sums_of_two_shards_add_up_to_the_whole(labels: str) -> None:
    case = make(n=7, splits=[4])
    whole = second_moments(case.model, case.objective, case.train, labels=labels, progress=False)
    shards = [second_moments(case.model, case.objective, [b], labels=labels, progress=False) for b in case.train]
    merged = shards[0] + shards[1]
    assert merged.examples == 7
    for name in case.layers:
        assert_close(merged.A(name), whole.A(name), 1e-13)
        if labels != "sampled":  # a shard counts its examples from 0, so it draws other labels
            assert_close(merged.S(name), whole.S(name), 1e-13)


def test_sums_are_float64_for_float64_and_float32_for_less() -> None:
    case = make()
    for dtype, kept in (
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
    ):
        train = [(x.to(dtype), y) for x, y in case.train]
        found = second_moments(case.model.to(dtype), case.objective, train, progress=False)
        assert all(s.dtype == kept for s in (*found.A_sum.values(), *found.S_sum.values()))


def test_half_precision_sums_lose_nothing_to_many_small_terms() -> None:
    """In bfloat16 itself a sum of ones stops growing at 256."""
    model = nn.Linear(1, 2).bfloat16()
    x, y = torch.ones(1000, 1).bfloat16(), torch.zeros(1000, dtype=torch.int64)
    found = second_moments(model, CrossEntropy(), batches(x, y, 10), progress=False)
    assert torch.equal(found.A(""), torch.ones(2, 2, dtype=torch.float32))


# --- where K-FAC is exact -------------------------------------------------------------------------------------------------


def one_datum(name: str, copies: int = 1) -> Case:
    case = make(name, widths=(3, 4, 3), n=1, splits=[])
    case.x, case.y = case.x.repeat(copies, 1), case.y.repeat_interleave(copies, 0)
    case.splits = [1] if copies > 1 else []
    return case


def zero_softmax() -> Case:
    case = make("CrossEntropy", widths=(4, 3), n=9)
    with torch.no_grad():
        for p in case.model.parameters():
            p.zero_()
    return case


# every case: each layer's block of G is exactly S ⊗ A
EXACT: dict[str, Any] = {
    "softmax on one example": lambda: one_datum("CrossEntropy"),
    "squared error on one example": lambda: one_datum("SquaredError"),
    "softmax on copies of one example": lambda: one_datum("CrossEntropy", 4),
    "deep linear network with squared error": lambda: make("SquaredError", (3, 4, 2, 3), 8, "linear"),
    "deep linear network with squared error, no bias": lambda: make("SquaredError", (3, 4, 3), 8, "linear", False),
    "one linear layer with squared error": lambda: make("SquaredError", (4, 3), 8),
    "softmax layer at zero": zero_softmax,
}


@pytest.mark.parametrize("which", EXACT)
def test_kfac_is_exact_where_theory_says_so(which: str) -> None:
    case = EXACT[which]()
    if "copies" in which or "one example" in which:
        # S has the rank of H_out, A that of one example, so only one network per loss has this property
        assert torch.linalg.matrix_rank(second_moments(case.model, case.objective, case.train).A("fc0")) == 1
    G = case.problem.gauss_newton()
    assert_close(
        kfac(case.model, case.objective, case.train, progress=False).to_dense(), case.problem.block_diagonal(G), 1e-10
    )


def test_kfac_is_not_exact_in_general() -> None:
    """Otherwise the tests above would show nothing."""
    case = make(n=12)
    G = case.problem.block_diagonal(case.problem.gauss_newton())
    error = kfac(case.model, case.objective, case.train, progress=False).to_dense() - G
    assert float(error.norm() / G.norm()) > 0.02


def test_one_linear_layer_with_squared_error_is_exact_as_a_whole() -> None:
    case = make("SquaredError", (4, 3), 8)
    assert_close(
        kfac(case.model, case.objective, case.train, progress=False).to_dense(), case.problem.gauss_newton(), 1e-10
    )


@pytest.mark.parametrize("labels", ["expected", "sampled", "observed"])
def test_a_fit_leaves_the_model_byte_for_byte_as_it_was(labels: str) -> None:
    case = zoo("tokens, relu in place")
    before = snapshot(case.model)
    kfac(case.model, case.objective, case.train, labels=labels, progress=False)
    assert snapshot(case.model) == before


# --- sharing: the positions of an example -----------------------------------------------------------------------------------

Setting = tuple[
    nn.Module, list[str], tuple[int, ...], tuple[int, ...]
]  # model, layers, one input's shape, one output's


class Pooled(nn.Sequential):
    """A sequence of modules whose outputs (B, C, H, W) are averaged, or summed, over the image."""

    def __init__(self, *modules: nn.Module, pool: str = "mean"):
        super().__init__(*modules)
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        return getattr(super().forward(x), self.pool)(dim=(2, 3))


def circular(i: int, o: int) -> nn.Conv2d:
    """Without a border: every position of the image reaches as many of the next layer."""
    return nn.Conv2d(i, o, 3, padding=1, padding_mode="circular")


# every case: each layer's block of G is exactly S ⊗ A in this kind of sharing, with squared error
SHARED: dict[str, tuple[str, Any]] = {
    "deep linear network, a loss at every position": (
        "expand",
        lambda: (perceptron([3, 4, 2], [True, True], "linear", 0), ["fc0", "fc1"], (5, 3), (5, 2)),
    ),
    "one convolution, a loss at every pixel": (
        "expand",
        lambda: (nn.Conv2d(2, 3, 2, stride=2, padding=1), [""], (2, 3, 4), (3, 2, 3)),
    ),
    "one convolution in groups, a loss at every pixel": (
        "expand",
        lambda: (nn.Conv2d(2, 4, 2, groups=2), ["group0", "group1"], (2, 3, 3), (4, 2, 2)),
    ),
    "deep linear network, outputs averaged": (
        "reduce",
        lambda: (
            Positions(perceptron([3, 4, 2], [True, True], "linear", 0)),
            ["inner.fc0", "inner.fc1"],
            (5, 3),
            (2,),
        ),
    ),
    "deep linear convolutions, outputs averaged": (
        "reduce",
        lambda: (Pooled(circular(2, 3), circular(3, 2)), ["0", "1"], (2, 3, 4), (2,)),
    ),
    "deep linear convolutions, outputs summed": (
        "reduce",
        lambda: (Pooled(circular(2, 3), circular(3, 2), pool="sum"), ["0", "1"], (2, 3, 4), (2,)),
    ),
}


def shared(which: str) -> tuple[nn.Module, list[tuple[Tensor, Tensor]], Tensor]:
    """The model of SHARED, its data, and the diagonal blocks of its G."""
    torch.manual_seed(0)
    model, layers, inputs, outputs = SHARED[which][1]()
    x, y = torch.randn(6, *inputs), torch.randn(6, *outputs)
    problem = Problem(model, layers, lambda f, y: ((f - y.flatten()) ** 2).sum() / 2, x, y)
    return model, batches(x, y, [4]), problem.block_diagonal(problem.gauss_newton())


@pytest.mark.parametrize("fit", [kfac, ekfac])
@pytest.mark.parametrize("which", SHARED)
def test_each_kind_of_sharing_is_exact_where_theory_says_so(which: str, fit: Any) -> None:
    model, data, G = shared(which)
    found = fit(model, SquaredError(), data, sharing=SHARED[which][0], progress=False)
    assert_close(found.to_dense(), G, 1e-10)


@pytest.mark.parametrize("which", SHARED)
def test_the_other_kind_of_sharing_is_not_exact_there(which: str) -> None:
    model, data, G = shared(which)
    other = "reduce" if SHARED[which][0] == "expand" else "expand"
    error = kfac(model, SquaredError(), data, sharing=other, progress=False).to_dense() - G
    assert float(error.norm() / G.norm()) > 0.1


# the first layer's inputs (6, positions, i), from the case
INPUTS: dict[str, Any] = {
    "tokens": lambda case: case.x,
    "grid of positions": lambda case: case.x.flatten(1, -2),
    "convolution": lambda case: nn.functional.unfold(case.x, 3, padding=1, stride=2).mT,
    "called twice": lambda case: torch.stack([case.x, torch.tanh(case.model.same(case.x))], dim=1).detach(),
}


@pytest.mark.parametrize("animal", INPUTS)
def test_reduced_factors_are_moments_of_the_mean_input_and_of_the_biass_gradient(animal: str) -> None:
    """An example's bias gradient is Σ_t g_t: its second moment stands in the Fisher."""
    case = zoo(animal)
    found = second_moments(case.model, case.objective, case.train, sharing="reduce", progress=False)
    F, first = case.problem.expected_fisher(case.name), case.layers[0]
    for name, (o, i) in case.problem.shapes.items():
        at = case.problem.spans[name].start + torch.arange(1, o + 1) * i - 1  # the bias's coordinates
        assert_close(found.S(name), F[at][:, at], 1e-12)
        assert found.positions[name] == found.examples == 6
    inputs = INPUTS[animal](case)
    assert inputs.shape[1] > 1
    means = torch.cat([inputs.mean(1), torch.ones(6, 1)], dim=1)
    assert_close(found.A(first), means.T @ means / 6, 1e-13)


def test_a_layer_applied_once_an_example_is_the_same_in_either_sharing() -> None:
    case = make(widths=(3, 4, 3))
    one, two = (
        second_moments(case.model, case.objective, case.train, sharing=sharing, progress=False)
        for sharing in ("expand", "reduce")
    )
    for name in case.layers:
        assert torch.equal(one.A(name), two.A(name))
        assert torch.equal(one.S(name), two.S(name))


def test_padded_positions_are_in_no_mean() -> None:
    class Masked(Tokens):
        def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
            h = self.down(torch.tanh(self.up(x)))
            return (h * attention_mask[..., None]).sum(1) / attention_mask.sum(1, keepdim=True)

    model, y = Masked(), torch.tensor([0, 1])
    x = torch.randn(2, 4, 3)
    x[1, 2:] = 100.0
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    data = [({"x": x, "attention_mask": mask}, y)]
    found = second_moments(model, CrossEntropy(), data, sharing="reduce", progress=False)
    apart = [
        ({"x": x[n : n + 1, :T], "attention_mask": mask[n : n + 1, :T]}, y[n : n + 1]) for n, T in ((0, 4), (1, 2))
    ]
    expected = second_moments(model, CrossEntropy(), apart, sharing="reduce", progress=False)
    for name in ("up", "down"):
        assert_close(found.A(name), expected.A(name), 1e-13)
        assert_close(found.S(name), expected.S(name), 1e-13)


def test_a_reduced_curvature_says_so() -> None:
    case = zoo("convolution")
    for fit in (kfac, ekfac):
        found = fit(case.model, case.objective, case.train, sharing="reduce", progress=False)
        assert found.facts.sharing == "reduce"
        assert "6 examples, positions reduced" in repr(found)
    assert kfac(case.model, case.objective, case.train, progress=False).facts.sharing == "expand"


@pytest.mark.parametrize("fit", [kfac, ekfac, second_moments])
@pytest.mark.parametrize("sharing", ["mean", None, True])
def test_an_unknown_sharing_is_refused(fit: Any, sharing: Any) -> None:
    case = make()
    with pytest.raises(
        ValueError, match=rf"sharing={sharing!r}; expected 'expand'.*'reduce'.*or 'gradients'.*sharing='expand'"
    ):
        fit(case.model, case.objective, case.train, sharing=sharing, progress=False)


@pytest.mark.parametrize("strip", [1, STRIP])
@pytest.mark.parametrize(("i", "o"), [(15, 40), (47, 33), (96, 97), (250, 130)])
def test_the_strips_of_a_wide_layer_reach_every_corner(i: int, o: int, strip: int, monkeypatch: Any) -> None:
    monkeypatch.setattr("inflib.symmetric.STRIP", strip)
    layer, x, y = nn.Linear(i, o), torch.randn(5, i), torch.randn(5, o)
    moments = second_moments(layer.eval(), SquaredError(), [(x[:2], y[:2]), (x[2:], y[2:])], labels="observed")
    a, g = torch.cat([x, torch.ones(5, 1)], 1), (layer(x) - y).detach()
    assert_close(moments.A(""), a.T @ a / 5, 1e-14)
    assert_close(moments.S(""), g.T @ g / 5, 1e-13)
