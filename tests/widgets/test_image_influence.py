"""What the browser answers is what inflib computes: each method at the same damping, ranked, ties in order."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from inflib import CrossEntropy, TrainIndex, contribution, damping_of, ekfac, influence, kfac, relative
from inflib.doubt import error_bars
from inflib.lab import mlp, mnist_5k, normalise
from inflib.widgets import ImageInfluence, three_methods
from inflib.widgets.answer import DRAWING, QUERY, TRAINING
from inflib.widgets.ranking import ALL_LAYERS, Settings

METHODS = ("EK-FAC", "K-FAC", "gradient dot product")


@pytest.fixture(scope="module")
def small():
    """A small network fitted on 300 digits: its own EK-FAC and K-FAC, so that their bases are equal to the last bit."""
    digits = mnist_5k()
    train, queries = digits.train[::15], digits.queries[::25]
    model, objective = mlp((784, 12, 10), dtype=torch.float64), CrossEntropy()
    batches = train.batches(64, dtype=torch.float64)
    curvature = ekfac(model, objective, batches, progress=False)
    index = TrainIndex.build(model, objective, batches, curvature, progress=False)
    methods = three_methods(model, objective, batches, curvature, progress=False)
    return model, objective, batches, train, queries, index, methods


@pytest.fixture(scope="module")
def asked(small) -> ImageInfluence:
    model, objective, _, train, queries, index, methods = small
    return ImageInfluence(model, objective, index, train, queries, methods)


def test_k_fac_in_ek_fac_s_basis_is_k_fac(small) -> None:
    model, objective, batches, _, _, _, methods = small
    fitted = kfac(model, objective, batches, progress=False)
    assert methods["K-FAC"].facts == fitted.facts
    for name in fitted.layers:
        mean = fitted.eigenvalues[name].mean()
        torch.testing.assert_close(
            methods["K-FAC"].eigenvalues[name], fitted.eigenvalues[name], rtol=0, atol=1e-10 * mean
        )


@pytest.mark.parametrize("layer", [ALL_LAYERS, "hidden1", "out"])
@pytest.mark.parametrize("method", METHODS)
def test_answers_are_those_of_influence_at_the_same_damping_for_all(small, asked, method, layer) -> None:
    model, objective, batches, _, queries, index, methods = small
    curvature = methods[method] if layer == ALL_LAYERS else methods[method].restrict([layer])
    damping = {
        name: 0.03 * mean for name, mean in index.curvature.mean_eigenvalues().items() if name in curvature.layers
    }
    if method == "gradient dot product":
        damping = 0.0
    truth = influence(
        model, objective, batches, queries.batches(dtype=torch.float64), curvature, damping, progress=False
    )
    settings = Settings(method, damping=0.03, layer=layer)
    for query in (0, 7, 19):
        np.testing.assert_allclose(asked.scores(QUERY, query, settings), truth[query], rtol=1e-9, atol=1e-9)
    for training in (0, 150, 299):
        np.testing.assert_allclose(asked.scores(TRAINING, training, settings), truth[:, training], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("measurement", ["margin", "logit"])
def test_another_measurement_is_another_answer(small, asked, measurement) -> None:
    model, objective, batches, _, queries, index, _ = small
    truth = influence(
        model,
        objective,
        batches,
        queries.batches(dtype=torch.float64),
        index.curvature,
        damping_of(index.curvature, 0.1),
        measurement=measurement,
        progress=False,
    )
    scores = asked.scores(QUERY, 3, Settings("EK-FAC", measurement=measurement))
    np.testing.assert_allclose(scores, truth[3], rtol=1e-9, atol=1e-9)
    assert not np.allclose(scores, asked.scores(QUERY, 3, Settings("EK-FAC")))


def test_damping_plays_no_role_for_the_gradient_dot_product(asked) -> None:
    few = [asked.scores(QUERY, 2, Settings("gradient dot product", damping=d)) for d in (1e-4, 100.0)]
    np.testing.assert_array_equal(*few)
    few = [asked.scores(QUERY, 2, Settings("EK-FAC", damping=d)) for d in (1e-4, 100.0)]
    assert not np.allclose(*few)


def test_an_answer_holds_the_largest_scores_of_each_sign(asked) -> None:
    settings = Settings("EK-FAC", count=5)
    scores, answer = asked.scores(QUERY, 4, settings), asked.ask(4, settings)
    assert [r.score for r in answer.raised] == sorted(scores, reverse=True)[:5]
    assert [r.score for r in answer.lowered] == sorted(scores)[:5]
    assert answer.counts == ((scores > 0).sum(), (scores < 0).sum())
    assert answer.parts[0] == pytest.approx(sum(r.score for r in answer.raised) / scores[scores > 0].sum())
    assert max(r.share for r in (*answer.raised, *answer.lowered)) == 1


def test_the_number_shown_is_the_contribution(asked) -> None:
    answer = asked.ask(4, Settings("K-FAC"))
    scores = torch.tensor([r.score for r in answer.raised], dtype=torch.float64)
    expected = contribution(scores, n_train=300)
    np.testing.assert_allclose([r.shown for r in answer.raised], expected, rtol=1e-12)
    assert "score ÷ 300 (nats, order only)" in answer.explanation()
    plain = asked.ask(4, Settings("gradient dot product"))
    assert [r.shown for r in plain.raised] == [r.score for r in plain.raised]
    assert "no unit" in plain.explanation()


def test_every_picture_carries_the_model_s_own_prediction(small, asked) -> None:
    model, _, _, train, _, _, _ = small
    for ranked in asked.ask(4, Settings("EK-FAC")).raised:
        row = ranked.picture.position
        p = model(train.inputs[row].double()).softmax(-1)
        assert ranked.picture.predicted == str(p.argmax().item())
        label = train.labels[row].item()
        assert ranked.picture.probability(str(label)) == pytest.approx(p[label].item())
        assert ranked.picture.index == train.index[row]
        np.testing.assert_array_equal(ranked.picture.image, train.images[row])


def test_asking_back_ranks_the_queries(small, asked) -> None:
    _, _, _, _, queries, _, _ = small
    answer = asked.ask_back(17, Settings("EK-FAC", count=3))
    scores = asked.scores(TRAINING, 17, Settings("EK-FAC"))
    assert answer.raised[0].picture.position == scores.argmax()
    assert answer.lowered[0].picture.position == scores.argmin()
    assert answer.raised[0].picture.index == queries.index[scores.argmax()]
    assert {r.picture.side for r in answer.raised} == {QUERY}


@pytest.mark.parametrize("measurement", ["log_likelihood", "margin"])
@pytest.mark.parametrize("label", [None, 3])
def test_a_picture_that_is_in_no_data_set_gets_the_answer_of_influence(small, asked, label, measurement) -> None:
    model, objective, batches, _, queries, index, methods = small
    image = np.roll(queries.images[5], (2, -1), axis=(0, 1))
    inputs = normalise(image[None])
    predicted = model(inputs.double()).argmax().item()
    about = torch.tensor([predicted if label is None else label])
    truth = influence(
        model,
        objective,
        batches,
        [(inputs.double(), about)],
        methods["K-FAC"],
        damping_of(index.curvature, 0.03),
        measurement=measurement,
        progress=False,
    )[0]
    asked_about = {} if label is None else {"asked": str(label)}
    settings = Settings("K-FAC", damping=0.03, measurement=measurement, count=4, **asked_about)
    alone = ImageInfluence(model, objective, index, asked.sides[TRAINING], curvatures=methods)
    for answer in (found.ask_about(image, inputs, settings) for found in (asked, alone)):
        assert (answer.subject.side, answer.subject.label, answer.asked) == (DRAWING, None, str(about.item()))
        assert answer.subject.predicted == str(predicted)
        assert sum(p for _, p in answer.subject.predictions) == pytest.approx(1)
        np.testing.assert_allclose([r.score for r in answer.raised], truth.topk(4).values, rtol=1e-9)
        np.testing.assert_allclose([r.score for r in answer.lowered], -(-truth).topk(4).values, rtol=1e-9)
        assert [r.picture.position for r in answer.raised] == truth.topk(4).indices.tolist()


def test_a_query_asked_about_as_a_picture_gets_the_query_s_own_answer(small, asked) -> None:
    queries, settings = small[4], Settings("EK-FAC")
    known = asked.ask(7, settings)
    about = replace(settings, asked=str(int(queries.labels[7])))
    answer = asked.ask_about(queries.images[7], queries.inputs[7:8], about)
    for few, others in zip(answer.lists, known.lists, strict=True):
        assert [r.picture.position for r in few] == [r.picture.position for r in others]
        np.testing.assert_allclose([r.shown for r in few], [r.shown for r in others], rtol=1e-9)
    assert answer.titles() == known.titles()
    assert {(row["about"], row["about_index"]) for row in answer.table()} == {("drawing", "")}
    assert f"asked about: class {about.asked}, p = " in answer.as_text()


@pytest.mark.parametrize("label", [-1, 10])
def test_a_label_that_the_network_does_not_have_is_refused(small, asked, label) -> None:
    queries = small[4]
    with pytest.raises(ValueError, match=f"class {label} was asked about; expected one from 0 to 9"):
        asked.ask_about(queries.images[0], queries.inputs[:1], Settings("EK-FAC", asked=str(label)))


def test_images_of_another_number_than_the_index_are_refused(small) -> None:
    model, objective, _, train, queries, index, _ = small
    with pytest.raises(ValueError, match="the index holds 300 training examples, and 299 training images came"):
        ImageInfluence(model, objective, index, train[:299], queries)


def test_a_row_that_is_not_there_is_refused(asked) -> None:
    with pytest.raises(ValueError, match=r"query 20 was asked for; expected a row from 0 to 19"):
        asked.ask(20, Settings("EK-FAC"))


def test_the_shipped_factors_are_those_of_the_shipped_network(shipped) -> None:
    """Eigenvectors may differ between machines, what they make of a vector may not."""
    fresh = ekfac(shipped.model, shipped.objective, shipped.train, progress=False)
    stored = shipped.index.curvature
    assert stored.facts == fresh.facts
    generator = torch.Generator().manual_seed(0)
    v = {k: torch.randn(2, *shape, generator=generator, dtype=torch.float64) for k, shape in fresh.shapes.items()}
    mine, theirs = stored.solve(v, 1e-3), fresh.solve(v, 1e-3)
    for name in v:
        torch.testing.assert_close(mine[name], theirs[name], rtol=1e-6, atol=1e-6 * float(theirs[name].abs().max()))


# --- error bars ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def doubted(small) -> tuple[ImageInfluence, list]:
    """The same with two networks from other seeds, and the (model, curvature) pairs of all three."""
    model, objective, batches, train, queries, index, methods = small
    others, members = [], [(model, index.curvature)]
    for seed in (1, 2):
        other = mlp((784, 12, 10), seed=seed, dtype=torch.float64)
        curvature = ekfac(other, objective, batches, progress=False)
        others.append((other, TrainIndex.build(other, objective, batches, curvature, progress=False)))
        members.append((other, curvature))
    return ImageInfluence(model, objective, index, train, queries, methods, n_train=600, others=others), members


@pytest.mark.parametrize("asked", ["its label", "3"])
def test_what_networks_and_dampings_do_not_agree_on_is_marked(small, doubted, asked) -> None:
    _, objective, batches, _, queries, _, _ = small
    influences, members = doubted
    settings = Settings("EK-FAC", damping=0.3, measurement="margin", count=8, asked=asked)
    answer = influences.ask(5, settings)
    label = queries.labels[5:6] if asked == "its label" else torch.tensor([3])
    one = [(queries.inputs[5:6].double(), label)]
    bars = error_bars(members, objective, batches, one, relative(0.3), measurement="margin", progress=False)
    rows = [r for few in answer.lists for r in few]
    for row in rows:
        n = row.picture.position
        assert row.interval == pytest.approx((float(bars.low[0, n]) / 600, float(bars.high[0, n]) / 600), rel=1e-6)
        assert row.undecided == bool(bars.undecided[0, n])
        assert ("≈ 0?" in [text for text, _ in answer.captions(row)]) == row.undecided
    marked = sum(row.undecided for row in rows)
    assert 0 < marked < len(rows)
    assert f"≈ 0? ({marked} of 16): cannot be told from zero" in answer.as_html()
    assert answer.as_text().count("≈ 0?") == marked
    assert {"low", "high"} <= answer.table()[0].keys()


def test_a_drawing_has_error_bars_too(small, doubted) -> None:
    _, _, _, _, queries, _, _ = small
    influences, _ = doubted
    drawn = influences.ask_about(queries.images[5], queries.inputs[5:6], Settings("EK-FAC", asked="3"))
    asked = influences.ask(5, Settings("EK-FAC", asked="3"))
    assert [r.interval for r in drawn.raised] == [pytest.approx(r.interval) for r in asked.raised]


def test_no_error_bar_is_shown_where_the_others_have_no_such_score(asked, doubted) -> None:
    influences, _ = doubted
    for settings in (Settings("K-FAC"), Settings("gradient dot product"), Settings("EK-FAC", unit_norm=True)):
        answer = influences.ask(0, settings)
        assert all(r.interval is None and not r.undecided for few in answer.lists for r in few)
        assert "≈ 0?" not in answer.as_html() and "low" not in answer.table()[0]
    assert all(r.interval is None for r in influences.ask_back(0, Settings("EK-FAC")).raised)
    assert all(r.interval is None for r in asked.ask(0, Settings("EK-FAC")).raised)


def test_another_networks_index_of_other_examples_is_refused(small) -> None:
    model, objective, batches, train, queries, index, _ = small
    fewer = TrainIndex.build(model, objective, batches[:1], index.curvature, progress=False)
    with pytest.raises(ValueError, match="another network's index holds 64 training examples"):
        ImageInfluence(model, objective, index, train, queries, others=[(model, fewer)])
