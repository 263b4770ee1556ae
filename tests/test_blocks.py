"""Wide layers in blocks: the answers of A and S with everything between blocks set to zero, and nothing else changed."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import Case, batches, make, zoo
from oracle import LOSSES, assert_close, block_diag, kron, perceptron_moments
from test_checkpoint import Died, dying_after
from test_ekfac import rotated_diagonal
from torch import Tensor, nn

import inflib.checkpoint
import inflib.memory
from inflib import (
    CrossEntropy,
    Kronecker,
    TrainIndex,
    at_most,
    ekfac,
    gauss_newton,
    influence,
    kfac,
    load,
    refine,
    relative,
    save,
    self_influence,
)
from inflib.blocks import BlockDiagonal, cut, numbers, whole
from inflib.files import read_safetensors, seal, write_safetensors
from inflib.kfac import second_moments
from inflib.memory import check_factors
from inflib.selection import select

pytestmark = pytest.mark.usefixtures("float64")
DAMPING = {"fc0": 0.004, "fc1": 0.6, "fc2": 0.05}


@pytest.fixture
def case() -> Case:
    """Three layers of unequal shapes, more examples than inputs, so that no eigenvalue is repeated."""
    return make(widths=(3, 4, 5, 3), n=16)


def runs(side: int, blocks: Any) -> list[range]:
    """Where each block of a side lies: ``blocks`` of them, or so many that none is longer than the size asked for."""
    count = min(blocks, side) if isinstance(blocks, int) else -(-side // blocks.size)
    ends = [side * k // count for k in range(count + 1)]
    return [range(a, b) for a, b in pairwise(ends)]


def masked(matrix: Tensor, blocks: Any) -> Tensor:
    """The matrix with everything between blocks set to zero."""
    return block_diag(*(matrix[r.start : r.stop, r.start : r.stop] for r in runs(len(matrix), blocks)))


def moments(case: Case, blocks: Any) -> list[tuple[Tensor, Tensor]]:
    linears = [m for m in case.model if isinstance(m, nn.Linear)]
    weights, biases = [m.weight.detach() for m in linears], [m.bias.detach() for m in linears]
    found = perceptron_moments(weights, biases, torch.tanh, LOSSES[case.name], case.x, case.y)
    return [(masked(A, blocks), masked(S, blocks)) for A, S in found]


def dense(case: Case, method: str, blocks: Any) -> Tensor:
    """S ⊗ A, or U diag(Uᵀ F U) Uᵀ with U its eigenvectors, from factors that were masked: (D, D)."""
    F, found = case.problem.expected_fisher(case.name), []
    for span, (A, S) in zip(case.problem.spans.values(), moments(case, blocks), strict=True):
        if method == "kfac":
            found.append(kron(S, A))
            continue
        parts = [[M[r.start : r.stop, r.start : r.stop] for r in runs(len(M), blocks)] for M in (S, A)]
        Q_S, Q_A = (block_diag(*(torch.linalg.eigh(part).eigenvectors for part in side)) for side in parts)
        U = kron(Q_S, Q_A)
        found.append(U @ torch.diag((U.T @ F[span, span] @ U).diagonal()) @ U.T)
    return block_diag(*found)


def fitted(method: str, case: Case, blocks: Any, **options: Any) -> Kronecker:
    fit = {"kfac": kfac, "ekfac": ekfac}[method]
    return fit(case.model, case.objective, case.train, blocks=blocks, progress=False, **options)


BLOCKS = pytest.mark.parametrize("blocks", [2, 3, at_most(2)], ids=str)


@BLOCKS
@pytest.mark.filterwarnings("ignore::inflib.LowRankNote")
@pytest.mark.parametrize("method", ["kfac", "ekfac"])
def test_curvature_and_scores_are_those_of_the_masked_factors(case: Case, method: str, blocks: Any) -> None:
    C, expected = fitted(method, case, blocks), dense(case, method, blocks)
    assert_close(C.to_dense(), expected, 1e-10)
    problem, (x, y) = case.problem, case.queries[0]
    damped = expected + problem.damping(DAMPING)
    scores = problem.gradients(y, None, x) @ torch.linalg.solve(damped, problem.gradients().T)
    about = case.model, case.objective, case.train
    assert_close(influence(*about, case.queries, C, DAMPING, progress=False), scores, 1e-10)
    G = problem.gradients()
    own = (G * torch.linalg.solve(damped, G.T).T).sum(1)
    assert_close(self_influence(*about, C, DAMPING, progress=False), own, 1e-10)
    rank = influence(*about, case.queries, C, DAMPING, low_rank=6, progress=False)
    assert_close(rank, scores, 1e-6)
    v = {k: torch.randn(2, o, i) for k, (o, i) in C.shapes.items()}
    flat = torch.cat([v[k].flatten(1) for k in C.layers], dim=1)
    assert_close(torch.cat([x.flatten(1) for x in C.matvec(v).values()], dim=1), flat @ expected, 1e-10)
    assert "in blocks (" in repr(C)


def test_no_number_between_blocks_is_held(case: Case) -> None:
    C = fitted("ekfac", case, 2)
    for held in (C.Q_S, C.Q_A):
        for name, Q in held.items():
            sizes = [len(r) for r in runs(C.shapes[name][held is C.Q_A], 2)]
            assert isinstance(Q, BlockDiagonal) and list(Q.sizes) == sizes
            assert Q.flat.numel() == sum(b * b for b in sizes)


@pytest.mark.parametrize("blocks", [1, at_most(1000)], ids=str)
@pytest.mark.parametrize("method", ["kfac", "ekfac"])
def test_one_block_is_the_whole_factor_to_the_last_bit(case: Case, method: str, blocks: Any) -> None:
    one, none = fitted(method, case, blocks), fitted(method, case, None)
    for part in ("eigenvalues", "Q_S", "Q_A"):
        a, b = getattr(one, part), getattr(none, part)
        assert all(torch.equal(a[name], b[name]) for name in b)
    assert (one.facts == none.facts) == (blocks == 1)


@pytest.mark.parametrize("sharing", ["expand", "reduce", "gradients"])
@pytest.mark.parametrize("animal", ["tokens", "convolution in groups", "called twice"])
def test_blocks_cut_the_moments_of_every_kind_and_Λ_is_exact_in_their_basis(animal: str, sharing: str) -> None:
    case = zoo(animal, n=7)
    about = case.model, case.objective, case.train
    C = ekfac(*about, blocks=2, sharing=sharing, progress=False)
    cut_in_two = second_moments(*about, blocks=2, sharing=sharing, progress=False)
    uncut = second_moments(*about, sharing=sharing, progress=False)
    F = case.problem.expected_fisher(case.name)
    for name, span in case.problem.spans.items():
        for one, other in ((cut_in_two.A, uncut.A), (cut_in_two.S, uncut.S)):
            assert_close(whole(one(name)), masked(whole(other(name)), 2), 1e-12)
        Q_S, Q_A = whole(C.Q_S[name]), whole(C.Q_A[name])
        assert_close(C.eigenvalues[name], rotated_diagonal(F[span, span], Q_S, Q_A), 1e-11)
    twice = cut_in_two + cut_in_two
    assert all(torch.equal(numbers(twice.A(name)), numbers(cut_in_two.A(name))) for name in case.problem.spans)


def test_an_embeddings_diagonal_is_not_cut() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(6, 4), nn.Flatten(), nn.Linear(8, 3)).double().eval()
    x, y = torch.randint(6, (9, 2)), torch.randint(3, (9,))
    about: Any = model, CrossEntropy(), batches(x, y, 4)
    C = ekfac(*about, layers="all", blocks=2, progress=False)
    assert "0" not in C.Q_A and isinstance(C.Q_S["0"], BlockDiagonal)
    uncut = ekfac(*about, layers="all", progress=False)
    assert C.eigenvalues["0"].sum().isclose(uncut.eigenvalues["0"].sum())


# --- kept, resumed, asked -------------------------------------------------------------------------------------------------


def test_saved_and_loaded_they_answer_alike(case: Case, tmp_path: Path) -> None:
    C = fitted("ekfac", case, at_most(3))
    save(C, tmp_path / "C")
    again = load(tmp_path / "C", case.model)
    assert again.facts == C.facts and again.facts.blocks == "at most 3"
    about = case.model, case.objective, case.train, case.queries
    assert torch.equal(influence(*about, again, progress=False), influence(*about, C, progress=False))


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ([2, 1], r"has the blocks \[2, 1\] of 'Q_A/fc0'; expected sizes that add up to 4"),
        ([1, 3], "of shape|orthogonal"),
    ],
)
def test_a_file_with_other_blocks_is_refused(case: Case, sizes: list[int], said: str, tmp_path: Path) -> None:
    save(fitted("ekfac", case, 2), tmp_path / "C")
    tensors, metadata = read_safetensors(tmp_path / "C")
    metadata["blocks"] = metadata["blocks"].replace('"Q_A/fc0": [2, 2]', f'"Q_A/fc0": {sizes}')
    write_safetensors(tensors, seal(tensors, metadata), tmp_path / "C")
    with pytest.raises(ValueError, match=said):
        load(tmp_path / "C", case.model)


@pytest.mark.parametrize("labels", ["expected", "sampled"])
def test_a_fit_stopped_at_every_save_ends_with_the_same_bits(
    case: Case, labels: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inflib.checkpoint, "SECONDS", 0.0)
    monkeypatch.setattr(inflib.checkpoint, "SHARE", 0.0)
    case.splits = [5, 9]
    expected, found = fitted("ekfac", case, 2, labels=labels), None
    for _ in range(40):
        with monkeypatch.context() as patch:
            dying_after(0, patch)
            try:
                found = fitted("ekfac", case, 2, labels=labels, checkpoint=tmp_path / "fit")
                break
            except Died:
                continue
    assert found is not None
    for part in ("eigenvalues", "Q_S", "Q_A"):
        a, b = getattr(found, part), getattr(expected, part)
        assert all(torch.equal(numbers(a[name]), numbers(b[name])) for name in b), part
    with pytest.raises(ValueError, match='begun with blocks = "2", this fit has ""'):
        fitted("ekfac", case, None, labels=labels, checkpoint=tmp_path / "fit")


@pytest.mark.parametrize("animal", ["perceptron", "tokens"])
def test_an_index_and_a_store_are_in_the_basis_of_the_blocks(animal: str, tmp_path: Path) -> None:
    case = make(widths=(3, 4, 3), n=9) if animal == "perceptron" else zoo(animal, n=7)
    about = case.model, case.objective, case.train
    C, uncut = fitted("ekfac", case, 2), fitted("ekfac", case, None)
    expected = influence(*about, case.queries, C, relative(0.3), progress=False)
    for folder, tolerance in ((None, 1e-12), (tmp_path / "store", 1e-3)):
        options: Any = {} if folder is None else dict(path=folder, bits=16)
        index = TrainIndex.build(*about, C, progress=False, **options)
        ask = case.model, case.objective, case.queries
        assert_close(index.influence(*ask, damping=relative(0.3)), expected, tolerance)
        other = influence(*about, case.queries, fitted("kfac", case, 2), progress=False)
        assert_close(index.influence(*ask, fitted("kfac", case, 2)), other, tolerance)
        with pytest.raises(ValueError, match="has another eigenbasis than this index"):
            index.influence(*ask, uncut)
    with pytest.raises(ValueError, match=r"holds a store of other curvature: \{'blocks': '2'"):
        TrainIndex.build(*about, uncut, path=tmp_path / "store", bits=16, progress=False)


def test_refined_from_blocks_the_exact_scores_are_reached(case: Case) -> None:
    about = case.model, case.objective, case.train
    exact = influence(*about, case.queries, gauss_newton(*about, progress=False), 0.3, progress=False)
    found = refine(fitted("ekfac", case, 2), *about, steps=60, progress=False)
    assert_close(influence(*about, case.queries, found, 0.3, progress=False), exact, 1e-8)


# --- sizes --------------------------------------------------------------------------------------------------------------


def test_blocks_are_as_equal_as_whole_numbers_allow() -> None:
    assert cut(10, None) == cut(10, 1) == cut(10, at_most(10)) == (10,)
    assert cut(10, 3) == (3, 3, 4)
    assert cut(2, 5) == (1, 1)
    assert cut(10, at_most(4)) == (3, 3, 4)
    for side in range(1, 30):
        for blocks in (1, 2, 7, at_most(1), at_most(4)):
            sizes = cut(side, blocks)
            assert sum(sizes) == side and max(sizes) - min(sizes) <= 1
            assert not isinstance(blocks, type(at_most(1))) or max(sizes) <= blocks.size


@pytest.mark.parametrize("blocks", [0, -1, 1.5, "2", True, at_most(0), at_most(2.5)])
def test_what_is_no_number_of_blocks_is_refused(case: Case, blocks: Any) -> None:
    with pytest.raises(ValueError, match=r"blocks=.*expected None \(whole factors\), a whole number of blocks"):
        fitted("ekfac", case, blocks)


def test_a_layer_too_wide_for_memory_fits_in_blocks_as_the_error_says(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = select(make(widths=(3, 6, 4), n=4).model)  # (6, 4) and (4, 7)
    need = 8 * (2 * (2 * 9 + 2 * 4) + 24) + 8 * (2 * (2 * 4 + 9 + 16) + 28) + 4 * 8 * 16
    monkeypatch.setattr(inflib.memory, "LIMIT", need)
    check_factors(layers, 2)
    with pytest.raises(MemoryError, match=r"use blocks=at_most\(4096\), which cuts wide factors"):
        check_factors(layers)
    monkeypatch.setattr(inflib.memory, "LIMIT", need - 1)
    with pytest.raises(MemoryError):
        check_factors(layers, 2)
