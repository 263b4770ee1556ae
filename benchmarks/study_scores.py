"""Scores for the study, kept on disk: a method on one network, or averaged over several, at one damping.

Networks are trained from seeds 100, 101, …: none of a bank's own seeds. Every score is of the query's margin. Damping
is a multiple of EK-FAC's mean eigenvalue of each layer, the same numbers for all methods.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from inflib import curvature as curvatures
from inflib import damping_of, ekfac, gauss_newton, identity, influence, kfac, refine
from inflib.batches import mapped
from inflib.validation import BankRecipe, Method

KEPT = Path("build/study/scores")
FIRST_SEED = 100
PART = 10  # batches of queries whose refined scores are kept together
PASSES = {"identity": 1, "K-FAC": 2, "EK-FAC": 3, "exact G": 11}  # fits and the training side; refined: + 3 a step
HALF = " at a half"  # ends a method's name: networks trained, and scored, with every example at weight ½
_MODELS: dict[tuple[str, int], tuple] = {}


def method(recipe: BankRecipe, name: str, models: int, dampings: tuple, steps: int = 0, labels: str = "") -> Method:
    """A method of the board: ``name`` on so many networks, its damping to be chosen."""

    def scores(damping: float) -> Tensor:
        return torch.stack([kept(recipe, FIRST_SEED + k, name, damping, steps) for k in range(models)]).mean(0)

    passes = models * (PASSES.get(name, PASSES["EK-FAC"]) + 3 * steps)
    return Method(scores, dampings, labels or recipe.objective.default_labels, passes)


def kept(recipe: BankRecipe, seed: int, name: str, damping: float | None, steps: int) -> Tensor:
    """Scores (Q, N) of one network, from disk where they are there."""
    what = f"{recipe.name}-{recipe_hash(recipe)}-{seed}-{name}-{damping}-{steps}".replace(" ", "_")
    batches = recipe.asked(torch.float32)
    parts = [batches[at : at + PART] for at in range(0, len(batches), PART)] if steps else [batches]
    found = []
    for k, queries in enumerate(parts):
        path = KEPT / f"{what}{f'-{k}' if len(parts) > 1 else ''}.npy"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(".partial")
            with open(partial, "wb") as file:
                np.save(file, compute(recipe, seed, name, damping, steps, queries).float().numpy())
            partial.replace(path)
        found.append(torch.from_numpy(np.load(path)).double())
    return torch.cat(found)


def compute(
    recipe: BankRecipe, seed: int, name: str, damping: float | None, steps: int, queries: list[tuple]
) -> Tensor:
    """Scores of one network on these queries: EK-FAC's family in float64, conjugate gradients in float32."""
    name, weight = name.removesuffix(HALF), 0.5 if name.endswith(HALF) else 1.0
    dtype = torch.float32 if name == "refined" else torch.float64
    model, plain = network(recipe, seed, dtype, weight)
    data = recipe.data(2000, dtype)
    queries = [mapped(batch, lambda t: t.to(dtype) if t.is_floating_point() else t) for batch in queries]
    build: dict[str, Callable] = {
        "EK-FAC": lambda: plain,
        "by whole gradients": lambda: ekfac(model, recipe.objective, data, sharing="gradients", progress=False),
        "K-FAC": lambda: kfac(model, recipe.objective, data, progress=False),
        "identity": lambda: identity(model, recipe.objective, data, progress=False),
        "exact G": lambda: gauss_newton(model, recipe.objective, data, progress=False),
        "refined": lambda: refine(plain, model, recipe.objective, data, steps=steps, progress=False),
    }
    numbers = None if damping is None else damping_of(plain, damping)
    found: curvatures.Curvature = build[name]()
    return influence(model, recipe.objective, data, queries, found, numbers, measurement="margin", progress=False)


def network(recipe: BankRecipe, seed: int, dtype: torch.dtype, weight: float = 1.0) -> tuple:
    """The network of that seed trained on all examples at that weight, and its EK-FAC."""
    key = f"{recipe.name}-{dtype}-{weight}", seed
    if key not in _MODELS:
        _MODELS.clear()  # one at a time: each holds its curvature
        weights = torch.full((1, recipe.examples), weight)
        model = recipe.train(seed, weights, progress=False).model(0).to(dtype)
        _MODELS[key] = model, ekfac(model, recipe.objective, recipe.data(2000, dtype), progress=False)
    return _MODELS[key]


def recipe_hash(recipe: BankRecipe) -> str:
    """Eight digits that tell one recipe's scores from another's."""
    return hashlib.sha256(repr(sorted(recipe.facts().items(), key=str)).encode()).hexdigest()[:8]
