"""Every curvature does what its dense matrix does: product, damped solve, trace; and damping means what it says."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from networks import Case, cases, drawn, make, zoo
from oracle import assert_close
from torch import Tensor, nn

import inflib
from inflib import Curvature, damping_of, diagonal, ekfac, gauss_newton, hessian, identity, influence, kfac, relative
from inflib.curvature import Facts, Relative, hash_weights, resolve_damping
from inflib.dense import BlockDense, Dense
from inflib.implicit import refine_stochastic
from inflib.kronecker import Kronecker

pytestmark = pytest.mark.usefixtures("float64")

FITS: dict[str, Callable[..., Curvature]] = {
    "identity": identity,
    "diagonal": diagonal,
    "K-FAC": kfac,
    "EK-FAC": ekfac,
    "Gauss-Newton": gauss_newton,
    "Gauss-Newton blocks": lambda *a, **k: gauss_newton(*a, blocks=True, **k),
    "Hessian": hessian,
}
FACTS = Facts("test", "expected", 1, 0, 1, "")


def fitted(case: Case, which: str, **options: Any) -> Curvature:
    return FITS[which](case.model, case.objective, case.train, progress=False, **options)


def vectors(case: Case, count: int = 3) -> Tensor:
    return torch.randn(count, len(case.problem.places), generator=torch.Generator().manual_seed(1))


def drawn_damping(case: Case, seed: int) -> dict[str, float]:
    """One number for each layer, all different, over three orders of magnitude."""
    generator = torch.Generator().manual_seed(seed)
    return {n: float(10 ** (torch.rand((), generator=generator) * 3 - 2)) for n in case.layers}


def test_a_solution_beyond_the_largest_number_is_refused_by_the_layers_name() -> None:
    curvature = Kronecker({"0": torch.full((1, 1), 1e-200)}, {}, {}, FACTS)
    with pytest.raises(FloatingPointError, match=r"'0'.*solution|solution.*'0'"):
        curvature.solve({"0": torch.full((1, 1, 1), 1e200)}, 0.0)


def test_whatever_draws_begins_at_seed_0_with_one_draw_and_shows_its_progress() -> None:
    defaults = {"seed": 0, "draws": 1, "progress": True}
    public = [refine_stochastic, *(getattr(inflib, name) for name in inflib.__all__)]
    asked = [inspect.signature(f).parameters for f in public if inspect.isfunction(f)]
    stated = [(name, par[name].default) for par in asked for name in defaults if name in par]
    assert {name for name, _ in stated} == set(defaults)
    assert all(value == defaults[name] for name, value in stated)


# --- matvec, solve, to_dense ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", FITS)
@given(cases())
@drawn(8)
def test_matvec_is_the_dense_matrix_times_the_vector(which: str, case: Case) -> None:
    C, v = fitted(case, which), vectors(case)
    assert_close(case.problem.flat(C.matvec(case.problem.stacks(v))), v @ C.to_dense(), 1e-12)


@pytest.mark.parametrize("which", FITS)
@given(cases(), st.integers(0, 1000))
@drawn(8)
@pytest.mark.filterwarnings("ignore::inflib.IndefiniteWarning")
def test_solve_is_the_dense_solve_with_every_layers_own_damping(which: str, case: Case, seed: int) -> None:
    C, v, numbers = fitted(case, which), vectors(case), drawn_damping(case, seed)
    damped = C.to_dense() + case.problem.damping(numbers)
    if float(torch.linalg.cond(damped)) > 1e5:  # an indefinite Hessian may meet its damping
        return
    expected = torch.linalg.solve(damped, v.T).T
    assert_close(case.problem.flat(C.solve(case.problem.stacks(v), numbers)), expected, 1e-10)


@pytest.mark.parametrize("which", FITS)
@pytest.mark.parametrize("animal", ["tokens", "called twice", "out of order"])
@pytest.mark.filterwarnings("ignore::inflib.IndefiniteWarning")
def test_solve_is_the_dense_solve_for_layers_used_several_times(which: str, animal: str) -> None:
    case = zoo(animal)
    C, v, numbers = fitted(case, which), vectors(case), drawn_damping(case, 3)
    expected = torch.linalg.solve(C.to_dense() + case.problem.damping(numbers), v.T).T
    assert_close(case.problem.flat(C.solve(case.problem.stacks(v), numbers)), expected, 1e-10)


def test_matvec_and_solve_are_right_in_a_basis_that_is_not_symmetric() -> None:
    """to_dense is compared with the matrix written out here, entry by entry."""
    generator = torch.Generator().manual_seed(0)
    Q_S, Q_A = (torch.linalg.qr(torch.randn(k, k, generator=generator)).Q for k in (3, 4))
    values = torch.rand(3, 4, generator=generator) + 0.1
    C = Kronecker({"fc": values}, {"fc": Q_S}, {"fc": Q_A}, FACTS)
    dense = torch.zeros(12, 12)
    for j in range(3):
        for k in range(4):
            # the eigenvector of Λ_jk as a weight matrix is Q_S's column j times Q_A's column k
            u = torch.stack([Q_S[o, j] * Q_A[i, k] for o in range(3) for i in range(4)])
            dense += values[j, k] * torch.outer(u, u)
    assert_close(C.to_dense(), dense, 1e-13)
    v = torch.randn(2, 3, 4, generator=generator)
    assert_close(C.matvec({"fc": v})["fc"].reshape(2, 12), v.reshape(2, 12) @ dense, 1e-13)
    expected = torch.linalg.solve(dense + 0.3 * torch.eye(12), v.reshape(2, 12).T).T
    assert_close(C.solve({"fc": v}, 0.3)["fc"].reshape(2, 12), expected, 1e-12)


def test_identity_is_one_and_needs_no_data() -> None:
    case = make()
    C = identity(case.model, case.objective)
    assert torch.equal(C.to_dense(), torch.eye(len(case.problem.places)))
    assert resolve_damping(C) == {"fc0": 0.0, "fc1": 0.0}
    v = case.problem.stacks(vectors(case))
    assert_close(case.problem.flat(C.solve(v)), vectors(case), 1e-15)
    assert C.facts.method == "identity"
    assert C.facts.examples == 0


@pytest.mark.parametrize("which", FITS)
def test_a_curvature_says_what_it_is(which: str) -> None:
    case = make()
    C = fitted(case, which)
    assert C.layers == ("fc0", "fc1")
    assert C.shapes == {"fc0": (4, 4), "fc1": (3, 5)}
    assert C.facts.examples == (0 if which == "identity" else 7)
    assert C.facts.weights == hash_weights(case.model)
    assert C.facts.labels == ("observed" if which == "Hessian" else "expected")
    text = repr(C)
    assert C.facts.method in text
    assert "fc1  (3, 5)" in text
    for name, span in case.problem.spans.items():
        expected = float(C.to_dense().diagonal()[span].mean())
        assert C.mean_eigenvalues()[name] == pytest.approx(expected, rel=1e-12)


@given(cases(depth=(2, 3)))
@drawn(8)
def test_restricting_to_some_layers_takes_their_blocks(case: Case) -> None:
    C = fitted(case, "EK-FAC")
    name = case.layers[-1]
    some = C.restrict([name])
    span = case.problem.spans[name]
    assert some.layers == (name,)
    assert torch.equal(some.to_dense(), C.to_dense()[span, span])
    assert damping_of(some) == {name: damping_of(C)[name]}
    assert C.restrict(reversed(C.layers)).layers == C.layers


def test_restricting_to_an_unknown_layer_is_refused() -> None:
    C = fitted(make(), "EK-FAC")
    with pytest.raises(ValueError, match=r"'fc7' is not a layer of this curvature; expected one of fc0, fc1"):
        C.restrict(["fc0", "fc7"])


# --- damping ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", [w for w in FITS if w not in ("Hessian", "identity")])
@given(cases())
@drawn(5)
def test_default_damping_is_a_tenth_of_each_layers_mean_eigenvalue(which: str, case: Case) -> None:
    C = fitted(case, which)
    expected = case.problem.relative(C.to_dense(), 0.1)
    found = resolve_damping(C)
    assert found == pytest.approx(expected, rel=1e-11)
    assert damping_of(C) == found
    assert damping_of(C, 0.3) == pytest.approx({k: 3 * x for k, x in found.items()}, rel=1e-12)
    assert resolve_damping(C, relative(0.3)) == pytest.approx(damping_of(C, 0.3), rel=1e-12)


def test_ekfac_and_the_exact_blocks_have_the_same_default_damping_and_kfac_another() -> None:
    case = make(n=12)
    exact = damping_of(fitted(case, "Gauss-Newton blocks"))
    assert damping_of(fitted(case, "EK-FAC")) == pytest.approx(exact, rel=1e-12)
    assert damping_of(fitted(case, "Gauss-Newton")) == pytest.approx(exact, rel=1e-12)
    assert damping_of(fitted(case, "diagonal")) == pytest.approx(exact, rel=1e-12)
    assert damping_of(fitted(case, "K-FAC"))["fc0"] != pytest.approx(exact["fc0"], rel=1e-3)


@pytest.mark.parametrize("which", [w for w in FITS if w != "Hessian"])
def test_damping_may_be_given_in_every_form(which: str) -> None:
    case = make()
    C, v = fitted(case, which), case.problem.stacks(vectors(case))
    numbers = {"fc0": 0.02, "fc1": 0.5}
    in_other_order = C.solve(v, {"fc1": 0.5, "fc0": 0.02})
    assert_close(case.problem.flat(C.solve(v, numbers)), case.problem.flat(in_other_order), 1e-15)
    one = C.solve(v, 0.3)
    assert_close(case.problem.flat(C.solve(v, {"fc0": 0.3, "fc1": 0.3})), case.problem.flat(one), 1e-15)
    assert_close(case.problem.flat(C.solve(v, torch.tensor(0.3))), case.problem.flat(one), 1e-15)
    assert_close(case.problem.flat(C.solve(v, relative(0.2))), case.problem.flat(C.solve(v, damping_of(C, 0.2))), 1e-15)


BAD: list[tuple[Any, type[Exception], str]] = [
    (-1.0, ValueError, r"damping of layer 'fc0' is -1.0; expected a finite number ≥ 0"),
    (math.nan, ValueError, r"damping of layer 'fc0' is nan; expected a finite number"),
    (math.inf, ValueError, r"damping of layer 'fc0' is inf; expected a finite number"),
    ({"fc0": 0.1, "fc1": -2}, ValueError, r"damping of layer 'fc1' is -2"),
    ({"fc0": 0.1}, ValueError, r"damping has no number for layer 'fc1'; expected one for every layer"),
    ({"fc0": 0.1, "fc1": 0.1, "fc2": 0.1}, ValueError, r"'fc2' is not a layer of this curvature; expected one of fc0"),
    (relative(-0.1), ValueError, r"relative damping is -0.1; expected a finite number ≥ 0"),
    (relative(math.nan), ValueError, r"relative damping is nan"),
    ("0.1x", TypeError, r"damping of layer 'fc0' is '0.1x'; expected a number, \{layer: number\}, relative"),
    ([0.1, 0.2], TypeError, r"expected a number"),
]


@pytest.mark.parametrize(("damping", "error", "message"), BAD)
@pytest.mark.parametrize("which", FITS)
def test_damping_that_makes_no_sense_is_refused(which: str, damping: Any, error: type[Exception], message: str) -> None:
    case = make()
    C = fitted(case, which)
    with pytest.raises(error, match=message):
        C.solve(case.problem.stacks(vectors(case)), damping)
    with pytest.raises(error, match=message):
        influence(case.model, case.objective, case.train, case.queries, C, damping, progress=False)


@pytest.mark.parametrize("which", [w for w in FITS if w not in ("identity",)])
@pytest.mark.parametrize("damping", [0, 0.0, {"fc0": 0.0, "fc1": 0.0}, relative(0)])
def test_zero_damping_of_a_singular_curvature_is_refused_with_what_to_give(which: str, damping: Any) -> None:
    case = make(n=1)  # one example: rank one at most in each layer
    case.x[:, 1] = 0  # and a zero on the diagonal
    C = fitted(case, which)
    with pytest.raises(ValueError, match=r"singular.*expected damping > 0.*relative\(0.01\)"):
        C.solve(case.problem.stacks(vectors(case)), damping)


@pytest.mark.parametrize("which", ["diagonal", "K-FAC", "EK-FAC", "Gauss-Newton", "Gauss-Newton blocks", "Hessian"])
def test_zero_damping_of_a_curvature_that_can_be_inverted_is_fine(which: str) -> None:
    case = make("SquaredError", widths=(2, 2), n=8)
    C, v = fitted(case, which), vectors(case)
    found = case.problem.flat(C.solve(case.problem.stacks(v), 0))
    assert_close(found, torch.linalg.solve(C.to_dense(), v.T).T, 1e-10)


def test_a_layer_that_no_gradient_reaches_is_named() -> None:
    case = make()
    with torch.no_grad():
        case.model.fc1.weight.zero_()
    C = fitted(case, "EK-FAC")
    with pytest.raises(ValueError, match=r"layer 'fc0': all its eigenvalues are 0.*Give it as a number.*layers="):
        influence(case.model, case.objective, case.train, case.queries, C, progress=False)
    scores = influence(case.model, case.objective, case.train, case.queries, C, 0.1, progress=False)
    assert bool(torch.isfinite(scores).all())


# --- vectors ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", FITS)
def test_stacks_of_the_wrong_shape_or_layers_are_refused(which: str) -> None:
    case = make()
    C, v = fitted(case, which), case.problem.stacks(vectors(case))
    for function in (C.matvec, lambda v: C.solve(v, 0.1)):
        with pytest.raises(ValueError, match=r"v has no layer 'fc1'; expected a stack \(K, 3, 5\)"):
            function({"fc0": v["fc0"]})
        with pytest.raises(ValueError, match=r"v\['fc1'\] has shape \(3, 5, 3\); expected \(K, 3, 5\)"):
            function({**v, "fc1": v["fc1"].mT})
        with pytest.raises(ValueError, match=r"v\['fc0'\] has shape \(4, 4\); expected \(K, 4, 4\)"):
            function({**v, "fc0": v["fc0"][0]})
        with pytest.raises(ValueError, match=r"'fc9' is not a layer"):
            function({**v, "fc9": v["fc0"]})


def test_dense_members_hold_matrices_given_by_hand() -> None:
    M = torch.diag(torch.arange(1.0, 7.0))
    whole = Dense(M, {"a": (1, 2), "b": (2, 2)}, FACTS)
    parts = BlockDense({"a": M[:2, :2], "b": M[2:, 2:]}, {"a": (1, 2), "b": (2, 2)}, FACTS)
    v = {"a": torch.ones(1, 1, 2), "b": torch.ones(1, 2, 2)}
    for C in (whole, parts):
        assert C.mean_eigenvalues() == {"a": 1.5, "b": 4.5}
        found = C.solve(v, {"a": 1.0, "b": 10.0})
        assert torch.allclose(found["a"], 1 / torch.tensor([[[2.0, 3.0]]]))
        assert torch.allclose(found["b"], 1 / torch.tensor([[[13.0, 14.0], [15.0, 16.0]]]))


# --- facts ------------------------------------------------------------------------------------------------------------------


def test_the_hash_of_weights_sees_every_parameter_buffer_name_and_dtype() -> None:
    def build() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))

    base = hash_weights(build())
    assert hash_weights(build()) == base
    changed = []
    for change in (
        lambda m: m[0].weight.data.view(-1)[0].add_(1e-12),
        lambda m: m[2].bias.data.mul_(-1),
        lambda m: m[1].running_mean.add_(1),
        lambda m: m[1].num_batches_tracked.add_(1),
        lambda m: m.add_module("3", nn.Linear(1, 1)),
        lambda m: m.float(),
    ):
        model = build()
        change(model)
        changed.append(hash_weights(model))
    assert len({base, *changed}) == 7
    renamed = nn.ModuleDict({"a": build()[0], "b": build()[2]})
    other = nn.ModuleDict({"a": build()[0], "c": build()[2]})
    assert hash_weights(renamed) != hash_weights(other)


def test_curvatures_are_values_that_cannot_be_changed() -> None:
    C = fitted(make(), "EK-FAC")
    with pytest.raises(AttributeError):
        C.default_damping = 0.0  # type: ignore[misc]
    assert C.default_damping == Relative(0.1)
    assert inflib.relative(0.1) == Relative(0.1)


def test_some_of_the_layers_keep_the_models_order_which_is_not_the_alphabets() -> None:
    case = make(widths=(2,) + (3,) * 11 + (2,), n=3)
    C = fitted(case, "EK-FAC")
    assert C.restrict(["fc10", "fc2", "fc9"]).layers == ("fc2", "fc9", "fc10")
    assert C.restrict({"fc10", "fc2"}).shapes == {"fc2": (3, 4), "fc10": (3, 4)}


@pytest.mark.parametrize("blocks", [False, True])
def test_a_matrix_that_is_singular_to_rounding_is_refused_though_it_has_a_cholesky_factor(blocks: bool) -> None:
    facts = Facts("exact", "expected", 1, 0, 3, "w")

    def held(low: float) -> Any:
        matrix = torch.diag(torch.tensor([1.0, low]))
        assert int(torch.linalg.cholesky_ex(matrix).info) == 0
        return BlockDense({"a": matrix}, {"a": (1, 2)}, facts) if blocks else Dense(matrix, {"a": (1, 2)}, facts)

    v = {"a": torch.ones(1, 1, 2)}
    with pytest.raises(ValueError, match=r"the damped matrix is singular \(eigenvalues from 1e-17 to 1\)"):
        held(1e-17).solve(v, 0.0)
    assert torch.allclose(held(1e-12).solve(v, 0.0)["a"], torch.tensor([[[1.0, 1e12]]]))


def test_mean_eigenvalues_are_the_same_to_the_last_digit_for_any_number_of_threads() -> None:
    """A store knows the damping it was built at; the same call with other threads goes on in it."""
    draws = [torch.Generator().manual_seed(seed) for seed in range(6)]
    some = [torch.rand(300, 1001, generator=draw, dtype=torch.float32).mul(-30).exp() for draw in draws]
    C = Kronecker({str(k): values for k, values in enumerate(some)}, {}, {}, FACTS)
    threads = torch.get_num_threads()
    try:
        found = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(C.mean_eigenvalues())
    finally:
        torch.set_num_threads(threads)
    assert found[0] == found[1] == found[2]
    assert found[0] == pytest.approx(
        {str(k): float(values.double().mean()) for k, values in enumerate(some)}, rel=1e-12
    )
