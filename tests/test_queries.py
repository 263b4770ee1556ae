"""The query side: sets of queries, queries solved beforehand, and what scores may be relative to."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from networks import ZOO, Case, Conv1D, batches, cases, drawn, make, zoo
from oracle import assert_close
from test_curvature import drawn_damping
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from inflib import (
    SquaredError,
    TrainIndex,
    capture,
    ekfac,
    gauss_newton,
    identity,
    influence,
    precondition,
    refine,
    register,
    self_influence,
)
from inflib.implicit import Implicit
from inflib.layers import _KINDS, positions_last
from inflib.queries import HELD, SOLVED, Preconditioned

pytestmark = pytest.mark.usefixtures("float64", "conv1d")


@pytest.fixture(scope="module")
def conv1d() -> Any:
    register(Conv1D, positions_last, positions_last, transposed=True)
    yield
    del _KINDS[Conv1D]


def fit(case: Case, which: Any = ekfac, **options: Any) -> Any:
    return which(case.model, case.objective, case.train, layers=case.layers, progress=False, **options)


def scored(case: Case, curvature: Any, damping: Any = None, **options: Any) -> Tensor:
    queries = options.pop("queries", case.queries)
    return influence(case.model, case.objective, case.train, queries, curvature, damping, progress=False, **options)


def dense_scores(case: Case, curvature: Any, numbers: Any) -> Tensor:
    return case.problem.influence(curvature.to_dense(), numbers, *case.queries[0])


def own_sizes(case: Case, C: Tensor, numbers: Any) -> dict[str, Tensor]:
    """√(∇ℓᵀ (C + λ)⁻¹ ∇ℓ) and ‖(C + λ)⁻¹ ∇ℓ‖ of every training example, from the dense matrix."""
    gradients = case.problem.gradients()  # (N, D)
    moved = torch.linalg.solve(C + case.problem.damping(numbers), gradients.T).T
    return {"loss": (gradients * moved).sum(1).sqrt(), "weights": moved.norm(dim=1)}


SETS = [1, 0, 1, 2, 1]


# --- sets of queries --------------------------------------------------------------------------------------------


@given(cases(), st.integers(0, 1000), st.data())
@drawn(10)
def test_a_sets_scores_are_the_sum_of_its_queries(case: Case, seed: int, data: st.DataObject) -> None:
    curvature, numbers = fit(case), drawn_damping(case, seed)
    Q = len(case.query_y)
    sets = torch.tensor(data.draw(st.lists(st.integers(0, 2), min_size=Q, max_size=Q))).unique(return_inverse=True)[1]
    each = dense_scores(case, curvature, numbers)
    expected = torch.stack([each[sets == s].sum(0) for s in range(int(sets.max()) + 1)])
    queries = batches(case.query_x, case.query_y, 1)
    assert_close(scored(case, curvature, numbers, sets=sets, queries=queries), expected, 1e-10)
    index = TrainIndex.build(case.model, case.objective, case.train, curvature, progress=False)
    came = index.influence(case.model, case.objective, queries, damping=numbers, sets=sets.tolist())
    assert_close(came, expected, 1e-10)
    assert_close(scored(case, curvature, numbers, sets="all"), each.sum(0, keepdim=True), 1e-10)


@pytest.mark.parametrize("animal", ZOO)
def test_sets_are_sums_however_the_layers_are_used(animal: str) -> None:
    case = zoo(animal)
    curvature, numbers = fit(case), drawn_damping(case, 3)
    expected = scored(case, curvature, numbers, keep=("layer",)).sum(0, keepdim=True)
    assert_close(scored(case, curvature, numbers, sets="all", keep=("layer",)), expected, 1e-10)
    index = TrainIndex.build(case.model, case.objective, case.train, curvature, progress=False)
    prepared = index.prepare(case.model, case.objective, case.queries, sets="all")
    assert_close(index.scores(prepared, damping=numbers, keep=("layer",)), expected, 1e-10)


def test_a_set_may_hold_queries_of_different_lengths() -> None:
    case = zoo("tokens")
    x, y = case.x, case.y
    queries = [(x[:1, :3], y[:1]), (x[1:2], y[1:2]), (x[2:3, :2], y[2:3]), (x[:1], y[:1])]
    curvature = fit(case)
    each = torch.cat([scored(case, curvature, 0.1, queries=[query]) for query in queries])
    expected = torch.stack([each[1] + each[2], each[0] + each[3]])
    assert_close(scored(case, curvature, 0.1, queries=queries, sets=[1, 0, 0, 1]), expected, 1e-11)
    index = TrainIndex.build(case.model, case.objective, case.train, curvature, progress=False)
    came = index.influence(case.model, case.objective, queries, damping=0.1, sets=[1, 0, 0, 1])
    assert_close(came, expected, 1e-11)


def test_a_set_is_one_vector_in_a_solve_whatever_its_size() -> None:
    case = make(n=9, queries=5)
    refined = refine(fit(case), case.model, case.objective, case.train, steps=2, progress=False)
    counts = vectors_of(refined)
    scored(case, refined, sets=SETS)
    assert set(counts) == {3}


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        ([0, 1], r"torch.int64 of shape \(2,\); expected one whole number for each of 5 queries"),
        ([0.0] * 5, r"torch.float64 of shape \(5,\)"),
        ([True] * 5, r"torch.bool of shape \(5,\)"),
        ("every", r"'every'; expected"),
        ([0, 2, 2, 0, 0], r"numbers \[0, 2\]; expected 0, 1, 2"),
        ([-1, 0, 0, 0, 0], r"numbers \[-1, 0\]; expected"),
    ],
)
def test_what_numbers_no_sets_is_refused(sets: Any, message: str) -> None:
    case = make(queries=5)
    with pytest.raises(ValueError, match=message):
        scored(case, fit(case), sets=sets)


# --- relative scores --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", [ekfac, gauss_newton])
@pytest.mark.parametrize("relative", ["loss", "weights"])
@given(cases(examples=(2, 6)), st.integers(0, 1000))
@drawn(6)
def test_relative_scores_are_over_how_far_the_example_moves_its_loss_or_the_weights(
    which: Any, relative: str, case: Case, seed: int
) -> None:
    curvature, numbers = fit(case, which), drawn_damping(case, seed)
    dense = curvature.to_dense()
    if float(torch.linalg.cond(dense + case.problem.damping(numbers))) > 1e5:
        return
    sizes = own_sizes(case, dense, numbers)[relative]
    expected = torch.where(sizes > 0, dense_scores(case, curvature, numbers) / sizes, 0)
    came = scored(case, curvature, numbers, relative=relative)
    assert_close(came, expected, 1e-8)


@pytest.mark.parametrize("relative", ["loss", "weights"])
def test_an_index_gives_relative_scores_of_some_examples_and_layers_too(relative: str) -> None:
    case = make(widths=(3, 4, 4, 3), n=9)
    curvature, numbers = fit(case), {"fc0": 0.3, "fc1": 2.0, "fc2": 0.05}
    index = TrainIndex.build(case.model, case.objective, case.train, curvature, progress=False)
    whole = scored(case, curvature, numbers, relative=relative, keep=("layer",))
    came = index.influence(
        case.model, case.objective, case.queries, damping=numbers, relative=relative, keep=("layer",)
    )
    assert_close(came, whole, 1e-12)
    prepared = index.prepare(case.model, case.objective, case.queries)
    some = index.scores(prepared, damping=numbers, relative=relative, examples=[4, 1])
    assert_close(some, whole.sum(-1)[:, [4, 1]], 1e-12)
    span = case.problem.spans["fc1"]
    block = curvature.to_dense()[span, span] + 2.0 * torch.eye(span.stop - span.start)
    asked, pulls = (
        g[:, span] for g in (case.problem.gradients(case.query_y, None, case.query_x), case.problem.gradients())
    )
    moved = torch.linalg.solve(block, pulls.T).T
    sizes = (pulls * moved).sum(1).sqrt() if relative == "loss" else moved.norm(dim=1)
    came = index.scores(prepared, damping=2.0, relative=relative, layers="fc1")
    assert_close(came, asked @ moved.T / sizes, 1e-10)


def test_a_relative_score_does_not_depend_on_the_length_of_the_training_gradient() -> None:
    case = make("SquaredError", widths=(3, 2), n=8)
    curvature = fit(case)
    twice = make("SquaredError", widths=(3, 2), n=8)
    outputs = case.model(case.x).detach()
    twice.y = outputs + 2 * (case.y - outputs)  # twice the error: twice the gradient
    for relative in ("loss", "weights"):
        one, two = (scored(c, curvature, 0.1, relative=relative) for c in (case, twice))
        assert_close(two, one, 1e-12)
    assert_close(scored(twice, curvature, 0.1), 2 * scored(case, curvature, 0.1), 1e-12)


def test_an_example_without_a_gradient_has_relative_score_0() -> None:
    case = make("SquaredError", widths=(3, 2), n=6)
    case.y[4] = case.model(case.x[4:5])[0].detach()
    came = scored(case, fit(case), 0.1, relative="loss")
    assert bool((came[:, 4] == 0).all())
    assert bool((came[:, :4] != 0).all())


def test_what_scores_cannot_be_relative_to_is_refused() -> None:
    case = make()
    curvature = fit(case)
    index = TrainIndex.build(case.model, case.objective, case.train, curvature, progress=False)
    for ask in (
        scored,
        lambda case, curvature, **options: index.influence(case.model, case.objective, case.queries, **options),
    ):
        with pytest.raises(ValueError, match=r"relative='self'; expected None, 'loss'.*damping=relative"):
            ask(case, curvature, relative="self")


# --- self-influence on another measurement -----------------------------------------------------------------------


@pytest.mark.parametrize("which", [ekfac, gauss_newton])
@pytest.mark.parametrize("animal", ["plain", "tokens", "residual", "called twice"])
def test_self_influence_on_a_measurement_is_the_diagonal_of_the_scores(which: Any, animal: str) -> None:
    case = zoo(animal) if animal in ZOO else make(n=9)
    numbers = drawn_damping(case, 4)
    curvature = fit(case, which)

    def measurement(f: Tensor, y: Tensor) -> Tensor:
        return f.flatten(1)[:, 0].square()

    dense = case.problem.influence(curvature.to_dense(), numbers, case.x, case.y, lambda f, y: f.flatten()[0] ** 2)
    came = self_influence(
        case.model, case.objective, case.train, curvature, numbers, measurement=measurement, progress=False
    )
    assert_close(came, dense.diagonal(), 1e-10)
    assert bool((came < 0).any() or (came > 0).any())
    split = self_influence(
        case.model, case.objective, case.train, curvature, numbers,
        measurement=measurement, keep=("layer",), progress=False,
    )  # fmt: skip
    assert_close(split.sum(-1), dense.diagonal(), 1e-10)


def test_self_influence_on_the_log_likelihood_is_the_default() -> None:
    case = make(n=8)
    curvature = fit(case)
    came, plain = (
        self_influence(case.model, case.objective, case.train, curvature, measurement=m, progress=False)
        for m in ("log_likelihood", None)
    )
    assert_close(came, plain, 1e-14)
    margin = self_influence(case.model, case.objective, case.train, curvature, measurement="margin", progress=False)
    p = case.model(case.x).softmax(1).gather(1, case.y[:, None])[:, 0].detach()
    assert_close(margin, plain / (1 - p), 1e-12)  # dm/d log p = 1 / (1 − p)


# --- queries solved beforehand -----------------------------------------------------------------------------------


def vectors_of(refined: Implicit) -> list[int]:
    """A list that will hold the number of vectors of every product from now on."""
    counts: list[int] = []
    plain = refined.product

    def counting(v: dict[str, Tensor]) -> dict[str, Tensor]:
        counts.append(len(next(iter(v.values()))))
        return plain(v)

    object.__setattr__(refined, "product", counting)
    return counts


@pytest.mark.parametrize("steps", [0, 1, 4])
def test_solved_queries_tell_their_residual_and_give_the_scores(steps: int) -> None:
    case = make(widths=(3, 4, 4, 3), n=9, queries=5)
    problem, numbers = case.problem, {"fc0": 0.3, "fc1": 2.0, "fc2": 0.05}
    refined = refine(fit(case), case.model, case.objective, case.train, steps=steps, progress=False)
    solved = precondition(
        case.model, case.objective, batches(case.query_x, case.query_y, 2), refined, numbers, progress=False
    )
    b = -problem.gradients(case.query_y, None, case.query_x)
    A, x = problem.gauss_newton() + problem.damping(numbers), problem.flat(solved.x)
    assert_close(solved.residual, (b - x @ A).norm(dim=1) / b.norm(dim=1), 1e-9)
    assert solved.steps == steps
    expected = -x @ problem.gradients().T
    assert_close(scored(case, refined, numbers, queries=solved), expected, 1e-11)
    assert_close(scored(case, refined, numbers), expected, 1e-11)


@pytest.mark.parametrize("animal", ["plain", "tokens", "residual", "called twice"])
def test_an_index_answers_refined_and_exact_queries_as_influence_does(animal: str) -> None:
    case = zoo(animal) if animal in ZOO else make(n=9)
    curvature, numbers = fit(case), drawn_damping(case, 2)
    index = TrainIndex.build(case.model, case.objective, case.train, curvature, progress=False)
    refined = refine(curvature, case.model, case.objective, case.train, steps=3, progress=False)
    for other in (refined, fit(case, gauss_newton), fit(case, identity)):
        expected = scored(case, other, numbers)
        assert_close(index.influence(case.model, case.objective, case.queries, other, numbers), expected, 1e-11)
    exact = case.problem.influence(case.problem.gauss_newton(), numbers, *case.queries[0])
    to_the_end = refine(curvature, case.model, case.objective, case.train, tolerance=1e-11, progress=False)
    assert_close(index.influence(case.model, case.objective, case.queries, to_the_end, numbers), exact, 1e-8)
    solved = precondition(case.model, case.objective, case.queries, refined, numbers, progress=False)
    split = index.scores(solved, keep=("layer",), examples=[2, 0])
    assert_close(split, scored(case, refined, numbers, keep=("layer",))[:, [2, 0]], 1e-11)


def test_all_queries_are_solved_together_as_far_as_memory_goes() -> None:
    case = make(n=9, queries=6)
    queries = batches(case.query_x, case.query_y, 1)
    refined = refine(fit(case), case.model, case.objective, case.train, steps=2, progress=False)
    one = 8 * sum(o * i for o, i in refined.shapes.values())
    whole = scored(case, refined)
    for together, expected in ((6, [6] * 3), (2, [2] * 9)):  # two steps and the residual
        counts = vectors_of(refined)
        came = scored(case, refined, queries=queries, max_bytes=together * SOLVED * one // HELD + one)
        assert counts == expected
        assert_close(came, whole, 1e-11)


def test_solved_queries_cannot_be_asked_anew() -> None:
    case = make(queries=3)
    refined = refine(fit(case), case.model, case.objective, case.train, steps=1, progress=False)
    solved = precondition(case.model, case.objective, case.queries, refined, progress=False)
    with pytest.raises(ValueError, match=r"measurement= came with queries that are solved already; .*precondition"):
        scored(case, refined, queries=solved, measurement="margin")
    with pytest.raises(ValueError, match="sets= came with queries that are solved already"):
        scored(case, refined, queries=solved, sets="all")
    other = make(widths=(3, 5, 3))
    with pytest.raises(ValueError, match=r"v\['fc0'\] has shape"):
        scored(other, fit(other), queries=solved)


def test_a_group_of_queries_is_forgotten_before_the_next_is_solved(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or two would be held at once, which is twice what ``max_bytes`` says."""
    case, solve, alive = make(queries=3), Preconditioned._solve, []
    solved: list[weakref.ref] = []

    def watched(self: Preconditioned, parts: Any) -> Any:
        alive.append(sum(x() is not None for x in solved))
        found = solve(self, parts)
        solved.extend(map(weakref.ref, found.x.values()))
        return found

    monkeypatch.setattr(Preconditioned, "_solve", watched)
    scored(case, fit(case), max_bytes=1)
    assert alive == [0, 0, 0]


def test_a_direct_solve_has_residual_0() -> None:
    case = make(queries=3)
    solved = precondition(case.model, case.objective, case.queries, fit(case), measurement="margin", progress=False)
    assert solved.steps == 0
    assert torch.equal(solved.residual, torch.zeros(3))
    assert_close(scored(case, fit(case), queries=solved), scored(case, fit(case), measurement="margin"), 1e-13)


def test_a_query_of_few_positions_is_turned_into_the_eigenbasis_by_its_positions() -> None:
    """T (o² + i²) multiplications, where its matrix would take o² i + o i²; the way back is of matrices."""
    T, o, i, asked = 3, 48, 64, 5
    g = torch.Generator().manual_seed(0)
    model = torch.nn.Linear(i, o, bias=False).eval()
    data = [(torch.randn(asked, T, i, generator=g), torch.randn(asked, T, o, generator=g))]
    C = ekfac(model, SquaredError(), data, progress=False)
    pairs = capture(model, SquaredError(), *data[0])
    solver = Preconditioned([pairs], C, 0.1, 2**28)
    with FlopCounterMode(display=False) as counter:
        (P,) = solver
    back = asked * (o * o * i + o * i * i)
    there = asked * T * (o * o + i * i + o * i)
    assert counter.get_total_flops() == 2 * (back + there) < 3 * back
    assert_close(P[""], C.solve({"": pairs[""].matrices()}, 0.1)[""], 1e-12)
