"""The tests bite: each mistake that influence code is known to make is planted in a copy, and the tests must see it.

A copy of the package and its tests gets one line changed; named tests then run against it in a process of their own,
and each of them has to fail, by an assertion about numbers or by the library's own refusal, never because something
could not be imported. Beforehand the same tests pass on a copy in which nothing was changed.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
APART = ("lab", "widgets", "validation", "__pycache__")  # subpackages that the core never imports

# runs inside the copy's own process: says which package was tested, and what became of every test
WITNESS = """
import json
import os
from pathlib import Path

outcomes = {}


def pytest_runtest_makereport(item, call):
    if call.excinfo is not None:
        outcomes[item.nodeid] = [call.when, call.excinfo.type.__name__, str(call.excinfo.value)[:2000]]
    elif call.when == "call":
        outcomes.setdefault(item.nodeid, ["call", "passed", ""])


def pytest_sessionfinish(session):
    import inflib

    found = {"inflib": inflib.__file__, "outcomes": outcomes}
    Path(os.environ["WITNESS"]).write_text(json.dumps(found), encoding="utf-8")
"""


@dataclass(frozen=True)
class Plant:
    """One line of inflib/``file``, right and wrong, and the tests that see it, each with what it raises."""

    file: str
    right: str
    wrong: str
    seen_by: dict[str, str]  # test → the name of its exception


def asserting(*tests: str, **others: str) -> dict[str, str]:
    """Tests that fail by an assertion."""
    return dict.fromkeys(tests, "AssertionError") | others


BITES = "tests/test_bites.py::test_"
DENSE = BITES + "ekfac_scores_are_the_dense_formula_layer_by_layer[{}]"
OWN = BITES + "self_influence_is_the_dense_formula[{}]"
INDEX = BITES + "an_index_gives_the_dense_formula_layer_by_layer[{}]"
EXACT = BITES + "an_exact_curvature_is_damped_layer_by_layer"
BIAS = BITES + "a_captured_gradient_holds_the_weights_and_then_the_bias"
SLOPE = BITES + "scores_are_the_slope_of_the_measurement_in_an_examples_weight"
PROPONENT = BITES + "more_weight_on_a_proponent_raises_the_measurement_and_on_an_opponent_lowers_it[{}]"
CHANGE = BITES + "the_predicted_change_is_that_of_a_fit_without_the_example_or_with_it_twice"
FRESH = BITES + "eigenvalues_are_fitted_on_other_labels_than_their_basis"
AFTER_CALL = BITES + "no_hook_is_left_after_a_call[{}]"
AFTER_ERROR = BITES + "no_hook_is_left_after_an_exception[{}-{}]"

LAMBDA = "tests/test_ekfac.py::test_eigenvalues_are_right_in_a_basis_that_is_not_symmetric[{}]"
AFRESH = "tests/test_ekfac.py::test_labels_are_drawn_afresh_for_the_second_pass"
EKFAC_LIMIT = "tests/test_ekfac.py::test_ekfac_is_exact_where_theory_says_so[one linear layer with squared error]"
KFAC_LIMIT = "tests/test_kfac.py::test_kfac_is_exact_where_theory_says_so[one linear layer with squared error]"
LAST_COLUMN = "tests/test_kfac.py::test_the_activation_moment_ends_in_the_bias_column"
SOLVE = "tests/test_curvature.py::test_matvec_and_solve_are_right_in_a_basis_that_is_not_symmetric"
SOLVE_LAYERS = "tests/test_curvature.py::test_solve_is_the_dense_solve_for_layers_used_several_times[tokens-{}]"
SHAPES = "tests/test_hooks.py::test_shapes_are_batch_positions_features_with_a_one_for_the_bias"
BLOCK_RAISES = "tests/test_hooks.py::test_hooks_come_off_when_the_block_raises"

CALLS = ("capture", "ekfac", "influence", "self_influence", "TrainIndex.build")
PLANTS = {
    "transposed eigenbasis, in the corrected eigenvalues": Plant(
        "ekfac.py",
        "Q.to(x).T @ x.flatten",
        "Q.to(x) @ x.flatten",
        asserting(LAMBDA.format("expected"), DENSE.format("given"), OWN.format("given")),
    ),
    "transposed eigenbasis, in the solve": Plant(
        "kronecker.py",
        "self.Q_S[k].T @ x if",
        "self.Q_S[k] @ x if",
        asserting(SOLVE),  # scores turn a query's positions, not its matrix
    ),
    "transposed eigenbasis, eigenvectors taken for rows": Plant(
        "ekfac.py",
        "to(matrix), vectors.to(matrix)",
        "to(matrix), vectors.T.to(matrix)",
        asserting(EKFAC_LIMIT, KFAC_LIMIT, DENSE.format("given")),
    ),
    "transposed eigenbasis, in self-influence": Plant(
        "contractions.py",
        "a, g = rotate(pair.a[:, 0], Q_A), rotate(pair.g[:, 0], Q_S)",
        "a, g = rotate(pair.a[:, 0], Q_A.T), rotate(pair.g[:, 0], Q_S.T)",
        asserting(OWN.format("given"), OWN.format("default")),
    ),
    "multiplying by the damped eigenvalues": Plant(
        "kronecker.py",
        "inverse = 1 / (values + number)",
        "inverse = values + number",
        asserting(SOLVE, DENSE.format("given"), OWN.format("given"), INDEX.format("given")),
    ),
    "bias column first": Plant(
        "recording.py",
        "out[..., :-1] = a",
        "out[..., 0], out[..., 1:] = 1, a",
        # the proof refuses it before a number comes out
        dict.fromkeys((BIAS, SHAPES, LAST_COLUMN, DENSE.format("given")), "ValueError"),
    ),
    "one layer's damping used for all": Plant(
        "kronecker.py",
        "self._inverse(name, numbers[name])",
        "self._inverse(name, numbers[self.layers[0]])",
        asserting(
            SOLVE_LAYERS.format("EK-FAC"), DENSE.format("given"), DENSE.format("default"), INDEX.format("default")
        ),
    ),
    "one layer's damping used for all, by default": Plant(
        "curvature.py",
        "name: damping.factor * mean for name, mean in curvature.mean_eigenvalues().items()",
        "name: damping.factor * next(iter(curvature.mean_eigenvalues().values())) for name in curvature.layers",
        asserting(DENSE.format("default"), OWN.format("default"), INDEX.format("default")),
    ),
    "one layer's damping used for all, in a dense matrix": Plant(
        "dense.py",
        "numbers[k]) for k, (o, i)",
        "numbers[self.layers[0]]) for k, (o, i)",
        asserting(SOLVE_LAYERS.format("Gauss-Newton"), EXACT),
    ),
    "sign flipped": Plant(
        "scoring.py",
        "columns.append(-contract(",
        "columns.append(contract(",
        asserting(SLOPE, PROPONENT.format("exact"), PROPONENT.format("EK-FAC"), CHANGE, DENSE.format("given")),
    ),
    "sign flipped, in the index": Plant(
        "index/exact.py",
        "each.append(-layer_scores(",
        "each.append(layer_scores(",
        asserting(PROPONENT.format("index"), INDEX.format("given")),
    ),
    "sign flipped, of a removal": Plant(
        "scoring.py",
        "(-1 if remove else 1)",
        "(1 if remove else -1)",
        asserting(CHANGE),
    ),
    "labels reused between passes": Plant(
        "ekfac.py",
        "fit.recordings(1, ",
        "fit.recordings(0, ",
        asserting(AFRESH, FRESH),
    ),
    "labels reused between draws": Plant(
        "objectives/labels.py",
        "LabelStreams(seed, pass_, draw)",
        "LabelStreams(seed, pass_, 0)",
        asserting(AFRESH, FRESH),
    ),
    "hooks left behind": Plant(
        "hooks.py",
        "stack.callback(handle.remove)",
        "stack.callback(lambda: None)",
        # the proof's forward pass leaves hooks for that of an example alone to stumble over
        dict.fromkeys((AFTER_CALL.format(c) for c in CALLS), "RuntimeError")
        | asserting(
            *(AFTER_ERROR.format("capture", where) for where in ("forward", "backward", "loss")),
            BLOCK_RAISES,
        ),
    ),
    "hooks left behind by an exception": Plant(
        "hooks.py",
        "stack.callback(handle.remove)",
        "stack.push(lambda error, *_, handle=handle: None if error else handle.remove())",
        asserting(BLOCK_RAISES, AFTER_ERROR.format("ekfac", "forward"), AFTER_ERROR.format("influence", "forward")),
    ),
}


# --- a copy, and a process that tests it ------------------------------------------------------------------------------------


def copied(to: Path) -> Path:
    """The core, its tests and their settings, as they are now."""
    shutil.copytree(ROOT / "inflib", to / "inflib", ignore=shutil.ignore_patterns(*APART))
    (to / "tests").mkdir()
    for file in (ROOT / "tests").glob("*.py"):
        shutil.copy(file, to / "tests")
    shutil.copy(ROOT / "pyproject.toml", to)
    # the switch imports torch's compiler, a quarter of such a process's time, and one thread on a CPU needs none
    conftest = to / "tests" / "conftest.py"
    text = conftest.read_text(encoding="utf-8").replace("torch.use_deterministic_algorithms(True)\n", "")
    conftest.write_text(text, encoding="utf-8")
    (to / "witness.py").write_text(WITNESS, encoding="utf-8")
    return to


def plant(copy: Path, bug: Plant) -> None:
    """Change the one line; AssertionError where the line to change is not there, or there twice."""
    path = copy / "inflib" / bug.file
    text = path.read_text(encoding="utf-8")
    count = text.count(bug.right)
    assert count == 1, f"inflib/{bug.file} holds {bug.right!r} {count} times; expected once: say the plant anew"
    path.write_text(text.replace(bug.right, bug.wrong), encoding="utf-8")


def run(copy: Path, tests: list[str]) -> tuple[int, dict[str, list[str]], str]:
    """pytest's exit code, {test: [stage, exception or "passed", message]}, and all that was printed."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "COVERAGE", "COV_"))}
    environment |= {
        "PYTHONPATH": str(copy),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "OMP_NUM_THREADS": "1",
        "WITNESS": str(copy / "outcomes.json"),
    }
    command = [sys.executable, "-m", "pytest", "-q", "--tb=line", "-p", "no:cacheprovider", "-p", "witness", *tests]
    done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, timeout=300, check=False)
    printed = done.stdout + done.stderr
    assert (copy / "outcomes.json").exists(), f"the tests could not be run (exit code {done.returncode}):\n{printed}"
    found = json.loads((copy / "outcomes.json").read_text(encoding="utf-8"))
    assert Path(found["inflib"]).resolve().is_relative_to(copy.resolve()), f"tested {found['inflib']}, not the copy"
    return done.returncode, found["outcomes"], printed


# --- the tests ----------------------------------------------------------------------------------------------------------------


def test_the_tests_that_see_the_planted_bugs_pass_without_them(tmp_path: Path) -> None:
    tests = sorted({test for bug in PLANTS.values() for test in bug.seen_by})
    code, outcomes, printed = run(copied(tmp_path), tests)
    assert code == 0, printed
    assert set(outcomes) == set(tests)
    assert {outcome for _, outcome, _ in outcomes.values()} == {"passed"}


@pytest.mark.parametrize("name", PLANTS)
def test_a_planted_bug_is_seen(name: str, tmp_path: Path) -> None:
    bug = PLANTS[name]
    copy = copied(tmp_path)
    plant(copy, bug)
    code, outcomes, printed = run(copy, list(bug.seen_by))
    assert code == 1, f"expected pytest's exit code 1 (some tests failed), came {code}:\n{printed}"
    summary = printed.strip().splitlines()[-1]
    assert f"{len(bug.seen_by)} failed" in summary, f"not every test saw {name!r}:\n{printed}"
    assert "error" not in summary, printed
    found = {test: (stage, outcome) for test, (stage, outcome, _) in outcomes.items()}
    assert found == {test: ("call", expected) for test, expected in bug.seen_by.items()}, printed
