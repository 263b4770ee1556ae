"""Batches as people have them: objects that hold tensors, inputs that a model writes into, or does not take."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence, pad_packed_sequence
from torch.utils.data import DataLoader, TensorDataset

from inflib import (
    CrossEntropy,
    TrainIndex,
    capture,
    ekfac,
    gauss_newton,
    identity,
    influence,
    self_influence,
    with_masks,
)
from inflib.batches import mapped, rows_of, tensors
from inflib.order import fingerprint

pytestmark = pytest.mark.usefixtures("float64")
QUIET: dict[str, Any] = {"progress": False}
Named = namedtuple("Named", "x")


@dataclass(frozen=True)
class Kept:
    x: Tensor


@dataclass(slots=True)
class Slotted:
    x: Tensor


class Plain:
    def __init__(self, x: Tensor):
        self.x, self.itself = x, self  # a cycle


class Reads(nn.Module):
    """Two layers on the attribute x of an object."""

    def __init__(self, by: Callable[[Any], Tensor] = lambda held: held.x) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down, self.by = nn.Linear(3, 4), nn.Linear(4, 3), by

    def forward(self, held: Any) -> Tensor:
        return self.down(torch.tanh(self.up(self.by(held))))


HOLDERS: dict[str, Callable[[Tensor], Any]] = {
    "a frozen dataclass": Kept,
    "a dataclass with slots": Slotted,
    "a namespace": lambda x: SimpleNamespace(x=x),
    "an object that holds itself": Plain,
    "a named tuple in a tuple": lambda x: (Named(x),),
    "a dataclass in a list": lambda x: [Kept(x)],
}


def data() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(8, 3), torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])


def truth(model: nn.Module, examples: list[Any], y: Tensor) -> Tensor:
    """Products of the gradients of single examples, by a loop of autograd."""
    rows = []
    for one, target in zip(examples, y, strict=True):
        outputs = model(*one) if isinstance(one, (tuple, list)) else model(one)
        gradients = torch.autograd.grad(F.cross_entropy(outputs, target[None]), list(model.parameters()))
        rows.append(torch.cat([g.flatten() for g in gradients]))
    G = torch.stack(rows)
    return G @ G.T


@pytest.mark.parametrize("how", HOLDERS)
def test_an_object_that_holds_tensors_is_looked_into_and_given_to_the_model_as_it_came(how: str) -> None:
    (x, y), model, hold = data(), Reads().eval(), HOLDERS[how]
    batches = [(hold(x[:5]), y[:5]), (hold(x[5:]), y[5:])]
    expected = truth(model, [hold(x[n : n + 1]) for n in range(8)], y)
    plain = identity(model, CrossEntropy(), batches, **QUIET)
    torch.testing.assert_close(influence(model, CrossEntropy(), batches, batches, plain, **QUIET), expected)
    torch.testing.assert_close(self_influence(model, CrossEntropy(), batches, plain, **QUIET), expected.diagonal())
    index = TrainIndex.build(model, CrossEntropy(), batches, plain, **QUIET)
    torch.testing.assert_close(index.influence(model, CrossEntropy(), batches), expected)
    exact = gauss_newton(model, CrossEntropy(), batches, **QUIET)
    torch.testing.assert_close(exact.to_dense().trace(), gauss_newton(Reads(lambda x: x).eval(), CrossEntropy(),
                                                                      [(x, y)], **QUIET).to_dense().trace())  # fmt: skip


@pytest.mark.parametrize("how", HOLDERS)
def test_statistics_over_a_batch_of_objects_are_noticed(how: str) -> None:
    (x, y), hold = data(), HOLDERS[how]
    model = Reads(lambda held: held.x - held.x.mean(0)).eval()
    with pytest.raises(ValueError, match="expected it to depend on its own input alone"):
        capture(model, CrossEntropy(), hold(x), y)


@pytest.mark.parametrize("how", HOLDERS)
def test_objects_that_come_in_another_order_are_noticed(how: str) -> None:
    (x, _), model, hold = data(), Reads().eval(), HOLDERS[how]

    class Turning:
        times = 0

        def __iter__(self) -> Iterator[Any]:
            self.times += 1
            yield hold(x.roll(self.times, 0)), torch.zeros(8, dtype=torch.int64)

    sound = [(hold(x), torch.zeros(8, dtype=torch.int64))]
    plain = identity(model, CrossEntropy(), sound, **QUIET)
    with pytest.raises(ValueError, match="does not keep its order"):
        influence(model, CrossEntropy(), Turning(), sound, plain, **QUIET)


def test_an_object_keeps_its_type_and_is_itself_left_alone() -> None:
    x = torch.arange(6.0).reshape(3, 2)
    for held in (Kept(x), Named(x), SimpleNamespace(x=x), [x], (x,), {"x": x}, pack_sequence([x, x[:2]])):
        found = rows_of(held, [1], 3)
        assert type(found) is type(held)
        assert all(a is b for a, b in zip(tensors(mapped(held, lambda x: x)), tensors(held), strict=True))
        assert next(tensors(held)) is not next(tensors(mapped(held, torch.clone)))
    masked = with_masks({"x": x}, {"l": x, "m": None, "n": "x"})
    found = rows_of(masked, [1], 3)
    assert torch.equal(found.masks["l"], x[[1]])
    assert found.masks["n"] == "x"
    assert masked.masks["l"] is x


def test_a_packed_sequence_is_given_whole() -> None:
    x, y = torch.randn(2, 3, 3), torch.tensor([0, 2])
    model = Reads(lambda packed: pad_packed_sequence(packed, batch_first=True)[0].sum(1)).eval()
    inputs = (pack_sequence([x[0], x[1, :2]]),)
    found = capture(model, CrossEntropy(), inputs, y)["up"].matrices()
    for n, rows in enumerate((x[0], x[1, :2])):
        loss = F.cross_entropy(model(pack_sequence([rows])), y[n : n + 1])
        torch.testing.assert_close(found[n][:, :-1], torch.autograd.grad(loss, model.up.weight)[0])


# --- inputs that are written into -------------------------------------------------------------------------------------


class Centres(nn.Module):
    """Takes from its inputs in place, in each batch or only in those of four."""

    def __init__(self, only: int | None = None) -> None:
        super().__init__()
        self.l, self.only = nn.Linear(3, 3), only

    def forward(self, x: Tensor) -> Tensor:
        if self.only in (None, len(x)):
            x -= 0.5
        return self.l(x)


@pytest.mark.parametrize("loaded", [True, False])
def test_a_model_that_writes_into_its_inputs_is_right_and_leaves_the_data_alone(loaded: bool) -> None:
    (x, y), model = data(), Centres().eval()
    expected = truth(model, [x[n : n + 1].clone() for n in range(8)], y)
    batches = (
        DataLoader(TensorDataset(x, y), batch_size=5) if loaded else [(x[:5].clone(), y[:5]), (x[5:].clone(), y[5:])]
    )
    for _ in range(2):
        plain = identity(model, CrossEntropy(), batches, **QUIET)
        torch.testing.assert_close(influence(model, CrossEntropy(), batches, batches, plain, **QUIET), expected)
        ekfac(model, CrossEntropy(), batches, **QUIET)
        gauss_newton(model, CrossEntropy(), batches, **QUIET)
    torch.testing.assert_close(torch.cat([x for x, _ in batches]), x)


def test_one_that_writes_in_later_batches_alone_is_refused() -> None:
    (x, y), model = data(), Centres(4).eval()
    with pytest.raises(ValueError, match=r"changes its inputs in place, .*expected .* Write x = x - mean"):
        ekfac(model, CrossEntropy(), [(x[:3].clone(), y[:3]), (x[3:7].clone(), y[3:7])], **QUIET)


def test_inputs_made_in_inference_mode_are_taken() -> None:
    (x, y), model = data(), Reads(lambda x: x).eval()
    with torch.inference_mode():
        made = x + 0
    for fit in (ekfac, gauss_newton):
        found, expected = (fit(model, CrossEntropy(), [(some, y)], **QUIET).to_dense() for some in (made, x))
        torch.testing.assert_close(found, expected)


# --- inputs that are not taken ----------------------------------------------------------------------------------------


class Sums(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.l = nn.Linear(3, 3)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.l(a + b)


class Forwards(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.inner(*args, **kwargs)


@pytest.mark.parametrize(
    ("model", "inputs", "message"),
    [
        (Reads(lambda held: held["x"]), lambda x: {"x": x}, r"takes \(held.*a dict with 'x'.*\(\(inputs,\), targets\)"),
        (Reads(lambda held: held[0]), lambda x: [x, x], r"inputs are 2 \(a tensor.*\(\(inputs,\), targets\)"),
        (Sums(), lambda x: x, r"takes \(a.*missing a required argument: 'b'"),
        (Sums(), lambda x: {"a": x, "b": x, "idx": x}, r"'idx'.*take out columns"),
        (Forwards(Sums()), lambda x: {"a": x, "b": x, "idx": x}, r"'idx'.*Take out the columns"),
        (nn.Linear(3, 3), lambda x: x.numpy(), r"a ndarray.*expected tensors.*torch.as_tensor"),
        (nn.Linear(3, 3), lambda x: 0, r"a int.*expected tensors"),
        (nn.Linear(3, 3), lambda x: x.to_sparse(), r"sparse_coo tensor; expected plain ones.*x.to_dense\(\)"),
        (nn.Linear(3, 3), lambda x: x.to_sparse_csr(), r"sparse_csr tensor; expected plain ones.*x.to_dense\(\)"),
        (nn.Linear(3, 3), lambda x: torch.nested.nested_tensor([x, x]), r"nested tensor; expected plain.*padded"),
    ],
)  # fmt: skip
def test_inputs_that_a_model_does_not_take_are_named(
    model: nn.Module, inputs: Callable[[Tensor], Any], message: str
) -> None:
    (x, y), model = data(), model.double()
    for fit in (ekfac, gauss_newton, identity):
        batches = [(inputs(x), y)]
        if fit is identity:  # which looks at nothing: scores do
            plain = identity(model.eval(), CrossEntropy(), batches, **QUIET)
            with pytest.raises((TypeError, ValueError), match=message):
                influence(model, CrossEntropy(), batches, batches, plain, **QUIET)
            continue
        with pytest.raises((TypeError, ValueError), match=message):
            fit(model.eval(), CrossEntropy(), batches, **QUIET)


def test_a_models_own_mistake_is_in_its_own_words() -> None:
    class Wrong(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.l = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.l(x, x)

    x, y = data()
    with pytest.raises(TypeError, match=r"^Linear.forward\(\) takes 2 positional arguments"):
        ekfac(Wrong().eval(), CrossEntropy(), [(x, y)], **QUIET)


def test_words_and_arrays_stay_what_they_are() -> None:
    words = ["a", np.ones(2), None, 3]
    assert mapped(words, torch.clone)[0] == "a"
    assert mapped(words, torch.clone)[1] is words[1]


class Adjacent(nn.Module):
    """Multiplies features by a sparse matrix that is a buffer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.l = nn.Linear(3, 3)
        self.register_buffer("a", torch.tensor([[1.0, 0.5, 0.0], [0.0, 1.0, 0.0], [0.0, 2.0, 1.0]]).to_sparse())

    def forward(self, x: Tensor) -> Tensor:
        return self.l(torch.sparse.mm(self.a, x.T).T)


def test_a_sparse_buffer_is_part_of_what_a_model_is() -> None:
    (x, y), model = data(), Adjacent().eval()
    batches = [(x, y)]
    plain = identity(model, CrossEntropy(), batches, **QUIET)
    expected = truth(model, [x[n : n + 1] for n in range(8)], y)
    torch.testing.assert_close(influence(model, CrossEntropy(), batches, batches, plain, **QUIET), expected)
    model.a = (2 * model.a.to_dense()).to_sparse()
    with pytest.raises(ValueError, match="its weights or buffers differ"):
        influence(model, CrossEntropy(), batches, batches, plain, **QUIET)


# --- examples that are no rows of a tensor ------------------------------------------------------------------------------


def counts(words: list[str]) -> Tensor:
    return torch.tensor([[len(word), word.count("a"), word.count("b")] for word in words]).double()


LISTS: dict[str, tuple[Callable[[Any], Tensor], Callable[[Tensor], Any]]] = {
    "words": (counts, lambda x: ["aab", "b", "ccc", "aaaa", "abab"]),
    "dicts": (lambda held: torch.stack([one["x"] for one in held]), lambda x: [{"x": row} for row in x]),
    "arrays": (torch.as_tensor, lambda x: x.numpy()),
    "lists of numbers": (torch.tensor, lambda x: x.tolist()),
}


@pytest.mark.parametrize("how", LISTS)
def test_a_list_with_something_for_each_example_is_taken_apart(how: str) -> None:
    (read, hold), (x, y) = LISTS[how], data()
    x, y = x[:5], y[:5]
    batches = [((hold(x),), y)]
    model = Reads(read).eval()
    plain = identity(model, CrossEntropy(), batches, **QUIET)
    rows = read(hold(x))
    expected = truth(Reads(lambda x: x).eval(), [rows[n : n + 1] for n in range(5)], y)
    torch.testing.assert_close(influence(model, CrossEntropy(), batches, batches, plain, **QUIET), expected)
    index = TrainIndex.build(model, CrossEntropy(), batches, plain, **QUIET)
    found = index.search(model, CrossEntropy(), batches, k=2)
    torch.testing.assert_close(found.scores, expected.topk(2).values)
    with pytest.raises(ValueError, match="expected it to depend on its own input alone"):
        capture(Reads(lambda held: read(held) - read(held).mean(0)).eval(), CrossEntropy(), (hold(x),), y)


def test_lists_of_another_length_and_arguments_stay_whole() -> None:
    x = torch.arange(6.0).reshape(3, 2)
    states = [(x, x), (x, x), (x, x)]  # of three layers, each with all three examples
    found = rows_of((x, ["a", "b"], states, np.arange(3)), [2], 3)
    assert found[1] == ["a", "b"]
    assert [len(part) for part in found[2]] == [2, 2, 2]
    assert all(torch.equal(part, x[[2]]) for state in found[2] for part in state)
    assert found[3].tolist() == [2]
    assert rows_of(["a", "b", "c"], [2], 3) == ["a", "b", "c"]  # arguments
    assert rows_of({"words": ("a", "b", "c")}, slice(1, 3), 3) == {"words": ("b", "c")}


def test_words_beside_an_object_s_tensors_are_part_of_its_batch() -> None:
    x, y = torch.zeros(2, 3), torch.zeros(2)
    seen = [SimpleNamespace(x=x, words=words) for words in (["a", "b"], ["a", "c"], ["a"])]
    assert len({fingerprint((held, y)) for held in seen}) == 3
