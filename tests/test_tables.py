"""The READMEs' tables are made from the figures that were kept, and a figure that differs is noticed."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import tables

NUMBER = re.compile(r"(?<=\| )[\d,]*\.?\d+(?= )")


@pytest.mark.parametrize("path", tables.TEXTS, ids=lambda path: path.parent.name)
def test_the_tables_are_those_of_the_results(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert tables.filled(text) == text, "run: python benchmarks/tables.py"
    found = [text[m.start(1) : m.end(3)] for m in tables.MARKED.finditer(text)]
    assert found
    for table in found:
        digit = NUMBER.search(table)
        assert digit is not None
        changed = text.replace(table, table[: digit.start()] + "9" + table[digit.start() :])
        assert changed != text and tables.filled(changed) == text


def test_every_table_stands_somewhere_once() -> None:
    marks = [m[2] for path in tables.TEXTS for m in tables.MARKED.finditer(path.read_text(encoding="utf-8"))]
    assert sorted(marks) == sorted(tables.TABLES)


def test_a_run_of_the_benchmark_takes_the_place_of_the_figures_kept(tmp_path: Path) -> None:
    path = tmp_path / "peers.json"
    path.write_text(json.dumps({"digits": {"stages": []}, "characters": {"stages": ["as it was"]}}))
    runs = [{"cpu_s": s, "wall_s": 9.0, "peak_mib": 300.0 + s, "baseline_mib": 200.0} for s in (5.0, 1.0, 2.0)]
    about = {"task": "digits", "max_examples": None, "device": "cpu", "batch_size": 8}
    stages = [
        about | {"library": "inflib", "stage": "fit", "labels": "expected", "runs": runs},
        about | {"library": "kronfluence", "stage": "pairwise", "labels": "sampled", "runs": runs[:1]},
    ]
    figures = {"workload": {"torch": "2.13.0"}, "stages": stages, "agreement": {}}
    tables.take({"threads": 1, "machine": "Linux", "tasks": {"digits": figures}}, path)
    kept = json.loads(path.read_text())
    assert kept["characters"] == {"stages": ["as it was"]}
    assert kept["digits"]["stages"] == [
        {"stage": "fit", "library": "inflib", "labels": "expected", "cpu_s": 2.0, "peak_mib": 302, "above_mib": 102},
        {
            "stage": "pairwise",
            "library": "kronfluence",
            "labels": None,
            "cpu_s": 5.0,
            "peak_mib": 305,
            "above_mib": 105,
        },
    ]
    assert (kept["digits"]["torch"], kept["digits"]["threads"]) == ("2.13.0", 1)
