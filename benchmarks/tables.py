"""The READMEs' tables, made from the figures in `benchmarks/results/`, so that neither says what was not measured.

    python benchmarks/tables.py                              # writes them anew; a test fails where they differ
    python benchmarks/tables.py --from benchmarks/results/2026-11-28-120000.json    # takes what `make bench` measured

A table stands between `<!-- table NAME -->` and `<!-- end -->`. `peers.json` holds the medians of the last whole run of
`make bench` on each workload; the other files are what the benchmarks of their names wrote.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
TEXTS = (HERE.parent / "README.md", HERE / "README.md")
MARKED = re.compile(r"(<!-- table ([^\n]+) -->\n\n)(?:(?!<!--).)*?(\n\n<!-- end -->)", re.DOTALL)
LIBRARIES = {"inflib": "inflib", "kronfluence": "kronfluence 1.0.1", "curvlinops": "curvlinops 3.0.1"}
STAGES = {
    "digits": {
        ("fit", "sampled"): "fit EK-FAC",
        ("fit", "expected"): "fit EK-FAC, expected labels",
        ("pairwise", None): "scores, 100 × 10,000",
        ("low_rank", None): "the same at low rank, no query's correlation below .998",
        ("self_influence", None): "self-influence, 10,000",
    },
    "characters": {
        ("fit", "sampled"): "fit EK-FAC",
        ("pairwise", None): "scores, 20 × 2,000",
        ("self_influence", None): "self-influence, 2,000",
        ("second_query", None): "20 more queries, from a `TrainIndex`",
    },
}
NAMES = {"low_rank": "pairwise, low rank", "self_influence": "self-influence", "second_query": "second query, all 20"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", dest="run", type=Path, help="a JSON of `make bench`, whose medians are to be shown")
    options = parser.parse_args()
    if options.run:
        take(json.loads(options.run.read_text()), RESULTS / "peers.json")
    for path in TEXTS:
        path.write_text(filled(path.read_text(encoding="utf-8")), encoding="utf-8")


def filled(text: str) -> str:
    """A text with every marked table made anew."""
    return MARKED.sub(lambda found: found[1] + made(found[2]) + found[3], text)


def made(name: str) -> str:
    """One table by the name in its mark; KeyError for one that nothing makes."""
    return TABLES[name]()


# --- beside other libraries ----------------------------------------------------------------------------------------


def take(run: dict[str, Any], path: Path) -> None:
    """Put the medians of a run of `make bench` in the place of those that are kept, workload by workload."""
    kept = json.loads(path.read_text()) if path.exists() else {}
    for task, figures in run["tasks"].items():
        facts = figures["workload"]
        name = f"{task} on a GPU" if facts.get("gpu") else task
        about = {"machine": facts.get("gpu") or run["machine"], "torch": facts["torch"], "threads": run["threads"]}
        kept[name] = about | {"stages": [_medians(stage) for stage in figures["stages"]]}
    path.write_text(json.dumps(kept, indent=1) + "\n")


def _medians(stage: dict[str, Any]) -> dict[str, Any]:
    runs = stage["runs"]
    found = {"stage": stage["stage"], "library": stage["library"]}
    found["labels"] = stage["labels"] if stage["stage"] == "fit" else None
    time = "wall_s" if stage["device"] == "cuda" else "cpu_s"
    found[time] = round(median(run[time] for run in runs), 2)
    found["peak_mib"] = round(median(run["peak_mib"] for run in runs))
    if stage["device"] != "cuda":
        found["above_mib"] = round(median(run["peak_mib"] - run["baseline_mib"] for run in runs))
    return found


def short(task: str) -> str:
    """A workload in the README: a row a stage, a column a library."""
    stages = peers(task)["stages"]
    libraries = [name for name in LIBRARIES if any(stage["library"] == name for stage in stages)]
    rows = []
    for (stage, labels), said in STAGES[task].items():
        if any((s["stage"], s["labels"]) == (stage, labels) for s in stages):
            rows.append([said, *(_cost(stages, library, stage, labels) for library in libraries)])
    return table(["stage", *(LIBRARIES[name] for name in libraries)], rows, "l" + "r" * len(libraries))


def _cost(stages: list[dict[str, Any]], library: str, stage: str, labels: str | None) -> str:
    about = (library, stage, labels)
    found = [s for s in stages if (s["library"], s["stage"], s["labels"]) == about]
    if not found:
        return "a pass as before" if stage == "second_query" else "–"
    said = f"{found[0]['cpu_s']:.{1 if found[0]['cpu_s'] < 100 else 0}f} s"
    return said if stage == "second_query" else f"{said}, {found[0]['above_mib']:,} MiB"


def long(task: str) -> str:
    """A workload in this folder's README: a row a stage and library, with ratios to inflib's."""
    stages = peers(task)["stages"]
    time, of_labels = ("wall_s" if "wall_s" in stages[0] else "cpu_s"), any(s["labels"] == "expected" for s in stages)
    own = {s["stage"]: s for s in reversed(stages) if s["library"] == "inflib"}
    beside = {s["stage"] for s in stages if s["library"] != "inflib"}
    sizes = {time: ".2f", "peak_mib": ",.0f"} | ({"above_mib": ",.0f"} if time == "cpu_s" else {})
    rows = []
    for s in stages:
        row = [NAMES.get(s["stage"], s["stage"]), s["library"], *([s["labels"] or ""] if of_labels else [])]
        for key, how in sizes.items():
            row.append(f"{s[key]:{how}}")
            if key != "peak_mib" or time == "cpu_s":
                row.append(f"{s[key] / own[s['stage']][key]:.2f}" if s["stage"] in beside else "")
        rows.append(row)
    head = ["stage", "library", *(["labels"] if of_labels else [])]
    figures = ["CPU-s", "ratio", "peak MiB", "ratio", "above baseline MiB", "ratio"]
    figures = figures if time == "cpu_s" else ["s", "ratio", "peak MiB"]
    return table([*head, *figures], rows, "l" * len(head) + "r" * len(figures))


def peers(task: str) -> dict[str, Any]:
    return json.loads((RESULTS / "peers.json").read_text())[task]


# --- a store -------------------------------------------------------------------------------------------------------


def store() -> str:
    """What each kept form says of the exact scores."""
    stages = json.loads((RESULTS / "store.json").read_text())["stages"]
    kept: list[tuple[str, dict[str, Any]]] = []
    for name, found in stages.items():
        if name.startswith("store: "):
            kept.append((name.removeprefix("store: "), found))
            if other := found.get("outside_sample"):
                said = f"the same, the {other['examples']} sequences that no component was fitted on"
                kept.append((said, {"bytes": found["bytes"]} | other))
    rows = [[name, *_fidelity(found)] for name, found in [*kept, *stages["others"].items()]]
    head = ["kept", "bytes a layer and sequence", "Pearson with exact scores", "NDCG@20"]
    return table([*head, "exact ten in first 50", "in first 100"], rows, "l" + "r" * 5)


def _fidelity(found: dict[str, Any]) -> list[str]:
    shares = [f"{found[key]:.3f}".removeprefix("0") for key in ("pearson", "ndcg_20", "recall_50", "recall_100")]
    return [f"{found['bytes']:,.0f}", *shares]


def audit() -> str:
    """How often an audited bound is broken, and of how many examples it and the certificate leave open."""
    rows = json.loads((RESULTS / "audit.json").read_text())["rows"]
    shown = []
    for row in rows:
        shares = (f"{row[key]:.4f}".removeprefix("0") for key in ("rate", "broken"))
        sizes = (f"{row['open']:.1f}", f"{row['open_by_certificate']:,.0f}", f"{row['missed']:.1f}")
        shown.append([row["store"], f"{row['audit']}", *shares, *sizes])
    return table(
        ["store", "audited", "rate", "broken by", "open", "open by the certificate", "missed"], shown, "lrrrrrr"
    )


def speed() -> str:
    """Queries against made-up shards: the clock's seconds on two threads, and CPU-seconds of both."""
    rows = json.loads((RESULTS / "store_speed.json").read_text())["rows"]
    shown = []
    for row in rows:
        seconds = (f"{row[what][key]:.2f}" for what in ("1", "10", "read") for key in ("wall_s", "cpu_s"))
        shown.append([f"{row['sequences']:,}", f"{row['bytes'] / 1e9:.2f}", *seconds])
    kinds = [f"{what}{unit}" for what in ("1 query", "10 queries", "every byte read") for unit in (", s", ", CPU-s")]
    return table(["sequences", "GB", *kinds], shown, "r" * 8)


def question() -> str:
    """What a typed question costs through a store of a real language model's gradients, and what comes before it."""
    found = json.loads((RESULTS / "villagers.json").read_text())
    named = {
        "fit": "EK-FAC, on every fourth batch",
        "build": f"the store, {found['bytes'] / 1e6:,.0f} MB",
        "question_store": "a question, by the store alone",
        "question_exactly": "a question, the store's first 50 computed exactly",
        "exact": f"24 questions against {found['compared']:,} sequences, exactly",
    }
    shown = [[what, *(f"{found[key][unit]:.1f}" for unit in ("wall_s", "cpu_s"))] for key, what in named.items()]
    return table(["", "s by the clock", "CPU-s"], shown, "lrr")


def answers() -> str:
    """How many of the four sentences that tell a fact are among the first, in three orders."""
    found = json.loads((RESULTS / "villagers.json").read_text())
    named = {
        "exact": f"exact scores, of {found['compared']:,} sequences",
        "store": "the store, of the same",
        "searched": "its first 50 of these by exact scores",
        "all": f"the store, of all {found['sequences']:,}",
    }
    shown = [
        [what, *(f"{found[f'recall@{k}_{key}']:.2f}".removeprefix("0") for k in (4, 10))] for key, what in named.items()
    ]
    return table(["order", "recall@4", "recall@10"], shown, "lrr")


def low_rank() -> str:
    """Queries of sequences at low rank beside exact ones: CPU-seconds of meeting the examples, correlations."""
    rows = json.loads((RESULTS / "low_rank.json").read_text())["rows"]
    shown = []
    for row in rows:
        kept = (row.get(f"{metric}_{what}") for metric in ("weighted", "plain") for what in ("mean", "least"))
        seconds = (f"{row[count]:.2f}" for count in ("1", "10", "40"))
        name = "exact" if row.get("exact") else f"{row['rank']}"
        shown.append([name, *("" if x is None else _nines(x) for x in kept), *seconds])
    kinds = ["weighted, mean", "least", "plain, mean", "least"]
    return table(["products a query", *kinds, "1 query", "10 queries", "40 queries"], shown, "r" * 8)


# --- precision -----------------------------------------------------------------------------------------------------


def precision() -> str:
    """Scores in fewer digits beside float64's."""
    rows = json.loads((RESULTS / "bfloat16.json").read_text())["rows"]
    shown = [
        [row["scores"], row["model"], *(_nines(row[key]) for key in ("pearson", "spearman")), f"{row['error']:.1e}"]
        for row in rows
    ]
    return table(["scores", "model in", "Pearson", "Spearman", "relative error"], shown, "llrrr")


def _nines(correlation: float) -> str:
    said = f"{correlation:.4f}" if correlation < 0.99995 else f"{correlation:.6f}"
    return said.removeprefix("0")


# --- growth --------------------------------------------------------------------------------------------------------


def growth() -> str:
    """From the smallest to the largest of each size: how many times the seconds of each stage, and its operations."""
    rows = json.loads((RESULTS / "growth.json").read_text())["rows"]
    stages = list(rows[0]["stages"])
    found = []
    for doubled in dict.fromkeys(row["doubled"] for row in rows):
        first, *_, last = (row for row in rows if row["doubled"] == doubled)
        cells = [_times(first["stages"][stage], last["stages"][stage]) for stage in stages]
        found.append([f"{doubled}, {first['to']} to {last['to']}", *cells])
    return table(["doubled three times", *stages], found, "l" + "r" * len(stages))


def _times(first: dict[str, Any], last: dict[str, Any]) -> str:
    return " of ".join(f"{last[what] / first[what]:.1f}" for what in ("cpu_s", "operations"))


def table(head: Iterable[str], rows: Iterable[Iterable[str]], sides: str) -> str:
    """Markdown; sides: l or r for each column."""
    rule = "|".join({"l": "---", "r": "---:"}[side] for side in sides)
    lines = [f"| {' | '.join(cells)} |" for cells in (head, *rows)]
    return "\n".join([lines[0], f"|{rule}|", *lines[1:]])


TABLES: dict[str, Callable[[], str]] = {
    "digits": lambda: short("digits"),
    "characters": lambda: short("characters"),
    "digits, every figure": lambda: long("digits"),
    "characters, every figure": lambda: long("characters"),
    "characters on a GPU": lambda: long("characters on a GPU"),
    "a store": store,
    "growth": growth,
    "precision": precision,
    "a store's speed": speed,
    "a typed question": question,
    "what it finds": answers,
    "queries at low rank": low_rank,
    "an audit": audit,
}


if __name__ == "__main__":
    main()
