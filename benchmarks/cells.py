"""Studies that take long: cells of a JSON file, each computed once. Killed at any moment, a study goes on where it was.

    study = Study("smooth_training")                   # benchmarks/results/smooth_training.json
    study.cell("tanh, rate 0.03", compute)             # what compute() returned, now or in an earlier run
    scores = kept("scores of seed 3", compute)         # a tensor, or several, in build/studies: a piece of a cell

With ``--seconds 30`` a study begins no new piece after that much CPU time, and ends with the exit status 75.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from inflib.lab import banks
from inflib.lab.banks import smooth
from inflib.lab.models import mlp
from inflib.validation import Bank, BankRecipe, load_bank

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "benchmarks" / "results"
PIECES = ROOT / "build" / "studies"
SIZES = (196, 32, 16, 10)


class Study:
    """A JSON file of cells {key: {name: number}}, written after each."""

    def __init__(self, name: str, folder: Path = FOLDER):
        self.path = folder / f"{name}.json"
        self.cells: dict[str, Any] = json.loads(self.path.read_text()) if self.path.exists() else {}

    def cell(self, key: str, compute: Callable[[], Any]) -> Any:
        """The cell of that key, computed where it is missing."""
        if key not in self.cells:
            self.cells[key] = _plain(compute())
            self._write()
            print(f"{key}: {self.cells[key]}", flush=True)
        return self.cells[key]

    def _write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial_file = self.path.with_suffix(".partial")
        partial_file.write_text(json.dumps(self.cells, indent=1) + "\n")
        os.replace(partial_file, self.path)


def arguments(description: str | None) -> None:
    """Read ``--seconds`` from the command line."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=math.inf, help="CPU time after which no new piece begins")
    torch.set_num_threads(1)
    global _limit
    _limit = parser.parse_args().seconds


_limit = math.inf


def kept(name: str, compute: Callable[[], Any]) -> Any:
    """What compute() returned, tensors in lists and dicts, from its file where it is there."""
    path = PIECES / f"{name}.pt"
    if path.exists():
        return torch.load(path)
    if time.process_time() > _limit:
        raise SystemExit(75)
    found = compute()
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(found, path.with_suffix(".partial"))
    os.replace(path.with_suffix(".partial"), path)
    print(f"{name}: {time.process_time():.0f} s of CPU time so far", flush=True)
    return found


def _plain(value: Any) -> Any:
    """Tensors as lists, numbers with three significant digits."""
    if isinstance(value, dict):
        return {key: _plain(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, Tensor):
        return _plain(value.tolist())
    return float(f"{value:.3g}") if isinstance(value, float) else value


def perceptron(activation: str, lr: float, batch_size: int = 100, queries: int = 200, **training: Any) -> BankRecipe:
    """The recipe of ``inflib.lab.banks.smooth`` with other dials and fewer queries."""
    found = smooth()
    build = partial(_network, getattr(nn, activation))
    dials = replace(found.training, lr=lr, batch_size=batch_size, **training)
    return replace(few_queries(found, queries), name=f"{activation} {lr:g}", build=build, training=dials)


def few_queries(recipe: BankRecipe, count: int) -> BankRecipe:
    """The recipe with ``count`` of its 200 queries, as many of each class."""
    return asking(recipe, torch.arange(200).view(10, -1).T.flatten()[:count])  # 20 of each class stand in a row


def asking(recipe: BankRecipe, rows: Tensor) -> BankRecipe:
    """The recipe with the queries at these positions."""
    Z, z = recipe.queries[0]
    return replace(recipe, queries=[(Z[rows], z[rows])])


def bank_of(name: str) -> Bank:
    """The bank of that name: the shipped one, or the one of ``python -m inflib.validation.bank`` in build/banks."""
    shipped = ROOT / "data" / "banks" / f"{name}.npz"
    return load_bank(shipped if shipped.exists() else ROOT / "build" / "banks" / name, banks.recipe(name))


def _network(activation: Callable[[], nn.Module], seed: int) -> nn.Module:
    return mlp(SIZES, activation=activation, seed=seed).eval()
