"""The other libraries' answers to one small problem, in a file: what inflib's are checked against.

    python peer_scores.py workload.pt answers.pt --dampings 0.001 0.1

Everything is in the workload's dtype and the factors use the data's own labels, so no random number is drawn.

    kronfluence   fitted with observed labels
                  "mean_eigenvalues"       {layer: mean Λ}
                  "pairwise", "self"       {damping: (Q, N)} and {damping: (N,)}; damping None is 0.1 · mean Λ per layer
    curvlinops    "probe"                  {layer: (K, o, i + 1)}, random
                  ("ekfac" or "kfac", labels)  C · probe, for labels "observed" and "expected"
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from pathlib import Path

import torch
import with_curvlinops
import with_kronfluence
from curvlinops import EKFACLinearOperator, KFACLinearOperator
from torch import Tensor, nn
from workload import Workload, load


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workload", type=Path, help="file written by workload.save")
    parser.add_argument("answers", type=Path, help="file to write")
    parser.add_argument("--dampings", type=float, nargs="*", default=[], help="beside the default one")
    parser.add_argument("--batch-size", type=int, default=50)
    options = parser.parse_args()
    warnings.filterwarnings("ignore", category=FutureWarning, module="kronfluence")  # of torch's, on its autocast
    work = load(options.workload)
    answers = {"kronfluence": kronfluence(work, [None, *options.dampings], options.batch_size)}
    if work.task == "digits":
        answers["curvlinops"] = curvlinops(work, options.batch_size)
    torch.save(answers, options.answers)


def kronfluence(work: Workload, dampings: list[float | None], batch_size: int) -> dict:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with_kronfluence.fit(work, folder, batch_size, "observed")
        return {
            "mean_eigenvalues": with_kronfluence.mean_eigenvalues(work, folder),
            "pairwise": {x: with_kronfluence.pairwise(work, folder, batch_size, x).clone() for x in dampings},
            "self": {x: with_kronfluence.self_influence(work, folder, batch_size, x).clone() for x in dampings},
        }


def curvlinops(work: Workload, batch_size: int) -> dict:
    kinds = {"ekfac": EKFACLinearOperator, "kfac": KFACLinearOperator}
    answers: dict = {"probe": probe(work)}
    for name, kind in kinds.items():
        for labels in ("observed", "expected"):
            found = with_curvlinops.operator(work, kind, batch_size, labels)
            answers[name, labels] = with_curvlinops.product(found, answers["probe"])
    return answers


def probe(work: Workload, stack: int = 3) -> dict[str, Tensor]:
    """A random stack of weight gradients, (K, o, i + 1) per layer."""
    numbers = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(stack, m.out_features, m.in_features + 1, generator=numbers, dtype=work.train_x.dtype)
        for name, m in work.model().named_modules()
        if isinstance(m, nn.Linear)
    }


if __name__ == "__main__":
    main()
