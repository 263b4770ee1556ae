"""The exact curvatures against dense matrices built here from per-example Jacobians and label by label."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from hypothesis import given
from networks import ZOO, Case, Conv1D, batches, cases, drawn, make, snapshot, zoo
from oracle import assert_close
from test_ekfac import recorded
from torch import Tensor

import inflib.exact
from inflib import IndefiniteWarning, gauss_newton, hessian, influence, register
from inflib.dense import BlockDense, Dense
from inflib.exact import gauss_newton_product
from inflib.jacobians import plain_attention
from inflib.layers import _KINDS, positions_last

pytestmark = pytest.mark.usefixtures("float64", "conv1d")


@pytest.fixture(scope="module")
def conv1d() -> Any:
    register(Conv1D, positions_last, positions_last, transposed=True)
    yield
    del _KINDS[Conv1D]


# --- Gauss-Newton and Fisher ------------------------------------------------------------------------------------------------


@given(cases())
@drawn(30)
def test_the_gauss_newton_hessian_is_the_expected_label_fisher(case: Case) -> None:
    found = gauss_newton(case.model, case.objective, case.train, progress=False).to_dense()
    assert_close(found, case.problem.gauss_newton(), 1e-12)
    assert_close(found, case.problem.expected_fisher(case.name), 1e-12)


@pytest.mark.parametrize("name", ["CrossEntropy", "SquaredError", "Bernoulli"])
@pytest.mark.parametrize("animal", ZOO)
def test_the_gauss_newton_hessian_is_right_however_the_layers_are_used(animal: str, name: str) -> None:
    case = zoo(animal, name, n=4)
    layers = case.layers if any(word in animal for word in ("residual", "transformer", "tied, called")) else None
    found = gauss_newton(case.model, case.objective, case.train, layers, progress=False)
    assert list(found.layers) == case.layers
    assert_close(found.to_dense(), case.problem.gauss_newton(), 1e-12)


@given(cases())
@drawn(10)
def test_observed_labels_give_the_empirical_fisher(case: Case) -> None:
    found = gauss_newton(case.model, case.objective, case.train, labels="observed", progress=False)
    assert_close(found.to_dense(), case.problem.fisher(), 1e-12)


@given(cases())
@drawn(10)
def test_sampled_labels_give_the_fisher_of_the_labels_drawn(case: Case) -> None:
    objective, labels = recorded(case)
    found = gauss_newton(case.model, objective, case.train, labels="sampled", draws=2, progress=False)
    sets = [torch.cat(labels[d::2]) for d in (0, 1)]
    assert_close(found.to_dense(), case.problem.fisher(*sets), 1e-12)


@given(cases())
@drawn(10)
def test_blocks_are_the_diagonal_blocks(case: Case) -> None:
    found = gauss_newton(case.model, case.objective, case.train, blocks=True, progress=False)
    assert isinstance(found, BlockDense)
    assert_close(found.to_dense(), case.problem.block_diagonal(case.problem.gauss_newton()), 1e-12)


def test_some_of_the_layers_give_their_part_of_the_matrix() -> None:
    case = make(widths=(3, 4, 4, 3))
    whole = gauss_newton(case.model, case.objective, case.train, progress=False).to_dense()
    some = gauss_newton(case.model, case.objective, case.train, layers=["fc0", "fc2"], progress=False)
    spans = case.problem.spans
    keep = torch.cat([torch.arange(s.start, s.stop) for s in (spans["fc0"], spans["fc2"])])
    assert_close(some.to_dense(), whole[keep][:, keep], 1e-13)


def test_long_batches_are_worked_through_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    case = make(n=9, splits=[7])
    sizes = []

    def few(count: int, bytes_each: int, budget: int) -> Any:
        sizes.append(count)
        return (slice(at, min(at + 2, count)) for at in range(0, count, 2))

    monkeypatch.setattr(inflib.exact, "chunks", few)
    for labels in ("expected", "observed", "sampled"):
        found = gauss_newton(case.model, case.objective, case.train, labels=labels, progress=False).to_dense()
        monkeypatch.undo()
        whole = gauss_newton(case.model, case.objective, case.train, labels=labels, progress=False).to_dense()
        monkeypatch.setattr(inflib.exact, "chunks", few)
        assert_close(found, whole, 1e-13)
    assert sizes == [7, 2] * 3


@given(cases())
@drawn(10)
def test_products_agree_with_the_matrix(case: Case) -> None:
    v = torch.randn(3, len(case.problem.places), generator=torch.Generator().manual_seed(0))
    found = gauss_newton_product(case.model, case.objective, case.train, case.problem.stacks(v), progress=False)
    assert_close(case.problem.flat(found), v @ case.problem.gauss_newton(), 1e-12)


@pytest.mark.parametrize(
    "animal",
    [
        "tied modules",
        "called twice",
        "tokens",
        "weight stored transposed",
        "all frozen",
        "convolution in groups",
        "convolutions, tied, called twice",
    ],
)
def test_products_agree_with_the_matrix_however_the_layers_are_used(animal: str) -> None:
    case = zoo(animal)
    v = torch.randn(2, len(case.problem.places))
    found = gauss_newton_product(case.model, case.objective, case.train, case.problem.stacks(v), progress=False)
    assert_close(case.problem.flat(found), v @ case.problem.gauss_newton(), 1e-12)


# --- Hessian ------------------------------------------------------------------------------------------------------------------


@given(cases(activations=("tanh", "gelu", "softplus", "linear", "elu in place")))
@drawn(15)
def test_the_hessian_is_that_of_the_mean_loss(case: Case) -> None:
    found = hessian(case.model, case.objective, case.train, progress=False)
    assert_close(found.to_dense(), case.problem.hessian(), 1e-11)


@pytest.mark.parametrize(
    "animal", ["tied modules", "called twice", "tokens", "two inputs", "inputs by name", "all frozen"]
)
def test_the_hessian_is_right_however_the_layers_are_used(animal: str) -> None:
    case = zoo(animal, n=3)
    found = hessian(case.model, case.objective, case.train, progress=False)
    assert_close(found.to_dense(), case.problem.hessian(), 1e-12)


def test_hessian_and_gauss_newton_agree_for_a_model_linear_in_its_weights() -> None:
    for name in ("CrossEntropy", "SquaredError", "Bernoulli"):
        case = make(name, widths=(3, 2), n=6)
        H = hessian(case.model, case.objective, case.train, progress=False).to_dense()
        assert_close(H, gauss_newton(case.model, case.objective, case.train, progress=False).to_dense(), 1e-12)


def indefinite() -> tuple[Case, Dense]:
    case = make("SquaredError", n=8)
    case.y = case.y * 5  # large residuals: the second term of the Hessian wins
    H = hessian(case.model, case.objective, case.train, progress=False)
    assert float(torch.linalg.eigvalsh(H.matrix)[0]) < -0.1
    return case, H


def test_the_hessian_has_no_default_damping() -> None:
    case, H = indefinite()
    with pytest.raises(ValueError, match=r"exact Hessian has no default damping.*give damping="):
        influence(case.model, case.objective, case.train, case.queries, H, progress=False)
    with pytest.raises(ValueError, match=r"no default damping"):
        H.solve(case.problem.stacks(torch.randn(1, len(case.problem.places))))


def test_an_indefinite_damped_hessian_is_solved_with_a_warning_and_a_definite_one_without() -> None:
    case, H = indefinite()
    v = torch.randn(2, len(case.problem.places))
    lowest = float(torch.linalg.eigvalsh(H.matrix)[0])
    with pytest.warns(IndefiniteWarning, match=r"exact Hessian: the damped matrix is indefinite.*Give more damping"):
        found = H.solve(case.problem.stacks(v), 0.05)
    expected = torch.linalg.solve(case.problem.hessian() + 0.05 * torch.eye(v.shape[1]), v.T).T
    assert_close(case.problem.flat(found), expected, 1e-9)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        H.solve(case.problem.stacks(v), -lowest * 1.1)


def test_the_hessian_refuses_labels_that_are_not_the_datas() -> None:
    case = make()
    with pytest.raises(ValueError, match=r"labels='expected' for hessian; expected None"):
        hessian(case.model, case.objective, case.train, labels="expected", progress=False)


# --- both -----------------------------------------------------------------------------------------------------------------


@given(cases(activations=("tanh", "relu in place"), examples=(2, 6)))
@drawn(8)
def test_exact_curvatures_do_not_depend_on_batches(case: Case) -> None:
    for fit in (gauss_newton, hessian):
        one = fit(case.model, case.objective, case.train, progress=False).to_dense()
        other = fit(case.model, case.objective, batches(case.x, case.y, 1), progress=False).to_dense()
        assert_close(other, one, 1e-12)


@pytest.mark.parametrize("fit", [gauss_newton, hessian])
def test_the_model_is_left_byte_for_byte_as_it_was(fit: Any) -> None:
    case = zoo("tokens, relu in place")
    before = snapshot(case.model)
    with torch.no_grad():
        inside = fit(case.model, case.objective, case.train, progress=False).to_dense()
    outside = fit(case.model, case.objective, case.train, progress=False).to_dense()
    assert torch.equal(inside, outside)
    assert snapshot(case.model) == before


def test_an_outputs_axis_may_be_missing() -> None:
    """A model whose outputs are (B,), for a Bernoulli objective."""
    case = make("Bernoulli", widths=(3, 4, 1))
    flat = torch.nn.Sequential(case.model, torch.nn.Flatten(0))
    train = [(x, y[:, 0]) for x, y in case.train]
    found = gauss_newton(flat, case.objective, train, progress=False).to_dense()
    assert_close(found, case.problem.gauss_newton(), 1e-12)
    H = hessian(flat, case.objective, train, progress=False).to_dense()
    assert_close(H, case.problem.hessian(), 1e-12)


def test_a_model_that_looks_at_its_inputs_values_is_taken_one_example_at_a_time() -> None:
    """vmap refuses to follow it."""

    class Looks(torch.nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if bool(x.isfinite().all()) else x

    for name in ("CrossEntropy", "SquaredError"):
        case = make(name, splits=[3])
        for labels, expected in (("expected", case.problem.gauss_newton()), ("observed", case.problem.fisher())):
            found = gauss_newton(Looks(case.model), case.objective, case.train, labels=labels, progress=False)
            assert_close(found.to_dense(), expected, 1e-12)


def test_targets_out_of_range_are_refused() -> None:
    case = make()
    bad: list[tuple[Tensor, Tensor]] = [(case.x, case.y + 2)]
    for fit in (gauss_newton, hessian):
        with pytest.raises(ValueError, match=r"targets from 2 to 4; expected 0 to 2"):
            fit(case.model, case.objective, bad, progress=False)


@pytest.mark.parametrize("fused", [True, False])
def test_fused_attention_is_put_back_as_it_was_also_after_an_error(fused: bool) -> None:
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(fused)
    try:
        with plain_attention():
            assert not torch.backends.mha.get_fastpath_enabled()
        assert torch.backends.mha.get_fastpath_enabled() is fused
        with pytest.raises(ZeroDivisionError), plain_attention():
            raise ZeroDivisionError
        assert torch.backends.mha.get_fastpath_enabled() is fused
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
