"""EK-FAC, scores and a store by several processes, as one process would have them.

    torchrun --nproc-per-node=2 examples/torchrun_fit.py --check

Every process loads the same model and the same data, and takes its own stretch of the batches. --checkpoint FOLDER
keeps the sums, --store FOLDER the training gradients in few bits, each process writing its own shards of it: run the
same command again after a stop. On machines with GPUs each process takes one (NCCL).
"""

from __future__ import annotations

import argparse

import torch

import inflib
from inflib import distributed
from inflib.lab import load_checkpoint, mlp, mnist_5k, shipped_checkpoint


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=1000)
    parser.add_argument("--checkpoint", help="a folder for the sums so far")
    parser.add_argument("--store", help="a folder for a store of the training examples")
    parser.add_argument("--check", action="store_true", help="compare with one process")
    options = parser.parse_args()
    torch.set_num_threads(1)
    digits, model, objective = mnist_5k(), mlp(), inflib.CrossEntropy()
    load_checkpoint(shipped_checkpoint("mnist_mlp"), model, data=(digits.train.inputs, digits.train.labels))
    model = model.double()
    x, y = digits.train.inputs[: options.examples].double(), digits.train.labels[: options.examples]
    train = list(zip(x.split(100), y.split(100), strict=True))
    queries = [(digits.queries.inputs[:5].double(), digits.queries.labels[:5])]
    with distributed.processes(timeout=60) as ranks:
        curvature = distributed.ekfac(
            ranks, model, objective, train, labels="sampled", checkpoint=options.checkpoint, progress=False
        )
        scores = distributed.influence(ranks, model, objective, train, queries, curvature, progress=False)
        if options.store:
            about = model, objective, train, curvature, options.store
            share = -(-options.examples // ranks.size)  # a shard for each process
            store = distributed.build_store(ranks, *about, shard=share, progress=False)
            kept = store.influence(model, objective, queries)
        if ranks.rank == 0 and options.store:
            print(f"a store of {len(store)} examples in {len(store.manifest.shards)} shards, {store.nbytes:,} bytes")
        if ranks.rank == 0 and options.store and options.check:
            check_store(kept, scores)
        if ranks.rank == 0:
            print(f"{ranks.size} processes, {scores.shape[1]} examples, scores {tuple(scores.shape)}")
        if ranks.rank == 0 and options.check:
            check(scores, model, objective, train, queries)


def check(
    scores: torch.Tensor, model: torch.nn.Module, objective: inflib.Objective, train: list, queries: list
) -> None:
    """Compare with the scores of one process."""
    curvature = inflib.ekfac(model, objective, train, labels="sampled", progress=False)
    alone = inflib.influence(model, objective, train, queries, curvature, progress=False)
    error = float((scores - alone).norm() / alone.norm())
    assert error < 1e-10, f"the scores differ by {error:.1e} of their norm"
    print("the same scores as one process, to 1e-10")


def check_store(kept: torch.Tensor, scores: torch.Tensor) -> None:
    """A perceptron's layers are applied once an example: a store keeps their vectors, and its scores are exact."""
    error = float((kept - scores).norm() / scores.norm())
    assert error < 1e-10, f"the store's scores differ by {error:.1e} of their norm"
    print("the store's scores are the same, to 1e-10")


if __name__ == "__main__":
    main()
