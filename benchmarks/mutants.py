"""Are the tests awake? Change one point of the core at a time and see whether a test notices.

    python benchmarks/mutants.py                        # 240 mutants of inflib/*.py, an hour of a processor
    python benchmarks/mutants.py --count 40 --file kfac.py
    python benchmarks/mutants.py --report               # what survived so far

The mutants are made from the syntax tree, the same ones every time: an operator or comparison for its neighbour, a
number for the next, a condition negated, a statement dropped, two arguments swapped, a slice moved. Messages are
left as they are. Each runs in a copy of the repository, against the tests of its file, in a process of its own that
has torch loaded already; a test that fails, or a time limit reached, kills it. Results are appended to
build/mutants.jsonl, so that a run that was stopped goes on where it was; delete the file to begin anew.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import os
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "build" / "mutants.jsonl"
SECONDS = 240  # of the clock, for one mutant

# {file of the core: the tests that cover it, the quickest first}; others have tests/test_<name>.py and these
ALSO = ["test_chunks", "test_scoring"]
TESTS = {
    "baselines": ["test_baselines", "test_order"],
    "batches": ["test_batches", "test_index", "test_chunks"],
    "comparison": ["test_hooks", "test_batches", "test_layers"],
    "contractions": ["test_chunks", "test_scoring", "test_index"],
    "convolutions": ["test_convolutions", "test_hooks"],
    "curvature": ["test_curvature", "test_fingerprints", "test_storage"],
    "dense": ["test_curvature", "test_exact", "test_finite"],
    "ekfac": ["test_ekfac", "test_chunks"],
    "exact": ["test_exact", "test_implicit", "test_memory"],
    "finite": ["test_finite"],
    "fingerprints": ["test_fingerprints", "test_batches", "test_order"],
    "hooks": ["test_hooks", "test_layers", "test_batches"],
    "implicit": ["test_implicit", "test_order"],
    "index": ["test_index", "test_chunks", "test_finite"],
    "jacobians": ["test_exact", "test_implicit"],
    "kfac": ["test_kfac", "test_chunks", "test_ekfac", "test_errors"],
    "kronecker": ["test_curvature", "test_finite", "test_ekfac"],
    "memory": ["test_memory"],
    "order": ["test_order", "test_batches"],
    "randomness": ["test_batches", "test_ekfac"],
    "rows": ["test_proof", "test_layers", "test_hooks", "test_architectures"],
    "proof": ["test_proof", "test_hooks", "test_layers", "test_architectures"],
    "solvers": ["test_solvers", "test_implicit"],
    "storage": ["test_storage"],
    "scoring": ["test_scoring", "test_chunks", "test_finite", "test_order"],
    "selection": ["test_layers", "test_coverage", "test_errors"],
    "layers": ["test_layers", "test_hooks"],
    "sequences": ["test_sequences", "test_language_models"],
    "tokens": ["test_tokens", "test_finite"],
    "wholeness": ["test_storage"],
}

OPERATORS: dict[type, type] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Div,
    ast.Pow: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.And: ast.Or,
    ast.Or: ast.And,
}


class Mutant(NamedTuple):
    """One change of one file: the text from ``start`` to ``end`` (bytes) replaced by ``new``."""

    file: str
    line: int
    kind: str
    start: int
    end: int
    new: str

    @property
    def key(self) -> str:
        return hashlib.sha256(f"{self.file}:{self.line}:{self.kind}:{self.start}:{self.new}".encode()).hexdigest()[:12]


def mutants_of(path: Path) -> Iterator[Mutant]:
    """Every single-point change of a file, in the order of the text."""
    source = path.read_bytes()
    starts = [0, *(k + 1 for k, byte in enumerate(source) if byte == 10)]
    for node in _statements(ast.parse(source)):
        begin = starts[node.lineno - 1] + node.col_offset
        end = starts[node.end_lineno - 1] + node.end_col_offset
        for kind, new in _changes(node, source[begin:end].decode()):
            yield Mutant(path.relative_to(ROOT / "inflib").as_posix(), node.lineno, kind, begin, end, new)


def _statements(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes that have a place in the text, but for annotations, messages and documentation."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.Raise, ast.JoinedStr, ast.Import, ast.ImportFrom, ast.Assert)):
            continue
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            continue
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("warnings.warn", "replace", "field"):
            continue
        if isinstance(node, ast.AnnAssign):
            node.annotation = ast.Constant(value=None)  # without a place
        if isinstance(node, (ast.FunctionDef, ast.arg)):
            for part in ("returns", "annotation"):
                if getattr(node, part, None) is not None:
                    setattr(node, part, None)
        if hasattr(node, "lineno"):
            yield node
        yield from _statements(node)


def _changes(node: ast.AST, text: str) -> Iterator[tuple[str, str]]:
    """(kind, new text) of the changes of one node."""
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        other = OPERATORS[type(node.op)]()
        yield "operator", f"({ast.unparse(ast.BinOp(node.left, other, node.right))})"
    elif isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in OPERATORS:
        other = OPERATORS[type(node.ops[0])]()
        yield "comparison", f"({ast.unparse(ast.Compare(node.left, [other], node.comparators))})"
    elif isinstance(node, ast.BoolOp):
        yield "and/or", f"({ast.unparse(ast.BoolOp(OPERATORS[type(node.op)](), node.values))})"
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.Not, ast.USub)):
        yield "sign", f"({ast.unparse(node.operand)})"
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield "flag", str(not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
        yield "number", repr(node.value + 1 if isinstance(node.value, int) else node.value * 2)
    elif isinstance(node, ast.Slice):
        for part in ("lower", "upper"):
            if getattr(node, part) is not None:
                kept = {name: getattr(node, name) for name in ("lower", "upper", "step")} | {part: None}
                yield f"slice without {part}", ast.unparse(ast.Slice(**kept))
    elif isinstance(node, ast.Call) and len(node.args) >= 2 and not any(isinstance(a, ast.Starred) for a in node.args):
        if not isinstance(node.func, ast.Name) or node.func.id not in ("isinstance", "getattr", "hasattr"):
            args = [node.args[1], node.args[0], *node.args[2:]]
            yield "swapped arguments", ast.unparse(ast.Call(node.func, args, node.keywords))
    elif isinstance(node, ast.IfExp):
        yield "other branch", f"({ast.unparse(ast.IfExp(node.test, node.orelse, node.body))})"
    elif isinstance(node, (ast.AugAssign, ast.Delete)) or (
        isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and not text.startswith("warnings.warn")
    ):
        yield "dropped", "pass"


def chosen(count: int, only: str | None) -> list[Mutant]:
    """``count`` mutants, as many of each file as its share of all; the same ones every time."""
    files = sorted((ROOT / "inflib").glob("*.py"))
    found = {path.name: list(mutants_of(path)) for path in files if only in (None, path.name)}
    total = sum(map(len, found.values()))
    picked = []
    for mutants in found.values():
        share = min(len(mutants), -(-count * len(mutants) // total)) if total else 0
        picked += sorted(mutants, key=lambda mutant: mutant.key)[:share]
    return sorted(picked, key=lambda mutant: mutant.key)


# --- running -----------------------------------------------------------------------------------------------------


def run(mutant: Mutant, copy: Path) -> str:
    """ "killed" by a failing test, "timed out" (killed as well) or "survived"."""
    path = copy / "inflib" / mutant.file
    source = path.read_bytes()
    path.write_bytes(source[: mutant.start] + mutant.new.encode() + source[mutant.end :])
    name = mutant.file.removesuffix(".py")
    tests = [f"tests/{t}.py" for t in TESTS.get(name, [f"test_{name}", *ALSO]) if (copy / f"tests/{t}.py").exists()]
    child = os.fork()
    if child == 0:
        os.setsid()
        _test(copy, tests)
    try:
        return _outcome(child)
    finally:
        path.write_bytes(source)


def _test(copy: Path, tests: list[str]) -> None:
    """In a process of its own: the tests, up to the first that fails; the exit status says whether one did."""
    import pytest

    os.chdir(copy)
    sys.path[:] = [str(copy), *(p for p in sys.path if Path(p).resolve() != ROOT)]
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    status = 1
    try:
        status = int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "--no-header", *tests]))
    finally:
        os._exit(status)


def _outcome(child: int) -> str:
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return "survived" if status == 0 else "killed"
        time.sleep(0.05)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "timed out"


def report() -> None:
    """Print the counts and every survivor with its change."""
    rows = [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []
    counts = Counter(row["outcome"] for row in rows)
    print(f"{len(rows)} mutants: {dict(counts)}; killed {1 - counts['survived'] / max(1, len(rows)):.1%}")
    for row in rows:
        if row["outcome"] == "survived":
            print(f"  {row['file']}:{row['line']} {row['kind']}: {row['old']}  →  {row['new']}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=240)
    parser.add_argument("--file", help="one file of inflib/ only")
    parser.add_argument("--report", action="store_true", help="run nothing")
    options = parser.parse_args()
    if not options.report:
        import hypothesis  # noqa: F401 (loaded once, for all children)
        import safetensors.torch  # noqa: F401
        import torch

        torch.set_num_threads(1)
        sys.dont_write_bytecode = True
        RESULTS.parent.mkdir(exist_ok=True)
        copy = RESULTS.parent / "mutants"
        shutil.rmtree(copy, ignore_errors=True)
        for part in ("inflib", "tests", "pyproject.toml", "README.md", "data"):
            source = ROOT / part
            shutil.copytree(source, copy / part) if source.is_dir() else shutil.copy(source, copy / part)
        known = {json.loads(line)["key"] for line in RESULTS.read_text().splitlines()} if RESULTS.exists() else set()
        for mutant in chosen(options.count, options.file):
            if mutant.key in known:
                continue
            old = (ROOT / "inflib" / mutant.file).read_bytes()[mutant.start : mutant.end].decode()
            row = mutant._asdict() | {"key": mutant.key, "old": old, "outcome": run(mutant, copy)}
            with RESULTS.open("a") as results:
                results.write(json.dumps(row) + "\n")
            print(f"{row['outcome']:9}  {mutant.file}:{mutant.line} {mutant.kind}", flush=True)
        shutil.rmtree(copy)
    report()


if __name__ == "__main__":
    main()
