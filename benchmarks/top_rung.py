"""How near does the derivative through training come to the ceiling? The bank "smooth", one run after another.

    python benchmarks/top_rung.py               # 4 runs at each of two weights, about 4 CPU-minutes
    python benchmarks/top_rung.py --seconds 30  # some of it

196-32-16-10 with tanh, rate 0.03, weight decay 5e-3, 40 epochs, 2,000 digits of 14 × 14. Margins of 100 queries that no
dial was chosen on. Every run is differentiated in the examples' weights, from a seed that is not the bank's,

    at 1    where every example counts fully: the network that one asks about
    at ½    in the middle of the bank's half-subsets, each of which keeps an example or not: to first order a
            retrained network is the one at ½ plus what ±½ of every weight changes

and so are EK-FAC (0.1 · mean) and refined scores (10 steps, 1 · mean) of the networks that these runs end with. The
LDS of the mean over the first 1, 2 and 4 runs.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from cells import Study, arguments, asking, bank_of, kept

from inflib import ekfac, influence, refine, relative
from inflib.doubt import average_scores
from inflib.lab import banks
from inflib.validation import Bank, BankRecipe, Run, ceiling, through_training
from inflib.validation.board import halves
from inflib.validation.datamodeling import lds

WEIGHTS, RUNS = (0.5, 1.0), 4


def score(recipe: BankRecipe, weight: float, seed: int) -> dict[str, torch.Tensor]:
    """One run's scores, by the derivative through training and at its end."""
    data = recipe.objective, recipe.data(), recipe.asked()
    model, run = recipe.build(seed).eval(), Run.of(recipe.training, recipe.examples, seed)
    weights = torch.full((recipe.examples,), weight)
    top = through_training(model, *data, run, measurement="margin", weights=weights)
    model.load_state_dict(top.parameters)
    curvature = ekfac(model, *data[:2])
    refined = refine(curvature, model, *data[:2], steps=10, progress=False)
    return {
        "through training": top.scores,
        "EK-FAC": influence(model, *data, curvature, measurement="margin"),
        "refined": influence(model, *data, refined, relative(1.0), measurement="margin"),
    }


def table(runs: list[dict[str, torch.Tensor]], bank: Bank, queries: torch.Tensor) -> dict[str, Any]:
    """Of every method: each run's LDS, and that of the mean of the first 1, 2, 4 with its interval."""
    found: dict[str, Any] = {}
    for name in runs[0]:
        each = [float(lds(r[name], bank, "margin", queries, resamples=1)[0].mean()) for r in runs]
        means = {}
        for count in (1, 2, RUNS):
            mean = average_scores(run[name] for run in runs[:count])
            _, interval = lds(mean, bank, "margin", queries, resamples=300)
            means[str(count)] = [interval.mean, interval.low, interval.high]
        found[name] = {"each": each, "mean_of": means}
    return found


def standardised(runs: list[dict[str, torch.Tensor]], bank: Bank, queries: torch.Tensor) -> dict[str, float]:
    """Of every method: the mean over all runs, every query's scores brought to one spread first."""
    means = {name: average_scores((run[name] for run in runs), standardised=True) for name in runs[0]}
    return {name: float(lds(mean, bank, "margin", queries, resamples=1)[0].mean()) for name, mean in means.items()}


def main() -> None:
    arguments(__doc__)
    study, queries = Study("top_rung"), halves(200)[1]
    recipe = asking(banks.smooth(), queries)
    for weight in WEIGHTS:
        seeds = range(100, 100 + RUNS)
        runs = [kept(f"smooth at {weight:g}, seed {seed}", partial(score, recipe, weight, seed)) for seed in seeds]
        study.cell(f"weight {weight:g}", partial(table, runs, bank_of("smooth"), queries))
        study.cell(f"weight {weight:g}, standardised", partial(standardised, runs, bank_of("smooth"), queries))
    study.cell("ceiling", lambda: {"mean": ceiling(bank_of("smooth"), queries=queries).mean})


if __name__ == "__main__":
    main()
