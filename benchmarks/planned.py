"""A plan beside what then happened: time and peak memory of each stage on the course's models.

    python benchmarks/planned.py [CASE ...]

Each stage, and the plan, runs in a process of its own, on one thread; peak memory is the resident set's high-water mark
above what model and data held. Time is CPU time, for the plan's probes too: the machine may be busy with other things.
Writes `results/planned.json`.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from measure import Cost
from torch import nn

import inflib
import inflib.ahead
from inflib import token_batches
from inflib.lab import (
    corpus_of,
    language_model,
    load_checkpoint,
    mlp,
    mnist_5k,
    real_language_model,
    shipped_checkpoint,
    villagers,
)

RESULTS = Path(__file__).parent / "results" / "planned.json"
STAGES = ("fit", "index", "scores")


@dataclass(frozen=True)
class Case:
    """What the calls are given."""

    model: nn.Module
    objective: inflib.Objective
    train: list[Any]
    queries: list[Any]
    layers: list[str] | None = None

    @property
    def about(self) -> tuple[nn.Module, inflib.Objective, list[Any]]:
        return self.model, self.objective, self.train


def digits() -> Case:
    """Notebook 00's network and digits."""
    data, model = mnist_5k(), mlp(dtype=torch.float32)
    load_checkpoint(shipped_checkpoint("mnist_mlp"), model)
    return Case(model, inflib.CrossEntropy(), data.train.batches(500), data.queries.batches(100)[:1])


def wide_digits() -> Case:
    """README's network, 784-512-256-10, with the weights it begins with."""
    torch.manual_seed(0)
    layers = [nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 256), nn.ReLU(), nn.Linear(256, 10)]
    data = mnist_5k()
    train, queries = data.train.batches(250), data.queries.batches(100)[:1]
    return Case(nn.Sequential(nn.Flatten(), *layers).eval(), inflib.CrossEntropy(), train, queries)


def _text(name: str, examples: int, every: int) -> Case:
    corpus = corpus_of(name)
    model = language_model(name, corpus, dtype=torch.float32)
    train, asked = corpus[slice(0, every * examples, every)], corpus[slice(1, 10 * every, every)]
    return Case(model, inflib.NextToken(), train.batches(32), asked.batches(10), ["blocks.*.mlp.*"])


def characters() -> Case:
    """Notebook 08's reader of Shakespeare, its perceptrons."""
    return _text("shakespeare", 480, 4)


def facts() -> Case:
    """Notebook 08's model of invented facts, its perceptrons."""
    return _text("facts", 1600, 1)


def smollm2() -> Case:
    """Notebook 12's model of 135 million parameters, two blocks' perceptrons; needs `make smollm2`."""
    found = real_language_model(progress=False)
    texts = [found.encode(text) for text in villagers().texts][:42]
    train, asked = token_batches(texts[:40], 4), token_batches(texts[40:], 2)
    return Case(found.model, inflib.NextToken(), train, asked, ["*.10.mlp.*", "*.20.mlp.*"])


CASES: dict[str, Callable[[], Case]] = {f.__name__: f for f in (digits, wide_digits, characters, facts, smollm2)}


def run(case: Case, what: str, folder: Path) -> dict[str, Any]:
    """One stage, or the plan, in this process."""
    if what == "plan":
        setattr(import_module("inflib.plan.probe"), "clock", time.process_time)  # noqa: B010 (the function hides it)
        inflib.ahead.clock = time.process_time
        with Cost() as cost:
            found = inflib.plan(*case.about, case.layers, case.queries)
        stages = {stage.name: {"seconds": stage.seconds, "peak": stage.peak} for stage in found.stages}
        return {"seconds": cost.cpu_s, "stages": stages}
    curvature = inflib.load(folder / "curvature.safetensors", case.model) if what != "fit" else None
    _stage(replace(case, train=case.train[:2], queries=case.queries[:1]), what, curvature)  # done once a process
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # or what was freed would be taken again unseen
    with Cost() as cost:
        found = _stage(case, what, curvature)
    if isinstance(found, inflib.Kronecker):
        inflib.save(found, folder / "curvature.safetensors")
    return {"seconds": cost.cpu_s, "peak": round((cost.peak_mib - cost.baseline_mib) * 2**20)}


def _stage(case: Case, what: str, curvature: inflib.Kronecker | None) -> object:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if curvature is None:
            return inflib.ekfac(*case.about, case.layers, progress=False)
        if what == "index":
            return inflib.TrainIndex.build(*case.about, curvature, progress=False)
        return inflib.influence(*case.about, case.queries, curvature, progress=False)


def measure(name: str) -> dict[str, Any]:
    """{"plan_seconds": s, stage: {"seconds", "planned_seconds", "peak", "planned_peak"}} of a case."""
    with tempfile.TemporaryDirectory() as folder:
        found = {what: _child(name, what, folder) for what in (*STAGES, "plan")}
    planned = found["plan"]["stages"]
    rows = {
        stage: found[stage] | {f"planned_{key}": value for key, value in planned[stage].items()} for stage in STAGES
    }
    return {"plan_seconds": found["plan"]["seconds"], **rows}


def _child(name: str, what: str, folder: str) -> dict[str, Any]:
    command = [sys.executable, __file__, name, "--only", what, "--folder", folder]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def _say(name: str, rows: dict[str, Any]) -> None:
    print(f"{name}: the plan took {rows['plan_seconds']:.1f} s")
    for stage in STAGES:
        row = rows[stage]
        time_off, peak_off = (row[f"planned_{key}"] / row[key] - 1 for key in ("seconds", "peak"))
        seconds = f"{row['seconds']:7.2f} s, planned {row['planned_seconds']:7.2f} ({time_off:+.0%})"
        peak = f"{row['peak'] / 1e6:7.1f} MB, planned {row['planned_peak'] / 1e6:7.1f} ({peak_off:+.0%})"
        print(f"  {stage:7} {seconds}   {peak}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"some of: {' '.join(CASES)} (default: all)")
    parser.add_argument("--only", choices=[*STAGES, "plan"], help="one stage of one case, in this process")
    parser.add_argument("--folder", type=Path, help="where --only keeps the curvature")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.only:
        print(json.dumps(run(CASES[options.cases[0]](), options.only, options.folder)))
        return
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in options.cases or CASES:
        results[name] = measure(name)
        _say(name, results[name])
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
