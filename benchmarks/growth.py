"""Does it grow as the operations do? Examples, width and length doubled three times; each stage timed and counted.

    python benchmarks/growth.py                    # about two CPU-minutes, one thread; writes results/growth.json

A transformer of one block with random weights, four heads, on random tokens: what a stage costs does not depend on what
was learned. Stages: the fit of EK-FAC, scores of eight queries, self-influence, and a store of one bit on a quarter of
the axes, all through the perceptron's two matrices. Operations are those counted in the stage itself (multiplications
and additions of matrix products) and 9 d³ for each eigendecomposition. What is to be shown: seconds grow no faster than
operations. They may grow more slowly, where small products leave a processor waiting.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measure import Cost
from run import machine
from store import rounded

from inflib import NextToken, TrainIndex, ekfac, influence, self_influence
from inflib.lab import transformer
from inflib.plan.probe import counting_operations

RESULTS = Path(__file__).parent / "results" / "growth.json"
START = {"examples": 64, "width": 32, "length": 32}
DOUBLINGS, QUERIES, BATCH, LAYERS = 3, 8, 16, "*.mlp.*"


def stages(examples: int, width: int, length: int, folder: Path) -> dict[str, Callable[[], Any]]:
    """What is timed, by name; the fit is made once before."""
    torch.manual_seed(0)
    model = transformer(64, length, width, blocks=1, heads=4, hidden=4 * width).eval()
    ids = torch.randint(0, 64, (examples + QUERIES, length + 1))
    batches = [(some[:, :-1], some[:, 1:]) for some in ids.split(BATCH)]
    train, queries = batches[: -(-examples // BATCH)], [(ids[-QUERIES:, :-1], ids[-QUERIES:, 1:])]
    about: Any = model, NextToken(), train
    fitted = ekfac(*about, layers=LAYERS, progress=False)
    return {
        "fit": lambda: ekfac(*about, layers=LAYERS, progress=False),
        "scores": lambda: influence(*about, queries, fitted, progress=False),
        "self-influence": lambda: self_influence(*about, fitted, progress=False),
        "store": lambda: _store(about, fitted, folder),
    }


def _store(about: Any, fitted: Any, folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder) as name:
        TrainIndex.build(*about, fitted, path=Path(name) / "store", axes=0.25, bits=1, progress=False)


def measured(doubled: str, times: int, repeats: int, folder: Path) -> dict[str, Any]:
    """CPU-seconds (least of ``repeats``) and operations of each stage, with one of the three sizes doubled."""
    sizes = START | {doubled: START[doubled] * 2**times}
    found = {}
    for name, stage in stages(**sizes, folder=folder).items():
        with counting_operations() as counter:
            stage()
        operations = counter.get_total_flops()
        if name == "fit":
            width = sizes["width"]
            operations += 9 * sum(d**3 for d in (4 * width, width + 1, width, 4 * width + 1))
        costs = []
        for _ in range(repeats):
            with Cost() as cost:
                stage()
            costs.append(cost.cpu_s)
        found[name] = {"cpu_s": min(costs), "operations": operations}
    return {"doubled": doubled, "to": sizes[doubled], "stages": found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=20, help="the quickest counts: others share the machine")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        for doubled in START:
            for times in range(DOUBLINGS + 1):
                rows.append(measured(doubled, times, options.repeats, Path(name)))
                said = ", ".join(f"{k} {x['cpu_s']:.2f}" for k, x in rows[-1]["stages"].items())
                print(f"{doubled:9}{rows[-1]['to']:6}: CPU-seconds {said}", flush=True)
    RESULTS.write_text(
        json.dumps(rounded({"machine": machine(), "threads": 1, "start": START, "rows": rows}), indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
