"""Solvers agree with the dense solve to the tolerance they state, or raise and say what residual they reached."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from networks import drawn
from oracle import assert_close, block_diag, difference
from torch import Tensor

from inflib import IndefiniteWarning
from inflib.curvature import Facts
from inflib.dense import Dense
from inflib.solvers import (
    NotConvergedError,
    Solution,
    conjugate_gradients,
    largest_eigenvalue,
    lissa,
    stochastic_neumann,
)

pytestmark = pytest.mark.usefixtures("float64")

SHAPES = {"one": (2, 3), "two": (4, 2)}  # D = 6 + 8
D = 14
NUMBERS = {"one": 0.3, "two": 0.02}


def positive(seed: int = 0, spread: float = 1.0, rank: int = D) -> Tensor:
    """A random positive semi-definite (D, D) matrix; larger spread, larger ratio of eigenvalues."""
    generator = torch.Generator().manual_seed(seed)
    Q = torch.linalg.qr(torch.randn(D, D, generator=generator)).Q
    values = 10 ** (spread * (torch.rand(D, generator=generator) - 0.5))
    values[rank:] = 0
    return (Q * values) @ Q.T


def dense(matrix: Tensor) -> Dense:
    return Dense(matrix, SHAPES, Facts("a matrix", "expected", 1, 0, 1, ""))


def vectors(K: int = 3, seed: int = 1) -> Tensor:
    return torch.randn(K, D, generator=torch.Generator().manual_seed(seed))


def stacks(flat: Tensor) -> dict[str, Tensor]:
    return {"one": flat[:, :6].reshape(-1, 2, 3), "two": flat[:, 6:].reshape(-1, 4, 2)}


def flat(found: dict[str, Tensor]) -> Tensor:
    return torch.cat([found["one"].reshape(-1, 6), found["two"].reshape(-1, 8)], dim=1)


def damped(matrix: Tensor, numbers: dict[str, float] = NUMBERS) -> Tensor:
    return matrix + torch.diag(torch.tensor([numbers["one"]] * 6 + [numbers["two"]] * 8))


def exact(matrix: Tensor, v: Tensor, numbers: dict[str, float] = NUMBERS) -> Tensor:
    return torch.linalg.solve(damped(matrix, numbers), v.T).T


def check_statement(C: Tensor, v: Tensor, x: Tensor, residual: Tensor, tolerance: float) -> None:
    """The residual is what was stated, within the tolerance, and bounds the error as the docstring says."""
    found = (v - x @ damped(C)).norm(dim=1) / v.norm(dim=1)
    assert float((found - residual).abs().max()) < 1e-12
    assert float(residual.max()) <= tolerance
    error = (x - exact(C, v)).norm(dim=1)
    assert bool((error <= tolerance * v.norm(dim=1) / min(NUMBERS.values())).all())


# --- conjugate gradients ------------------------------------------------------------------------------------


@given(
    seed=st.integers(0, 2**20),
    spread=st.floats(0, 4),
    rank=st.integers(1, D),
    K=st.integers(1, 4),
    tolerance=st.sampled_from([1e-2, 1e-6, 1e-10]),
)
@drawn(40)
def test_conjugate_gradients_reach_the_tolerance_they_state(
    seed: int, spread: float, rank: int, K: int, tolerance: float
) -> None:
    C, v = positive(seed, spread, rank), vectors(K, seed)
    x, residual, steps = conjugate_gradients(dense(C), stacks(v), NUMBERS, tolerance=tolerance)
    check_statement(C, v, flat(x), residual, tolerance)
    assert steps <= 3 * D


def test_conjugate_gradients_are_done_in_as_many_steps_as_there_are_eigenvalues() -> None:
    Q = torch.linalg.qr(torch.randn(D, D)).Q
    C = (Q * torch.tensor([1.0, 2.0, 5.0]).repeat(5)[:D]) @ Q.T
    for steps, done in ((2, False), (3, True)):
        x = conjugate_gradients(dense(C), stacks(vectors()), 0.1, steps=steps).x
        expected = exact(C, vectors(), {"one": 0.1, "two": 0.1})
        assert (difference(flat(x), expected) < 1e-12) is done


def test_the_preconditioner_is_solved_at_the_damping_asked_for() -> None:
    C, v = positive(), vectors()
    good = conjugate_gradients(dense(C), stacks(v), NUMBERS, preconditioner=dense(C), steps=1)
    assert float(good.residual.max()) < 1e-12  # P = C: the first step arrives, if both have the same λ
    blocks = dense(block_diag(C[:6, :6], C[6:, 6:]))
    plain = conjugate_gradients(dense(C), stacks(v), NUMBERS, preconditioner=blocks, tolerance=1e-10)
    check_statement(C, v, flat(plain.x), plain.residual, 1e-10)


def test_without_a_preconditioner_no_steps_are_the_vector_itself() -> None:
    v = vectors()
    x, residual, steps = conjugate_gradients(dense(positive()), stacks(v), NUMBERS, steps=0)
    assert torch.equal(flat(x), v)
    assert steps == 0
    assert_close(residual, (v - v @ damped(positive())).norm(dim=1) / v.norm(dim=1), 1e-12)


def test_more_steps_than_needed_change_nothing() -> None:
    C, v = positive(), vectors()
    found = conjugate_gradients(dense(C), stacks(v), NUMBERS, steps=500)
    assert_close(flat(found.x), exact(C, v), 1e-11)
    assert found.steps < 100


def test_conjugate_gradients_that_run_out_of_steps_raise_and_say_what_they_reached() -> None:
    C, v = positive(spread=4), vectors()
    with pytest.raises(NotConvergedError, match=r"residual of \d\S* in 4 steps; expected 1e-10.*max_steps") as caught:
        conjugate_gradients(dense(C), stacks(v), NUMBERS, tolerance=1e-10, max_steps=4)
    solution = caught.value.solution
    true = (v - flat(solution.x) @ damped(C)).norm(dim=1) / v.norm(dim=1)
    assert_close(solution.residual, true, 1e-9)
    assert f"{float(true.max()):.2g}" in str(caught.value)


def test_what_rounding_forbids_is_not_claimed() -> None:
    C, v = positive(spread=3).float(), vectors().float()
    with pytest.raises(NotConvergedError, match="expected 1e-12"):
        conjugate_gradients(dense(C), stacks(v), NUMBERS, tolerance=1e-12)
    found = conjugate_gradients(dense(C), stacks(v), NUMBERS, tolerance=1e-5)
    assert_close(flat(found.x).double(), exact(C.double(), v.double()), 1e-3)
    # with eigenvalues from 1e-3 to 1e3 the recursion says 1e-7 where x is really wrong by 1e-2
    C, numbers = positive(spread=6).float(), {"one": 1e-4, "two": 1e-5}
    with pytest.raises(NotConvergedError, match="expected 1e-06"):
        conjugate_gradients(dense(C), stacks(v), numbers, tolerance=1e-6)
    x, residual, _ = conjugate_gradients(dense(C), stacks(v), numbers, steps=200)
    true = (v.double() - flat(x).double() @ damped(C.double(), numbers)).norm(dim=1) / v.double().norm(dim=1)
    assert float(true.max()) > 1e-4
    assert_close(residual.double(), true, 0.1)


def test_an_indefinite_matrix_or_preconditioner_is_an_error() -> None:
    v = stacks(vectors())
    with pytest.raises(ValueError, match="the damped curvature is not positive definite"):
        conjugate_gradients(dense(-positive()), v, 1e-3)
    with (
        pytest.raises(ValueError, match="the preconditioner is not positive definite"),
        pytest.warns(IndefiniteWarning),
    ):
        conjugate_gradients(dense(positive()), v, 1e-3, preconditioner=dense(-positive()))


@pytest.mark.parametrize("steps", [-1, 1.5])
def test_a_number_of_steps_that_makes_no_sense_is_refused(steps: float) -> None:
    with pytest.raises(ValueError, match="steps="):
        conjugate_gradients(dense(positive()), stacks(vectors()), NUMBERS, steps=steps)  # type: ignore[arg-type]


# --- LiSSA --------------------------------------------------------------------------------------------------


@given(seed=st.integers(0, 2**20), rank=st.integers(1, D), tolerance=st.sampled_from([1e-1, 1e-3, 1e-8]))
@drawn(12)
def test_lissa_reaches_the_tolerance_it_states(seed: int, rank: int, tolerance: float) -> None:
    C, v = positive(seed, 1.0, rank), vectors(seed=seed)
    x, residual, _ = lissa(dense(C), stacks(v), NUMBERS, tolerance=tolerance)
    check_statement(C, v, flat(x), residual, tolerance)


def test_lissa_is_the_partial_sum_of_the_neumann_series() -> None:
    C, v, sigma = positive(), vectors(), 5.0
    found = lissa(dense(C), stacks(v), NUMBERS, tolerance=0.2, scale=sigma)
    factor = torch.eye(D) - damped(C) / sigma
    expected = sum(v @ torch.linalg.matrix_power(factor, j) for j in range(found.steps)) / sigma
    assert found.steps > 3
    assert_close(flat(found.x), expected, 1e-12)


def test_lissa_that_runs_out_of_steps_raises_and_says_what_it_reached() -> None:
    with pytest.raises(NotConvergedError, match=r"LiSSA reached a relative residual of \d\S* in 20 steps") as caught:
        lissa(dense(positive(spread=3)), stacks(vectors()), 1e-4, tolerance=1e-6, max_steps=20)
    assert f"{float(caught.value.solution.residual.max()):.2g}" in str(caught.value)


def test_lissa_with_too_small_a_scale_raises_instead_of_returning_noise() -> None:
    C = positive()
    largest = float(torch.linalg.eigvalsh(damped(C))[-1])
    with pytest.raises(NotConvergedError, match=r"diverged.*scale"):
        lissa(dense(C), stacks(vectors()), NUMBERS, scale=0.45 * largest)
    lissa(dense(C), stacks(vectors()), NUMBERS, scale=0.55 * largest)
    with pytest.raises(ValueError, match="scale=-1"):
        lissa(dense(C), stacks(vectors()), NUMBERS, scale=-1.0)


# --- the largest eigenvalue ---------------------------------------------------------------------------------


def test_power_iteration_finds_the_largest_eigenvalue_from_below() -> None:
    for seed in range(5):
        C, P = positive(seed), positive(seed + 100)
        plain = float(torch.linalg.eigvalsh(damped(C))[-1])
        both = float(torch.linalg.eigvals(torch.linalg.solve(damped(P), damped(C))).real.max())
        for steps, low in ((1, 0.1), (10, 0.8), (300, 1 - 1e-6)):
            assert low * plain <= largest_eigenvalue(dense(C), NUMBERS, steps=steps) <= plain * (1 + 1e-12)
            found = largest_eigenvalue(dense(C), NUMBERS, preconditioner=dense(P), steps=steps)
            assert low * both <= found <= both * (1 + 1e-10)


# --- stochastic Neumann -------------------------------------------------------------------------------------


def noisy(C: Tensor, size: float, seed: int) -> Iterator:
    """Products with a random positive matrix whose mean is C: C^½ W C^½ for W with mean I and noise of that size."""
    generator = torch.Generator().manual_seed(seed)
    values, Q = torch.linalg.eigh(C)
    root = Q * values.clamp_min(0).sqrt() @ Q.T
    while True:
        w = torch.randn(D, D, generator=generator)
        part = root @ ((1 - size) * torch.eye(D) + size * w @ w.T / D) @ root
        yield lambda v, part=part: stacks(flat(v) @ part)


def test_stochastic_neumann_comes_as_near_as_one_likes_however_noisy_its_minibatches_are() -> None:
    C, v = positive(), vectors()
    P = dense(torch.diag(C.diagonal()))
    right = exact(C, v)
    wrong = [
        difference(
            flat(
                stochastic_neumann(
                    dense(C), stacks(v), NUMBERS, minibatches=noisy(C, 0.5, 0), preconditioner=P, steps=k, rate=0.1
                ).x
            ),
            right,
        )
        for k in (0, 50, 1600)
    ]
    assert wrong[1] < 0.5 * wrong[0]
    assert wrong[2] < 1e-6 * wrong[1]


def test_stochastic_neumann_stops_at_the_residual_asked_for_or_says_what_it_reached() -> None:
    C, v = positive(), vectors()
    P = dense(torch.diag(C.diagonal()))

    def solve(tolerance: float, steps: int) -> Solution:
        return stochastic_neumann(
            dense(C),
            stacks(v),
            NUMBERS,
            minibatches=noisy(C, 0.3, 0),
            preconditioner=P,
            steps=steps,
            tolerance=tolerance,
        )

    found = solve(1e-4, 10_000)
    check_statement(C, v, flat(found.x), found.residual, 1e-4)
    assert 0 < found.steps < 10_000
    with pytest.raises(NotConvergedError, match=r"reached a relative residual of .* in 40 steps; expected 1e-12"):
        solve(1e-12, 40)


def test_stochastic_neumann_that_diverges_raises() -> None:
    C = positive()
    with pytest.raises(NotConvergedError, match=r"diverged.*rate"):
        stochastic_neumann(dense(C), stacks(vectors()), NUMBERS, minibatches=noisy(C, 0.1, 0), steps=2000, rate=5.0)


def test_stochastic_neumann_refuses_minibatches_that_end() -> None:
    C = positive()
    few = [lambda v: stacks(flat(v) @ C)] * 6
    with pytest.raises(ValueError, match="ended after 2 products; expected 10"):  # four went to the rate
        stochastic_neumann(dense(C), stacks(vectors()), NUMBERS, minibatches=few, steps=10)
