"""Published results redone, with the differences shown: ``python benchmarks/published_results.py [ITEM …]``

    leave_one_out   Koh & Liang 2017, figure 2: predicted against actual change of a test loss, logistic regression
    small_pbrf      EK-FAC against the proximal Bregman response on a small regression, at three dampings
    concrete        kronfluence's first tutorial: the loss of a query after deleting its top k and training again

Rows go to benchmarks/results/published.json.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from inflib import CrossEntropy, SquaredError, ekfac, gauss_newton, identity, influence, predicted_change, refine
from inflib.lab import mlp, mnist_5k
from inflib.validation import BankRecipe, Training, fit_linear, half_subsets, left_out, pbrf, remove_top

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "published.json"
LEFT_OUT, L2 = 100, 0.01
SEEDS, ASKED, KS = 5, 4, (20,)


def leave_one_out() -> dict[str, Any]:
    """Logistic regression on 4,500 digits of 7 × 7 pixels, refitted without each of the 100 strongest examples."""
    digits = mnist_5k()
    x, asked = (_coarse(part.inputs) for part in (digits.train, digits.queries))
    y = digits.train.labels
    theta = fit_linear(CrossEntropy(), x, y, L2).theta[0]
    wrong = int(((asked @ theta.T).argmax(1) != digits.queries.labels).nonzero()[0])
    query = [(asked[[wrong]], digits.queries.labels[[wrong]])]
    model = mlp((x.shape[1], 10), bias=False, dtype=torch.float64)
    model.out.weight.data.copy_(theta)
    data = [(x, y)]
    predicted = {
        name: predicted_change(influence(model, CrossEntropy(), data, query, C, L2, progress=False), len(x))[0]
        for name, C in {
            "exact G": gauss_newton(model, CrossEntropy(), data, progress=False),
            "EK-FAC": ekfac(model, CrossEntropy(), data, progress=False),
        }.items()
    }
    which = predicted["exact G"].abs().topk(LEFT_OUT).indices
    refit = fit_linear(CrossEntropy(), x, y, L2, left_out(len(x), which.tolist()), start=theta)
    loss = torch.stack([CrossEntropy().loss(query[0][0] @ t.T, query[0][1])[0] for t in refit.theta])
    actual = CrossEntropy().loss(query[0][0] @ theta.T, query[0][1])[0] - loss
    rows = [
        {"method": name, "pearson": _pearson(p[which], actual), "slope": _slope(p[which], actual)}
        for name, p in predicted.items()
    ]
    return {"published": "r = 0.99 (conjugate gradients on the exact Hessian)", "examples": LEFT_OUT, "rows": rows}


def small_pbrf() -> dict[str, Any]:
    """A tanh network 8-16-1 on 200 of the concrete mixtures: exact G and EK-FAC against the proximal response."""
    x, y = (part.double() for part in concrete_data()[0])
    x, y = x[:200], y[:200]
    training = Training(epochs=300, batch_size=50, lr=0.1, weight_decay=1e-3)
    recipe = _recipe((x, y), (x[:0], y[:0]), training, (8, 16, 1), nn.Tanh)
    model, data = recipe.train(0, progress=False).model(0), [(x, y)]
    queries, which = [(x[100:120], y[100:120])], list(range(0, 200, 10))
    plain, rows = ekfac(model, SquaredError(), data, progress=False), []
    for damping in (0.01, 0.1, 1.0):
        truth = pbrf(
            model, SquaredError(), data, queries, which, damping, epsilon=0.1 / 200, curvature=plain, progress=False
        )
        for name, C in (("EK-FAC", plain), ("exact G", gauss_newton(model, SquaredError(), data, progress=False))):
            scores = influence(model, SquaredError(), data, queries, C, damping, progress=False)[:, which]
            each = [
                _pearson(s[truth.converged], t[truth.converged]) for s, t in zip(scores, truth.response, strict=True)
            ]
            rows.append(
                {"method": name, "damping": damping, "pearson": float(np.mean(each)), "of": int(truth.converged.sum())}
            )
    return {"known": "EK-FAC .68, .92, .97 at damping .01, .1, 1", "rows": rows}


def concrete() -> dict[str, Any]:
    """8-128-128-128-1 on the concrete mixtures: a query's loss after its top k are deleted."""
    train, valid = concrete_data()
    # the published loss is the squared error, twice ours: its rate .03 and weight decay 1e-5 become .06 and 5e-6
    training = Training(40, 32, lr=0.06, momentum=0.0, weight_decay=5e-6, anneal=False)
    recipe = _recipe(train, tuple(part[:ASKED] for part in valid), training, (8, 128, 128, 128, 1), nn.ReLU)
    model, data, objective = recipe.train(0, progress=False).model(0), recipe.data(), SquaredError()
    plain = ekfac(model, objective, data, progress=False)
    curvatures = {
        "identity": identity(model, objective, data, progress=False),
        "EK-FAC": plain,
        "refined": refine(plain, model, objective, data, steps=10, progress=False),
    }
    scores = {n: influence(model, objective, data, recipe.queries, C, progress=False) for n, C in curvatures.items()}
    scores["random"] = torch.rand(ASKED, recipe.examples, generator=torch.Generator().manual_seed(0))
    found = remove_top(recipe, scores, KS, seeds=SEEDS, measurement="log_likelihood")
    rows = [
        {"ranking": name, "k": k, "squared error gained": _negated(found.mean_change(name, k))}
        for name, k in found.change
    ]
    known = "EK-FAC's top k raise the loss most, identity's less, random's not"
    return {"published": known, "seeds": SEEDS, "rows": rows}


def concrete_data() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """927 mixtures to train on and 103 held out, every column standardised by the training part; strength last."""
    with open(ROOT / "data" / "concrete.csv", newline="") as file:
        rows = np.array([[float(v) for v in row] for row in list(csv.reader(file))[1:]])
    rows = rows[np.argsort(np.random.Philox(key=0).random_raw(len(rows)), kind="stable")]
    held = len(rows) // 10
    rows = (rows - rows[held:].mean(0)) / rows[held:].std(0)
    x, y = torch.from_numpy(rows[:, :-1]).float(), torch.from_numpy(rows[:, -1:]).float()
    return (x[held:], y[held:]), (x[:held], y[:held])


def _recipe(
    train: tuple[Tensor, ...], asked: tuple[Tensor, ...], training: Training, sizes: tuple, activation: Callable
) -> BankRecipe:
    return BankRecipe(
        name="concrete",
        build=lambda seed: mlp(sizes, activation=activation, seed=seed, dtype=train[0].dtype),
        objective=SquaredError(),
        inputs=train[0],
        targets=train[1],
        queries=[tuple(asked)],
        training=training,
        masks=half_subsets(len(train[0]), 1),
        seeds=1,
        measurements=("log_likelihood",),
    )


def _coarse(inputs: Tensor) -> Tensor:
    """Digits averaged over 4 × 4 pixels, and a column of ones: (N, 50) float64."""
    pooled = nn.functional.avg_pool2d(inputs.double().view(-1, 1, 28, 28), 4).flatten(1)
    return torch.cat([pooled, torch.ones(len(pooled), 1, dtype=torch.float64)], dim=1)


def _pearson(x: Tensor, y: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([x, y]))[0, 1])


def _slope(x: Tensor, y: Tensor) -> float:
    return float((x * y).sum() / (x * x).sum())


def _negated(change: Any) -> dict[str, float]:
    """An interval of −ℓ as one of the squared error, which is 2 ℓ."""
    held = asdict(change)
    return {"mean": -2 * held["mean"], "low": -2 * held["high"], "high": -2 * held["low"]}


ITEMS: dict[str, Callable[[], dict[str, Any]]] = {
    "leave_one_out": leave_one_out,
    "small_pbrf": small_pbrf,
    "concrete": concrete,
}


def main(asked: list[str]) -> None:
    """Compute the items asked for, or all, and keep their rows."""
    torch.set_num_threads(1)
    for name in asked or list(ITEMS):
        print(f"--- {name}: {ITEMS[name].__doc__}", flush=True)
        found = ITEMS[name]()
        print(json.dumps(found, indent=1))
        held = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        RESULTS.write_text(json.dumps(held | {name: found}, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
