"""The networks that notebook 07 asks about: one recipe each at two scales, shipped for the 4,500 digits.

    settled         the multilayer perceptron, its learning rate falling to 0 so that training ends at rest
    reseeded        the same from another seed: how far do answers differ when nothing of interest does?
    reseeded_2 …_4  three more seeds: five trainings that differ by nothing else
    jacobian        the same, its sensitivity to the pixels penalised
    cnn             a small convolutional network
    flipped         trained on labels of which 10% were flipped, with weight decay: it resists most of them
    memorised       the same labels without weight decay: it has learned them by heart

At scale "full" there are 60,000 digits, and a network is trained when first asked for and kept in the cache.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from ..objectives import CrossEntropy
from ..validation.mislabels import flip_labels
from .data import DigitData
from .downloads import cache_folder
from .models import cnn, mlp
from .training import accuracy, load_checkpoint, mean_loss, save_checkpoint, shipped_checkpoint, train


@dataclass(frozen=True)
class Recipe:
    """All that decides a network's weights, but the data and the machine."""

    model: Callable[..., nn.Module]
    training: dict[str, Any]
    arguments: dict[str, Any] = field(default_factory=dict)  # of the model
    seed: int = 0  # of the start and of the shuffles
    flipped: float = 0.0  # share of the labels

    def build(self, dtype: torch.dtype = torch.float32) -> nn.Module:
        """The network before training."""
        return self.model(**self.arguments, seed=self.seed, dtype=dtype)

    def labels(self, labels: Tensor) -> Tensor:
        """The labels that it is trained on."""
        return flip_labels(labels, self.flipped).labels if self.flipped else labels

    def facts(self) -> dict[str, Any]:
        """For a checkpoint's metadata."""
        flipped = {"flipped": self.flipped} if self.flipped else {}
        return {"model": self.model.__name__, "seed": self.seed, "training": self.training} | self.arguments | flipped


# The published experiment: Adam at 1e-3, batches of 128, 20 epochs of the 60,000. 4,500 digits need more epochs, and
# weight decay to keep the network from interpolating, where gradients and curvature vanish (data/README.md, mnist_mlp).
_FULL = {"epochs": 20, "batch_size": 128, "lr": 1e-3, "weight_decay": 0.0, "anneal": True}
_SMALL = _FULL | {"epochs": 100, "weight_decay": 5e-3}

RECIPES = {
    "small": {
        "settled": Recipe(mlp, _SMALL),
        "reseeded": Recipe(mlp, _SMALL, seed=1),
        **{f"reseeded_{seed}": Recipe(mlp, _SMALL, seed=seed) for seed in (2, 3, 4)},
        "jacobian": Recipe(mlp, _SMALL | {"jacobian": 0.01}),
        "cnn": Recipe(cnn, _SMALL | {"epochs": 60}),
        "flipped": Recipe(mlp, _SMALL, flipped=0.1),
        "memorised": Recipe(mlp, _SMALL | {"epochs": 150, "lr": 3e-3, "weight_decay": 0.0}, flipped=0.1),
    },
    "full": {
        "settled": Recipe(mlp, _FULL),
        "reseeded": Recipe(mlp, _FULL, seed=1),
        **{f"reseeded_{seed}": Recipe(mlp, _FULL, seed=seed) for seed in (2, 3, 4)},
        "jacobian": Recipe(mlp, _FULL | {"jacobian": 0.01}),
        "cnn": Recipe(cnn, _FULL | {"epochs": 10}),
        "flipped": Recipe(mlp, _FULL | {"weight_decay": 1e-3}, flipped=0.1),
        # 55,050 weights cannot learn 6,000 wrong labels by heart, 669,706 can
        "memorised": Recipe(mlp, _FULL | {"epochs": 60}, {"sizes": (784, 512, 512, 10)}, flipped=0.1),
    },
}


@dataclass(frozen=True)
class Trained:
    """A network with what its checkpoint says of it."""

    model: nn.Module
    data: tuple[Tensor, Tensor]  # inputs and labels it was trained on
    facts: dict[str, Any]
    metrics: dict[str, float]  # losses in nats, accuracies, and the gradient's norm where training ended

    def save(self, path: Path) -> None:
        """Write a checkpoint, its folder included."""
        path.parent.mkdir(parents=True, exist_ok=True)
        save_checkpoint(path, self.model, data=self.data, recipe=self.facts, metrics=self.metrics)


def network(
    name: str,
    digits: DigitData,
    scale: str = "small",
    *,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> nn.Module:
    """The network of that name, trained on ``digits.train``: the shipped one, or at scale "full" the cache's.

    ``dtype`` and ``device`` are of what is returned; training is in float32. Raises ValueError for names and scales
    that are not in ``RECIPES``, and for digits that the shipped network was not trained on.
    """
    if scale not in RECIPES or name not in RECIPES[scale]:
        known = ", ".join(RECIPES["small"])
        raise ValueError(
            f"network {name!r} at scale {scale!r}; expected one of {known}, at one of {', '.join(RECIPES)}."
        )
    recipe = RECIPES[scale][name]
    if scale == "small":
        model, path = recipe.build(dtype), shipped_checkpoint(f"mnist_{name}")
        load_checkpoint(path, model, data=(digits.train.inputs, recipe.labels(digits.train.labels)))
        return model.to(device)
    path = cache_folder() / "checkpoints" / f"mnist_{name}_{scale}.safetensors"
    kept = _cached(path, recipe, digits)
    if kept is not None:
        return kept.to(device=device, dtype=dtype)
    made = build(recipe, digits, device=device, progress=progress)
    _keep(made, path)
    return made.model.to(device=device, dtype=dtype)


def build(
    recipe: Recipe, digits: DigitData, *, device: torch.device | str | None = None, progress: bool = True
) -> Trained:
    """Train by the recipe on the training digits alone, and measure the result on both parts; it ends on the CPU."""
    model, objective = recipe.build(), CrossEntropy()
    inputs, labels = digits.train.inputs, recipe.labels(digits.train.labels)
    options = recipe.training | {"seed": recipe.seed, "device": device, "progress": progress}
    history = train(model, objective, inputs, labels, **options)
    model.to("cpu")
    metrics = {"gradient_norm": _gradient_norm(model, inputs, labels, recipe.training["weight_decay"])}
    for part, x, y in (("train", inputs, labels), ("query", digits.queries.inputs, digits.queries.labels)):
        metrics[f"{part}_loss"] = mean_loss(model, objective, x, y)
        metrics[f"{part}_accuracy"] = accuracy(model, x, y)
    if recipe.flipped:
        wrong = labels != digits.train.labels
        metrics["flipped_accuracy"] = accuracy(model, inputs[wrong], labels[wrong])  # under the wrong label
    facts = recipe.facts() | {"training": history.recipe, "torch": torch.__version__}
    return Trained(model, (inputs, labels), facts, metrics)


def _gradient_norm(model: nn.Module, inputs: Tensor, labels: Tensor, weight_decay: float) -> float:
    """‖∇‖ of the mean cross-entropy plus ½ weight_decay ‖θ‖²: how far from rest training ended."""
    parameters = list(model.parameters())
    total = [weight_decay * p.detach().double() for p in parameters]
    for x, y in zip(inputs.split(1000), labels.split(1000), strict=True):
        loss = CrossEntropy().loss(model(x), y).sum() / len(inputs)
        total = [t + g for t, g in zip(total, torch.autograd.grad(loss, parameters), strict=True)]
    return sum(float(t.square().sum()) for t in total) ** 0.5


def _cached(path: Path, recipe: Recipe, digits: DigitData) -> nn.Module | None:
    """The network kept at ``path``, if it was made by this recipe from these digits; a damaged file is none."""
    model = recipe.build()
    try:
        facts = load_checkpoint(path, model, data=(digits.train.inputs, recipe.labels(digits.train.labels))).recipe
    except (FileNotFoundError, ValueError):
        return None
    made = {key: value for key, value in facts.items() if key not in ("training", "torch")}
    training = {key: value for key, value in facts["training"].items() if key not in ("optimiser", "loss", "seed")}
    asked = json.loads(json.dumps(recipe.facts()))  # as metadata tell it: lists for tuples
    return model if made | {"training": training} == asked else None


def _keep(made: Trained, path: Path) -> None:
    """Save into the cache; a warning where that cannot be written."""
    try:
        made.save(path)
    except (OSError, SafetensorError) as problem:
        warnings.warn(
            f"{path.name} was trained, but could not be kept in {path.parent} ({problem}); it will be trained again. "
            "Set INFLIB_CACHE to a folder that can be written.",
            stacklevel=3,
        )
