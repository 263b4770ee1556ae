"""Who passes what of ``inflib.conformance``: the suite put to inflib and to the other libraries that are installed.

    python benchmarks/conformance.py                                  # all; writes results/conformance.md and .json
    python benchmarks/conformance.py --library kronfluence --check scores_are_symmetric

A library runs in the interpreter that has it: the course's, or that of the peers (``make peers``), which ``--python``
names. bergson and dattri ask for packages that nothing here uses: without those they lie in a folder beside both
(``make conformance``). One that is not there is said so, and keeps what the results file has of it.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from inflib.conformance import CHECKS, FAILED, RAISED, Library, Outcome, as_data, markdown, run

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
BESIDE = ROOT / "build" / "conformance"  # what requirements-conformance.txt holds


@dataclass(frozen=True)
class Adapter:
    """Where a library's adapter is, what it asks it for, and the environment that it runs in."""

    module: str
    kind: str
    settings: str
    environment: str = ".venv-peers"

    def again(self, library: str) -> str:
        """The line, from the repository's root, that runs one check on it; ``{check}`` is left open."""
        line = f"{self.environment}/bin/python benchmarks/conformance.py --library {library} --check {{check}}"
        return f"PYTHONPATH=.:{BESIDE.relative_to(ROOT)} {line}"


ADAPTERS = {
    "inflib": Adapter("inflib.conformance.ours", "Inflib", "ekfac and influence, as they are", ".venv"),
    "kronfluence": Adapter(
        "conforming_kronfluence",
        "Kronfluence",
        "strategy ekfac, use_empirical_fisher for observed labels, every dtype float64",
    ),
    "curvlinops": Adapter(
        "conforming_curvlinops",
        "Curvlinops",
        "EKFACLinearOperator, its exact inverse, between gradients by torch.func",
    ),
    "dattri": Adapter("conforming_dattri", "Dattri", "IFAttributorEKFAC, torch's default dtype float64"),
    "bergson": Adapter(
        "conforming_bergson",
        "Bergson",
        "method kfac with ev_correction, use_dataset_labels for observed labels, hessian_dtype fp64, include_bias, "
        "inversion absolute_damped_inverse; a classifier's example is a sequence with one label",
        ".venv",
    ),
}
REMARKS = """\
Every failure of another library was traced in its source. In dattri 0.3.0's `IFAttributorEKFAC` there are three
mistakes. `eigh` returns eigenvectors in columns, and the rotations take them for rows (`q_s @ v @ q_a.T`), when the
eigenvalues are fitted and when a query is solved. Weights (o × i) and biases (o) are laid one behind the other and then
read as an o × (i + 1) matrix, so that the biases are not in the column that the factor A has for them. With both put
right, one example is exact to 1e-15 and renumbered units change nothing; with either alone both checks still fail. And
output gradients come from `retain_grad` on the layer's own output, over which an activation in place has then written.
Its documentation offers sequences; an activation of three axes meets a name that is set for two alone.

bergson reads its factors in float32 and solves in it, so an equality is asked of it to 1e-5. Its full backward hooks
make a layer's output a view, over which torch lets nothing be written: an activation in place meets that error, and
no wrong number.
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", choices=ADAPTERS, help="one alone, in this interpreter; prints its outcomes")
    parser.add_argument("--only", choices=ADAPTERS, nargs="*", default=list(ADAPTERS), help="run these anew")
    parser.add_argument("--check", choices=CHECKS, action="append", help="these checks alone")
    parser.add_argument("--json", action="store_true", help="with --library: outcomes as JSON")
    parser.add_argument("--python", type=Path, default=ROOT / ".venv-peers" / "bin" / "python")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.library:
        return one(options.library, options.check, options.json)
    answers = everyone(options.only, options.python, options.results / "conformance.json")
    options.results.mkdir(parents=True, exist_ok=True)
    (options.results / "conformance.md").write_text(table(answers), encoding="utf-8")
    data = json.dumps(answers, indent=1, ensure_ascii=False)
    (options.results / "conformance.json").write_text(data + "\n", encoding="utf-8")
    print(table(answers))
    return 0


def table(answers: dict[str, dict[str, Any]]) -> str:
    """The results file as it is read: versions and settings, who passes what, the failures, and what is not offered."""
    found = {name: [Outcome(**outcome) for outcome in answer["outcomes"]] for name, answer in answers.items()}
    lines = {name: ADAPTERS[name].again(name) for name in found}
    return f"{heading(answers)}\n{markdown(found, lines).rstrip()}\n\n{not_offered(answers)}\n"


def heading(about: dict[str, dict[str, Any]]) -> str:
    """What was asked, of which versions."""
    said = [f"- **{name}** {facts['version']}: {facts['settings']}" for name, facts in about.items()]
    return "\n".join(["# Who passes what", "", *said, "", REMARKS])


def not_offered(about: dict[str, dict[str, Any]]) -> str:
    """Why the table has a – where it has one."""
    said = [
        f"- **{name}**: {', '.join(f'{what} ({why})' for what, why in facts['lacks'].items())}"
        for name, facts in about.items()
        if facts["lacks"]
    ]
    return "\n".join(["What is not offered, and so was not asked (–):", "", *said])


def everyone(only: list[str], peers: Path, kept: Path) -> dict[str, dict[str, Any]]:
    """What each library answered, in a process of its own; of those not asked or not there, in an earlier run."""
    answers = json.loads(kept.read_text(encoding="utf-8")) if kept.is_file() else {}
    path = os.pathsep.join([str(ROOT), str(BESIDE), *filter(None, [os.environ.get("PYTHONPATH")])])
    for name in only:
        python = peers if ADAPTERS[name].environment == ".venv-peers" else sys.executable
        command = [str(python), __file__, "--library", name, "--json"]
        environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        try:
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
            answers[name] = json.loads(done.stdout.strip().splitlines()[-1])
        except (OSError, IndexError) as problem:
            print(f"{name} did not run: {problem}", file=sys.stderr)
    return {name: answers[name] for name in ADAPTERS if name in answers}


def one(name: str, checks: list[str] | None, as_json: bool) -> int:
    """Run a library here; 1 where it fails something, 0 otherwise."""
    adapter = ADAPTERS[name]
    library: Library = getattr(importlib.import_module(adapter.module), adapter.kind)()
    outcomes = run(library, checks)
    if as_json:
        facts = {"version": library.version, "settings": adapter.settings, "torch": torch.__version__}
        about = {name: facts | {"lacks": dict(library.lacks)}}
        print(json.dumps(as_data({name: outcomes}, about)[name]))
    else:
        for o in outcomes:
            error = "" if o.error is None else f"error {o.error:.2g}, bound {o.bound:.0e}"
            print(f"{o.check:40} {o.status:12} {error}{o.why}")
    return int(any(o.status in (FAILED, RAISED) for o in outcomes))


if __name__ == "__main__":
    sys.exit(main())
