"""The language models that notebook 08 asks about: one recipe each, shipped, or trained when first asked for.

    alternating     the published experiment's: 2 blocks of width 16, post-norm, letters and digits in turn
    facts           2 blocks of width 64, words, trained on invented facts
    facts_withheld  the same, trained without two sentences of each asked fact (``FactData.withheld``)
    facts_halved    the same, trained without one paraphrase of each, or none (``FactData.halved``)
    shakespeare     2 blocks of width 128, characters, trained on Romeo and Juliet and Henry VI

At scale "full" shakespeare has 6 blocks of width 384, a context of 256 characters and all the plays, and wants a GPU;
"tiny" is the same code on next to nothing, to see that it runs. Both are kept in the cache.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from ..sequences import NextToken
from .downloads import cache_folder
from .facts import facts
from .shakespeare import shakespeare, two_plays
from .text import Corpus, TokenBatch, alternating
from .training import load_checkpoint, mean_loss, save_checkpoint, shipped_checkpoint, train
from .transformer import Transformer, transformer


@dataclass(frozen=True)
class LanguageRecipe:
    """All that decides a language model's weights, but the corpus and the machine."""

    sizes: dict[str, Any]  # of the transformer
    training: dict[str, Any]
    seed: int = 0  # of the start and of the shuffles
    on_the_way: tuple[int, ...] = ()  # epochs whose weights ship too: TracIn adds them up

    def build(self, corpus: Corpus, dtype: torch.dtype = torch.float32) -> Transformer:
        """The network before training."""
        return transformer(len(corpus.vocabulary), dtype=dtype, seed=self.seed, **self.sizes)

    def facts(self) -> dict[str, Any]:
        """For a checkpoint's metadata."""
        sizes = {k: v.__name__ if isinstance(v, type) else v for k, v in self.sizes.items()}
        return {"model": "transformer", "seed": self.seed, "training": self.training, "sizes": sizes}


# The learning rate falls to 0 and there is weight decay: a network at rest that does not interpolate. Losses are summed
# over a sequence's tokens, so 6e-3 for facts of six predicted words is 1e-3 a word.
_TRAINING = {"batch_size": 32, "anneal": True}
_FACTS = LanguageRecipe(
    dict(context=9, width=64, heads=4, hidden=256),
    _TRAINING | dict(epochs=150, lr=3e-3, weight_decay=6e-3),
    on_the_way=(5, 15, 50),
)
RECIPES = {
    "small": {
        "alternating": LanguageRecipe(  # published: 5,000 epochs at a constant rate, without weight decay
            dict(context=4, width=16, heads=2, hidden=32, norm="post", activation=nn.ReLU),
            _TRAINING | dict(epochs=1000, lr=1e-3, weight_decay=1e-4),
        ),
        "facts": _FACTS,
        "facts_withheld": replace(_FACTS, on_the_way=()),
        "facts_halved": replace(_FACTS, on_the_way=()),
        "shakespeare": LanguageRecipe(
            dict(context=128, width=128, heads=4, hidden=512),
            _TRAINING | dict(epochs=8, lr=3e-3, weight_decay=1e-2),
        ),
    },
    "full": {
        "shakespeare": LanguageRecipe(
            dict(context=256, width=384, heads=6, hidden=1536, blocks=6),
            dict(batch_size=64, anneal=True, epochs=20, lr=1e-3, weight_decay=1e-2),
        ),
    },
    "tiny": {
        "shakespeare": LanguageRecipe(
            dict(context=64, width=16, heads=2, hidden=32, blocks=1),  # room for notebook 08's own questions
            _TRAINING | dict(epochs=1, lr=3e-3, weight_decay=1e-2),
        ),
    },
}


def corpus_of(name: str, scale: str = "small") -> Corpus:
    """The sequences that the language model of that name and scale is trained on."""
    length = _recipe(name, scale).sizes["context"]
    if name == "shakespeare":
        return shakespeare(length) if scale == "full" else two_plays(length)[: 64 if scale == "tiny" else None]
    if name == "alternating":
        return alternating()
    told = facts()
    gone = {"facts_withheld": told.withheld, "facts_halved": told.halved}.get(name)
    return told.train if gone is None else told.train[~gone()]


def language_model(
    name: str,
    corpus: Corpus,
    scale: str = "small",
    *,
    epoch: int | None = None,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> Transformer:
    """The model of that name, trained on ``corpus``: the shipped one, or at other scales than "small" the cache's.

    ``epoch`` asks for weights that were kept on the way. ``dtype`` and ``device`` are of what is returned; training is
    in float32. Raises ValueError for what is not in ``RECIPES``, for an epoch that did not ship, and for a corpus that
    the shipped model was not trained on.
    """
    recipe = _recipe(name, scale)
    shipped = recipe.on_the_way if scale == "small" else ()
    if epoch is not None and epoch not in shipped:
        ship = f"one of {', '.join(map(str, shipped))}" if shipped else "none, for no epoch of it ships"
        raise ValueError(
            f"epoch={epoch} of language model {name!r} at scale {scale!r}; expected {ship}. Leave it out for the end "
            "of training."
        )
    if scale == "small":
        model = recipe.build(corpus, dtype)
        path = shipped_checkpoint(name if epoch is None else f"{name}_epoch_{epoch}")
        load_checkpoint(path, model, data=corpus.tensors())
        return model.to(device)
    path = cache_folder() / "checkpoints" / f"{name}_{scale}.safetensors"
    kept = recipe.build(corpus)
    if not _load_kept(path, kept, recipe, corpus.tensors()):
        kept = train_language_model(recipe, corpus, path, device=device, progress=progress)
    return kept.to(device=device, dtype=dtype)


def learning_rate(name: str, epoch: int) -> float:
    """The learning rate at which the weights of that epoch were kept."""
    recipe = _recipe(name, "small")
    model = recipe.build(corpus_of(name))
    return float(load_checkpoint(shipped_checkpoint(f"{name}_epoch_{epoch}"), model).recipe["learning_rate"])


def train_language_model(
    recipe: LanguageRecipe,
    corpus: Corpus,
    path: Path,
    *,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> Transformer:
    """Train by the recipe, write the checkpoint and those on the way beside it, and return the model on the CPU.

    A path that cannot be written is a warning: the model is returned all the same.
    """
    model, data, objective = recipe.build(corpus), corpus.tensors(), NextToken()

    def keep(to: Path, more: dict[str, Any]) -> None:
        loss = mean_loss(model, objective, *_on(data, next(model.parameters()).device), batch_size=64)
        metrics = {"train_loss": loss, "train_loss_per_token": loss * len(data[1]) / int((data[1] != -100).sum())}
        try:
            to.parent.mkdir(parents=True, exist_ok=True)
            save_checkpoint(to, model, data=data, recipe=recipe.facts() | more, metrics=metrics)
        except (OSError, SafetensorError) as problem:
            say = f"{to.name} could not be kept in {to.parent} ({problem}). Let INFLIB_CACHE name another folder."
            warnings.warn(say, stacklevel=3)

    def on_the_way(epoch: int, rate: float) -> None:
        if epoch in recipe.on_the_way:
            keep(path.with_stem(f"{path.stem}_epoch_{epoch}"), {"epoch": epoch, "learning_rate": rate})

    options: dict[str, Any] = recipe.training | {"seed": recipe.seed, "device": device, "progress": progress}
    train(model, objective, *data, after_epoch=on_the_way, **options)
    keep(path, {"torch": torch.__version__})
    return model.to("cpu")


def _recipe(name: str, scale: str) -> LanguageRecipe:
    if scale not in RECIPES or name not in RECIPES[scale]:
        known = "; ".join(f"at {at!r}: {', '.join(names)}" for at, names in RECIPES.items())
        raise ValueError(f"language model {name!r} at scale {scale!r}; expected one of these, {known}.")
    return RECIPES[scale][name]


def _load_kept(path: Path, model: Transformer, recipe: LanguageRecipe, data: TokenBatch) -> bool:
    """Whether ``path`` holds weights made by this recipe from these data, then loaded; a damaged file holds none."""
    try:
        came = load_checkpoint(path, model, data=data).recipe
    except (FileNotFoundError, ValueError):
        return False
    asked = json.loads(json.dumps(recipe.facts()))  # as metadata tell it: lists for tuples
    return {key: came.get(key) for key in asked} == asked


def _on(data: TokenBatch, device: torch.device) -> TokenBatch:
    inputs, targets = data
    return {k: x.to(device) for k, x in inputs.items()}, targets.to(device)
