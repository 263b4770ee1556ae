"""The simpler methods, each against the same numbers worked out by hand."""

import math
import sys

import pytest
import torch
import torch.nn.functional as F

from inflib import CrossEntropy, NextToken, Pair, baselines
from inflib.baselines import bm25, gradient_cosine, gradient_dot, tracin
from inflib.lab import mlp, transformer

pytestmark = pytest.mark.usefixtures("float64")


def digits(n, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 5, generator=generator), torch.randint(0, 3, (n,), generator=generator)


@pytest.fixture
def task():
    """A small classifier with two batches to train on and two to ask about."""
    model = mlp((5, 4, 3), dtype=torch.float64)
    return model, [digits(4, 1), digits(3, 2)], [digits(2, 3), digits(1, 4)]


def gradients(model, batches):
    """One flat loss gradient an example, by plain autograd: (N, D)."""
    rows = []
    for x, y in batches:
        for n in range(len(y)):
            loss = F.cross_entropy(model(x[n : n + 1]), y[n : n + 1])
            rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))]))
    return torch.stack(rows)


def test_the_dot_product_is_that_of_the_loss_gradients(task):
    model, train, queries = task
    expected = gradients(model, queries) @ gradients(model, train).T
    assert torch.allclose(gradient_dot(model, CrossEntropy(), train, queries), expected, atol=1e-12)


def test_the_cosine_divides_by_both_norms(task):
    model, train, queries = task
    q, n = (F.normalize(gradients(model, part), dim=1) for part in (queries, train))
    assert torch.allclose(gradient_cosine(model, CrossEntropy(), train, queries), q @ n.T, atol=1e-12)


def test_the_cosine_of_a_query_with_itself_is_one_whatever_the_measurement(task):
    model, train, _ = task
    own = gradient_cosine(model, CrossEntropy(), train, train)
    assert torch.allclose(own.diagonal(), torch.ones(7), atol=1e-12)
    margin = gradient_cosine(model, CrossEntropy(), train, train, measurement="margin")
    assert torch.allclose(margin.diagonal(), torch.ones(7), atol=1e-12)  # log p is a function of the margin alone


def test_the_cosines_norms_take_no_querys_matrix(task, monkeypatch):
    model, train, queries = task
    expected = gradients(model, queries).norm(dim=1)[:, None] * gradients(model, train).norm(dim=1)
    monkeypatch.setattr(baselines, "influence", lambda *_, **__: torch.ones(3, 7))
    monkeypatch.setattr(Pair, "matrices", lambda _: pytest.fail("all of a batch's gradients as matrices"))
    assert torch.allclose(gradient_cosine(model, CrossEntropy(), train, queries), 1 / expected, atol=1e-12)


def test_a_gradient_that_is_zero_has_cosine_zero(task):
    model, train, queries = task
    dead = (torch.zeros(1, 5), torch.zeros(1, dtype=torch.long))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.out.bias.copy_(torch.tensor([1e4, 0.0, 0.0]))  # sure of class 0
    cosine = gradient_cosine(model, CrossEntropy(), [*train, dead], queries)
    assert torch.equal(cosine[:, -1], torch.zeros(3))
    assert torch.isfinite(cosine).all()


def test_layers_and_measurements_can_be_chosen(task):
    model, train, queries = task
    some = gradient_dot(model, CrossEntropy(), train, queries, ["out"])
    q, n = gradients(model, queries)[:, -15:], gradients(model, train)[:, -15:]
    assert torch.allclose(some, q @ n.T, atol=1e-12)
    assert not torch.allclose(some, gradient_dot(model, CrossEntropy(), train, queries, ["out"], measurement="logit"))


def test_tracin_adds_the_checkpoints_times_their_rates_and_puts_the_model_back(task):
    model, train, queries = task
    others = [mlp((5, 4, 3), seed=seed, dtype=torch.float64) for seed in (7, 8)]
    before = {k: v.clone() for k, v in model.state_dict().items()}
    scores = tracin(
        model, CrossEntropy(), train, queries, [(o.state_dict(), r) for o, r in zip(others, (0.1, 0.03), strict=True)]
    )
    expected = sum(r * gradients(o, queries) @ gradients(o, train).T for o, r in zip(others, (0.1, 0.03), strict=True))
    assert torch.allclose(scores, expected, atol=1e-12)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_a_model_is_put_back_even_when_a_checkpoint_does_not_fit(task):
    model, train, queries = task
    other, wrong = mlp((5, 4, 3), seed=7, dtype=torch.float64), mlp((5, 6, 3), dtype=torch.float64)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(RuntimeError, match="size mismatch"):
        tracin(model, CrossEntropy(), train, queries, [(m.state_dict(), 0.1) for m in (other, wrong)])
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_tracin_without_checkpoints_is_refused(task):
    model, train, queries = task
    with pytest.raises(ValueError, match=r"no checkpoint came; expected at least one \(state dict, learning rate\)"):
        tracin(model, CrossEntropy(), train, queries, [])


def test_sequences_are_scored_as_images_are():
    model = transformer(7, 4, 8, 2, 8, dtype=torch.float64)
    ids = torch.randint(0, 7, (3, 5), generator=torch.Generator().manual_seed(0))
    batch = [({"input_ids": ids[:, :-1]}, ids[:, 1:])]
    rows = []
    chosen = [model.blocks[0].mlp.up.weight, model.blocks[0].mlp.up.bias]
    for row in ids:
        loss = F.cross_entropy(model(row[None, :-1])[0], row[1:], reduction="sum")
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, chosen)]))
    G = torch.stack(rows)
    assert torch.allclose(gradient_dot(model, NextToken(), batch, batch, ["blocks.0.mlp.up"]), G @ G.T, atol=1e-10)
    cosine = gradient_cosine(model, NextToken(), batch, batch, ["blocks.0.mlp.up"])
    assert torch.allclose(cosine, F.normalize(G, dim=1) @ F.normalize(G, dim=1).T, atol=1e-10)


# --- BM25 --------------------------------------------------------------------------------------------------------

DOCUMENTS = [text.split() for text in ("the cat sat", "the dog and the cat ran far", "a bird", "far far away")]


def by_hand(query, k1=1.5, b=0.75):
    N, length = len(DOCUMENTS), sum(map(len, DOCUMENTS)) / len(DOCUMENTS)
    scores = [0.0] * N
    for word in query:
        holding = sum(word in document for document in DOCUMENTS)
        idf = math.log(1 + (N - holding + 0.5) / (holding + 0.5))
        for n, document in enumerate(DOCUMENTS):
            f = document.count(word)
            scores[n] += idf * f / (f + k1 * (1 - b + b * len(document) / length))
    return scores


@pytest.mark.parametrize("query", ["the cat", "far", "bird bird the", "cat unheard"])
def test_bm25_is_the_textbooks_sum(query):
    for k1, b in ((1.5, 0.75), (1.2, 0.0)):
        scores = bm25(DOCUMENTS, [query.split()], k1=k1, b=b)
        assert scores.dtype == torch.float64
        assert torch.allclose(scores[0], torch.tensor(by_hand(query.split(), k1, b)), rtol=0, atol=1e-14)


def test_words_that_no_document_holds_score_nothing():
    assert torch.equal(bm25(DOCUMENTS, [["unheard"], []]), torch.zeros(2, 4))


def test_token_ids_are_words_too():
    ids = {word: k for k, word in enumerate(sorted({word for document in DOCUMENTS for word in document}))}
    numbers = [[ids[word] for word in document] for document in DOCUMENTS]
    query = ["the", "cat"]
    assert torch.equal(bm25(numbers, [[ids[word] for word in query]]), bm25(DOCUMENTS, [query]))


def test_no_documents_are_refused():
    with pytest.raises(ValueError, match="0 documents with no word in them came"):
        bm25([], [["cat"]])


def test_no_queries_are_refused():
    with pytest.raises(ValueError, match=r"no queries came; expected at least one list of words"):
        bm25(DOCUMENTS, [])


def test_without_the_package_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "bm25s", None)
    with pytest.raises(ImportError, match="pip install bm25s"):
        bm25(DOCUMENTS, [["cat"]])
