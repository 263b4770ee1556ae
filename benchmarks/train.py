"""Make the workload, in a process of its own.

python train.py digits work.pt --shape 784 512 256 10 --train 10000 --queries 100
"""

from __future__ import annotations

import argparse
import json
import sys
from importlib import import_module
from pathlib import Path

import torch
from workload import save


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=["digits", "characters", "language"])
    parser.add_argument("file", type=Path, help="file to write")
    parser.add_argument("--shape", type=int, nargs="+", required=True)
    parser.add_argument("--train", type=int, required=True)
    parser.add_argument("--queries", type=int, required=True)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("--device cuda: torch sees no CUDA device; leave the option out to measure on the CPU")
    torch.set_num_threads(options.threads)
    prepare = import_module(options.task).prepare
    work = prepare(tuple(options.shape), options.train, options.queries, options.epochs, device=options.device)
    save(work, options.file)
    facts = {
        "source": work.source,
        "task": work.task,
        "shape": work.shape,
        "train": len(work.train_x),
        "queries": len(work.query_x),
        "train_loss": work.train_loss,
        "train_accuracy": work.train_accuracy,
        "torch": torch.__version__,
        "gpu": torch.cuda.get_device_name() if options.device == "cuda" else None,
    }
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
