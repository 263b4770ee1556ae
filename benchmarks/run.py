"""inflib beside kronfluence and curvlinops on three workloads: CPU-seconds, peak memory, agreement of scores.

    make bench                                      # everything, about 1,800 CPU-seconds
    make bench BENCH_ARGS="--task characters"       # one of the three
    make bench BENCH_ARGS="--quick"                 # small slices and small models
    make bench BENCH_ARGS="--task language"         # a real language model, after `make smollm2`
    python benchmarks/run.py --only pairwise        # one stage (and the fits that it needs)
    python benchmarks/run.py --skip-slow            # without kronfluence's fit and self-influence of the digits
    python benchmarks/run.py --device cuda          # a larger transformer on a GPU, seconds of the clock

digits: MNIST, 10,000 training examples and 100 queries, a 784-512-256-10 ReLU network. characters: tiny Shakespeare,
2,000 sequences of 128 and 20 queries, a transformer of two blocks of width 128, influence through its perceptrons.
language: SmolLM2-135M-Instruct, 96 sequences of 61 tokens, 10 queries, the twelve matrices of its last four blocks.
Float32, lightly trained. Labels of the fit are sampled from the model, one draw, in every library. Every stage of every
library runs in a process of its own, in the environment that `make peers` builds, with the same number of threads. The
tables go to the screen and, with all figures as JSON, to `benchmarks/results/`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
STAGES = {
    "digits": ("fit", "pairwise", "low_rank", "self_influence"),
    "characters": ("fit", "pairwise", "self_influence", "index", "second_query"),
    "language": ("fit", "pairwise", "self_influence"),
}
NEEDS = {
    "pairwise": ("fit",),
    "low_rank": ("fit",),
    "self_influence": ("fit",),
    "index": ("fit",),
    "second_query": ("fit", "index"),
}
OURS = ("low_rank", "index", "second_query")  # stages that no other library has
FULL = {
    "digits": {"shape": (784, 512, 256, 10), "train": 10_000, "queries": 100, "epochs": 2},
    "characters": {"shape": (128, 128, 128, 4, 512, 2), "train": 2_000, "queries": 20, "epochs": 1},
    "language": {"shape": (49152, 61, 576, 9, 3, 1536, 30), "train": 96, "queries": 10, "epochs": 0},
}
ON_GPU = {  # notebook 08's larger transformer; an index of its 4,000 sequences would take 113 GB
    "characters": {"shape": (128, 256, 384, 6, 1536, 6), "train": 4_000, "queries": 20, "epochs": 1},
}
SIZES = {"cpu": FULL, "cuda": ON_GPU}
GPU_STAGES = ("fit", "pairwise", "self_influence")
QUICK = {
    "digits": {"shape": (784, 64, 32, 10), "train": 400, "queries": 10, "epochs": 12},
    "characters": {"shape": (128, 32, 16, 2, 32, 2), "train": 100, "queries": 5, "epochs": 5},
    "language": {"shape": (128, 16, 16, 2, 1, 24, 4), "train": 24, "queries": 4, "epochs": 0},
}
SLOW = {("digits", "kronfluence", "fit"), ("digits", "kronfluence", "self_influence")}
STAND_IN = 256  # examples that kronfluence's factors are fitted on under --skip-slow
REPEAT_BELOW = 60.0  # CPU-seconds: a longer stage runs once

# The batch size that serves each library best, of those tried (README.md has the figures). kronfluence holds one
# gradient per example of a batch, so small batches serve it better in time and memory both, except in `pairwise`.
BATCH = {
    ("digits", "kronfluence", "fit"): 8,
    ("digits", "kronfluence", "pairwise"): 1000,
    ("digits", "kronfluence", "self_influence"): 8,
    ("digits", "curvlinops", "fit"): 500,
    ("digits", "inflib", "fit"): 1000,
    ("digits", "inflib", "pairwise"): 1000,
    ("digits", "inflib", "low_rank"): 1000,
    ("digits", "inflib", "self_influence"): 1000,
    ("characters", "inflib", "fit"): 10,
    ("language", "inflib", "fit"): 4,
    ("language", "inflib", "pairwise"): 2,
    ("language", "inflib", "self_influence"): 4,
}
BATCH_OF_SEQUENCES = {"kronfluence": 8, "inflib": 16}
BATCH_ON_GPU = 32


@dataclass(frozen=True)
class Job:
    """One stage of one library."""

    task: str
    library: str
    stage: str
    labels: str = "sampled"
    max_examples: int | None = None  # fit on this many only, a stand-in that is not reported
    device: str = "cpu"

    @property
    def batch_size(self) -> int:
        if self.device == "cuda":
            return BATCH_ON_GPU
        return BATCH.get((self.task, self.library, self.stage)) or BATCH_OF_SEQUENCES[self.library]

    @property
    def title(self) -> str:
        stand_in = f", first {self.max_examples} examples" if self.max_examples else ""
        return f"{self.library}, {self.stage}" + (f", {self.labels} labels{stand_in}" if self.stage == "fit" else "")


def main() -> None:
    options = _options()
    reports, figures = [], {}
    for task in [options.task] if options.task else list(SIZES[options.device]):
        report, figures[task] = compare(task, options)
        reports.append(report)
    text = "\n\n".join(reports)
    print(f"\n{text}")
    print(f"\nkept in {keep(text, figures, options)}")


def compare(task: str, options: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """One task's report, and its figures for the JSON."""
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(task, Path(name), options.python, options.threads, options.device)
        facts = bench.train(**(QUICK if options.quick else SIZES[options.device])[task])
        print(_heading(facts, options) + "\n", flush=True)
        costs: dict[Job, list[dict[str, Any]]] = {}
        for _, jobs in groupby(plan(task, options.only, options.skip_slow, options.device), key=lambda job: job.stage):
            costs |= bench.measure(list(jobs), options.repeats)
        agreement = bench.agreement(options) if options.only in (None, "agreement") else {}
    report = "\n\n".join(filter(None, [_heading(facts, options), table(costs), agreement_table(agreement)]))
    stages = [vars(job) | {"batch_size": job.batch_size, "runs": runs} for job, runs in costs.items()]
    return report, {"workload": facts, "stages": stages, "agreement": agreement}


def plan(task: str, only: str | None, skip_slow: bool, device: str = "cpu") -> list[Job]:
    """What is run, in order: a stage's library needs the stages before it that it builds on."""
    if device == "cuda":
        return [
            Job(task, library, stage, device=device) for stage in GPU_STAGES for library in ("kronfluence", "inflib")
        ]
    jobs = []
    for stage in STAGES[task]:
        wanted = only in (None, stage)
        for library in ("kronfluence", "inflib"):
            if library == "kronfluence" and (stage in OURS or (only in OURS and not wanted)):
                continue
            if (task, library, stage) in SLOW and skip_slow:
                if stage == "fit" and only in (None, "fit", "pairwise"):
                    jobs.append(Job(task, library, stage, max_examples=STAND_IN))
            elif wanted or stage in NEEDS.get(only or "", ()):
                jobs.append(Job(task, library, stage))
        if task == "digits" and stage == "fit" and wanted:
            jobs += [Job(task, "curvlinops", "fit"), Job(task, "curvlinops", "fit", "expected")]
            jobs.append(Job(task, "inflib", "fit", "expected"))
    return jobs


class Bench:
    """Runs this folder's scripts with the peers' interpreter; what they write lives in `folder`."""

    def __init__(self, task: str, folder: Path, python: Path, threads: int, device: str = "cpu"):
        self.task, self.folder, self.python, self.threads, self.device = task, folder, python, threads, device
        self.workload = folder / "workload.pt"

    def train(self, shape: tuple[int, ...], train: int, queries: int, epochs: int) -> dict[str, Any]:
        sizes = ["--train", train, "--queries", queries, "--epochs", epochs]
        return self._script("train.py", self.task, self.workload, "--shape", *shape, *sizes)

    def measure(self, jobs: list[Job], repeats: int) -> dict[Job, list[dict[str, Any]]]:
        """What each run of a stage's jobs cost; stand-ins are left out.

        Libraries take turns: a machine that others slow down for a minute then slows them all.
        """
        costs: dict[Job, list[dict[str, Any]]] = {job: [] for job in jobs}
        for _ in range(repeats):
            for job, runs in costs.items():
                if not runs or (runs[0]["cpu_s"] < REPEAT_BELOW and not job.max_examples):
                    runs.append(self._stage(job))
                    seconds = "{wall_s:8.2f} s" if job.device == "cuda" else "{cpu_s:8.2f} CPU-s"
                    print(f"{job.title:50}" + (seconds + "{peak_mib:8,.0f} MiB").format(**runs[-1]), flush=True)
        return {job: runs for job, runs in costs.items() if not job.max_examples}

    def _stage(self, job: Job) -> dict[str, Any]:
        where = job.library if job.labels == "sampled" else f"{job.library}-{job.labels}"
        arguments = [job.library, job.stage, "--workload", self.workload, "--folder", self.folder / where]
        arguments += ["--labels", job.labels, "--batch-size", job.batch_size]
        if job.max_examples:
            arguments += ["--max-examples", job.max_examples]
        return self._script("stage.py", *arguments)

    def agreement(self, options: argparse.Namespace) -> dict[str, Any]:
        print("agreement of scores", flush=True)
        size = [] if self.task == "digits" else ["--train", 60, "--queries", 4]
        found = self._script("agree.py", self.workload, "--folder", self.folder, *size)
        if options.skip_slow:  # its factors are a stand-in's
            found["run"] = {}
        return found

    def _script(self, name: str, *arguments: object) -> dict[str, Any]:
        command = [self.python, HERE / name, *arguments, "--threads", self.threads, "--device", self.device]
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        # waiting threads that spin would be counted as work
        threads = {"OMP_NUM_THREADS": str(self.threads), "OMP_WAIT_POLICY": "PASSIVE"}
        done = subprocess.run(
            list(map(str, command)),
            env=os.environ | threads | {"PYTHONPATH": path},
            stdout=subprocess.PIPE,
            text=True,
        )
        if done.returncode:
            sys.exit(
                f"{name} {' '.join(map(str, arguments))} ended with status {done.returncode}; its errors are above"
            )
        return json.loads(done.stdout.splitlines()[-1])


# --- what is said about it ---------------------------------------------------------------------------------------


def table(costs: dict[Job, list[dict[str, Any]]]) -> str:
    """One row per stage and library: medians, and each divided by inflib's for the same stage with sampled labels."""
    on_gpu = any(job.device == "cuda" for job in costs)
    seconds, unit = ("wall_s", "s") if on_gpu else ("cpu_s", "CPU-s")
    lines = [
        f"| stage | library | labels | {unit} | ratio | peak MiB | ratio | above baseline MiB | ratio |",
        "|---|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for job, runs in costs.items():
        values = figures(runs)
        base = figures(costs[Job(job.task, "inflib", job.stage, device=job.device)])
        cells = []
        for name, digits in ((seconds, 2), ("peak_mib", 0), ("above_mib", 0)):
            cells += [f"{values[name]:,.{digits}f}", f"{values[name] / base[name]:.2f}" if base[name] > 0 else "–"]
        labels = job.labels if job.stage == "fit" else ""
        lines.append(f"| {job.stage.replace('_', '-')} | {job.library} | {labels} | {' | '.join(cells)} |")
    note = (
        "s: of the clock, the GPU's queue emptied at both ends. Peak: what torch allocated there; above baseline: less "
        "the model. "
        if on_gpu
        else "CPU-s: user and system time of all threads, set-up left out; the median where a stage ran several times. "
        "Peak: the resident set's high-water mark; above baseline: less what imports, data and model held before. "
    ) + "Ratio: to inflib on the same stage (its fit with sampled labels)."
    return "\n".join(lines) + "\n\n" + _ours(costs) + note if costs else ""


def _ours(costs: dict[Job, list[dict[str, Any]]]) -> str:
    """What queries cost against an index or at low rank, in units of the other library's pass over the data."""
    found = {(job.library, job.stage): figures(runs)["cpu_s"] for job, runs in costs.items()}
    theirs, said = found.get(("kronfluence", "pairwise")), ""
    for stage in ("second_query", "low_rank"):
        if theirs is not None and ("inflib", stage) in found:
            name = stage.replace("_", " ").capitalize()
            said += f"{name}: {found['inflib', stage] / theirs:.3f} of kronfluence's pairwise, a pass over the data. "
    return said


def figures(runs: list[dict[str, Any]]) -> dict[str, float]:
    medians = {name: median(run[name] for run in runs) for name in ("cpu_s", "wall_s", "peak_mib", "baseline_mib")}
    return medians | {"above_mib": medians["peak_mib"] - medians["baseline_mib"]}


def agreement_table(found: dict[str, Any]) -> str:
    if not found:
        return ""
    part = found["slice"]
    where = f"{part['train']} training examples, {part['queries']} queries, observed labels"
    rows = [(name, where, value) for name, value in part.items() if name not in ("train", "queries")]
    rows += [
        (name.replace("_", "-"), "this run" + ", each library's own label draw" * ("exact" not in name), value)
        for name, value in found["run"].items()
    ]
    lines = ["| inflib and kronfluence | on | |", "|---|---|---:|"]
    for name, on, value in rows:
        lines.append(f"| {name} | {on} | {value:.1e} |" if "error" in name else f"| {name} | {on} | {value:.6f} |")
    return "\n".join(lines)


def keep(report: str, figures: dict[str, Any], options: argparse.Namespace) -> Path:
    """Write report and figures to a folder that git ignores; the path of the report."""
    folder = options.results
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ".gitignore").write_text("*\n")
    stem = f"{datetime.now():%Y-%m-%d-%H%M%S}" + ("-quick" if options.quick else "")
    everything = {"threads": options.threads, "machine": machine(), "tasks": figures}
    (folder / f"{stem}.json").write_text(json.dumps(everything, indent=1) + "\n")
    (folder / f"{stem}.md").write_text(report + "\n")
    return folder / f"{stem}.md"


def machine() -> str:
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"


def _heading(facts: dict[str, Any], options: argparse.Namespace) -> str:
    shape = "-".join(map(str, facts["shape"]))
    model = f"{shape}, ReLU" if facts["task"] == "digits" else f"transformer {shape}"
    threads = "1 thread" if options.threads == 1 else f"{options.threads} threads"
    threads += f", {facts['gpu']}" if options.device == "cuda" else ""
    return (
        f"{facts['source']}: {facts['train']:,} training examples, {facts['queries']:,} queries; {model}, "
        f"float32, training loss {facts['train_loss']:.3f}; torch {facts['torch']}, {threads}, "
        f"{machine()}"
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small slice and network: does it all still run?")
    parser.add_argument("--task", choices=list(STAGES), help="one of the workloads (default: all)")
    parser.add_argument("--only", choices=[*NEEDS, "fit", "agreement"], help="one stage, with those that it needs")
    parser.add_argument("--skip-slow", action="store_true", help="without kronfluence's slowest stages of the digits")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3, help=f"of stages under {REPEAT_BELOW:g} CPU-s (default 3)")
    parser.add_argument("--device", choices=list(SIZES), default="cpu")
    peers = ROOT / ".venv-peers" / "bin" / "python"
    parser.add_argument("--python", type=Path, default=peers, help="interpreter that has the libraries")
    parser.add_argument("--results", type=Path, default=HERE / "results", help="folder for the table and the JSON")
    options = parser.parse_args()
    if options.device == "cuda" and (options.task == "digits" or options.only):
        sys.exit("--device cuda measures the characters, every stage; leave --task digits and --only out")
    if not options.python.is_file():
        sys.exit(f"{options.python} is missing; `make peers` builds the environment of the libraries compared with")
    return options


if __name__ == "__main__":
    main()
