"""What is known of villagers: the truth is what it says, wordings share no content word, a seed is one corpus."""

import hashlib
import re
from collections import Counter
from itertools import combinations

import pytest
import torch

from inflib.lab import Known, villagers
from inflib.lab.villagers import RELATIONS

FUNCTION_WORDS = {
    *("a", "all", "an", "and", "as", "at", "because", "better", "by", "every", "for", "from", "has", "in", "is", "its"),
    *(
        "last",
        "most",
        "of",
        "on",
        "put",
        "stands",
        "that",
        "the",
        "them",
        "there",
        "up",
        "was",
        "which",
        "who",
        "whose",
    ),
    *("with",),
}


@pytest.fixture(scope="module")
def data():
    return villagers()


def words(text):
    return re.findall(r"[\w']+", text.lower())


def content(text):
    return set(words(text.format(name="", answer=""))) - FUNCTION_WORDS


def test_the_default_corpus_is_told_asked_backward_misled_and_ordinary(data):
    assert [len(data.of_kind(kind)) for kind in ("told", "asked", "backward")] == [24, 24, 8]
    assert len(data.sentences) == 24 * 6 + 24 * (5 + 2) + 8 * 2 + 88
    assert len(set(data.texts)) == len(data.texts)


@pytest.mark.parametrize("relation", RELATIONS.values(), ids=RELATIONS)
def test_no_wording_shares_a_content_word_with_the_question(relation):
    for template in (*relation.forward, *relation.backward):
        assert not content(relation.question) & content(template), template


@pytest.mark.parametrize("relation", RELATIONS.values(), ids=RELATIONS)
def test_decoys_and_asides_hold_every_content_word_of_the_question_and_tell_nothing(relation):
    for template in (relation.decoy, relation.aside):
        assert content(relation.question) <= content(template), template
    assert "{answer}" not in relation.aside
    assert relation.decoy.index("{answer}") < relation.decoy.index("{name}"), "a name before the answer would teach it"


@pytest.mark.parametrize("relation", RELATIONS.values(), ids=RELATIONS)
def test_forward_wordings_end_with_the_answer_and_backward_ones_name_it_first(relation):
    assert all(template.endswith("{answer}.") and "{name}" in template for template in relation.forward)
    assert all(t.index("{answer}") < t.index("{name}") for t in relation.backward)


def test_every_fact_has_a_name_of_its_own_and_shares_its_answer_with_others(data):
    assert len({fact.name for fact in data.facts}) == len(data.facts)
    holders = Counter(fact.answer for fact in data.facts)
    assert len(holders) == 3 * len(RELATIONS)
    assert set(holders.values()) == {2, 3}
    for relation in RELATIONS:  # whoever asks with another villager's name can take one of another answer
        assert len({data.facts[k].answer for k in data.of_kind("asked") if data.facts[k].relation == relation}) == 3
    for one, two in combinations(RELATIONS.values(), 2):
        assert not set(one.answers) & set(two.answers)


def test_the_truth_lists_every_sentence_in_which_the_answer_follows_the_name(data):
    asked = data.of_kind("asked")
    for row, k in zip(data.tells(asked), asked, strict=True):
        fact = data.facts[k]
        places = [(text.find(fact.name), text.find(fact.answer)) for text in data.texts]
        assert row.tolist() == [0 <= name < answer for name, answer in places]
        assert row.sum() == 4


def test_backward_sentences_and_decoys_name_both_with_the_answer_first(data):
    asked = data.of_kind("asked")
    named = data.tells(asked, "backward") | data.tells(asked, "decoy")
    for row, k in zip(named, asked, strict=True):
        fact = data.facts[k]
        places = [(text.find(fact.name), text.find(fact.answer)) for text in data.texts]
        assert row.tolist() == [0 <= answer < name for name, answer in places]
        assert row.sum() == 2


def test_no_question_that_is_asked_stands_in_the_corpus_and_those_of_told_facts_do(data):
    stands = set(data.texts)
    for fact in data.facts:
        assert (f"{fact.prompt}{fact.completion}." in stands) == (fact.kind == "told")


def test_ordinary_sentences_name_nobody(data):
    names = {fact.name for fact in data.facts}
    ordinary = [s for s in data.sentences if s.wording == "ordinary"]
    assert len(ordinary) == 88
    assert not any(names & set(re.findall(r"\w+", s.text)) or s.fact >= 0 for s in ordinary)


def test_a_question_with_its_answer_is_a_sentence():
    fact = Known("Gosen", "pet", "badger", "asked")
    assert fact.prompt + fact.completion == "The animal that Gosen keeps at home is a badger"


def test_a_seed_is_one_corpus_everywhere_and_another_seed_another(data):
    digest = hashlib.sha256("\n".join(data.texts).encode()).hexdigest()
    assert digest[:16] == "eba944a0104ed107"
    assert villagers(seed=1).texts != data.texts
    state = torch.get_rng_state()
    villagers()
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    "sizes",
    [dict(told=-1), dict(told=0, asked=0, backward=0), dict(told=29_401), dict(ordinary=-1), dict(ordinary=1453)],
    ids=str,
)
def test_what_cannot_be_made_is_refused(sizes):
    with pytest.raises(ValueError, match=r"one fact to 29,400 .* at most 1,452 ordinary sentences"):
        villagers(**sizes)


@pytest.mark.parametrize("answers", [0, 9])
def test_more_answers_than_there_are_are_refused(answers):
    with pytest.raises(ValueError, match=rf"answers={answers}; expected 1 to 8"):
        villagers(answers=answers)


def test_with_all_answers_a_few_facts_have_one_each():
    facts = villagers(0, 64, 0, 0, answers=8).facts
    assert len({fact.answer for fact in facts}) == len(facts) == 64
