"""Train the language models that ship in data/checkpoints/, by the recipes in inflib/lab/language_models.py.

    python data/build_text_checkpoints.py                   # all of them
    python data/build_text_checkpoints.py facts             # or some, by name
    python data/build_text_checkpoints.py --sweep           # the table of weight decays in data/README.md

Together they take some ten minutes of one processor. A rebuilt file holds the same bytes on the same machine and torch.
Elsewhere float32 rounds otherwise and training drifts, which is why the files themselves are shipped.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from inflib import NextToken, TrainIndex, ekfac, relative
from inflib.lab import facts, load_checkpoint, shipped_checkpoint
from inflib.lab.language_models import RECIPES, corpus_of, train_language_model
from inflib.validation import recall_at

SWEEP = (0.0, 1e-3, 3e-3, 6e-3, 1.2e-2)  # weight decays of the facts model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="which of them; all if none is named")
    parser.add_argument("--folder", type=Path, default=shipped_checkpoint("facts").parent, help="where to write")
    parser.add_argument("--sweep", action="store_true", help="compare weight decays of the facts model")
    options = parser.parse_args()
    torch.set_num_threads(1)  # sums are then always added in the same order
    if options.sweep:
        return sweep()
    for name in options.names or RECIPES["small"]:
        build(name, options.folder / f"{name}.safetensors")


def build(name: str, path: Path) -> None:
    """Train one model on its corpus, write it with what is kept on the way, and say what became of it."""
    corpus, recipe = corpus_of(name), RECIPES["small"][name]
    model = train_language_model(recipe, corpus, path)
    facts = load_checkpoint(path, model)
    print(f"{path.name}: {path.stat().st_size:,} bytes\nSHA-256 of the weights {facts.weights_sha256}")
    print(", ".join(f"{key} {value:.4f}" for key, value in facts.metrics.items()))


def sweep() -> None:
    """What weight decay does to the facts model, and to EK-FAC's recall@2 of paraphrases at three dampings."""
    data, objective = facts(), NextToken()
    batches, queries, recipe = data.train.batches(64), data.queries(), RECIPES["small"]["facts"]
    print("| weight decay | loss per word | probability of an asked answer | recall@2 at 0.1 | 0.001 | 0.00001 |")
    print("|---|---|---|---|---|---|")
    for decay in SWEEP:
        tried = replace(recipe, training=recipe.training | {"weight_decay": decay}, on_the_way=())
        with TemporaryDirectory() as folder:
            path = Path(folder) / "facts.safetensors"
            model = train_language_model(tried, data.train, path, progress=False).double()
            loss = load_checkpoint(path, model).metrics["train_loss_per_token"]
        sure = torch.exp(torch.cat([-objective.loss(model(**x), y) for x, y in queries])).mean().detach()
        curvature = ekfac(model, objective, batches, ["blocks.*", "unembed"], progress=False)
        index = TrainIndex.build(model, objective, batches, curvature, progress=False)
        prepared = index.prepare(model, objective, queries)
        found = [
            recall_at(index.scores(prepared, damping=relative(x)), data.answers()).mean() for x in (0.1, 1e-3, 1e-5)
        ]
        cells = [f"{decay:g}", f"{loss:.4f}", f"{float(sure):.3f}", *(f"{float(recall):.3f}" for recall in found)]
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
