"""The text browser on anybody's documents: a Hugging Face model, its tokenizer's pieces, long texts, lazily read ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from own_tokenizers import TEXTS, byte_level
from transformers import LlamaConfig, LlamaForCausalLM

from inflib import NextToken, TrainIndex, completion, ekfac, influence, token_batches
from inflib.widgets import TextBrowser, Texts
from inflib.widgets.heat import LONG, hottest
from inflib.widgets.layer_bars import labels
from inflib.widgets.ranking import Settings
from inflib.widgets.texts import TokenizerVocabulary

DOCUMENTS = [*TEXTS, "A lodger shares the house with a badger.", "Bad day? A tame badger, a bad house."]
LAYERS = "*mlp.down_proj"


class Kept(Sequence):
    """Documents on a disk, as it were: which were read is known."""

    def __init__(self, texts):
        self.texts, self.read = texts, []

    def __len__(self):
        return len(self.texts)

    def __getitem__(self, n):
        self.read.append(n)
        return self.texts[n]


@pytest.fixture(scope="module")
def tokenizer():
    return byte_level()


@pytest.fixture(scope="module")
def model(tokenizer):
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=400, initializer_range=0.4, **sizes)
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def indexed(model, tokenizer):
    corpus = Texts(DOCUMENTS, tokenizer, context=64, begin="A")
    train = token_batches(corpus.sequences)
    curvature = ekfac(model, NextToken(), train, LAYERS, progress=False)
    return corpus, TrainIndex.build(model, NextToken(), train, curvature, progress=False)


@pytest.fixture
def browser(model, indexed):
    corpus, index = indexed
    return TextBrowser(model, NextToken(), index, corpus, [("the house with a tame", " badger")], count=3)


def test_its_numbers_are_those_of_influence_on_the_same_ids(browser, model, indexed, tokenizer):
    corpus, index = indexed
    query = [completion("Athe house with a tame", " badger", tokenizer=tokenizer)]
    lambdas = {name: 0.1 * mean for name, mean in index.curvature.mean_eigenvalues().items()}
    train = token_batches(corpus.sequences)
    expected = influence(model, NextToken(), train, query, index.curvature, lambdas, progress=False)[0]
    came = browser.influence.scores("the house with a tame", " badger", Settings("EK-FAC")).sum(1)
    np.testing.assert_allclose(came, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_the_pieces_shown_are_the_tokenizers_and_the_token_that_begins_a_text_has_none(browser):
    shown = browser.lists[0].passages[0]
    text = "".join(shown["pieces"])
    assert text in DOCUMENTS
    assert shown["pieces"][0] == "" and shown["names"][0] == "no text of its own"
    assert any(piece.startswith(" b") for row in browser.answer.raised for piece in row.passage.pieces)


def test_any_text_may_be_asked_and_a_blank_parts_two_words(browser):
    assert "Any text may be asked" in browser.vocabulary.value
    answer = browser.ask("What the lodger shares is the", "house")
    assert "".join(answer.question.pieces) == " house"
    assert browser.fits.value.count("tokens, of at most 64") == 1


def test_what_happens_where_prompt_and_completion_meet_is_said_while_typing(browser):
    browser.prompt.value, browser.completion.value = "the house with a tame ", "badger"
    assert "share a token" in browser.fits.value or "after its prompt" in browser.fits.value


def test_what_cannot_be_asked_is_refused(browser):
    with pytest.raises(ValueError, match="the completion is empty"):
        browser.ask("a", "")
    with pytest.raises(ValueError, match="too many tokens"):
        browser.ask("a badger " * 60, "a")


def test_a_document_becomes_a_question_by_its_last_word(browser):
    assert browser.influence.as_question(0) == ("Gosen shares the house with a tame", " badger.")
    answer = browser.ask_text(0)
    assert "".join(answer.question.pieces) == " badger."


def test_only_the_documents_shown_are_read(model, indexed, tokenizer):
    _, index = indexed
    kept = Kept(DOCUMENTS)
    corpus = Texts(kept, tokenizer, context=64, begin="A", places=lambda n: f"page {n}")
    found = TextBrowser(model, NextToken(), index, corpus, [("a", " bad")], count=1)
    assert set(kept.read) == {row.passage.position for row in (*found.answer.raised, *found.answer.lowered)}
    assert len(set(kept.read)) < len(DOCUMENTS)
    assert found.answer.raised[0].passage.place.startswith("page ")


def test_a_document_longer_than_the_context_is_cut_where_training_cut_it(tokenizer):
    corpus = Texts(["a badger " * 50], tokenizer, context=10)
    assert len(corpus.sequences[0]) == 11
    assert [len(ids) for ids in corpus.sequences[0:1]] == [11]


def test_a_vocabulary_without_a_beginning_hides_nothing(tokenizer):
    own = TokenizerVocabulary(tokenizer)
    assert "".join(own.pieces(own.encode("A day"))) == "A day"


# --- long texts ------------------------------------------------------------------------------------------------------------------


def test_of_a_long_text_the_hottest_run_is_shown():
    values = np.zeros(1000)
    values[700:720], values[3] = -1.0, 5.0
    pieces, shown = hottest([f"{k} " for k in range(1000)], values)
    assert len(pieces) == len(shown) == LONG + 2
    assert (pieces[0], pieces[-1]) == ("… ", " …")
    assert "700 " in pieces and "719 " in pieces and "3 " not in pieces
    assert np.nansum(shown) == -20 and np.isnan(shown[[0, -1]]).all()


@pytest.mark.parametrize(("hot", "ends"), [(0, ("0 ", " …")), (999, ("… ", "999 "))])
def test_at_either_end_nothing_is_said_to_be_left_out(hot, ends):
    values = np.zeros(1000)
    values[hot] = 1.0
    pieces, _ = hottest([f"{k} " for k in range(1000)], values)
    assert (pieces[0], pieces[-1]) == ends
    assert len(pieces) == LONG + 1


def test_a_text_that_fits_is_shown_whole_and_missing_values_count_nothing():
    pieces, values = ["a"] * LONG, np.full(LONG, np.nan)
    assert hottest(pieces, values) == (pieces, values)
    long, some = ["a"] * (LONG + 5), np.full(LONG + 5, np.nan)
    some[-1] = 1.0
    assert hottest(long, some)[0][0] == "… "


def test_a_long_document_is_folded_with_its_hottest_passage_first(model, tokenizer):
    long = "A bad day, a lodger. " * 12 + "Gosen shares the house with a tame badger. " * 2 + "A day, a day. " * 12
    corpus = Texts([long, *DOCUMENTS], tokenizer, context=390)
    train = token_batches(corpus.sequences)
    curvature = ekfac(model, NextToken(), train, LAYERS, progress=False)
    index = TrainIndex.build(model, NextToken(), train, curvature, progress=False)
    found = TextBrowser(model, NextToken(), index, corpus, [("with a tame", " badger")], count=6)
    (row,) = [p for view in found.lists for p in view.passages if p["key"] == 0]
    assert LONG < len(row["pieces"]) <= LONG + 2 < len(corpus.sequences[0])
    assert "…" in (row["pieces"][0] + row["pieces"][-1])
    assert row["text"] == "".join(corpus.vocabulary.pieces(corpus.sequences[0])), "the whole is folded below"
    assert len(row["pieces"]) == len(row["names"]) == len(row["steps"]) == len(row["numbers"])
    assert "…" in found.as_html()


# --- layers ----------------------------------------------------------------------------------------------------------------

ADAPTERS = [f"base_model.model.model.layers.{n}.mlp.down_proj.lora_{m}.default" for n in (21, 24) for m in "AB"]


@pytest.mark.parametrize(
    ("names", "shown"),
    [
        (ADAPTERS, [f"layers {n} … lora_{m}" for n in (21, 24) for m in "AB"]),
        (ADAPTERS[::2], ["layers 21", "layers 24"]),
        (ADAPTERS[:2], ["lora_A", "lora_B"]),
        (["blocks.0.mlp.up", "blocks.1.mlp.up"], ["blocks.0.mlp.up", "blocks.1.mlp.up"]),
        (ADAPTERS[:1], ADAPTERS[:1]),
        ([*ADAPTERS, "head"], [*ADAPTERS, "head"]),
    ],
)
def test_long_names_of_layers_are_shown_by_what_differs(names, shown):
    assert labels(names) == shown


def test_layers_are_chosen_by_their_whole_names_however_they_are_shown(browser, indexed):
    names = list(indexed[1].curvature.layers)
    assert [bar["label"] for bar in browser.bars.bars] == ["layers 0", "layers 1"]
    assert [bar["name"] for bar in browser.bars.bars] == names
    assert all(name in bar["tip"] and name in bar["spoken"] for name, bar in zip(names, browser.bars.bars, strict=True))
    browser.bars._handle_custom_msg({"chosen": names[1]}, [])
    assert (browser.layer.label, browser.layer.value) == ("layers 1", names[1])
    assert browser.answer.settings.layer == names[1]
