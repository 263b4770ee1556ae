"""A fit that was stopped goes on where it was, and ends with the bits of one that was not."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import Case, batches, make, zoo
from oracle import assert_close
from torch.utils.data import DataLoader, TensorDataset

import inflib.checkpoint
from inflib import Kronecker, diagonal, ekfac, kfac
from inflib.blocks import equal
from inflib.checkpoint import Checkpoint, Done
from inflib.ekfac import corrected_eigenvalues, eigenbasis
from inflib.kfac import accumulate_moments, second_moments
from inflib.passes import Fit

pytestmark = pytest.mark.usefixtures("float64")
EKFAC = import_module("inflib.ekfac")  # the name in the package is the function's
LABELS = ("expected", "sampled", "observed")


@pytest.fixture(autouse=True)
def _every_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inflib.checkpoint, "SECONDS", 0.0)
    monkeypatch.setattr(inflib.checkpoint, "SHARE", 0.0)


def case_of(kind: str) -> Case:
    if kind == "perceptron":
        return make(widths=(3, 5, 4), n=11, splits=[2, 5, 6, 9])
    case = zoo(kind, n=6)
    case.splits = [1, 3, 4]
    return case


def fitted(fit: Any, case: Case, **options: Any) -> Kronecker:
    return fit(case.model, case.objective, case.train, progress=False, **{"draws": 2, **options})


def assert_same_bits(one: Kronecker, two: Kronecker) -> None:
    assert one.facts == two.facts
    for part in ("eigenvalues", "Q_S", "Q_A"):
        a, b = getattr(one, part), getattr(two, part)
        assert list(a) == list(b)
        assert all(equal(a[k], b[k]) for k in a), part


class Died(BaseException):
    """What a kill is to the code that it ends: no except clause sees it."""


def dying_after(saves: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process's end right after so many saves."""
    write, count = inflib.checkpoint.write_safetensors, [0]

    def writes(*arguments: Any) -> None:
        write(*arguments)
        count[0] += 1
        if count[0] > saves:
            raise Died

    monkeypatch.setattr(inflib.checkpoint, "write_safetensors", writes)


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize(
    ("fit", "kind"),
    [(ekfac, "perceptron"), (ekfac, "tokens"), (ekfac, "called twice"), (kfac, "tokens"), (diagonal, "perceptron")],
)
def test_a_fit_stopped_at_every_save_ends_with_the_same_bits(
    fit: Any, kind: str, labels: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = case_of(kind)
    expected = fitted(fit, case, labels=labels)
    for _ in range(40):
        with monkeypatch.context() as patch:
            dying_after(0, patch)
            try:
                found = fitted(fit, case, labels=labels, checkpoint=tmp_path / "fit")
                break
            except Died:
                continue
    assert_same_bits(found, expected)


@pytest.mark.parametrize("sharing", ["expand", "gradients"])
@pytest.mark.parametrize("stop", [1, 5])
def test_blocks_wide_enough_for_quick_products_are_rounded_alike_after_a_stop(
    stop: int, sharing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Products into memory that begins elsewhere add up in another order: as saved sums do, read from their file."""
    case = make(widths=(60, 80, 40, 5), n=64, splits=list(range(8, 64, 8)))
    how: dict[str, Any] = {"blocks": 2, "sharing": sharing, "labels": "observed", "draws": 1}
    with monkeypatch.context() as patch, pytest.raises(Died):
        dying_after(stop, patch)
        fitted(ekfac, case, checkpoint=tmp_path / "fit", **how)
    assert_same_bits(fitted(ekfac, case, checkpoint=tmp_path / "fit", **how), fitted(ekfac, case, **how))


def in_a_child(work: Callable[[], None], seconds: float) -> int:
    """A process's status after ``work``, killed after so many seconds."""
    child = os.fork()
    if child == 0:
        signal.setitimer(signal.ITIMER_REAL, seconds)  # SIGALRM ends a process that has no handler for it
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        try:
            work()
        finally:
            os._exit(0)
    return os.waitpid(child, 0)[1]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_process_killed_at_a_dozen_random_moments_ends_with_the_same_bits_and_leaves_no_strays(
    tmp_path: Path,
) -> None:
    case = case_of("perceptron")
    expected, draw, killed = fitted(ekfac, case), random.Random(0), 0
    for seconds in sorted(draw.uniform(0.0005, 0.06) for _ in range(12)):  # a quick machine is done before the last
        status = in_a_child(lambda: fitted(ekfac, case, checkpoint=tmp_path / "fit"), seconds)
        killed += os.WIFSIGNALED(status)
    assert killed, "every child ended by itself"
    assert_same_bits(fitted(ekfac, case, checkpoint=tmp_path / "fit"), expected)
    assert sorted(path.name for path in (tmp_path / "fit").iterdir()) == [
        *(f"basis-000{layer}-{side}.safetensors" for layer in (0, 1) for side in "AS"),
        "moments.safetensors",
        "squares.safetensors",
    ]


def test_what_was_done_is_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = case_of("perceptron")
    monkeypatch.setattr(EKFAC, "eigh", counted(EKFAC.eigh, calls := []))
    with monkeypatch.context() as patch:
        dying_after(5 + 1 + 2, patch)  # each batch's moments and the whole, then two factors, then the third
        with pytest.raises(Died):
            fitted(ekfac, case, checkpoint=tmp_path / "fit")
    assert len(calls) == 3
    forwards: list[int] = []
    case.model.register_forward_hook(lambda *_: forwards.append(1))
    fitted(ekfac, case, checkpoint=tmp_path / "fit")
    assert len(calls) == 4
    first = len(forwards)
    fitted(ekfac, case, checkpoint=tmp_path / "fit")
    assert len(calls) == 4
    assert len(forwards) - first < first  # the proof looks at a batch or two, the sums ask for none


def counted(function: Callable[..., Any], calls: list[int]) -> Callable[..., Any]:
    def counts(*arguments: Any) -> Any:
        calls.append(1)
        return function(*arguments)

    return counts


def test_sums_are_saved_now_and_then_and_not_for_every_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inflib.checkpoint, "SECONDS", 1000.0)
    monkeypatch.setattr(inflib.checkpoint, "write_safetensors", counted(lambda *_: None, saves := []))
    fitted(ekfac, case_of("perceptron"), checkpoint=tmp_path / "fit")
    assert len(saves) == 1 + 4 + 1  # the moments, two factors of two layers, the squares


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seed": 1}, "seed = 0, this fit has 1"),
        ({"labels": "observed"}, 'labels = "sampled", this fit has "observed"'),
        ({"layers": "fc1"}, "layers = "),
        ({"draws": 3}, "draws = 2, this fit has 3"),
    ],
)
def test_another_fits_checkpoint_is_refused(change: dict, said: str, tmp_path: Path) -> None:
    case = case_of("perceptron")
    fitted(ekfac, case, labels="sampled", checkpoint=tmp_path / "fit")
    with pytest.raises(ValueError, match=said):
        fitted(ekfac, case, **{"labels": "sampled", "checkpoint": tmp_path / "fit", **change})


def test_another_models_checkpoint_is_refused(tmp_path: Path) -> None:
    case = case_of("perceptron")
    fitted(ekfac, case, checkpoint=tmp_path / "fit")
    with torch.no_grad():
        case.model.fc0.weight[0, 0] += 1e-9
    with pytest.raises(ValueError, match=r"weights = .*expected the same. Give checkpoint= another folder"):
        fitted(ekfac, case, checkpoint=tmp_path / "fit")


@pytest.mark.parametrize("stop", [2, 30])
@pytest.mark.parametrize("change", ["another example", "fewer", "more"])
def test_other_data_is_refused(change: str, stop: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = case_of("perceptron")
    with monkeypatch.context() as patch:
        dying_after(stop, patch)
        with suppress(Died):
            fitted(ekfac, case, checkpoint=tmp_path / "fit")
    if change == "another example":
        case.x = case.x.clone()
        case.x[1, 2] += 1e-9
    elif change == "fewer":
        case.x, case.y, case.splits = case.x[:2], case.y[:2], [1]
    else:
        case.x, case.y = torch.cat([case.x, case.x]), torch.cat([case.y, case.y])
        case.splits = [2, 5, 6, 9, 11]
        if stop == 2:
            return  # more examples may follow a sum that is not whole
    with pytest.raises(ValueError, match=r"train yielded (more|other batches) than the \d+( batches)? that are in"):
        fitted(ekfac, case, checkpoint=tmp_path / "fit")


def test_data_without_an_order_of_its_own_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    case = case_of("perceptron")
    shuffled = DataLoader(TensorDataset(case.x, case.y), batch_size=4, shuffle=True)
    with pytest.raises(ValueError, match=r"checkpoint= with data that may come in another order .*shuffle=False"):
        ekfac(case.model, case.objective, shuffled, labels="expected", checkpoint=tmp_path / "fit", progress=False)
    assert not (tmp_path / "fit").exists()


def test_two_fits_at_a_time_and_a_file_and_a_missing_parent_are_refused(tmp_path: Path) -> None:
    case = case_of("perceptron")
    with Checkpoint.at(tmp_path / "fit", {}), pytest.raises(ValueError, match="in use by another fit"):
        fitted(ekfac, case, checkpoint=tmp_path / "fit")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file; expected a folder"):
        fitted(ekfac, case, checkpoint=tmp_path / "file")
    with pytest.raises(FileNotFoundError, match="create its parent"):
        fitted(ekfac, case, checkpoint=tmp_path / "no" / "fit")


def test_a_damaged_sum_is_refused(tmp_path: Path) -> None:
    case = case_of("perceptron")
    fitted(ekfac, case, checkpoint=tmp_path / "fit")
    path = tmp_path / "fit" / "squares.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=r"squares\.safetensors is damaged"):
        fitted(ekfac, case, checkpoint=tmp_path / "fit")


def test_the_next_save_waits_for_a_share_of_what_a_save_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inflib.checkpoint, "SHARE", 20.0)
    clock = iter([0.0, 10.0, 13.0, 13.0, 72.9, 73.1])
    monkeypatch.setattr(inflib.checkpoint.time, "monotonic", lambda: next(clock))
    with Checkpoint.at(tmp_path / "fit", {}) as kept:
        kept.save("sums", {"x": torch.ones(1)}, {}, Done())  # from 10 to 13: the next is due at 73
        assert [kept.due, kept.due] == [False, True]


@pytest.mark.parametrize("labels", LABELS)
def test_shards_of_the_data_add_up_to_the_whole(labels: str) -> None:
    case, cut = case_of("tokens"), 4
    parts = [(slice(0, cut), 0), (slice(cut, None), cut)]
    whole = Fit.of(case.model, case.objective, case.train, labels=labels, draws=2, progress=False)
    fits = [
        Fit.of(
            case.model,
            case.objective,
            batches(case.x[s], case.y[s], 3),
            labels=labels,
            draws=2,
            progress=False,
            start=n,
        )
        for s, n in parts
    ]
    moments = accumulate_moments(fits[0]) + accumulate_moments(fits[1])
    expected = accumulate_moments(whole)
    assert moments.examples == expected.examples
    for name in case.layers:
        assert_close(moments.A(name), expected.A(name), 1e-12)
        assert_close(moments.S(name), expected.S(name), 1e-12)
    basis = eigenbasis(expected)
    squares = corrected_eigenvalues(fits[0], basis) + corrected_eigenvalues(fits[1], basis)
    for name, Λ in corrected_eigenvalues(whole, basis).means().items():
        assert_close(squares.means()[name], Λ, 1e-12)


def test_a_shard_that_does_not_say_where_it_starts_draws_other_labels() -> None:
    case = case_of("perceptron")
    shard = batches(case.x[6:], case.y[6:], 3)
    first, later = (
        accumulate_moments(Fit.of(case.model, case.objective, shard, labels="sampled", progress=False, start=start)).S(
            "fc1"
        )
        for start in (0, 6)
    )
    again = second_moments(case.model, case.objective, shard, labels="sampled", progress=False).S("fc1")
    assert torch.equal(first, again)
    assert not torch.allclose(first, later)
