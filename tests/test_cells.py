"""A study that was stopped goes on where it was, and computes nothing twice."""

from __future__ import annotations

import math
from pathlib import Path

import cells
import pytest
import torch
from cells import Study, kept


def test_a_cell_is_computed_once_and_written_plainly(tmp_path: Path) -> None:
    asked = []

    def compute() -> dict:
        asked.append(1)
        return {"lds": torch.tensor([0.12345, 2.0]), "of": {"one": 1 / 3}, "none": None, "count": 7}

    expected = {"lds": [0.123, 2.0], "of": {"one": 0.333}, "none": None, "count": 7}
    for _ in range(2):
        assert Study("some", tmp_path).cell("a", compute) == expected
    Study("some", tmp_path).cell("b", lambda: {"x": 1})
    assert len(asked) == 1
    assert Study("some", tmp_path).cells == {"a": expected, "b": {"x": 1}}


def test_a_piece_is_computed_once_and_not_begun_when_time_is_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cells, "PIECES", tmp_path)
    found = kept("scores", lambda: {"x": torch.arange(3)})
    monkeypatch.setattr(cells, "_limit", -math.inf)
    again = kept("scores", lambda: pytest.fail("it was there"))
    assert torch.equal(again["x"], found["x"])
    with pytest.raises(SystemExit) as stopped:
        kept("others", lambda: pytest.fail("no time was left"))
    assert stopped.value.code == 75
