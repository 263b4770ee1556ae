"""Text in and out without a vocabulary of the course's own: tokenizers of every kind, and what they do at a seam."""

from __future__ import annotations

import warnings

import pytest
import torch
from own_tokenizers import KINDS, TEXTS, byte_level, sentences, word_pieces
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from inflib import NextToken, TokenNote, completion
from inflib.lab import characters
from inflib.texts import part, pieces, plain_ids


@pytest.fixture(params=KINDS)
def tokenizer(request):
    return KINDS[request.param]()


# --- the text of each token ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", TEXTS)
def test_the_pieces_of_a_text_joined_are_the_text(tokenizer, text):
    ids = plain_ids(tokenizer, text)
    found = pieces(tokenizer, ids)
    assert len(found) == len(ids)
    assert "".join(found).lstrip() == text


def test_a_word_of_several_tokens_begins_with_its_blank(tokenizer):
    ids = plain_ids(tokenizer, "a bad")
    found = pieces(tokenizer, ids)
    assert found[0].strip() == "a"
    assert found[1].startswith(" b"), found


def test_a_character_of_several_tokens_stands_at_the_last_of_them():
    tokenizer = byte_level()
    ids = plain_ids(tokenizer, "a🙂b")
    single = [bytes(tokenizer.decode([k]), "utf-8") for k in ids]
    assert len(ids) > 3, single  # the picture is no single token here
    found = pieces(tokenizer, ids)
    assert [piece for piece in found if piece] == ["a", "🙂", "b"]
    assert found[-2:] == ["🙂", "b"]


def test_a_text_that_ends_within_a_character_says_so():
    tokenizer = byte_level()
    ids = plain_ids(tokenizer, "a🙂")[:-1]
    assert pieces(tokenizer, ids)[-1].endswith("\ufffd")


def test_special_tokens_are_shown():
    tokenizer = sentences()
    assert pieces(tokenizer, tokenizer.encode("a bad"))[0] == "<s>"


# --- prompt and completion -------------------------------------------------------------------------------------------------


def test_a_completions_tokens_are_those_of_the_whole_text(tokenizer):
    prompt, then = "Gosen shares the house with a tame", " badger"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TokenNote)
        ids = part(tokenizer, prompt, then)
    whole = plain_ids(tokenizer, prompt + then)
    together = ids.prompt + ids.completion
    assert together[-len(whole) :] == whole
    assert together[: -len(whole)] == ([] if tokenizer.cls_token is tokenizer.bos_token is None else [0])
    assert "".join(pieces(tokenizer, ids.completion)).strip() == "badger"


def test_what_begins_every_text_begins_the_prompt_and_what_ends_it_does_not_end_it():
    begun, around = sentences(), word_pieces()
    assert part(begun, "a", " bad").prompt[0] == begun.bos_token_id
    ids = part(around, "a", " bad")
    assert ids.prompt[0] == around.cls_token_id
    assert around.sep_token_id not in [*ids.prompt, *ids.completion]


def test_a_completion_of_other_tokens_alone_is_said_and_those_in_context_are_used():
    tokenizer = byte_level()
    tokenizer = sentences()
    with pytest.warns(TokenNote, match=r"after its prompt, and .* alone.*Did you mean to begin it with a blank\?"):
        ids = part(tokenizer, "the tame", "badger")
    assert ids.completion == plain_ids(tokenizer, "the tamebadger")[len(ids.prompt) - 1 :]
    assert ids.completion != plain_ids(tokenizer, "badger")


def test_a_token_across_the_seam_counts_to_the_completion_and_is_said():
    tokenizer = byte_level()
    whole = plain_ids(tokenizer, "a badger")
    inside = next(k for k, piece in enumerate(pieces(tokenizer, whole)) if len(piece) > 2)
    begun = "".join(pieces(tokenizer, whole[:inside])) + pieces(tokenizer, whole)[inside][:2]
    rest = "a badger".removeprefix(begun)
    with pytest.warns(TokenNote, match="share a token"):
        ids = part(tokenizer, begun, rest)
    assert ids.completion == whole[len(ids.prompt) :]
    assert tokenizer.decode(ids.completion).endswith(rest)
    assert len(tokenizer.decode(ids.completion)) > len(rest)


def test_a_query_of_text_is_the_query_of_its_ids():
    tokenizer = byte_level()
    prompt, then = "the house with a tame", " badger"
    first, whole = plain_ids(tokenizer, prompt), plain_ids(tokenizer, prompt + then)
    (inputs, targets), (x, y) = (
        completion(prompt, then, tokenizer=tokenizer),
        completion(first, whole[len(first) :]),
    )
    assert torch.equal(inputs["input_ids"], x["input_ids"]) and torch.equal(targets, y)


def test_any_object_that_encodes_and_decodes_will_do():
    vocabulary = characters("abc ")
    inputs, targets = completion("ab", " c", tokenizer=vocabulary)
    assert vocabulary.decode(inputs["input_ids"][0]) == "ab "
    assert vocabulary.decode(targets[0][targets[0] != -100]) == " c"


@pytest.mark.parametrize(("prompt", "then"), [([1, 2], "x"), ("x", [1])])
def test_ids_beside_a_tokenizer_are_refused(prompt, then):
    with pytest.raises(TypeError, match=r"expected text\. Leave tokenizer= out for token ids"):
        completion(prompt, then, tokenizer=byte_level())


def test_an_empty_text_is_refused():
    with pytest.raises(ValueError, match="the completion is empty"):
        completion("a", "", tokenizer=byte_level())
    with pytest.raises(ValueError, match="the prompt is empty"):
        completion("", "a", tokenizer=byte_level())


def test_text_without_a_tokenizer_says_what_reads_it():
    with pytest.raises(TypeError, match=r"completion\(prompt, completion, tokenizer=\.\.\.\)"):
        completion("a", "b")


# --- beside a model --------------------------------------------------------------------------------------------------------

TINY = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}


def llama(vocabulary: int, context: int = 8) -> LlamaForCausalLM:
    return LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, max_position_embeddings=context, **TINY)).eval()


def test_a_question_longer_than_the_models_context_is_refused():
    tokenizer = byte_level()
    model = llama(len(tokenizer))
    assert completion("a b", " c", tokenizer=tokenizer, model=model)
    with pytest.raises(ValueError, match=r"expected at most 8, the model's context\. Shorten the prompt"):
        completion(TEXTS[1], " c", tokenizer=tokenizer, model=model)
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), n_positions=8, n_embd=8, n_layer=1, n_head=2))
    with pytest.raises(ValueError, match="expected at most 8"):
        completion(TEXTS[1], " c", tokenizer=tokenizer, model=gpt2)


@pytest.mark.parametrize("rows", [150, 400])
def test_a_tokenizer_of_another_model_is_refused(rows):
    tokenizer = byte_level()
    with pytest.raises(ValueError, match=rf"a tokenizer of {len(tokenizer)} tokens came with a model of {rows}"):
        completion("a", " bad", tokenizer=tokenizer, model=llama(rows))


def test_a_model_with_rows_to_spare_takes_its_tokenizer():
    tokenizer = byte_level()
    inputs, targets = completion("a", " bad", tokenizer=tokenizer, model=llama(len(tokenizer) + 20))
    assert NextToken().loss(llama(len(tokenizer) + 20)(**inputs).logits, targets).item() > 0


def test_an_id_that_the_model_has_no_row_for_is_refused():
    with pytest.raises(ValueError, match=r"the token id 9 came with a model of 9"):
        completion([1], [9], model=llama(9))
