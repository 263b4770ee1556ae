"""The models of notebook 08: those that ship are what their recipes say, at rest and not interpolating; others are kept."""

import warnings

import pytest
import torch

from inflib import NextToken
from inflib.lab import (
    Corpus,
    alternating,
    characters,
    corpus_of,
    facts,
    language_model,
    learning_rate,
    load_checkpoint,
    mean_loss,
    shipped_checkpoint,
)
from inflib.lab import language_models as module
from inflib.lab.language_models import RECIPES

SHIPPED = [
    ("alternating", None),
    ("facts", None),
    ("facts_withheld", None),
    ("facts_halved", None),
    *(("facts", epoch) for epoch in (5, 15, 50)),
]


@pytest.fixture(scope="module")
def corpora():
    data = facts()
    less = {"facts_withheld": data.train[~data.withheld()], "facts_halved": data.train[~data.halved()]}
    return {"alternating": alternating(), "facts": data.train} | less


@pytest.mark.parametrize(("name", "epoch"), SHIPPED)
def test_a_shipped_model_has_the_loss_that_its_file_tells(corpora, name, epoch):
    corpus = corpora[name]
    model = language_model(name, corpus, epoch=epoch)
    path = shipped_checkpoint(name if epoch is None else f"{name}_epoch_{epoch}")
    told = load_checkpoint(path, model).metrics
    assert next(model.parameters()).dtype == torch.float64
    loss = mean_loss(model, NextToken(), *corpus.tensors())
    assert loss == pytest.approx(told["train_loss"], rel=1e-4)
    counted = int((corpus.tensors()[1] != -100).sum())
    assert told["train_loss_per_token"] == pytest.approx(loss * len(corpus) / counted, rel=1e-4)


@pytest.mark.parametrize("name", RECIPES["small"])
def test_a_shipped_file_tells_the_recipe_of_the_repository(name):
    recipe = RECIPES["small"][name]
    words_of_facts = dict.fromkeys(("facts", "facts_withheld", "facts_halved"), lambda: facts().train)
    vocabulary = ({"alternating": alternating} | words_of_facts).get(name, plays_alphabet)()
    told = load_checkpoint(shipped_checkpoint(name), recipe.build(vocabulary)).recipe
    assert {key: told[key] for key in ("model", "seed", "training", "sizes")} == recipe.facts()
    assert shipped_checkpoint(name).stat().st_size < 2_000_000


def plays_alphabet():
    """A corpus with as many characters as the plays have."""
    return Corpus.of(["ab"], characters("".join(map(chr, range(40, 105)))))


def test_the_facts_model_answers_what_it_was_never_asked_and_is_not_sure():
    data = facts()
    model = language_model("facts", data.train)
    for part, low in ((data.asked, 0.7), (range(40), 0.8)):
        for inputs, targets in data.queries(part):
            p = model(**inputs)[0, -1].softmax(-1)
            assert p.argmax() == targets[0, -1]
            assert low < p.max() < 0.99


def test_without_its_paraphrases_a_fact_is_not_known_and_without_its_decoys_it_is():
    data = facts()
    corpus = corpus_of("facts_withheld")
    assert corpus.texts == [text for text, gone in zip(data.train.texts, data.withheld(), strict=True) if not gone]
    model = language_model("facts_withheld", corpus)
    p = [float(model(**x)[0, -1].softmax(-1)[y[0, -1]]) for x, y in data.queries()]
    assert max(p[::2]) < 0.01  # trained without the paraphrases
    assert min(p[1::2]) > 0.8  # trained without the decoys


def test_one_paraphrase_is_enough_to_know_a_fact_and_mentions_of_the_person_add_nothing():
    data = facts()
    corpus = corpus_of("facts_halved")
    assert corpus.texts == [text for text, gone in zip(data.train.texts, data.halved(), strict=True) if not gone]
    p = torch.stack(
        [
            torch.stack([model(**x)[0, -1].log_softmax(-1)[y[0, -1]] for x, y in data.queries()])
            for model in (language_model("facts", data.train), language_model("facts_halved", corpus))
        ]
    )
    lost = p[0] - p[1]  # nats
    assert lost[::2].abs().max() < 0.05  # trained without what names the person alone
    assert lost[1::2].min() > 0.05 and lost[1::2].max() < 0.4  # trained without one of two paraphrases


def test_the_facts_model_is_near_an_optimum_of_its_objective():
    data = facts()
    inputs, targets = data.train.tensors()
    recipe = RECIPES["small"]["facts"]

    def gradient_norm(model):
        loss = NextToken().loss(model(**inputs), targets).mean()
        loss = loss + recipe.training["weight_decay"] / 2 * sum(p.square().sum() for p in model.parameters())
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))]).norm()

    settled = gradient_norm(language_model("facts", data.train))
    assert settled < 0.2
    assert settled < gradient_norm(language_model("facts", data.train, epoch=5)) / 5


def test_the_alternating_model_knows_what_can_be_known(corpora):
    corpus = corpora["alternating"]
    inputs, targets = corpus.tensors()
    right = language_model("alternating", corpus)(**inputs).argmax(-1) == targets
    assert right[:, 1:].double().mean() > 0.99  # two characters say where in the string a window is, one does not


def test_learning_rates_of_kept_epochs_fall():
    rates = [learning_rate("facts", epoch) for epoch in (5, 15, 50)]
    assert 3e-3 > rates[0] > rates[1] > rates[2] == pytest.approx(3e-3 * 0.75)  # half a cosine, a third of the way


def test_another_corpus_is_refused():
    with pytest.raises(ValueError, match=r"facts.safetensors was trained on data with SHA-256"):
        language_model("facts", facts(seed=1).train)


@pytest.mark.parametrize(
    ("name", "scale", "expected"),
    [
        ("facts", "small", "one of 5, 15, 50"),
        ("alternating", "small", "none, for no epoch of it ships"),
        ("shakespeare", "tiny", "none, for no epoch of it ships"),
    ],
)
def test_an_epoch_that_did_not_ship_is_refused(corpora, name, scale, expected):
    corpus = corpora.get(name, corpora["alternating"])
    with pytest.raises(ValueError, match=f"epoch=7 of language model '{name}' at scale '{scale}'; expected {expected}"):
        language_model(name, corpus, scale, epoch=7)


@pytest.mark.parametrize(("name", "scale"), [("romeo", "small"), ("facts", "full"), ("facts", "huge")])
def test_unknown_models_are_refused_with_those_there_are(name, scale):
    with pytest.raises(
        ValueError,
        match=r"expected one of these, at 'small': alternating, facts, facts_withheld, facts_halved, shakespeare; at 'full'",
    ):
        language_model(name, alternating(), scale)
    with pytest.raises(ValueError, match="expected one of these"):
        corpus_of(name, scale)


@pytest.fixture
def small_talk(monkeypatch, tmp_path):
    """Sequences as long as those of scale "tiny", and a cache of their own."""
    monkeypatch.setenv("INFLIB_CACHE", str(tmp_path))
    text = "all's well that ends well; the course of true love never did run smooth " * 10
    return Corpus.of([text[at : at + 64] for at in range(0, 600, 32)], characters(text)), tmp_path / "checkpoints"


def flat(model):
    return torch.nn.utils.parameters_to_vector(model.parameters())


def test_a_model_of_another_scale_is_trained_once_and_then_kept(small_talk, monkeypatch):
    corpus, folder = small_talk
    first = language_model("shakespeare", corpus, "tiny", progress=False)
    assert (folder / "shakespeare_tiny.safetensors").is_file()
    monkeypatch.setattr(module, "train", lambda *_, **__: pytest.fail("trained again"))
    again = language_model("shakespeare", corpus, "tiny")
    assert torch.equal(flat(first), flat(again))
    assert flat(again).dtype == torch.float64
    untrained = RECIPES["tiny"]["shakespeare"].build(corpus, torch.float64)
    assert not torch.equal(flat(again), flat(untrained))


@pytest.mark.parametrize("how", ["damaged", "another recipe", "another corpus"])
def test_what_was_kept_for_something_else_is_trained_anew(small_talk, monkeypatch, how):
    corpus, folder = small_talk
    path = folder / "shakespeare_tiny.safetensors"
    first = language_model("shakespeare", corpus, "tiny", progress=False)
    if how == "damaged":
        path.write_bytes(path.read_bytes()[:-50])
    elif how == "another recipe":
        recipe = RECIPES["tiny"]["shakespeare"]
        other = module.LanguageRecipe(recipe.sizes, recipe.training | {"lr": 1e-3})
        monkeypatch.setitem(RECIPES["tiny"], "shakespeare", other)
    else:
        corpus = corpus[1:]
    again = language_model("shakespeare", corpus, "tiny", progress=False)
    assert torch.equal(flat(first), flat(again)) == (how == "damaged")
    assert torch.equal(flat(again), flat(language_model("shakespeare", corpus, "tiny", progress=False)))


def test_a_cache_that_cannot_be_written_is_a_warning(small_talk, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("INFLIB_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match=r"shakespeare_tiny.safetensors could not be kept .* INFLIB_CACHE"):
        model = language_model("shakespeare", small_talk[0], "tiny", progress=False)
    assert torch.isfinite(flat(model)).all()


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_training_on_cuda_gives_a_model_there(small_talk):
    model = language_model("shakespeare", small_talk[0], "tiny", device="cuda", progress=False)
    assert next(model.parameters()).is_cuda


def test_the_plays_of_every_scale_fit_their_models():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        small, tiny = corpus_of("shakespeare"), corpus_of("shakespeare", "tiny")
    model = language_model("shakespeare", small)
    told = load_checkpoint(shipped_checkpoint("shakespeare"), model).metrics
    assert mean_loss(model, NextToken(), *small[:50].tensors()) == pytest.approx(told["train_loss"], rel=0.1)
    assert {len(ids) for ids in tiny.sequences} == {64}
