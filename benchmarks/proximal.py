"""Scores against the proximal Bregman response, and their sizes: ``python benchmarks/proximal.py [--seconds 60]``

The networks of inflib.lab.banks (2,000 digits pooled to 14 × 14, networks trained from seed 100): 24 training examples
drawn at random, 20 queries' log odds, float64. Every method is given the same damping numbers, EK-FAC's own. For each
network, damping and ε benchmarks/results/proximal.json holds, method by method, the mean per-query Pearson correlation
with the response and the slope of the response on the score, both with an interval over queries and examples, and how
many examples converged; beside it the same against exact G, over all 2,000 examples.
"""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

import torch
from cells import Study, arguments, few_queries, kept
from torch import Tensor

from inflib import damping_of, ekfac, identity, influence, kfac, refine
from inflib.lab import banks
from inflib.validation import (
    Calibration,
    InterpolationWarning,
    NotConvergedWarning,
    Proximal,
    calibration,
    pbrf,
)

SEED, EXAMPLES, QUERIES, PIECE = 100, 24, 20, 4
STEPS = (0, 1, 3, 10, 20)
NETWORKS = ("smooth", "decay", "plain")  # tanh; ReLU; ReLU without weight decay, which interpolates
DAMPINGS = {"0.1 mean": None, "0.01": 0.01}
EPSILONS = {"1/N": 1 / 2000, "0.01/N": 1e-2 / 2000}


class Setting:
    """A network, its data and queries, EK-FAC and damping numbers, made when first needed."""

    def __init__(self, network: str, damping: str):
        recipe = few_queries(banks.recipe(network), QUERIES)
        self.name, self.objective = f"{network}, {damping}", recipe.objective
        self.model = recipe.train(SEED, progress=False).model(0).double()
        self.data, self.queries = recipe.data(1000, torch.float64), recipe.asked(torch.float64)
        self.curvature = ekfac(self.model, self.objective, self.data, progress=False)
        number = DAMPINGS[damping]
        self.numbers = (
            damping_of(self.curvature, 0.1) if number is None else dict.fromkeys(self.curvature.layers, number)
        )
        self.which = torch.randperm(2000, generator=torch.Generator().manual_seed(0))[:EXAMPLES].tolist()

    def curvatures(self) -> dict[str, Any]:
        refined = partial(refine, self.curvature, self.model, self.objective, self.data, progress=False)
        found = {f"refined, {k} steps": refined(k) for k in STEPS if k}
        exact = {"exact G": refined(tolerance=1e-3)}
        plain = {
            name: f(self.model, self.objective, self.data, progress=False)
            for name, f in (("K-FAC", kfac), ("identity", identity))
        }
        return exact | found | {"EK-FAC": self.curvature} | plain

    def scores(self, curvature: Any) -> Tensor:
        """(Q, N)"""
        how: dict[str, Any] = {"measurement": "margin", "progress": False}
        return influence(self.model, self.objective, self.data, self.queries, curvature, self.numbers, **how)

    def responses(self, epsilon: float, which: list[int]) -> Proximal:
        how: dict[str, Any] = {"curvature": self.curvature, "measurement": "margin", "progress": False}
        return pbrf(
            self.model, self.objective, self.data, self.queries, which, self.numbers, epsilon=epsilon,
            tolerance=1e-3, max_steps=200, **how,
        )  # fmt: skip


def measure(network: str, damping: str) -> dict[str, Any]:
    """Everything about one network at one damping."""
    setting = Setting(network, damping)
    name = f"proximal/{network}-{damping.replace(' ', '')}"
    scores = {
        method: kept(f"{name}-{method.replace(' ', '')}", partial(setting.scores, curvature))
        for method, curvature in setting.curvatures().items()
    }
    table: dict[str, Any] = {
        f"against exact G, {method}": numbers(calibration(found, scores["exact G"]))
        for method, found in scores.items()
        if method != "exact G"
    }
    for label, epsilon in EPSILONS.items():
        pieces = [
            kept(
                f"{name}-{label.replace('/', '_')}-{at}",
                partial(_plain_responses, setting, epsilon, setting.which[at : at + PIECE]),
            )
            for at in range(0, EXAMPLES, PIECE)
        ]
        response, norm, converged = (
            torch.cat([p[k] for p in pieces], -1) for k in ("response", "gradient_norm", "converged")
        )
        done = converged.nonzero()[:, 0]
        table[f"ε = {label}"] = {"converged": len(done), "of": EXAMPLES, "gradient norm": norm.quantile(0.5)}
        if len(done) >= 3:
            few = {method: found[:, setting.which][:, done] for method, found in scores.items()}
            table[f"ε = {label}"] |= {m: numbers(calibration(s, response[:, done])) for m, s in few.items()}
    return table


def _plain_responses(setting: Setting, epsilon: float, which: list[int]) -> dict[str, Tensor]:
    found = setting.responses(epsilon, which)
    return {k: getattr(found, k) for k in ("response", "gradient_norm", "converged")}


def numbers(found: Calibration) -> dict[str, Any]:
    """A calibration as JSON has it: means, [low, high], and the smallest and largest slope of a query."""
    return {
        "correlation": [found.correlation.mean, found.correlation.low, found.correlation.high],
        "slope": [found.slope.mean, found.slope.low, found.slope.high],
        "slopes of queries": [float(found.slopes.min()), float(found.slopes.max())],
    }


if __name__ == "__main__":
    arguments(__doc__)
    warnings.simplefilter("ignore", InterpolationWarning)
    warnings.simplefilter("ignore", NotConvergedWarning)
    study = Study("proximal")
    for network in NETWORKS:
        for damping in DAMPINGS:
            study.cell(f"{network}, damping {damping}", partial(measure, network, damping))
