"""The model runs as its user has it: compiled, checkpointed, under autocast; wrappers are refused by name."""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import inflib
from inflib import CrossEntropy, TrainIndex, ekfac, gauss_newton, hessian, influence, kfac, refine, self_influence

pytestmark = pytest.mark.filterwarnings("ignore::inflib.IndefiniteWarning")

WIDTH, CLASSES = 12, 4


class Net(nn.Module):
    """A network that may checkpoint its first half, and may set an autocast of its own."""

    def __init__(self, reentrant: bool | None = None, autocast: bool = False):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Sequential(nn.Linear(6, WIDTH), nn.ReLU()), nn.Linear(WIDTH, CLASSES)
        self.reentrant, self.autocast = reentrant, autocast

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast or torch.is_autocast_enabled("cpu")):
            if self.reentrant is None:
                return self.last(self.first(x))
            return self.last(checkpoint(self.first, x, use_reentrant=self.reentrant))


def data() -> list[tuple[Tensor, Tensor]]:
    g = torch.Generator().manual_seed(1)
    return [(torch.randn(7, 6, generator=g), torch.randint(0, CLASSES, (7,), generator=g)) for _ in range(3)]


def answers(model: nn.Module, batches: Any) -> dict[str, Tensor]:
    """One number of every kind that inflib gives."""
    objective, quiet = CrossEntropy(), {"progress": False}
    curvature = ekfac(model, objective, batches, **quiet)
    index = TrainIndex.build(model, objective, batches, curvature, **quiet)
    refined = refine(curvature, model, objective, batches, steps=3, **quiet)
    exact = gauss_newton(model, objective, batches, **quiet)
    return {
        "ekfac": influence(model, objective, batches, batches[:1], curvature, **quiet),
        "kfac": influence(model, objective, batches, batches[:1], kfac(model, objective, batches, **quiet), **quiet),
        "index": index.influence(model, objective, batches[:1]),
        "self": self_influence(model, objective, batches, curvature, **quiet),
        "refined": influence(model, objective, batches, batches[:1], refined, **quiet),
        "exact": influence(model, objective, batches, batches[:1], exact, **quiet),
        "hessian": hessian(model, objective, batches, **quiet).to_dense(),
        "solved": curvature.solve(
            {k: torch.ones(2, *s) for k, s in curvature.shapes.items()}, inflib.damping_of(exact)
        )[curvature.layers[0]],
    }


def apart(model: nn.Module, autocast: bool = False) -> dict[str, float]:
    """How far each answer is from the plain model's in float32, relative to its size."""
    plain = answers(Net().eval(), data())
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        came = answers(model, data())
    assert {x.dtype for x in came.values()} == {torch.float32}
    return {name: float((came[name] - x).norm() / x.norm()) for name, x in plain.items()}


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("train", [True, False])
def test_checkpointed_layers_are_as_if_they_were_not(reentrant: bool, train: bool) -> None:
    model = Net(reentrant).train(train)
    assert max(apart(model).values()) < 1e-6
    before = (torch.utils.checkpoint.CheckpointFunction, torch.utils.checkpoint._checkpoint_without_reentrant_generator)
    answers(model, data())
    after = (torch.utils.checkpoint.CheckpointFunction, torch.utils.checkpoint._checkpoint_without_reentrant_generator)
    assert after == before
    x = data()[0][0].requires_grad_()  # and the user's own checkpoints work again
    model(x).sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize("fullgraph", [True, False])
@pytest.mark.parametrize("run", [True, False])
def test_compiled_models_are_as_if_they_were_not(fullgraph: bool, run: bool) -> None:
    wrapped = torch.compile(Net().eval(), backend="eager", fullgraph=fullgraph)
    in_place = Net().eval()
    in_place.compile(backend="eager", fullgraph=fullgraph)
    part = Net().eval()
    part.first = torch.compile(part.first, backend="eager")
    for model in (wrapped, in_place, part, *compiled_inside(fullgraph)):
        if run:
            model(data()[0][0])
        assert max(apart(model).values()) < 1e-6


def compiled_inside(fullgraph: bool) -> Iterator[nn.Module]:
    """Models whose module is none of torch.compile's, but whose forward, or a method or function that it calls, is."""
    compiled = torch.compile(backend="eager", fullgraph=fullgraph)
    yield type("Whole", (Net,), {"forward": compiled(Net.forward)})().eval()
    yield type("Method", (Net,), {"body": compiled(Net.forward), "forward": lambda self, x: self.body(x)})().eval()
    own = Net().eval()
    own.forward = compiled(own.forward)
    yield own
    function = compiled(Net.forward)
    yield type("Function", (Net,), {"forward": lambda self, x: function(self, x)})().eval()


def test_autocast_is_for_the_model_and_not_for_our_products() -> None:
    around, inside = apart(Net().eval(), autocast=True), apart(Net(autocast=True).eval())
    assert inside == around  # the same model runs, wherever its user said so, and nothing else is rounded
    assert 1e-4 < max(inside.values()) < 0.1
    half = copy.deepcopy(Net().eval()).bfloat16()
    rounded = [(x.bfloat16(), y) for x, y in data()]
    for name, ask in {
        "ekfac": lambda m, d: influence(m, CrossEntropy(), d, d[:1], ekfac(m, CrossEntropy(), d, progress=False)),
        "self": lambda m, d: self_influence(m, CrossEntropy(), d, ekfac(m, CrossEntropy(), d, progress=False)),
    }.items():
        plain, came = ask(Net().eval(), data()), ask(half, rounded)
        assert came.dtype == torch.float32
        assert float((came - plain).norm() / plain.norm()) < 0.1, name


def test_autocast_is_put_back_after_an_error() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        with pytest.raises(ValueError, match="matches no layer"):
            ekfac(Net().eval(), CrossEntropy(), data(), layers="absent", progress=False)
        assert torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16


def test_a_model_that_is_wrapped_for_several_devices_is_refused_by_the_wrappers_name(tmp_path: Any) -> None:
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        for wrap in (nn.DataParallel, nn.parallel.DistributedDataParallel):
            model = wrap(Net().eval())
            fix = rf"wrapped in {wrap.__name__}.*Pass model.module"
            with pytest.raises(ValueError, match=fix):
                ekfac(model, CrossEntropy(), data(), progress=False)
            curvature = ekfac(model.module, CrossEntropy(), data(), progress=False)
            with pytest.raises(ValueError, match=rf"wrapped in {wrap.__name__}.*model.module"):
                influence(model, CrossEntropy(), data(), data(), curvature, progress=False)
    finally:
        torch.distributed.destroy_process_group()


class FusedExperts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.zeros(3, 6, 6))


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.LSTM(6, 6), "is a LSTM.*several matrices step by step.*leave it out"),
        (nn.GRUCell(6, 6), "is a GRUCell.*leave it out"),
        (nn.Sequential(nn.Linear(6, 6)), r"is a Sequential, which holds layers.*'odd.0', or all of.*'odd.\*'"),
        (FusedExperts(), "is a FusedExperts.*a matrix for each of several experts.*leave it out"),
        (nn.Embedding(6, 2, max_norm=1.0), "is a Embedding.*max_norm changes its weight.*leave it out"),
        (nn.Bilinear(6, 6, 6), r"is a Bilinear.*inflib.register\(Bilinear"),
    ],
)
def test_a_named_module_without_a_single_matrix_says_what_to_do(module: nn.Module, message: str) -> None:
    model = nn.ModuleDict({"odd": module, "fine": nn.Linear(2, 2)})
    with pytest.raises(ValueError, match=message):
        inflib.coverage(model, ["odd", "fine"])


class TwiceNamed(nn.Module):
    """A module under two names, whose weight a third has too, as in older T5s: an embedding read twice and tied."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.shared, self.encoder = nn.Embedding(9, 5), nn.Module()
        self.encoder.tokens = self.shared
        self.middle, self.head = nn.Linear(5, 5), nn.Linear(5, 9, bias=False)
        self.head.weight = self.shared.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.middle(self.shared(ids) + self.encoder.tokens(ids.flip(1))).tanh().mean(1))


def test_a_module_that_has_two_names_and_a_tied_weight_is_left_as_it_was_found() -> None:
    model, objective = TwiceNamed().double().eval(), CrossEntropy()
    g = torch.Generator().manual_seed(1)
    train = [(torch.randint(0, 9, (6, 4), generator=g), torch.randint(0, 9, (6,), generator=g)) for _ in range(2)]
    weight, layers = model.shared.weight, ["middle"]
    options: dict[str, Any] = dict(progress=False)
    C = ekfac(model, objective, train, layers=layers, **options)
    calls = {
        "ekfac": lambda: ekfac(model, objective, train, layers="all", **options),
        "kfac": lambda: kfac(model, objective, train, layers=layers, **options),
        "gauss_newton": lambda: gauss_newton(model, objective, train, layers=layers, **options),
        "hessian": lambda: hessian(model, objective, train, layers=layers, **options),
        "influence": lambda: influence(model, objective, train, train[:1], C, **options),
        "self_influence": lambda: self_influence(model, objective, train, C, **options),
        "index": lambda: TrainIndex.build(model, objective, train, C, **options),
        "refined": lambda: inflib.precondition(
            model, objective, train[:1], refine(C, model, objective, train, steps=2), **options
        ),
    }
    for name, run in calls.items():
        run()
        held = (model.shared.weight, model.encoder.tokens.weight, model.head.weight)
        assert all(each is weight for each in held), f"{name} changed the model"
        assert isinstance(weight, nn.Parameter) and weight.requires_grad, name


# --- threads ----------------------------------------------------------------------------------------------------------


class Slow(Net):
    """Gives way to other threads in the middle of its forward."""

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        time.sleep(0.002)
        return self.last(hidden)


def test_threads_that_ask_at_the_same_time_get_what_each_would_get_alone() -> None:
    """As a server's do: of one model about different queries, and of models of their own."""
    model, batches, objective = Slow().eval(), data(), CrossEntropy()
    curvature = ekfac(model, objective, batches, progress=False)
    expected = [influence(model, objective, batches, [batch], curvature, progress=False) for batch in batches]
    found: dict[int, Any] = {}
    others = [Slow().eval() for _ in range(6)]

    def ask(n: int) -> None:
        try:
            ekfac(others[n], objective, batches, progress=False)
            found[n] = influence(model, objective, batches, [batches[n % 3]], curvature, progress=False)
        except Exception as error:
            found[n] = error

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for n in range(6):
        torch.testing.assert_close(found[n], expected[n % 3])
    assert all(p.requires_grad for p in model.parameters())
