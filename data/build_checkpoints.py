"""Train the networks that ship in data/checkpoints/, by the recipes below; `--sweep` shows how one was chosen.

    python data/build_checkpoints.py            # writes data/checkpoints/mnist_mlp.safetensors
    python data/build_checkpoints.py --sweep    # the table of weight decays in data/README.md; writes nothing

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
from inflib.lab import DigitData, accuracy, mean_loss, mlp, mnist_5k, save_checkpoint, shipped_checkpoint, train

# The published MNIST experiment's network and training, plus a weight decay strong enough that the network does not
# interpolate its training set: there, gradients and curvature vanish and influence scores lose their meaning.
MODEL = {"sizes": [784, 64, 64, 10], "seed": 0}
TRAINING = {"epochs": 20, "batch_size": 128, "lr": 1e-3, "weight_decay": 1e-3, "seed": 0}
SWEEP = (0.0, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweep", action="store_true", help="compare weight decays, write nothing")
    parser.add_argument("--seeds", type=int, default=3, help="how many seeds the sweep averages over")
    parser.add_argument("--output", type=Path, default=shipped_checkpoint("mnist_mlp"))
    options = parser.parse_args()
    torch.set_num_threads(1)  # sums are then always added in the same order
    digits = mnist_5k()
    if options.sweep:
        sweep(digits, options.seeds)
    else:
        build(digits, options.output)


def build(digits: DigitData, path: Path) -> None:
    """Train the shipped network on the 4,500 training digits and write it with all its facts."""
    model, recipe, metrics = trained(digits, **TRAINING)
    path.parent.mkdir(parents=True, exist_ok=True)
    data = (digits.train.inputs, digits.train.labels)
    facts = save_checkpoint(path, model, data=data, recipe=recipe, metrics=metrics)
    print(f"{path}: {path.stat().st_size:,} bytes\nSHA-256 of the weights {facts.weights_sha256}")
    print(", ".join(f"{name} {value:.4f}" for name, value in metrics.items()))


def trained(digits: DigitData, **training: Any) -> tuple[nn.Module, dict[str, Any], dict[str, float]]:
    """A network trained on the training digits alone, its recipe, and what it scores on both parts."""
    model = mlp(MODEL["sizes"], seed=MODEL["seed"] if "model_seed" not in training else training.pop("model_seed"))
    history = train(model, CrossEntropy(), digits.train.inputs, digits.train.labels, progress=False, **training)
    metrics = {}
    for name, part in (("train", digits.train), ("query", digits.queries)):
        metrics[f"{name}_loss"] = mean_loss(model, CrossEntropy(), part.inputs, part.labels)
        metrics[f"{name}_accuracy"] = accuracy(model, part.inputs, part.labels)
    return model, {"model": "mlp", **MODEL, "training": history.recipe, "torch": torch.__version__}, metrics


def sweep(digits: DigitData, seeds: int) -> None:
    """Mean over seeds (of the start and of the shuffles) of losses and accuracies, for each weight decay."""
    print("| weight decay | train loss | train accuracy | query loss | query accuracy |\n|---|---|---|---|---|")
    for weight_decay in SWEEP:
        runs = [
            trained(digits, **TRAINING | {"weight_decay": weight_decay, "seed": seed, "model_seed": seed})[2]
            for seed in range(seeds)
        ]
        names = ("train_loss", "train_accuracy", "query_loss", "query_accuracy")
        cells = [f"{sum(run[name] for run in runs) / seeds:.4f}" for name in names]
        print(f"| {weight_decay:g} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
