"""Convolutions, also strided, padded, dilated and in groups, are layers as exact as linear ones."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from networks import Case, Convolutions, Images, drawn, images, snapshot, zoo
from oracle import assert_close
from test_curvature import drawn_damping, fitted
from test_ekfac import rotated_diagonal
from torch import Tensor, nn

from inflib import CrossEntropy, capture, coverage, ekfac, gauss_newton, influence, load, save, self_influence
from inflib.layers.convolutions import patches, positions
from inflib.selection import select

pytestmark = [
    pytest.mark.usefixtures("float64"),
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel"),
]


# --- right, from patches to scores ----------------------------------------------------------------------------------------


@given(images())
@drawn(60)
def test_a_convolution_is_its_matrix_times_the_patches(case: Case) -> None:
    see = case.model.see.requires_grad_(False)
    a, groups = patches(see, case.x), see.groups
    matrices = see.weight.reshape(groups, 4 // groups, -1)
    parts = [a[..., k * len(W[0]) : (k + 1) * len(W[0])] @ W.T for k, W in enumerate(matrices)]
    bias = 0 if see.bias is None else see.bias
    assert_close(torch.cat(parts, dim=-1) + bias, positions(see, see(case.x)), 1e-13)


@given(images())
@drawn(60)
def test_captured_gradients_are_those_of_vmap_grad(case: Case) -> None:
    found = capture(case.model, case.objective, case.x, case.y)
    assert list(found) == case.layers
    assert_close(case.problem.flat({n: p.matrices() for n, p in found.items()}), case.problem.gradients(), 1e-12)


@given(images(), st.sampled_from(["EK-FAC", "K-FAC", "diagonal"]), st.integers(0, 1000))
@drawn(25)
def test_drawn_convolutions_are_right_from_curvature_to_scores(case: Case, which: str, seed: int) -> None:
    G, numbers = case.problem.gauss_newton(), drawn_damping(case, seed)
    exact = gauss_newton(case.model, case.objective, case.train, progress=False)
    assert_close(exact.to_dense(), G, 1e-11)
    blocks = gauss_newton(case.model, case.objective, case.train, blocks=True, progress=False)
    assert_close(blocks.to_dense(), case.problem.block_diagonal(G), 1e-11)
    C = fitted(case, which)
    if which == "EK-FAC":
        for name, span in case.problem.spans.items():
            expected = rotated_diagonal(G[span, span], C.Q_S[name], C.Q_A[name])
            assert_close(C.eigenvalues[name], expected, 1e-11)
    for curvature, dense in ((exact, G), (C, C.to_dense())):
        v = torch.randn(2, len(case.problem.places), generator=torch.Generator().manual_seed(seed))
        damped = dense + case.problem.damping(numbers)
        if float(torch.linalg.cond(damped)) > 1e5:
            continue
        solved = case.problem.flat(curvature.solve(case.problem.stacks(v), numbers))
        assert_close(solved, torch.linalg.solve(damped, v.T).T, 1e-10)
        scores = influence(case.model, case.objective, case.train, case.queries, curvature, numbers, progress=False)
        assert_close(scores, case.problem.influence(dense, numbers, *case.queries[0]), 1e-10)
        own = self_influence(case.model, case.objective, case.train, curvature, numbers, progress=False)
        assert_close(own, case.problem.influence(dense, numbers, case.x, case.y).diagonal(), 1e-10)


def test_patches_are_read_channel_by_channel_row_by_row() -> None:
    conv = nn.Conv2d(2, 1, 2, stride=2)
    x = torch.arange(2 * 4 * 4.0).reshape(1, 2, 4, 4)
    found = patches(conv, x)
    assert found.shape == (1, 4, 8)
    assert found[0, 0].tolist() == [0, 1, 4, 5, 16, 17, 20, 21]
    assert found[0, 1].tolist() == [2, 3, 6, 7, 18, 19, 22, 23]
    assert found[0, 2].tolist() == [8, 9, 12, 13, 24, 25, 28, 29]


def test_batch_normalisation_in_eval_mode_is_a_fixed_map_and_in_train_mode_is_refused() -> None:
    case = zoo("convolutions, tied, called twice")
    found = capture(case.model, case.objective, case.x, case.y)
    assert_close(case.problem.flat({n: p.matrices() for n, p in found.items()}), case.problem.gradients(), 1e-12)
    C = gauss_newton(case.model, case.objective, case.train, case.layers, progress=False)
    scores = influence(case.model, case.objective, case.train, case.queries, C, 0.3, progress=False)
    assert_close(scores, case.problem.influence(case.problem.gauss_newton(), 0.3, *case.queries[0]), 1e-10)
    case.model.train()
    before = snapshot(case.model)
    for call in (
        lambda: ekfac(case.model, case.objective, case.train, case.layers, progress=False),
        lambda: influence(case.model, case.objective, case.train, case.queries, C, 0.3, progress=False),
    ):
        with pytest.raises(RuntimeError, match=r"module 'norm' \(BatchNorm2d\) is in train mode.*model.eval\(\)"):
            call()
    assert snapshot(case.model) == before


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
def test_the_same_padding_round_an_even_kernel_has_its_odd_cell_behind(mode: str) -> None:
    conv = nn.Conv2d(1, 2, (2, 4), padding="same", padding_mode=mode)
    x = torch.randn(3, 1, 4, 5)
    assert_close(patches(conv, x) @ conv.weight.flatten(1).T + conv.bias, positions(conv, conv(x)).detach(), 1e-13)


def test_the_padding_in_use_counts_also_where_it_was_changed_after_the_module_was_made() -> None:
    conv = nn.Conv2d(1, 2, 3)
    conv.padding = (2, 1)
    x = torch.randn(3, 1, 4, 4)
    assert_close(patches(conv, x) @ conv.weight.flatten(1).T + conv.bias, positions(conv, conv(x)).detach(), 1e-13)


# --- groups ----------------------------------------------------------------------------------------------------------------

GROUPS = ["see.group0", "see.group1"]


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        (None, [*GROUPS, "out"]),
        ("*", [*GROUPS, "out"]),
        ("see", GROUPS),
        ("see*", GROUPS),
        ("see.*", GROUPS),
        ("*.group1", ["see.group1"]),
        (["out", "see.group1"], ["see.group1", "out"]),
        (["see.group1", "see"], GROUPS),
        (lambda name, module: name == "see", GROUPS),
        (lambda name, module: isinstance(module, nn.Linear), ["out"]),
    ],
)
def test_groups_are_chosen_by_their_modules_name_or_by_their_own(layers: Any, expected: list[str]) -> None:
    assert list(select(Images(groups=2), layers)) == expected


def test_a_predicate_is_asked_once_about_a_module_with_groups() -> None:
    seen = []
    select(Images(groups=2), lambda name, module: seen.append(name) or name == "out")
    assert seen == ["see", "out"]


def test_a_group_that_is_not_there_is_refused() -> None:
    for layers in ("see.group2", "out.group0"):
        with pytest.raises(ValueError, match=rf"layers='{layers}' matches no layer.*'see', 'out'"):
            select(Images(groups=2), layers)


def test_groups_of_a_bare_convolution_and_of_a_depthwise_one() -> None:
    assert list(select(nn.Conv2d(2, 2, 3, groups=2), "")) == ["group0", "group1"]
    depthwise = select(nn.Sequential(nn.Conv2d(12, 24, 3, groups=12)))
    assert list(depthwise) == [f"0.group{k}" for k in range(12)]
    assert {layer.shape for layer in depthwise.values()} == {(2, 10)}


def test_every_group_counts_its_part_of_the_weight() -> None:
    model = Images(groups=2)
    table = coverage(model)
    assert table.rows == (("see.group0", "Conv2d", 2, 10), ("see.group1", "Conv2d", 2, 10), ("out", "Linear", 3, 5))
    assert table.left_out == ()
    some = coverage(model, ["see.group0", "out"])
    assert some.left_out == (("see.weight", "Conv2d", 18), ("see.bias", "Conv2d", 2))
    assert repr(some).endswith("35 of 55 numbers covered, 20 uncovered")


@pytest.mark.parametrize("animal", ["convolution in groups", "convolutions, tied, called twice", "convolution"])
def test_a_matrix_joined_and_split_again_is_the_layers_parameters(animal: str) -> None:
    case = zoo(animal)
    parameters = {n: p.detach() for n, p in case.model.named_parameters()}
    found = {n: torch.full_like(p, float("nan")) for n, p in parameters.items()}
    for layer in select(case.model, case.layers).values():
        matrix = layer.join(parameters)
        assert matrix.shape == layer.shape
        found |= layer.split(matrix, found)
        stack = {n: torch.stack([p, 2 * p, 3 * p]) for n, p in parameters.items()}
        assert torch.equal(layer.join(stack), torch.stack([matrix, 2 * matrix, 3 * matrix]))
    assert all(torch.equal(found[n], p) for n, p in parameters.items() if "norm" not in n)


def test_some_of_the_groups_give_their_blocks_and_scores() -> None:
    case = zoo("convolution in groups")
    some = ["see.group1", "out"]
    at = torch.cat([torch.arange(case.problem.spans[n].start, case.problem.spans[n].stop) for n in some])
    G = case.problem.gauss_newton()[at][:, at]
    C = gauss_newton(case.model, case.objective, case.train, some, progress=False)
    assert_close(C.to_dense(), G, 1e-12)
    query, train = (case.problem.gradients(*c)[:, at] for c in ((case.query_y, None, case.query_x), ()))
    expected = query @ torch.linalg.solve(G + 0.1 * torch.eye(len(at)), train.T)
    assert_close(
        influence(case.model, case.objective, case.train, case.queries, C, 0.1, progress=False), expected, 1e-10
    )
    whole = ekfac(case.model, case.objective, case.train, progress=False)
    part = ekfac(case.model, case.objective, case.train, some, progress=False)
    assert part.layers == tuple(some)
    assert_close(whole.restrict(some).to_dense(), part.to_dense(), 1e-13)


@pytest.mark.parametrize("animal", ["convolution", "convolution in groups", "convolutions, tied, called twice"])
def test_a_curvature_of_convolutions_comes_back_from_its_file(animal: str, tmp_path: Path) -> None:
    case = zoo(animal)
    before = ekfac(case.model, case.objective, case.train, case.layers, progress=False)
    save(before, tmp_path / "f")
    after = load(tmp_path / "f", case.model)
    assert after.layers == tuple(case.layers)
    assert after.facts == before.facts
    assert_close(after.to_dense(), before.to_dense(), 1e-14)


def test_naming_a_group_of_one_user_of_a_weight_means_that_group_of_all_users() -> None:
    for layers in ("mix.group1", "again.group1"):
        found = select(Convolutions(), layers)
        assert list(found) == ["mix.group1"]
        assert len(found["mix.group1"].modules) == 2


def test_convolutions_that_share_a_weight_but_not_its_groups_are_refused() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(1, 2, 3), nn.Conv2d(2, 2, 3, groups=2)
            self.two.weight, self.two.bias = self.one.weight, self.one.bias

    with pytest.raises(ValueError, match=r"layers one, two share a weight but not their bias, type or groups.*untied"):
        select(Shared())


# --- what is refused --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("conv", "came", "expected"),
    [
        (nn.Conv1d(2, 3, 2), (2, 4), "(B, channels, length)"),
        (nn.Conv2d(2, 3, 2), (2, 4, 4), "(B, channels, height, width)"),
        (nn.Conv3d(2, 3, 2), (2, 4, 4, 4), "(B, channels, depth, height, width)"),
    ],
)
def test_an_image_without_a_batch_axis_is_refused(conv: nn.Module, came: tuple[int, ...], expected: str) -> None:
    with pytest.raises(
        ValueError, match=re.escape(f"given an input of shape {came}; expected {expected}. Give batches")
    ):
        capture(conv.double(), CrossEntropy(), torch.randn(came), torch.tensor([0, 1, 2]))


def test_a_kernel_used_outside_its_module_is_caught() -> None:
    class Second(Images):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * self.see.weight.sum()

    case = zoo("convolution in groups")
    with pytest.raises(ValueError, match=r"layer 'see.group0'.*differs from autograd's.*used outside its module"):
        ekfac(Second(groups=2, padding="same"), case.objective, case.train, progress=False)


def test_a_fit_leaves_a_network_of_convolutions_byte_for_byte_as_it_was() -> None:
    case = zoo("convolutions, tied, called twice")
    before = snapshot(case.model)
    C = ekfac(case.model, case.objective, case.train, case.layers, progress=False)
    influence(case.model, case.objective, case.train, case.queries, C, progress=False)
    gauss_newton(case.model, case.objective, case.train, case.layers, progress=False)
    assert snapshot(case.model) == before
