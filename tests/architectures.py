"""The architectures people bring, tiny and from their configurations alone, each with padded batches and an objective.

    python tests/architectures.py [NAME ...]     a table in markdown: what is covered, and how far from autograd's loop

The models of Hugging Face's stand in text_models.py and image_models.py: in eval mode and float64, two layers deep, with
weights drawn from a fixed seed. After them come the models of layouts.py, which put their examples in other places.
"""

from __future__ import annotations

import sys
from dataclasses import replace

import layouts
import torch
from alone import Case, as_told, examine
from image_models import IMAGES
from text_models import TEXT

CATALOGUE = TEXT | IMAGES
COLUMNS = (
    "model", "layers", "covered", "gradients", "dot products", "Λ", "A", "S", "covered by all", "worst", "refused",
)  # fmt: skip


def rows(name: str, case: Case) -> list[str]:
    """What is said of a case, and where it is refused with a way on, what is said then."""
    found = examine(case)
    if not found.refusal:
        errors = (found.gradients, found.dots, found.eigenvalues, found.activations, found.slopes)
        said = ["–" if error != error else f"{error:.0e}" for error in errors]
        return [
            f"| {name} | {len(found.layers)} | {found.share:.1%} | {' | '.join(said)} | {' | '.join(with_all(case))} | |"
        ]
    told = as_told(found.refusal)
    once = [f"| {name} | {'| ' * 9}{' '.join(found.refusal.split())} |"]
    return once + (rows(f"{name}, as told", replace(case, layers=told)) if told and case.layers is None else [])


def with_all(case: Case) -> tuple[str, str]:
    """The share that layers="all" covers and the worst error there, with what a refusal says to leave out left out."""
    layers, out = "all", ""
    while True:
        found = examine(replace(case, layers=layers))
        if not found.refusal:
            return f"{found.share:.1%}{out}", f"{found.worst:.0e}"
        told = as_told(found.refusal)
        if told is None or out:
            return "refused", "–"
        layers, out = told, " as told"


def main(names: list[str]) -> None:
    """Errors relative to the largest entry, of dot products to the two gradients' lengths; float64."""
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    for name, build in (CATALOGUE | layouts.RIGHT | layouts.MIXED).items():
        if not names or name in names:
            print(*rows(name, build()), sep="\n", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
