"""What does not fit is refused by name and size before anything of it is made."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import make
from torch import nn

import inflib.memory
from inflib import CrossEntropy, diagonal, ekfac, gauss_newton, hessian, identity, kfac
from inflib.kfac import second_moments
from inflib.memory import _available, _left_of, check_factors, free_bytes
from inflib.selection import select

DATA = [(torch.randn(4, 3), torch.tensor([0, 1, 2, 3]))]


class Words(nn.Module):
    def __init__(self, rows: int = 50_000):
        super().__init__()
        self.body, self.unembed = nn.Linear(3, 4), nn.Linear(4, rows, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.unembed(self.body(x).tanh())


@pytest.mark.parametrize("fit", [ekfac, kfac, second_moments])
def test_an_unembedding_of_many_rows_is_refused_by_name_with_its_size_and_what_leaves_it_out(
    fit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inflib.memory, "LIMIT", 8 * 2**30)
    model = Words().eval()
    monkeypatch.setattr(model, "forward", lambda x: pytest.fail("the model was run"))
    with pytest.raises(MemoryError, match=r"layer 'unembed' .*\(50,000, 4\) takes 93.1 GiB .*at most 8.0 GiB") as error:
        fit(model, CrossEntropy(), DATA, progress=False)
    advice = re.search(r"layers=(lambda .*?\]), or", str(error.value))
    assert advice is not None
    monkeypatch.undo()
    monkeypatch.setattr(inflib.memory, "LIMIT", 8 * 2**30)
    assert list(select(model, eval(advice[1]))) == ["body"]
    fit(model, CrossEntropy(), DATA, layers=eval(advice[1]), labels="observed", progress=False)


def test_what_has_no_factors_of_a_layer_needs_no_room_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inflib.memory, "LIMIT", 8 * 2**30)
    model = Words().eval()
    for fit in (diagonal, identity):
        assert fit(model, CrossEntropy(), DATA, labels="observed", progress=False).shapes["unembed"] == (50_000, 4)


@pytest.mark.parametrize("fit", [gauss_newton, hessian])
def test_an_exact_matrix_that_does_not_fit_is_refused(fit: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inflib.memory, "LIMIT", 8 * 2**30)
    with pytest.raises(
        MemoryError, match=r"layer 'unembed' .* for its rows of the exact matrix.*ekfac\(...\) and refine"
    ):
        fit(Words().eval(), CrossEntropy(), DATA, progress=False)


def test_the_limit_is_where_it_is_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two copies of A and S, Λ, and four float64 matrices of the largest factor, layer by layer."""
    case = make(widths=(3, 6, 4), n=4)
    layers = select(case.model)
    shapes = [(6, 4), (4, 7)]
    held = [8 * (2 * (o * o + i * i) + o * i) for o, i in shapes]
    need = sum(held) + 4 * 8 * 7 * 7
    monkeypatch.setattr(inflib.memory, "LIMIT", need)
    check_factors(layers)
    monkeypatch.setattr(inflib.memory, "LIMIT", need - 1)
    with pytest.raises(
        MemoryError, match=rf"layer 'fc1' .*all layers {need:,} bytes; .*at most {need - 1:,} bytes.*\['fc1'\]"
    ):
        check_factors(layers)
    monkeypatch.setattr(inflib.memory, "LIMIT", 10)
    with pytest.raises(MemoryError, match=r"not in \['fc1', 'fc0'\]"):
        check_factors(layers)
    blocks = 2 * 8 * (24**2 + 28**2)
    for limit, options in ((blocks, {"blocks": True}), (2 * 8 * 52**2, {})):
        monkeypatch.setattr(inflib.memory, "LIMIT", limit)
        gauss_newton(case.model, case.objective, case.train, progress=False, **options)
        monkeypatch.setattr(inflib.memory, "LIMIT", limit - 1)
        with pytest.raises(MemoryError, match="exact matrix"):
            gauss_newton(case.model, case.objective, case.train, progress=False, **options)


def test_free_memory_is_read_where_the_machine_tells_it(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal:  100 kB\nMemFree: 7 kB\nMemAvailable:      50 kB\n")
    assert _available(tmp_path / "meminfo") == 50 * 1024
    assert _available(tmp_path / "nowhere") is None
    assert _left_of(tmp_path) is None
    for name, text in (
        ("memory.max", "1000\n"),
        ("memory.current", "700\n"),
        ("memory.stat", "anon 1\ninactive_file 150\n"),
    ):
        (tmp_path / name).write_text(text)
    assert _left_of(tmp_path) == 450
    (tmp_path / "memory.max").write_text("max\n")
    assert _left_of(tmp_path) is None
    assert free_bytes(torch.device("meta")) is None
    here = free_bytes(torch.device("cpu"))
    assert here is None or here > 2**20


def test_the_memory_that_is_there_is_known_on_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inflib.memory, "LIMIT", None)
    free = free_bytes(torch.device("cpu"))
    assert (free is not None) == Path("/proc/meminfo").exists()
    assert free is None or 2**20 < free < 2**50
