"""The study's other ground truths: removal, mislabels, leaving out one and fifty."""

from __future__ import annotations

import json
from dataclasses import asdict
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from study_scores import FIRST_SEED, KEPT, kept, network, recipe_hash
from torch import Tensor

from inflib import CrossEntropy, ekfac, self_influence
from inflib.lab import banks, mlp, mnist_5k
from inflib.validation import (
    BankRecipe,
    Removal,
    Training,
    auc,
    bootstrap,
    flip_labels,
    leave_k_out,
    nearest,
    random_same_class,
    remove_top,
    retrain,
)

RIGHT, REMOVED = 40, (5, 10, 20)
MARGINS = (0.0, 2.0, 4.0, 20.0)  # nats: a query is easier to flip the smaller its margin


def removal() -> dict[str, Any]:
    """196-32-16-10 with weight decay: flips and change of margin after removing the first k by twelve networks."""
    recipe = banks.recipe("decay")
    (x, y), train = recipe.asked()[0], (recipe.inputs, recipe.targets)
    model, _ = network(recipe, FIRST_SEED, torch.float32)
    reported = torch.arange(1, len(y), 2)
    asked = reported[(model(x[reported]).argmax(1) == y[reported])][:: max(1, 90 // RIGHT)][:RIGHT]
    own = y[asked]
    body = torch.nn.Sequential(*list(model)[:-1])
    rankings = {
        "EK-FAC": mean_scores(recipe, "EK-FAC", 0.1)[asked],
        "refined": mean_scores(recipe, "refined", 2.0, 20)[asked],
        "identity": mean_scores(recipe, "identity", None)[asked],
        "random, same class": random_same_class(train[1], own),
        "pixels, same class": nearest(train[0], x[asked], train[1], own),
        "features, same class": nearest(body(train[0]).detach(), body(x[asked]).detach(), train[1], own),
    }
    parts = [_removed(recipe, {name: ranking}, k, asked) for name, ranking in rankings.items() for k in REMOVED]
    found = Removal(
        {k: v for p in parts for k, v in p.flips.items()}, {k: v for p in parts for k, v in p.change.items()}
    )
    rows = []
    for name, k in found.flips:
        rows.append(
            {"ranking": name, "k": k, "flips": asdict(found.flip_rate(name, k))}
            | {"margin": asdict(found.mean_change(name, k))}
            | {"beyond_pixels": asdict(found.beyond(name, "pixels, same class", k))}
        )
        print(rows[-1])
    return {"queries": len(asked), "seeds": 2, "rows": rows}


def flips() -> dict[str, Any]:
    """196-32-16-10 with weight decay, all reported queries that are read rightly: flips at k = 20, by their margin."""
    recipe = banks.recipe("decay")
    (x, y), reported = recipe.asked()[0], torch.arange(1, 200, 2)
    before = recipe.train(0, progress=False).measure(recipe.objective, recipe.queries, "margin")[0, reported]
    asked, margin = reported[before > 0], before[before > 0]
    rankings = {
        "EK-FAC": mean_scores(recipe, "EK-FAC", 0.1)[asked],
        "refined": mean_scores(recipe, "refined", 2.0, 20)[asked],
        "pixels, same class": nearest(recipe.inputs, x[asked], recipe.targets, y[asked]),
    }
    rows = []
    for name, ranking in rankings.items():
        found = remove_top(recipe, {name: ranking}, (20,), queries=asked, seeds=1, progress=False)
        each, share = found.flips[name, 20], {"all": asdict(found.flip_rate(name, 20))}
        for low, high in pairwise(MARGINS):
            within = each[(margin > low) & (margin <= high)]
            share[f"margin {low:g} to {high:g}"] = asdict(bootstrap(within)) | {"queries": len(within)}
        rows.append({"ranking": name, "flips": share})
        print(rows[-1])
    return {"queries": len(asked), "seeds": 1, "rows": rows}


def _removed(recipe: BankRecipe, ranking: dict[str, Tensor], k: int, asked: Tensor) -> Removal:
    """One ranking's removal of its first k, from disk where it is there."""
    name = next(iter(ranking))
    path = KEPT / f"removal-{recipe_hash(recipe)}-{name.replace(' ', '_')}-{k}.npy"
    if not path.exists():
        found = remove_top(recipe, ranking, (k,), queries=asked, seeds=2, progress=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, torch.stack([found.flips[name, k], found.change[name, k]]).numpy())
    flips, change = torch.from_numpy(np.load(path))
    return Removal({(name, k): flips}, {(name, k): change})


def mislabels() -> dict[str, Any]:
    """A network that has learned 10% wrong labels by heart: AUC of self-influence and of the loss, five seeds."""
    rows = []
    for seed in range(5):
        path = KEPT / f"mislabels-{seed}.json"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(memorised(seed)))
        rows.append(json.loads(path.read_text()))
        print(rows[-1])
    difference = torch.tensor([r["self_influence"] - r["loss"] for r in rows])
    error = float(difference.std() / len(rows) ** 0.5)
    return {"rows": rows, "difference": asdict(bootstrap(difference)), "standard_error": error}


def memorised(seed: int) -> dict[str, float]:
    """One seed's network and flips: the share of labels learned, and both AUCs."""
    digits = mnist_5k().train
    training = Training(epochs=150, batch_size=128, lr=3e-3, optimiser="adam")
    flipped, objective = flip_labels(digits.labels, 0.1, seed=seed), CrossEntropy()
    everything = torch.ones(1, len(digits))
    found = retrain(
        lambda s: mlp(seed=s), objective, digits.inputs, flipped.labels, training, everything, seed, progress=False
    )
    model, x, y = found.model(0).double(), digits.inputs.double(), flipped.labels
    data = list(zip(x.split(500), y.split(500), strict=True))
    own = self_influence(model, objective, data, ekfac(model, objective, data, progress=False), progress=False)
    with torch.no_grad():
        outputs = model(x)
    return {
        "seed": seed,
        "fit": float((outputs.argmax(1) == y).double().mean()),
        "self_influence": auc(own, flipped.wrong),
        "loss": auc(objective.loss(outputs, y), flipped.wrong),
    }


def one_out() -> dict[str, Any]:
    """196-32-16-10 with weight decay: leaving out one and fifty, ten seeds: effect, noise, the seeds it takes."""
    recipe = banks.recipe("decay")
    scores = mean_scores(recipe, "refined", 1.0, 20, networks=1)
    strongest = scores.argsort(dim=1, descending=True)
    queries = torch.arange(1, 200, 20)  # ten of the reported half
    groups = {"one": [[int(strongest[q, 0])] for q in queries]}
    groups["one at random"] = [[n] for n in range(0, 2000, 200)]
    groups["fifty"] = [strongest[q, :50].tolist() for q in queries]
    rows = []
    for name, some in groups.items():
        found = leave_k_out(recipe, some, seeds=10, progress=False)
        own = torch.arange(10)
        pairs = (queries, own) if name != "one at random" else (queries[:, None], own[None])
        needed = found.seeds_needed()[pairs].flatten()
        predicted = torch.stack([-scores[:, list(g)].sum(1) / recipe.examples for g in some], dim=1)
        rows.append(
            {"left out": name, "median seeds needed": float(needed.median())}
            | {"median effect": float(found.effect[pairs].abs().median())}
            | {"median noise of one seed": float(found.change.std(0)[pairs].median())}
            | {"slope": float((predicted[pairs] * found.effect[pairs]).sum() / predicted[pairs].square().sum())}
        )
        print(rows[-1])
    return {"seeds": 10, "rows": rows}


def mean_scores(recipe: Any, name: str, damping: float | None, steps: int = 0, networks: int = 12) -> Tensor:
    """Scores averaged over networks, (Q, N)."""
    return torch.stack([kept(recipe, FIRST_SEED + k, name, damping, steps) for k in range(networks)]).mean(0)
