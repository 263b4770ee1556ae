"""Equal hashes are equal functions, and no change of what was hashed goes unnoticed."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from networks import make
from torch import Tensor, nn

import inflib.fingerprints
from inflib import (
    CrossEntropy,
    SquaredError,
    TrainIndex,
    diagonal,
    ekfac,
    identity,
    influence,
    kfac,
    refine,
    self_influence,
)
from inflib.baselines import gradient_cosine, gradient_dot
from inflib.fingerprints import SMALL, checksum, difference, hash_weights
from inflib.scoring import layers_of

pytestmark = pytest.mark.usefixtures("float64")


class Own(nn.Module):
    """A user's module with settings of every kind, a call counter and a cache."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 3)
        self.slope, self.scaled, self.kind = 0.5, True, "wide"
        self.act: Any = F.gelu
        self.parts: Any = (0.5, "a", {"b": 1.5})
        self.calls, self.seen = 0, torch.zeros(0)
        self.register_buffer("mask", torch.ones(3), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.seen = self.act(self.fc(x)) * self.mask * self.slope
        return self.seen


def built(*, act: Callable[[], nn.Module] = nn.Tanh) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv1d(1, 2, 3, padding=1), act(), nn.Flatten(), nn.LayerNorm(6), nn.Linear(6, 3), Own())


# --- structure ----------------------------------------------------------------------------------------------------------


def test_two_builds_and_a_copy_have_one_hash() -> None:
    assert hash_weights(built()) == hash_weights(built()) == hash_weights(copy.deepcopy(built()))


CHANGES: dict[str, Callable[[Any], Any]] = {
    "a buffer that is not saved": lambda m: m[5].mask[1].mul_(2),
    "a float": lambda m: setattr(m[5], "slope", 0.25),
    "a flag": lambda m: setattr(m[5], "scaled", False),
    "a word": lambda m: setattr(m[5], "kind", "narrow"),
    "a function": lambda m: setattr(m[5], "act", F.silu),
    "a torch function": lambda m: setattr(m[5], "act", torch.tanh),
    "a partial": lambda m: setattr(m[5], "act", partial(F.leaky_relu, negative_slope=0.2)),
    "a lambda": lambda m: setattr(m[5], "act", lambda x: x * torch.sigmoid(x)),
    "a tuple": lambda m: setattr(m[5], "parts", (0.5, "a", {"b": 2.5})),
    "a key": lambda m: setattr(m[5], "parts", (0.5, "a", {"c": 1.5})),
    "an eps": lambda m: setattr(m[3], "eps", 1e-3),
    "a stride": lambda m: setattr(m[0], "stride", (2,)),
    "a padding": lambda m: setattr(m[0], "padding_mode", "circular"),
    "an activation": lambda m: m.__setitem__(1, nn.ReLU()),
    "an order": lambda m: (m.__setitem__(1, nn.Flatten()), m.__setitem__(2, nn.Tanh())),
    "a module more": lambda m: m.append(nn.Identity()),
    "a shared weight": lambda m: setattr(m[5].fc, "bias", m[4].bias),
}


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_of_the_function_changes_the_hash(change: str) -> None:
    model = built()
    with torch.no_grad():
        model[5].fc.bias.copy_(model[4].bias)  # so that sharing it changes no number
        before = hash_weights(model)
        CHANGES[change](model)
    after = hash_weights(model)
    assert after != before
    expected = "weights or buffers" if change in ("a buffer that is not saved", "a shared weight") else "modules or"
    assert difference(before, after).startswith(expected)


@pytest.mark.parametrize(("one", "other"), [(0.01, 0.2), (1.0, -1.0)])
def test_a_leaky_slope_is_part_of_the_function(one: float, other: float) -> None:
    first, second = (hash_weights(built(act=partial(nn.LeakyReLU, slope))) for slope in (one, other))
    assert difference(first, second) == "modules or their settings"


def test_partials_and_lambdas_differ_by_what_they_hold() -> None:
    def scaled(by: float) -> Callable:
        return lambda x: by * x

    found = []
    for act in (
        partial(F.leaky_relu, negative_slope=0.1),
        partial(F.leaky_relu, negative_slope=0.2),
        partial(F.elu, alpha=0.1),
        lambda x: F.relu(x),
        lambda x: F.relu(x) * 0.5,
        lambda x: F.gelu(x),
        scaled(1.0),
        scaled(2.0),
        nn.ReLU,
        nn.GELU,
    ):
        model = built()
        model[5].act = act
        found.append(hash_weights(model))
    assert len(set(found)) == len(found)


UNCHANGED: dict[str, Callable[[Any], Any]] = {
    "train mode": lambda m: m.train(),
    "frozen weights": lambda m: m.requires_grad_(False),
    "a gradient": lambda m: m(torch.randn(2, 1, 3)).sum().backward(),
    "a forward pass": lambda m: m(torch.randn(2, 1, 3)),
    "checkpointing": lambda m: setattr(m[5], "gradient_checkpointing", True),
    "strides": lambda m: setattr(m[4], "weight", nn.Parameter(m[4].weight.detach().T.contiguous().T)),
    "a hook that records": lambda m: m[0].register_forward_hook(lambda *_: None),
    "torch.compile": lambda m: m.compile(),
}


@pytest.mark.parametrize("change", UNCHANGED)
def test_what_leaves_the_function_as_it_is_leaves_the_hash(change: str) -> None:
    model = built()
    before = hash_weights(model)
    UNCHANGED[change](model)
    assert hash_weights(model) == before


HASHES = """
import sys; sys.path[:0] = ["tests"]
import torch; torch.set_default_dtype(torch.float64)
from test_fingerprints import built, hash_weights
model = built()
model[5].act = lambda x: x * 0.5
print(hash_weights(model))
"""


def test_the_hash_is_the_same_in_every_process() -> None:
    root = Path(__file__).resolve().parent.parent
    found = {
        subprocess.run(
            [sys.executable, "-c", HASHES], check=True, cwd=root, timeout=120, capture_output=True, text=True
        ).stdout
        for _ in range(2)
    }
    model = built()
    model[5].act = lambda x: x * 0.5
    assert found == {hash_weights(model) + "\n"}


# --- numbers ------------------------------------------------------------------------------------------------------------


def strided() -> list[Tensor]:
    """The numbers 0 … 11 as they lie in memory in many ways, and single ones."""
    x = torch.arange(12.0)
    wide = torch.zeros(3, 8)
    wide[:, ::2] = x.view(3, 4)
    odd = torch.zeros(13, dtype=torch.float32)[1:]  # begins in the middle of a word
    odd.copy_(x)
    return [
        x.view(3, 4),
        x.view(3, 4).T.contiguous().T,
        wide[:, ::2],
        odd.view(3, 4).double(),
        x.view(3, 4).clone(memory_format=torch.contiguous_format),
    ]


def test_a_tensors_hash_is_of_its_numbers_however_they_lie() -> None:
    found = set()
    for x in strided():
        model = nn.Linear(4, 3, bias=False)
        model.weight = nn.Parameter(x)
        found.add(hash_weights(model))
    assert len(found) == 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.int8, torch.bool])
def test_a_number_alone_may_have_any_stride_and_any_place(dtype: torch.dtype) -> None:
    theta = torch.tensor([[1, 0, 1, 1]], dtype=dtype)
    assert checksum(theta[:, -1]) == checksum(theta[:, 2].clone()) != checksum(theta[:, 1])
    model = nn.Module()
    for k, x in enumerate((theta[:, -1], theta[0, 1], theta[:, 1:].T, theta[:, :0])):
        model.register_buffer(str(k), x)
    before = hash_weights(model)
    theta[0, 1] = 1
    assert hash_weights(model) != before


def test_a_parameter_that_is_a_view_is_fitted_and_scored() -> None:
    theta = torch.randn(1, 4)
    model = nn.Linear(3, 1).eval()
    model.weight, model.bias = nn.Parameter(theta[:, :3]), nn.Parameter(theta[:, -1])
    data = [(torch.randn(6, 3), torch.randn(6, 1))]
    plain = copy.deepcopy(model)
    plain.weight, plain.bias = (nn.Parameter(p.detach().clone().contiguous()) for p in (model.weight, model.bias))
    curvature = ekfac(plain, SquaredError(), data, progress=False)
    one, two = (influence(m, SquaredError(), data, data, curvature, progress=False) for m in (model, plain))
    assert torch.equal(one, two)


def wide() -> nn.Module:
    """A layer whose weight is far above what is hashed whole every time."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(512, 1024), nn.ReLU(), nn.Linear(1024, 2))


IN_PLACE: dict[str, Callable[[Tensor], Any]] = {
    "one bit": lambda w: w.view(torch.int64).view(-1)[1234].bitwise_xor_(1),
    "the last bit": lambda w: w.view(torch.int64).view(-1)[-1].bitwise_xor_(1),
    "all": lambda w: w.add_(0.5),
    "two rows change places": lambda w: w.copy_(w[[1, 0, *range(2, len(w))]]),
    "rows far apart change places": lambda w: w.copy_(w.roll(8, 0)),
    "columns change places": lambda w: w.copy_(w.flip(1)),
    "transposed": lambda w: w[:512].copy_(w[:512].T.clone()),
    "two numbers change places": lambda w: w.view(-1).index_copy_(0, torch.tensor([1026, 5]), w.view(-1)[[5, 1026]]),
    "signs": lambda w: w[:2].neg_(),
    "a sum that stays": lambda w: w[3].copy_(w[3] + torch.tensor([1.0, -1.0]).repeat(256)),
}


@pytest.mark.parametrize("change", IN_PLACE)
def test_a_change_through_data_is_seen_though_no_version_counter_moves(change: str) -> None:
    model = wide()
    assert model[0].weight.numel() * 8 > SMALL
    before, version = hash_weights(model), model[0].weight._version
    held = model[0].weight.detach().clone()
    with torch.no_grad():
        IN_PLACE[change](model[0].weight.data)
    assert model[0].weight._version == version
    assert not torch.equal(held, model[0].weight)
    assert hash_weights(model) != before
    model[0].weight.data = held
    assert hash_weights(model) == before


def test_a_large_tensor_is_hashed_once_and_not_for_every_question(monkeypatch: pytest.MonkeyPatch) -> None:
    model, hashed = wide(), []
    plain = inflib.fingerprints.hash_tensor
    monkeypatch.setattr(inflib.fingerprints, "hash_tensor", lambda d, x: (hashed.append(x.numel()), plain(d, x)))
    for _ in range(3):
        hash_weights(model)
    assert sorted(hashed) == [2, 2, 2, 1024, 1024, 1024, 2048, 2048, 2048, 1024 * 512]


# --- who looks ----------------------------------------------------------------------------------------------------------

ASK: dict[str, Callable[[Any, Any, Any], Any]] = {
    "influence": lambda c, C, _: influence(c.model, c.objective, c.train, c.queries, C, progress=False),
    "self_influence": lambda c, C, _: self_influence(c.model, c.objective, c.train, C, progress=False),
    "TrainIndex.build": lambda c, C, _: TrainIndex.build(c.model, c.objective, c.train, C, progress=False),
    "bytes_needed": lambda c, C, _: TrainIndex.bytes_needed(c.model, c.train, C),
    "index.influence": lambda c, _, index: index.influence(c.model, c.objective, c.queries),
    "index.prepare": lambda c, _, index: index.prepare(c.model, c.objective, c.queries),
    "refine": lambda c, C, _: refine(C, c.model, c.objective, c.train, progress=False),
}
CHANGE: dict[str, Callable[[nn.Module], Any]] = {
    "added in place": lambda m: m.fc0.weight.data.add_(0.5),
    "another tensor": lambda m: setattr(m.fc1, "bias", nn.Parameter(m.fc1.bias + 1)),
    "another activation": lambda m: setattr(m, "act", nn.ReLU()),
}


@pytest.mark.parametrize("fit", [ekfac, kfac, diagonal, identity])
@pytest.mark.parametrize("ask", ASK)
def test_a_curvature_of_other_weights_is_refused_by_all_who_use_it(ask: str, fit: Any) -> None:
    for change in CHANGE.values():
        case = make(n=6)
        curvature = fit(case.model, case.objective, case.train, progress=False)
        index = TrainIndex.build(case.model, case.objective, case.train, curvature, progress=False)
        ASK[ask](case, curvature, index)
        change(case.model)
        with pytest.raises(ValueError, match=r"was fitted at weights with hash \w+, this model's are .*fit again"):
            ASK[ask](case, curvature, index)


def test_baselines_fit_their_own_curvature_and_answer_at_the_weights_they_find() -> None:
    case = make(n=6)
    before = [
        f(case.model, case.objective, case.train, case.queries, progress=False) for f in (gradient_dot, gradient_cosine)
    ]
    case.model.fc0.weight.data.add_(0.5)
    after = [
        f(case.model, case.objective, case.train, case.queries, progress=False) for f in (gradient_dot, gradient_cosine)
    ]
    assert not any(torch.equal(x, y) for x, y in zip(before, after, strict=True))


class Wrapper(nn.Module):
    """As DistributedDataParallel and DataParallel hold the model they wrap."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x)


@pytest.mark.parametrize(("wrap", "prefix"), [(Wrapper, "module"), (torch.compile, "_orig_mod")])
def test_a_wrapped_model_is_told_from_what_is_inside(wrap: Any, prefix: str) -> None:
    plain = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).eval()
    wrapped, data = wrap(plain), [(torch.randn(5, 3), torch.randint(0, 2, (5,)))]
    curvature = ekfac(plain, CrossEntropy(), data, progress=False)
    with pytest.raises(
        ValueError, match=rf"wrapped in \w+, which calls its layers {prefix}.0.*Pass .*model.{prefix}\."
    ):
        layers_of(wrapped, curvature)
    held = identity(wrapped, CrossEntropy(), data, progress=False)
    with pytest.raises(ValueError, match=rf"fitted at a wrapped model, .*'{prefix}.0'.*ekfac\(model.{prefix}, ...\)"):
        layers_of(plain, held)
    assert list(layers_of(wrapped, held)) == [f"{prefix}.0", f"{prefix}.2"]
