"""A tiny transformer against dense matrices: factors, labels, solves, scores and their splits, padded or not."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from languages import LAYERS, LanguageCase, cut, language, languages
from networks import drawn
from oracle import assert_close
from test_ekfac import rotated_diagonal
from torch import Tensor, nn

from inflib import (
    CrossEntropy,
    NextToken,
    TrainIndex,
    capture,
    ekfac,
    gauss_newton,
    hessian,
    identity,
    influence,
    kfac,
    self_influence,
)
from inflib.kfac import second_moments

pytestmark = [
    pytest.mark.usefixtures("float64"),
    pytest.mark.filterwarnings("ignore::inflib.CoverageNote", "ignore::inflib.IndefiniteWarning"),
]

QUIET: dict[str, Any] = {"progress": False}


def scored(case: LanguageCase, curvature: Any, damping: Any = 0.1, **options: Any) -> Tensor:
    train, queries = options.pop("train", case.train), options.pop("queries", case.asked)
    return influence(case.model, case.objective, train, queries, curvature, damping, **QUIET, **options)


class Recorded(NextToken):
    """Keeps the labels it draws."""

    def __init__(self) -> None:
        super().__init__()
        self.drawn: list[Tensor] = []

    def sample(self, outputs: Tensor, uniforms: Tensor, targets: Any = None) -> Tensor:
        self.drawn.append(super().sample(outputs, uniforms, targets))
        return self.drawn[-1]


def watched(model: nn.Module, inputs: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """Of one unpadded sequence: logits (T, V), each layer's input rows with its 1 (T, i), each layer's output."""
    rows: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}

    def hook(name: str, module: nn.Module, args: Any, output: Tensor) -> None:
        x = args[0][0].detach()
        rows[name] = torch.cat([x, torch.ones(len(x), 1)], 1) if module.bias is not None else x
        outputs[name] = output

    handles = [model.get_submodule(name).register_forward_hook(partial(hook, name)) for name in LAYERS]
    f = model(**inputs)[0]
    for handle in handles:
        handle.remove()
    return f, rows, outputs


# --- capture and factors --------------------------------------------------------------------------------------------------


@given(languages())
@drawn(20)
def test_captured_gradients_are_those_of_each_sequences_summed_loss(case: LanguageCase) -> None:
    problem = case.problem
    found = {k: pair.matrices() for k, pair in capture(case.model, case.objective, problem.x, problem.y).items()}
    assert_close(problem.flat(found), problem.gradients(), 1e-12)


@given(languages())
@drawn(15)
def test_A_is_over_the_positions_that_are_there_and_S_over_the_sequences(case: LanguageCase) -> None:
    """Each sequence on its own, unpadded, its gradients by one (token, class) at a time, as the formula says."""
    found = second_moments(case.model, case.objective, case.train, labels="expected", **QUIET)
    A, S = dict.fromkeys(LAYERS, torch.zeros(())), dict.fromkeys(LAYERS, torch.zeros(()))
    positions = 0
    for sequence, prompt in zip(case.sequences, case.prompts, strict=True):
        ((inputs, _),) = cut([sequence], [0], [1])
        f, rows, outputs = watched(case.model, inputs)
        positions += len(sequence) - 1
        for name in LAYERS:
            A[name] = A[name] + rows[name].T @ rows[name]
        p = f.detach().softmax(-1)
        for t in range(prompt, len(f)):
            for c in range(f.shape[1]):
                seed = p[t, c].sqrt() * (torch.eye(f.shape[1])[c] - p[t])
                gs = torch.autograd.grad(f[t] @ seed, [outputs[n] for n in LAYERS], retain_graph=True)
                for name, g in zip(LAYERS, gs, strict=True):
                    S[name] = S[name] + g[0].T @ g[0]
    for name in LAYERS:
        assert found.positions[name] == positions
        assert_close(found.A(name), A[name] / positions, 1e-12)
        assert_close(found.S(name), S[name] / len(case.sequences), 1e-11)


@pytest.mark.parametrize("labels", ["expected", "observed", "sampled"])
@pytest.mark.parametrize("lengths", [(1, 1), (2,), (3, 1, 2), (6, 4), (5, 3, 6, 2)])
def test_eigenvalues_are_the_fishers_diagonal_in_the_eigenbasis(labels: str, lengths: tuple[int, ...]) -> None:
    case = language(lengths, tuple(n // 3 for n in lengths))
    objective, problem = Recorded(), case.problem
    found = ekfac(case.model, objective, case.batches(), labels=labels, **QUIET)
    if labels == "expected":
        F = problem.gauss_newton()
    else:
        F = problem.fisher() if labels == "observed" else problem.fisher(objective.drawn[1])
    for name, span in problem.spans.items():
        expected = rotated_diagonal(F[span, span], found.Q_S[name], found.Q_A[name])
        assert_close(found.eigenvalues[name], expected, 1e-11)


def test_sampled_labels_are_the_default_and_come_to_the_expected_ones() -> None:
    case = language((3, 2), (1, 0))
    assert ekfac(case.model, case.objective, case.train, **QUIET).facts.labels == "sampled"
    exact = ekfac(case.model, case.objective, case.train, labels="expected", **QUIET)
    errors = []
    for draws in (20, 2000):
        found = second_moments(case.model, case.objective, case.train, labels="sampled", draws=draws, **QUIET)
        truth = second_moments(case.model, case.objective, case.train, labels="expected", **QUIET)
        errors.append(max(float((found.S(k) - truth.S(k)).norm() / truth.S(k).norm()) for k in exact.layers))
    assert errors[1] < 0.1 and errors[1] < errors[0] / 3


@given(languages())
@drawn(6)
def test_exact_curvatures_are_those_built_by_hand(case: LanguageCase) -> None:
    problem = case.problem
    G = gauss_newton(case.model, case.objective, case.train, **QUIET)
    assert_close(G.to_dense(), problem.gauss_newton(), 1e-11)
    blocks = gauss_newton(case.model, case.objective, case.train, blocks=True, **QUIET)
    assert_close(blocks.to_dense(), problem.block_diagonal(problem.gauss_newton()), 1e-11)


def test_the_hessian_is_that_of_the_summed_loss() -> None:
    case = language((3, 2), (1, 0))
    assert_close(hessian(case.model, case.objective, case.train, **QUIET).to_dense(), case.problem.hessian(), 1e-10)


# --- solves and scores ----------------------------------------------------------------------------------------------------


@given(languages())
@drawn(8)
def test_scores_are_the_dense_formulas_with_each_curvatures_own_matrix(case: LanguageCase) -> None:
    problem = case.problem
    queries = case.asked[0]
    for fit in (ekfac, kfac, identity):
        C = fit(case.model, case.objective, case.train, **QUIET)
        expected = problem.influence(C.to_dense(), 0.1, *queries)
        assert_close(scored(case, C), expected, 1e-10)
        assert_close(
            self_influence(case.model, case.objective, case.train, C, 0.1, **QUIET),
            (
                problem.gradients() * torch.linalg.solve(C.to_dense() + problem.damping(0.1), problem.gradients().T).T
            ).sum(1),
            1e-10,
        )


def test_scores_with_the_exact_matrix_are_the_oracles() -> None:
    case = language()
    problem = case.problem
    G = gauss_newton(case.model, case.objective, case.train, **QUIET)
    assert_close(scored(case, G), problem.influence(problem.gauss_newton(), 0.1, *case.asked[0]), 1e-10)


def test_each_layers_damping_is_its_own() -> None:
    case = language()
    problem = case.problem
    C = ekfac(case.model, case.objective, case.train, **QUIET)
    numbers = {name: 0.01 * 3.0**k for k, name in enumerate(LAYERS)}
    assert_close(scored(case, C, numbers), problem.influence(C.to_dense(), numbers, *case.asked[0]), 1e-10)
    default = problem.relative(C.to_dense(), 0.1)
    assert_close(scored(case, C, None), problem.influence(C.to_dense(), default, *case.asked[0]), 1e-10)


def test_a_prompt_is_read_but_not_asked_about() -> None:
    """f = log p(completion | prompt): a query's masked prompt takes no part in its gradient, but feeds it."""
    case = language()
    C = ekfac(case.model, case.objective, case.train, **QUIET)
    ids = [1, 3, 0, 2, 1]
    asked = cut([ids], [2], [1])
    whole, first = cut([ids], [0], [1]), cut([ids[:3]], [0], [1])
    parts = scored(case, C, queries=whole) - scored(case, C, queries=first)
    assert_close(scored(case, C, queries=asked), parts, 1e-10)


def test_a_completion_split_in_two_adds_up() -> None:
    case = language()
    C = ekfac(case.model, case.objective, case.train, **QUIET)
    (inputs, targets) = cut([[1, 3, 0, 2, 1]], [1], [1])[0]
    one, other = targets.clone(), targets.clone()
    one[0, 2:], other[0, :2] = -100, -100
    both = scored(case, C, queries=[(inputs, one)]) + scored(case, C, queries=[(inputs, other)])
    assert_close(scored(case, C, queries=[(inputs, targets)]), both, 1e-10)


# --- splits ---------------------------------------------------------------------------------------------------------------


@given(languages())
@drawn(8)
def test_layers_and_tokens_add_up_to_the_total(case: LanguageCase) -> None:
    C = ekfac(case.model, case.objective, case.train, **QUIET)
    total = scored(case, C)
    T = max(map(len, case.sequences)) - 1
    layers, tokens = scored(case, C, keep=("layer",)), scored(case, C, keep=("token",))
    both = scored(case, C, keep=("layer", "token"))
    assert layers.shape == (*total.shape, len(LAYERS))
    assert tokens.shape == (*total.shape, T)
    assert both.shape == (*total.shape, len(LAYERS), T)
    assert_close(layers.sum(-1), total, 1e-11)
    assert_close(tokens.sum(-1), total, 1e-11)
    assert_close(both.sum(-1), layers, 1e-11)
    assert_close(both.sum(-2), tokens, 1e-11)
    for n, sequence in enumerate(case.sequences):
        assert bool((tokens[:, n, len(sequence) - 1 :] == 0).all()), "padding has influence"


def test_a_tokens_part_is_its_term_of_the_gradient() -> None:
    """One position's g_t a_tᵀ against the dense solve, by the oracle's matrix and a hand-made product."""
    case = language()
    problem = case.problem
    C = ekfac(case.model, case.objective, case.train, **QUIET)
    x, y = case.asked[0]
    gradients = -problem.gradients(y, None, x)  # of the log-likelihood
    P = problem.stacks(torch.linalg.solve(C.to_dense() + problem.damping(0.1), gradients.T).T)
    found = scored(case, C, train=case.batches(), keep=("layer", "token"))
    pairs = capture(case.model, case.objective, problem.x, problem.y)
    for k, name in enumerate(LAYERS):
        a, g = pairs[name]
        expected = -torch.einsum("nto,qoi,nti->qnt", g, P[name], a)
        assert_close(found[:, :, k], expected, 1e-10)


def test_a_layer_called_twice_has_one_score_a_token() -> None:
    class Again(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.same, self.out = nn.Embedding(4, 3), nn.Linear(3, 3), nn.Linear(3, 4)

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            x = self.same(torch.tanh(self.same(self.embed(input_ids))))
            return self.out(x.cumsum(1))

    case = language((4, 2), (0, 0))
    case.model, case.layers = Again().double(), ["same", "out"]
    C = ekfac(case.model, case.objective, case.train, **QUIET)
    tokens = scored(case, C, keep=("token",))
    assert tokens.shape == (2, 2, 4)
    assert_close(tokens.sum(-1), scored(case, C), 1e-12)
    assert bool((tokens[:, 1, 2:] == 0).all())
    # what reaches the loss through position t alone: the others' rows of g are zero
    expected = case.problem.influence(C.to_dense(), 0.1, *case.asked[0])
    assert_close(tokens.sum(-1), expected, 1e-10)


def test_layers_whose_positions_differ_have_no_common_token_axis() -> None:
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.each, self.head = nn.Linear(3, 3), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.tanh(self.each(x)).mean(1))

    model, data = Pooled().double(), [(torch.randn(3, 4, 3), torch.tensor([0, 1, 1]))]
    C = ekfac(model, CrossEntropy(), data, **QUIET)
    with pytest.raises(
        ValueError, match=r"layer 'each' has 4 positions an example, layer 'head' has 1.*fit with layers="
    ):
        influence(model, CrossEntropy(), data, data, C, keep=("token",), **QUIET)


@pytest.mark.parametrize("keep", ["position", ("layer", "head")])
def test_unknown_axes_are_refused(keep: Any) -> None:
    case = language((2,), (0,))
    C = identity(case.model, case.objective, **QUIET)
    with pytest.raises(ValueError, match=r"keep='(position|head)'; expected some of \('layer', 'token'\)"):
        scored(case, C, keep=keep)


# --- batches, padding, index ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("labels", ["expected", "observed", "sampled"])
def test_nothing_depends_on_how_sequences_are_batched_or_padded(labels: str) -> None:
    case = language()
    ways = [
        case.batches([1, 1, 1, 1]),
        case.batches([4]),
        case.batches([3, 1], extra=2),
        case.batches([2, 2], side="left"),
        case.batches([4], side="left", extra=1),
    ]
    found = []
    for train in ways:
        C = ekfac(case.model, case.objective, train, labels=labels, draws=2, **QUIET)
        own = self_influence(case.model, case.objective, train, C, 0.1, **QUIET)
        found.append((C, scored(case, C, train=train), own))
    for C, scores, own in found[1:]:
        assert_close(C.to_dense(), found[0][0].to_dense(), 1e-11)
        assert_close(scores, found[0][1], 1e-11)
        assert_close(own, found[0][2], 1e-11)


def test_queries_may_be_padded_too() -> None:
    case = language()
    C = ekfac(case.model, case.objective, case.train, **QUIET)
    expected = scored(case, C)
    for side in ("left", "right"):
        for sizes in ([2], [1, 1]):
            queries = cut(case.queries, [0, 0], sizes, side, extra=3)
            assert_close(scored(case, C, queries=queries), expected, 1e-11)


@given(languages())
@drawn(8)
def test_an_index_gives_what_a_fresh_pass_gives(case: LanguageCase) -> None:
    C = ekfac(case.model, case.objective, case.train, **QUIET)
    index = TrainIndex.build(case.model, case.objective, case.train, C, **QUIET)
    assert index.nbytes == TrainIndex.bytes_needed(case.model, case.train, C)
    prepared = index.prepare(case.model, case.objective, case.asked)
    for damping in (0.1, 2.0):
        assert_close(index.scores(prepared, damping=damping), scored(case, C, damping), 1e-11)
    assert_close(index.scores(prepared, damping=0.1, keep=("layer",)), scored(case, C, keep=("layer",)), 1e-11)
    own = self_influence(case.model, case.objective, case.train, C, 0.1, **QUIET)
    assert_close(index.self_influence(damping=0.1), own, 1e-11)
    assert_close(index.norms(), case.problem.gradients().norm(dim=1), 1e-11)


def test_an_index_whose_first_batch_has_single_predictions_still_answers() -> None:
    case = language((1, 1, 4, 2), (0, 0, 1, 0))
    C = ekfac(case.model, case.objective, case.train, **QUIET)
    index = TrainIndex.build(case.model, case.objective, case.batches([2, 2]), C, **QUIET)
    for length in ((1,), (1, 3)):
        queries = cut([[1, 2, 3, 0][: n + 1] for n in length], [0] * len(length), [1] * len(length))
        found = index.influence(case.model, case.objective, queries, damping=0.1)
        assert_close(found, scored(case, C, queries=queries), 1e-11)


def test_tokens_cannot_be_had_from_an_index() -> None:
    case = language()
    C = ekfac(case.model, case.objective, case.train, **QUIET)
    index = TrainIndex.build(case.model, case.objective, case.train, C, **QUIET)
    with pytest.raises(
        ValueError, match=r"keep='token'; expected some of \('layer',\).*Split by token with inflib.influence"
    ):
        index.influence(case.model, case.objective, case.asked, keep=("token",))


def test_a_mask_that_hides_a_sequence_is_named_in_a_fit() -> None:
    case = language()
    (inputs, targets) = case.batches()[0]
    inputs["attention_mask"][2] = 0
    with pytest.raises(ValueError, match="attention_mask of sequence 2 of a batch hides every position"):
        ekfac(case.model, case.objective, [(inputs, targets)], **QUIET)


def test_a_vocabulary_too_large_for_expected_labels_is_refused_in_a_fit() -> None:
    case = language()
    with pytest.raises(ValueError, match=r"6 tokens × 4 classes = 24 backward passes.*Use labels='sampled'"):
        ekfac(case.model, NextToken(max_seeds=23), case.batches(), labels="expected", **QUIET)
