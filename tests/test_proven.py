"""A look at a batch is not repeated, and is where anything that it depends on has changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from networks import Case, make
from torch import Tensor, nn

import inflib.proof
from inflib import CrossEntropy, SquaredError, TrainIndex, capture, ekfac, influence, self_influence

pytestmark = pytest.mark.usefixtures("float64")
QUIET: dict[str, Any] = {"progress": False}


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the batches that were looked at."""
    seen: list[int] = []
    prove = inflib.proof.prove

    def counted(model: Any, layers: Any, objective: Any, batch: Any, *rest: Any, **options: Any) -> Any:
        seen.append(batch.size)
        return prove(model, layers, objective, batch, *rest, **options)

    monkeypatch.setattr(inflib.proof, "prove", counted)
    return seen


def test_a_session_looks_at_each_batch_once(looks: list[int]) -> None:
    case = make()
    args = (case.model, CrossEntropy(), case.train)
    fit = ekfac(*args, **QUIET)
    assert looks == [3, 4]
    influence(*args, case.queries, fit, **QUIET)
    assert looks == [3, 4, 3]  # of the queries' own batch, about what they measure
    first = influence(*args, case.queries, fit, **QUIET)
    self_influence(*args, fit, **QUIET)
    TrainIndex.build(*args, fit, **QUIET)
    assert looks == [3, 4, 3]
    assert torch.equal(influence(*args, case.queries, fit, **QUIET), first)


def change_weight(case: Case) -> None:
    with torch.no_grad():
        case.model.fc0.weight[0, 0] += 1e-9


def change_weight_unseen(case: Case) -> None:
    case.model.fc1.weight.data[0, 0] += 1e-9


def change_input(case: Case) -> None:
    case.x[0, 0] += 1e-9


def change_target(case: Case) -> None:
    case.y[0] = (case.y[0] + 1) % 3


def change_forward(case: Case) -> None:
    case.model.act0.forward = torch.sin


def change_hook(case: Case) -> None:
    case.model.fc0.register_forward_hook(lambda module, args, output: output)


def change_setting(case: Case) -> None:
    case.model.act0 = nn.ELU(0.5)


def change_whole_number(case: Case) -> None:
    case.model.act0.shift = 2


def change_attribute(case: Case) -> None:
    case.model.act0.order = torch.tensor([1, 0])


CHANGES: list[Callable[[Case], None]] = [
    change_weight, change_weight_unseen, change_input, change_target, change_forward, change_hook, change_setting,
    change_whole_number, change_attribute,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_what_has_changed_is_looked_at_anew(change: Callable[[Case], None], looks: list[int]) -> None:
    case, objective = make(), CrossEntropy()
    for _ in range(2):
        capture(case.model, objective, case.x, case.y)
    assert looks == [7]
    change(case)
    capture(case.model, objective, case.x, case.y)
    assert looks == [7, 7]


def test_another_loss_measurement_choice_or_autocast_is_looked_at_anew(looks: list[int]) -> None:
    case, objective = make(), CrossEntropy()
    capture(case.model, objective, case.x, case.y)
    capture(case.model, CrossEntropy(label_smoothing=0.1), case.x, case.y)
    capture(case.model, objective, case.x, case.y, measurement="margin")
    capture(case.model, objective, case.x, case.y, measurement=lambda f, y: f[:, 0])
    capture(case.model, objective, case.x, case.y, layers="fc0")
    assert looks == [7] * 5
    with torch.autocast("cpu", dtype=torch.bfloat16):
        capture(case.model.float(), objective, case.x.float(), case.y)
    capture(case.model, objective, case.x.float(), case.y)
    assert looks == [7] * 7


class Leaky(nn.Module):
    """Its weight is used outside its module too, once ``leaks``."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.head, self.leaks = nn.Linear(3, 3), nn.Linear(3, 3), False

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.up(x))
        return self.head(h @ self.up.weight if self.leaks else h)


def test_a_fault_that_comes_later_is_still_seen_and_a_refusal_is_not_kept() -> None:
    case, objective = make(), CrossEntropy()
    model = Leaky()
    capture(model, objective, case.x, case.y)
    model.leaks = True
    for _ in range(2):
        with pytest.raises(ValueError, match=r"layer 'up'.*differs from autograd's"):
            capture(model, objective, case.x, case.y)
    model.leaks = False
    capture(model, objective, case.x, case.y)


class Told(nn.Linear):
    """Says whether its weight asks for a gradient whenever it is called."""

    def __init__(self, asked: list[bool]) -> None:
        super().__init__(3, 3)
        self.asked = asked

    def forward(self, x: Tensor) -> Tensor:
        self.asked.append(self.weight.requires_grad and torch.is_grad_enabled())
        return super().forward(x)


def test_a_look_differentiates_the_chosen_weights_only() -> None:
    asked: dict[str, list[bool]] = {"0": [], "2": [], "4": []}
    model = nn.Sequential(Told(asked["0"]), nn.Tanh(), Told(asked["2"]), nn.Tanh(), Told(asked["4"]))
    capture(model, CrossEntropy(), *make().train[0], layers="2")
    assert not any(asked["0"]) and not any(asked["4"])
    assert asked["2"].count(True) == 1  # where autograd's own gradient is taken


def test_what_is_kept_does_not_keep_a_model_alive() -> None:
    import gc
    import weakref

    case = make()
    capture(case.model, case.objective, case.x, case.y)
    gone = weakref.ref(case.model)
    del case
    gc.collect()
    assert gone() is None


class Turned(nn.Module):
    """Rows that are moved by as many places as an attribute says, and put back."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.places, self.order = nn.Linear(3, 3).double(), 0, torch.arange(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x.roll(self.places, 0)[self.order])[self.order.argsort()].roll(-self.places, 0)


@pytest.mark.parametrize("change", ["a whole number", "a tensor", "in place"])
def test_rows_that_an_attribute_moves_are_not_taken_for_those_proved_before(change: str) -> None:
    model, objective = Turned().eval(), SquaredError()
    x, y = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    capture(model, objective, x, y)
    if change == "a whole number":
        model.places = 1
    elif change == "a tensor":
        model.order = torch.tensor([1, 2, 3, 0])
    else:
        model.order.copy_(torch.tensor([1, 2, 3, 0]))
    with pytest.raises(ValueError, match=r"layer 'fc'.*expected every example to have rows of its own"):
        capture(model, objective, x, y)
