"""TrainIndex gives what ``influence`` gives, whatever is asked of it, without a pass over the training data."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from networks import ZOO, Case, Conv1D, batches, cases, drawn, make, snapshot, zoo
from oracle import assert_close, difference
from test_curvature import drawn_damping
from torch import Tensor

from inflib import (
    SquaredError,
    TrainIndex,
    diagonal,
    ekfac,
    gauss_newton,
    identity,
    influence,
    kfac,
    register,
    relative,
    self_influence,
)
from inflib.layers import _KINDS, positions_last

pytestmark = pytest.mark.usefixtures("float64", "conv1d")


@pytest.fixture(scope="module")
def conv1d() -> Any:
    register(Conv1D, positions_last, positions_last, transposed=True)
    yield
    del _KINDS[Conv1D]


def build(case: Case, curvature: Any = None) -> TrainIndex:
    curvature = curvature or ekfac(case.model, case.objective, case.train, progress=False)
    return TrainIndex.build(case.model, case.objective, case.train, curvature, progress=False)


def scored(case: Case, curvature: Any, damping: Any = None, **options: Any) -> Tensor:
    return influence(
        case.model, case.objective, case.train, case.queries, curvature, damping, progress=False, **options
    )


@given(cases(), st.integers(0, 1000))
@drawn(15)
def test_scores_are_those_of_influence(case: Case, seed: int) -> None:
    index, numbers = build(case), drawn_damping(case, seed)
    found = index.influence(case.model, case.objective, case.queries, damping=numbers)
    assert_close(found, scored(case, index.curvature, numbers), 1e-12)
    split = index.influence(case.model, case.objective, case.queries, damping=numbers, keep=("layer",))
    assert_close(split, scored(case, index.curvature, numbers, keep=("layer",)), 1e-12)
    assert len(index) == len(case.y)


@pytest.mark.parametrize("damping", [None, 0.3, {"fc0": 0.01, "fc1": 4.0}, relative(0.5)])
@pytest.mark.parametrize("measurement", [None, "margin", lambda f, y: f[:, 1]])
def test_every_damping_and_measurement_agrees_with_influence(damping: Any, measurement: Any) -> None:
    case = make(n=9)
    index = build(case)
    found = index.influence(case.model, case.objective, case.queries, damping=damping, measurement=measurement)
    assert_close(found, scored(case, index.curvature, damping, measurement=measurement), 1e-12)


def test_curvatures_that_share_the_eigenbasis_answer_from_one_index() -> None:
    case = make(n=9)
    fits = {f: f(case.model, case.objective, case.train, progress=False) for f in (ekfac, kfac, identity)}
    for own in (ekfac, kfac):
        index = build(case, fits[own])
        prepared = index.prepare(case.model, case.objective, case.queries)
        for other in (ekfac, kfac, identity):
            assert_close(index.scores(prepared, fits[other]), scored(case, fits[other]), 1e-12)


def test_the_identitys_and_the_diagonals_own_indexes() -> None:
    case = make(n=9)
    for fit in (identity, diagonal):
        curvature = fit(case.model, case.objective, case.train, progress=False)
        index = build(case, curvature)
        assert_close(
            index.influence(case.model, case.objective, case.queries, damping=0.2), scored(case, curvature, 0.2), 1e-12
        )


def test_some_of_the_layers_give_their_share() -> None:
    case = make(widths=(3, 4, 4, 3), n=8)
    index = build(case)
    prepared = index.prepare(case.model, case.objective, case.queries)
    split = scored(case, index.curvature, keep=("layer",))
    assert_close(index.scores(prepared, layers="fc1"), split[..., 1], 1e-12)
    assert_close(index.scores(prepared, layers=["fc2", "fc0"]), split[..., 0] + split[..., 2], 1e-12)
    both = index.scores(prepared, layers=["fc2", "fc0"], keep=("layer",))
    assert_close(both, split[..., [0, 2]], 1e-12)  # the curvature's order, not the list's
    restricted = index.curvature.restrict(["fc1"])
    assert_close(index.scores(prepared, restricted), split[..., 1], 1e-12)


def test_an_index_of_some_layers_is_the_index_of_their_curvature() -> None:
    case = make(widths=(5, 4, 3), n=30)
    index = build(case)
    name = index.curvature.layers[-1]
    for fewer in (index.restrict(name), index.restrict([name])):
        assert fewer.curvature.layers == (name,) and fewer.nbytes < index.nbytes
        found = fewer.influence(case.model, case.objective, case.queries, damping=relative(0.1))
        assert_close(found, scored(case, index.curvature.restrict([name]), relative(0.1)), 1e-12)
        alone = TrainIndex.build(case.model, case.objective, case.train, fewer.curvature, progress=False)
        assert_close(fewer.self_influence(damping=1.0), alone.self_influence(damping=1.0), 1e-12)
    with pytest.raises(ValueError, match="'nothing' is not a layer of this curvature"):
        index.restrict(["nothing"])


@pytest.mark.parametrize(
    "examples", [[3, 0, 5], torch.tensor([3, 0, 5]), range(2, 7), [4], [], torch.arange(9) % 2 == 0, [True] * 9]
)
def test_some_of_the_examples_give_their_columns(examples: Any) -> None:
    case = make(n=9)
    index = build(case)
    prepared = index.prepare(case.model, case.objective, case.queries)
    whole = scored(case, index.curvature)
    at = torch.as_tensor(list(examples))
    columns = whole[:, at.long() if at.dtype != torch.bool else at]
    found = index.scores(prepared, examples=examples)
    assert found.shape == columns.shape
    assert_close(found, columns, 1e-12)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.int32, torch.int64])
def test_positions_of_any_whole_dtype_and_from_numpy_are_the_same(dtype: torch.dtype) -> None:
    case = make(n=9)
    index = build(case)
    prepared = index.prepare(case.model, case.objective, case.queries)
    whole, at = index.scores(prepared), torch.tensor([8, 0, 0], dtype=dtype)
    for examples in (at, at.numpy(), at.tolist()):
        assert_close(index.scores(prepared, examples=examples), whole[:, [8, 0, 0]], 1e-14)


REFUSED: dict[str, tuple[Any, str]] = {
    "bytes": (torch.tensor([1, 0, 1], dtype=torch.uint8), r"torch.uint8; .*mask of 0 and 1 needs .bool\(\)"),
    "a byte mask": (
        torch.ones(9, dtype=torch.uint8),
        r"torch.uint8; expected whole positions \(int64\) or a bool mask",
    ),
    "numpy's bytes": (torch.ones(9, dtype=torch.uint8).numpy(), r"torch.uint8"),
    "fractions": ([0.0, 1.5], r"torch.float64; expected whole positions"),
    "whole fractions": (torch.tensor([0.0, 1.0]), r"torch.float32; expected whole positions"),
    "no fractions": (torch.zeros(0), r"torch.float32; expected whole positions"),
    "a short mask": (torch.ones(8, dtype=torch.bool), r"a mask of shape \(8,\); expected a bool mask \(9,\)"),
    "a long mask": ([True] * 10, r"a mask of shape \(10,\); expected a bool mask \(9,\)"),
    "a mask of two axes": (torch.ones(9, 1, dtype=torch.bool), r"a mask of shape \(9, 1\)"),
    "positions of two axes": ([[0, 1]], r"a tensor of shape \(1, 2\)"),
    "one number": (3, r"a tensor of shape \(\)"),
    "behind the last": ([0, 9], r"has the position 9; expected positions from 0 to 8"),
    "before the first": (torch.tensor([-1]), r"has the position -1; expected positions from 0 to 8"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_neither_positions_nor_a_mask_is_refused(name: str) -> None:
    case = make(n=9)
    index = build(case)
    prepared = index.prepare(case.model, case.objective, case.queries)
    examples, message = REFUSED[name]
    with pytest.raises((TypeError, ValueError), match=f"examples (came as|has) ?.*{message}|{message}"):
        index.scores(prepared, examples=examples)


@pytest.mark.parametrize("max_bytes", [1, 300, 10**9])
def test_more_queries_than_training_examples_takes_the_other_side_and_agrees(max_bytes: int) -> None:
    case = make(n=3, queries=11, splits=[2])
    index = build(case)
    prepared = index.prepare(case.model, case.objective, case.queries)
    assert_close(index.scores(prepared, max_bytes=max_bytes), scored(case, index.curvature), 1e-12)
    split = index.scores(prepared, max_bytes=max_bytes, keep=("layer",))
    assert_close(split, scored(case, index.curvature, keep=("layer",)), 1e-12)
    assert_close(index.scores(prepared, examples=[1]), scored(case, index.curvature)[:, [1]], 1e-12)


@pytest.mark.parametrize("damping", [None, 0.3, {"fc0": 0.01, "fc1": 4.0}])
def test_self_influence_agrees_with_the_pass_over_the_data(damping: Any) -> None:
    case = make(n=9)
    index = build(case)
    expected = self_influence(case.model, case.objective, case.train, index.curvature, damping, progress=False)
    assert_close(index.self_influence(damping=damping), expected, 1e-12)
    other = kfac(case.model, case.objective, case.train, progress=False)
    expected = self_influence(case.model, case.objective, case.train, other, damping, progress=False)
    assert_close(index.self_influence(other, damping), expected, 1e-12)


def test_prepared_queries_are_used_again_and_again_without_the_model() -> None:
    case = make(n=9)
    index = build(case)
    prepared = index.prepare(case.model, case.objective, batches(case.query_x, case.query_y, 1), "margin")
    calls = []
    case.model.register_forward_hook(lambda *_: calls.append(1))
    found = [index.scores(prepared, damping=number) for number in (0.1, 1.0)]
    again = index.scores(prepared, damping=0.1)
    assert not calls
    assert torch.equal(again, found[0])
    assert not torch.equal(found[0], found[1])


def test_nbytes_counts_what_is_held() -> None:
    index = build(make(n=9))
    assert index.nbytes == 9 * (4 + 4 + 5 + 3) * 8


def test_building_and_asking_leave_the_model_as_it_was() -> None:
    case = zoo("residual")
    curvature = ekfac(case.model, case.objective, case.train, layers=case.layers, progress=False)
    before = snapshot(case.model)
    build(case, curvature).influence(case.model, case.objective, case.queries)
    assert snapshot(case.model) == before


# --- layers applied at several positions ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("animal", ZOO)
def test_scores_are_those_of_influence_however_the_layers_are_used(animal: str) -> None:
    case = zoo(animal)
    fits = [f(case.model, case.objective, case.train, layers=case.layers, progress=False) for f in (ekfac, identity)]
    index = build(case, fits[0])
    prepared = index.prepare(case.model, case.objective, case.queries)
    for curvature in fits:
        for options in ({}, {"keep": ("layer",)}):
            assert_close(
                index.scores(prepared, curvature, 0.3, **options), scored(case, curvature, 0.3, **options), 1e-12
            )
        expected = self_influence(case.model, case.objective, case.train, curvature, 0.3, progress=False)
        assert_close(index.self_influence(curvature, 0.3), expected, 1e-12)
    some = index.scores(prepared, damping=0.3, examples=[4, 1])
    assert_close(some, scored(case, fits[0], 0.3)[:, [4, 1]], 1e-12)
    assert index.nbytes == TrainIndex.bytes_needed(case.model, case.train, fits[0])


@pytest.mark.parametrize("animal", ["tokens", "transformer layer", "residual"])
def test_norms_are_of_the_whole_gradients(animal: str) -> None:
    case = zoo(animal)
    curvature = ekfac(case.model, case.objective, case.train, layers=case.layers, progress=False)
    gradients = case.problem.gradients()
    index = build(case, curvature)
    assert_close(index.norms(), gradients.norm(dim=1), 1e-12)
    span = case.problem.spans[case.layers[1]]
    assert_close(index.norms(case.layers[1]), gradients[:, span].norm(dim=1), 1e-12)


def test_half_the_memory_rounds_to_three_digits() -> None:
    case = zoo("tokens")
    curvature = ekfac(case.model, case.objective, case.train, progress=False)
    whole = build(case, curvature)
    half = TrainIndex.build(case.model, case.objective, case.train, curvature, dtype=torch.bfloat16, progress=False)
    assert half.nbytes * 4 == whole.nbytes  # float64 here
    assert half.nbytes == TrainIndex.bytes_needed(case.model, case.train, curvature, torch.bfloat16)
    prepared = half.prepare(case.model, case.objective, case.queries)
    error = difference(half.scores(prepared), scored(case, curvature))
    assert 1e-5 < error < 1e-2
    assert difference(half.self_influence(), whole.self_influence()) < 1e-2


@pytest.mark.parametrize("animal", ["tokens", "residual"])
def test_gradients_that_do_not_fit_the_dtype_are_refused(animal: str) -> None:
    case = zoo(animal)
    curvature = ekfac(case.model, case.objective, case.train, layers=case.layers, progress=False)

    def build_in(dtype: torch.dtype, scale: float) -> TrainIndex:
        objective = type(case.objective)()
        objective.loss = lambda outputs, targets: scale * case.objective.loss(outputs, targets)
        return TrainIndex.build(case.model, objective, case.train, curvature, dtype=dtype, progress=False)

    assert bool(torch.isfinite(build_in(torch.float16, 1.0).norms()).all())
    with pytest.raises(FloatingPointError, match=r"gradients, kept as torch.float16, of batch 0 hold NaN or infinity"):
        build_in(torch.float16, 1e7)
    assert bool(torch.isfinite(build_in(torch.bfloat16, 1e7).norms()).all())


def test_pairs_that_overflow_once_they_are_matrices_are_refused() -> None:
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    alone = (torch.full((1, 1, 1), 300.0), torch.full((1, 1, 1), 300.0))  # one position, a · g = 90,000
    longer = (torch.ones(1, 2, 1), torch.ones(1, 2, 1))
    curvature = identity(model, SquaredError(), progress=False)
    half: dict[str, Any] = {"dtype": torch.float16, "progress": False}
    assert len(TrainIndex.build(model, SquaredError(), [alone], curvature, **half)) == 1
    with pytest.raises(FloatingPointError, match=r"gradients, kept as torch.float16, of batch 1 hold NaN or infinity"):
        TrainIndex.build(model, SquaredError(), [alone, longer], curvature, **half)


# --- what is refused ------------------------------------------------------------------------------------------------------------


def test_a_curvature_without_an_eigenbasis_is_refused() -> None:
    case = make()
    with pytest.raises(TypeError, match=r"needs an eigenbasis; Dense has none. Use ekfac or kfac"):
        build(case, gauss_newton(case.model, case.objective, case.train, progress=False))


@pytest.mark.parametrize("fit", [ekfac, kfac, diagonal])
def test_a_curvature_in_another_basis_is_refused(fit: Any) -> None:
    case = make(n=9)
    index = build(case)
    prepared = index.prepare(case.model, case.objective, case.queries)
    other = fit(case.model, case.objective, batches(case.x[:5], case.y[:5], 3), progress=False)
    with pytest.raises(ValueError, match=r"has another eigenbasis than this index; expected one fitted with the same"):
        index.scores(prepared, other)
    with pytest.raises(ValueError, match=r"another eigenbasis"):
        index.self_influence(other)


def test_unknown_layers_are_refused() -> None:
    case, deeper = make(n=9), make(widths=(3, 4, 4, 3), n=9)
    index = build(case)
    prepared = index.prepare(case.model, case.objective, case.queries)
    with pytest.raises(ValueError, match=r"'fc9' is not a layer of this curvature; expected one of fc0, fc1"):
        index.scores(prepared, layers=["fc9"])
    other = ekfac(deeper.model, deeper.objective, deeper.train, progress=False)
    with pytest.raises(
        ValueError, match=r"layer 'fc2' is not in this index, which has \['fc0', 'fc1'\]; build it anew"
    ):
        index.scores(prepared, other)


def test_data_that_changes_its_order_is_refused_on_both_sides() -> None:
    case = make(n=20)
    dataset = torch.utils.data.TensorDataset(case.x, case.y)
    shuffled = torch.utils.data.DataLoader(dataset, batch_size=4, shuffle=True)
    index = build(case)
    with pytest.raises(ValueError, match=r"train does not keep its order"):
        TrainIndex.build(case.model, case.objective, shuffled, index.curvature)
    with pytest.raises(ValueError, match=r"queries does not keep its order"):
        index.prepare(case.model, case.objective, shuffled)


def test_an_index_in_float16_says_where_it_loses_order_and_bfloat16_does_not(recwarn: pytest.WarningsRecorder) -> None:
    """Gradients of 1e-7: float16 keeps a digit of them, bfloat16 all of its own."""
    case = zoo("tokens", n=6)
    with torch.no_grad():
        case.model.down.weight.mul_(1e-6)  # so that what reaches "up" is small
    fit = ekfac(case.model, case.objective, case.train, layers="up", progress=False)
    damping = {"up": 0.1 * float(fit.eigenvalues["up"].mean())}
    exact = influence(case.model, case.objective, case.train, case.queries, fit, damping, progress=False)
    found = {}
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        recwarn.clear()
        index = TrainIndex.build(case.model, case.objective, case.train, fit, dtype=dtype, progress=False)
        found[dtype] = [str(w.message) for w in recwarn if "loses more than" in str(w.message)]
        scores = index.influence(case.model, case.objective, case.queries, damping=damping)
        assert (float((scores - exact).norm() / exact.norm()) > 0.02) == bool(found[dtype])
    assert len(found[torch.float16]) == 1 and "Use dtype=torch.bfloat16" in found[torch.float16][0]
    assert not found[torch.bfloat16] and not found[torch.float32]
