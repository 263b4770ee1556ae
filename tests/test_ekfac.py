"""EK-FAC: Λ is the exact curvature's diagonal in the eigenbasis, for every kind of label, and the best there is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from networks import OBJECTIVES, ZOO, Case, Conv1D, batches, cases, drawn, make, zoo
from oracle import assert_close, kron
from test_kfac import EXACT
from torch import Tensor, nn

from inflib import diagonal, ekfac, gauss_newton, influence, kfac, register
from inflib.ekfac import Eigenbasis, corrected_eigenvalues, eigenbasis, eigh
from inflib.kfac import second_moments
from inflib.kronecker import Kronecker
from inflib.layers import _KINDS, positions_last
from inflib.passes import Fit

pytestmark = pytest.mark.usefixtures("float64", "conv1d")


@pytest.fixture(scope="module")
def conv1d() -> Any:
    register(Conv1D, positions_last, positions_last, transposed=True)
    yield
    del _KINDS[Conv1D]


def rotated_diagonal(F: Tensor, Q_S: Tensor, Q_A: Tensor) -> Tensor:
    """diag((Q_S ⊗ Q_A)ᵀ F (Q_S ⊗ Q_A)) as (o, i)."""
    U = kron(Q_S, Q_A)
    return (U * (F @ U)).sum(0).reshape(len(Q_S), len(Q_A))


def recorded(case: Case) -> tuple[Any, list[list[Tensor]]]:
    """The case's objective, which keeps the labels it samples, batch by batch.

    Not those by which the sampler is proved: they are for copies of examples, not for views of the case's targets.
    """
    drawn_labels: list[Tensor] = []

    class Recording(OBJECTIVES[case.name]):  # type: ignore[misc]
        def sample(self, outputs: Tensor, uniforms: Tensor, targets: Any = None) -> Tensor:
            found = super().sample(outputs, uniforms, targets)
            if targets.untyped_storage().data_ptr() == case.y.untyped_storage().data_ptr():
                drawn_labels.append(found)
            return found

    return Recording(), drawn_labels


def sampled_passes(case: Case, draws: int, labels: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """The labels (N, ...) of each draw in the first and in the second pass, from what was recorded batch by batch."""
    count = len(case.train)
    assert len(labels) == 2 * count * draws
    passes = []
    for p in (0, 1):
        mine = labels[p * count * draws : (p + 1) * count * draws]
        passes.append([torch.cat([mine[b * draws + d] for b in range(count)]) for d in range(draws)])
    return passes[0], passes[1]


# --- Λ ------------------------------------------------------------------------------------------------------------------


@given(cases())
@drawn(25)
def test_eigenvalues_are_the_expected_fishers_diagonal_in_the_eigenbasis(case: Case) -> None:
    found = ekfac(case.model, case.objective, case.train, progress=False)
    F = case.problem.expected_fisher(case.name)
    for name, span in case.problem.spans.items():
        expected = rotated_diagonal(F[span, span], found.Q_S[name], found.Q_A[name])
        assert_close(found.eigenvalues[name], expected, 1e-11)


@given(cases())
@drawn(15)
def test_eigenvalues_with_observed_labels_are_the_empirical_fishers(case: Case) -> None:
    found = ekfac(case.model, case.objective, case.train, labels="observed", progress=False)
    F = case.problem.fisher()
    for name, span in case.problem.spans.items():
        expected = rotated_diagonal(F[span, span], found.Q_S[name], found.Q_A[name])
        assert_close(found.eigenvalues[name], expected, 1e-11)


@given(cases(), st.integers(1, 3), st.integers(0, 2**40))
@drawn(15)
def test_eigenvalues_with_sampled_labels_are_the_fishers_of_the_second_passs_labels(
    case: Case, draws: int, seed: int
) -> None:
    objective, labels = recorded(case)
    found = ekfac(case.model, objective, case.train, labels="sampled", draws=draws, seed=seed, progress=False)
    first, second = sampled_passes(case, draws, labels)
    F_first, F_second = case.problem.fisher(*first), case.problem.fisher(*second)
    for name, span in case.problem.spans.items():
        Q_S, Q_A = found.Q_S[name], found.Q_A[name]
        assert_close(found.eigenvalues[name], rotated_diagonal(F_second[span, span], Q_S, Q_A), 1e-11)
        # and the basis is of the first pass: Q_S diagonalises Σ g gᵀ at those labels
        moments = second_moments(case.model, case.objective, case.train, None, "sampled", draws, seed, progress=False)
        S = Q_S.T @ moments.S(name) @ Q_S
        assert float((S - torch.diag(S.diagonal())).abs().max()) <= 1e-11 * max(float(S.abs().max()), 1e-30)
        trace = moments.S(name).trace() * moments.A(name).trace() if len(case.y) == 1 else None
        if trace is not None:  # one example: tr S ⊗ A is the first pass's Fisher's trace
            assert float(trace) == pytest.approx(float(F_first[span, span].trace()), rel=1e-10, abs=1e-25)


def test_labels_are_drawn_afresh_for_the_second_pass() -> None:
    case = make(n=40, splits=[25])
    objective, labels = recorded(case)
    ekfac(case.model, objective, case.train, labels="sampled", draws=2, progress=False)
    first, second = sampled_passes(case, 2, labels)
    for a in (*first, *second):
        for b in (*first, *second):
            if a is not b:
                assert not torch.equal(a, b)


@pytest.mark.parametrize("labels", ["expected", "observed"])
def test_eigenvalues_are_right_in_a_basis_that_is_not_symmetric(labels: str) -> None:
    """Random orthogonal Q: a rotation by the transpose, which is right for symmetric Q alone, cannot pass."""
    case = make(widths=(3, 4, 3), n=6)
    generator = torch.Generator().manual_seed(3)
    Q = {k: torch.linalg.qr(torch.randn(k, k, generator=generator)).Q for k in (3, 4, 5)}
    assert all(float((q - q.T).norm()) > 0.5 for q in Q.values())
    basis = Eigenbasis({"fc0": Q[4], "fc1": Q[3]}, {"fc0": Q[4], "fc1": Q[5]}, {}, {})
    fit = Fit.of(case.model, case.objective, case.train, labels=labels, progress=False)
    found = corrected_eigenvalues(fit, basis).means()
    F = case.problem.expected_fisher(case.name) if labels == "expected" else case.problem.fisher()
    for name, span in case.problem.spans.items():
        assert_close(found[name], rotated_diagonal(F[span, span], basis.Q_S[name], basis.Q_A[name]), 1e-12)


@pytest.mark.parametrize("animal", ZOO)
@pytest.mark.parametrize("labels", ["expected", "observed"])
def test_eigenvalues_are_right_however_the_layers_are_used(animal: str, labels: str) -> None:
    case = zoo(animal)
    found = ekfac(case.model, case.objective, case.train, layers=case.layers, labels=labels, progress=False)
    F = case.problem.gauss_newton() if labels == "expected" else case.problem.fisher()
    for name, span in case.problem.spans.items():
        expected = rotated_diagonal(F[span, span], found.Q_S[name], found.Q_A[name])
        assert_close(found.eigenvalues[name], expected, 1e-11)


@pytest.mark.parametrize("animal", ["tokens", "convolution", "convolution in groups", "tied modules"])
@pytest.mark.parametrize("labels", ["expected", "observed"])
def test_eigenvalues_are_right_in_the_basis_of_reduced_factors(animal: str, labels: str) -> None:
    case = zoo(animal)
    found = ekfac(case.model, case.objective, case.train, labels=labels, sharing="reduce", progress=False)
    F = case.problem.gauss_newton() if labels == "expected" else case.problem.fisher()
    for name, span in case.problem.spans.items():
        expected = rotated_diagonal(F[span, span], found.Q_S[name], found.Q_A[name])
        assert_close(found.eigenvalues[name], expected, 1e-11)


def test_both_ways_to_rotate_many_positions_agree() -> None:
    """More positions than inputs takes the other branch of the sum over positions."""
    for positions in (2, 9):
        model = zoo("tokens").model
        x, y = torch.randn(4, positions, 3), torch.tensor([0, 1, 2, 0])
        case = Case(model, ["up", "down"], "CrossEntropy", x, y, [3])
        found = ekfac(model, case.objective, case.train, progress=False)
        F = case.problem.gauss_newton()
        for name, span in case.problem.spans.items():
            expected = rotated_diagonal(F[span, span], found.Q_S[name], found.Q_A[name])
            assert_close(found.eigenvalues[name], expected, 1e-12)


@given(cases())
@drawn(15)
def test_the_trace_is_that_of_the_exact_block(case: Case) -> None:
    found = ekfac(case.model, case.objective, case.train, progress=False)
    G = case.problem.gauss_newton()
    for name, span in case.problem.spans.items():
        assert float(found.eigenvalues[name].sum()) == pytest.approx(float(G[span, span].trace()), rel=1e-11, abs=1e-25)


@given(cases(), st.sampled_from(["expected", "observed"]))
@drawn(15)
def test_ekfac_is_never_further_from_the_fisher_than_kfac(case: Case, labels: str) -> None:
    better = ekfac(case.model, case.objective, case.train, labels=labels, progress=False).to_dense()
    worse = kfac(case.model, case.objective, case.train, labels=labels, progress=False).to_dense()
    F = case.problem.gauss_newton() if labels == "expected" else case.problem.fisher()
    F = case.problem.block_diagonal(F)
    assert float((F - better).norm()) <= float((F - worse).norm()) * (1 + 1e-9) + 1e-13


def test_no_other_eigenvalues_in_this_basis_are_closer_to_the_fisher() -> None:
    case = make(n=9)
    found = ekfac(case.model, case.objective, case.train, progress=False)
    F = case.problem.block_diagonal(case.problem.gauss_newton())
    least = float((F - found.to_dense()).norm())
    generator = torch.Generator().manual_seed(0)
    for size in (1e-4, 1e-2, 1.0):
        noise = {k: torch.randn(v.shape, generator=generator) for k, v in found.eigenvalues.items()}
        moved = {k: v * (1 + size * noise[k]) for k, v in found.eigenvalues.items()}
        other = Kronecker(moved, found.Q_S, found.Q_A, found.facts)
        assert float((F - other.to_dense()).norm()) > least


def test_the_diagonal_is_the_fishers_own() -> None:
    for labels in ("expected", "observed"):
        case = make(n=6)
        F = case.problem.gauss_newton() if labels == "expected" else case.problem.fisher()
        found = diagonal(case.model, case.objective, case.train, labels=labels, progress=False)
        assert_close(found.to_dense(), torch.diag(F.diagonal()), 1e-12)
    case = zoo("called twice")
    found = diagonal(case.model, case.objective, case.train, progress=False)
    assert_close(found.to_dense(), torch.diag(case.problem.gauss_newton().diagonal()), 1e-12)


@given(cases())
@drawn(10)
def test_the_basis_is_orthogonal_and_diagonalises_the_factors(case: Case) -> None:
    moments = second_moments(case.model, case.objective, case.train, progress=False)
    basis = eigenbasis(moments)
    for name in case.layers:
        for Q, values, M in (
            (basis.Q_S[name], basis.lambda_S[name], moments.S(name)),
            (basis.Q_A[name], basis.lambda_A[name], moments.A(name)),
        ):
            assert_close(Q.T @ Q, torch.eye(len(Q)), 1e-12)
            assert float((Q @ torch.diag(values) @ Q.T - M).norm()) <= 1e-12 * max(float(M.norm()), 1e-20)
            assert float(values.min()) >= 0


# --- where EK-FAC is exact ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", EXACT)
def test_ekfac_is_exact_where_theory_says_so(which: str) -> None:
    case = EXACT[which]()
    G = case.problem.block_diagonal(case.problem.gauss_newton())
    assert_close(ekfac(case.model, case.objective, case.train, progress=False).to_dense(), G, 1e-10)


@pytest.mark.parametrize("which", EXACT)
@pytest.mark.parametrize("fit", [ekfac, kfac])
def test_exactness_carries_through_to_the_scores(which: str, fit: Any) -> None:
    case = EXACT[which]()
    G = case.problem.block_diagonal(case.problem.gauss_newton())
    numbers = case.problem.relative(G)
    curvature = fit(case.model, case.objective, case.train, progress=False)
    scores = influence(case.model, case.objective, case.train, case.queries, curvature, numbers, progress=False)
    assert_close(scores, case.problem.influence(G, numbers, *case.queries[0]), 1e-10)
    default = influence(case.model, case.objective, case.train, case.queries, curvature, progress=False)
    assert_close(default, scores, 1e-10)  # Λ's mean is the block's


# --- sampled labels -------------------------------------------------------------------------------------------------------


def test_sampled_curvature_tends_to_the_expected_one_as_one_over_the_root_of_the_draws() -> None:
    case = make(n=6, splits=[])
    G = case.problem.gauss_newton()
    exact = torch.cat([d.flatten() for d in diagonal(case.model, case.objective, case.train).eigenvalues.values()])
    assert_close(exact, G.diagonal(), 1e-12)

    def error(draws: int) -> float:
        errors = []
        for seed in range(5):
            found = diagonal(case.model, case.objective, case.train, None, "sampled", draws, seed, progress=False)
            came = torch.cat([v.flatten() for v in found.eigenvalues.values()])
            errors.append(float((came - exact).norm() / exact.norm()))
        return sum(errors) / len(errors)

    few, many = error(4), error(256)
    assert many < 0.08
    assert 4 < few / many < 16  # √64 = 8


@given(cases(examples=(2, 7)), st.integers(0, 100))
@drawn(10)
def test_sampled_labels_do_not_depend_on_how_the_data_is_batched(case: Case, seed: int) -> None:
    seen, matrices = [], []
    for train in (case.train, [(case.x, case.y)], batches(case.x, case.y, 1)):
        objective, labels = recorded(case)
        fit = kfac(case.model, objective, train, labels="sampled", seed=seed, progress=False)
        exact = gauss_newton(case.model, objective, train, labels="sampled", seed=seed, progress=False)
        seen.append(torch.cat(labels))
        matrices.append((fit.to_dense(), exact.to_dense()))
    for found, (approximate, exact) in zip(seen, matrices, strict=True):
        assert_close(found, seen[0], 1e-14)  # both passes' labels, the same for every example
        assert_close(approximate, matrices[0][0], 1e-11)
        assert_close(exact, matrices[0][1], 1e-11)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_sampled_scores_do_not_depend_on_how_the_data_is_batched(name: str) -> None:
    # enough examples that no factor is singular: an eigenvalue that occurs twice leaves its eigenvectors open
    case = make(name, n=30)
    scores = []
    for train in (case.train, [(case.x, case.y)], batches(case.x, case.y, 1), batches(case.x, case.y, 7)):
        fit = ekfac(case.model, case.objective, train, labels="sampled", draws=2, seed=1, progress=False)
        scores.append(influence(case.model, case.objective, train, case.queries, fit, progress=False))
    for found in scores[1:]:
        assert_close(found, scores[0], 1e-9)


def test_the_same_seed_gives_the_same_numbers_and_another_seed_others() -> None:
    case = make(n=9)
    one, two, other = (
        ekfac(case.model, case.objective, case.train, labels="sampled", seed=s, progress=False) for s in (7, 7, 8)
    )
    for name in case.layers:
        assert torch.equal(one.eigenvalues[name], two.eigenvalues[name])
        assert torch.equal(one.Q_S[name], two.Q_S[name])
        assert not torch.equal(one.eigenvalues[name], other.eigenvalues[name])


def test_exact_and_approximate_fits_draw_the_same_labels_from_the_same_seed() -> None:
    case = make(n=9)
    exact = gauss_newton(case.model, case.objective, case.train, labels="sampled", seed=5, draws=2, progress=False)
    found = ekfac(case.model, case.objective, case.train, labels="sampled", seed=5, draws=2, progress=False)
    for name, span in case.problem.spans.items():
        block = exact.matrix[span, span]
        assert_close(found.eigenvalues[name], rotated_diagonal(block, found.Q_S[name], found.Q_A[name]), 1e-11)


# --- what may not matter ----------------------------------------------------------------------------------------------------


@given(cases(examples=(2, 7)), st.sampled_from(["expected", "observed"]), st.randoms(use_true_random=False))
@drawn(12)
def test_batching_and_order_do_not_matter_for_expected_and_observed_labels(
    case: Case, labels: str, random: Any
) -> None:
    order = list(range(len(case.y)))
    random.shuffle(order)
    one = ekfac(case.model, case.objective, case.train, labels=labels, progress=False)
    for train in (batches(case.x, case.y, 1), [(case.x[order], case.y[order])]):
        other = ekfac(case.model, case.objective, train, labels=labels, progress=False)
        for name in case.layers:
            # eigenvectors of a repeated eigenvalue are free; what they span, and the sum of Λ, is not
            assert float(other.eigenvalues[name].sum()) == pytest.approx(
                float(one.eigenvalues[name].sum()), rel=1e-11, abs=1e-25
            )
        a, b = (
            kfac(case.model, case.objective, t, labels=labels, progress=False).to_dense() for t in (case.train, train)
        )
        assert float((a - b).norm()) <= 1e-11 * float(a.norm()) + 1e-28


@given(cases(), st.integers(0, 2**20))
@drawn(10)
def test_the_signs_of_eigenvectors_do_not_matter(case: Case, bits: int) -> None:
    """Flip some columns of Q before the second pass: Λ and every score stay."""
    fit = Fit.of(case.model, case.objective, case.train, progress=False)
    basis = eigenbasis(second_moments(case.model, case.objective, case.train, progress=False))
    generator = torch.Generator().manual_seed(bits)

    def flipped(Q: dict[str, Tensor]) -> dict[str, Tensor]:
        return {k: q * (torch.randint(0, 2, (q.shape[1],), generator=generator) * 2.0 - 1) for k, q in Q.items()}

    other = Eigenbasis(flipped(basis.Q_S), flipped(basis.Q_A), basis.lambda_S, basis.lambda_A)
    values = [corrected_eigenvalues(fit, b).means() for b in (basis, other)]
    facts = ekfac(case.model, case.objective, case.train, progress=False).facts
    one, two = (Kronecker(v, b.Q_S, b.Q_A, facts) for v, b in zip(values, (basis, other), strict=True))
    for name in case.layers:
        assert_close(values[1][name], values[0][name], 1e-13)
    scores = [
        influence(case.model, case.objective, case.train, case.queries, c, 0.1, progress=False) for c in (one, two)
    ]
    assert_close(scores[1], scores[0], 1e-12)


@pytest.mark.parametrize("fit", [ekfac, kfac, gauss_newton])
def test_the_numbering_of_hidden_units_does_not_matter(fit: Any) -> None:
    case = make(widths=(3, 5, 3), n=8)
    order = torch.tensor([3, 0, 4, 1, 2])
    twin = make(widths=(3, 5, 3), n=8).model
    with torch.no_grad():
        twin.fc0.weight.copy_(case.model.fc0.weight[order])
        twin.fc0.bias.copy_(case.model.fc0.bias[order])
        twin.fc1.weight.copy_(case.model.fc1.weight[:, order])
    scores = []
    for model in (case.model, twin):
        curvature = fit(model, case.objective, case.train, progress=False)
        scores.append(influence(model, case.objective, case.train, case.queries, curvature, progress=False))
    assert_close(scores[1], scores[0], 1e-9)


def test_a_model_that_is_one_bare_layer_is_fitted() -> None:
    case = zoo("a bare layer", "SquaredError")
    assert isinstance(case.model, nn.Linear)
    found = ekfac(case.model, case.objective, case.train, progress=False)
    assert found.layers == ("",)
    assert_close(found.to_dense(), case.problem.gauss_newton(), 1e-10)


# --- numbers -----------------------------------------------------------------------------------------------------------------


def test_eigenvectors_of_a_float32_factor_are_found_in_float64() -> None:
    """In float32 the small eigenvalues of a matrix of wide range are rounding; in float64 they come out right."""
    torch.manual_seed(0)
    Q = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64))[0]
    matrix = (Q * torch.logspace(-6, 0, 8, dtype=torch.float64)) @ Q.T
    single = matrix.float()
    values, vectors = eigh(single)
    exact, basis = torch.linalg.eigh(single.double())
    assert values.dtype == vectors.dtype == torch.float32
    torch.testing.assert_close(values.double(), exact.clamp_min(0), rtol=1e-7, atol=0)
    torch.testing.assert_close((vectors.double() * basis).sum(0).abs(), torch.ones(8).double(), rtol=0, atol=1e-7)


@pytest.mark.parametrize("animal", ["tokens", "convolution", "residual"])
def test_draws_are_averaged_also_in_layers_at_several_positions(animal: str) -> None:
    case = zoo(animal)
    for draws in (1, 3):
        options = {"labels": "sampled", "draws": draws, "seed": 5, "progress": False}
        found = diagonal(case.model, case.objective, case.train, layers=case.layers, **options)
        exact = gauss_newton(case.model, case.objective, case.train, layers=case.layers, **options)
        assert_close(found.to_dense().diagonal(), exact.to_dense().diagonal(), 1e-12)
