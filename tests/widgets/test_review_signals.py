"""What a review orders by, and what it shows beside an example, are what they say."""

from __future__ import annotations

from dataclasses import replace

import torch
from reviewed import N, sentences
from torch.nn.functional import cross_entropy

from inflib import influence
from inflib.validation import recall
from inflib.widgets import suspicion
from inflib.widgets.review_case import Case


def test_opposition_is_what_the_ten_strongest_others_say(made) -> None:
    model, objective, index, noisy, _, wrong, signals = made
    data = [(noisy.inputs.double(), noisy.labels)]
    scores = influence(model, objective, data, data, index.curvature, measurement="margin", relative="loss")
    exact = []
    for n in range(N):
        others = [float(s) for k, s in enumerate(scores[n]) if k != n]
        ten = sorted(others, key=abs)[-10:]
        exact.append(-sum(ten) / sum(map(abs, ten)))
    assert (signals["opposition"] - torch.tensor(exact, dtype=torch.float64)).abs().mean() < 0.02  # scores of low rank
    assert recall(signals["opposition"], wrong, 0.15) > 0.8


def test_the_other_signals_are_self_influence_harm_in_log_odds_and_loss(made) -> None:
    model, objective, index, noisy, clean, _, signals = made
    data = [(noisy.inputs.double(), noisy.labels)]
    asked = [(clean.inputs.double(), clean.labels)]
    scores = influence(model, objective, data, asked, index.curvature, measurement="margin")
    assert torch.allclose(signals["harm"], -scores.sum(0))
    losses = cross_entropy(model(data[0][0]), noisy.labels, reduction="none")
    assert torch.allclose(signals["loss"], losses.detach())
    own = influence(model, objective, data, data, index.curvature).diagonal()
    assert torch.allclose(signals["self-influence"], own)


def test_sequences_of_positions_are_compared_exactly() -> None:
    _, model, objective, examples, index = sentences()
    found = suspicion(model, objective, index, examples)["opposition"]
    data = [(examples.inputs, examples.labels)]
    scores = influence(model, objective, data, data, index.curvature, measurement="margin", relative="loss")
    scores.fill_diagonal_(0)
    ten = scores.gather(1, scores.abs().topk(10, 1).indices)
    assert torch.allclose(found, -ten.sum(1) / ten.abs().sum(1))
    assert list(suspicion(model, objective, index, examples, opposition=False)) == ["self-influence", "loss"]


def test_examples_come_most_suspicious_first_by_the_signal_chosen(review) -> None:
    assert review.order() == sorted(range(N), key=lambda n: (-float(review.signals["opposition"][n]), n))
    assert review.case.n == review.order()[0]
    review.signal.value = "loss"
    assert review.case.places["loss"] == review.place.value == 1 + review.order().index(review.case.n)


def test_the_opponents_shown_are_the_strongest_and_the_class_proposed_is_theirs(made, review) -> None:
    model, objective, index, noisy, *_ = made
    for n in review.order()[:8]:
        review.show(n)
        data = [(noisy.inputs.double(), noisy.labels)]
        one = [(noisy.inputs[[n]].double(), noisy.labels[[n]])]
        scores = influence(model, objective, data, one, index.curvature, measurement="margin", relative="loss")[0]
        worst = sorted((k for k in range(N) if k != n), key=lambda k: float(scores[k]))[:10]
        assert [k for k, _ in review.case.opponents] == worst[:6]
        says = model(one[0][0]).argmax().item()
        strength = torch.zeros(10, dtype=torch.float64)
        for k in worst:
            strength[noisy.labels[k]] -= scores[k]
        strength[noisy.labels[n]] = 0
        assert review.desk.card["target"] == (says if says != noisy.labels[n] else int(strength.argmax()))
        assert str(review.desk.card["target"]) in dict(map(reversed, review.desk.card["classes"]))


def test_the_class_proposed_is_the_models_then_the_opponents_then_the_models_second() -> None:
    case = Case(0, "", 5, ((3, 0.6), (5, 0.4)), (), {7: 0.2, 8: 0.9}, {})
    assert case.target == 3
    sure = replace(case, opinion=((5, 0.9), (2, 0.1)))
    assert sure.target == 8
    assert replace(sure, votes={}).target == 2


def test_no_example_is_its_own_opponent(made) -> None:
    noisy, scores = made[3], -torch.linspace(1, 2, N, dtype=torch.float64)
    case = Case.of(N - 1, noisy, torch.full((10,), 0.1, dtype=torch.float64), scores, {}, 3)
    assert [k for k, _ in case.opponents] == [N - 2, N - 3, N - 4]


def test_opponents_of_the_same_label_propose_no_class(made) -> None:
    noisy = made[3]
    scores = torch.where(noisy.labels == noisy.labels[0], -2.0, -1.0).double()  # the ten strongest are of its label
    case = Case.of(0, noisy, torch.full((10,), 0.1, dtype=torch.float64), scores, {}, 6)
    assert len(case.opponents) == 6 and case.votes == {}
