"""What retraining with the decisions comes to, beside what was predicted of it."""

from __future__ import annotations

import pytest
import torch
from reviewed import CLASSES, N, reviewing
from torch.nn.functional import cross_entropy

from inflib import CrossEntropy
from inflib.lab import mlp
from inflib.validation import Training
from inflib.widgets import retraining
from inflib.widgets.base import InputError
from inflib.widgets.review_decisions import Decisions
from inflib.widgets.review_effects import predicted


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
