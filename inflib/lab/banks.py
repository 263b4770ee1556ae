"""The banks of notebook 09: which networks were retrained on which digits and sentences. Small ones ship in data/banks.

    logistic    logistic regression on 2,000 digits, weight decay 5e-3
    decay       196-32-16-10, ReLU, weight decay 5e-3: a network that does not interpolate
    plain       the same without weight decay: a network that does
    smooth      the same with weight decay, tanh and a third of the learning rate: training that is a smooth function
    sentences   the course's transformer, small, on 100 invented facts and what distracts from them

Digits are the first 2,000 of those that ship, pooled to 14 × 14; the 200 queries are 20 of each class that no network
saw. ``python -m inflib.validation.bank decay`` makes one.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ..objectives import CrossEntropy
from ..sequences import NextToken
from ..validation.bank import Bank, BankRecipe, half_subsets, load_bank
from ..validation.retraining import Training
from .data import FOLDER, mnist_5k
from .facts import facts
from .models import mlp
from .transformer import transformer

EXAMPLES, QUERIES = 2000, 200
RECIPES = ("logistic", "decay", "plain", "smooth", "sentences")


def logistic() -> BankRecipe:
    """Logistic regression: the one network here with a single minimum."""
    return _digits("logistic", (196, 10), Training(lr=0.03, weight_decay=5e-3), seeds=5)


def decay() -> BankRecipe:
    """196-32-16-10 with weight decay."""
    return _digits("decay", (196, 32, 16, 10), Training(weight_decay=5e-3))


def plain() -> BankRecipe:
    """196-32-16-10 without weight decay."""
    return _digits("plain", (196, 32, 16, 10), Training())


def smooth() -> BankRecipe:
    """196-32-16-10 with tanh, weight decay and a small learning rate."""
    return _digits("smooth", (196, 32, 16, 10), Training(lr=0.03, weight_decay=5e-3), activation=nn.Tanh)


def sentences() -> BankRecipe:
    """A transformer of 2 blocks of width 32 on invented facts; the queries are the answers to 100 questions."""
    told = facts(told=50, asked=50, distractors=60, seed=9)
    corpus = told.train
    inputs, targets = corpus.tensors()
    sizes: dict[str, Any] = dict(context=inputs["input_ids"].shape[1], width=32, heads=2, hidden=64)
    return BankRecipe(
        name="sentences",
        build=lambda seed: transformer(len(corpus.vocabulary), **sizes, seed=seed),
        objective=NextToken(),
        inputs=inputs,
        targets=targets,
        queries=told.queries(range(100)),
        training=Training(epochs=60, batch_size=62, lr=6e-3, optimiser="adam", weight_decay=6e-3),
        masks=half_subsets(len(targets), 100),
        seeds=3,
        at_once=10,
    )


def bank_of(name: str) -> Bank:
    """The shipped bank of that name, checked to be its recipe's."""
    return load_bank(FOLDER / "banks" / f"{name}.npz", recipe(name))


class Prediction(NamedTuple):
    """How a prediction of a bank's retrainings was made."""

    method: str  # "identity", "K-FAC", "EK-FAC" or "refined"
    networks: int  # whose scores were averaged
    damping: float | None  # in mean eigenvalues of EK-FAC, None for identity
    steps: int  # of conjugate gradients, 0 where there are none


def predictions_of(name: str) -> dict[Prediction, Tensor]:
    """What the study's scores predict of that bank's retrainings: {how: (Q, K) float64}, Σ_kept score / N each.

    The networks scored come from seeds of their own; benchmarks/study_predictions.py wrote the file. Values are kept in
    8 bits of each query's range. Raises FileNotFoundError for a bank without predictions.
    """
    path = FOLDER / "predictions" / f"{name}.npz"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in path.parent.glob("*.npz"))) or "none"
        raise FileNotFoundError(f"{path} is missing; predictions ship for {known}. Restore it with git checkout.")
    with np.load(path, allow_pickle=False) as held:
        values = torch.from_numpy(held["values"] * held["step"][..., None] + held["low"][..., None])
        made = json.loads(held["made"].tobytes())
    return {Prediction(*how): x for how, x in zip(made, values, strict=True)}


def save_predictions(name: str, found: dict[Prediction, Tensor]) -> None:
    """Write data/predictions/NAME.npz."""
    values = torch.stack(list(found.values()))  # (E, Q, K)
    low, high = values.amin(-1), values.amax(-1)
    step = (high - low).clamp_min(1e-30) / 255
    whole = ((values - low[..., None]) / step[..., None]).round().to(torch.uint8)
    made = np.frombuffer(json.dumps([list(how) for how in found]).encode(), np.uint8)
    with open(FOLDER / "predictions" / f"{name}.npz", "wb") as file:
        np.savez_compressed(file, values=whole.numpy(), low=low.numpy(), step=step.numpy(), made=made)


def recipe(name: str) -> BankRecipe:
    """The recipe of that name. Raises ValueError for a name that is not in ``RECIPES``."""
    if name not in RECIPES:
        raise ValueError(f"bank {name!r}; expected one of {', '.join(RECIPES)}.")
    return globals()[name]()


def pooled(inputs: Tensor) -> Tensor:
    """Digits (N, 784) averaged over squares of 2 × 2 pixels, (N, 196): the same bits on every machine."""
    square = inputs.view(-1, 14, 2, 14, 2)
    a, b, c, d = (square[:, :, i, :, j] for i in (0, 1) for j in (0, 1))
    return ((a + b + c + d) / 4).flatten(1)


def _digits(
    name: str, sizes: tuple[int, ...], training: Training, *, activation: Callable[[], nn.Module] = nn.ReLU, **more: Any
) -> BankRecipe:
    digits = mnist_5k()
    train, queries = digits.train[:EXAMPLES], digits.queries
    few = torch.cat([(queries.labels == c).nonzero().flatten()[: QUERIES // 10] for c in range(10)])
    return BankRecipe(
        name=name,
        build=partial(_network, sizes, activation),
        objective=CrossEntropy(),
        inputs=pooled(train.inputs),
        targets=train.labels,
        queries=[(pooled(queries.inputs[few]), queries.labels[few])],
        training=training,
        masks=half_subsets(EXAMPLES, 100),
        **more,
    )


def _network(sizes: tuple[int, ...], activation: Callable[[], nn.Module], seed: int) -> nn.Module:
    return mlp(sizes, activation=activation, seed=seed)
