"""A hundred retrainings as one batch, beside the same one by one: ``python benchmarks/retraining.py [--threads 2]``

The network, data and training of the bank "decay". One by one is torch as anybody would write it: a module, an
optimiser, a loss, a step. Prints CPU-seconds and seconds of the clock for a thousand networks, and, in float64, the
largest difference between the two ways' losses.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inflib.lab import banks
from inflib.validation import BankRecipe


def one_by_one(recipe: BankRecipe, masks: Tensor, dtype: torch.dtype) -> list[nn.Module]:
    """Each network by a loop of its own."""
    training, x, y = recipe.training, recipe.inputs.to(dtype), recipe.targets
    steps, found = training.steps(len(y)), []
    for mask in masks.to(dtype):
        model = recipe.build(0).to(dtype)
        rule = torch.optim.SGD(model.parameters(), training.lr, training.momentum, weight_decay=training.weight_decay)
        for step, rows in enumerate(training.minibatches(len(y), 0)):
            rule.param_groups[0]["lr"] = training.rate(step, steps)
            rule.zero_grad()
            losses = F.cross_entropy(model(x[rows]), y[rows], reduction="none")
            ((mask[rows] * losses).sum() / len(rows)).backward()
            rule.step()
        found.append(model)
    return found


def timed(run: Callable[[], Any]) -> tuple[Any, float, float]:
    """What it returns, its CPU-seconds and its seconds of the clock."""
    cpu, clock = time.process_time(), time.perf_counter()
    found = run()
    return found, time.process_time() - cpu, time.perf_counter() - clock


def main() -> None:
    """Measure both ways and print a line each."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--alone", type=int, default=8, help="networks trained one by one")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    recipe = banks.decay()
    recipe.train(0, recipe.masks[:2], progress=False)
    for what, count, run in (
        ("as one batch", 100, lambda: recipe.train(0, recipe.masks, progress=False)),
        ("one by one", asked.alone, lambda: one_by_one(recipe, recipe.masks[: asked.alone], torch.float32)),
    ):
        _, cpu, clock = timed(run)
        cpu, clock = 1000 * cpu / count, 1000 * clock / count
        print(f"{what}: {cpu:.0f} CPU-seconds, {clock:.0f} of the clock, for 1,000 networks")
    print(f"float64, largest difference of a training loss: {losses_apart(recipe, 3):.1e}")


@torch.no_grad()
def losses_apart(recipe: BankRecipe, count: int) -> float:
    """Between the two ways' losses of every example on every network, in float64."""
    masks, x, y = recipe.masks[:count], recipe.inputs.double(), recipe.targets
    double = replace(recipe, build=lambda seed: recipe.build(seed).double(), inputs=x)
    together = double.train(0, masks, progress=False).models()
    with torch.enable_grad():
        alone = one_by_one(recipe, masks, torch.float64)
    pairs = zip(alone, together, strict=True)
    losses = ([F.cross_entropy(model(x), y, reduction="none") for model in pair] for pair in pairs)
    return max(float((one - other).abs().max()) for one, other in losses)


if __name__ == "__main__":
    main()
