"""Fewer digits: what is captured in half precision is summed in single and decomposed in double; TF32 is no fault."""

from __future__ import annotations

import pytest
import torch
from bfloat16 import TF32, compared
from networks import zoo

from inflib import CrossEntropy, capture, ekfac, influence
from inflib.kfac import second_moments


@pytest.mark.parametrize("animal", ["tokens", "convolution"])
def test_half_precision_is_captured_as_it_is_summed_in_single_and_decomposed_in_double(
    animal: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = zoo(animal, n=12)
    exact = ekfac(case.model, case.objective, case.train, labels="observed", progress=False)
    truth = influence(case.model, case.objective, case.train, case.queries, exact, 1.0, progress=False)
    half = case.model.to(torch.bfloat16)
    train, queries = ([(x.to(torch.bfloat16), y) for x, y in data] for data in (case.train, case.queries))
    for pair in capture(half, CrossEntropy(), *train[0]).values():
        assert {pair.a.dtype, pair.g.dtype} == {torch.bfloat16}
    sums = second_moments(half, case.objective, train, labels="observed", progress=False)
    assert {x.dtype for side in (sums.A_sum, sums.S_sum) for x in side.values()} == {torch.float32}
    decomposed, eigh = [], torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda x: decomposed.append(x.dtype) or eigh(x))
    C = ekfac(half, case.objective, train, labels="observed", progress=False)
    assert set(decomposed) == {torch.float64}
    assert {x.dtype for x in (*C.eigenvalues.values(), *C.Q_A.values())} == {torch.float32}
    came = influence(half, case.objective, train, queries, C, 1.0, progress=False)
    assert compared(came.double(), truth)["pearson"] > 0.99


def test_products_in_tf32_are_refused_nowhere_and_leave_the_order() -> None:
    case = zoo("transformer layer", n=12)

    def scores() -> torch.Tensor:
        C = ekfac(case.model, case.objective, case.train, progress=False)
        return influence(case.model, case.objective, case.train, case.queries, C, progress=False).double()

    exact = scores()
    case.model.float()
    case.x, case.query_x = case.x.float(), case.query_x.float()
    plain = compared(scores(), exact)["error"]
    with TF32():
        found = compared(scores(), exact)
    assert plain < 1e-4 < found["error"] < 0.05  # it was on
    assert found["pearson"] > 0.999
