"""A bank being made: a folder that is complete in parts, and the same in the end however often it was interrupted.

    recipe.json         what the bank is of
    masks.npy           (K, N) bools, packed to bits
    part-0000.npz …     for each measurement (M, Q) float32: ``at_once`` masks of one seed, written whole or not at all

A part depends on the recipe and its number alone, and is put in its place by renaming: whoever is killed loses the part
under work, and the next call goes on with it.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...batches import bar
from .banks import Bank, load_bank
from .recipes import BankRecipe, check_same


def make_bank(
    recipe: BankRecipe, folder: str | Path, *, device: torch.device | str | None = None, progress: bool = True
) -> Bank:
    """Make the recipe's bank in ``folder``, or what is missing of it, and return it.

    Raises ValueError for a folder that holds a bank of another recipe, or one begun on another device or in another
    version of torch: its parts would not fit together.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    facts = recipe.facts() | {"made_with": f"torch {torch.__version__} on {torch.device(device or 'cpu').type}"}
    if (folder / "recipe.json").exists():
        check_same(json.loads((folder / "recipe.json").read_text()), facts, str(folder))
    _write(folder / "masks.npy", lambda file: np.save(file, np.packbits(recipe.masks.numpy(), axis=1)))
    _write(folder / "recipe.json", lambda file: file.write(json.dumps(facts, indent=1, sort_keys=True).encode()))
    parts = parts_of(recipe)
    missing = [number for number in range(len(parts)) if not part_path(folder, number).exists()]
    for number in bar(missing, len(missing), f"bank {recipe.name}", "part") if progress else missing:
        seed, rows = parts[number]
        networks = recipe.train(seed, recipe.masks[rows], device=device, progress=False)
        held = {
            name: networks.measure(recipe.objective, recipe.queries, name).float().cpu().numpy()
            for name in recipe.measurements
        }
        _write(part_path(folder, number), lambda file, held=held: np.savez(file, **held))
    return load_bank(folder, recipe)


def parts_of(recipe: BankRecipe) -> list[tuple[int, slice]]:
    """The seed and the masks of each part, in order."""
    steps = range(0, len(recipe.masks), recipe.at_once)
    return [(seed, slice(at, at + recipe.at_once)) for seed in range(recipe.seeds) for at in steps]


def part_path(folder: Path, number: int) -> Path:
    return folder / f"part-{number:04d}.npz"


def _write(path: Path, write: Any) -> None:
    """Write a file whole, or leave what was there."""
    partial = path.with_suffix(".partial")
    with open(partial, "wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
