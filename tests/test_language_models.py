"""A tiny transformer against dense matrices: factors, labels, solves, scores and their splits, padded or not."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from languages import LAYERS, VOCABULARY, LanguageCase, cut, language, languages
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
    exact,
    gauss_newton,
    hessian,
    identity,
    influence,
    kfac,
    self_influence,
)
from inflib.baselines import gradient_cosine
from inflib.exact import gauss_newton_product
from inflib.kfac import second_moments
from inflib.lab import transformer
from inflib.selection import select
from inflib.tokens import input_tokens, output_tokens
from inflib.validation import pbrf

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
        F = problem.fisher() if labels == "observed" else problem.fisher(objective.drawn[-1])
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
    expected = case.problem.influence(C.to_dense(), 0.1, *case.asked[0])
    assert_close(tokens.sum(-1), expected, 1e-10)
    # a token's part by hand: what reaches the loss through its position, in the first call and in the second
    problem, (x, y) = case.problem, case.asked[0]
    gradients = -problem.gradients(y, None, x)
    P = problem.stacks(torch.linalg.solve(C.to_dense() + problem.damping(0.1), gradients.T).T)
    for n, sequence in enumerate(case.sequences):
        ids, model = torch.tensor(sequence), case.model
        e = model.embed(ids[:-1])
        first = model.same(e)
        second = model.same(torch.tanh(first))
        logits = model.out(second.cumsum(0))
        loss = nn.functional.cross_entropy(logits, ids[1:], reduction="sum")
        g = torch.autograd.grad(loss, [first, second, logits])
        uses = [("same", e, g[0]), ("same", torch.tanh(first), g[1]), ("out", second.cumsum(0), g[2])]
        each = [torch.einsum("to,qoi,ti->qt", gt, P[k], torch.cat([a, torch.ones(len(a), 1)], 1)) for k, a, gt in uses]
        assert_close(tokens[:, n, : len(e)], -sum(each).detach(), 1e-10)


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


# --- batches that cannot be meant -------------------------------------------------------------------------------------------


def rows_of(x: Tensor, targets: Tensor) -> list[Tensor]:
    """The rows of x without their padding, which is on the right."""
    return [row[: int((y != -100).nonzero().max()) + 1] for row, y in zip(x, targets, strict=True)]


FLAWS: dict[str, tuple[Callable[[Any, Any, Tensor], Any], str]] = {  # of ids, mask and targets → a batch, a message
    "hidden": (
        lambda x, m, y: ({"input_ids": x, "attention_mask": m * torch.tensor([1, 1, 0, 1])[:, None]}, y),
        "attention_mask of sequence 2 of a batch hides every position; expected at least one",
    ),
    "short mask": (
        lambda x, m, y: ({"input_ids": x, "attention_mask": m[:, :-1]}, y),
        r"attention_mask came as \(4, 5\); expected \(4, 6\), the input_ids' shape",
    ),
    "shifted mask": (
        lambda x, m, y: ({"input_ids": x, "attention_mask": torch.cat([m[:, 1:], 0 * m[:, :1]], 1)}, y),
        r"position 4 of sequence 0 of a batch has a target that counts, \d, where the attention_mask is 0; expected",
    ),
    "no mask": (
        lambda x, m, y: ({"input_ids": x}, y),
        r"unequal length came without attention_mask \(0 to 4 targets.*Use inflib.token_batches",
    ),
    "bare ids": (lambda x, m, y: (x, y), r"unequal length came without attention_mask \(0 to 4 targets"),
    "ragged rows": (lambda x, m, y: (rows_of(x, y), rows_of(y, y)), "came as a list of 4; expected token ids"),
    "ragged lists": (
        lambda x, m, y: tuple([row.tolist() for row in rows_of(z, y)] for z in (x, y)),
        r"targets of batch [02] are a list of 4; expected a tensor.*inflib.token_batches, which pads",
    ),
    "ragged ids": (
        lambda x, m, y: ({"input_ids": [row.tolist() for row in rows_of(x, y)]}, y),
        "the inputs of a batch of sequences came as a list of 4; expected token ids",
    ),
    "one sequence": (
        lambda x, m, y: ({"input_ids": x[0, :5]}, y[0, :5]),
        r"the inputs of a batch of sequences came as a tensor of shape \(5,\); expected.*x\[None\]",
    ),
    "one row of targets": (
        lambda x, m, y: ({"input_ids": x[:1, :5]}, y[0, :5]),
        r"the targets of a batch of sequences came as a tensor of shape \(5,\); expected.*x\[None\]",
    ),
}

ENTRIES: dict[str, Callable[[LanguageCase, Any, Any], Any]] = {  # of a case, an EK-FAC and the data
    "capture": lambda case, C, data: capture(case.model, case.objective, *data[0]),
    "ekfac": lambda case, C, data: ekfac(case.model, case.objective, data, **QUIET),
    "ekfac, later": lambda case, C, data: ekfac(case.model, case.objective, [*case.train, *data], **QUIET),
    "kfac, reduced": lambda case, C, data: kfac(case.model, case.objective, data, sharing="reduce", **QUIET),
    "influence": lambda case, C, data: scored(case, C, train=data),
    "influence by token": lambda case, C, data: scored(case, C, train=data, keep=("token",)),
    "influence of queries": lambda case, C, data: scored(case, C, queries=data),
    "self-influence": lambda case, C, data: self_influence(case.model, case.objective, data, C, **QUIET),
    "index": lambda case, C, data: TrainIndex.build(case.model, case.objective, data, C, **QUIET),
    "index of queries": lambda case, C, data: TrainIndex.build(
        case.model, case.objective, case.train, C, **QUIET
    ).prepare(case.model, case.objective, data),
    "gauss_newton": lambda case, C, data: gauss_newton(case.model, case.objective, data, **QUIET),
    "hessian": lambda case, C, data: hessian(case.model, case.objective, data, **QUIET),
    "product": lambda case, C, data: gauss_newton_product(
        case.model, case.objective, data, {k: torch.zeros(1, *shape) for k, shape in C.shapes.items()}, **QUIET
    ),
    "output tokens": lambda case, C, data: output_tokens(case.model, case.objective, data, case.asked, C, **QUIET),
    "input tokens": lambda case, C, data: input_tokens(case.model, case.objective, data, case.asked, C, **QUIET),
    "input tokens, named": lambda case, C, data: input_tokens(
        case.model, case.objective, data, case.asked, C, embedding="embed", **QUIET
    ),
    "pbrf": lambda case, C, data: pbrf(
        case.model, case.objective, data, case.asked, [0], 1.0, curvature=C, progress=False
    ),
    "pbrf of queries": lambda case, C, data: pbrf(
        case.model, case.objective, case.train, data, [0], 1.0, curvature=C, progress=False
    ),
    "tokens of queries": lambda case, C, data: output_tokens(case.model, case.objective, case.train, data, C, **QUIET),
    "cosine of queries": lambda case, C, data: gradient_cosine(
        case.model, case.objective, case.train, data, list(C.layers), **QUIET
    ),
}


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("flaw", FLAWS)
def test_batches_that_cannot_be_meant_are_named_wherever_they_come_in(entry: str, flaw: str) -> None:
    case = language()
    C = ekfac(case.model, case.objective, case.train, **QUIET)
    ((inputs, targets),) = case.batches()
    spoil, message = FLAWS[flaw]
    with pytest.raises((ValueError, TypeError), match=message):
        ENTRIES[entry](case, C, [spoil(inputs["input_ids"], inputs["attention_mask"], targets)])


def test_bytes_are_not_counted_of_a_batch_whose_mask_does_not_fit() -> None:
    case = language()
    C = ekfac(case.model, case.objective, case.train, **QUIET)
    ((inputs, targets),) = case.batches()
    inputs["attention_mask"] = inputs["attention_mask"][:, 1:]
    with pytest.raises(ValueError, match=r"attention_mask came as \(4, 5\); expected \(4, 6\)"):
        TrainIndex.bytes_needed(case.model, [(inputs, targets)], C)


def test_sequences_of_one_length_need_no_mask() -> None:
    case = language((4, 4, 4), (0, 2, 1))
    C = ekfac(case.model, case.objective, case.train, **QUIET)
    bare = [(inputs["input_ids"], targets) for inputs, targets in case.train]
    assert_close(ekfac(case.model, case.objective, bare, **QUIET).to_dense(), C.to_dense(), 1e-12)
    assert_close(scored(case, C, train=bare), scored(case, C), 1e-12)


def test_a_vocabulary_too_large_for_expected_labels_is_refused_in_a_fit() -> None:
    case = language()
    with pytest.raises(ValueError, match=r"6 tokens × 4 classes = 24 backward passes.*Use labels='sampled'"):
        ekfac(case.model, NextToken(max_seeds=23), case.batches(), labels="expected", **QUIET)


def test_a_hessian_in_too_many_outputs_is_refused_before_any_jacobian(monkeypatch: pytest.MonkeyPatch) -> None:
    case = language()
    G = gauss_newton(case.model, case.objective, case.batches(), max_bytes=24 * 24 * 8, **QUIET)
    assert_close(G.to_dense(), case.problem.gauss_newton(), 1e-11)
    monkeypatch.setattr(exact, "jacobian", lambda *_: pytest.fail("a Jacobian was taken"))
    message = r"a Hessian in 6 × 4 = 24 outputs, 4,608 bytes an example; expected at most 4,607\. Use labels='sampled'"
    with pytest.raises(ValueError, match=message):
        gauss_newton(case.model, case.objective, case.batches(), max_bytes=4607, **QUIET)
    monkeypatch.undo()
    gauss_newton(case.model, case.objective, case.batches(), labels="sampled", max_bytes=1, **QUIET)


# --- the course's own transformer ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_two_blocks_of_the_labs_transformer_are_as_the_dense_formulas(norm: str) -> None:
    model = transformer(VOCABULARY, 6, width=4, heads=2, hidden=5, blocks=2, norm=norm, dtype=torch.float64)
    with torch.no_grad():  # as if trained: at the start, all tokens are nearly the same
        model.token.weight.mul_(30)
        model.position.weight.mul_(30)
    case = language(model=model, layers=list(select(model)))
    assert len(case.layers) == 13
    for side in ("right", "left"):
        problem, train = case.problem_of(side), case.batches(side=side)
        found = capture(model, case.objective, problem.x, problem.y)
        assert_close(problem.flat({k: pair.matrices() for k, pair in found.items()}), problem.gradients(), 1e-12)
        C = ekfac(model, case.objective, train, labels="observed", **QUIET)
        F = problem.fisher()
        for name, span in problem.spans.items():
            expected = rotated_diagonal(F[span, span], C.Q_S[name], C.Q_A[name])
            assert_close(C.eigenvalues[name], expected, 1e-11)
        scores = scored(case, C, train=train)
        assert_close(scores, problem.influence(C.to_dense(), 0.1, *case.asked[0]), 1e-10)
        assert_close(scored(case, C, train=train, keep=("token",)).sum(-1), scores, 1e-11)
        assert_close(output_tokens(model, case.objective, train, case.asked, C, 0.1, **QUIET).sum(-1), scores, 1e-10)
    G = gauss_newton(model, case.objective, case.train, **QUIET)
    assert_close(G.to_dense(), case.problem.gauss_newton(), 1e-10)


def test_the_labs_transformer_wants_a_token() -> None:
    with pytest.raises(ValueError, match="0 tokens came; expected at least 1"):
        transformer(VOCABULARY, 6, width=4, heads=2, hidden=5)(torch.zeros(2, 0, dtype=torch.int64))
