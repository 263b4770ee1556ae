"""On a CUDA device: the same factors, labels and scores as on the CPU, and everything stays where the model is.

Float64 to 1e-10; float32 against the CPU's float64 by correlation. Another kind of model is another entry of TASKS.
"""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import Plain, make
from oracle import assert_close
from test_devices import LABELS, TASKS, Task, calls
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import inflib
from inflib import TrainIndex, diagonal, ekfac, gauss_newton, hessian, identity, influence, kfac, refine, self_influence
from inflib.curvature import hash_weights
from inflib.tokens import input_tokens, output_tokens
from inflib.validation import Run, Training, through_training

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.usefixtures("float64"),
    pytest.mark.filterwarnings("ignore::inflib.CoverageNote", "ignore::inflib.IndefiniteWarning"),
]


def both(which: str, dtype: torch.dtype = torch.float64) -> tuple[Task, Task]:
    """A task on the CPU in float64, and on the GPU."""
    return TASKS[which](), TASKS[which]().to("cuda", dtype)


def on_gpu(value: Any) -> bool:
    return all(x.device.type == "cuda" for x in pytree.tree_leaves(value) if isinstance(x, Tensor))


def correlation(x: Tensor, y: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([x.cpu().double().flatten(), y.cpu().double().flatten()]))[0, 1])


# --- float64 --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", TASKS)
@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("fit", [ekfac, kfac, diagonal])
def test_factors_are_the_cpus(which: str, labels: str, fit: Any) -> None:
    cpu, gpu = (task.fit(fit, labels=labels) for task in both(which))
    assert on_gpu([gpu.eigenvalues, gpu.Q_S, gpu.Q_A])
    assert gpu.layers == cpu.layers
    for name in cpu.layers:
        came, expected = (
            gpu.eigenvalues[name].cpu().flatten().sort().values,
            cpu.eigenvalues[name].flatten().sort().values,
        )
        assert_close(came, expected, 1e-10)
    assert_close(gpu.to_dense().cpu(), cpu.to_dense(), 1e-10)


@pytest.mark.parametrize("which", TASKS)
def test_reduced_factors_are_the_cpus(which: str) -> None:
    """K-FAC's: few sequences leave A eigenvectors of 0, which rounding turns and in which EK-FAC's Λ is not 0."""
    cpu, gpu = (task.fit(kfac, sharing="reduce") for task in both(which))
    assert_close(gpu.to_dense().cpu(), cpu.to_dense(), 1e-10)


@pytest.mark.parametrize("which", TASKS)
def test_exact_curvatures_are_the_cpus(which: str) -> None:
    for fit, options in ((gauss_newton, {}), (gauss_newton, {"blocks": True}), (hessian, {})):
        cpu, gpu = (task.fit(fit, **options) for task in both(which))
        assert on_gpu(gpu.to_dense())
        assert_close(gpu.to_dense().cpu(), cpu.to_dense(), 1e-10)


@pytest.mark.parametrize("which", TASKS)
@pytest.mark.parametrize("fit", [ekfac, kfac, diagonal, identity, gauss_newton])
def test_scores_are_the_cpus(which: str, fit: Any) -> None:
    cpu, gpu = both(which)
    C, D = cpu.fit(fit), gpu.fit(fit)
    for options in ({}, {"keep": ("layer",)}, {"measurement": "log_likelihood", "max_bytes": 2000}):
        found = gpu.influence(D, 0.3, **options)
        assert on_gpu(found)
        assert_close(found.cpu(), cpu.influence(C, 0.3, **options), 1e-10)
    own = [
        self_influence(task.model, task.objective, task.train, curvature, 0.3, progress=False)
        for task, curvature in ((gpu, D), (cpu, C))
    ]
    assert_close(own[0].cpu(), own[1], 1e-10)


@pytest.mark.parametrize("which", TASKS)
def test_an_index_and_a_refined_curvature_are_the_cpus(which: str) -> None:
    found = []
    for task in both(which):
        C = task.fit(ekfac)
        index = TrainIndex.build(task.model, task.objective, task.train, C, progress=False)
        refined = refine(C, task.model, task.objective, task.train, steps=4, progress=False)
        found.append(
            (
                index.influence(task.model, task.objective, task.queries, damping=0.3),
                index.self_influence(damping=0.3),
                index.norms(),
                task.influence(refined, 0.3),
            )
        )
    refining = 1e-9  # its steps multiply what rounding differs by
    for cpu, gpu, tolerance in zip(*found, (1e-10, 1e-10, 1e-10, refining), strict=True):
        assert on_gpu(gpu)
        assert_close(gpu.cpu(), cpu, tolerance)


@pytest.mark.parametrize("which", ["perceptron", "transformer", "the course's transformer"])
@pytest.mark.parametrize("bits", [1, 8])
def test_a_store_and_its_search_are_the_cpus(which: str, bits: int, tmp_path: Path) -> None:
    cpu, gpu = both(which)
    inflib.save(cpu.fit(ekfac), tmp_path / "fit")
    found = []
    for task in (cpu, gpu):
        C = inflib.load(tmp_path / "fit", task.model)  # one basis: a bit is a sign in it
        about, folder = (task.model, task.objective, task.train, C), tmp_path / str(len(found))
        store = TrainIndex.build(*about, path=folder, bits=bits, damping=0.3, shard=3, progress=False)
        best = store.search(task.model, task.objective, task.queries, task.train, 2, candidates=3)
        found.append(
            (store.influence(task.model, task.objective, task.queries, damping=0.7), best.scores, best.examples)
        )
    (kept, scores, examples), (came, came_scores, came_examples) = found
    assert on_gpu(came)
    assert_close(came.cpu(), kept, 1e-6)  # scales are kept in half precision
    assert_close(came_scores.cpu(), scores, 1e-10)
    assert torch.equal(came_examples.cpu(), examples)


@pytest.mark.parametrize("which", ["transformer", "the course's transformer"])
def test_token_influence_is_the_cpus(which: str) -> None:
    for function in (output_tokens, input_tokens):
        cpu, gpu = (
            function(t.model, t.objective, t.train, t.queries, t.fit(ekfac), 0.3, progress=False) for t in both(which)
        )
        assert_close(gpu.cpu(), cpu, 1e-10)
    found = [t.influence(t.fit(ekfac), 0.3, keep=("layer", "token")) for t in both(which)]
    assert on_gpu(found[1])
    assert_close(found[1].cpu(), found[0], 1e-10)


# --- labels ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", TASKS)
def test_sampled_labels_are_the_cpus(which: str, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: dict[str, list[Tensor]] = {"cpu": [], "cuda": []}
    kind = type(TASKS[which]().objective)
    sample = kind.sample

    def recording(self: Any, outputs: Tensor, uniforms: Tensor, targets: Any = None) -> Tensor:
        found = sample(self, outputs, uniforms, targets)
        assert found.device == outputs.device
        drawn[outputs.device.type].append(found.cpu())
        return found

    monkeypatch.setattr(kind, "sample", recording)
    for task in both(which):
        task.fit(kfac, labels="sampled", draws=3, seed=7)
    assert len(drawn["cpu"]) == len(drawn["cuda"]) > 0
    for cpu, gpu in zip(drawn["cpu"], drawn["cuda"], strict=True):
        if cpu.is_floating_point():  # a Gaussian label stands on the outputs, which are rounded differently
            assert_close(gpu, cpu, 1e-10)
        else:
            assert torch.equal(gpu, cpu)


# --- float32 --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", TASKS)
def test_float32_scores_correlate_with_the_cpus_float64(which: str) -> None:
    cpu, gpu = both(which, torch.float32)
    labels = "observed"  # a label drawn at float32's own probabilities may fall on the other side of a boundary
    for fit in (ekfac, kfac):
        C, D = cpu.fit(fit, labels=labels), gpu.fit(fit, labels=labels)
        assert D.eigenvalues[D.layers[0]].dtype == torch.float32
        damping = inflib.damping_of(C, 0.1)
        assert correlation(gpu.influence(D, damping), cpu.influence(C, damping)) > 0.9999
        assert correlation(D.to_dense(), C.to_dense()) > 0.9999
        own = [
            self_influence(task.model, task.objective, task.train, curvature, damping, progress=False)
            for task, curvature in ((gpu, D), (cpu, C))
        ]
        assert correlation(*own) > 0.9999


@pytest.mark.parametrize("which", ["perceptron", "convolutions", "the course's transformer"])
def test_bfloat16_scores_correlate_with_the_cpus_float64(which: str) -> None:
    cpu, gpu = both(which, torch.bfloat16)
    C, D = (task.fit(ekfac, labels="observed") for task in (cpu, gpu))
    assert {x.dtype for x in (*D.eigenvalues.values(), *D.Q_A.values())} == {torch.float32}
    damping = inflib.damping_of(C, 1.0)
    assert correlation(gpu.influence(D, damping), cpu.influence(C, damping)) > 0.97


# --- where things are -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", TASKS)
def test_every_public_call_works_on_the_gpu_and_leaves_the_model_and_the_generators_alone(
    which: str, tmp_path: Path
) -> None:
    task = TASKS[which]().to("cuda")
    before, state = deepcopy(task.model.state_dict()), torch.cuda.get_rng_state()
    for what, call in calls(task, tmp_path):
        found = call()
        if isinstance(found, Tensor):
            assert on_gpu(found), what
    after = task.model.state_dict()
    assert all(torch.equal(after[k], v) and after[k].device == v.device for k, v in before.items())
    assert torch.equal(state, torch.cuda.get_rng_state())


@pytest.mark.parametrize("which", TASKS)
def test_a_curvature_fitted_on_one_device_serves_the_other(which: str, tmp_path: Path) -> None:
    cpu, gpu = both(which)
    assert hash_weights(cpu.model) == hash_weights(gpu.model)
    C, D = cpu.fit(ekfac), gpu.fit(ekfac)
    inflib.save(C, tmp_path / "cpu")
    inflib.save(D, tmp_path / "gpu")
    there, here = inflib.load(tmp_path / "cpu", gpu.model), inflib.load(tmp_path / "gpu", cpu.model)
    assert on_gpu([there.eigenvalues, there.Q_S, there.Q_A])
    expected = cpu.influence(C)
    assert_close(gpu.influence(there).cpu(), expected, 1e-10)
    assert_close(cpu.influence(here), expected, 1e-10)


@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
def test_the_derivative_through_training_is_the_cpus(optimiser: str) -> None:
    cpu, gpu = both("perceptron")
    N = sum(len(y) for _, y in cpu.train)
    run = Run.of(Training(3, 2, 0.05, weight_decay=0.01, optimiser=optimiser), N)
    came, expected = (through_training(t.model, t.objective, t.train, t.queries, run) for t in (gpu, cpu))
    assert on_gpu([came.scores, came.measured, came.parameters])
    assert_close(came.scores.cpu(), expected.scores, 1e-9)
    assert_close(came.sensitivity.cpu(), expected.sensitivity, 1e-9)


def test_data_left_on_the_cpu_is_named_with_the_fix() -> None:
    cpu, gpu = both("perceptron")
    fit = gpu.fit(ekfac)
    with pytest.raises(ValueError, match=r"inputs are on cpu, the model is on cuda:0.*x.to\('cuda:0'\)"):
        influence(gpu.model, gpu.objective, cpu.train, gpu.queries, fit, progress=False)
    mixed = [(x, y.cpu()) for x, y in gpu.train]
    with pytest.raises(ValueError, match=r"targets on cpu, outputs on cuda:0.*y.to\('cuda:0'\)"):
        ekfac(gpu.model, gpu.objective, mixed, progress=False)


def test_a_functional_dropout_on_the_gpu_is_noticed() -> None:
    case = make()
    model = Plain(change=lambda h: nn.functional.dropout(h.tanh(), 0.5, training=True)).cuda()
    train = [(x.cuda(), y.cuda()) for x, y in case.train]
    state = torch.cuda.get_rng_state()
    with pytest.raises(RuntimeError, match=r"draws random numbers in its forward pass"):
        ekfac(model, case.objective, train, progress=False)
    assert torch.equal(torch.cuda.get_rng_state(), state)
    assert all(not module._forward_hooks for module in model.modules())
