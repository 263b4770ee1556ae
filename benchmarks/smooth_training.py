"""How smooth must training be for its derivative to tell what retraining would do?

    python benchmarks/smooth_training.py               # all of GRID, about 8 CPU-minutes; goes on where it was
    python benchmarks/smooth_training.py --seconds 30  # some pieces of it

For each activation, learning rate and batch size, 196-32-16-10 on 2,000 digits of 14 × 14, 40 epochs of SGD with
momentum 0.9 and weight decay 5e-3, rate falling to 0; 100 half-subsets × 3 seeds retrained; the margins of 40 queries:

    sensitivity     ‖dm/dθ_k‖ / ‖dm/dθ_T‖ at the checkpoints k, median over the queries: how much more a small change of
                    the weights counts there than at the end. It falls where training forgets, grows where it amplifies
    linear          correlation of predicted and actual change of one run, the same seed and order, when a random half
                    of the examples loses the share s of its weight (s = 1: is removed); mean over the queries
    lds             of the derivative through training, of each of two runs and of their mean
    lds_ekfac       of EK-FAC at the end of the same runs, 0.1 · mean
    ceiling         what the expected measurement would reach
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from cells import Study, arguments, kept, perceptron
from torch import Tensor
from torch.nn.functional import cosine_similarity

from inflib import ekfac, influence
from inflib.doubt import average_scores
from inflib.validation import Bank, BankRecipe, Run, ceiling, through_training
from inflib.validation.datamodeling import lds as summed_scores

GRID = [
    ("Tanh", 0.03, 100, 40),
    ("ReLU", 0.1, 100, 40),
    ("Tanh", 0.03, 100, 10),
    ("Tanh", 0.1, 100, 40),
    ("ReLU", 0.03, 100, 40),
    ("Tanh", 0.1, 500, 40),
]
SEEDS, RUNS, QUERIES, SHARES = 3, 2, 40, (0.01, 0.1, 1.0)


def cell(key: str, recipe: BankRecipe) -> dict[str, Any]:
    """All figures of one way to train."""
    bank = measured(key, recipe, SEEDS)
    # not the bank's seeds, but the first, whose retrainings `linear` compares one by one
    runs = [kept(f"run {seed} of {key}", partial(run, recipe, seed)) for seed in (0, *range(100, 99 + RUNS))]
    through, kronecker = [one["through"] for one in runs], [one["ekfac"] for one in runs]
    return {
        "sensitivity": [one["sensitivity"] for one in runs],
        "linear": kept(f"linear in float64 {key}", partial(linear, recipe)),
        "lds": [lds(scores, bank) for scores in through],
        "lds_of_mean": lds(average_scores(through), bank),
        "lds_ekfac": [lds(scores, bank) for scores in kronecker],
        "lds_ekfac_of_mean": lds(average_scores(kronecker), bank),
        "ceiling": ceiling(bank).mean,
    }


def run(recipe: BankRecipe, seed: int) -> dict[str, Tensor]:
    """Scores of one run, through training and at its end, and its sensitivity (c + 1,), the median query's."""
    data = recipe.objective, recipe.data(), recipe.asked()
    model = recipe.build(seed)
    found = through_training(model, *data, Run.of(recipe.training, recipe.examples, seed), measurement="margin")
    model.load_state_dict(found.parameters)
    at_its_end = influence(model, *data, ekfac(model, *data[:2]), measurement="margin")
    sensitivity = (found.sensitivity / found.sensitivity[:, -1:]).median(0).values
    return {"through": found.scores, "ekfac": at_its_end, "sensitivity": sensitivity}


def measured(key: str, recipe: BankRecipe, seeds: int) -> Bank:
    """The recipe's bank of margins."""

    def one(seed: int) -> Tensor:
        return recipe.train(seed, recipe.masks, progress=False).measure(recipe.objective, recipe.queries, "margin")

    values = [kept(f"bank of {key}, seed {seed}", partial(one, seed)) for seed in range(seeds)]
    return Bank(recipe.masks, {"margin": torch.stack(values).double()}, {})


def lds(scores: Tensor, bank: Bank) -> list[float]:
    """Mean, low, high."""
    _, found = summed_scores(scores, bank, "margin", None, resamples=300)
    return [found.mean, found.low, found.high]


def linear(recipe: BankRecipe, masks: int = 20) -> dict[str, float]:
    """Pearson's correlation over the masks, mean over the queries, at each share.

    All in float64: where training amplifies every change, a run in float32 is soon another one.
    """
    double = replace(recipe, build=lambda seed: recipe.build(seed).double(), inputs=recipe.inputs.double())
    data = recipe.objective, recipe.data(dtype=torch.float64), recipe.asked(torch.float64)
    run = Run.of(recipe.training, recipe.examples, 0)
    removed = (~recipe.masks[:masks]).double()  # (K, N)
    predicted = -through_training(double.build(0), *data, run, measurement="margin").scores @ removed.T  # (Q, K)
    found = {}
    for share in SHARES:
        weights = torch.cat([torch.ones(1, recipe.examples), 1 - share * removed])
        values = double.train(0, weights, progress=False).measure(recipe.objective, data[2], "margin")
        actual = (values[1:] - values[0]).T
        centred = [x - x.mean(1, keepdim=True) for x in (actual, predicted)]
        found[str(share)] = float(cosine_similarity(*centred, dim=1).mean())
    return found


def main() -> None:
    arguments(__doc__)
    study = Study("smooth_training")
    for activation, lr, batch_size, epochs in GRID:
        key = f"{activation}, rate {lr:g}, batches of {batch_size}, {epochs} epochs"
        recipe = perceptron(activation, lr, batch_size, QUERIES, epochs=epochs)
        study.cell(key, partial(cell, key, recipe))


if __name__ == "__main__":
    main()
