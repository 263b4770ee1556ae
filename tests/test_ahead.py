"""A call that turns out long says once what all of it will take; a short one, or a silent one, says nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from networks import Case, make

import inflib.ahead
from inflib import TrainIndex, diagonal, ekfac, influence, kfac, self_influence
from inflib.ahead import Ahead, telling
from inflib.batches import Batch

pytestmark = pytest.mark.usefixtures("float64")


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that goes when it is told to."""
    time = [100.0]
    monkeypatch.setattr(inflib.ahead, "clock", lambda: time[0])
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    return time


def walked(now: list[float], ahead: Ahead, *seconds: float) -> None:
    batches = [Batch(at, at, 1, None, None) for at in range(len(seconds))]
    for _, took in zip(telling(batches, ahead), seconds, strict=True):
        now[0] += took


def test_it_is_told_from_the_batches_after_the_first_once_they_took_some_seconds(
    now: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    walked(now, Ahead("fit", 50, 2, lambda: "it holds much", lambda: 17.0), 999, 1, 1, 1.5, 1, 1)
    said = capsys.readouterr()
    assert said.out == ""
    seconds = 3.5 / 3 * 50 * 2 + 17
    assert said.err.startswith(
        f"fit: 2 passes over 50 batches, about {seconds / 60:.3g} min; it holds much. inflib.plan("
    )
    assert said.err.count("\n") == 1


def test_what_is_behind_it_is_not_counted(now: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    walked(now, Ahead("fit", 50, 2, lambda: "it holds much", done=40), 1, 2, 2, 2)
    assert "fit: 2 passes over 50 batches, about 2 min;" in capsys.readouterr().err


@pytest.mark.parametrize("batches", [None, 10])
def test_what_is_short_or_of_unknown_length_is_not_told(
    now: list[float], capsys: pytest.CaptureFixture[str], batches: int | None
) -> None:
    walked(now, Ahead("fit", batches, 1, lambda: pytest.fail("asked")), 1, 5, 5, 5)
    assert capsys.readouterr().err == ""


def test_environments_that_silence_bars_silence_it(
    now: list[float], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TQDM_DISABLE", "1")
    walked(now, Ahead("fit", 10_000, 1, lambda: pytest.fail("asked")), 5, 5, 5)
    assert capsys.readouterr().err == ""


def calls(case: Case, folder: Path) -> dict[str, Callable[[bool], Any]]:
    about = case.model, case.objective, case.train
    C = ekfac(*about, progress=False)
    factors = sum(2 * 8 * d * d for shape in C.shapes.values() for d in shape)
    held = TrainIndex.bytes_needed(*about[::2], C)
    stored = TrainIndex.bytes_needed(*about[::2], C, axes=0.5, bits=1)
    queries = 6 * 8 * sum(o * i for o, i in C.shapes.values())
    return {
        f"fit: 2 passes over 5 batches|take {factors / 1000:.3g} kB": lambda p: ekfac(*about, progress=p),
        f"fit: 1 pass over 5 batches|take {factors / 1000:.3g} kB": lambda p: kfac(*about, progress=p),
        f"index: 1 pass over 5 batches|takes {held / 1000:.3g} kB": lambda p: TrainIndex.build(*about, C, progress=p),
        f"store: 1 pass over 5 batches|takes {stored / 1000:.3g} kB on disk": lambda p: TrainIndex.build(
            *about, C, path=folder / f"store {p}", axes=0.5, bits=1, progress=p
        ),
        f"fit: 1 pass over 5 batches|diagonal takes {queries / 6000:.3g} kB": lambda p: diagonal(*about, progress=p),
        "self-influence: 1 pass over 5 batches|a number an example and layer is kept": lambda p: self_influence(
            *about, C, progress=p
        ),
        f"influence: 1 pass over 5 batches|take {queries / 1000:.3g} kB": lambda p: influence(
            *about, case.queries, C, progress=p
        ),
    }


def test_every_long_call_tells_it_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    monkeypatch.setattr(inflib.ahead, "LOOKED", 0.0)
    case = make(widths=(20, 16, 12), n=60, splits=[12, 24, 36, 48], queries=6)
    for expected, call in calls(case, tmp_path).items():
        for long, progress in ((0.0, True), (0.0, False), (1e9, True)):
            monkeypatch.setattr(inflib.ahead, "LONG", long)
            capsys.readouterr()
            call(progress)
            said = capsys.readouterr().err
            begins, ends = expected.split("|")
            assert said.count("batches, about") == (long == 0 and progress), said
            assert not said or (begins in said and ends in said), said
