"""Does an audited bound hold at its rate, and what does it leave open? On Shakespeare, beside the certificate.

    python benchmarks/audit.py --folder build/store        # after benchmarks/store.py's fit and exact, or with them

Two of store.py's stores, its 2,000 sequences and 40 queries. For each query, ten times: so many sequences are drawn by
chance, and c is the share of its bound that their errors reach at most but for a share ``rate``. Counted among the rest
are those farther off than c bounds and, with 100 candidates computed exactly, those that the ten are not shown to beat.
Written to results/audit.json.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from store import STORES, Study, exact, fit, rounded
from torch import Tensor

from inflib import Store, TrainIndex

RESULTS = Path(__file__).parent / "results" / "audit.json"
NAMES = ("a quarter, 1 bit", "a quarter, 2 bits")
AUDITS = ((99, 0.05), (199, 0.01), (499, 0.01))
CANDIDATES, K, REPEATS = 100, 10, 10


def answers(study: Study, name: str) -> tuple[Tensor, Tensor]:
    """A store's scores and bounds, (Q, N) each; what is in the folder is not made again."""
    path = study.folder / f"{name}.pt"
    if not path.exists():
        arguments = (study.model, study.objective, study.train, study.curvature)
        folder = study.folder / "store"
        shutil.rmtree(folder, ignore_errors=True)
        store = TrainIndex.build(*arguments, path=folder, shard=500, progress=False, **STORES[name])
        assert isinstance(store, Store)
        prepared = store.prepare(study.model, study.objective, study.queries)
        torch.save((store.scores(prepared), store.bounds(prepared)), path)
        shutil.rmtree(folder)
    near, bound = torch.load(path)
    return near.double(), bound.double()


def one(near: Tensor, bound: Tensor, right: Tensor, drawn: Tensor, rate: float) -> tuple[float, int, int, int]:
    """Of one query (N,): the share of the rest off by more than c bounds; open by c, open by the bound, and missed."""
    ratio = (near - right).abs() / bound
    c = ratio[drawn].sort().values[math.ceil((len(drawn) + 1) * (1 - rate) - 1e-9) - 1]
    rest = torch.ones(len(near), dtype=torch.bool)
    rest[drawn] = False
    over = float((ratio[rest] > c).double().mean())
    known = torch.cat([drawn, near.topk(CANDIDATES).indices])
    rest[known] = False
    least = right[known.unique()].topk(K).values[-1]
    could = near + c * bound >= least
    missed = (right > least) & ~could
    return over, *(int((x & rest).sum()) for x in (could, near + bound >= least, missed))


def row(name: str, audit: int, rate: float, near: Tensor, bound: Tensor, right: Tensor) -> dict[str, Any]:
    found = []
    for repeat in range(REPEATS):
        draw = np.random.Generator(np.random.Philox(repeat))
        for q in range(len(right)):
            drawn = torch.from_numpy(draw.choice(right.shape[1], audit, replace=False))
            found.append(one(near[q], bound[q], right[q], drawn, rate))
    over, left, certificate, missed = (np.array(part) for part in zip(*found, strict=True))
    facts = {"broken": over.mean(), "open": left.mean(), "none_open": (left == 0).mean()}
    facts |= {"open_by_certificate": certificate.mean(), "missed": missed.mean()}
    return {"store": name, "audit": audit, "rate": rate} | {key: float(value) for key, value in facts.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="what store.py left, or is to be left there")
    torch.set_num_threads(1)
    study = Study(parser.parse_args().folder)
    for stage, left in ((fit, "curvature.safetensors"), (exact, "exact.pt")):
        if not (study.folder / left).exists():
            stage(study)
    right, rows = torch.load(study.folder / "exact.pt").double(), []
    for name in NAMES:
        near, bound = answers(study, name)
        rows += [row(name, audit, rate, near, bound, right) for audit, rate in AUDITS]
        print(*rows[-len(AUDITS) :], sep="\n", flush=True)
    facts = {"queries": len(right), "sequences": right.shape[1], "rows": rows}
    RESULTS.write_text(json.dumps(rounded(facts), indent=1) + "\n")


if __name__ == "__main__":
    main()
