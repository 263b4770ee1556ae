"""Queries of many positions at low rank: each the best of its rank in the metric of training gradients, as it says."""

from __future__ import annotations

import re
import warnings

import pytest
import torch
from languages import LanguageCase, language
from networks import make, zoo
from oracle import assert_close
from torch import Tensor

from inflib import CrossEntropy, LowRankNote, ekfac, identity, influence, kfac
from inflib.kronecker import Kronecker
from inflib.low_rank import leading

pytestmark = [pytest.mark.usefixtures("float64"), pytest.mark.filterwarnings("ignore::inflib.LowRankNote")]

λ = 0.3


def case_and_fit() -> tuple[LanguageCase, Kronecker]:
    case = language(queries=(4, 3, 5), layers=["up", "down"])
    return case, ekfac(case.model, case.objective, case.train, layers=case.layers, progress=False)


def truncated(case: LanguageCase, C: Kronecker, rank: int) -> Tensor:
    """Scores (Q, N, L) by dense solves and singular values: √w P̃ √w cut to its rank, for every query and layer."""
    problem, ((x, y),) = case.problem, case.asked
    v, G = (problem.stacks(rows) for rows in (problem.gradients(y, None, x), problem.gradients()))
    solved = torch.linalg.solve(C.to_dense() + λ * torch.eye(len(problem.places)), problem.flat(v).T).T
    each = []
    for name, P in problem.stacks(solved).items():
        Q_S, Q_A, Λ = C.Q_S[name], C.Q_A[name], C.eigenvalues[name]
        w = torch.outer(Λ.sum(1), Λ.sum(0)).sqrt()
        U, σ, V = torch.linalg.svd(w * (Q_S.T @ P @ Q_A))
        short = (U[:, :, :rank] * σ[:, None, :rank]) @ V[:, :rank] / w
        each.append(torch.einsum("qoi,noi->qn", Q_S @ short @ Q_A.T, G[name]))
    return torch.stack(each, dim=2)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_queries_are_cut_to_their_leading_singular_vectors_in_the_metric_of_training_gradients(rank: int) -> None:
    case, C = case_and_fit()
    about = case.model, case.objective, case.train, case.asked, C, λ
    expected = truncated(case, C, rank)
    for keep, scores in ((("layer",), expected), ((), expected.sum(-1))):
        assert_close(influence(*about, low_rank=rank, keep=keep, progress=False), scores, 1e-9)
    exact = influence(*about, progress=False)
    assert float((expected.sum(-1) - exact).norm()) > 1e-5 * float(exact.norm())


@pytest.mark.parametrize("fit", [ekfac, kfac, identity])
@pytest.mark.parametrize("animal", ["tokens", "convolution", "called twice"])
def test_full_rank_is_exact(animal: str, fit: type) -> None:
    case = zoo(animal)
    about = case.model, case.objective, case.train
    C = fit(*about, progress=False)  # type: ignore[call-arg]
    for options in ({}, {"sets": "all"}, {"measurement": "margin"}):
        exact = influence(*about, case.queries, C, λ, progress=False, **options)
        assert_close(influence(*about, case.queries, C, λ, low_rank=50, progress=False, **options), exact, 1e-9)


def test_a_set_of_queries_of_one_position_is_one_of_many() -> None:
    case = make(widths=(12, 10, 5), n=40, queries=6, splits=[13, 26])
    about = case.model, case.objective, case.train
    C = ekfac(*about, progress=False)
    exact = influence(*about, case.queries, C, λ, sets=[0, 1, 0, 1, 1, 0], progress=False)
    assert_close(
        influence(*about, case.queries, C, λ, sets=[0, 1, 0, 1, 1, 0], low_rank=10, progress=False), exact, 1e-9
    )


def test_a_query_scores_the_same_alone_and_among_others_of_other_lengths() -> None:
    case, C = case_and_fit()
    about = case.model, case.objective, case.train
    together = influence(*about, case.asked, C, low_rank=0.2, progress=False)
    for q, sequence in enumerate(case.queries):
        alone = language(queries=(len(sequence) - 1,))
        alone.queries = [sequence]
        assert_close(influence(*about, alone.asked, C, low_rank=0.2, progress=False)[0], together[q], 1e-9)


# --- leading singular vectors --------------------------------------------------------------------------------------------


def decaying(Q: int, o: int, i: int) -> Tensor:
    """Matrices whose singular values fall off slowly."""
    g = torch.Generator().manual_seed(0)
    M = torch.randn(Q, o, i, generator=g)
    U, σ, V = torch.linalg.svd(M, full_matrices=False)
    return (U * (torch.arange(σ.shape[1]) + 1.0) ** -0.7) @ V


@pytest.mark.parametrize("shape", [(60, 90), (90, 60)])
def test_subspaces_leave_out_hardly_more_than_the_best_would(shape: tuple[int, int]) -> None:
    M, state = decaying(3, *shape), torch.random.get_rng_state()
    best = torch.linalg.svdvals(M)
    for r in (1, 4, 16):
        for q, (x, y) in enumerate(leading(M, r)):
            assert x.shape == (shape[0], r)
            assert float((M[q] - x @ y.T).norm()) <= 1.01 * float(best[q, r:].norm())
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("tolerance", [0.6, 0.3, 0.1])
def test_a_tolerance_is_the_share_left_out_and_no_rank_below_keeps_it(tolerance: float) -> None:
    M = decaying(3, 60, 90)
    best = torch.linalg.svdvals(M).square().flip(1).cumsum(1).flip(1).sqrt() / M.flatten(1).norm(dim=1, keepdim=True)
    for q, (x, y) in enumerate(leading(M, tolerance)):
        assert float((M[q] - x @ y.T).norm() / M[q].norm()) <= tolerance
        fewest = int((best[q] > tolerance).sum())
        assert fewest <= x.shape[1] <= fewest + 1


def test_a_query_without_a_gradient_takes_nothing_and_scores_0() -> None:
    M = decaying(2, 8, 9)
    M[0] = 0
    assert [x.shape[1] for x, _ in leading(M, 3)] == [0, 3]
    assert next(leading(M, 0.5))[0].shape[1] == 0


# --- what it says ----------------------------------------------------------------------------------------------------


def test_the_note_says_how_far_scores_are_from_exact_ones_and_what_they_saved() -> None:
    case, C = case_and_fit()
    about = case.model, case.objective, case.train, case.asked, C, λ
    exact = influence(*about, progress=False)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = influence(*about, low_rank=1, progress=False)
    (note,) = (str(w.message) for w in said if w.category is LowRankNote)
    assert "ranks 1 of 5 ('up'), 1 of 4 ('down'). On 12 pairs" in note  # of 3 queries and 4 sequences, all there are
    error, correlation, share = (
        float(re.search(pattern, note)[1])  # type: ignore[index]
        for pattern in (r"error is ([\d.e-]+) of", r"exact ones ([\d.]+\d)\. ", r"took ([\d.e-]+) of")
    )
    assert error == pytest.approx(float((found - exact).norm() / exact.norm()), rel=0.05)
    assert correlation == pytest.approx(float(torch.corrcoef(torch.stack([found, exact]).flatten(1))[0, 1]), abs=1e-5)
    T = [5, 6]  # the longest of two sequences in each batch: (o, i) are (5, 5) and (4, 6)
    low = sum(2 * t * 3 * (10 + 10) for t in T)
    assert share == pytest.approx(low / sum(2 * (t + 3) * (25 + 24) for t in T), rel=0.01)
    assert "would cost less" not in note
    with pytest.warns(LowRankNote, match="Exact scores would cost less: ask fewer at a time"):
        influence(*about, low_rank=4, progress=False)


def test_an_embedding_is_refused_by_name() -> None:
    case = language()
    C = ekfac(case.model, case.objective, case.train, layers=["embed"], progress=False)
    with pytest.raises(ValueError, match=r"low_rank=: layer 'embed' is an embedding"):
        influence(case.model, case.objective, case.train, case.asked, C, low_rank=2, progress=False)


def test_a_score_that_is_not_finite_is_refused() -> None:
    case = zoo("tokens")
    C = ekfac(case.model, case.objective, case.train, progress=False)
    bad = [(x.clone(), y) for x, y in case.train]
    bad[1][0][0] = float("nan")
    with pytest.raises(FloatingPointError, match="batch 1"):
        influence(case.model, CrossEntropy(), bad, case.queries, C, low_rank=2, progress=False)
