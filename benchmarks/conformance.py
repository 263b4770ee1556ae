"""Who passes what of ``inflib.conformance``: the suite put to inflib and to the other libraries that are installed.

    python benchmarks/conformance.py                                  # all; writes results/conformance.md and .json
    python benchmarks/conformance.py --library kronfluence --check scores_are_symmetric

A library runs in the interpreter that has it: ``--python`` names that of the peers (``make peers``), and an adapter
whose library is not there is left out, which is said. The table is made from what every one of them answered.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from inflib.conformance import CHECKS, FAILED, RAISED, Library, Outcome, as_data, markdown, run

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
ADAPTERS = {  # library: (module, class, what it is asked for)
    "inflib": ("inflib.conformance.ours", "Inflib", "ekfac and influence, as they are"),
}
LINE = "python benchmarks/conformance.py --library {library} --check {{check}}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", choices=ADAPTERS, help="one alone, in this interpreter; prints its outcomes")
    parser.add_argument("--check", choices=CHECKS, action="append", help="these checks alone")
    parser.add_argument("--json", action="store_true", help="with --library: outcomes as JSON")
    parser.add_argument("--python", type=Path, default=ROOT / ".venv-peers" / "bin" / "python")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.library:
        return one(options.library, options.check, options.json)
    found, about = everyone(options.python)
    lines = {name: LINE.format(library=name) for name in found}
    table = f"{heading(about)}\n\n{markdown(found, lines)}\n"
    options.results.mkdir(parents=True, exist_ok=True)
    (options.results / "conformance.md").write_text(table, encoding="utf-8")
    data = json.dumps(as_data(found, about), indent=1, ensure_ascii=False)
    (options.results / "conformance.json").write_text(data + "\n", encoding="utf-8")
    print(table)
    return 0


def heading(about: dict[str, dict[str, Any]]) -> str:
    """What was asked, of which versions."""
    said = [f"- **{name}** {facts['version']}: {facts['settings']}" for name, facts in about.items()]
    return "\n".join(["# Who passes what", "", *said])


def everyone(peers: Path) -> tuple[dict[str, list[Outcome]], dict[str, dict[str, Any]]]:
    """Outcomes and facts of every library that can be run, each in a process of its own."""
    found, about = {}, {}
    for name in ADAPTERS:
        python = sys.executable if name == "inflib" else str(peers)
        command = [python, __file__, "--library", name, "--json"]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        try:
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
        except OSError as problem:
            print(f"{name}: left out, {problem}", file=sys.stderr)
            continue
        if done.returncode not in (0, 1) or not done.stdout.strip():
            print(f"{name}: left out, {done.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
            continue
        answer = json.loads(done.stdout.strip().splitlines()[-1])
        found[name] = [Outcome(**outcome) for outcome in answer.pop("outcomes")]
        about[name] = answer
    return found, about


def one(name: str, checks: list[str] | None, as_json: bool) -> int:
    """Run a library here; 1 where it fails something, 0 otherwise."""
    module, kind, settings = ADAPTERS[name]
    library: Library = getattr(importlib.import_module(module), kind)()
    outcomes = run(library, checks)
    if as_json:
        facts = {"version": library.version, "settings": settings, "torch": torch.__version__}
        print(json.dumps(as_data({name: outcomes}, {name: facts})[name]))
    else:
        for o in outcomes:
            error = "" if o.error is None else f"error {o.error:.2g}, bound {o.bound:.0e}"
            print(f"{o.check:40} {o.status:12} {error}{o.why}")
    return int(any(o.status in (FAILED, RAISED) for o in outcomes))


if __name__ == "__main__":
    sys.exit(main())
