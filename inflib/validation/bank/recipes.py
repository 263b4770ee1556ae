"""All that decides a bank. Two banks of one recipe hold the same numbers on the same machine."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...batches import Data, mapped, tensors, walk
from ...fingerprints import hash_tensor, hash_weights
from ...objectives import Objective
from ..retraining import Networks, Training, retrain
from .masks import check_masks

MEASUREMENTS = ("log_likelihood", "margin")  # a loss is a log-likelihood with its sign turned


@dataclass(frozen=True, eq=False)
class BankRecipe:
    """K masks × R seeds of retrainings of one network on one data set, and what is measured on the queries.

    build:    seed → the network before training, in the dtype to train in.
    inputs:   (N, ...), or a tuple or dict of such tensors; targets (N, ...).
    queries:  batches as for ``influence``: Q queries in all.
    masks:    (K, N) bool, true where an example is kept.
    seeds:    R; retrainings of seed r start from build(r) and see minibatches in the order of seed r.
    at_once:  networks in a batch: what is lost when the making is killed is less than that. Part of the recipe, for
              another grouping may round otherwise.

    Raises ValueError for masks that do not fit, keep nothing or leave a class empty.
    """

    name: str
    build: Callable[[int], nn.Module]
    objective: Objective
    inputs: Any
    targets: Any
    queries: Data
    training: Training
    masks: Tensor
    seeds: int = 10
    at_once: int = 100
    measurements: tuple[str, ...] = MEASUREMENTS

    def __post_init__(self) -> None:
        check_masks(self.masks, self.examples, self.targets if isinstance(self.targets, Tensor) else None)
        if self.seeds < 1 or self.at_once < 1 or not self.measurements:
            raise ValueError(
                f"seeds={self.seeds}, at_once={self.at_once}, measurements={self.measurements}; expected at least one."
            )

    @property
    def examples(self) -> int:
        """N, the number of training examples."""
        return len(next(tensors(self.targets)))

    def train(self, seed: int, weights: Tensor | None = None, **options: Any) -> Networks:
        """Networks of one seed on the given weightings (M, N) of the examples; None: one, on all of them."""
        weights = torch.ones(1, self.examples) if weights is None else weights
        return retrain(self.build, self.objective, self.inputs, self.targets, self.training, weights, seed, **options)

    def data(self, batch_size: int = 500, dtype: torch.dtype | None = None) -> list[tuple[Any, Any]]:
        """The training examples as batches in order, as inflib takes data; ``dtype`` of what floats."""
        rows = [slice(at, at + batch_size) for at in range(0, self.examples, batch_size)]
        return [mapped((self.inputs, self.targets), _rows(r, dtype)) for r in rows]

    def asked(self, dtype: torch.dtype | None = None) -> list[tuple[Any, Any]]:
        """The queries as batches, in ``dtype``."""
        return [mapped((b.inputs, b.targets), lambda t: _as(t, dtype)) for b in walk(self.queries, progress=False)]

    def facts(self) -> dict[str, Any]:
        """What tells one recipe from another, as JSON has it."""
        return {
            "name": self.name,
            "network": hash_weights(self.build(0)),
            "objective": repr(self.objective),
            "training": asdict(self.training),
            "data": sha256((self.inputs, self.targets)),
            "queries": sha256(list(self.queries)),
            "masks": sha256(self.masks),
            "shape": [len(self.masks), self.seeds, self.examples],
            "at_once": self.at_once,
            "measurements": list(self.measurements),
        }


def sha256(values: Any) -> str:
    """SHA-256 of all tensors inside, in order: their dtypes, shapes and values."""
    digest = hashlib.sha256()
    for tensor in tensors(values):
        hash_tensor(digest, tensor)
    return digest.hexdigest()


def check_same(came: dict[str, Any], expected: dict[str, Any], what: str, keys: Sequence[str] = ()) -> None:
    """Raise ValueError naming in what two recipes' facts differ."""
    differing = [key for key in (keys or expected) if came.get(key) != expected[key]]
    if differing:
        key = differing[0]
        raise ValueError(
            f"{what} is of another recipe: {', '.join(differing)} differ ({key}: {came.get(key)} there, "
            f"{expected[key]} here). Make the bank anew in another folder, or use its own recipe and data."
        )


def _rows(rows: slice, dtype: torch.dtype | None) -> Callable[[Tensor], Tensor]:
    return lambda t: _as(t[rows], dtype)


def _as(t: Tensor, dtype: torch.dtype | None) -> Tensor:
    return t.to(dtype) if dtype is not None and t.is_floating_point() else t
