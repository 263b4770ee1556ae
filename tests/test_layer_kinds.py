"""Normalisations, embeddings, attention in one call and transposed convolutions, from capture to scores.

The oracle differentiates the whole model by ``torch.func``, one parameter's entry after another; nothing of how a kind
is read takes part in it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from kinds import KINDS, Attends, kinds, shaken
from networks import Case, snapshot
from oracle import assert_close
from torch import Tensor, nn

import inflib
from inflib import (
    Kronecker,
    TrainIndex,
    capture,
    coverage,
    ekfac,
    everything,
    gauss_newton,
    identity,
    influence,
    kfac,
    load,
    load_index,
    refine,
    register,
    self_influence,
)
from inflib.selection import select

pytestmark = [pytest.mark.usefixtures("float64"), pytest.mark.filterwarnings("ignore::inflib.CoverageNote")]
QUIET: dict[str, Any] = {"progress": False}
SOME = [  # one of each kind, for what does not look at how they are read
    "LayerNorm, tokens", "BatchNorm of images", "GroupNorm, transposed in groups", "embeddings, padding_idx",
    "tied embeddings with a bias", "plain parameters", "attention, across",
]  # fmt: skip


def rows(case: Case) -> Tensor:
    return case.problem.gradients()


@pytest.mark.parametrize("animal", KINDS)
def test_captured_gradients_are_those_of_each_example_alone(animal: str) -> None:
    case = kinds(animal)
    before = snapshot(case.model)
    found = capture(case.model, case.objective, case.x, case.y, layers=everything(case.layers))
    truth = case.problem.stacks(rows(case))
    assert set(found) == set(case.layers)
    for name, pair in found.items():
        assert_close(pair.matrices(), truth[name], 1e-12)
    assert snapshot(case.model) == before


def test_attention_to_other_widths_has_its_biases_as_layers_of_their_own() -> None:
    """But not the keys': it moves all scores of a query alike, the softmax does not see it, its gradient is rounding."""
    case = kinds("attention, keys and values of other widths")
    case.model = shaken(Attends(widths=(3, 2)))
    case.layers = ["attention.q", "attention.q.bias", "attention.k", "attention.v", "attention.v.bias"]
    found = capture(case.model, case.objective, case.x, case.y, layers="all")
    assert list(found) == list(capture(case.model, case.objective, case.x, case.y))
    assert coverage(case.model).numbers["uncovered"] == 4  # the keys' biases
    for name, expected in case.problem.stacks(rows(case)).items():
        assert_close(found[name].matrices(), expected, 1e-12)


@pytest.mark.parametrize("how", [{"add_zero_attn": True}, {"add_bias_kv": True}])
def test_the_keys_biases_count_where_a_key_without_them_stands_beside(how: dict[str, bool]) -> None:
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(4, 2, kdim=3, vdim=2, batch_first=True, dtype=torch.float64, **how)
    q, k, v = (torch.randn(5, 6, width, dtype=torch.float64) for width in (4, 3, 2))
    assert "k.bias" in select(attention)
    (grad,) = torch.autograd.grad(attention(q, k, v)[0].square().sum(), attention.in_proj_bias)
    assert float(grad.chunk(3)[1].abs().max()) > 1e-3


class Sums(nn.Module):
    """A matrix applied by einsum, as all that the module does or on the way to something else."""

    def __init__(self, on_the_way: bool) -> None:
        super().__init__()
        self.W, self.on_the_way = nn.Parameter(torch.randn(3, 4, dtype=torch.float64)), on_the_way

    def forward(self, x: Tensor) -> Tensor:
        h = torch.einsum("bti,io->bto", x, self.W)
        return torch.tanh(h) if self.on_the_way else h


def test_an_einsum_is_read_where_it_is_the_module_and_refused_by_name_where_it_is_not() -> None:
    whole, within = type("Whole", (Sums,), {}), type("Within", (Sums,), {})
    register(whole, weight="W", bias=None, transposed=True)
    register(within, weight="W", bias=None, transposed=True, part="W", inside=True)
    x, y = torch.randn(5, 2, 3), torch.tensor([0, 1, 2, 3, 0])
    for made, on_the_way in ((whole, False), (within, True)):
        model = nn.Sequential(made(on_the_way), nn.Flatten(), nn.Linear(8, 4)).double().eval()
        if on_the_way:
            with pytest.raises(ValueError, match=r"'0\.W' took no part .*einsum.*Write the product as x @ W"):
                capture(model, inflib.CrossEntropy(), x, y)
            continue
        found = capture(model, inflib.CrossEntropy(), x, y)["0"].matrices()
        for n in range(5):
            loss = nn.functional.cross_entropy(model(x[n : n + 1]), y[n : n + 1])
            assert_close(found[n].T, torch.autograd.grad(loss, model[0].W)[0], 1e-12)


@pytest.mark.parametrize("animal", KINDS)
def test_everything_covers_every_number_of_these_models(animal: str) -> None:
    case = kinds(animal)
    found = coverage(case.model, "all")
    assert found.numbers["uncovered"] == 0
    assert {row[0] for row in found.rows} == set(case.layers)
    assert coverage(case.model, everything()).rows == found.rows


@pytest.mark.parametrize("animal", SOME)
def test_the_exact_curvature_and_its_scores_are_those_of_the_dense_matrix(animal: str) -> None:
    case = kinds(animal)
    problem, objective = case.problem, case.objective
    order = list(coverage(case.model, "all").rows)
    case.layers = [row[0] for row in order]
    problem = case.problem
    G = problem.gauss_newton()
    exact = gauss_newton(case.model, objective, case.train, layers="all", **QUIET)
    assert_close(exact.to_dense(), G, 1e-10)
    numbers = problem.relative(G)
    truth = problem.influence(G, numbers, case.query_x, case.query_y)
    scores = influence(case.model, objective, case.train, case.queries, exact, numbers, **QUIET)
    assert_close(scores, truth, 1e-9)


@pytest.mark.parametrize("animal", KINDS)
def test_ekfac_is_the_fishers_diagonal_in_its_basis_and_every_path_scores_with_it(animal: str, tmp_path: Path) -> None:
    case = kinds(animal)
    model, objective, train = case.model, case.objective, case.train
    case.layers = [row[0] for row in coverage(model, "all").rows]
    problem = case.problem
    fit = ekfac(model, objective, train, layers="all", **QUIET)
    F = problem.expected_fisher(case.name)
    dense, blocks = fit.to_dense(), []
    for name, (o, i) in fit.shapes.items():
        span = problem.spans[name]
        Q_S, Q_A = fit.Q_S.get(name, torch.eye(o)), fit.Q_A.get(name, torch.eye(i))
        U = torch.einsum("op,ij->oipj", Q_S, Q_A).reshape(o * i, o * i)
        Λ = (U.T @ F[span, span] @ U).diagonal()
        assert_close(fit.eigenvalues[name].flatten(), Λ, 1e-10)
        blocks.append(U @ torch.diag(Λ) @ U.T)
    assert_close(dense, torch.block_diag(*blocks), 1e-10)
    numbers = inflib.damping_of(fit)
    truth = problem.influence(dense, numbers, case.query_x, case.query_y)
    assert_close(influence(model, objective, train, case.queries, fit, **QUIET), truth, 1e-9)
    own = torch.einsum("nd,nd->n", rows(case), torch.linalg.solve(dense + problem.damping(numbers), rows(case).T).T)
    assert_close(self_influence(model, objective, train, fit, **QUIET), own, 1e-9)
    index = TrainIndex.build(model, objective, train, fit, **QUIET)
    assert_close(index.influence(model, objective, case.queries), truth, 1e-9)
    assert_close(index.self_influence(), own, 1e-9)
    assert index.nbytes == TrainIndex.bytes_needed(model, train, fit)
    for value, read in ((fit, load), (index, load_index)):
        inflib.save(value, tmp_path / "file")
        again = read(tmp_path / "file", model)
        again = again if isinstance(again, Kronecker) else again.curvature
        assert_close(again.to_dense(), dense, 1e-15)


@pytest.mark.parametrize("animal", SOME)
def test_a_store_on_disk_answers_as_influence_does_and_its_search_is_exact(animal: str, tmp_path: Path) -> None:
    case = kinds(animal)
    model, objective = case.model, case.objective
    fit = ekfac(model, objective, case.train, layers="all", **QUIET)
    exact = influence(model, objective, case.train, case.queries, fit, **QUIET)
    options: dict[str, Any] = {"axes": 1.0, "bits": 16, "shard": 4} | QUIET
    store = TrainIndex.build(model, objective, case.train, fit, path=tmp_path / "store", **options)
    assert_close(store.influence(model, objective, case.queries), exact, 1e-3)
    found = load_index(tmp_path / "store", model).search(model, objective, case.queries, case.train, k=2, candidates=6)
    assert_close(found.scores, exact.topk(2).values, 1e-12)


@pytest.mark.parametrize("animal", [name for name in KINDS if "Norm" in name])
@pytest.mark.parametrize("fit", [ekfac, kfac])
def test_a_normalisations_block_is_exact(animal: str, fit: Any) -> None:
    """Tokens and pixels together: nothing is left of what the Kronecker structure costs."""
    case = kinds(animal)
    found = fit(case.model, case.objective, case.train, layers=["norm"], **QUIET)
    exact = gauss_newton(case.model, case.objective, case.train, layers=["norm"], **QUIET)
    assert found.shapes == exact.shapes and found.shapes["norm"][1] == 1
    assert_close(found.to_dense(), exact.to_dense(), 1e-10)


@pytest.mark.parametrize("animal", SOME)
def test_other_curvatures_are_what_they_say(animal: str) -> None:
    case = kinds(animal)
    model, objective, train = case.model, case.objective, case.train
    case.layers = [row[0] for row in coverage(model, "all").rows]
    problem = case.problem
    plain = identity(model, objective, train, layers="all", **QUIET)
    assert_close(self_influence(model, objective, train, plain, **QUIET), rows(case).square().sum(1), 1e-12)
    F = problem.expected_fisher(case.name)
    diagonal = inflib.diagonal(model, objective, train, layers="all", **QUIET)
    assert_close(diagonal.to_dense(), torch.diag(F.diagonal()), 1e-10)
    fit = ekfac(model, objective, train, layers="all", **QUIET)
    refined = refine(fit, model, objective, train, tolerance=1e-12, **QUIET)
    assert_close(refined.to_dense(), problem.gauss_newton(), 1e-10)
    if "tied" not in animal:
        assert kfac(model, objective, train, layers="all", **QUIET).layers == fit.layers


def test_kfac_refuses_a_weight_that_is_multiplied_by_and_looked_up() -> None:
    case = kinds("tied embeddings")
    with pytest.raises(ValueError, match=r"layer 'token' is an embedding and an unembedding.*Use ekfac"):
        kfac(case.model, case.objective, case.train, layers="all", **QUIET)


@pytest.mark.parametrize("animal", ["LayerNorm, tokens", "embeddings", "attention"])
def test_scores_split_by_layer_and_token_add_up(animal: str) -> None:
    case = kinds(animal)
    fit = ekfac(case.model, case.objective, case.train, layers="all", **QUIET)
    fit = fit.restrict([name for name in fit.layers if name not in ("head",)])
    options = {"damping": None, **QUIET}
    total = influence(case.model, case.objective, case.train, case.queries, fit, **options)
    split = influence(case.model, case.objective, case.train, case.queries, fit, keep=("layer", "token"), **options)
    assert split.shape == (*total.shape, len(fit.layers), 5)
    assert_close(split.sum((2, 3)), total, 1e-12)


@pytest.mark.parametrize("padding", [0, -7, None])
@pytest.mark.parametrize("tied", [True, False])
def test_a_padding_row_is_looked_up_without_a_gradient_in_every_product(tied: bool, padding: int | None) -> None:
    """Tied, the row counts as the unembedding's; forward mode would count its lookups too."""
    torch.manual_seed(0)
    model = Padded(tied, padding).eval()
    ids = torch.tensor([[1, 2, 3, 4], [5, 0, 6, 2], [2, 3, 0, 1]])
    y = torch.tensor([[2, 3, 4, 5], [1, 6, 2, 1], [3, 4, 1, 2]])
    train, objective = [({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, y)], inflib.NextToken()
    C = ekfac(model, objective, train, "all", labels="observed", **QUIET)
    refined = refine(C, model, objective, train, **QUIET)
    v = {name: torch.randn(1, *shape) for name, shape in C.shapes.items()}
    exact = gauss_newton(model, objective, train, "all", **QUIET).matvec(v)  # by one output's gradient after another
    for name, product in refined.matvec(v).items():
        assert_close(product, exact[name], 1e-10)


class Padded(torch.nn.Module):
    """Tokens, a layer, sums over what came before, and an unembedding that may be the embedding's own weight."""

    def __init__(self, tied: bool, padding: int | None) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(7, 4, padding_idx=padding)
        self.mid = torch.nn.Linear(4, 4)
        self.out = torch.nn.Linear(4, 7, bias=False)
        torch.nn.init.normal_(self.embed.weight)
        if tied:
            self.out.weight = self.embed.weight

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return self.out(torch.tanh(self.mid(self.embed(input_ids))).cumsum(1))
