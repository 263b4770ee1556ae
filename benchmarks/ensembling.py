"""What do ensembles buy, of seeds and of checkpoints, and should their scores be standardised before they are averaged?

    python benchmarks/ensembling.py               # two networks, about 1 CPU-minute; goes on where it was
    python benchmarks/ensembling.py --seconds 30  # some pieces of it

The banks "decay" and "smooth": margins of the 100 reported queries, EK-FAC at 0.1 · mean of networks from four seeds,
each at a quarter, half, three quarters and all of its training. The LDS of one network, of four seeds' ends, of one
training's four checkpoints, and of all sixteen; averaged as they are, and with every query's scores brought to one
spread first.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from cells import Study, arguments, asking, bank_of, kept
from torch import Tensor

from inflib import ekfac, influence
from inflib.doubt import average_scores
from inflib.lab import banks
from inflib.validation import BankRecipe, Run, halves
from inflib.validation.datamodeling import lds
from inflib.validation.through_training.replay import Training

SEEDS, PARTS = range(100, 104), 4


def checkpoints(recipe: BankRecipe, seed: int) -> Tensor:
    """Scores at each quarter of one training, (4, Q, N)."""
    data = recipe.objective, recipe.data(), recipe.asked()
    model, run = recipe.build(seed).eval(), Run.of(recipe.training, recipe.examples, seed)
    training = Training(model, *data[:2], run, None)
    found, at = [], [len(run) * part // PARTS for part in range(1, PARTS + 1)]
    with torch.no_grad():
        states = [z[0] for k, z in enumerate(training.steps(training.start(), 0, len(run))) if k in at]
    for theta in states:
        model.load_state_dict(training.named(theta))
        found.append(influence(model, *data, ekfac(model, *data[:2]), measurement="margin"))
    return torch.stack(found)


def cell(name: str) -> dict[str, Any]:
    """The LDS of each ensemble, [mean, low, high], plain and standardised."""
    bank, queries = bank_of(name), halves(200)[1]
    recipe = asking(getattr(banks, name)(), queries)
    each = [kept(f"checkpoints of {name}, seed {seed}", partial(checkpoints, recipe, seed)) for seed in SEEDS]
    ensembles = {
        "one network": [each[0][-1]],
        "four seeds": [one[-1] for one in each],
        "four checkpoints": list(each[0]),
        "four seeds, four checkpoints each": [scores for one in each for scores in one],
    }

    def value(members: list[Tensor], standardised: bool) -> list[float]:
        mean = average_scores(members, standardised=standardised)
        interval = lds(mean, bank, "margin", queries, resamples=300)[1]
        return [interval.mean, interval.low, interval.high]

    return {
        what: {"plain": value(members, False), "standardised": value(members, True)}
        for what, members in ensembles.items()
    }


def main() -> None:
    arguments(__doc__)
    study = Study("ensembling")
    for name in ("decay", "smooth"):
        study.cell(name, partial(cell, name))


if __name__ == "__main__":
    main()
