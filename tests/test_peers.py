"""Two libraries that share no code with inflib, run in an environment of their own, give the same numbers.

kronfluence 1.0.1 for EK-FAC scores from observed labels, curvlinops 3.0.1 for products with K-FAC and EK-FAC from
observed and from expected labels: nothing random on either side, float64, agreement to 1e-10. `make peers` builds the
environment; `benchmarks/peer_scores.py` is what runs in it.
"""

from __future__ import annotations

import json
import os
import subprocess
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import characters
import convolutions as conv
import digits
import pytest
import torch
from run import plan
from torch import Tensor
from workload import Workload, batches, save

import inflib
from inflib import CrossEntropy, NextToken, Objective, TrainIndex, damping_of, influence, self_influence

ROOT = Path(__file__).resolve().parent.parent
BENCHMARKS = ROOT / "benchmarks"
DAMPINGS = (1e-3, 0.1)  # beside None, each library's own 0.1 · mean Λ per layer
EQUAL = 1e-10  # measured: 2e-14 at most

pytestmark = pytest.mark.peers


class Problem(NamedTuple):
    """The same data and model on both sides, and what the other libraries answered."""

    work: Workload
    objective: Objective
    kronfluence: dict[str, Any]
    curvlinops: dict[Any, Any]

    def curvature(self, method: str = "ekfac", labels: str = "observed") -> inflib.Kronecker:
        train = batches(self.work.train_set(), 64)
        layers = list(self.work.layers)
        return getattr(inflib, method)(
            self.work.model(), self.objective, train, layers=layers, labels=labels, progress=False
        )

    def influence(self, curvature: inflib.Kronecker, damping: Any) -> Tensor:
        train, queries = batches(self.work.train_set(), 64), batches(self.work.query_set(), 4)
        return influence(self.work.model(), self.objective, train, queries, curvature, damping, progress=False)

    def self_influence(self, curvature: inflib.Kronecker, damping: Any) -> Tensor:
        data = batches(self.work.train_set(), 64)
        return self_influence(self.work.model(), self.objective, data, curvature, damping, progress=False)


def asked(python: Path, folder: Path, work: Workload, objective: Objective) -> Problem:
    save(work, folder / "workload.pt")
    dampings = ["--dampings", *map(str, DAMPINGS)]
    ask(python, "peer_scores.py", folder / "workload.pt", folder / "answers.pt", *dampings)
    answers = torch.load(folder / "answers.pt")
    return Problem(work, objective, answers["kronfluence"], answers.get("curvlinops", {}))


@pytest.fixture(scope="module")
def problem(peers_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Problem:
    """200 shipped digits, 10 queries, a 784-32-16-10 network, in float64."""
    work = digits.prepare((784, 32, 16, 10), 200, 10, epochs=10, shipped=True).cut(200, 10, torch.float64)
    return asked(peers_python, tmp_path_factory.mktemp("peers"), work, CrossEntropy())


@pytest.fixture(scope="module")
def convolutions(peers_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Problem:
    """The same digits and a network of two convolutions."""
    work = conv.prepare(200, 10, shipped=True).cut(200, 10, torch.float64)
    return asked(peers_python, tmp_path_factory.mktemp("peers"), work, CrossEntropy())


@pytest.fixture(scope="module")
def language(peers_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Problem:
    """60 sequences of 16 characters, 4 queries, a transformer of width 12, its perceptrons, in float64."""
    work = characters.prepare((128, 16, 12, 2, 20, 2), 60, 4, epochs=10, shipped=True).cut(60, 4, torch.float64)
    return asked(peers_python, tmp_path_factory.mktemp("peers"), work, NextToken())


def ask(python: Path, script: str, *arguments: object) -> str:
    """The output of a script of benchmarks/ run by the peers' interpreter."""
    command = [str(python), str(BENCHMARKS / script), *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{script} failed in {python.parent.parent}; rebuild it: make peers\n{done.stderr}"
    return done.stdout


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype == torch.float64
    assert theirs.norm() > 0
    return ((ours - theirs).norm() / theirs.norm()).item()


@pytest.mark.parametrize("damping", [None, *DAMPINGS])
def test_pairwise_scores_equal_those_of_kronfluence(problem: Problem, damping: float | None) -> None:
    # with the query's loss as measurement, its +g_qᵀ (·)⁻¹ g_n is our ∇m_qᵀ (·)⁻¹ (−∇ℓ_n) with m = −ℓ
    theirs = problem.kronfluence["pairwise"][damping]  # (Q, N)
    assert relative_error(problem.influence(problem.curvature(), damping), theirs) < EQUAL


@pytest.mark.parametrize("damping", [None, *DAMPINGS])
def test_self_influence_equals_that_of_kronfluence(problem: Problem, damping: float | None) -> None:
    theirs = problem.kronfluence["self"][damping]  # (N,)
    assert relative_error(problem.self_influence(problem.curvature(), damping), theirs) < EQUAL


def test_the_default_damping_is_the_one_of_kronfluence_layer_by_layer(problem: Problem) -> None:
    theirs = {name: 0.1 * mean for name, mean in problem.kronfluence["mean_eigenvalues"].items()}
    curvature = problem.curvature()
    assert damping_of(curvature) == pytest.approx(theirs, rel=EQUAL)
    given = problem.influence(curvature, theirs)
    assert relative_error(given, problem.kronfluence["pairwise"][None]) < EQUAL


@pytest.mark.parametrize("labels", ["observed", "expected"])
@pytest.mark.parametrize("method", ["ekfac", "kfac"])
def test_products_with_the_curvature_equal_those_of_curvlinops(problem: Problem, method: str, labels: str) -> None:
    ours = problem.curvature(method, labels).matvec(problem.curvlinops["probe"])
    theirs = problem.curvlinops[method, labels]
    assert ours.keys() == theirs.keys()
    assert all(relative_error(ours[name], theirs[name]) < EQUAL for name in theirs)


@pytest.mark.parametrize("damping", [None, *DAMPINGS])
def test_a_convolutional_networks_scores_equal_those_of_kronfluence(
    convolutions: Problem, damping: float | None
) -> None:
    curvature, theirs = convolutions.curvature(), convolutions.kronfluence
    assert curvature.shapes == {"1": (4, 10), "3": (6, 36), "6": (10, 295)}
    assert relative_error(convolutions.influence(curvature, damping), theirs["pairwise"][damping]) < EQUAL
    assert relative_error(convolutions.self_influence(curvature, damping), theirs["self"][damping]) < EQUAL


@pytest.mark.parametrize("damping", [None, *DAMPINGS])
def test_a_transformers_scores_equal_those_of_kronfluence(language: Problem, damping: float | None) -> None:
    curvature = language.curvature()
    pairwise = language.influence(curvature, damping)
    assert relative_error(pairwise, language.kronfluence["pairwise"][damping]) < EQUAL
    assert relative_error(language.self_influence(curvature, damping), language.kronfluence["self"][damping]) < EQUAL
    train = batches(language.work.train_set(), 64)
    index = TrainIndex.build(language.work.model(), NextToken(), train, curvature, progress=False)
    again = index.influence(language.work.model(), NextToken(), batches(language.work.query_set(), 4), damping=damping)
    assert relative_error(again, language.kronfluence["pairwise"][damping]) < EQUAL


def test_the_agreement_on_a_transformer_would_notice_other_labels(language: Problem) -> None:
    theirs = language.kronfluence["pairwise"][None]
    assert relative_error(language.influence(language.curvature(labels="sampled"), None), theirs) > 0.01


def test_the_agreement_would_notice_other_labels_another_damping_or_another_curvature(problem: Problem) -> None:
    theirs = problem.kronfluence["pairwise"][None]
    observed = problem.curvature()
    shared = dict.fromkeys(observed.layers, damping_of(observed)["0"])  # the first layer's damping for all
    slips = {
        "expected labels": problem.influence(problem.curvature(labels="expected"), None),
        "sampled labels": problem.influence(problem.curvature(labels="sampled"), None),
        "K-FAC": problem.influence(problem.curvature("kfac"), None),
        "one damping for all layers": problem.influence(observed, shared),
        "the other sign": -problem.influence(observed, None),
    }
    too_close = {name: e for name, scores in slips.items() if (e := relative_error(scores, theirs)) < 0.01}
    assert not too_close


def test_the_benchmark_runs_and_keeps_its_table_and_figures(peers_python: Path, tmp_path: Path) -> None:
    few = ["--task", "digits", "--quick", "--only", "pairwise", "--skip-slow", "--repeats", 1, "--threads", 1]
    out = ask(peers_python, "run.py", *few, "--python", peers_python, "--results", tmp_path)
    (table,), (figures,) = tmp_path.glob("*.md"), tmp_path.glob("*.json")
    assert table.read_text().strip() in out
    stages = {
        (stage["library"], stage["stage"]): stage
        for stage in json.loads(figures.read_text())["tasks"]["digits"]["stages"]
    }
    assert stages.keys() == {("inflib", "fit"), ("inflib", "pairwise"), ("kronfluence", "pairwise")}
    for (library, stage), found in stages.items():
        (run,) = found["runs"]
        assert run["cpu_s"] > 0
        assert run["baseline_mib"] <= run["peak_mib"]
        assert f"| {stage} | {library} |" in table.read_text()


def test_on_a_gpu_both_libraries_go_through_every_stage_and_what_cannot_be_is_said(
    peers_python: Path, tmp_path: Path
) -> None:
    jobs = [(job.stage, job.library) for job in plan("characters", None, False, "cuda")]
    assert jobs == list(product(("fit", "pairwise", "self_influence"), ("kronfluence", "inflib")))
    wrong = {"--device cuda measures the characters": ["--task", "digits"]}
    if not torch.cuda.is_available():
        wrong["--device cuda: torch sees no CUDA device"] = []
    for message, options in wrong.items():
        command = [peers_python, BENCHMARKS / "run.py", "--device", "cuda", "--results", tmp_path, *options]
        done = subprocess.run([*command, "--python", peers_python], capture_output=True, text=True, timeout=60)
        assert done.returncode == 1
        assert message in done.stderr
