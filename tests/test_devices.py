"""Numbers stay on the model's device, and what a device cannot do is done on the CPU; no GPU is needed to see it.

``torch.device("meta")`` as the default device stands in for a model that is elsewhere than torch makes its tensors: one
made without saying where has no numbers in it, and cannot meet the model's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import torch
from languages import VOCABULARY, language
from networks import make, snapshot, zoo
from oracle import assert_close
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import inflib
import inflib.placement
from inflib import CrossEntropy, TrainIndex, ekfac, gauss_newton, identity, influence, kfac, lab, refine, self_influence
from inflib.batches import double
from inflib.ekfac import eigh
from inflib.objectives import inverse_cdf
from inflib.randomness import preserved_rng
from inflib.solvers import largest_eigenvalue
from inflib.tokens import output_tokens

pytestmark = [
    pytest.mark.usefixtures("float64"),
    pytest.mark.filterwarnings("ignore::inflib.CoverageNote", "ignore::inflib.IndefiniteWarning"),
]


@dataclass
class Task:
    """A model with its objective, training batches and queries; ``to`` gives the same somewhere else."""

    model: nn.Module
    objective: inflib.Objective
    train: list[tuple[Any, Any]]
    queries: list[tuple[Any, Any]]
    layers: list[str]

    def to(self, device: torch.device | str, dtype: torch.dtype = torch.float64) -> Task:
        """Moves the model itself, and copies of the data."""

        def moved(x: Tensor) -> Tensor:
            return x.to(device, dtype) if x.is_floating_point() else x.to(device)

        train, queries = pytree.tree_map(moved, self.train), pytree.tree_map(moved, self.queries)
        return Task(self.model.to(device, dtype), self.objective, train, queries, self.layers)

    def fit(self, which: Callable[..., Any], **options: Any) -> Any:
        return which(self.model, self.objective, self.train, layers=self.layers, progress=False, **options)

    def influence(self, curvature: Any, damping: Any = 0.1, **options: Any) -> Tensor:
        return influence(
            self.model, self.objective, self.train, self.queries, curvature, damping, progress=False, **options
        )


def network(case: Any) -> Task:
    return Task(case.model, case.objective, case.train, case.queries, case.layers)


def transformer() -> Task:
    case = language()
    return Task(case.model, case.objective, case.train, case.asked, case.layers)


def course() -> Task:
    """The transformer that the notebooks study."""
    model = lab.transformer(VOCABULARY, context=8, width=4, heads=2, hidden=5, blocks=1, dtype=torch.float64).eval()
    layers = [f"blocks.0.attention.{part}" for part in "qkvo"] + ["blocks.0.mlp.up", "blocks.0.mlp.down", "unembed"]
    case = language(model=model, layers=layers)
    return Task(case.model, case.objective, case.train, case.asked, case.layers)


TASKS: dict[str, Callable[[], Task]] = {
    "perceptron": lambda: network(make(n=9, widths=(3, 5, 3), queries=4)),
    "perceptron, squared error": lambda: network(make("SquaredError", n=9, queries=4)),
    "perceptron, Bernoulli": lambda: network(make("Bernoulli", n=9, queries=4)),
    "convolutions": lambda: network(zoo("convolutions, tied, called twice")),
    "convolution in groups": lambda: network(zoo("convolution in groups")),
    "transformer": transformer,
    "the course's transformer": course,
}
LABELS = ("expected", "sampled", "observed")


def stored(task: Task, curvature: Any, path: Path) -> Tensor:
    """A store built and asked: scores, scores of some, bounds and what a search finds, in one row a query."""
    options: dict[str, Any] = {"axes": 0.5, "bits": 2, "components": 2, "sample": 4, "progress": False}
    store = TrainIndex.build(task.model, task.objective, task.train, curvature, path=path, **options)
    prepared = store.prepare(task.model, task.objective, task.queries)
    found = store.search(task.model, task.objective, task.queries, task.train, k=2, candidates=3)
    parts = [store.scores(prepared), store.scores(prepared, examples=[1, 0]), store.bounds(prepared)]
    return torch.cat([*(part.cpu() for part in parts), found.scores, found.places], dim=1)


def calls(task: Task, folder: Path) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Everything the library can be asked about a task."""
    for which in (ekfac, kfac, inflib.diagonal, identity, gauss_newton):
        for labels in LABELS:
            yield f"{which.__name__}, {labels}", lambda w=which, y=labels: task.fit(w, labels=y)
    yield "hessian", lambda: task.fit(inflib.hessian)
    yield "reduced", lambda: task.fit(ekfac, sharing="reduce")
    fitted = task.fit(ekfac)
    refined = refine(fitted, task.model, task.objective, task.train, steps=3, progress=False)
    index = TrainIndex.build(task.model, task.objective, task.train, fitted, progress=False)
    for C in (fitted, task.fit(identity), task.fit(gauss_newton, labels="observed"), refined):
        yield f"influence, {C.facts.method}", lambda C=C: task.influence(C)
        yield f"influence by layer, {C.facts.method}", lambda C=C: task.influence(C, keep=("layer",))
        if C is not refined:
            yield (
                f"self-influence, {C.facts.method}",
                lambda C=C: self_influence(task.model, task.objective, task.train, C, 0.1, progress=False),
            )
            yield f"dense, {C.facts.method}", C.to_dense
    yield "index", lambda: TrainIndex.build(task.model, task.objective, task.train, fitted, progress=False)
    yield "scores", lambda: index.influence(task.model, task.objective, task.queries)
    yield (
        "some scores",
        lambda: index.scores(
            index.prepare(task.model, task.objective, task.queries), examples=[1, 0], layers=task.layers[:1]
        ),
    )
    yield "the index's own", lambda: (index.self_influence(), index.norms())
    for value, load in ((fitted, inflib.load), (index, inflib.load_index)):
        path = folder / type(value).__name__
        yield f"{path.name} saved", lambda v=value, p=path: inflib.save(v, p)
        yield f"{path.name} loaded", lambda f=load, p=path: f(p, task.model)
    yield "a store", lambda: stored(task, fitted, folder / uuid4().hex)
    if isinstance(task.objective, inflib.NextToken):
        yield "by token", lambda: task.influence(fitted, keep=("token",))
        yield (
            "output tokens",
            lambda: output_tokens(task.model, task.objective, task.train, task.queries, fitted, 0.1, progress=False),
        )


@pytest.mark.parametrize("which", TASKS)
def test_nothing_is_made_on_the_default_device(which: str, tmp_path: Path) -> None:
    task = TASKS[which]()
    for what, call in calls(task, tmp_path):
        expected = call()
        try:
            with torch.device("meta"):
                found = call()
        except Exception as error:
            raise AssertionError(f"{what}: something was made on the default device: {error}") from error
        if isinstance(expected, Tensor):
            assert torch.equal(found, expected), what


def test_the_default_device_is_noticed() -> None:
    class Careless(CrossEntropy):
        def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
            return super().loss(outputs, targets) * torch.ones(len(outputs))

    task = TASKS["perceptron"]()
    task.objective = Careless()
    task.fit(ekfac, labels="observed")
    with torch.device("meta"), pytest.raises((RuntimeError, NotImplementedError, ValueError)):
        task.fit(ekfac, labels="observed")


# --- what a device lacks ----------------------------------------------------------------------------------------------------


def spd(size: int) -> Tensor:
    rows = torch.randn(2 * size, size, generator=torch.Generator().manual_seed(0))
    return rows.T @ rows


@pytest.mark.parametrize("error", [NotImplementedError, RuntimeError])
def test_eigh_is_done_on_the_cpu_where_a_device_has_none(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, asked, moved = torch.linalg.eigh, [], []

    def lacking(matrix: Tensor) -> Any:
        asked.append(matrix)
        if not moved:
            raise error("aten::_linalg_eigh is not implemented for this device")
        return real(matrix)

    monkeypatch.setattr(torch.linalg, "eigh", lacking)
    to_cpu = Tensor.cpu
    monkeypatch.setattr(Tensor, "cpu", lambda x: (moved.append(x), to_cpu(x))[1])
    matrix = spd(4)
    values, vectors = eigh(matrix)
    assert len(asked) == 2 and len(moved) == 1
    assert_close(vectors @ torch.diag(values) @ vectors.T, matrix, 1e-13)
    moved.clear()
    case = make()
    curvature = ekfac(case.model, case.objective, case.train, progress=False)
    monkeypatch.undo()
    assert_close(curvature.to_dense(), ekfac(case.model, case.objective, case.train, progress=False).to_dense(), 1e-14)


def test_an_eigh_that_fails_on_the_cpu_too_is_the_users_to_see(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(matrix: Tensor) -> Any:
        raise torch.linalg.LinAlgError("did not converge")

    monkeypatch.setattr(torch.linalg, "eigh", failing)
    with pytest.raises(torch.linalg.LinAlgError, match="did not converge"):
        eigh(spd(3))


def test_a_device_without_float64_has_its_exact_steps_done_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    real, on_cpu = Tensor.double, []

    def lacking(x: Tensor) -> Tensor:
        if not any(x is y for y in on_cpu):
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64")
        return real(x)

    def to_cpu(x: Tensor) -> Tensor:
        on_cpu.append(x.clone())
        return on_cpu[-1]

    monkeypatch.setattr(Tensor, "double", lacking)
    monkeypatch.setattr(Tensor, "cpu", to_cpu)
    x = torch.randn(3, dtype=torch.float32)
    assert double(x).dtype == torch.float64
    assert len(on_cpu) == 1
    task = TASKS["perceptron"]()
    found = task.fit(ekfac, labels="sampled")
    scores = task.influence(found, None)
    monkeypatch.undo()
    expected = task.fit(ekfac, labels="sampled")
    assert torch.equal(found.to_dense(), expected.to_dense())
    assert torch.equal(scores, task.influence(expected, None))


def test_a_solver_started_on_the_cpu_reaches_a_curvature_of_another_dtype() -> None:
    """As it does for one on another device: the vectors follow the curvature's matrices."""
    task = TASKS["perceptron"]()
    for which in (ekfac, identity, inflib.diagonal, gauss_newton):
        curvature = task.fit(which)
        torch.set_default_dtype(torch.float32)
        found = largest_eigenvalue(curvature, 0.1)
        torch.set_default_dtype(torch.float64)
        assert found == pytest.approx(float(torch.linalg.eigvalsh(curvature.to_dense())[-1]) + 0.1, rel=1e-2)


# --- draws ------------------------------------------------------------------------------------------------------------------


def test_labels_are_drawn_by_whole_numbers_which_add_up_the_same_on_every_device() -> None:
    """A running sum of fractions depends on its order, and torch refuses it on CUDA where asked to be deterministic."""
    p = torch.tensor([0.1, 0.0, 0.2, 0.7, 0.0])
    u = torch.tensor([1e-12, 0.0999999, 0.1000001, 0.2999999, 0.3000001, 1 - 1e-12])
    found = inverse_cdf(p.repeat(6, 1), u[:, None])
    assert found.tolist() == [0, 0, 2, 2, 3, 3]
    impossible_first = torch.tensor([[0.0, 0.5, 0.5]])
    assert inverse_cdf(impossible_first, torch.tensor([[2.0**-54]])).tolist() == [1]
    generator = torch.Generator().manual_seed(0)
    p = torch.randn(2000, 40, generator=generator).softmax(-1)
    u = torch.rand(2000, 1, generator=generator)
    assert torch.equal(inverse_cdf(p.clone(), u), (u > p.cumsum(-1)).sum(-1))


class Draws(nn.Module):
    """Adds noise from a generator of its own, as a functional dropout does from its GPU's."""

    def __init__(self, generator: torch.Generator):
        super().__init__()
        self.inner, self.generator = nn.Linear(3, 3), generator

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + torch.rand(1, generator=self.generator)


def test_numbers_drawn_from_the_models_own_device_are_noticed_and_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.Generator().manual_seed(3)
    model, case = Draws(gpu), make()
    monkeypatch.setattr(inflib.placement, "_generators", lambda model: [torch.default_generator, gpu])
    before, state = snapshot(model), gpu.get_state()
    with pytest.raises(RuntimeError, match=r"draws random numbers in its forward pass.*model.eval\(\)"):
        ekfac(model, case.objective, case.train, progress=False)
    assert torch.equal(gpu.get_state(), state)
    assert snapshot(model) == before


def test_generators_are_put_back_also_after_an_exception() -> None:
    one, two = torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)
    states = one.get_state(), two.get_state()
    with pytest.raises(KeyError), preserved_rng([one, two]):
        torch.rand(3, generator=one), torch.rand(3, generator=two)
        raise KeyError
    assert torch.equal(one.get_state(), states[0]) and torch.equal(two.get_state(), states[1])
