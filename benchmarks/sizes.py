"""What a predicted change is worth by exact G, after so many refinement steps: ``python benchmarks/sizes.py``

The course's own networks: ``digits``, notebook 07's (784-64-64-10, 4,500 digits, 12 queries, float32), and ``facts``,
notebook 08's transformer (460 sentences, 12 questions, float64). The same damping numbers for all, multiples of
EK-FAC's mean eigenvalue. For each number of steps benchmarks/results/sizes.json holds the slope of exact contributions
on the predicted ones (median, smallest and largest query's) and their correlation (mean, smallest), over all training
examples; exact is conjugate gradients of 60 steps, whose largest relative residual stands beside.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from cells import Study, arguments, kept
from torch import Tensor

from inflib import CrossEntropy, NextToken, damping_of, ekfac, influence, precondition, refine
from inflib.lab import facts, language_model, mnist, network
from inflib.validation.resampling import correlations

STEPS, EXACT = (0, 1, 3, 10), 60
SETTINGS = (("digits", 0.1), ("facts", 0.1), ("digits", 1.0), ("facts", 1.0))


def digits() -> tuple[Any, ...]:
    data = mnist("small")
    asked = data.queries[:: len(data.queries) // 12]
    how: dict[str, Any] = {"dtype": torch.float32}
    return (
        network("settled", data, "small", **how),
        CrossEntropy(),
        data.train.batches(**how),
        asked.batches(**how),
        None,
    )


def facts_model() -> tuple[Any, ...]:
    data = facts()
    model = language_model("facts", data.train)
    return model, NextToken(), data.train.batches(64), data.queries()[:12], ["blocks.*", "unembed"]


def scores(name: str, factor: float, steps: int) -> dict[str, Tensor]:
    """Scores (Q, N) after so many steps, and each query's residual (Q,)."""
    model, objective, train, queries, layers = digits() if name == "digits" else facts_model()
    curvature = ekfac(model, objective, train, layers, progress=False)
    refined = refine(curvature, model, objective, train, steps=steps, progress=False)
    numbers = damping_of(curvature, factor)
    solved = precondition(model, objective, queries, refined, numbers, progress=False)
    found = influence(model, objective, train, solved, refined, numbers, progress=False)
    return {"scores": found.double(), "residual": solved.residual.double()}


def measure(name: str, factor: float) -> dict[str, Any]:
    found = {k: kept(f"sizes/{name}-{factor:g}-{k}", partial(scores, name, factor, k)) for k in (*STEPS, EXACT)}
    exact = found[EXACT]["scores"]
    table: dict[str, Any] = {"residual of exact": float(found[EXACT]["residual"].max())}
    for k in STEPS:
        predicted = found[k]["scores"]
        slopes = (predicted * exact).sum(1) / predicted.square().sum(1)
        each = correlations(predicted, exact, ranked=False)
        table[f"{k} steps"] = {
            "slope": [float(x) for x in (slopes.median(), slopes.min(), slopes.max())],
            "correlation": [float(each.mean()), float(each.min())],
            "residual": float(found[k]["residual"].max()),
        }
    return table


if __name__ == "__main__":
    arguments(__doc__)
    study = Study("sizes")
    for setting in SETTINGS:
        study.cell("{}, damping {:g} mean".format(*setting), partial(measure, *setting))
