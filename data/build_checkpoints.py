"""Train the networks that ship in data/checkpoints/, by the recipes below; `--sweep` shows how one was chosen.

    python data/build_checkpoints.py                   # writes data/checkpoints/mnist_mlp.safetensors
    python data/build_checkpoints.py --networks cnn    # some of notebook 07's (inflib.lab.networks); without names, all
    python data/build_checkpoints.py --sweep           # the table of weight decays in data/README.md; writes nothing

A rebuilt file holds the same bytes on the same machine and torch. Elsewhere float32 rounds otherwise and training
drifts, which is why the file itself is shipped.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import nn

from inflib import CrossEntropy
from inflib.lab import (
    DigitData,
    accuracy,
    mean_loss,
    mlp,
    mnist_5k,
    networks,
    save_checkpoint,
    shipped_checkpoint,
    train,
)
from inflib.lab.networks import RECIPES

# The published MNIST experiment's network, optimiser and batches. Its 20 epochs of 60,000 images were 9,380 steps; of
# 4,500 images they are 720, too few, hence 100 epochs (3,600 steps). The weight decay keeps the network from
# interpolating: where it does, gradients and curvature vanish, and influence scores lose their meaning.
SIZES = (784, 64, 64, 10)
TRAINING = {"epochs": 100, "batch_size": 128, "lr": 1e-3, "weight_decay": 5e-3}
SEED = 0  # of the start and of the shuffles
SWEEP = [(epochs, decay) for epochs in (20, 100) for decay in (0.0, 1e-4, 1e-3, 5e-3, 1e-2, 2e-2)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweep", action="store_true", help="compare weight decays, write nothing")
    parser.add_argument("--networks", nargs="*", metavar="NAME", help="train the networks of notebook 07 instead")
    parser.add_argument("--seeds", type=int, default=3, help="how many seeds the sweep averages over")
    parser.add_argument("--output", type=Path, default=shipped_checkpoint("mnist_mlp"))
    options = parser.parse_args()
    torch.set_num_threads(1)  # sums are then always added in the same order
    digits = mnist_5k()
    if options.sweep:
        sweep(digits, options.seeds)
    elif options.networks is not None:
        for name in options.networks or RECIPES["small"]:
            made = networks.build(RECIPES["small"][name], digits, progress=False)
            made.save(shipped_checkpoint(f"mnist_{name}"))
            print(f"{name:10}", ", ".join(f"{key} {value:.4f}" for key, value in made.metrics.items()), flush=True)
    else:
        build(digits, options.output)


def build(digits: DigitData, path: Path) -> None:
    """Train the shipped network on the 4,500 training digits and write it with all its facts."""
    model, recipe, metrics = trained(digits, seed=SEED, **TRAINING)
    path.parent.mkdir(parents=True, exist_ok=True)
    data = (digits.train.inputs, digits.train.labels)
    facts = save_checkpoint(path, model, data=data, recipe=recipe, metrics=metrics)
    print(f"{path}: {path.stat().st_size:,} bytes\nSHA-256 of the weights {facts.weights_sha256}")
    print(", ".join(f"{name} {value:.4f}" for name, value in metrics.items()))


def trained(digits: DigitData, *, seed: int, **training: Any) -> tuple[nn.Module, dict[str, Any], dict[str, float]]:
    """A network trained on the training digits alone, its recipe, and its losses and accuracies on both parts."""
    model = mlp(SIZES, seed=seed)
    inputs, labels = digits.train.inputs, digits.train.labels
    history = train(model, CrossEntropy(), inputs, labels, seed=seed, progress=False, **training)
    recipe = {"model": "mlp", "sizes": SIZES, "seed": seed, "training": history.recipe, "torch": torch.__version__}
    metrics = {}
    for name, part in (("train", digits.train), ("query", digits.queries)):
        metrics[f"{name}_loss"] = mean_loss(model, CrossEntropy(), part.inputs, part.labels)
        metrics[f"{name}_accuracy"] = accuracy(model, part.inputs, part.labels)
    return model, recipe, metrics


def sweep(digits: DigitData, seeds: int) -> None:
    """Losses and accuracies, averaged over seeds, for each number of epochs and weight decay."""
    names = ("train_loss", "train_accuracy", "query_loss", "query_accuracy")
    print("| epochs | weight decay | train loss | train accuracy | query loss | query accuracy |")
    print("|---|---|---|---|---|---|")
    for epochs, decay in SWEEP:
        training = TRAINING | {"epochs": epochs, "weight_decay": decay}
        runs = [trained(digits, seed=seed, **training)[2] for seed in range(seeds)]
        cells = [f"{sum(run[name] for run in runs) / seeds:.4f}" for name in names]
        print(f"| {epochs} | {decay:g} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
