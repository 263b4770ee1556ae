"""Models of Hugging Face's transformers, built from their configurations: GPT-2's kind and Llama's, against dense matrices.

GPT-2's layers are ``Conv1D``s, with weights stored (i, o), and its head is its embedding. Llama's kind has grouped key
and value heads and rotary positions. Nothing is downloaded: the weights are random, the models tiny and in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from languages import LanguageCase, cut, language
from networks import snapshot
from oracle import assert_close
from test_ekfac import rotated_diagonal
from test_language_models import QUIET, Recorded, scored
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from transformers import BatchEncoding, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
from transformers.pytorch_utils import Conv1D

from inflib import (
    CoverageNote,
    NextToken,
    TrainIndex,
    capture,
    completion,
    coverage,
    ekfac,
    gauss_newton,
    hessian,
    identity,
    influence,
    kfac,
    refine,
    self_influence,
    token_batches,
    untied,
)
from inflib.exact import gauss_newton_product
from inflib.layers import kind_of
from inflib.selection import select
from inflib.tokens import input_tokens, output_tokens

pytestmark = [
    pytest.mark.usefixtures("float64"),
    pytest.mark.filterwarnings("ignore::inflib.CoverageNote", "ignore:.torch.jit.script:DeprecationWarning"),
]

VOCABULARY = 7
ENDS: dict[str, Any] = {"bos_token_id": 0, "eos_token_id": 0}  # within the vocabulary, as configurations want them


def gpt2(attention: str = "eager", blocks: int = 1, **options: Any) -> GPT2LMHeadModel:
    """Width 8, two heads; one to hold against dense matrices has no dropout."""
    quiet = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0} | ENDS | options
    sizes = {"vocab_size": VOCABULARY, "n_positions": 8, "n_embd": 8, "n_inner": 10, "n_layer": blocks, "n_head": 2}
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(**sizes, attn_implementation=attention, initializer_range=0.4, **quiet))
    return model.double().eval()


class Rotary(nn.Module):
    """Llama's cosines and sines in float64; its own are float32's, which differ between processors by 1e-7."""

    def __init__(self, inverse_frequencies: Tensor):
        super().__init__()
        self.register_buffer("inverse_frequencies", inverse_frequencies.double())

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        angles = (position_ids[..., None] * self.inverse_frequencies).repeat(1, 1, 2)
        return angles.cos().to(x), angles.sin().to(x)


def llama(attention: str = "sdpa", blocks: int = 1, exact: bool = True) -> LlamaForCausalLM:
    """Width 8, four heads for two of keys and values. exact: in float64 throughout, where Llama's own norm
    and rotary positions are not.
    """
    sizes = {"vocab_size": VOCABULARY, "max_position_embeddings": 8, "hidden_size": 8, "intermediate_size": 10}
    heads = {"num_hidden_layers": blocks, "num_attention_heads": 4, "num_key_value_heads": 2}
    options = {"attn_implementation": attention, "initializer_range": 0.4, "tie_word_embeddings": False}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**sizes, **heads, **options, **ENDS)).double().eval()
    for name, module in list(model.named_modules()):
        if exact and type(module).__name__ == "LlamaRMSNorm":
            norm = nn.RMSNorm(8, eps=module.variance_epsilon)
            norm.load_state_dict(module.state_dict())
            model.set_submodule(name, norm.eval())
    if exact:
        model.model.rotary_emb = Rotary(model.model.rotary_emb.inv_freq)
    return model


MODELS: dict[str, Callable[[], nn.Module]] = {
    "gpt2": gpt2,
    "gpt2, fused attention": lambda: gpt2("sdpa"),
    "gpt2, two blocks": lambda: gpt2(blocks=2),
    "llama": llama,
}


def case_of(model: nn.Module, lengths: tuple[int, ...] = (5, 3, 6, 2), **options: Any) -> LanguageCase:
    layers = list(select(model))
    return language(
        lengths, tuple(n // 3 for n in lengths), 0, (4, 3), True, model, VOCABULARY, layers=layers, **options
    )


@pytest.fixture(params=MODELS)
def case(request: pytest.FixtureRequest) -> LanguageCase:
    return case_of(MODELS[request.param](), positions=True, one_by_one=True)


# --- which layers -----------------------------------------------------------------------------------------------------


def test_a_conv1d_is_read_as_the_linear_map_it_is() -> None:
    table = coverage(gpt2())
    assert table.rows == (
        ("transformer.h.0.attn.c_attn", "Conv1D", 24, 9),
        ("transformer.h.0.attn.c_proj", "Conv1D", 8, 9),
        ("transformer.h.0.mlp.c_fc", "Conv1D", 10, 9),
        ("transformer.h.0.mlp.c_proj", "Conv1D", 8, 11),
    )


def test_a_class_that_extends_conv1d_is_one_and_a_namesake_is_not() -> None:
    class Special(Conv1D):
        pass

    namesake = type("Conv1D", (nn.Module,), {})()
    namesake.weight = nn.Parameter(torch.randn(3, 2))
    assert list(select(nn.Sequential(Special(3, 2), namesake))) == ["0"]
    assert kind_of(namesake) is None


def test_llamas_layers_are_its_projections_and_its_head() -> None:
    rows = {name.removeprefix("model.layers.0."): (o, i) for name, _, o, i in coverage(llama()).rows}
    attention = {"q_proj": (8, 8), "k_proj": (4, 8), "v_proj": (4, 8), "o_proj": (8, 8)}
    perceptron = {"gate_proj": (10, 8), "up_proj": (10, 8), "down_proj": (8, 10)}
    expected = {f"self_attn.{k}": v for k, v in attention.items()} | {f"mlp.{k}": v for k, v in perceptron.items()}
    assert rows == expected | {"lm_head": (7, 8)}


def test_a_head_tied_to_the_embedding_is_left_out_with_the_reason() -> None:
    case = case_of(gpt2())
    with pytest.warns(CoverageNote, match=r"Left out: layer 'lm_head' shares its weight with 'transformer.wte'"):
        fit = ekfac(case.model, case.objective, case.train, **QUIET)
    assert "lm_head" not in fit.layers and len(fit.layers) == 4
    with pytest.raises(ValueError, match=r"layer 'lm_head' shares its weight.*layers=untied\('lm_head'\)"):
        ekfac(case.model, case.objective, case.train, layers="lm_head", **QUIET)


@pytest.mark.parametrize("layers", ["lm_head", "*"])
def test_an_untied_head_counts_as_one_whose_weight_is_its_own(layers: str) -> None:
    """Twins: the head tied to the embedding and untied(...), and a head with a copy of the embedding."""
    tied, own = gpt2(), gpt2(tie_word_embeddings=False)
    own.load_state_dict(tied.state_dict())
    assert own.lm_head.weight is not own.transformer.wte.weight
    twins = []
    for model, chosen in ((tied, untied(layers)), (own, layers)):
        case = case_of(model)
        C = ekfac(model, case.objective, case.train, layers=chosen, **QUIET)
        twins.append((C, scored(case, C)))
    assert twins[0][0].layers == twins[1][0].layers
    assert twins[0][0].layers[-1] == "lm_head"
    assert_close(twins[0][0].to_dense(), twins[1][0].to_dense(), 1e-12)
    assert_close(twins[0][1], twins[1][1], 1e-10)
    case = case_of(own)
    case.layers = list(twins[0][0].layers)
    assert_close(twins[0][1], case.problem.influence(twins[0][0].to_dense(), 0.1, *case.asked[0]), 1e-10)


# --- capture and factors --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["right", "left"])
def test_captured_gradients_are_those_of_each_sequences_summed_loss(case: LanguageCase, side: str) -> None:
    problem = case.problem_of(side)
    found = {k: pair.matrices() for k, pair in capture(case.model, case.objective, problem.x, problem.y).items()}
    assert_close(problem.flat(found), problem.gradients(), 1e-12)


@pytest.mark.parametrize("labels", ["expected", "observed", "sampled"])
def test_eigenvalues_are_the_fishers_diagonal_in_the_eigenbasis(case: LanguageCase, labels: str) -> None:
    objective, problem = Recorded(), case.problem
    found = ekfac(case.model, objective, case.batches(), labels=labels, **QUIET)
    if labels == "expected":
        F = problem.gauss_newton()
    else:
        F = problem.fisher() if labels == "observed" else problem.fisher(objective.drawn[-1])
    for name, span in problem.spans.items():
        expected = rotated_diagonal(F[span, span], found.Q_S[name], found.Q_A[name])
        assert_close(found.eigenvalues[name], expected, 1e-10)


@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)
def test_factors_are_the_exact_blocks_for_one_prediction(build: Callable[[], nn.Module]) -> None:
    case = case_of(build(), (1,), one_by_one=True)
    blocks = case.problem.block_diagonal(case.problem.gauss_newton())
    for fit in (kfac, ekfac):
        C = fit(case.model, case.objective, case.batches(), labels="expected", **QUIET)
        assert_close(C.to_dense(), blocks, 1e-10)


# --- exact curvature ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["right", "left"])
def test_exact_curvatures_are_those_built_by_hand(case: LanguageCase, side: str) -> None:
    problem, train = case.problem_of(side), case.batches([3, 1], side=side)
    expected = problem.gauss_newton()
    assert_close(gauss_newton(case.model, case.objective, train, **QUIET).to_dense(), expected, 1e-11)
    blocks = gauss_newton(case.model, case.objective, train, blocks=True, **QUIET)
    assert_close(blocks.to_dense(), problem.block_diagonal(expected), 1e-11)
    v = torch.randn(3, len(expected))
    found = gauss_newton_product(case.model, case.objective, train, problem.stacks(v), **QUIET)
    assert_close(problem.flat(found), v @ expected, 1e-11)


def test_the_hessian_is_that_of_the_summed_loss() -> None:
    case = case_of(llama(), (3, 2), one_by_one=True)
    case.layers = ["model.layers.0.self_attn.k_proj", "model.layers.0.mlp.up_proj", "lm_head"]
    found = hessian(case.model, case.objective, case.train, layers=case.layers, **QUIET)
    assert_close(found.to_dense(), case.problem.hessian(), 1e-10)


# --- scores ---------------------------------------------------------------------------------------------------------------


def test_scores_are_the_dense_formulas_with_each_curvatures_own_matrix(case: LanguageCase) -> None:
    problem, queries = case.problem, case.asked[0]
    gradients = problem.gradients()
    for fit in (ekfac, kfac, identity):
        C = fit(case.model, case.objective, case.train, **QUIET)
        assert_close(scored(case, C), problem.influence(C.to_dense(), 0.1, *queries), 1e-10)
        own = self_influence(case.model, case.objective, case.train, C, 0.1, **QUIET)
        solved = torch.linalg.solve(C.to_dense() + problem.damping(0.1), gradients.T).T
        assert_close(own, (gradients * solved).sum(1), 1e-10)


def test_scores_with_the_exact_matrix_are_the_oracles(case: LanguageCase) -> None:
    problem = case.problem
    G = gauss_newton(case.model, case.objective, case.train, **QUIET)
    assert_close(scored(case, G), problem.influence(problem.gauss_newton(), 0.1, *case.asked[0]), 1e-10)


def test_refined_scores_come_to_the_exact_ones() -> None:
    case = case_of(gpt2("sdpa"), (3, 2), one_by_one=True)
    C = ekfac(case.model, case.objective, case.train, **QUIET)
    refined = refine(C, case.model, case.objective, case.train, steps=30, progress=False)
    expected = case.problem.influence(case.problem.gauss_newton(), 10.0, *case.asked[0])
    assert_close(scored(case, refined, 10.0), expected, 1e-8)


def test_layers_and_tokens_add_up_to_the_total(case: LanguageCase) -> None:
    C = ekfac(case.model, case.objective, case.train, **QUIET)
    total, both = scored(case, C), scored(case, C, keep=("layer", "token"))
    assert both.shape == (2, 4, len(case.layers), 6)
    assert_close(both.sum((-2, -1)), total, 1e-11)
    assert_close(both.sum(-1), scored(case, C, keep=("layer",)), 1e-11)
    assert_close(both.sum(-2), scored(case, C, keep=("token",)), 1e-11)
    for n, sequence in enumerate(case.sequences):
        assert bool((both[:, n, :, len(sequence) - 1 :] == 0).all()), "padding has influence"


def test_nothing_depends_on_how_sequences_are_batched_or_padded(case: LanguageCase) -> None:
    """By expected labels: few drawn ones leave S eigenvectors of 0, which rounding may turn, and Λ in them is not 0."""
    C = ekfac(case.model, case.objective, case.train, labels="expected", **QUIET)
    expected = scored(case, C)
    for train in (case.batches([1, 1, 1, 1]), case.batches([3, 1], extra=2), case.batches([2, 2], "left", extra=1)):
        again = ekfac(case.model, case.objective, train, labels="expected", **QUIET)
        assert_close(again.to_dense(), C.to_dense(), 1e-11)
        assert_close(scored(case, C, train=train), expected, 1e-11)
        queries = cut(case.queries, [0, 0], [2], "left", 2, positions=True)
        assert_close(scored(case, C, train=train, queries=queries), expected, 1e-11)


def test_the_librarys_own_batches_need_no_positions(case: LanguageCase) -> None:
    """Padded on the right, as ``token_batches`` does: the model counts from 0 by itself."""
    case.prompts = [0] * len(case.sequences)
    train = token_batches(case.sequences, 2)
    C, again = (ekfac(case.model, case.objective, x, labels="expected", **QUIET) for x in (train, case.batches()))
    assert_close(C.to_dense(), again.to_dense(), 1e-11)
    queries = [completion(case.queries[0][:2], case.queries[0][2:])]
    asked = cut(case.queries[:1], [1], [1], positions=True)
    assert_close(scored(case, C, train=train, queries=queries), scored(case, C, train=train, queries=asked), 1e-11)


def test_an_index_gives_what_a_fresh_pass_gives(case: LanguageCase) -> None:
    C = ekfac(case.model, case.objective, case.train, **QUIET)
    index = TrainIndex.build(case.model, case.objective, case.train, C, **QUIET)
    prepared = index.prepare(case.model, case.objective, case.asked)
    for damping in (0.1, 2.0):
        assert_close(index.scores(prepared, damping=damping), scored(case, C, damping), 1e-11)
    assert_close(index.scores(prepared, damping=0.1, keep=("layer",)), scored(case, C, keep=("layer",)), 1e-11)
    own = self_influence(case.model, case.objective, case.train, C, 0.1, **QUIET)
    assert_close(index.self_influence(damping=0.1), own, 1e-11)


def test_output_tokens_add_up_to_the_sequence(case: LanguageCase) -> None:
    C = ekfac(case.model, case.objective, case.train, **QUIET)
    found = output_tokens(case.model, case.objective, case.train, case.asked, C, 0.1, **QUIET)
    assert_close(found.sum(-1), scored(case, C), 1e-10)


def test_an_input_token_is_the_slope_in_its_embeddings_scale(case: LanguageCase) -> None:
    """Differences of the oracle's scores, with one position's embedding scaled by hand."""
    C, problem = ekfac(case.model, case.objective, case.train, **QUIET), case.problem
    found = input_tokens(case.model, case.objective, case.train, case.asked, C, 0.1, **QUIET)
    x, y = case.asked[0]
    P = torch.linalg.solve(C.to_dense() + problem.damping(0.1), -problem.gradients(y, None, x).T)  # (D, Q)
    h, t, scores = 1e-5, 1, []
    for scale in (1 + h, 1 - h):
        scales = torch.ones(6, 1).index_fill(0, torch.tensor(t), scale)
        embedding = case.model.get_input_embeddings()
        handle = embedding.register_forward_hook(lambda _module, _args, e, scales=scales: e * scales)
        scores.append(-problem.gradients() @ P)  # (N, Q)
        handle.remove()
    assert_close(found[:, :, t], (scores[0] - scores[1]).T / (2 * h), 1e-6)


# --- as they come -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_llama_as_it_comes_is_right_to_the_precision_of_its_own_norm(attention: str) -> None:
    """Its norm, and its eager softmax, compute in float32 whatever the weights are."""
    case = case_of(llama(attention, exact=False), one_by_one=True)
    problem = case.problem
    found = {k: pair.matrices() for k, pair in capture(case.model, case.objective, problem.x, problem.y).items()}
    assert_close(problem.flat(found), problem.gradients(), 1e-5)
    C = ekfac(case.model, case.objective, case.train, **QUIET)
    assert_close(scored(case, C), problem.influence(C.to_dense(), 0.1, *case.asked[0]), 1e-4)


def test_fused_and_eager_attention_score_alike() -> None:
    scores = []
    for attention in ("eager", "sdpa"):
        case = case_of(gpt2(attention))
        C = ekfac(case.model, case.objective, case.train, labels="expected", **QUIET)
        scores.append(scored(case, C))
    assert_close(scores[0], scores[1], 1e-11)


def test_a_tokenizers_own_batch_is_taken_for_a_dictionary() -> None:
    case = case_of(gpt2())
    plain = case.batches([2, 2])
    wrapped = [(BatchEncoding(dict(x)), y) for x, y in plain]
    for fit in (ekfac, gauss_newton):
        expected, found = (fit(case.model, case.objective, train, **QUIET) for train in (plain, wrapped))
        assert_close(found.to_dense(), expected.to_dense(), 1e-12)
    assert_close(scored(case, found, train=wrapped), scored(case, found, train=plain), 1e-12)


def test_dropout_left_on_is_refused() -> None:
    model = gpt2(resid_pdrop=0.1).train()
    case = case_of(model)
    with pytest.raises(RuntimeError, match=r"module 'transformer.h.0.attn.resid_dropout' .*Call model.eval\(\)"):
        ekfac(model, case.objective, case.train, **QUIET)


def test_the_model_is_left_as_it_was_found(case: LanguageCase) -> None:
    before, settings = snapshot(case.model), case.model.config.to_dict()
    C = ekfac(case.model, case.objective, case.train, **QUIET)
    scored(case, C, keep=("layer", "token"))
    gauss_newton(case.model, case.objective, case.train, **QUIET)
    TrainIndex.build(case.model, case.objective, case.train, C, **QUIET).prepare(case.model, case.objective, case.asked)
    with pytest.raises(ValueError, match="expected token ids"):
        influence(case.model, NextToken(), [(x, y[:, :1]) for x, y in case.train], case.asked, C, **QUIET)
    assert snapshot(case.model) == before
    assert case.model.config.to_dict() == settings


# --- on a GPU ---------------------------------------------------------------------------------------------------------------


@pytest.mark.cuda
def test_factors_and_scores_on_the_gpu_are_the_cpus(case: LanguageCase) -> None:
    found = []
    for device in ("cpu", "cuda"):
        model = case.model.to(device)
        train, queries = pytree.tree_map(lambda x, device=device: x.to(device), (case.train, case.asked))
        C = ekfac(model, case.objective, train, labels="expected", **QUIET)
        scores = influence(model, case.objective, train, queries, C, 0.1, keep=("layer", "token"), **QUIET)
        assert scores.device.type == device
        found.append((C.to_dense().cpu(), scores.cpu()))
    for gpu, cpu in zip(found[1], found[0], strict=True):
        assert_close(gpu, cpu, 1e-10)
