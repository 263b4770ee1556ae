"""Fit the EK-FAC factors that ship in data/checkpoints/ for the shipped network.

    python data/build_factors.py            # writes data/checkpoints/mnist_mlp_ekfac.safetensors

In float64, at the shipped weights read as float64: scores made from them agree on every machine to more digits than a
notebook prints. Expected labels, so that nothing is drawn at random.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from inflib import CrossEntropy, ekfac, save
from inflib.lab import load_checkpoint, mlp, mnist_5k, shipped_checkpoint


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=shipped_checkpoint("mnist_mlp_ekfac"))
    path = parser.parse_args().output
    torch.set_num_threads(1)  # sums are then always added in the same order
    train = mnist_5k().train
    model = mlp(dtype=torch.float64)
    load_checkpoint(shipped_checkpoint("mnist_mlp"), model, data=(train.inputs, train.labels))
    curvature = ekfac(model, CrossEntropy(), train.batches(dtype=torch.float64), labels="expected")
    save(curvature, path)
    print(f"{path.name}: {path.stat().st_size:,} bytes\n{curvature}")


if __name__ == "__main__":
    main()
