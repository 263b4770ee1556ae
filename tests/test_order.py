"""Every pass sees the same examples, counted and compared, wherever a second pass is made."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from networks import make
from torch import Tensor
from torch.utils.data import DataLoader, RandomSampler, SequentialSampler, TensorDataset

import inflib
from inflib import TrainIndex, ekfac, gauss_newton, identity, influence, kfac, refine
from inflib.baselines import gradient_cosine
from inflib.batches import walk
from inflib.implicit import refine_stochastic
from inflib.order import Same, _keeps_order, _sum_of_examples

pytestmark = pytest.mark.usefixtures("float64")

N = 9
CASE = make(n=N)


class Varies:
    """Batches that ``change`` has its way with from a walk's number on."""

    def __init__(self, change: Callable[[list], list], after: int = 1):
        self.walks, self.change, self.after = 0, change, after

    def __iter__(self) -> Iterator[Any]:
        self.walks += 1
        batches = [(CASE.x[k : k + 3], CASE.y[k : k + 3]) for k in (0, 3, 6)]
        return iter(batches if self.walks <= self.after else self.change(batches))


def shuffled(*, drop_last: bool = False, own: bool = True) -> DataLoader:
    generator = torch.Generator().manual_seed(0) if own else None
    dataset = TensorDataset(CASE.x, CASE.y)
    return DataLoader(dataset, batch_size=2, shuffle=True, drop_last=drop_last, generator=generator)


CHANGES: dict[str, Callable[[list], list]] = {
    "fewer batches": lambda batches: batches[:2],
    "fewer examples": lambda batches: [*batches[:2], (batches[2][0][:1], batches[2][1][:1])],
    "more batches": lambda batches: [*batches, batches[0]],
    "another example": lambda batches: [*batches[:2], (batches[2][0] + 1e-9, batches[2][1])],
    "another label": lambda batches: [*batches[:2], (batches[2][0], (batches[2][1] + 1) % 3)],
    "labels of one another": lambda batches: [*batches[:2], (batches[2][0], batches[2][1][[1, 2, 0]])],
    "one twice": lambda batches: [batches[0], batches[1], batches[1]],
}

# a walk's number from which a change is too late to be seen by nobody: each of them walks more often than that
TWICE: dict[str, Callable[[Any], Any]] = {
    "ekfac": lambda d: ekfac(CASE.model, CASE.objective, d, progress=False),
    "ekfac, observed": lambda d: ekfac(CASE.model, CASE.objective, d, labels="observed", progress=False),
    "ekfac, sampled": lambda d: ekfac(CASE.model, CASE.objective, d, labels="sampled", progress=False),
    "refine": lambda d: _refined(refine, d),
    "refine_stochastic": lambda d: _refined(refine_stochastic, d),
    "gradient_cosine": lambda d: gradient_cosine(CASE.model, CASE.objective, d, CASE.queries, progress=False),
    "gradient_cosine, queries": lambda d: gradient_cosine(CASE.model, CASE.objective, CASE.train, d, progress=False),
    "groups of queries": lambda d: influence(
        CASE.model, CASE.objective, d, CASE.queries, _fitted(), max_bytes=1, progress=False
    ),
    "TrainIndex.build": lambda d: TrainIndex.build(CASE.model, CASE.objective, d, _fitted(), progress=False),
    "index.prepare": lambda d: _index().prepare(CASE.model, CASE.objective, d),
}
ORDERED = {name for name in TWICE if name not in ("ekfac", "ekfac, observed", "refine", "refine_stochastic")}


def _fitted() -> Any:
    return ekfac(CASE.model, CASE.objective, CASE.train, progress=False)


def _index() -> TrainIndex:
    return TrainIndex.build(CASE.model, CASE.objective, CASE.train, _fitted(), progress=False)


def _refined(how: Any, data: Any) -> None:
    C = how(_fitted(), CASE.model, CASE.objective, data, steps=2, progress=False)
    C.solve({name: torch.randn(2, *shape) for name, shape in C.shapes.items()})


def walks_of(ask: Callable[[Any], Any]) -> int:
    data = Varies(lambda batches: batches, 10**6)
    ask(data)
    return data.walks


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", TWICE)
def test_a_pass_that_is_not_as_the_one_before_is_refused(name: str, change: str) -> None:
    """Also where the first batches looked at beforehand are as they should be, and only the last walk differs."""
    last = walks_of(TWICE[name]) - 1
    assert last >= 1
    data = Varies(CHANGES[change], last)
    with pytest.raises(ValueError, match=r"expected the same examples (on every pass|in the same order)"):
        TWICE[name](data)
    assert data.walks == last + 1


@pytest.mark.parametrize("name", sorted(ORDERED))
def test_another_order_is_refused_where_an_example_is_known_by_its_position(name: str) -> None:
    last = walks_of(TWICE[name]) - 1
    with pytest.raises(ValueError, match=r"does not keep its order .*differed between two passes"):
        TWICE[name](Varies(lambda batches: batches[::-1], last))


@pytest.mark.parametrize("labels", ["expected", "observed"])
def test_another_order_is_fine_where_only_the_set_counts(labels: str) -> None:
    truth = ekfac(CASE.model, CASE.objective, CASE.train, labels=labels, progress=False)
    for data in (Varies(lambda batches: batches[::-1]), shuffled(), shuffled(own=False)):
        found = ekfac(CASE.model, CASE.objective, data, labels=labels, progress=False)
        for k in truth.layers:
            assert torch.allclose(found.eigenvalues[k], truth.eigenvalues[k], rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("labels", ["expected", "observed"])
def test_a_loader_that_leaves_out_other_examples_each_time_is_refused(labels: str) -> None:
    with pytest.raises(ValueError, match=r"as many examples \(8\) on every pass, but others.*use drop_last=False"):
        ekfac(CASE.model, CASE.objective, shuffled(drop_last=True), labels=labels, progress=False)
    for fit in (kfac, gauss_newton):  # one pass: nothing to differ from
        fit(CASE.model, CASE.objective, shuffled(drop_last=True), labels=labels, progress=False)


def test_sampled_labels_need_the_order() -> None:
    with pytest.raises(ValueError, match=r"train does not keep its order"):
        ekfac(CASE.model, CASE.objective, shuffled(), labels="sampled", progress=False)


def test_a_batch_of_a_list_that_is_changed_in_place_between_passes_is_noticed() -> None:
    class Once(list):
        walks = 0

        def __iter__(self) -> Iterator[Any]:
            self.walks += 1
            if self.walks == 2:
                self[1][0].data[0, 0] += 1
            return super().__iter__()

    data = Once((x.clone(), y) for x, y in Varies(lambda b: b))
    with pytest.raises(ValueError, match=r"train yielded another batch 1 than on the pass before.*changed in place"):
        ekfac(CASE.model, CASE.objective, data, progress=False)


def test_a_list_that_changes_between_minibatches_is_noticed() -> None:
    data = [(x.clone(), y) for x, y in Varies(lambda b: b)]
    C = refine_stochastic(_fitted(), CASE.model, CASE.objective, data, steps=50, progress=False)
    data[2][0][0, 0] += 1
    with pytest.raises(ValueError, match=r"data yielded another batch \d than on the pass before"):
        C.solve({name: torch.randn(1, *shape) for name, shape in C.shapes.items()})


def test_data_that_changes_between_the_products_of_a_refinement_is_noticed() -> None:
    data = [(x.clone(), y) for x, y in Varies(lambda b: b)]
    C = refine(_fitted(), CASE.model, CASE.objective, data, progress=False)
    v = {name: torch.randn(1, *shape) for name, shape in C.shapes.items()}
    C.matvec(v)
    data.pop()
    with pytest.raises(ValueError, match=r"data yielded 6 examples after 9 on the pass before"):
        C.matvec(v)


@pytest.mark.parametrize("change", ["fewer batches", "more batches"])
@pytest.mark.parametrize("after", range(1, 7))
def test_an_index_holds_only_what_was_written(change: str, after: int) -> None:
    """Data that shrinks or grows at any of an index's walks: the first four see the first batch alone."""
    data = Varies(lambda batches: CHANGES[change](batches[1:] + batches[:1]), after)
    seen = after >= walks_of(TWICE["TrainIndex.build"])
    try:
        index = TrainIndex.build(CASE.model, CASE.objective, data, _fitted(), progress=False)
    except ValueError:
        index = None
    assert (index is not None) == seen
    assert index is None or len(index) == N


# --- fingerprints that know no order -----------------------------------------------------------------------------------


def summed(batches: Any) -> int:
    return sum(_sum_of_examples(x, y, len(y)) for x, y in batches) % 2**64


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16, torch.int64, torch.uint8, torch.complex64]
)
def test_a_sum_of_examples_is_the_same_in_any_order_and_batching_and_no_other(dtype: torch.dtype) -> None:
    x, y = (torch.randn(N, 2, 3) * 40).abs().to(dtype), torch.arange(N) % 3
    whole = summed([(x, y)])
    order = torch.randperm(N)
    assert summed([(x[order[:4]], y[order[:4]]), (x[order[4:]], y[order[4:]])]) == whole
    moved = x.clone()
    moved[2, 0, 1], moved[2, 1, 2] = x[2, 1, 2] + 1, x[2, 0, 1]
    twice = torch.tensor([*range(N - 1), 0])
    others = [(moved, y), (x, y.roll(1)), (x[twice], y[twice]), (x[1:], y[1:]), ((x, x), y), (x, y + 1)]
    assert len({whole, *(summed([other]) for other in others)}) == len(others) + 1


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_is_no_part_of_an_example(side: str) -> None:
    rows = [torch.arange(1, k) for k in (3, 6, 4, 5)]

    def padded(some: list[int]) -> tuple[dict[str, Tensor], Tensor]:
        T = max(len(rows[k]) for k in some)
        ids, mask, y = (
            torch.zeros(len(some), T).long(),
            torch.zeros(len(some), T).long(),
            torch.full((len(some), T), -100),
        )
        for at, k in enumerate(some):
            span = slice(T - len(rows[k]), T) if side == "left" else slice(len(rows[k]))
            ids[at, span], mask[at, span], y[at, span] = rows[k], 1, rows[k] + 7
        return {"input_ids": ids, "attention_mask": mask, "x": ids[..., None] * torch.ones(2)}, y

    def of(*batches: list[int]) -> int:
        return summed([padded(some) for some in batches])

    assert of([0, 1, 2, 3]) == of([0, 2], [3, 1]) == of([3], [2], [1], [0])
    rows[2] = rows[2].flip(0)
    assert of([0, 1, 2, 3]) != of([0, 2, 2, 3])
    before = of([0, 1, 2, 3])
    rows[1] = torch.tensor([1, 2, 3, 5, 4])
    assert of([0, 1, 2, 3]) != before


def test_which_data_keeps_its_order_is_known() -> None:
    dataset = TensorDataset(CASE.x, CASE.y)
    for keeps in ([], (), DataLoader(dataset), DataLoader(dataset, batch_size=2, drop_last=True)):
        assert _keeps_order(keeps)
    groups = torch.utils.data.BatchSampler(RandomSampler(dataset), 2, False)

    class Own(SequentialSampler):
        pass

    for may_not in (
        shuffled(),
        DataLoader(dataset, batch_sampler=groups),
        DataLoader(dataset, sampler=Own(dataset)),
        DataLoader(dataset, batch_size=None),
        Varies(list),
    ):
        assert not _keeps_order(may_not)


def test_a_walk_that_was_left_half_way_is_no_shorter_pass() -> None:
    data = Same(Varies(list), "train", ordered=True)
    next(walk(data, progress=False))
    for _ in range(2):
        assert sum(batch.size for batch in walk(data, progress=False)) == N
    next(walk(data, progress=False))
    assert Same.of(data, "other", ordered=False) is data


def test_what_is_watched_is_still_said_to_be_a_one_shot_iterator_or_no_data() -> None:
    for fit in (inflib.ekfac, identity):
        for bad in (iter([(CASE.x, CASE.y)]), 3):
            if fit is identity:
                continue  # walks over nothing
            with pytest.raises(TypeError, match=r"train is a"):
                fit(CASE.model, CASE.objective, bad, progress=False)  # type: ignore[arg-type]
