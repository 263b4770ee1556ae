"""The review does what it says: orders, decisions, undo, files, and what retraining comes to beside what was predicted."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from inflib import CrossEntropy, TrainIndex, ekfac, influence
from inflib.lab import mlp, mnist_5k, train
from inflib.validation import Training, flip_labels, recall
from inflib.widgets import Examples, Review, retraining, suspicion
from inflib.widgets.base import InputError
from inflib.widgets.review_case import Case
from inflib.widgets.review_decisions import Decisions
from inflib.widgets.review_effects import predicted

N, CLASSES = 300, ["nil", "one", "two, or II", "three", "four", "five", "six", "seven", "<b>8</b>", "nine"]


@pytest.fixture(scope="module")
def made():
    """300 digits, 30 of them flipped, a small network that has learned them, its index, and 42 clean digits."""
    digits, objective = mnist_5k(), CrossEntropy()
    labels, wrong = flip_labels(digits.train.labels[:N], 0.1)
    noisy = replace(digits.train[:N], labels=labels)
    model = mlp((784, 12, 10), dtype=torch.float64)
    inputs = noisy.inputs.double()
    train(model, objective, inputs, labels, epochs=25, batch_size=50, lr=3e-3, progress=False)
    data = [(inputs, labels)]
    index = TrainIndex.build(model, objective, data, ekfac(model, objective, data, progress=False), progress=False)
    clean = digits.queries[::12]
    return model, objective, index, noisy, clean, wrong, suspicion(model, objective, index, noisy, clean)


@pytest.fixture
def review(made) -> Review:
    return reviewing(made)


def reviewing(made, **options) -> Review:
    *about, _, signals = made
    return Review(*about, **{"signals": signals, "classes": CLASSES, **options})


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


def act(review: Review, action: str, example: int | None = None, label: int | None = None) -> None:
    """What the desk sends when a button or a key is pressed."""
    example = review.desk.card["key"] if example is None else example
    review.desk._handle_custom_msg({"action": action, "key": example, "label": label}, [])


def test_a_decision_leads_to_the_next_undecided_and_undo_back(review) -> None:
    first, second, third = review.order()[:3]
    act(review, "next")
    act(review, "remove")
    act(review, "previous")
    act(review, "previous")
    act(review, "keep")  # the second is decided already: the third comes
    assert (review.case.n, review.decisions.counts()) == (third, {"keep": 1, "remove": 1})
    act(review, "undo")
    assert (review.case.n, list(review.decisions.of)) == (first, [second])
    act(review, "undo")
    assert (review.case.n, len(review.decisions)) == (second, 0)
    act(review, "undo")
    assert "there is nothing to undo" in review.error.value.lower()


def test_a_key_decides_about_the_example_that_was_seen(review) -> None:
    """The second press of somebody fast is about the first example still, and changes nothing."""
    first, second = review.order()[:2]
    act(review, "keep", first)
    act(review, "keep", first)
    assert (review.case.n, len(review.decisions)) == (second, 1)
    act(review, "remove", first)
    assert (review.case.n, review.decisions.of[first].what) == (second, "remove")
    act(review, "next")
    third = review.case.n
    act(review, "keep", first)
    assert review.case.n == third != second, "who looks at another example is left there"


def test_a_decision_can_be_changed_and_undo_goes_back_to_the_one_before(review) -> None:
    n = review.order()[0]
    given = int(review.decisions.given[n])
    act(review, "keep", n)
    act(review, "relabel", n, (given + 1) % 10)
    assert int(review.decisions.labels()[n]) == (given + 1) % 10
    act(review, "relabel", n, given)
    assert "which is its label; expected another class, or keep" in review.error.value
    act(review, "undo")
    assert review.decisions.of[n].what == "keep"


def test_a_decided_example_leaves_the_undecided_and_one_that_a_filter_hides_lifts_it(review) -> None:
    review.filter.value = "the undecided"
    first, second = review.order()[:2]
    act(review, "keep")
    assert (review.case.n, review.place.max) == (second, N - 1)
    review.show(first)
    assert (review.filter.value, review.case.n, review.desk.card["decided"]) == ("all", first, "decided: kept")
    review.filter.value = "the decided"
    review.label_filter.value = next(
        c for _, c in review.label_filter.options[1:] if c != review.decisions.given[first]
    )
    assert review.case is None and review.desk.card["key"] == -1
    assert review.error.value == ""
    act(review, "undo")  # an example that is hidden is shown again
    assert (review.case.n, review.label_filter.value) == (first, -1)


def test_many_decisions_are_taken_all_or_none(review) -> None:
    with pytest.raises(ValueError, match="decision 'drop'; expected keep, relabel or remove"):
        review.decide_all({0: ("keep", None), 1: ("drop", None)})
    assert len(review.decisions) == 0 and not review.decisions.can_undo


def test_the_last_undecided_leaves_an_empty_desk(made) -> None:
    review = reviewing(made)
    review.decide_all(dict.fromkeys(range(N - 1), ("keep", None)))
    review.filter.value = "the undecided"
    assert review.case.n == N - 1
    act(review, "keep")
    assert review.case is None and "300 of 300 decided (100.0%)" in review.progress.value
    act(review, "undo")
    assert review.case.n == N - 1


def test_an_example_is_one_whatever_kind_of_number_names_it(review) -> None:
    n = review.order()[0]
    to = (int(review.decisions.given[n]) + 1) % 10
    review.decide(torch.tensor(n), "relabel", np.int64(to))
    assert review.case.n == review.order()[1], "the one on show was decided about: the next comes"
    review.show(np.int32(n))
    assert (review.case.n, type(review.case.n), review.desk.card["decided"][:7]) == (n, int, "decided")
    review.decide(n, "keep")
    assert {k: d.what for k, d in review.decisions.of.items()} == {n: "keep"}
    for act_on in (review.show, lambda x: review.decide(x, "keep"), lambda x: review.decide_all({x: ("keep", None)})):
        for wrong in (True, 1.0, torch.tensor(2.0), "3"):
            with pytest.raises(ValueError, match=r"example .* of type .*; expected a whole number: give int"):
                act_on(wrong)


# --- files ------------------------------------------------------------------------------------------------------


def test_decisions_come_back_from_their_file_the_next_day(made, tmp_path) -> None:
    path = tmp_path / "decisions.csv"
    today = reviewing(made, path=path)
    a, b, c = today.order()[:3]
    to = (int(today.decisions.given[a]) + 1) % 10
    for n, what, label in ((a, "relabel", to), (b, "keep", None), (c, "remove", None)):
        today.decide(n, what, label)
    tomorrow = reviewing(made, path=path)
    assert tomorrow.decisions.of == today.decisions.of
    assert tomorrow.case.n == tomorrow.order()[3]
    assert not (~tomorrow.decisions.kept()).sum() - 1
    assert [p.name for p in tmp_path.iterdir()] == ["decisions.csv"]


def test_a_file_that_somebody_else_changed_is_left_as_it_is_and_the_decision_kept(made, tmp_path) -> None:
    path = tmp_path / "decisions.csv"
    review = reviewing(made, path=path)
    act(review, "keep")
    theirs = path.read_text() + "\n"
    path.write_text(theirs)
    n = review.case.n
    act(review, "remove")
    assert "changed by somebody else" in review.error.value
    assert path.read_text() == theirs and review.decisions.of[n].what == "remove"


def test_reading_adds_to_what_is_there_and_can_be_undone(made, tmp_path) -> None:
    review, other = reviewing(made), reviewing(made)
    a, b, c = review.order()[:3]
    other.decide_all({a: ("remove", None), b: ("keep", None)})
    review.decide_all({a: ("keep", None), c: ("keep", None)})
    before = dict(review.decisions.of)
    found = review.read_csv(other.to_csv(tmp_path / "theirs.csv"))
    assert (found.rows, found.new, found.changed) == (2, 1, 1)
    assert {n: d.what for n, d in review.decisions.of.items()} == {a: "remove", b: "keep", c: "keep"}
    review.undo()
    assert review.decisions.of == before


def test_a_bad_file_at_the_path_is_refused_and_stays(made, tmp_path) -> None:
    path = tmp_path / "decisions.csv"
    path.write_text("notes of mine\n")
    with pytest.raises(InputError, match="the first line is 'notes of mine'"):
        reviewing(made, path=path)
    assert path.read_text() == "notes of mine\n"


def test_a_class_whose_name_has_line_ends_comes_back_from_the_file(made, tmp_path) -> None:
    classes, path = ["", "a\rb", "c\r\nd", "e\nf", *CLASSES[4:]], tmp_path / "decisions.csv"
    today = reviewing(made, classes=classes, path=path)
    for c in range(4):
        n, m = (int(k) for k in (today.decisions.given == c).nonzero()[:2])
        today.decide(n, "keep")
        today.decide(m, "relabel", (c + 1) % 4)  # each is kept only where the file is as it was left
    assert reviewing(made, classes=classes, path=path).decisions.of == today.decisions.of
    other = reviewing(made, classes=classes)
    assert other.read_csv(today.to_csv(tmp_path / "copy.csv")).rows == 8
    assert other.decisions.of == today.decisions.of


# --- retraining -------------------------------------------------------------------------------------------------


def test_what_is_predicted_is_the_change_of_the_summed_gradient_to_first_order(made) -> None:
    """A dense build of its own: ∇m · (C + λ)⁻¹ of the difference of the two objectives' gradients."""
    model, objective, index, noisy, clean, *_ = made
    decisions = Decisions(noisy.inputs, noisy.labels, CLASSES)
    to = (int(noisy.labels[5]) + 3) % 10
    decisions.decide(5, "relabel", to)
    decisions.decide(8, "remove")
    found = predicted(model, objective, index.curvature, noisy, clean, decisions, 0.5)
    layers = [(f"{name}.weight", f"{name}.bias") for name in index.curvature.layers]
    named = dict(model.named_parameters())

    def gradient(value: torch.Tensor) -> torch.Tensor:
        parts = torch.autograd.grad(value, [named[n] for pair in layers for n in pair])
        return torch.cat(
            [torch.cat([w, b[:, None]], 1).flatten() for w, b in zip(parts[::2], parts[1::2], strict=True)]
        )

    def loss(n: int, label: int) -> torch.Tensor:
        return cross_entropy(model(noisy.inputs[[n]].double()), torch.tensor([label]), reduction="sum")

    change = gradient(loss(5, to)) - gradient(loss(5, int(noisy.labels[5]))) - gradient(loss(8, int(noisy.labels[8])))
    moved = index.curvature.solve(unflat(change / N, index.curvature.shapes), 0.5)
    flat = torch.cat([moved[k].flatten() for k in index.curvature.layers])
    for q in range(0, len(clean), 7):
        f = model(clean.inputs[[q]].double())[0]
        own = f[clean.labels[q]]
        margin = own - torch.cat([f[: clean.labels[q]], f[clean.labels[q] + 1 :]]).logsumexp(0)
        assert float(found[q]) == pytest.approx(-float(gradient(margin) @ flat), rel=1e-8)


def unflat(vector: torch.Tensor, shapes) -> dict[str, torch.Tensor]:
    parts = vector.split([o * i for o, i in shapes.values()])
    return {k: part.view(1, *shape) for (k, shape), part in zip(shapes.items(), parts, strict=True)}


def test_retraining_gets_the_decisions_and_its_outcome_is_what_the_networks_say(made) -> None:
    model, _, _, noisy, clean, wrong, _ = made
    asked = []
    better = mlp((784, 12, 10), seed=1, dtype=torch.float64)

    def again(labels, kept):
        asked.append((labels.clone(), kept.clone()))
        return model if torch.equal(labels, noisy.labels) and kept.all() else better

    review = reviewing(made, retrain=again)
    n, removed = (int(k) for k in wrong.nonzero()[:2])
    to = (int(noisy.labels[n]) + 1) % 10
    review.decide_all({n: ("relabel", to), removed: ("remove", None), review.order()[-1]: ("keep", None)})
    done = review.retrain()
    assert torch.equal(asked[0][0], noisy.labels) and asked[0][1].all()
    assert [k for k in range(N) if asked[1][0][k] != noisy.labels[k]] == [n] and int(asked[1][0][n]) == to
    assert [k for k in range(N) if not asked[1][1][k]] == [removed]
    for judged, network in ((done.before, model), (done.after, better)):
        f = network(clean.inputs.double()).detach()
        assert judged.loss == pytest.approx(float(cross_entropy(f, clean.labels)))
        assert judged.accuracy == pytest.approx(float((f.argmax(1) == clean.labels).double().mean()))
    assert done.mended == [] or set(done.mended) <= {q for q in range(len(clean)) if done.after.right[q]}
    assert f"{len(done.broken)} no longer" in review.as_text()
    how = {"measurement": "log_likelihood"}
    decided = Decisions(noisy.inputs, noisy.labels, CLASSES)
    decided.of = dict(review.decisions.of)
    change = predicted(model, CrossEntropy(), review._index.curvature, noisy, clean, decided, **how)
    assert done.predicted_loss == pytest.approx(-float(change.mean()))
    assert "order only" in review.outcome.value and "Decisions have changed" not in review.outcome.value
    review.undo()  # all that was decided in one go
    assert len(review.decisions) == 0
    assert "Decisions have changed since; retrain again." in review.outcome.value
    review.decide(n, "remove")
    review.retrain()
    assert len(asked) == 3, "the network without decisions is trained once"


def test_the_recipe_trains_with_the_labels_given_and_without_the_removed(made) -> None:
    _, objective, _, noisy, *_ = made
    recipe = Training(epochs=1, batch_size=N, lr=0.1, anneal=False, momentum=0.0)
    again = retraining(
        lambda seed: mlp((784, 4, 10), seed=seed, dtype=torch.float64), objective, noisy.inputs.double(), recipe
    )
    kept, labels = torch.arange(N) != 7, (noisy.labels + 1) % 10
    found = again(labels, kept)
    plain = mlp((784, 4, 10), seed=0, dtype=torch.float64)
    loss = cross_entropy(plain(noisy.inputs.double()[kept]), labels[kept], reduction="sum") / N
    for p, q, g in zip(
        plain.parameters(), found.parameters(), torch.autograd.grad(loss, plain.parameters()), strict=True
    ):
        assert torch.allclose(p - 0.1 * g, q, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "decide", "message"),
    [
        ({}, True, "give Review retrain= and clean="),
        ({"retrain": lambda labels, kept: None}, False, "Nothing is relabelled or removed yet"),
    ],
)
def test_retraining_without_means_or_decisions_is_refused(made, options, decide, message) -> None:
    review = reviewing(made, **options)
    review.decide(0, "remove" if decide else "keep")
    review.again.disabled = False
    review.again.click()
    assert message in review.error.value


def test_decisions_that_leave_a_class_empty_are_refused(made) -> None:
    review = reviewing(made, retrain=lambda labels, kept: None)
    of_class = (review.decisions.given == 2).nonzero().flatten().tolist()
    review.decide_all(dict.fromkeys(of_class, ("remove", None)))
    with pytest.raises(InputError, match="leave no example of class two, or II: undo some"):
        review.retrain()


# --- anybody's data ---------------------------------------------------------------------------------------------


class Bag(torch.nn.Module):
    """A classifier of sentences: words embedded, a layer at each position, the mean, a layer."""

    def __init__(self, words: int) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(words, 6).requires_grad_(False)
        self.each, self.out = torch.nn.Linear(6, 8), torch.nn.Linear(8, 3)

    def forward(self, ids):
        return self.out(self.each(self.embed(ids)).tanh().mean(1))


def sentences():
    """60 sentences of three kinds, as texts; every tenth under another's label."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 3
    ids = torch.randint(0, 5, (60, 7), generator=generator) + 5 * labels[:, None]
    given = labels.clone()
    given[::10] = (given[::10] + 1) % 3
    texts = [" ".join(f"w{word}" for word in row) + " <script>" + " long" * 200 for row in ids.tolist()]
    torch.manual_seed(0)
    model, objective = Bag(15).double(), CrossEntropy()
    train(model, objective, ids, given, epochs=20, batch_size=20, lr=1e-2, progress=False)
    data = [(ids, given)]
    curvature = ekfac(model, objective, data, ["each", "out"], progress=False)
    index = TrainIndex.build(model, objective, data, curvature, progress=False)
    return texts, model, objective, Examples(ids, given, texts=texts, names=lambda n: f"mail {n}"), index


def test_texts_are_reviewed_like_pictures_under_their_own_names() -> None:
    texts, model, objective, examples, index = sentences()
    review = Review(model, objective, index, examples, classes=["work", "play", "spam"])
    assert set(range(0, 60, 10)) <= set(review.order()[:9])
    n = review.case.n
    assert review.desk.card["text"] == texts[n] and review.desk.card["name"] == f"mail {n}"
    assert all("text" in one for one in review.desk.card["opponents"])
    assert "<script>" not in review.as_html() and "&lt;script&gt;" in review.as_html()
    review.decide(n, "relabel", ["work", "play", "spam"][n % 3])
    with pytest.raises(ValueError, match="class 'ham'; expected its number, or one of work, play, spam"):
        review.decide(n, "relabel", "ham")
    assert review.decisions.table()[0]["label"] == ["work", "play", "spam"][n % 3]


@pytest.mark.parametrize("shape", [(20, 30), (20, 30, 3), (700, 500, 3)])
def test_pictures_of_any_size_and_colour_are_shown(made, shape) -> None:
    model, objective, index, noisy, *_, signals = made
    images = (
        np.random.Generator(np.random.PCG64(0)).integers(0, 255, (N, *shape), dtype=np.uint8)
        if shape[0] < 99
        else [np.zeros(shape, np.uint8)] * N
    )
    review = Review(model, objective, index, Examples(noisy.inputs, noisy.labels, images=images), signals=signals)
    assert review.desk.card["colour"] is True
    assert len(review.desk.card["picture"]) < 160 * 160 * 3 * 4 / 3 + 4000


def test_what_does_not_belong_together_is_refused(made) -> None:
    model, objective, index, noisy, clean, _, signals = made
    with pytest.raises(ValueError, match="9 names of classes; expected 10, each another"):
        reviewing(made, classes=CLASSES[:9])
    with pytest.raises(ValueError, match=r"signal 'mine' has shape \(3,\); expected 300 finite numbers"):
        reviewing(made, signals={"mine": torch.zeros(3)})
    with pytest.raises(ValueError, match="the index holds 300 examples, and 42 came"):
        Review(model, objective, index, clean, signals={"mine": torch.zeros(42)})
    with pytest.raises(ValueError, match="expected class numbers"):
        Review(model, objective, index, replace(noisy, labels=noisy.labels + 3), signals=signals)
    with pytest.raises(ValueError, match="as many images or texts, one of the two"):
        Examples(noisy.inputs, noisy.labels)
    with pytest.raises(ValueError, match="as many images or texts"):
        Examples(noisy.inputs, noisy.labels, texts=["a"])


def test_a_still_says_where_the_review_stands_without_a_script(review) -> None:
    review.decide(review.order()[0], "remove")
    still = review.as_html()
    assert "1 of 300 decided (0.3%): 0 kept, 0 relabelled, 1 removed" in still
    assert "(a still; run the notebook for its controls)" in still and "<script" not in still
    assert review.case.name in still and review.case.name in review.as_text()
    assert "&lt;b&gt;8" in still or "<b>8</b>" not in still
