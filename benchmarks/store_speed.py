"""How long a query takes against a store of so many sequences, from files in memory: its law, on made-up shards.

    python benchmarks/store_speed.py --folder build/speed --threads 2      # to 500,000 sequences of 16 kB: 8.2 GB
    python benchmarks/store_speed.py --folder build/speed --sequences 50000 100000

Four layers of 256 × 512, a quarter of the axes at one bit: 4,112 bytes a layer and sequence, its bits drawn by chance.
The first query reads every shard once and checks it; what is timed comes after that. Written to
results/store_speed.json: for each number of sequences the clock's and CPU's seconds of 1 and 10 queries, and of reading
every byte once as 64-bit numbers to be added up, which is memory's own speed on this machine at that time.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
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
NUMBERS = (50_000, 100_000, 200_000, 500_000)  # in whole shards
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
    parser.add_argument("--sequences", type=int, nargs="+", default=NUMBERS, help=f"multiples of {SHARD:,}")
    parser.add_argument("--repeats", type=int, default=5, help="of which the fastest counts: others share the machine")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    try:
        whole = made_up(options.folder, max(options.sequences))
        rows = timed(whole, sorted(options.sequences), options.repeats)
    finally:
        shutil.rmtree(options.folder, ignore_errors=True)
    facts = {"machine": machine(), "threads": options.threads, "bytes_a_sequence": whole.record.itemsize, "rows": rows}
    facts["load"] = os.getloadavg()[1]  # processes that wanted a core in the last five minutes, these threads too
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(rounded(facts), indent=1) + "\n")


def timed(whole: Store, numbers: list[int], repeats: int) -> list[dict[str, Any]]:
    draw = torch.Generator().manual_seed(1)
    asked = {name: torch.randn(max(QUERIES), *SHAPE, generator=draw) for name in whole.kept}
    with Cost() as first:
        whole.scores({name: G[:1] for name, G in asked.items()})
    print(f"the first query, which checks every shard: {first.wall_s:.2f} s", flush=True)
    rows = []
    for N in numbers:
        store = replace(whole, manifest=Manifest({}, whole.manifest.shards[: N // SHARD]))
        row: dict[str, Any] = {"sequences": N, "bytes": store.nbytes}
        row |= {"read": fastest(partial(read, store), repeats)}
        for Q in QUERIES:
            few = {name: G[:Q] for name, G in asked.items()}
            row |= {f"{Q}": fastest(partial(store.scores, few), repeats)}  # type: ignore[arg-type]
        rows.append(row)
        print(row, flush=True)
    return rows


def fastest(act: Callable[[], Any], repeats: int) -> dict[str, float]:
    """The least seconds of so many tries, by the clock and of all threads."""
    costs = []
    for _ in range(repeats):
        with Cost() as cost:
            act()
        costs.append(cost)
    return {"wall_s": min(cost.wall_s for cost in costs), "cpu_s": min(cost.cpu_s for cost in costs)}


def read(store: Store) -> int:
    """Every byte once."""
    shards = (np.load(store.folder / shard.name, mmap_mode="c") for shard in store.manifest.shards)
    return sum(int(torch.from_numpy(records.view(np.int64)).sum()) for records in shards)


if __name__ == "__main__":
    main()
