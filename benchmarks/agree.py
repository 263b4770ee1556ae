"""Do inflib and kronfluence give the same scores? On a slice to rounding, on the whole run as far as label draws allow.

    python agree.py work.pt --folder out --train 200 --queries 10

Prints JSON. On the slice both libraries use the data's own labels, so nothing is random: in float64 the relative
Frobenius error is rounding; in float32 the correlation is what single precision leaves of it. The scores of the timed
runs, read from `folder`, rest on each library's own draw of one label per example, and differ by that draw.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import warnings
from pathlib import Path

import torch
import with_inflib
import with_kronfluence
from torch import Tensor
from workload import Workload, load


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workload", type=Path, help="file written by workload.save")
    parser.add_argument("--folder", type=Path, required=True, help="holds inflib/ and kronfluence/ with their scores")
    parser.add_argument("--train", type=int, default=200, help="training examples of the slice")
    parser.add_argument("--queries", type=int, default=10, help="queries of the slice")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore", category=FutureWarning, module="kronfluence")  # of torch's, on its autocast
    work = load(options.workload, options.device)
    found = {"slice": on_slice(work, options.train, options.queries), "run": on_run(options.folder)}
    print(json.dumps(found))


def on_slice(work: Workload, n_train: int, n_queries: int) -> dict[str, float]:
    """Observed labels, default damping, both precisions."""
    found: dict[str, float] = {}
    for name, dtype in (("float64", torch.float64), ("float32", torch.float32)):
        part = work.cut(n_train, n_queries, dtype)
        found |= {"train": len(part.train_x), "queries": len(part.query_x)}
        answers = []
        for library in (with_inflib, with_kronfluence):
            with tempfile.TemporaryDirectory() as folder:
                library.fit(part, Path(folder), 100, "observed")
                pairwise = library.pairwise(part, Path(folder), 100).clone().cpu()
                own = library.self_influence(part, Path(folder), 100).clone().cpu()
                answers.append((pairwise, own))
        (pairwise, own), (their_pairwise, their_own) = answers
        found |= {
            f"pairwise relative error, {name}": relative_error(pairwise, their_pairwise),
            f"self-influence relative error, {name}": relative_error(own, their_own),
        }
        if dtype == torch.float32:
            found["pairwise mean correlation, float32"] = correlation(pairwise, their_pairwise).mean().item()
    return found


def on_run(folder: Path) -> dict[str, float]:
    """The timed runs' scores, where both libraries left some; inflib's at low rank beside its exact ones."""
    found: dict[str, float] = {}
    for stage in ("pairwise", "self_influence"):
        files = [folder / library / f"{stage}.pt" for library in ("inflib", "kronfluence")]
        if all(file.is_file() for file in files):
            ours, theirs = (torch.atleast_2d(torch.load(file, map_location="cpu")) for file in files)
            per_query = correlation(ours, theirs)
            found[f"{stage} {'mean ' * (len(per_query) > 1)}correlation"] = per_query.mean().item()
            if stage == "pairwise":
                found["pairwise lowest correlation of a query"] = per_query.min().item()
    exact, short = (folder / "inflib" / f"{stage}.pt" for stage in ("pairwise", "low_rank"))
    if exact.is_file() and short.is_file():
        per_query = correlation(torch.load(short, map_location="cpu"), torch.load(exact, map_location="cpu"))
        found["low rank and exact, lowest correlation of a query"] = per_query.min().item()
    return found


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    """‖ours − theirs‖ / ‖theirs‖ in the Frobenius norm."""
    return ((ours - theirs).norm() / theirs.norm()).item()


def correlation(ours: Tensor, theirs: Tensor) -> Tensor:
    """Pearson's, one per row (Q, N) → (Q,)."""
    ours, theirs = (x.double() - x.double().mean(1, keepdim=True) for x in (ours, theirs))
    return (ours * theirs).sum(1) / (ours.norm(dim=1) * theirs.norm(dim=1))


if __name__ == "__main__":
    main()
