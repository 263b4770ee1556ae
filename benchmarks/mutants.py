"""Are the tests awake? Change one point of the core at a time and see whether a test notices.

    python benchmarks/mutants.py                        # 203 mutants of inflib/*.py and inflib/objectives/*.py
    python benchmarks/mutants.py --count 40 --file kfac.py
    python benchmarks/mutants.py --again                # what survived, once more: after new tests
    python benchmarks/mutants.py --report               # what survived so far

A mutant is run against the files of tests named after its own (`ALSO` says which others), one case of every test first,
then a second one of every test, and so on, up to the first failure or as long as the budget of CPU-seconds lasts. The
process that runs them is forked from one that has torch loaded. A failing test kills a mutant, and so does a test that
does not come to an end. Results go to build/mutants/results.jsonl, so that a run that was stopped goes on where it was;
delete the file after a change of the core. `--again` also asks the tests in `GENERAL`.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mutations import Mutant, mutants_of, statements

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "mutants"
RESULTS = BUILD / "results.jsonl"
LIMIT = 30  # CPU-seconds beyond the budget, within one test: it does not come to an end
WALL = 900  # of the clock: a mutant that waits for ever
EXAMPLES = 4  # of each property, the same ones every time

# tests that are not named after their file: test_<name>.py and these are asked first
ALSO = {
    "comparison": ["test_hooks"],
    "contractions": ["test_chunks", "test_scoring"],
    "dense": ["test_curvature", "test_exact"],
    "jacobians": ["test_exact"],
    "kronecker": ["test_curvature", "test_ekfac"],
    "randomness": ["test_batches", "test_ekfac"],
    "rows": ["test_layers", "test_hooks"],
    "shifts": ["test_sequences", "test_language_models"],
    "positions": ["test_hooks", "test_language_models"],
    "selection": ["test_layers", "test_coverage"],
    **{name: ["test_storage"] for name in ("wholeness", "curvatures", "files", "saving")},
    **{name: ["test_index"] for name in ("sides", "products")},
    **{name: ["test_store_bits", "test_store"] for name in ("axes", "bits", "packed", "certificate")},
    **{name: ["test_store", "test_store_files"] for name in ("records", "search")},
    **{name: ["test_store", "test_store_files"] for name in ("store", "basis", "examples", "fitting", "survey")},
    **{name: ["test_store_files"] for name in ("building", "folder", "manifest")},
    "exact": ["test_exact", "test_index"],  # the core's, and the index's
    "hooks": ["test_layers"],
    "regression": ["test_objectives", "test_losses"],
    "softmax": ["test_objectives", "test_losses"],
    "implicit": ["test_implicit", "test_curvature"],
    "proof": ["test_own_losses", "test_objectives"],  # the objectives'; the core's has a file of that name
    **{name: ["test_objectives"] for name in ("checks", "classification", "objective")},
    **{name: ["test_own_losses", "test_objectives"] for name in ("derivatives", "labels", "weights")},
    **{name: ["test_losses", "test_objectives"] for name in ("pixels", "sampling")},
}
GENERAL = ["test_chunks", "test_scoring", "test_hooks", "test_ekfac", "test_errors"]


# --- which mutants -----------------------------------------------------------------------------------------------


def chosen(count: int, only: str | None) -> list[Mutant]:
    """``count`` mutants or a few more, of each file its share of all statements; the same ones every time."""
    folder = ROOT / "inflib"
    sources = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.py") if _is_core(p)}
    sources = {name: source for name, source in sources.items() if only in (None, name)}
    total = sum(map(statements, sources.values()))
    picked = []
    for name, source in sources.items():
        found = sorted(mutants_of(source, name), key=lambda mutant: mutant.key)
        picked += list({m.first: m for m in reversed(found)}.values())[: -(-count * statements(source) // total)]
    return sorted(picked, key=lambda mutant: mutant.key)


def _is_core(path: Path) -> bool:
    return path.parent.name in ("inflib", "objectives") and path.name != "__init__.py"


# --- which tests -------------------------------------------------------------------------------------------------


def tests_of(mutant: Mutant, general: bool) -> list[str]:
    """The files of tests for one mutant, those named after its file first."""
    stem = Path(mutant.file).stem
    names = [f"test_{stem}", *ALSO.get(stem, []), *(GENERAL if general else [])]
    if stem == "proof" and "/" in mutant.file:
        names.remove("test_proof")
    return [f"tests/{name}.py" for name in dict.fromkeys(names) if (ROOT / f"tests/{name}.py").exists()]


class Plan:
    """A pytest plugin: one case of every test first, few examples of a property, no test begun beyond the budget."""

    def __init__(self, budget: float, note: Path) -> None:
        self.end, self.note = time.process_time() + budget, note

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        from hypothesis import Phase, settings

        seen: Counter[str] = Counter()
        turn = {item: seen.update([name := item.nodeid.split("[")[0]]) or seen[name] for item in items}
        items.sort(key=lambda item: turn[item])
        for item in items:
            own = getattr(getattr(item, "obj", None), "_hypothesis_internal_use_settings", None)
            if own is not None:
                few = settings(
                    own, max_examples=min(own.max_examples, EXAMPLES), phases=[Phase.explicit, Phase.generate]
                )
                item.obj._hypothesis_internal_use_settings = few

    def pytest_runtest_protocol(self) -> None:
        import pytest

        if time.process_time() > self.end:
            raise pytest.exit.Exception("the budget is spent", 0)

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            self.note.write_text(report.nodeid)


# --- running -----------------------------------------------------------------------------------------------------


def in_a_process_of_its_own(copy: Path, tests: list[str], budget: float) -> int:
    """Fork; the child runs pytest on the copy, up to the first failure."""
    child = os.fork()
    if child:
        return child
    os.setsid()
    os.chdir(copy)
    os.environ["PYTHONPATH"] = str(copy)
    sys.path[:] = [str(copy), *(p for p in sys.path if Path(p).resolve() not in (ROOT, ROOT / "benchmarks"))]
    output = os.open(copy / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    status = 1
    try:
        status = _pytest(copy, tests, budget)
    finally:
        os._exit(status)


def _pytest(copy: Path, tests: list[str], budget: float) -> int:
    import pytest

    resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time() + budget) + LIMIT, resource.RLIM_INFINITY))
    plain = ["-x", "-q", "-p", "no:cacheprovider", "--no-header", "--assert=plain"]
    return int(pytest.main([*plain, *tests], plugins=[Plan(budget, copy / "failed.txt")]))


def start(mutant: Mutant, copy: Path, general: bool, budget: float) -> tuple[int, float]:
    """Write the mutant into the copy and start its tests: (process, deadline)."""
    source = (ROOT / "inflib" / mutant.file).read_bytes()
    (copy / "inflib" / mutant.file).write_bytes(source[: mutant.start] + mutant.new.encode() + source[mutant.end :])
    (copy / "failed.txt").unlink(missing_ok=True)
    return in_a_process_of_its_own(copy, tests_of(mutant, general), budget), time.monotonic() + WALL


def outcome(child: int, deadline: float) -> str | None:
    """ "survived", "killed", "timed out", or None while the tests run."""
    done, status = os.waitpid(child, os.WNOHANG)
    if not done and time.monotonic() < deadline:
        return None
    if not done:
        os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return "timed out"
    if os.WIFSIGNALED(status):
        return "timed out" if os.WTERMSIG(status) == signal.SIGXCPU else "killed"
    return "survived" if status == 0 else "killed"


def finished(mutant: Mutant, copy: Path, result: str) -> None:
    """Note a result, and put the file back."""
    source = (ROOT / "inflib" / mutant.file).read_bytes()
    (copy / "inflib" / mutant.file).write_bytes(source)
    by = (copy / "failed.txt").read_text() if (copy / "failed.txt").exists() else ""
    old = source[mutant.start : mutant.end].decode()
    row = mutant._asdict() | {"key": mutant.key, "old": old, "outcome": result, "by": by}
    with RESULTS.open("a") as results:
        results.write(json.dumps(row) + "\n")
    print(f"{result:9}  {mutant.file}:{mutant.line} {mutant.kind}  {by}", flush=True)


def run(mutants: Iterator[Mutant], copies: list[Path], general: bool, budget: float) -> None:
    """Each mutant once, as many at a time as there are copies."""
    busy: dict[Path, tuple[Mutant, int, float]] = {}
    while True:
        for copy in copies:
            if copy not in busy and (mutant := next(mutants, None)) is not None:
                busy[copy] = (mutant, *start(mutant, copy, general, budget))
        if not busy:
            return
        for copy, (mutant, child, deadline) in list(busy.items()):
            if (result := outcome(child, deadline)) is not None:
                finished(mutant, copy, result)
                del busy[copy]
        time.sleep(0.05)


def copied(k: int) -> Path:
    """The k-th copy of what the tests need."""
    copy = BUILD / f"copy{k}"
    shutil.rmtree(copy, ignore_errors=True)
    for part in ("inflib", "tests", "benchmarks", "notebooks"):
        shutil.copytree(ROOT / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
    for part in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / part, copy / part)
    (copy / "data").symlink_to(ROOT / "data")
    return copy


def loaded() -> None:
    """Import once what every child needs, the core itself excepted."""
    import hypothesis  # noqa: F401
    import pytest  # noqa: F401
    import safetensors.torch  # noqa: F401
    import torch
    import torch.utils.data
    import transformers  # noqa: F401

    torch.set_num_threads(1)
    sys.dont_write_bytecode = True
    os.environ["HYPOTHESIS_PROFILE"] = "ci"


# --- results -----------------------------------------------------------------------------------------------------


def results() -> dict[str, dict[str, Any]]:
    """{key: the last result} so far."""
    lines = RESULTS.read_text().splitlines() if RESULTS.exists() else []
    return {row["key"]: row for row in map(json.loads, lines)}


def report() -> None:
    """Print the counts, by file, and every survivor with its change."""
    rows = results().values()
    counts = Counter(row["outcome"] for row in rows)
    print(f"{len(rows)} mutants: {dict(counts)}; noticed {1 - counts['survived'] / max(1, len(rows)):.1%}")
    for file in sorted({row["file"] for row in rows}):
        here = Counter(row["outcome"] for row in rows if row["file"] == file)
        print(f"  {file:32} {sum(here.values()):3} run, {here['survived']} survived")
    for row in rows:
        if row["outcome"] == "survived":
            print(f"  {row['key']} {row['file']}:{row['line']} {row['kind']}: {row['old']}  →  {row['new']}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=180)
    parser.add_argument("--file", help="one file only, as kfac.py or objectives/pixels.py")
    parser.add_argument("--jobs", type=int, default=2, help="mutants at a time")
    parser.add_argument("--budget", type=float, default=5.0, help="CPU-seconds of tests for one mutant")
    parser.add_argument("--again", action="store_true", help="what survived so far, once more")
    parser.add_argument("--report", action="store_true", help="run nothing")
    options = parser.parse_args()
    if not options.report:
        loaded()
        copies = [copied(k) for k in range(options.jobs)]
        known = results()
        done = {key for key, row in known.items() if not options.again or row["outcome"] != "survived"}
        asked = [m for m in chosen(options.count, options.file) if m.key not in done]
        asked = [m for m in asked if not options.again or m.key in known]
        run(iter(asked), copies, options.again, options.budget)
    report()


if __name__ == "__main__":
    main()
