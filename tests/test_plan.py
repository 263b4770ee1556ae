"""A plan says what the stages then take: operations and bytes as counted, time carried on from a few batches."""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import Case, batches, make, zoo
from torch.utils.flop_counter import FlopCounterMode

import inflib.memory
from inflib import TrainIndex, ekfac, influence, plan
from inflib.ahead import in_bytes, in_time
from inflib.blocks import BlockDiagonal
from inflib.plan.probe import Few, Measured, Probe, Units, run_over, surveyed
from inflib.plan.stages import Line, _first, _line
from inflib.plan.table import Plan, Stage

PROBE, STAGES = import_module("inflib.plan.probe"), import_module("inflib.plan.stages")
pytestmark = pytest.mark.usefixtures("float64")
CPU = torch.device("cpu")


def case_of(kind: str) -> Case:
    if kind == "perceptron":
        return make(widths=(20, 16, 12), n=60, splits=[12, 24, 36, 48], queries=6)
    case = zoo(kind, n=40)
    case.splits = [10, 20, 30]
    case.query_x, case.query_y = case.x[:6], case.y[:6]
    return case


def counted(work: Callable[[], Any]) -> int:
    def added(total: Any, a: tuple[int, int], b: tuple[int, int], **_: Any) -> int:
        return 2 * a[0] * a[1] * b[1]

    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: added}) as counter:
        work()
    return counter.get_total_flops()


@pytest.mark.parametrize("kind", ["perceptron", "tokens"])
def test_operations_are_those_that_the_stages_then_take(kind: str) -> None:
    case = case_of(kind)
    about = case.model, case.objective, case.train
    found = plan(*about, queries=case.queries, labels="sampled")
    C = ekfac(*about, labels="sampled", progress=False)
    decomposing = sum(9 * d**3 for shape in C.shapes.values() for d in shape)  # PyTorch does not count it
    fit = counted(lambda: ekfac(*about, labels="sampled", progress=False)) + decomposing
    assert found["fit"].operations == pytest.approx(fit, rel=0.1)
    index = counted(lambda: TrainIndex.build(*about, C, progress=False))
    assert found["index"].operations == pytest.approx(index, rel=0.1)
    scores = counted(lambda: influence(*about, case.queries, C, 1.0, progress=False))
    assert found["scores"].operations == pytest.approx(scores, rel=0.1)
    assert [stage.passes for stage in found.stages] == [2, 1, 1]


def test_a_plan_in_blocks_is_of_the_fit_in_blocks() -> None:
    case = case_of("perceptron")
    about = case.model, case.objective, case.train
    C = ekfac(*about, blocks=3, progress=False)
    found = plan(*about, blocks=3)["fit"]
    factors = [Q.flat if isinstance(Q, BlockDiagonal) else Q for part in (C.Q_S, C.Q_A) for Q in part.values()]
    assert found.disk == sum(x.nbytes for x in [*C.eigenvalues.values(), *factors])
    assert found.operations < plan(*about)["fit"].operations
    assert "blocks=at_most(4096)" in found.most


def test_more_queries_than_are_tried_are_carried_on(monkeypatch: pytest.MonkeyPatch) -> None:
    case = case_of("tokens")
    case.query_x, case.query_y = case.x, case.y  # 40
    about = case.model, case.objective, case.train
    C = ekfac(*about, progress=False)
    monkeypatch.setattr(STAGES, "LONG", 0.0)  # so that no more than ASKED are tried
    found = plan(*about, queries=case.queries)
    influence(*about, case.queries, C, 1.0, progress=False)  # which proves the queries' rows, once a session
    came = counted(lambda: influence(*about, case.queries, C, 1.0, progress=False))
    assert found["scores"].operations == pytest.approx(came, rel=0.1)


def test_queries_in_groups_take_a_pass_each() -> None:
    case = case_of("perceptron")
    about = case.model, case.objective, case.train
    one = 8 * sum(o * i for o, i in ekfac(*about, progress=False).shapes.values())  # bytes of a query
    found = plan(*about, queries=case.queries, max_bytes=one // 2)  # 4 · max_bytes hold two of six queries
    assert found["scores"].passes == 3


def test_bytes_on_disk_are_those_that_are_then_written(tmp_path: Path) -> None:
    case = case_of("tokens")
    about = case.model, case.objective, case.train
    found = plan(*about)
    C = ekfac(*about, progress=False)
    assert found["fit"].disk == sum(x.nbytes for part in (C.eigenvalues, C.Q_S, C.Q_A) for x in part.values())
    assert found["index"].disk == TrainIndex.build(*about, C, progress=False).nbytes
    store = TrainIndex.build(*about, C, path=tmp_path / "store", axes=0.5, bits=1, progress=False)
    assert plan(*about, store={"axes": 0.5, "bits": 1})["index"].disk == store.nbytes


def test_what_is_taken_between_batches_is_carried_on_by_the_numbers_in_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten seconds once, two a row in a first walk, one a row in a second; a walk that is broken off is taken once."""
    x = torch.zeros(64, 2)
    now = [0.0]
    monkeypatch.setattr(PROBE, "clock", lambda: now[0])
    some, units = surveyed([(part, part) for part in x.split([10, 30, 20, 4])])
    assert units == Units(128, [20, 60, 40], 64, 0.0)
    runs: list[int] = []

    def stage(few: Few) -> None:
        next(iter(few))
        runs.append(len(list(few.walks)))
        for each in (2, 1):
            for a, _ in few:
                now[0] += each * len(a)
        now[0] += 10

    probe = Probe(some, Units(128, [20, 60, 40], 64, 0.5), Measured(7.0, 1, 5), CPU)
    assert probe.carried_on(stage).seconds == pytest.approx(10 + 3 * 64 + 2 * 0.5 + 7)
    assert runs == [1], "a run that takes long says it all"
    assert probe.carried_on(stage, looks=False).seconds == pytest.approx(10 + 3 * 64 + 2 * 0.5)
    whole = Probe(some[:1], Units(20, [20], 10, 0.0), Measured(7.0, 1, 5), CPU)
    assert whole.carried_on(stage).seconds == 10 + 3 * 10, "there is no later batch to look at"


def test_operations_between_batches_are_carried_on() -> None:
    x, w = torch.zeros(64, 3), torch.zeros(3, 5)
    some, units = surveyed([(part, part) for part in x.split(16)])

    def stage(few: Few) -> None:
        for a, _ in few:
            a @ w
        w.T @ w

    found = Probe(some, units, Measured(0.0, 0, 0), CPU).carried_on(stage)
    assert found.operations == 2 * (64 * 3 * 5 + 5 * 3 * 5)


def test_products_added_in_place_are_operations_as_others_are() -> None:
    a, b, c = torch.ones(3, 5), torch.ones(5, 7), torch.ones(4, 7, 2)

    def stage(_: Few) -> None:
        torch.zeros(3, 7).addmm_(a, b)
        torch.zeros(4, 3, 2).baddbmm_((a @ b).expand(4, 3, 7), c)

    came = run_over(stage, [], CPU, counting=True).ended[1]
    assert came == 2 * (2 * 3 * 5 * 7 + 4 * 3 * 7 * 2)


@pytest.mark.parametrize("widths", [(20, 16), (130, 7)], ids=["whole", "in strips"])
def test_a_fit_of_one_layer_takes_the_operations_counted_by_hand(widths: tuple[int, int]) -> None:
    """A is summed on and above its diagonal, in strips of 96 columns at the least."""
    case = make(widths=widths, n=30, splits=[])
    (o, i), n = (widths[1], widths[0] + 1), len(case.y)
    forward = o * (i - 1)  # in each of two passes
    factors = o * o + (96 * i + (i - 96) ** 2 if i > 96 else i * i)
    rotated = o * o + i * i + o * i
    by_hand = 2 * n * (2 * forward + factors + rotated) + 9 * (o**3 + i**3)
    assert plan(case.model, case.objective, case.train, labels="observed")["fit"].operations == by_hand


def test_few_queries_and_as_many_as_seconds_allow_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(STAGES, "clock", lambda: now[0])
    asked: list[int] = []

    def tried(count: int) -> Measured:
        asked.append(count)
        now[0] += 0.1 * count
        return Measured(3.0 + 0.5 * count, 100 + count, 7 * count)

    assert _line(tried, 40).counts == (16, 40)
    assert _line(tried, 5).counts == (5, 5)
    now[0] = 0.0
    monkeypatch.setattr(STAGES, "LONG", 1.0)
    line = _line(tried, 40)
    assert line.counts == (4, 16), "sixteen took longer than it may"
    assert asked == [16, 40, 5, 16, 4]
    assert line.at("seconds", 1, 40) == pytest.approx(3 + 0.5 * 40)
    assert line.at("operations", 3, 100) == pytest.approx(7 * 100)
    assert Line((8, 8), (Measured(4.0, 1, 1),) * 2).at("seconds", 1, 8) == 4.0


def test_what_does_not_fit_is_said_before_it_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    case = case_of("perceptron")
    monkeypatch.setattr(inflib.memory, "LIMIT", 20_000)
    monkeypatch.setattr(case.model, "forward", lambda x: pytest.fail("the model was run"))
    found = plan(case.model, case.objective, case.train, queries=case.queries)
    assert [stage.name for stage in found.stages] == ["fit"]
    assert math.isnan(found["fit"].seconds)
    assert found.too_large == found.stages
    assert "fit would not fit: layer 'fc0' has" in repr(found)
    assert "free: 20 kB" in repr(found)


def test_stages_that_would_not_fit_say_what_to_turn_down() -> None:
    case = case_of("tokens")
    assert "axes=0.25, bits=1" in plan(case.model, case.objective, case.train)["index"].most
    small, large = (Stage(name, 1, 1.0, 1.0, peak, 0, f"turn {name} down") for name, peak in (("a", 80), ("b", 100)))
    found = Plan((small, large), 10, 105)
    assert found.too_large == (large,)
    assert "b would not fit: turn b down" in repr(found) and "turn a down" not in repr(found)
    assert Plan((small, large), 10, None).too_large == ()


def test_a_plan_leaves_the_model_as_it_was_and_says_nothing_of_its_own_batches() -> None:
    case = case_of("perceptron")
    before = {k: v.clone() for k, v in case.model.state_dict().items()}
    plan(case.model, case.objective, case.train, queries=case.queries)
    assert all(torch.equal(v, before[k]) for k, v in case.model.state_dict().items())
    assert all(not module._forward_hooks for module in case.model.modules())


def test_the_first_queries_are_cut_from_their_batches() -> None:
    x = torch.arange(10.0)
    from inflib.batches import walk

    every = list(walk([(a, a) for a in x.split(4)], name="queries", progress=False))
    for count in (1, 4, 6, 10):
        found = torch.cat([a for a, _ in _first(every, count)])
        assert torch.equal(found, x[:count])


def test_bytes_and_times_are_said_with_three_digits() -> None:
    assert [in_bytes(n) for n in (12, 1234, 98_765_432, 4_000_000_000, 5 * 10**15)] == [
        "12 B",
        "1.23 kB",
        "98.8 MB",
        "4 GB",
        "5 PB",
    ]
    assert [in_time(s) for s in (0.5, 119.0, 600.0, 36000.0, math.nan)] == [
        "0.5 s",
        "119 s",
        "10 min",
        "10 h",
        "unknown",
    ]


def test_every_batch_counts_once() -> None:
    case = case_of("perceptron")
    assert surveyed(batches(case.x, case.y, 7))[1].examples == 60
