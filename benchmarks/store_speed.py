"""How long a query takes against a store of so many sequences, from files in memory: its law, on made-up shards.

    python benchmarks/store_speed.py --folder build/speed --threads 2      # 100,000 sequences of 16 kB: 1.6 GB

Four layers of 256 × 512, a quarter of the axes at one bit: 4,112 bytes a layer and sequence, its bits drawn by chance.
The first query reads every shard once and checks it; what is timed comes after that. Written to
results/store_speed.json: seconds for 1 and 10 queries at each number of sequences.
"""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import Cost
from run import machine
from store import rounded

from inflib import Store
from inflib.curvature import Facts
from inflib.index.axes import by_eigenvalue
from inflib.index.manifest import Manifest, Shard
from inflib.index.records import record
from inflib.index.shards import shard_checksum
from inflib.kronecker import Kronecker

RESULTS = Path(__file__).parent / "results" / "store_speed.json"
LAYERS, SHAPE, AXES = 4, (256, 512), 0.25
SHARD = 12_500
NUMBERS = (12_500, 25_000, 50_000, 100_000)
QUERIES = (1, 10)


def made_up(folder: Path, N: int) -> Store:
    """A store of N records whose codes are drawn by chance."""
    draw = torch.Generator().manual_seed(0)
    values = {f"layer{n}": torch.rand(SHAPE, generator=draw).square() for n in range(LAYERS)}
    curvature = Kronecker(values, {}, {}, Facts("made up", "observed", 1, 0, N, ""))
    kept = {name: by_eigenvalue(Λ, 0.01, AXES) for name, Λ in values.items()}
    each, shards = record(kept, curvature.shapes, 1, torch.float32), []
    random = np.random.Generator(np.random.SFC64(0))
    (folder / "shards").mkdir(parents=True)
    for start in range(0, N, SHARD):
        records = np.zeros(SHARD, each)
        for at in range(LAYERS):
            fields = records[str(at)]
            fields["codes"] = random.integers(0, 256, fields["codes"].shape, dtype=np.uint8)
            for name in ("scale", "norm", "r", "rest"):
                fields[name] = 1
        shards.append(Shard(start, SHARD, "", shard_checksum(records)))
        np.save(folder / shards[-1].name, records)
    return Store(folder, curvature, kept, dict.fromkeys(values, 0.01), 1, Manifest({}, tuple(shards)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where the shards are made, and removed from")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3, help="of which the fastest counts: others share the machine")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    try:
        whole = made_up(options.folder, NUMBERS[-1])
        rows = timed(whole, options.repeats)
    finally:
        shutil.rmtree(options.folder, ignore_errors=True)
    facts = {"machine": machine(), "threads": options.threads, "bytes_a_sequence": whole.record.itemsize, "rows": rows}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(rounded(facts), indent=1) + "\n")


def timed(whole: Store, repeats: int) -> list[dict[str, Any]]:
    draw = torch.Generator().manual_seed(1)
    asked = {name: torch.randn(max(QUERIES), *SHAPE, generator=draw) for name in whole.kept}
    with Cost() as first:
        whole.scores({name: G[:1] for name, G in asked.items()})
    print(f"the first query, which checks every shard: {first.wall_s:.2f} s", flush=True)
    rows = []
    for N in NUMBERS:
        store = replace(whole, manifest=Manifest({}, whole.manifest.shards[: N // SHARD]))
        for Q in QUERIES:
            few = {name: G[:Q] for name, G in asked.items()}
            costs = []
            for _ in range(repeats):
                with Cost() as cost:
                    store.scores(few)  # type: ignore[arg-type]
                costs.append(cost)
            best = min(costs, key=lambda cost: cost.wall_s)
            least = min(cost.cpu_s for cost in costs)
            rows.append({"sequences": N, "queries": Q, "wall_s": best.wall_s, "cpu_s": least})
            print(f"{N:9,} sequences {Q:3} queries {best.wall_s:8.3f} s {least:8.3f} CPU-s", flush=True)
    return rows


if __name__ == "__main__":
    main()
