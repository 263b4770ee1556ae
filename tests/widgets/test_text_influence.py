"""What the text browser answers is what inflib computes, and what dense matrices say; what cannot be asked is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from oracle import LOSSES, Problem

from inflib import (
    TrainIndex,
    completion,
    ekfac,
    influence,
    load_index,
    relative,
    save,
    self_influence,
    token_batches,
)
from inflib.doubt import error_bars
from inflib.kronecker import identity
from inflib.lab import Corpus, transformer
from inflib.widgets import TextInfluence, index_size
from inflib.widgets.base import InputError
from inflib.widgets.ranking import ALL_LAYERS, Settings
from inflib.widgets.text_answer import HEATS

METHODS = ("EK-FAC", "K-FAC", "gradient dot product")


@pytest.fixture(scope="module")
def asked(talk) -> TextInfluence:
    return talk.influence()


def encoded(talk, prompt, said):
    return [completion(talk.corpus.vocabulary.encode(prompt), talk.corpus.vocabulary.encode(said))]


@pytest.mark.parametrize("layer", [ALL_LAYERS, "blocks.1.mlp.down"])
@pytest.mark.parametrize("method", METHODS)
def test_every_heat_is_taken_at_the_same_layers_and_damping_as_the_scores(talk, asked, method, layer) -> None:
    """Positions and predictions add up to the score of their sequence, whatever is asked."""
    for heat in ("position", "output"):
        answer = asked.ask(*talk.queries[0], Settings(method, 0.3, layer, "margin", count=5, heat=heat))
        for ranked in (*answer.raised, *answer.lowered):
            assert np.nansum(ranked.tokens) == pytest.approx(ranked.score, rel=1e-9)
            assert len(ranked.tokens) == len(ranked.passage.pieces)
            chosen = ranked.layers if layer == ALL_LAYERS else ranked.layers[[asked.layers.index(layer)]]
            assert chosen.sum() == pytest.approx(ranked.score, rel=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_answers_are_those_of_influence_at_the_same_damping_for_all(talk, asked, method) -> None:
    damping = {name: 0.03 * mean for name, mean in talk.index.curvature.mean_eigenvalues().items()}
    truth = influence(
        talk.model,
        talk.objective,
        talk.train,
        encoded(talk, *talk.queries[1]),
        talk.methods[method],
        damping if method != "gradient dot product" else 0.0,
        keep=("layer",),
        progress=False,
    )[0]
    scores = asked.scores(*talk.queries[1], Settings(method, damping=0.03))
    np.testing.assert_allclose(scores, truth, rtol=1e-9, atol=1e-9 * truth.abs().max())


@pytest.mark.usefixtures("float64")
def test_scores_are_those_of_a_dense_solve(talk) -> None:
    """One layer, so that its matrix can be held: no hook, no rotation, no loss of the library is used."""
    name = "blocks.1.mlp.down"
    curvature = ekfac(talk.model, talk.objective, talk.train, [name], progress=False)
    index = TrainIndex.build(talk.model, talk.objective, talk.train, curvature, progress=False)
    small = TextInfluence(talk.model, talk.objective, index, talk.corpus)
    x, y = talk.corpus.tensors()
    problem = Problem(talk.model, [name], LOSSES["NextToken"], x, y)
    C = curvature.to_dense()
    (query,) = encoded(talk, *talk.queries[0])
    truth = problem.influence(C, problem.relative(C, 0.1), *query)[0]
    scores = small.scores(*talk.queries[0], Settings("EK-FAC", damping=0.1))[:, 0]
    np.testing.assert_allclose(scores, truth, rtol=1e-8, atol=1e-9 * truth.abs().max())


@pytest.mark.parametrize("heat", HEATS)
def test_the_token_that_has_no_value_is_the_one_not_read_or_not_predicted(talk, asked, heat) -> None:
    answer = asked.ask(*talk.queries[0], Settings("EK-FAC", heat=heat))
    for ranked in answer.raised:
        missing = np.isnan(ranked.tokens).nonzero()[0].tolist()
        assert missing == [0 if heat == "output" else len(ranked.passage.pieces) - 1]


def test_the_heat_of_a_position_is_the_gradient_that_passes_there(talk) -> None:
    """Autograd, with the layer's output at one position detached from all others' gradients."""
    name = "unembed"
    own = identity(talk.model, talk.objective, layers=[name])
    index = TrainIndex.build(
        talk.model,
        talk.objective,
        talk.train,
        ekfac(talk.model, talk.objective, talk.train, [name], progress=False),
        progress=False,
    )
    small = TextInfluence(talk.model, talk.objective, index, talk.corpus, {"dot": own})
    answer = small.ask(*talk.queries[0], Settings("dot", heat="position"))
    ranked = answer.raised[0]

    def gradients(inputs, targets):
        """∇ log p of every predicted token by itself, in the unembedding, where nothing passes on: (T, V, d + 1)."""
        found = []
        for t in range(targets.shape[1]):
            talk.model.zero_grad()
            log_p = talk.model(**inputs)[0, t].log_softmax(-1)
            if targets[0, t] >= 0:
                log_p[targets[0, t]].backward()
            layer = talk.model.unembed
            both = (layer.weight.grad, layer.bias.grad) if targets[0, t] >= 0 else (layer.weight * 0, layer.bias * 0)
            found.append(torch.cat([both[0], both[1][:, None]], dim=1).detach().clone())
        return torch.stack(found)

    query = gradients(*encoded(talk, *talk.queries[0])[0]).sum(0)
    (sequence,) = token_batches([talk.corpus.sequences[ranked.passage.position]])
    truth = (gradients(*sequence) * query).sum((1, 2))
    np.testing.assert_allclose(ranked.tokens[:-1], truth, rtol=1e-9, atol=1e-12)
    talk.model.zero_grad()


def test_unit_norm_divides_by_the_gradient_of_the_layers_asked_about(talk, asked) -> None:
    for layer in (ALL_LAYERS, "unembed"):
        names = list(asked.layers) if layer == ALL_LAYERS else [layer]
        own = identity(talk.model, talk.objective, layers=names)
        norms = self_influence(talk.model, talk.objective, talk.train, own, progress=False).sqrt().numpy()
        plain = asked.scores(*talk.queries[0], Settings("EK-FAC"))[:, [asked.layers.index(k) for k in names]].sum(1)
        answer = asked.ask(*talk.queries[0], Settings("EK-FAC", layer=layer, unit_norm=True, count=3))
        assert [r.score for r in answer.raised] == pytest.approx(sorted(plain / norms, reverse=True)[:3], rel=1e-9)
        for ranked in answer.raised:
            assert np.nansum(ranked.tokens) == pytest.approx(ranked.score, rel=1e-9)
            assert ranked.contribution is None
        assert "no unit" in answer.explanation()


def test_the_bars_are_all_positive_and_all_negative_influence_of_each_layer(talk, asked) -> None:
    answer = asked.ask(*talk.queries[0], Settings("EK-FAC", layer="unembed", count=2))
    scores = asked.scores(*talk.queries[0], Settings("EK-FAC"))
    total = np.abs(scores).sum()
    for k, (name, up, down, chosen) in enumerate(answer.bars()):
        assert name == asked.layers[k]
        assert up == pytest.approx(scores[:, k][scores[:, k] > 0].sum() / total)
        assert down == pytest.approx(scores[:, k][scores[:, k] < 0].sum() / total)
        assert chosen == (name == "unembed")


def test_a_chosen_layer_changes_no_other_layer_s_bar_also_per_unit_of_norm(talk, asked) -> None:
    whole, one = (
        asked.ask(*talk.queries[0], Settings("EK-FAC", layer=layer, unit_norm=True)).bars()
        for layer in (ALL_LAYERS, "unembed")
    )
    assert [bar[:3] for bar in one] == [bar[:3] for bar in whole]
    assert [bar[0] for bar in one if bar[3]] == ["unembed"]
    plain = asked.ask(*talk.queries[0], Settings("EK-FAC")).bars()
    assert [bar[1] for bar in plain] != pytest.approx([bar[1] for bar in whole], rel=1e-3)


def test_the_model_s_own_belief_is_in_the_question(talk, asked) -> None:
    prompt, said = talk.queries[0][0], f"{talk.queries[0][1]} {talk.queries[1][1]}"
    question = asked.question("the", f"{prompt[4:]} {talk.queries[0][1]}")
    ids = talk.corpus.vocabulary.encode(f"{prompt} {talk.queries[0][1]}")
    p = talk.model(torch.tensor([ids])).softmax(-1)[0]
    expected = [float(p[t, ids[t + 1]]) for t in range(len(ids) - 1)]
    assert question.probabilities == pytest.approx(expected)
    assert question.log_likelihood == pytest.approx(sum(map(math.log, expected)))
    own = asked.question(prompt, said.split()[0]).likeliest
    assert own.strip() == talk.corpus.vocabulary.pieces([int(p[len(ids) - 2].argmax())])[0].strip()


def test_a_sequence_knows_its_place_and_its_neighbours(talk, asked) -> None:
    texts = talk.corpus.texts
    one = asked.passage(3)
    assert (one.text, one.before, one.after) == (texts[3], texts[2], texts[4])
    assert one.place == talk.corpus.place(3)
    assert asked.passage(0).before == ""
    assert asked.passage(len(texts) - 1).after == ""


def test_every_second_sequence_keeps_its_neighbours_in_the_text(talk) -> None:
    part, texts = talk.corpus[::2], talk.corpus.texts
    index = TrainIndex.build(talk.model, talk.objective, part.batches(5), talk.index.curvature, progress=False)
    one = TextInfluence(talk.model, talk.objective, index, part).passage(2)
    assert (one.before, one.text, one.after) == (texts[3], texts[4], texts[5])


BAD = {
    "no prompt": ("", "was", "the prompt is empty; expected at least one token, the text that the model reads first"),
    "a prompt of blanks": ("  ", "was", "the prompt is empty"),
    "no completion": ("the", "", "the completion is empty; expected at least one token"),
    "an unknown word": ("the qwerty", "was", "the prompt cannot be read: 'qwerty', word 2"),
    "an unknown answer": ("the", "was <b>", "the completion cannot be read: '<b>', word 2"),
    "too long": (
        "the " * 9,
        "was the",
        r"3 too many tokens: of the 9 \+ 2 that came the model would read 10 .* at most 7\. Leave",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_asked_is_refused_with_what_to_do(asked, case) -> None:
    prompt, said, message = BAD[case]
    assert asked.context == 7
    with pytest.raises(InputError, match=message):
        asked.ask(prompt, said, Settings("EK-FAC"))
    with pytest.raises(ValueError, match=message):
        asked.query(prompt, said)


def test_what_fits_exactly_is_asked_and_one_token_more_is_not(asked) -> None:
    assert asked.query("the " * 7, "was")[1].shape == (1, 7)
    with pytest.raises(InputError, match="1 too many tokens"):
        asked.query("the " * 8, "was")


@pytest.mark.parametrize(
    ("context", "why"), [(8, r"8 tokens came; expected at most 7"), (0, "a question has at least one")]
)
def test_a_context_that_the_model_cannot_read_is_refused(talk, context, why) -> None:
    with pytest.raises(ValueError, match=rf"context={context}; expected at most .*{why}.* trained on, 7\."):
        TextInfluence(talk.model, talk.objective, talk.index, talk.corpus, context=context)
    assert TextInfluence(talk.model, talk.objective, talk.index, talk.corpus, context=5).context == 5


def test_a_corpus_of_another_length_than_the_index_is_refused(talk) -> None:
    fewer = Corpus(talk.corpus.sequences[:-1], talk.corpus.vocabulary, str)
    with pytest.raises(ValueError, match=r"the index holds 24 training examples, and the corpus 23 sequences"):
        TextInfluence(talk.model, talk.objective, talk.index, fewer)


def test_a_contribution_is_the_score_over_all_that_the_model_was_trained_on_not_over_what_is_searched(talk) -> None:
    prompt, completion = talk.queries[0]
    searched = talk.influence().ask(prompt, completion, Settings("EK-FAC"))
    trained = TextInfluence(talk.model, talk.objective, talk.index, talk.corpus, talk.methods, n_train=96)
    answer = trained.ask(prompt, completion, Settings("EK-FAC"))
    for row, other in zip(answer.raised, searched.raised, strict=True):
        assert row.score == other.score
        assert row.contribution == pytest.approx(row.score / 96, rel=1e-12)
        assert other.contribution == pytest.approx(row.score / 24, rel=1e-12)
    assert "score ÷ 96" in answer.explanation()


def test_an_index_that_holds_more_than_the_model_was_trained_on_is_refused(talk) -> None:
    with pytest.raises(ValueError, match=r"n_train=23, and the index holds 24 training examples; expected how many"):
        TextInfluence(talk.model, talk.objective, talk.index, talk.corpus, n_train=23)


def test_an_index_says_its_size_before_it_is_built_and_answers_alike_when_read_back(talk, tmp_path) -> None:
    said = index_size(talk.model, talk.train, talk.index.curvature, torch.float32)
    numbers = sum(o * i for o, i in talk.index.curvature.shapes.values())
    assert said == f"the index of 24 sequences in 13 layers will take {24 * numbers * 4 / 1e6:.1f} MB"
    assert TrainIndex.bytes_needed(talk.model, talk.train, talk.index.curvature) == talk.index.nbytes
    save(talk.index, tmp_path / "index.safetensors")
    read = load_index(tmp_path / "index.safetensors", talk.model)
    again = TextInfluence(talk.model, talk.objective, read, talk.corpus)
    settings = Settings("EK-FAC")
    truth = talk.influence().scores(*talk.queries[0], settings)
    np.testing.assert_allclose(again.scores(*talk.queries[0], settings), truth, rtol=1e-9, atol=1e-12)


def test_sequences_that_networks_and_dampings_do_not_agree_on_are_marked(talk) -> None:
    own = talk.index.curvature
    other = transformer(len(talk.corpus.vocabulary), talk.corpus.context, 8, heads=2, hidden=12, seed=1).double()
    curvature = ekfac(other, talk.objective, talk.train, list(own.layers), progress=False)
    index = TrainIndex.build(other, talk.objective, talk.train, curvature, progress=False)
    browser = talk.browser(others=[(other, index)], count=5)
    answer = browser.answer
    members, question = [(talk.model, own), (other, curvature)], encoded(talk, *talk.queries[0])
    bars = error_bars(members, talk.objective, talk.train, question, relative(0.1), progress=False)
    N, rows = len(talk.corpus.sequences), [*answer.raised, *answer.lowered]
    for row in rows:
        n = row.passage.position
        assert row.interval == pytest.approx((float(bars.low[0, n]) / N, float(bars.high[0, n]) / N), rel=1e-6)
    marked = sum(bool(bars.undecided[0, row.passage.position]) for row in rows)
    assert marked > 0
    assert answer.as_text().count("≈ 0?") == marked
    assert f"≈ 0? ({marked} of {len(rows)}): cannot be told from zero" in answer.as_html()
    assert {"low", "high"} <= answer.table()[0].keys()
    assert "≈ 0?" not in talk.browser(count=5).answer.as_html()
