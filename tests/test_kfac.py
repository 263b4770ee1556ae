"""K-FAC: its factors against second moments written out, and the cases where the product is the exact curvature."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from networks import Case, batches, cases, drawn, make, snapshot, zoo
from oracle import LOSSES, assert_close, block_diag, kron, perceptron_moments
from torch import Tensor, nn

from inflib import CrossEntropy, kfac
from inflib.kfac import second_moments

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
