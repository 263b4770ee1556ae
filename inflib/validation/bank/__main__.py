"""python -m inflib.validation.bank RECIPE [--folder build/banks/RECIPE] [--small FILE] [--device cuda]"""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

from .banks import save_small
from .folder import make_bank
from .recipes import BankRecipe

COURSE = "inflib.lab.banks"  # where a name without a module is looked up


def main(arguments: list[str] | None = None) -> None:
    """Make a bank, or what is missing of it, and say what it holds."""
    parser = argparse.ArgumentParser(prog="python -m inflib.validation.bank", description=main.__doc__)
    parser.add_argument("recipe", help=f"a function of {COURSE} that returns a BankRecipe, or module:function")
    parser.add_argument("--folder", type=Path, help="where it is made; build/banks/RECIPE unless said")
    parser.add_argument("--small", type=Path, help="also write the bank to this one small file")
    parser.add_argument("--device", help="where to train: cpu, cuda")
    asked = parser.parse_args(arguments)
    folder = asked.folder or Path("build") / "banks" / asked.recipe.rpartition(":")[2]
    bank = make_bank(find(asked.recipe), folder, device=asked.device)
    print(f"{folder}: {bank}")
    if asked.small:
        save_small(bank, asked.small)
        print(f"{asked.small}: {asked.small.stat().st_size:,} bytes")


def find(name: str) -> BankRecipe:
    """The recipe of that name. Raises ValueError naming those there are."""
    module, _, function = name.rpartition(":")
    held = importlib.import_module(module or COURSE)
    if not callable(getattr(held, function, None)):
        known = ", ".join(getattr(held, "RECIPES", ()))
        raise ValueError(f"recipe {name!r} is not in {held.__name__}; expected one of {known}, or module:function.")
    found = getattr(held, function)()
    if not isinstance(found, BankRecipe):
        raise ValueError(f"{name} returned {type(found).__name__}; expected a BankRecipe.")
    return found


if __name__ == "__main__":
    main()
