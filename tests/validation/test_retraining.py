"""Many retrainings as one batch give what the plain loop gives, network by network."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from inflib import CrossEntropy, NextToken, SquaredError
from inflib.lab import cnn, mlp, transformer
from inflib.validation.retraining import Training, perceptrons, retrain, stack

pytestmark = pytest.mark.usefixtures("float64")

N = 30
SGD = Training(epochs=3, batch_size=8, lr=0.05, weight_decay=1e-2)  # 30 = 3 · 8 + 6: the last minibatch is smaller


def digits(width=12, classes=10):
    g = torch.Generator().manual_seed(1)
    return torch.randn(N, width, generator=g), torch.randint(0, classes, (N,), generator=g)


def masks(count=4):
    return torch.rand(count, N, generator=torch.Generator().manual_seed(2)) < 0.5


def in_float64(build):
    return lambda seed: build(seed).double()


def plain_loop(model, loss, inputs, targets, training, weights, order):
    """One network by torch's own means: nn.Module, torch.optim, its own cosine; shares only the order."""
    if training.optimiser == "sgd":
        rule = torch.optim.SGD(model.parameters(), lr=1, momentum=training.momentum, weight_decay=training.weight_decay)
    else:
        rule = torch.optim.AdamW(model.parameters(), lr=1, weight_decay=training.weight_decay)
    batches = list(training.minibatches(N, order))
    for k, rows in enumerate(batches):
        rule.param_groups[0]["lr"] = training.lr * (1 + math.cos(math.pi * k / len(batches))) / 2
        x = {key: t[rows] for key, t in inputs.items()} if isinstance(inputs, dict) else inputs[rows]
        losses = loss(model(**x) if isinstance(x, dict) else model(x), targets[rows])
        rule.zero_grad()
        (sum(float(weights[n]) * losses[b] for b, n in enumerate(rows)) / len(rows)).backward()
        rule.step()
    return model


def cross_entropy(f, y):
    return F.cross_entropy(f, y, reduction="none")


def token_loss(f, y):
    return F.cross_entropy(f.mT, y, reduction="none").sum(1)


def sequences():
    ids = torch.randint(0, 9, (N, 6), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids[:, :-1]}, ids[:, 1:]


CASES = {
    "a multilayer perceptron": (lambda s: mlp((12, 7, 5, 10), seed=s), CrossEntropy(), cross_entropy, digits, SGD),
    "with tanh, without biases": (
        lambda s: mlp((12, 7, 10), activation=nn.Tanh, bias=False, seed=s),
        CrossEntropy(),
        cross_entropy,
        digits,
        SGD,
    ),
    "with AdamW": (
        lambda s: mlp((12, 7, 10), seed=s),
        CrossEntropy(),
        cross_entropy,
        digits,
        Training(epochs=3, batch_size=8, lr=0.01, optimiser="adamw", weight_decay=0.1),
    ),
    "a small CNN": (lambda s: cnn((2, 3), 4, seed=s), CrossEntropy(), cross_entropy, lambda: digits(784), SGD),
    "the course's transformer": (
        lambda s: transformer(9, 5, 8, 2, 12, seed=s),
        NextToken(),
        token_loss,
        sequences,
        Training(epochs=2, batch_size=8, lr=0.01, optimiser="adamw"),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_networks_trained_together_are_those_of_the_plain_loop(case):
    build, objective, loss, data, training = CASES[case]
    inputs, targets = data()
    double = in_float64(build)
    weights, seeds = masks(), [3, 3, 5, 6]
    together = retrain(double, objective, inputs, targets, training, weights, seeds, order=4, progress=False)
    for m, seed in enumerate(seeds):
        alone = plain_loop(double(seed), loss, inputs, targets, training, weights[m], order=4)
        own = together.model(m)
        for name, p in alone.named_parameters():
            assert torch.allclose(p, own.get_parameter(name), rtol=0, atol=1e-10), name
        found = own(**inputs) if isinstance(inputs, dict) else own(inputs)
        expected = alone(**inputs) if isinstance(inputs, dict) else alone(inputs)
        assert torch.allclose(loss(found, targets), loss(expected, targets), rtol=0, atol=1e-9)
    assert all(not torch.equal(p[0], p[1]) for p in together.parameters.values())  # one start, two masks


def test_the_quick_way_is_taken_by_perceptrons_alone_and_agrees_with_the_general_one():
    model = mlp((12, 7, 5, 10)).double()
    assert perceptrons.layers_of(model) is not None
    for other in (cnn(), transformer(9, 5, 8, 2, 12), nn.Sequential(nn.Linear(3, 3), nn.Softmax(1)), nn.Linear(3, 2)):
        assert perceptrons.layers_of(other) is None
    shared = nn.Linear(3, 3)
    assert perceptrons.layers_of(nn.Sequential(shared, nn.ReLU(), shared)) is None  # one weight, two layers
    networks, (x, _) = stack([mlp((12, 7, 5, 10), seed=s).double() for s in (0, 1)]), digits()
    assert torch.allclose(networks.outputs(x), torch.stack([m(x) for m in networks.models()]), atol=1e-12)


def test_an_example_of_weight_zero_leaves_a_gap_and_does_not_make_the_others_count_more():
    # one full-batch step at rate 1 from the same start moves a linear model by minus its gradient
    x = digits(3)[0]
    t = torch.randn(N, 1, generator=torch.Generator().manual_seed(3))
    step = Training(epochs=1, batch_size=N, lr=1.0, momentum=0.0, anneal=False)
    half = torch.arange(N) < N // 2
    build = in_float64(lambda s: mlp((3, 1), seed=s, bias=False))
    found = retrain(build, SquaredError(), x, t, step, half, progress=False).parameters["out.weight"][0]
    W = build(0).out.weight.detach()
    expected = W - ((x[: N // 2] @ W.T - t[: N // 2]).T @ x[: N // 2]) / N
    assert torch.allclose(found, expected, atol=1e-12)


def test_a_weight_may_be_any_number():
    x, y = digits()
    build = in_float64(lambda s: mlp((12, 5, 10), seed=s))
    weights = torch.linspace(0, 2, N)
    found = retrain(build, CrossEntropy(), x, y, SGD, weights, progress=False)
    alone = plain_loop(build(0), cross_entropy, x, y, SGD, weights, order=0)
    assert torch.allclose(found.model(0).out.weight, alone.out.weight, atol=1e-12)


def test_what_queries_measure_is_measured_on_every_network():
    x, y = digits()
    networks = stack([mlp((12, 7, 10), seed=s).double() for s in range(3)])
    found = networks.measure(CrossEntropy(), [(x[:20], y[:20]), (x[20:], y[20:])])
    assert found.shape == (3, N)
    for m, model in enumerate(networks.models()):
        assert torch.allclose(found[m], -cross_entropy(model(x), y), atol=1e-12)


def test_every_epoch_sees_every_example_once_in_an_order_of_its_own():
    rows = list(SGD.minibatches(N, 0))
    assert [len(r) for r in rows] == [8, 8, 8, 6] * 3 and SGD.steps(N) == 12
    epochs = torch.cat(rows).view(3, N)
    assert all(sorted(epoch.tolist()) == list(range(N)) for epoch in epochs)
    assert not torch.equal(epochs[0], epochs[1])
    assert torch.equal(torch.cat(list(SGD.minibatches(N, 0))), epochs.flatten())
    assert not torch.equal(torch.cat(list(SGD.minibatches(N, 1))), epochs.flatten())
    assert epochs[0, :5].tolist() == [0, 21, 2, 11, 20]  # the same for ever


def test_the_models_given_and_the_global_generator_are_left_as_they_were():
    model, state = mlp((12, 5, 10)).double(), torch.get_rng_state()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    x, y = digits()
    retrain(lambda s: model, CrossEntropy(), x, y, SGD, masks(), progress=False)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


class Normalised(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(12)

    def forward(self, x):
        return self.norm(x)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (dict(weights=torch.ones(2, N - 1)), r"weights have shape \(2, 29\); expected \(M, 30\)"),
        (dict(seeds=[0, 1]), r"2 seeds for 4 networks"),
        (dict(targets=torch.zeros(3).long()), r"hold \[30, 3\] examples"),
        (dict(build=lambda s: Normalised()), r"buffer 'norm\.running_mean'"),
        (dict(build=lambda s: mlp((12, 5 + s, 10)), seeds=[0, 1, 0, 0]), r"'hidden1\.weight' differs in shape"),
        (dict(training=Training(lr=1e300)), r"4 of 4 networks ended with weights that are not finite"),
    ],
)
def test_what_cannot_be_trained_together_is_refused(change, match):
    x, y = digits()
    given = dict(build=lambda s: mlp((12, 5, 10), seed=s).double(), objective=CrossEntropy(), inputs=x, targets=y)
    given |= dict(training=SGD, weights=masks(), seeds=0) | change
    with pytest.raises(ValueError, match=match):
        retrain(**given, progress=False)


@pytest.mark.parametrize("wrong", [dict(epochs=0), dict(lr=0.0), dict(optimiser="lion"), dict(weight_decay=-1.0)])
def test_a_training_that_trains_nothing_is_refused(wrong):
    with pytest.raises(ValueError, match="expected"):
        Training(**wrong)


def test_no_model_is_refused():
    with pytest.raises(ValueError, match="no model came"):
        stack([])


@pytest.mark.cuda
@pytest.mark.parametrize("case", CASES)
def test_a_gpu_trains_the_same_networks(case):
    build, objective, _, data, training = CASES[case]
    inputs, targets = data()
    double = in_float64(build)
    cpu, gpu = (
        retrain(double, objective, inputs, targets, training, masks(), 3, device=device, progress=False)
        for device in ("cpu", "cuda")
    )
    for name, p in cpu.parameters.items():
        assert torch.allclose(p, gpu.parameters[name].cpu(), rtol=0, atol=1e-8), name
