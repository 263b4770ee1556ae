"""One stage of one library in a process of its own: run it, say what it cost, leave its scores in a file.

    python stage.py kronfluence fit --workload work.pt --folder out --labels sampled --batch-size 32

Imports, data, model and a first forward and backward pass of the bare model happen before the clock starts: torch
starts its threads there, and imports half a second's worth of itself at the first backward pass that is given a
gradient (kronfluence has it imported already). What a library does for the stage itself, files written and read
included, is on the clock.
"""

from __future__ import annotations

import argparse
import gc
import json
import warnings
from dataclasses import asdict
from importlib import import_module
from pathlib import Path

import torch
from measure import Cost
from workload import Workload, load


def main() -> None:
    options = _options()
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore", category=FutureWarning, module="kronfluence")  # of torch's, on its autocast
    library = import_module(f"with_{options.library}")
    work = load(options.workload, options.device)
    options.folder.mkdir(parents=True, exist_ok=True)
    arguments: dict = {"batch_size": options.batch_size}
    if options.stage == "fit":
        arguments["labels"] = options.labels
        if options.max_examples is not None:
            arguments["max_examples"] = options.max_examples
    if options.stage == "second_query":
        arguments = {"built": library.held(options.folder)}
    else:
        arguments["folder"] = options.folder
    _warm_up(work)
    with Cost(gpu=options.device == "cuda") as cost:
        scores = getattr(library, options.stage)(work, **arguments)
    if scores is not None:
        torch.save(scores, options.folder / f"{options.stage}.pt")
    print(json.dumps(asdict(cost)))


def _warm_up(work: Workload) -> None:
    outputs = work.model()(work.train_x[:8].to(work.device))
    outputs.backward(torch.ones_like(outputs))
    torch.linalg.eigh(torch.eye(8, device=work.device))  # loads LAPACK or the GPU's library
    gc.collect()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library", choices=["inflib", "kronfluence", "curvlinops"])
    parser.add_argument("stage", choices=["fit", "pairwise", "low_rank", "self_influence", "index", "second_query"])
    parser.add_argument("--workload", type=Path, required=True, help="file written by workload.save")
    parser.add_argument("--folder", type=Path, required=True, help="where the library keeps factors and scores")
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--labels", default="sampled", help="of the fit")
    parser.add_argument("--max-examples", type=int, help="fit on this many examples only")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    return parser.parse_args()


if __name__ == "__main__":
    main()
