"""Factors of whole gradients: second moments, Λ, exactness, and that everything knows of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from languages import language
from networks import ZOO, Case, Conv1D, cases, drawn, make, sequences, zoo
from oracle import assert_close
from test_ekfac import recorded, rotated_diagonal, sampled_passes
from test_kfac import EXACT, SHARED, shared
from torch import Tensor

from inflib import SquaredError, TrainIndex, ekfac, identity, influence, kfac, load, refine, register, save
from inflib.kfac import second_moments
from inflib.layers import _KINDS, positions_last

pytestmark = pytest.mark.usefixtures("float64", "conv1d")


@pytest.fixture(scope="module")
def conv1d() -> Any:
    register(Conv1D, positions_last, positions_last, transposed=True)
    yield
    del _KINDS[Conv1D]


def fit(case: Case, **options: Any) -> Any:
    return ekfac(
        case.model, case.objective, case.train, layers=case.layers, sharing="gradients", progress=False, **options
    )


def partial_traces(F: Tensor, shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """E[G Gᵀ] (o, o) and E[Gᵀ G] (i, i) of the G whose second moment is F (o·i, o·i)."""
    four = F.reshape(*shape, *shape)  # (o, i, o', i')
    return torch.einsum("aibi->ab", four), torch.einsum("aiaj->ij", four)


def check(case: Case, found: Any, F: Tensor, F_basis: Tensor, tolerance: float = 1e-11) -> None:
    """Q_S and Q_A diagonalise the second moments of whole gradients under F_basis; Λ is F's diagonal in them."""
    for name, span in case.problem.spans.items():
        Q_S, Q_A = found.Q_S[name], found.Q_A[name]
        for Q, moment in zip((Q_S, Q_A), partial_traces(F_basis[span, span], case.problem.shapes[name]), strict=True):
            turned = Q.T @ moment @ Q
            off = turned - torch.diag(turned.diagonal())
            assert float(off.abs().max()) <= tolerance * max(float(turned.abs().max()), 1e-30)
        assert_close(found.eigenvalues[name], rotated_diagonal(F[span, span], Q_S, Q_A), tolerance)


# --- moments and Λ ----------------------------------------------------------------------------------------------


@given(cases() | sequences(), st.sampled_from(["expected", "observed"]))
@drawn(25)
def test_second_moments_are_the_partial_traces_of_the_fisher(case: Case, labels: str) -> None:
    F = case.problem.gauss_newton() if labels == "expected" else case.problem.fisher()
    moments = second_moments(case.model, case.objective, case.train, labels=labels, sharing="gradients", progress=False)
    for name, span in case.problem.spans.items():
        S, A = partial_traces(F[span, span], case.problem.shapes[name])
        assert_close(moments.S(name), S, 1e-12)
        trace = float(F[span, span].trace())
        assert_close(moments.A(name), A / trace if trace else A, 1e-12)
    halves = [
        second_moments(case.model, case.objective, [batch], labels=labels, sharing="gradients", progress=False)
        for batch in case.train
    ]
    merged = sum(halves[1:], halves[0])
    for name in case.layers:
        assert_close(merged.A(name), moments.A(name), 1e-12)
        assert_close(merged.S(name), moments.S(name), 1e-12)


@pytest.mark.parametrize("animal", ZOO)
@pytest.mark.parametrize("labels", ["expected", "observed"])
def test_basis_and_eigenvalues_are_right_however_the_layers_are_used(animal: str, labels: str) -> None:
    case = zoo(animal)
    F = case.problem.gauss_newton() if labels == "expected" else case.problem.fisher()
    check(case, fit(case, labels=labels), F, F)


@given(cases(), st.integers(1, 3), st.integers(0, 2**40))
@drawn(10)
def test_sampled_labels_of_the_first_pass_make_the_basis_and_those_of_the_second_the_eigenvalues(
    case: Case, draws: int, seed: int
) -> None:
    objective, labels = recorded(case)
    found = ekfac(
        case.model, objective, case.train, labels="sampled", draws=draws, seed=seed, sharing="gradients", progress=False
    )
    first, second = sampled_passes(case, draws, labels)
    check(case, found, case.problem.fisher(*second), case.problem.fisher(*first))


@pytest.mark.parametrize("labels", ["sampled", "expected", "observed"])
def test_language_models_have_the_trace_of_their_own_fisher(labels: str) -> None:
    case = language(seed=1)
    found = ekfac(case.model, case.objective, case.train, layers=case.layers, labels=labels, sharing="gradients")
    other = ekfac(case.model, case.objective, case.train, layers=case.layers, labels=labels)
    for name in found.layers:  # Λ is of the same labels in either basis
        assert float(found.eigenvalues[name].sum()) == pytest.approx(float(other.eigenvalues[name].sum()), rel=1e-10)
        assert not torch.allclose(found.Q_A[name].abs(), other.Q_A[name].abs())


# --- where it is exact ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [ekfac, kfac])
@pytest.mark.parametrize("which", EXACT)
def test_it_is_exact_where_ekfac_is_and_so_are_its_scores(which: str, method: Any) -> None:
    case = EXACT[which]()
    G = case.problem.block_diagonal(case.problem.gauss_newton())
    found = method(case.model, case.objective, case.train, sharing="gradients", progress=False)
    assert_close(found.to_dense(), G, 1e-10)
    scores = influence(case.model, case.objective, case.train, case.queries, found, progress=False)
    assert_close(scores, case.problem.influence(G, case.problem.relative(G), *case.queries[0]), 1e-10)


@pytest.mark.parametrize("method", [ekfac, kfac])
@pytest.mark.parametrize("which", SHARED)
def test_it_is_exact_under_either_kind_of_sharing_without_being_told_which(which: str, method: Any) -> None:
    model, data, G = shared(which)
    assert_close(method(model, SquaredError(), data, sharing="gradients", progress=False).to_dense(), G, 1e-10)


def test_it_is_another_basis_than_the_factors_where_gradients_differ_in_length() -> None:
    case = make(n=9)
    ours, theirs = fit(case), ekfac(case.model, case.objective, case.train, progress=False)
    assert not torch.allclose(ours.to_dense(), theirs.to_dense(), rtol=1e-3)


# --- who knows it -----------------------------------------------------------------------------------------------


def test_results_do_not_depend_on_how_the_data_is_batched() -> None:
    case = zoo("tokens")
    whole = Case(case.model, case.layers, case.name, case.x, case.y, [], "", case.query_x, case.query_y)
    assert_close(fit(case).to_dense(), fit(whole).to_dense(), 1e-12)


def test_the_curvature_says_its_basis_and_it_is_saved_and_loaded(tmp_path: Path) -> None:
    case = make(n=8)
    found = fit(case)
    assert found.facts.sharing == "gradients"
    assert "8 examples, by whole gradients" in repr(found)
    save(found, tmp_path / "f")
    again = load(tmp_path / "f", case.model)
    assert again.facts == found.facts
    for held, came in ((found.Q_S, again.Q_S), (found.Q_A, again.Q_A), (found.eigenvalues, again.eigenvalues)):
        assert all(torch.equal(came[name], held[name]) for name in case.layers)


def test_an_index_is_of_one_basis() -> None:
    case = make(n=8)
    found, other = fit(case), ekfac(case.model, case.objective, case.train, progress=False)
    index = TrainIndex.build(case.model, case.objective, case.train, found, progress=False)
    prepared = index.prepare(case.model, case.objective, case.queries)
    with pytest.raises(ValueError, match=r"another eigenbasis than this index; .* seed, sharing and blocks"):
        index.scores(prepared, other)
    for C in (found, identity(case.model, case.objective)):
        expected = influence(case.model, case.objective, case.train, case.queries, C, 0.1, progress=False)
        assert_close(index.scores(prepared, C, 0.1), expected, 1e-12)


def test_it_may_be_refined() -> None:
    case = make(n=8)
    refined = refine(fit(case), case.model, case.objective, case.train, tolerance=1e-11, progress=False)
    G = case.problem.gauss_newton()
    scores = influence(case.model, case.objective, case.train, case.queries, refined, 0.1, progress=False)
    assert_close(scores, case.problem.influence(G, 0.1, *case.queries[0]), 1e-8)
