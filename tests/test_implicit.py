"""Products with the exact Gauss-Newton matrix, and the dial from EK-FAC to the exact solve."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from languages import language
from networks import ZOO, Case, Conv1D, batches, cases, drawn, make, snapshot, zoo
from oracle import Problem, assert_close, difference
from torch import Tensor, nn

from inflib import (
    CrossEntropy,
    NextToken,
    diagonal,
    ekfac,
    gauss_newton,
    identity,
    influence,
    kfac,
    refine,
    register,
    self_influence,
)
from inflib.exact import gauss_newton_product
from inflib.implicit import Implicit, _minibatches, refine_stochastic
from inflib.layers import _KINDS, positions_last
from inflib.order import Same
from inflib.solvers import NotConvergedError

pytestmark = pytest.mark.usefixtures("float64", "conv1d")


@pytest.fixture(scope="module")
def conv1d() -> Any:
    register(Conv1D, positions_last, positions_last, transposed=True)
    yield
    del _KINDS[Conv1D]


def vectors(problem: Problem, K: int = 3, seed: int = 3) -> Tensor:
    """(K, D)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(K, len(problem.places), generator=generator)


def uneven(problem: Problem) -> dict[str, float]:
    """Dampings that differ greatly from layer to layer."""
    return {name: 0.003 * 20**k for k, name in enumerate(problem.layers)}


def products_of(refined: Implicit) -> list[int]:
    """A list that will hold the number of vectors of every product from now on."""
    counts: list[int] = []
    plain = refined.product

    def counting(v: dict[str, Tensor]) -> dict[str, Tensor]:
        counts.append(len(next(iter(v.values()))))
        return plain(v)

    object.__setattr__(refined, "product", counting)
    return counts


# --- products -----------------------------------------------------------------------------------------------


@given(case=cases(), K=st.integers(1, 4))
@drawn(40)
def test_a_product_is_that_of_the_dense_matrix(case: Case, K: int) -> None:
    problem = case.problem
    v = vectors(problem, K)
    came = gauss_newton_product(case.model, case.objective, case.train, problem.stacks(v))
    assert list(came) == case.layers
    assert_close(problem.flat(came), v @ problem.gauss_newton(), 1e-12)


@pytest.mark.parametrize("animal", [a for a in ZOO if a not in ("part set in place", "tokens, part set in place")])
def test_a_product_is_right_for_every_kind_of_model(animal: str) -> None:
    case = zoo(animal)
    problem = case.problem
    v = vectors(problem)
    before = snapshot(case.model)
    came = gauss_newton_product(case.model, case.objective, case.train, problem.stacks(v))
    assert snapshot(case.model) == before
    assert not any(x.requires_grad for x in came.values())
    assert_close(problem.flat(came), v @ problem.gauss_newton(), 1e-12)


def test_a_product_over_some_layers_is_that_of_their_own_block() -> None:
    case = make(widths=(3, 4, 4, 3))
    problem = case.problem
    span = problem.spans["fc1"]
    v = vectors(problem)
    stack = problem.stacks(v)["fc1"]
    came = gauss_newton_product(case.model, case.objective, case.train, {"fc1": stack})
    assert list(came) == ["fc1"]
    assert_close(came["fc1"].flatten(1), v[:, span] @ problem.gauss_newton()[span, span], 1e-12)


@pytest.mark.parametrize("max_bytes", [1, 5_000])
def test_a_product_does_not_depend_on_how_many_vectors_go_through_together(max_bytes: int) -> None:
    case = make(widths=(3, 5, 3), n=9, splits=[4])
    v = case.problem.stacks(vectors(case.problem, 7))
    one = gauss_newton_product(case.model, case.objective, case.train, v)
    cut = gauss_newton_product(case.model, case.objective, case.train, v, max_bytes=max_bytes)
    for name in one:
        assert_close(cut[name], one[name], 1e-14)


def test_a_product_needs_no_memory_that_grows_with_the_square_of_the_parameters() -> None:
    # D = 203,530: G itself would take 166 GB
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(784, 256), nn.Tanh(), nn.Linear(256, 10)).float()
    x, y = torch.randn(20, 784, dtype=torch.float32), torch.randint(0, 10, (20,))
    v = {"0": torch.randn(2, 256, 785, dtype=torch.float32), "2": torch.randn(2, 10, 257, dtype=torch.float32)}
    product = gauss_newton_product(model, CrossEntropy(), [(x, y)], v)
    # ⟨v, G v⟩ = (1/N) Σ ‖H^½ J v‖², with J v by a central difference in float64
    model, x = model.double(), x.double()
    own = {n: p.detach() for n, p in model.named_parameters()}
    p = model(x).softmax(1)
    for k in range(2):
        step = {}
        for n in ("0", "2"):
            step |= {f"{n}.weight": v[n][k, :, :-1].double(), f"{n}.bias": v[n][k, :, -1].double()}
        ends = [torch.func.functional_call(model, {n: own[n] + h * step[n] for n in own}, (x,)) for h in (1e-5, -1e-5)]
        along = (ends[0] - ends[1]) / 2e-5  # (N, C)
        expected = ((p * along**2).sum(1) - (p * along).sum(1) ** 2).mean()
        came = sum((v[n][k].double() * product[n][k].double()).sum() for n in v)
        assert came.item() == pytest.approx(expected.item(), rel=1e-4)


def test_products_that_are_not_finite_name_the_layer_and_the_batch() -> None:
    case = make()
    x = case.x.clone()
    x[5, 0] = torch.nan
    before = snapshot(case.model)
    with pytest.raises(FloatingPointError, match=r"layer 'fc0'.*batch 1"):
        gauss_newton_product(
            case.model, case.objective, batches(x, case.y, [3]), case.problem.stacks(vectors(case.problem))
        )
    assert snapshot(case.model) == before


def test_a_product_refuses_vectors_of_another_shape_and_a_model_in_train_mode() -> None:
    case = make()
    v = case.problem.stacks(vectors(case.problem))
    with pytest.raises(ValueError, match=r"v\['fc1'\] has shape \(3, 2, 5\); expected \(K, 3, 5\)"):
        gauss_newton_product(case.model, case.objective, case.train, v | {"fc1": v["fc1"][:, :-1]})
    with pytest.raises(ValueError, match=r"v\['fc1'\] has shape \(5,\); expected \(K, 3, 5\)"):
        gauss_newton_product(case.model, case.objective, case.train, v | {"fc1": v["fc1"][0, 0]})
    dropping = nn.Sequential(nn.Dropout(0.5), nn.Linear(3, 3)).double().train()
    with pytest.raises(RuntimeError, match="eval"):
        gauss_newton_product(dropping, CrossEntropy(), [(case.x, case.y)], {"1": torch.randn(1, 3, 4)})


# --- refine: a curvature ------------------------------------------------------------------------------------


@given(case=cases())
@drawn(15)
def test_refine_is_the_exact_matrix(case: Case) -> None:
    problem = case.problem
    refined = refine(ekfac(case.model, case.objective, case.train), case.model, case.objective, case.train)
    G, v = problem.gauss_newton(), vectors(problem)
    assert_close(refined.to_dense(), G, 1e-12)
    assert_close(problem.flat(refined.matvec(problem.stacks(v))), v @ G, 1e-12)
    assert refined.shapes == problem.shapes


@pytest.mark.parametrize("method", [ekfac, kfac, diagonal, identity])
@pytest.mark.parametrize("labels", ["expected", "observed"])
def test_relative_damping_is_measured_in_the_exact_blocks_mean_eigenvalues(method: Any, labels: str) -> None:
    case = make(widths=(3, 4, 4, 3))
    problem = case.problem
    curvature = method(case.model, case.objective, case.train, labels=labels)
    refined = refine(curvature, case.model, case.objective, case.train)
    expected = problem.relative(problem.gauss_newton(), 1.0)
    assert refined.mean_eigenvalues() == pytest.approx(expected, rel=1e-11)


@pytest.mark.parametrize("method", [kfac, identity])
@pytest.mark.parametrize("labels", ["sampled", "observed"])
def test_mean_eigenvalues_are_of_expected_labels_also_where_the_objective_would_draw_them(
    method: Any, labels: str
) -> None:
    case = language(seed=1)
    curvature = method(case.model, case.objective, case.train, layers=case.layers, labels=labels)
    refined = refine(curvature, case.model, case.objective, case.train)
    assert refined.facts.labels == "expected"
    G = refined.to_dense().diagonal().split([o * i for o, i in refined.shapes.values()])
    expected = {name: float(part.mean()) for name, part in zip(refined.shapes, G, strict=True)}
    assert refined.mean_eigenvalues() == pytest.approx(expected, rel=1e-11)


def test_mean_eigenvalues_are_of_drawn_labels_where_there_are_too_many_to_expect_and_the_facts_say_so() -> None:
    case = language(seed=1)
    objective = NextToken(max_seeds=3)
    curvature = kfac(case.model, objective, case.train, layers=case.layers)
    refined = refine(curvature, case.model, objective, case.train)
    assert refined.facts.labels == "sampled"
    found = diagonal(case.model, objective, case.train, case.layers, "sampled")
    assert refined.mean_eigenvalues() == found.mean_eigenvalues()


def test_refine_says_what_it_is() -> None:
    case = make()
    refined = refine(ekfac(case.model, case.objective, case.train), case.model, case.objective, case.train, steps=4)
    text = "refined EK-FAC (4 conjugate-gradient steps) curvature, expected labels, 7 examples"
    assert repr(refined).startswith(text)


@given(case=cases(depth=(2, 3), examples=(2, 6)))
@drawn(6)
def test_at_convergence_refine_solves_exactly_whatever_the_damping_of_each_layer(case: Case) -> None:
    problem = case.problem
    curvature = ekfac(case.model, case.objective, case.train)
    refined = refine(curvature, case.model, case.objective, case.train, tolerance=1e-12)
    v, numbers = vectors(problem), uneven(problem)
    exact = torch.linalg.solve(problem.gauss_newton() + problem.damping(numbers), v.T).T
    x, residual, _ = refined.solve_with_residual(problem.stacks(v), numbers)
    assert_close(problem.flat(x), exact, 1e-9)
    assert float(residual.max()) <= 1e-12


def test_default_damping_is_a_tenth_of_each_layers_mean_eigenvalue() -> None:
    case = make(widths=(3, 4, 3))
    problem = case.problem
    curvature = ekfac(case.model, case.objective, case.train)
    refined = refine(curvature, case.model, case.objective, case.train, tolerance=1e-12)
    G, v = problem.gauss_newton(), vectors(problem)
    exact = torch.linalg.solve(G + problem.damping(problem.relative(G, 0.1)), v.T).T
    assert_close(problem.flat(refined.solve(problem.stacks(v))), exact, 1e-9)


# --- refine: the dial ---------------------------------------------------------------------------------------


@given(case=cases())
@drawn(15)
def test_no_steps_are_ekfac_to_the_last_bit(case: Case) -> None:
    curvature = ekfac(case.model, case.objective, case.train)
    refined = refine(curvature, case.model, case.objective, case.train, steps=0)
    v, numbers = case.problem.stacks(vectors(case.problem)), uneven(case.problem)
    expected, came = curvature.solve(v, numbers), refined.solve(v, numbers)
    assert all(torch.equal(came[name], expected[name]) for name in case.layers)


def test_one_step_is_ekfac_times_the_best_number_for_each_vector() -> None:
    case = make(widths=(3, 4, 4, 3))
    problem = case.problem
    curvature = ekfac(case.model, case.objective, case.train)
    v, numbers = vectors(problem, 5), uneven(problem)
    A = problem.gauss_newton() + problem.damping(numbers)
    start = problem.flat(curvature.solve(problem.stacks(v), numbers))
    # d/dα of ½ α² sᵀA s − α sᵀv is 0
    best = (start * v).sum(1) / torch.einsum("kd,de,ke->k", start, A, start)
    refined = refine(curvature, case.model, case.objective, case.train, steps=1)
    assert_close(problem.flat(refined.solve(problem.stacks(v), numbers)), best[:, None] * start, 1e-12)
    assert float(best.std()) > 1e-3 * float(best.mean())  # and the numbers do differ


@pytest.mark.parametrize("name", ["CrossEntropy", "SquaredError", "Bernoulli"])
def test_k_steps_are_the_best_answer_in_their_krylov_space(name: str) -> None:
    case = make(name, widths=(3, 4, 3), n=9)
    problem = case.problem
    curvature = ekfac(case.model, case.objective, case.train)
    v, numbers = vectors(problem), uneven(problem)
    damping = problem.damping(numbers)
    A, P = problem.gauss_newton() + damping, curvature.to_dense() + damping
    for k in (2, 3, 5):
        refined = refine(curvature, case.model, case.objective, case.train, steps=k)
        came = problem.flat(refined.solve(problem.stacks(v), numbers))
        for row in range(len(v)):
            basis = [torch.linalg.solve(P, v[row])]
            for _ in range(k - 1):
                basis.append(torch.linalg.solve(P, A @ basis[-1]))
            B = torch.linalg.qr(torch.stack(basis, dim=1)).Q  # (D, k)
            best = B @ torch.linalg.solve(B.T @ A @ B, B.T @ v[row])
            assert_close(came[row], best, 1e-8)


def test_every_step_brings_each_vector_nearer_in_the_norm_of_the_damped_matrix() -> None:
    case = make(widths=(4, 6, 5, 4), n=30)
    problem = case.problem
    curvature = ekfac(case.model, case.objective, case.train)
    v, numbers = vectors(problem, 4), problem.relative(problem.gauss_newton(), 0.1)
    A = problem.gauss_newton() + problem.damping(numbers)
    exact = torch.linalg.solve(A, v.T).T
    errors = []
    for k in (1, 2, 3, 5, 8, 13):
        refined = refine(curvature, case.model, case.objective, case.train, steps=k)
        wrong = problem.flat(refined.solve(problem.stacks(v), numbers)) - exact
        errors.append(torch.einsum("kd,de,ke->k", wrong, A, wrong))
    assert bool((torch.stack(errors).diff(dim=0) < 0).all())
    assert float((errors[-1] / errors[0]).max()) < 0.1


def test_the_residual_is_the_residual() -> None:
    case = make(widths=(3, 4, 4, 3), n=9)
    problem = case.problem
    curvature = ekfac(case.model, case.objective, case.train)
    v, numbers = vectors(problem), uneven(problem)
    A = problem.gauss_newton() + problem.damping(numbers)
    for steps in (0, 1, 4):
        refined = refine(curvature, case.model, case.objective, case.train, steps=steps)
        x, residual, used = refined.solve_with_residual(problem.stacks(v), numbers)
        assert_close(residual, (v - problem.flat(x) @ A).norm(dim=1) / v.norm(dim=1), 1e-9)
        assert used == steps


def test_each_vector_is_solved_as_if_it_were_alone() -> None:
    case = make(widths=(3, 4, 4, 3), n=9)
    problem = case.problem
    refined = refine(ekfac(case.model, case.objective, case.train), case.model, case.objective, case.train, steps=3)
    v = vectors(problem, 4) * torch.tensor([1.0, 1e-6, 1e6, 0.0])[:, None]
    together = refined.solve_with_residual(problem.stacks(v))
    for row in range(4):
        alone = problem.flat(refined.solve(problem.stacks(v[row : row + 1])))
        assert_close(problem.flat(together.x)[row], alone[0], 1e-10)
    assert bool((problem.flat(together.x)[3] == 0).all())
    assert float(together.residual[3]) == 0


def test_a_tolerance_out_of_reach_raises_and_says_what_was_reached() -> None:
    case = make(widths=(3, 4, 3))
    refined = refine(
        ekfac(case.model, case.objective, case.train), case.model, case.objective, case.train, tolerance=1e-20
    )
    with pytest.raises(NotConvergedError, match=r"relative residual of \d.*expected 1e-20") as caught:
        refined.solve(case.problem.stacks(vectors(case.problem)), 1e-3)
    assert float(caught.value.solution.residual.max()) < 1e-12


# --- refine: scores -----------------------------------------------------------------------------------------


@given(case=cases(depth=(2, 2), examples=(2, 4)))
@drawn(2)
def test_refined_scores_are_exact_at_convergence(case: Case) -> None:
    problem = case.problem
    numbers = uneven(problem)
    curvature = ekfac(case.model, case.objective, case.train)
    refined = refine(curvature, case.model, case.objective, case.train, tolerance=1e-12)
    scores = influence(case.model, case.objective, case.train, case.queries, refined, numbers)
    expected = problem.influence(problem.gauss_newton(), numbers, case.query_x, case.query_y)
    assert_close(scores, expected, 1e-9)
    own = self_influence(case.model, case.objective, case.train, refined, numbers)
    g = problem.gradients()
    A = problem.gauss_newton() + problem.damping(numbers)
    assert_close(own, (g * torch.linalg.solve(A, g.T).T).sum(1), 1e-9)


def test_only_the_queries_are_solved_all_in_one_batch() -> None:
    case = make(widths=(3, 4, 3), n=12, splits=[2, 4, 6, 8, 10], queries=5)
    refined = refine(ekfac(case.model, case.objective, case.train), case.model, case.objective, case.train, steps=3)
    counts = products_of(refined)
    influence(case.model, case.objective, case.train, case.queries, refined)
    assert counts == [5, 5, 5, 5]  # three steps and the residual


def test_refined_scores_come_nearer_with_every_few_steps() -> None:
    case = make(widths=(5, 8, 6, 4), n=60, queries=10)
    problem = case.problem
    G = problem.gauss_newton()
    numbers = problem.relative(G, 0.1)
    exact = problem.influence(G, numbers, case.query_x, case.query_y)
    curvature = ekfac(case.model, case.objective, case.train)
    errors = [
        difference(
            influence(
                case.model,
                case.objective,
                case.train,
                case.queries,
                refine(curvature, case.model, case.objective, case.train, steps=steps),
                numbers,
            ),
            exact,
        )
        for steps in (0, 3, 10, 30)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[2] < 0.2 * errors[0]
    assert errors[3] < 0.02 * errors[0]


def test_data_may_come_in_any_batches() -> None:
    case = make(widths=(3, 4, 3), n=11)
    curvature = ekfac(case.model, case.objective, case.train)
    v = case.problem.stacks(vectors(case.problem))
    found = [
        case.problem.flat(refine(curvature, case.model, case.objective, batches(case.x, case.y, size), 4).solve(v))
        for size in (11, 4, 1)
    ]
    for other in found[1:]:
        assert_close(other, found[0], 1e-11)


def test_weights_that_changed_since_are_an_error() -> None:
    case = make()
    refined = refine(ekfac(case.model, case.objective, case.train), case.model, case.objective, case.train)
    v = case.problem.stacks(vectors(case.problem))
    with torch.no_grad():
        case.model.fc0.weight[0, 0] += 1e-6
    with pytest.raises(ValueError, match="weights changed"):
        refined.solve(v)


def test_a_curvature_of_another_model_is_refused() -> None:
    case, other = make(widths=(3, 4, 3)), make(widths=(3, 5, 3))
    curvature = ekfac(other.model, other.objective, other.train)
    with pytest.raises(ValueError, match=r"\(5, 4\).*the model has.*\(4, 4\)"):
        refine(curvature, case.model, case.objective, case.train)


def test_a_refined_curvature_refuses_stacks_of_the_wrong_shape_or_layers() -> None:
    case = make()
    refined = refine(ekfac(case.model, case.objective, case.train), case.model, case.objective, case.train)
    v = case.problem.stacks(vectors(case.problem))
    for function in (refined.matvec, lambda v: refined.solve(v, 0.1)):
        with pytest.raises(ValueError, match=r"v has no layer 'fc1'; expected a stack \(K, 3, 5\)"):
            function({"fc0": v["fc0"]})


# --- the minibatch form -------------------------------------------------------------------------------------


def test_minibatch_products_average_to_the_whole_in_every_epoch_also_with_unequal_batches() -> None:
    case = make(n=11, splits=[1, 5, 6])
    problem = case.problem
    v = vectors(problem)
    products = _minibatches(case.model, case.objective, Same(case.train, "data", ordered=False), seed=0)
    for _ in range(2):
        epoch = [problem.flat(next(products)(problem.stacks(v))) for _ in case.train]
        assert_close(sum(epoch) / len(epoch), v @ problem.gauss_newton(), 1e-12)


def test_stochastic_refinement_starts_at_ekfac_comes_near_and_repeats_itself() -> None:
    case = make(widths=(4, 6, 4), n=60, splits=[20, 40])
    problem = case.problem
    v, numbers = vectors(problem), problem.relative(problem.gauss_newton(), 1.0)
    A = problem.gauss_newton() + problem.damping(numbers)
    exact = torch.linalg.solve(A, v.T).T
    curvature = ekfac(case.model, case.objective, case.train)

    def solve(steps: int, seed: int = 0) -> Any:
        refined = refine_stochastic(curvature, case.model, case.objective, case.train, steps, seed=seed)
        return refined.solve_with_residual(problem.stacks(v), numbers)

    start = solve(0)
    assert torch.equal(problem.flat(start.x), problem.flat(curvature.solve(problem.stacks(v), numbers)))
    found = solve(80)
    wrong = [difference(problem.flat(s.x), exact) for s in (start, found)]
    assert wrong[1] < 0.2 * wrong[0]
    assert_close(found.residual, (v - problem.flat(found.x) @ A).norm(dim=1) / v.norm(dim=1), 1e-9)
    assert torch.equal(problem.flat(solve(80).x), problem.flat(found.x))
    assert not torch.equal(problem.flat(solve(80, seed=1).x), problem.flat(found.x))


def test_stochastic_refinement_with_all_data_in_one_batch_is_exact_in_the_end() -> None:
    case = make(widths=(3, 4, 3), n=20, splits=[])
    problem = case.problem
    v, numbers = vectors(problem), problem.relative(problem.gauss_newton(), 1.0)
    exact = torch.linalg.solve(problem.gauss_newton() + problem.damping(numbers), v.T).T
    refined = refine_stochastic(
        ekfac(case.model, case.objective, case.train), case.model, case.objective, case.train, 150
    )
    assert_close(problem.flat(refined.solve(problem.stacks(v), numbers)), exact, 1e-6)


def test_refine_takes_a_dense_curvature_as_preconditioner_and_is_then_done_in_one_step() -> None:
    case = make()
    problem = case.problem
    G = gauss_newton(case.model, case.objective, case.train)
    v, numbers = vectors(problem), uneven(problem)
    refined = refine(G, case.model, case.objective, case.train, steps=1)
    assert float(refined.solve_with_residual(problem.stacks(v), numbers).residual.max()) < 1e-9
