"""Run every check, whatever fails on the way, and say at the end what passed.

    python .ci/check.py [STEP ...]

Output streams as the steps run. The last line, alone, is 'N passed, N failed', counting steps; the exit
status is 1 when a step failed.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "notebooks"))
from build import NBVAL, kernel_environment, warm_up  # noqa: E402

PYTHON = sys.executable
PYTEST = [PYTHON, "-m", "pytest", "--color=auto", "-p", "no:cacheprovider"]
BOOKS = [str(path.relative_to(ROOT)) for path in sorted((ROOT / "notebooks").glob("*.ipynb"), reverse=True)]
STEP_TIMEOUT = 40 * 60  # seconds; a step that hangs must not hide the others' results
THREADS = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}


@dataclass(frozen=True)
class Step:
    name: str
    command: tuple[str, ...]
    kernels: bool = False  # runs notebooks, so in the environment their outputs were saved in


@dataclass(frozen=True)
class Outcome:
    step: Step
    passed: bool
    seconds: float
    tests: str  # "12 passed, 1 skipped" for a step that runs tests


STEPS = (
    Step("format", (PYTHON, "-m", "ruff", "format", "--check", ".")),
    Step("lint", (PYTHON, "-m", "ruff", "check", ".")),
    Step("types", (PYTHON, "-m", "mypy")),
    Step("imports", (str(Path(PYTHON).with_name("lint-imports")),)),
    Step("unit", (*PYTEST, "tests", "--ignore=tests/notebooks", "--ignore=tests/browser", "-n2")),
    # the last, which are the longest, first: else one core ends with one of them alone
    Step("nbval", (*PYTEST, *NBVAL, "-n2", "--dist=loadfile", "--no-loadscope-reorder", *BOOKS), kernels=True),
    Step("notebooks", (*PYTEST, "tests/notebooks", "-n2"), kernels=True),
    # each worker has a JupyterLab and a browser of its own
    Step("browser", (*PYTEST, "tests/browser", "-n2", "--dist=loadfile")),
)


def run(step: Step) -> Outcome:
    """Run one step in a process group of its own, so that nothing it started outlives it."""
    print(f"\n=== {step.name} {'=' * (100 - len(step.name))}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        asks_report = [f"--junitxml={report}"] if "pytest" in step.command else []
        environment = {**os.environ, **THREADS, "HYPOTHESIS_PROFILE": "ci"}
        if step.kernels:
            environment = {**kernel_environment(Path(folder)), **_required()}
        start = time.perf_counter()
        process = subprocess.Popen([*step.command, *asks_report], cwd=ROOT, env=environment, start_new_session=True)
        try:
            status = process.wait(STEP_TIMEOUT)
        except subprocess.TimeoutExpired:
            print(f"{step.name}: stopped after {STEP_TIMEOUT // 60} minutes", flush=True)
            status = 1
        finally:
            _stop(process)
        return Outcome(step, status == 0, time.perf_counter() - start, _counts(report))


def _required() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if key.startswith("INFLIB_REQUIRE_")}


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End what is left of a step's process group; SIGINT first lets pytest tear its fixtures down."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(20)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue


def _counts(report: Path) -> str:
    """What a pytest report counted, for the summary."""
    if not report.is_file():
        return ""
    totals = dict.fromkeys(("tests", "failures", "errors", "skipped"), 0)
    for suite in ET.parse(report).getroot().iter("testsuite"):
        for key in totals:
            totals[key] += int(suite.get(key, 0))
    bad = totals["failures"] + totals["errors"]
    named = {"passed": totals["tests"] - bad - totals["skipped"], "failed": bad, "skipped": totals["skipped"]}
    return ", ".join(f"{count} {name}" for name, count in named.items() if count)


def summarise(outcomes: Sequence[Outcome]) -> str:
    lines = ["", f"{'step':12} {'result':8} {'seconds':>8}   tests"]
    lines += [
        f"{o.step.name:12} {'passed' if o.passed else 'FAILED':8} {o.seconds:8.1f}   {o.tests}".rstrip()
        for o in outcomes
    ]
    passed = sum(o.passed for o in outcomes)
    lines += [f"{'':21} {sum(o.seconds for o in outcomes):8.1f}", ""]
    return "\n".join([*lines, f"{passed} passed, {len(outcomes) - passed} failed"])


def main(arguments: Sequence[str] | None = None) -> int:
    names = [step.name for step in STEPS]
    parser = argparse.ArgumentParser(description="Run the project's checks.")
    parser.add_argument("steps", nargs="*", metavar="STEP", help=f"some of: {' '.join(names)} (default: all)")
    wanted = parser.parse_args(arguments).steps or names
    if unknown := [name for name in wanted if name not in names]:
        parser.error(f"no step named {', '.join(unknown)}; there are {', '.join(names)}")
    if any(step.kernels for step in STEPS if step.name in wanted):
        warm_up()
    outcomes = [run(step) for step in STEPS if step.name in wanted]
    print(summarise(outcomes), flush=True)
    return not all(o.passed for o in outcomes)


if __name__ == "__main__":
    sys.exit(main())
