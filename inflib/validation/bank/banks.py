"""A finished bank, from its folder or from one small file.

The small file holds each query's values as whole numbers 0 … 2^bits − 1 between the least and the largest of them: with
8 bits a value is off by at most 1/510 of its query's range, far below the spread between two seeds.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .recipes import BankRecipe, check_same

SAME = ("network", "objective", "training", "data", "queries", "masks", "shape")  # what a reader's recipe must agree in


@dataclass(frozen=True, eq=False)
class Bank:
    """K masks × R seeds of retrainings, and what Q queries measured on each."""

    masks: Tensor  # (K, N) bool, true where an example was kept
    values: dict[str, Tensor]  # {measurement: (R, K, Q) float64}
    facts: dict[str, Any]  # of the recipe

    def measured(self, measurement: str = "margin") -> Tensor:
        """(R, K, Q) float64; "loss" is minus the log-likelihood. Raises ValueError for what was not measured."""
        if measurement == "loss" and "log_likelihood" in self.values:
            return -self.values["log_likelihood"]
        if measurement not in self.values:
            known = ", ".join((*self.values, "loss") if "log_likelihood" in self.values else self.values)
            raise ValueError(f"measurement={measurement!r} is not in this bank; expected one of {known}.")
        return self.values[measurement]

    def mean(self, measurement: str = "margin") -> Tensor:
        """The mean over the seeds, (K, Q)."""
        return self.measured(measurement).mean(0)

    @property
    def seeds(self) -> int:
        """R."""
        return len(next(iter(self.values.values())))

    @property
    def queries(self) -> int:
        """Q."""
        return next(iter(self.values.values())).shape[2]

    def __repr__(self) -> str:
        K, N = self.masks.shape
        return (
            f"Bank({self.facts.get('name', 'unnamed')}: {K} masks × {self.seeds} seeds, {self.queries} queries, "
            f"{N:,} examples of which {self.masks.sum(1).double().mean():.0f} kept; {', '.join(self.values)})"
        )


def load_bank(path: str | Path, recipe: BankRecipe | None = None) -> Bank:
    """A bank's folder, or the one file of ``save_small``.

    With ``recipe``, it must be that recipe's: the same network, data, training, masks and queries. Raises
    FileNotFoundError where nothing or only a part of a bank is there, ValueError for another recipe's.
    """
    path = Path(path)
    bank = _small(path) if path.is_file() else _folder(path)
    if recipe is not None:
        check_same(bank.facts, recipe.facts(), str(path), SAME)
    return bank


def save_small(bank: Bank, path: str | Path, *, bits: int = 8) -> None:
    """Write the bank to one compressed .npz file, each query's values in ``bits`` bits (8 or 16) of its range."""
    if bits not in (8, 16):
        raise ValueError(f"bits={bits}; expected 8 or 16.")
    held: dict[str, Any] = {"masks": np.packbits(bank.masks.numpy(), axis=1)}
    for name, values in bank.values.items():
        low, high = values.amin((0, 1)), values.amax((0, 1))  # (Q,)
        step = (high - low).clamp_min(1e-30) / (2**bits - 1)
        held[name] = ((values - low) / step).round().numpy().astype(f"uint{bits}")
        held[f"{name}.low"], held[f"{name}.step"] = low.numpy(), step.numpy()
    held["facts"] = np.frombuffer(json.dumps(bank.facts, sort_keys=True).encode(), np.uint8)
    with open(path, "wb") as file:
        np.savez_compressed(file, **held)


def _small(path: Path) -> Bank:
    with np.load(path, allow_pickle=False) as held:
        facts = json.loads(held["facts"].tobytes())
        values = {
            name: torch.from_numpy(held[name] * held[f"{name}.step"] + held[f"{name}.low"])
            for name in facts["measurements"]
        }
        return Bank(_unpack(held["masks"], facts), values, facts)


def _folder(path: Path) -> Bank:
    if not (path / "recipe.json").is_file():
        raise FileNotFoundError(f"{path} holds no bank; expected recipe.json, masks.npy and parts. Make it: make_bank.")
    facts = json.loads((path / "recipe.json").read_text())
    K, seeds, _ = facts["shape"]
    parts = seeds * -(-K // facts["at_once"])
    files = [path / f"part-{number:04d}.npz" for number in range(parts)]
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise FileNotFoundError(
            f"{path} holds {parts - len(missing)} of {parts} parts of a bank; {missing[0].name} is the first missing. "
            "Make the rest: make_bank with the same recipe goes on where it was."
        )
    held = [dict(np.load(file, allow_pickle=False)) for file in files]
    values = {
        name: torch.from_numpy(np.concatenate([part[name] for part in held])).double().unflatten(0, (seeds, K))
        for name in facts["measurements"]
    }
    return Bank(_unpack(np.load(path / "masks.npy"), facts), values, facts)


def _unpack(bits: np.ndarray, facts: dict[str, Any]) -> Tensor:
    K, _, N = facts["shape"]
    return torch.from_numpy(np.unpackbits(bits, axis=1, count=N).astype(bool)).view(K, N)
