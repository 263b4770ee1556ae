"""Low-rank 1/(Λ + λ): exact at full rank, as close as it says below, never beyond its bound."""

from __future__ import annotations

import re
import warnings
from dataclasses import replace

import pytest
import torch
from networks import Case, make
from oracle import assert_close

from inflib import CrossEntropy, LowRankNote, ekfac, gauss_newton, identity, influence, kfac, precondition
from inflib.low_rank import LowRankQueries, Terms, terms
from inflib.proof import capture
from inflib.queries import gather
from inflib.selection import select

pytestmark = [pytest.mark.usefixtures("float64"), pytest.mark.filterwarnings("ignore::inflib.LowRankNote")]


def wide() -> Case:
    return make(widths=(12, 10, 5), n=40, queries=6, splits=[13, 26])


@pytest.mark.parametrize("fit", [ekfac, kfac, identity])
def test_full_rank_is_exact(fit: type) -> None:
    case = wide()
    about = case.model, case.objective, case.train
    C = fit(*about, progress=False)  # type: ignore[call-arg]
    for options in ({}, {"keep": ("layer",)}, {"measurement": "margin"}):
        exact = influence(*about, case.queries, C, 0.3, progress=False, **options)
        found = influence(*about, case.queries, C, 0.3, low_rank=13, progress=False, **options)
        assert found.shape == exact.shape
        assert_close(found, exact, 1e-5)  # singular values from squares: half of float64's digits


def test_an_identity_needs_one_term() -> None:
    case = wide()
    C = identity(case.model, case.objective, case.train, progress=False)
    assert {x.ranks for x in LowRankQueries(asked(case), C, 0.3, 5, 2**20).folded.values()} == {(1,) * 6}


def asked(case: Case) -> list:
    layers = select(case.model)
    return gather(case.model, layers, case.objective, case.queries, "queries", None, False)


def test_terms_are_the_weighted_matrix_s_best_of_their_rank() -> None:
    g = torch.Generator().manual_seed(0)
    for shape in ((6, 9), (9, 6)):
        Λ = torch.rand(shape, generator=g) ** 4
        inverse = 1 / (Λ + 0.05)
        w = torch.outer(Λ.sum(1), Λ.sum(0)) / (Λ.sum(1).max() * Λ.sum(0).max())
        σ = torch.linalg.svdvals(w * inverse)
        for r in (1, 3, 5):
            t = terms(Λ, inverse, r)
            missed = w * (inverse - t.U @ t.V.T)
            assert torch.linalg.matrix_norm(missed) == pytest.approx(float(σ[r:].norm()), rel=1e-5)
            assert torch.linalg.matrix_norm(missed, 2) == pytest.approx(float(σ[r]), rel=1e-5)


@pytest.mark.parametrize("tolerance", [0.3, 0.1, 0.01])
def test_a_tolerance_is_the_share_of_the_weighted_norm_left_out_and_no_rank_below_keeps_it(tolerance: float) -> None:
    Λ = torch.rand(12, 15, generator=torch.Generator().manual_seed(1)) ** 4
    inverse = 1 / (Λ + 0.02)
    w = torch.outer(Λ.sum(1), Λ.sum(0))

    def share(t: Terms) -> float:
        return float((w * (inverse - t.U @ t.V.T)).norm() / (w * inverse).norm())

    found = terms(Λ, inverse, tolerance)
    assert share(found) <= tolerance
    assert share(terms(Λ, inverse, found.rank - 1)) > tolerance


def test_inputs_that_are_always_0_do_not_spoil_the_weights() -> None:
    Λ = torch.rand(5, 6)
    Λ[:, 2] = 0
    t = terms(Λ, 1 / (Λ + 0.1), 5)
    assert bool(torch.isfinite(t.V).all())
    assert_close(t.U @ t.V.T, 1 / (Λ + 0.1), 1e-4)
    assert bool(torch.isfinite(terms(torch.zeros(3, 4), torch.full((3, 4), 2.0), 1).U).all())


def test_no_pair_s_error_exceeds_its_bound() -> None:
    case = wide()
    C = ekfac(case.model, case.objective, case.train, progress=False)
    found = capture(case.model, case.objective, case.x, case.y)
    q, n = (x.flatten() for x in torch.meshgrid(torch.arange(6), torch.arange(40), indexing="ij"))
    (query,) = asked(case)
    for rank in (1, 2, 3):
        came = LowRankQueries([query], C, 0.01, rank, 2**20).contract(found, True)[q, n]  # (240, L)
        for at, (name, Λ) in enumerate(C.eigenvalues.items()):
            g, a = (  # g̃_q ⊙ g̃_n and ã_q ⊙ ã_n
                (getattr(query[name], side)[:, 0] @ Q)[q] * (getattr(found[name], side)[:, 0] @ Q)[n]
                for side, Q in (("g", C.Q_S[name]), ("a", C.Q_A[name]))
            )
            w_S, w_A = Λ.sum(1).clamp_min(1e-6 * Λ.sum(1).max()), Λ.sum(0).clamp_min(1e-6 * Λ.sum(0).max())
            σ = torch.linalg.svdvals(torch.outer(w_S, w_A) / (Λ + 0.01))
            error = (came[:, at] - torch.einsum("no,oi,ni->n", g, 1 / (Λ + 0.01), a)).abs()
            bound = (float(σ[rank]) if rank < len(σ) else 0.0) * (g / w_S).norm(dim=1) * (a / w_A).norm(dim=1)
            assert bool((error <= bound * (1 + 1e-6) + 1e-10).all())
            if name == "fc0":  # a bound that says something
                assert float(error.max()) > 0.001 * float(bound.max())


def test_the_note_says_how_far_scores_are_from_exact_ones() -> None:
    case = wide()
    about = case.model, case.objective, case.train
    C = ekfac(*about, progress=False)
    exact = influence(*about, case.queries, C, 0.01, progress=False)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = influence(*about, case.queries, C, 0.01, low_rank=2, progress=False)
    (note,) = (str(w.message) for w in said if w.category is LowRankNote)
    assert "low_rank=2: ranks 2 of 10 ('fc0'), 2 of 5 ('fc1')." in note
    assert said[-1].filename == __file__
    error = float(re.search(r"the error is ([\d.e-]+) of", note)[1])  # type: ignore[index]
    correlation = float(re.search(r"exact ones ([\d.]+\d)", note)[1])  # type: ignore[index]
    assert error == pytest.approx(float((found - exact).norm() / exact.norm()), rel=0.05)
    assert correlation == pytest.approx(float(torch.corrcoef(torch.stack([found, exact]).flatten(1))[0, 1]), abs=1e-5)
    assert "On 240 pairs" in note  # of 6 queries and 40 examples, all there are


def test_what_low_rank_cannot_be_is_said() -> None:
    case = wide()
    about = case.model, case.objective, case.train, case.queries
    C = ekfac(*about[:3], progress=False)
    for wrong in (0, -1, 1.5, 0.0, True, "8"):
        with pytest.raises(ValueError, match=r"low_rank=.*expected a rank, a whole number from 1, or a tolerance"):
            influence(*about, C, low_rank=wrong, progress=False)  # type: ignore[arg-type]
    solved = precondition(*about[:2], case.queries, C, progress=False)
    for options in ({"relative": "loss"}, {"keep": ("token",)}):
        with pytest.raises(ValueError, match="low_rank= came with"):
            influence(*about, C, low_rank=2, progress=False, **options)
    with pytest.raises(ValueError, match="low_rank= came with"):
        influence(*about[:3], solved, C, low_rank=2, progress=False)
    with pytest.raises(TypeError, match=r"low_rank= with a Dense curvature; expected one with eigenvalues"):
        influence(*about, gauss_newton(*about[:3], progress=False), 0.1, low_rank=2, progress=False)


def test_scores_that_are_not_finite_are_refused_by_layer_and_batch() -> None:
    case = wide()
    C = ekfac(case.model, case.objective, case.train, progress=False)
    bad = replace(case, x=case.x.clone())
    bad.x[30] = float("inf")
    with pytest.raises(FloatingPointError, match="batch 2"):
        influence(case.model, CrossEntropy(), bad.train, case.queries, C, low_rank=2, progress=False)
