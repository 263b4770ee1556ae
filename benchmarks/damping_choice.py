"""Can the damping be chosen without retraining? Candidates beside the best of twelve values, on seven settings.

    python benchmarks/damping_choice.py               # all settings, about 7 CPU-minutes; goes on where it was
    python benchmarks/damping_choice.py --seconds 30  # some pieces of it

For each setting, the LDS (margins of 40 queries, 100 half-subsets × 2 seeds) of one network's EK-FAC scores at twelve
dampings, λ_layer = f · mean Λ_layer, of its refined ones (10 steps) at six, where each candidate would have gone, and
how much less LDS it has than the best (paired by query, with an interval over the queries):

    default      f = 0.1
    theory       one number for all layers: weight decay + (1 − momentum) / Σ_k η_k. After so many steps gradient
                 descent has gone along an eigenvector of curvature h about as far as a Newton step damped by 1 / Σ η
                 (λ = 1 / (η K), arXiv 2507.14740); weight decay is the objective's own damping
    residual     the smallest f at which the median query's EK-FAC answer has a relative residual of at most ½ in G
    agreement    the f at which EK-FAC agrees best (mean per-query Pearson, 10 queries) with the refined scores at
                 ``theory``, which stand for the proximal objective's response
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from cells import Study, arguments, few_queries, kept, perceptron
from smooth_training import measured
from torch import Tensor
from torch.nn.functional import cosine_similarity

from inflib import ekfac, influence, refine, relative
from inflib.doubt import damping_by_training
from inflib.lab import banks
from inflib.queries import precondition
from inflib.validation import Bank, BankRecipe, Training, bootstrap
from inflib.validation.datamodeling import lds as summed_scores

FACTORS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
REFINED = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
QUERIES, SEEDS, FEW, STEPS = 40, 2, 10, 10


def settings() -> dict[str, BankRecipe]:
    """Networks, trainings and weight decays that differ, all on the 2,000 digits."""
    return {
        "logistic regression": few_queries(banks.logistic(), QUERIES),
        "ReLU, rate 0.1": perceptron("ReLU", 0.1, queries=QUERIES),
        "ReLU, no weight decay": perceptron("ReLU", 0.1, queries=QUERIES, weight_decay=0.0),
        "Tanh, rate 0.03": perceptron("Tanh", 0.03, queries=QUERIES),
        "Tanh, 10 epochs": perceptron("Tanh", 0.03, queries=QUERIES, epochs=10),
        "GELU, batches of 500": perceptron("GELU", 0.1, 500, queries=QUERIES),
        "ReLU, strong weight decay": perceptron("ReLU", 0.1, queries=QUERIES, weight_decay=2e-2),
    }


def cell(key: str, recipe: BankRecipe) -> dict[str, Any]:
    """The two curves, and where each candidate goes on them."""
    bank = measured(key, recipe, SEEDS)
    data = recipe.objective, recipe.data(), recipe.asked()
    model = recipe.train(100, progress=False).model(0)
    curvature = ekfac(model, *data[:2])
    refined = refine(curvature, model, *data[:2], steps=STEPS, progress=False)
    theory = by_theory(recipe.training, recipe.examples)

    def of(name: str, damping: Any) -> Tensor:
        used = {"ekfac": curvature, "refined": refined}[name]
        what = f"{key}, {name} at {damping}"
        return kept(what, lambda: influence(model, *data, used, damping, measurement="margin"))

    factors = {"ekfac": FACTORS, "refined": REFINED}
    scores = {name: {f: of(name, relative(f)) for f in these} for name, these in factors.items()}
    at_theory = {name: of(name, theory) for name in factors}
    unsolved = refine(curvature, model, *data[:2], steps=0, progress=False)
    residuals = [_residual(model, data, unsolved, f) for f in FACTORS]
    agreements = [_agreement(s[:FEW], at_theory["refined"][:FEW]) for s in scores["ekfac"].values()]
    chosen = {
        "default": 0.1,
        "residual": next((f for f, r in zip(FACTORS, residuals, strict=True) if r <= 0.5), FACTORS[-1]),
        "agreement": max(zip(agreements, FACTORS, strict=True))[1],
    }
    each = {name: {f: lds(s, bank) for f, s in all_.items()} for name, all_ in scores.items()}
    theirs = {name: lds(s, bank) for name, s in at_theory.items()}
    curves = {name: {f: float(v.mean()) for f, v in all_.items()} for name, all_ in each.items()}
    best = {name: each[name][max(curve, key=lambda f: curve[f])] for name, curve in curves.items()}
    beside = {("ekfac", candidate): each["ekfac"][f] for candidate, f in chosen.items()}
    beside |= {(name, "theory"): theirs[name] for name in theirs} | {("refined", "default"): each["refined"][0.1]}
    return {
        "mean_eigenvalues": curvature.mean_eigenvalues(),
        "theory": theory,
        "lds": {name: {str(f): value for f, value in curve.items()} for name, curve in curves.items()},
        "lds_at_theory": {name: float(v.mean()) for name, v in theirs.items()},
        "lds_chosen": {candidate: curves["ekfac"][f] for candidate, f in chosen.items()},
        "less_than_best": {f"{name}, {what}": _interval(v - best[name]) for (name, what), v in beside.items()},
        "chosen": chosen,
        "residuals": residuals,
        "agreements": agreements,
    }


def by_theory(training: Training, examples: int) -> float:
    """λ from the recipe alone."""
    steps = training.steps(examples)
    rates = (training.rate(k, steps) for k in range(steps))
    return damping_by_training(rates, momentum=training.momentum, weight_decay=training.weight_decay)


def lds(scores: Tensor, bank: Bank) -> Tensor:
    """Of each query, (Q,)."""
    return summed_scores(scores, bank, "margin", None, resamples=1)[0]


def _interval(differences: Tensor) -> list[float]:
    """Mean, low, high over the queries."""
    found = bootstrap(differences)
    return [found.mean, found.low, found.high]


def _residual(model: torch.nn.Module, data: tuple, unsolved: Any, factor: float) -> float:
    """The median query's relative residual of EK-FAC's answer in exact G."""
    few = [(x[:FEW], y[:FEW]) for x, y in data[2]]
    return float(precondition(model, data[0], few, unsolved, relative(factor), measurement="margin").residual.median())


def _agreement(one: Tensor, other: Tensor) -> float:
    """Pearson's correlation, mean over the queries."""
    return float(cosine_similarity(*(s - s.mean(1, keepdim=True) for s in (one, other)), dim=1).mean())


def main() -> None:
    arguments(__doc__)
    study = Study("damping_choice")
    for key, recipe in settings().items():
        study.cell(key, partial(cell, key, recipe))


if __name__ == "__main__":
    main()
