"""Browsers over a store: what is shown is exact, whatever its bits say; asked again, nothing is computed twice."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from inflib import CrossEntropy, NextToken, TrainIndex, ekfac
from inflib.lab import mlp, mnist_5k
from inflib.widgets import ImageInfluence, TextBrowser, TextInfluence, candidates
from inflib.widgets.ranking import ALL_LAYERS, Settings, two_lists

SETTINGS = [
    Settings("EK-FAC", count=3),
    Settings("K-FAC", 0.3, count=3, unit_norm=True),
    Settings("EK-FAC", 1.0, "blocks.1.mlp.down", "margin", count=3),
    Settings("gradient dot product", count=3),
]


@pytest.fixture(scope="module")
def store(talk, tmp_path_factory):
    path = tmp_path_factory.mktemp("stores") / "talk"
    arguments = (talk.model, NextToken(), talk.train, talk.index.curvature)
    return TrainIndex.build(*arguments, path=path, axes=0.5, bits=2, shard=10, progress=False)


@pytest.fixture
def asked(talk, store, monkeypatch) -> TextInfluence:
    monkeypatch.setattr(candidates, "FIRST", 6)
    return TextInfluence(talk.model, talk.objective, store, talk.corpus, talk.methods)


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: f"{s.method}, {s.layer}")
def test_every_text_shown_has_its_exact_score_and_they_are_ranked_by_it(talk, asked, settings) -> None:
    exact = talk.influence()
    parts = exact.scores(*talk.queries[0], settings)
    if settings.unit_norm:
        parts = parts / exact.norms(settings.layer)[:, None]
    layers = range(len(exact.layers)) if settings.layer == ALL_LAYERS else [exact.layers.index(settings.layer)]
    answer = asked.ask(*talk.queries[0], settings)
    rows = [*answer.raised, *answer.lowered]
    assert len(answer.raised) == 3
    assert f"few bits named {len(asked._exact):,} candidates" in " ".join(answer.remarks())
    for row in rows:
        assert row.score == pytest.approx(parts[row.passage.position, layers].sum(), rel=1e-6)
        np.testing.assert_allclose(row.layers, parts[row.passage.position], rtol=1e-5, atol=1e-9 * np.abs(parts).max())
    for part, sign in ((answer.raised, -1), (answer.lowered, 1)):
        assert [row.score for row in part] == sorted((row.score for row in part), key=lambda score: sign * score)


def test_with_candidates_enough_the_answer_is_that_of_the_exact_index(talk, asked, monkeypatch) -> None:
    monkeypatch.setattr(candidates, "FIRST", 24)
    for settings in SETTINGS:
        found, exact = asked.ask(*talk.queries[0], settings), talk.influence().ask(*talk.queries[0], settings)
        assert [row.passage.position for row in found.raised] == [row.passage.position for row in exact.raised]
        assert [row.passage.position for row in found.lowered] == [row.passage.position for row in exact.lowered]
        np.testing.assert_allclose(found.shares, exact.shares, rtol=1e-5)
        assert found.counts == exact.counts


def test_asked_again_only_new_candidates_are_computed(talk, asked, monkeypatch) -> None:
    settings, came, exact = SETTINGS[0], [], TextInfluence.exact
    monkeypatch.setattr(asked, "exact", lambda rows, *more: (came.append(rows), exact(asked, rows, *more))[1])
    asked.ask(*talk.queries[0], settings)
    assert 6 <= len(came[0]) <= 12
    asked.ask(*talk.queries[0], replace(settings, heat="output"))
    assert len(came) == 1
    asked.ask(*talk.queries[0], replace(settings, layer="blocks.1.mlp.down"))
    assert all(not {*rows} & {*came[0]} for rows in came[1:])
    asked.ask(*talk.queries[1], settings)
    assert came[-1] and len(asked._exact) == len(came[-1])


def test_the_text_browser_opens_on_a_store(talk, store) -> None:
    browser = TextBrowser(talk.model, talk.objective, store, talk.corpus, talk.queries, curvatures=talk.methods)
    assert browser.error.value == ""
    browser.ask(*talk.queries[1])
    assert browser.error.value == ""
    browser.damping.value = 1.0
    assert browser.error.value == ""


def test_images_over_a_store_are_answered_as_by_the_exact_index(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(candidates, "FIRST", 7)
    digits, objective = mnist_5k(), CrossEntropy()
    train, queries = digits.train[::40], digits.queries[::100]
    model = mlp((784, 8, 10), dtype=torch.float64)
    batches = train.batches(64, dtype=torch.float64)
    curvature = ekfac(model, objective, batches, progress=False)
    arguments = (model, objective, batches, curvature)
    store = TrainIndex.build(*arguments, path=tmp_path / "store", progress=False)
    indices = (TrainIndex.build(*arguments, progress=False), store)
    exact, near = (ImageInfluence(model, objective, index, train, queries) for index in indices)
    for settings in (Settings("EK-FAC", count=3), Settings("EK-FAC", 1.0, "out", "margin", count=3)):
        for ask in ("ask", "ask_back"):
            truth, found = (getattr(one, ask)(2, settings) for one in (exact, near))
            for side in ("raised", "lowered"):
                pairs = zip(getattr(truth, side), getattr(found, side), strict=True)
                assert all(a.picture.index == b.picture.index and a.score == pytest.approx(b.score) for a, b in pairs)
        drawn = np.zeros((28, 28), np.uint8), queries.inputs[:1].double()
        raised = [one.ask_about(*drawn, settings).raised for one in (exact, near)]
        said = [" ".join(one.ask(2, settings).remarks()) for one in (exact, near)]
        assert ["few bits" in text for text in said] == [False, True]
        assert "few bits named 14 candidates" in said[1]  # 7 of each sign
        assert [row.picture.index for row in raised[0]] == [row.picture.index for row in raised[1]]


def test_what_is_brought_to_their_size_is_never_shown() -> None:
    near = np.array([[3.0], [2.0], [1.0], [-1.0], [-2.0]])
    exact = {0: 0.5, 4: -8.0}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(candidates, "FIRST", 1)
        parts, rows = candidates.exactly(near, near[:, 0], 0, lambda some: np.array([[exact[n]] for n in some]))
    slope = (3 * 0.5 + 2 * 8) / (9 + 4)
    np.testing.assert_allclose(parts[:, 0], [0.5, 2 * slope, slope, -slope, -8.0])
    lists = two_lists(parts[:, 0], 2, rows)
    assert (lists.raised, lists.lowered, lists.counts) == ((0,), (4,), (3, 2))
    assert lists.parts[0] == pytest.approx(0.5 / (0.5 + 3 * slope))
