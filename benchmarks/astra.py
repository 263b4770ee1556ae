"""A published protocol on a GPU: 6,144 MNIST images, 784-512-256-128-10, 100 masks × 50 repeats (arXiv 2507.14740).

    INFLIB_DATA=/folder/with/mnist python benchmarks/astra.py --device cuda     # a bank of 5,000 retrainings, then LDS
    python benchmarks/astra.py --masks 12 --repeats 2 --epochs 1 --examples 300 --queries 4     # the same on a CPU

Made in build/banks/astra, it goes on where it was. Scores are EK-FAC's and refined ones of one network, at dampings
chosen on every other query; the protocol's own damping, 1/(rate × steps), is the first of them. Rate, batch and epochs
are ours, and printed: not all of the paper's are published.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from torch import Tensor

from inflib import CrossEntropy, ekfac, influence, refine
from inflib.lab import mlp, mnist_5k, mnist_full
from inflib.validation import (
    BankRecipe,
    Method,
    Training,
    board,
    by_retraining,
    half_subsets,
    halves,
    make_bank,
)

SIZES = (784, 512, 256, 128, 10)
LR, BATCH = 0.03, 64


def recipe(examples: int, masks: int, repeats: int, epochs: int, at_once: int, queries: int) -> BankRecipe:
    """The protocol's bank; the first 6,144 images of MNIST, its first test images as queries."""
    data = mnist_full() if examples > 4500 else mnist_5k()
    train, asked = data.train[:examples], data.queries[:queries]
    return BankRecipe(
        name="astra",
        build=lambda seed: mlp(SIZES, seed=seed),
        objective=CrossEntropy(),
        inputs=train.inputs,
        targets=train.labels,
        queries=[(asked.inputs, asked.labels)],
        training=Training(epochs, BATCH, lr=LR, momentum=0.9, weight_decay=1e-5),
        masks=half_subsets(examples, masks),
        seeds=repeats,
        at_once=at_once,
    )


def scores(made: BankRecipe, device: str, steps: int, damping: float) -> Tensor:
    """Scores of one network on all examples, EK-FAC's or refined, at an absolute damping."""
    model = made.train(1000, device=device, progress=False).model(0)
    data = [(x.to(device), y.to(device)) for x, y in made.data(1024)]
    asked = [(x.to(device), y.to(device)) for x, y in made.asked()]
    curvature = ekfac(model, made.objective, data, progress=False)
    if steps:
        curvature = refine(curvature, model, made.objective, data, steps=steps, progress=False)  # type: ignore[assignment]
    return influence(model, made.objective, data, asked, curvature, damping, measurement="margin").cpu()


def main() -> None:
    """Make the bank, score one network, print the board."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    for name, value in (
        ("examples", 6144),
        ("masks", 100),
        ("repeats", 50),
        ("epochs", 20),
        ("at-once", 100),
        ("queries", 200),
    ):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--folder", type=Path, default=Path("build/banks/astra"))
    asked = parser.parse_args()
    made = recipe(asked.examples, asked.masks, asked.repeats, asked.epochs, asked.at_once, asked.queries)
    bank = make_bank(made, asked.folder, device=asked.device)
    own = 1 / (LR * made.training.steps(made.examples))
    print(f"{bank}\nour training: {made.training}; damping 1/(rate × steps) = {own:.4g}")
    dampings = (own, 0.1 * own, 10 * own, 100 * own)
    methods = {
        "EK-FAC": Method(partial(scores, made, asked.device, 0), dampings, "expected", 3),
        "refined, 10 steps": Method(partial(scores, made, asked.device, 10), dampings, "expected", 33),
    }
    print(board(methods, {"LDS": by_retraining(bank)}, halves(bank.queries)))


if __name__ == "__main__":
    main()
