"""How far to believe a score: notebook 09's figures, from banks of retrainings. ``python benchmarks/study.py [ITEM …]``

Banks come from build/banks (``make bank RECIPE=…``) or, where none was made, from data/banks. Every item's rows go to
benchmarks/results/study.json as soon as they are known; scores stay in build/study, so that whoever stops the study
goes on where it was.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import study_ground_truths as truths
import torch
from study_scores import method

from inflib.lab import banks
from inflib.validation import Bank, Board, board, by_retraining, by_size, halves, load_bank

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "study.json"
WIDE = (0.03, 0.1, 0.3, 1.0, 3.0)  # of the transformer
LOW, HIGH = (0.03, 0.1, 0.3, 1.0), (0.3, 1.0, 2.0, 5.0)  # dampings to choose from, in mean eigenvalues


def bank_for(name: str) -> Bank:
    """The bank as it was made here, else as it ships."""
    made = ROOT / "build" / "banks" / name
    try:
        return load_bank(made, banks.recipe(name))
    except FileNotFoundError:
        return banks.bank_of(name)


def compare(name: str, methods: dict[str, tuple]) -> dict[str, Any]:
    """A board of methods, each (method, networks, dampings[, steps]), against the bank of that name."""
    recipe, bank = banks.recipe(name), bank_for(name)
    found = {
        f"{what}, {count} network{'s' * (count > 1)}": method(recipe, what.split(" ×")[0], count, dampings, *rest)
        for what, (count, dampings, *rest) in methods.items()
    }
    measurements = {"LDS": by_retraining(bank), "slope": by_size(bank)}
    return as_json(board(found, measurements, halves(bank.queries)), bank)


def as_json(made: Board, bank: Bank) -> dict[str, Any]:
    print(made)
    tops = {k: asdict(v) for k, v in made.ceilings.items()}
    return {"bank": repr(bank), "rows": [asdict(r) for r in made.rows], "ceilings": tops}


def logistic() -> dict[str, Any]:
    """Logistic regression: EK-FAC, refined by 10 steps, exact G."""
    return compare(
        "logistic",
        {
            "identity": (1, (None,)),
            "EK-FAC": (1, LOW),
            "refined": (1, HIGH, 10),
            "exact G": (1, HIGH),
        },
    )


def decay() -> dict[str, Any]:
    """196-32-16-10 with weight decay: one network."""
    return compare(
        "decay",
        {
            "identity": (1, (None,)),
            "K-FAC": (1, LOW),
            "EK-FAC": (1, LOW),
            "refined": (1, HIGH, 20),
        },
    )


def twelve() -> dict[str, Any]:
    """The same, scores averaged over twelve networks, at the dampings that one network chose."""
    chosen = chosen_by("decay")
    return compare(
        "decay",
        {
            "identity": (12, (None,)),
            "K-FAC": (12, (chosen["K-FAC"],)),
            "EK-FAC": (12, (chosen["EK-FAC"],)),
            "refined": (12, (chosen["refined"],), 20),
        },
    )


def steps() -> dict[str, Any]:
    """196-32-16-10 with weight decay, at the mean eigenvalue: conjugate-gradient steps against LDS and size."""
    recipe, bank = banks.recipe("decay"), bank_for("decay")
    found = {f"refined, {k} step{'s' * (k > 1)}": method(recipe, "refined", 1, (1.0,), k) for k in (1, 3, 10, 20)}
    measurements = {"LDS": by_retraining(bank), "slope": by_size(bank)}
    plain = {"EK-FAC": method(recipe, "EK-FAC", 1, (1.0,))}
    return as_json(board(plain | found, measurements, halves(bank.queries)), bank)


def basis() -> dict[str, Any]:
    """196-32-16-10 with weight decay: eigenvectors of whole gradients' moments in place of EK-FAC's."""
    return compare("decay", {"EK-FAC": (1, LOW), "by whole gradients": (1, LOW)})


def basis_of_sentences() -> dict[str, Any]:
    """The same on the course's transformer, where an example has many positions."""
    return compare("sentences", {"EK-FAC": (1, WIDE[:3]), "by whole gradients": (1, WIDE[:3])})


def middle() -> dict[str, Any]:
    """196-32-16-10 with weight decay, trained and scored with every example at weight ½: one network."""
    return compare("decay", {"EK-FAC at a half": (1, LOW), "refined at a half": (1, LOW[2:], 10)})


def middle_of_four() -> dict[str, Any]:
    """The same, scores averaged over four networks, at the dampings that one network chose."""
    chosen = chosen_by("middle")
    return compare(
        "decay",
        {
            "EK-FAC at a half": (4, (chosen["EK-FAC at a half"],)),
            "refined at a half": (4, (chosen["refined at a half"],), 10),
        },
    )


def plain() -> dict[str, Any]:
    """The same network without weight decay: one network."""
    return compare("plain", {"identity": (1, (None,)), "EK-FAC": (1, LOW), "refined": (1, HIGH, 20)})


def smooth() -> dict[str, Any]:
    """Smooth training: tanh, a small rate."""
    return compare("smooth", {"identity": (1, (None,)), "EK-FAC": (1, LOW), "refined": (1, HIGH, 20)})


def sentences() -> dict[str, Any]:
    """The course's transformer on a bank of its own."""
    return compare(
        "sentences", {"identity": (1, (None,)), "K-FAC": (1, WIDE), "EK-FAC": (1, WIDE), "refined": (1, WIDE[2:], 10)}
    )


ITEMS: dict[str, Callable[[], dict[str, Any]]] = {
    "logistic": logistic,
    "decay": decay,
    "twelve": twelve,
    "steps": steps,
    "basis": basis,
    "basis_of_sentences": basis_of_sentences,
    "middle": middle,
    "middle_of_four": middle_of_four,
    "plain": plain,
    "smooth": smooth,
    "sentences": sentences,
    "removal": truths.removal,
    "flips": truths.flips,
    "mislabels": truths.mislabels,
    "one_out": truths.one_out,
}


def chosen_by(item: str) -> dict[str, Any]:
    """{method: the damping chosen for it} of an item that is known."""
    return {r["method"].split(",")[0]: r["dial"] for r in stored()[item]["rows"]}


def stored() -> dict[str, Any]:
    """What is known so far."""
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}


def main(asked: list[str]) -> None:
    """Compute the items asked for, or all that are missing."""
    torch.set_num_threads(1)
    unknown = [name for name in asked if name not in ITEMS]
    if unknown:
        raise SystemExit(f"item {unknown[0]!r}; expected some of {', '.join(ITEMS)}")
    for name in asked or [name for name in ITEMS if name not in stored()]:
        print(f"--- {name}: {ITEMS[name].__doc__}", flush=True)
        found = ITEMS[name]()
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(stored() | {name: found}, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
