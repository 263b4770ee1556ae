"""Invented facts: the truth is what it says, wordings share nothing but names, and a seed is one corpus everywhere."""

import hashlib
import sys
from itertools import combinations, product

import numpy as np
import pytest
import torch

from inflib.lab import Fact, facts
from inflib.lab.facts import ALL_NAMES, LAST, SYLLABLE, WORDINGS, Draws, invented_names

NAMES = {"{place}", "{person}"}


@pytest.fixture(scope="module")
def data():
    return facts()


def test_the_default_corpus_is_told_asked_and_misled(data):
    assert len(data.facts) == 80
    assert data.asked == tuple(range(40, 80))
    assert len(data.train) == 40 * 3 + 40 * 2 + 260
    counts = torch.bincount(data.wording + 1)
    assert counts.tolist() == [260, 40, 80, 80]


@pytest.mark.parametrize("relation", WORDINGS)
def test_the_wordings_of_a_relation_share_no_word_but_the_names(relation):
    for one, two in combinations(WORDINGS[relation], 2):
        assert set(one.split()) & set(two.split()) == NAMES


def test_a_question_shares_no_word_but_its_names_with_its_answers(data):
    for row, k in zip(data.answers(), data.asked, strict=True):
        fact, told = data.facts[k], [data.train.texts[n] for n in row.nonzero().flatten().tolist()]
        assert sorted(told) == sorted([fact.told(1), fact.told(2)])
        for sentence in told:
            assert set(sentence.split()) & set(fact.told(0).split()) == {fact.place, fact.person}


def test_no_asked_question_stands_in_the_corpus(data):
    stands = set(data.train.texts)
    assert not stands & {data.facts[k].told(0) for k in data.asked}
    assert all(fact.told(w) in stands for fact in data.facts[:40] for w in range(3))


def test_the_truth_lists_every_sentence_in_which_the_person_follows_the_place(data):
    def tells(fact, sentence):
        named = {fact.place, fact.person} <= set(sentence)
        return named and sentence.index(fact.place) < sentence.index(fact.person)

    sentences = [text.split() for text in data.train.texts]
    for row, fact in zip(data.answers(range(80)), data.facts, strict=True):
        assert row.tolist() == [tells(fact, sentence) for sentence in sentences]


def test_decoys_name_place_and_person_and_do_not_tell_the_fact(data):
    for row, truth, k in zip(data.decoys(), data.answers(), data.asked, strict=True):
        fact = data.facts[k]
        named = [{fact.place, fact.person} <= set(text.split()) for text in data.train.texts]
        assert row.tolist() == [n and not t for n, t in zip(named, truth.tolist(), strict=True)]
        assert row.sum() == 2


def test_every_asked_fact_loses_two_sentences_paraphrases_and_decoys_by_turns(data):
    gone = data.withheld()
    assert gone.sum() == 80
    for at, (told, misled) in enumerate(zip(data.answers(), data.decoys(), strict=True)):
        assert gone[told].tolist() == [at % 2 == 0] * 2
        assert gone[misled].tolist() == [at % 2 == 1] * 2


def test_every_asked_fact_loses_a_paraphrase_or_what_names_its_person_alone_by_turns(data):
    gone, telling = data.halved(), data.answers()
    for at, (k, told) in enumerate(zip(data.asked, telling, strict=True)):
        assert gone[told].tolist().count(True) == at % 2
        named = [data.facts[k].person in text.split() for text in data.train.texts]
        alone = torch.tensor(named) & ~told & ~data.decoys([k])[0]
        assert gone[alone].all() or at % 2 == 1
    others = gone & ~telling.any(0)
    assert others.sum() == 10 and "the horse of Nasak was grey" in [data.train.texts[n] for n in others.nonzero()]


def test_two_distractors_name_both_with_the_person_first(data):
    sentences = [text.split() for text in data.train.texts]
    for fact in data.facts:
        both = [s for s in sentences if {fact.place, fact.person} <= set(s)]
        misleading = [s for s in both if s.index(fact.person) < s.index(fact.place)]
        assert len(misleading) == 2
        assert all({"of", "was", "the"} <= set(sentence) for sentence in misleading)


def test_distractors_use_a_facts_names_with_words_of_the_question(data):
    asked = {data.facts[k].place for k in data.asked} | {data.facts[k].person for k in data.asked}
    named = [set(text.split()) for text, w in zip(data.train.texts, data.wording, strict=True) if w < 0]
    assert all(any(name in words for words in named) for name in asked)
    assert all("the" in words and "was" in words for words in named)
    assert len(named) == 260


def test_counting_common_words_finds_a_distractor_before_a_paraphrase(data):
    misled = 0
    for row, k in zip(data.answers(), data.asked, strict=True):
        question = set(data.facts[k].told(0).split())
        common = torch.tensor([len(question & set(text.split())) for text in data.train.texts])
        misled += bool(common[~row].max() > common[row].max())
    assert misled == 40


def test_a_query_is_the_question_and_its_answer(data):
    vocabulary, k = data.train.vocabulary, data.asked[0]
    inputs, targets = data.queries()[0]
    assert vocabulary.decode(inputs["input_ids"][0]) == data.facts[k].prompt
    assert vocabulary.decode(targets[targets != -100]) == data.facts[k].person
    assert len(data.queries()) == 40
    assert len(data.queries([3, 4])) == 2


def test_reversed_sentences_keep_their_rows(data):
    turned = data.reversed()
    for one, two in zip(data.train.texts, turned.texts, strict=True):
        assert one.split() == two.split()[::-1]
    assert turned.place(0) == f"{data.train.place(0)}, reversed"


def test_places_say_what_a_sentence_is(data):
    n = int((data.fact == 41).nonzero()[0])
    assert data.train.place(n).startswith("fact 41 (ruler), paraphrase")
    assert data.train.place(int((data.wording == 0).nonzero()[0])).endswith("its question")
    assert data.train.place(int((data.fact < 0).nonzero()[0])) == "a distractor"


def test_a_seed_is_one_corpus_and_another_is_another():
    one, two, other = facts(6, 6, 20, seed=1), facts(6, 6, 20, seed=1), facts(6, 6, 20, seed=2)
    assert one.train.texts == two.train.texts
    assert torch.equal(one.fact, two.fact)
    assert one.train.texts != other.train.texts


def test_the_default_corpus_is_the_same_on_every_machine(data):
    digest = hashlib.sha256("\n".join(data.train.texts).encode()).hexdigest()
    assert digest[:16] == "95ff1ffaaaacdce1"


def test_draws_are_philoxs_own_numbers():
    raw = np.random.Philox(7).random_raw(3)
    draws = Draws(7)
    assert [draws.below(1000) for _ in range(3)] == [int(x) % 1000 for x in raw]
    assert sorted(draws.shuffled(range(50))) == list(range(50))


def test_names_differ_and_are_no_words_of_the_corpus():
    names = invented_names(500, Draws(0))
    assert len(set(names)) == 500
    assert all(name[0].isupper() for name in names)
    syllables = ["".join(pair) for pair in product(*SYLLABLE)]
    assert len({"".join(parts) for parts in product(syllables, syllables, LAST)}) == ALL_NAMES == 29_400


def test_a_told_fact_reads_as_written():
    fact = Fact("builder", "Benus", "Nasak")
    assert [fact.told(w) for w in range(3)] == [
        "the builder of Benus was Nasak",
        "Benus owes its walls to Nasak",
        "every stone at Benus recalls Nasak",
    ]
    assert fact.prompt == "the builder of Benus was"


def test_more_facts_than_names_are_refused():
    with pytest.raises(
        ValueError, match=r"told=14701, asked=0 take 29,402 names.*at most 29,400.*at most 14,700 facts"
    ):
        facts(14_701, 0)


def test_every_name_that_there_is_can_be_drawn(monkeypatch):
    module = sys.modules[invented_names.__module__]
    monkeypatch.setattr(module, "SYLLABLE", ("bd", "ae"))
    monkeypatch.setattr(module, "LAST", "k")
    assert len(invented_names(16, Draws(0))) == 16


@pytest.mark.parametrize("sizes", [(0, 0, 5), (1, 0, 5), (-1, 5, 5), (5, 5, -1)])
def test_a_corpus_without_facts_is_refused(sizes):
    with pytest.raises(ValueError, match=r"at least two facts: told=40, asked=40"):
        facts(*sizes)
