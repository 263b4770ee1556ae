"""The board's widget says what the bank says: scores, slopes, ceiling, and each retraining of the query it shows."""

from __future__ import annotations

import re

import pytest
import torch

from inflib.validation import Bank, bank_calibration, ceiling, datamodeling
from inflib.widgets import BelieveBoard, Dials

QUERIES = [3, 0, 4]


@pytest.fixture(scope="module")
def bank() -> Bank:
    """Twenty halves of thirty examples, four seeds, six queries: a linear truth with noise of the seeds."""
    generator = torch.Generator().manual_seed(0)
    masks = torch.stack([torch.randperm(30, generator=generator) < 15 for _ in range(20)])
    truth = torch.randn(6, 30, generator=generator, dtype=torch.float64)
    margin = masks.double() @ truth.T / 30
    noise = torch.randn(4, 20, 6, generator=generator, dtype=torch.float64)
    values = {"log_likelihood": 2 * margin - 0.1 * noise, "margin": margin + 0.05 * noise}
    return Bank(masks, values, {"name": "made"})


@pytest.fixture
def asked() -> list[tuple[str, Dials]]:
    return []


@pytest.fixture
def board(bank, asked) -> BelieveBoard:
    generator = torch.Generator().manual_seed(1)
    scores = {name: torch.randn(3, 30, generator=generator, dtype=torch.float64) for name in ("plain", "refined")}

    def scorer(name: str):
        def at(dials: Dials) -> torch.Tensor:
            asked.append((name, dials))
            return scores[name] + dials.damping * scores["plain"].roll(1, 1) + dials.steps * scores["plain"].roll(2, 1)

        return at

    methods = {name: scorer(name) for name in scores}
    return BelieveBoard(bank, methods, QUERIES, ["a 3", "<a 0>", "a 4"], refined=["refined"])


def test_it_shows_the_score_the_slope_and_the_ceiling_of_the_queries_it_was_given(bank, board) -> None:
    rows = torch.tensor(QUERIES)
    for name, (score, slope) in board.rows.items():
        scores = board._methods[name](Dials(0.1, 5 if name == "refined" else 0, "margin"))
        expected = datamodeling(scores, bank, "margin", queries=rows, resamples=200).interval
        assert score == f"{expected:.2f}"
        assert slope == f"{bank_calibration(scores, bank, 'margin', queries=rows).slope:.2f}"
        assert score in board.table.value and slope in board.table.value
    assert board.ceiling == f"{ceiling(bank, 'margin', queries=rows):.2f}"
    assert f"ceiling  LDS {board.ceiling}" in board.as_text()


def test_the_scatter_is_of_the_query_and_the_method_chosen(bank, board) -> None:
    board.method.value, board.query.value = "refined", 2
    predicted = board._methods["refined"](board.dials)[1] @ bank.masks.double().T
    actual = bank.measured("margin").mean(0)[:, 0]
    ranks = torch.stack([predicted.argsort().argsort().double(), actual.argsort().argsort().double()])
    assert f"&lt;a 0&gt;: rank correlation {torch.corrcoef(ranks)[0, 1]:.2f}" in board.scatter.value
    assert board.scatter.value.count("<circle") == 20
    spread = (predicted / 30 - predicted.mean() / 30).abs().max()
    assert f"predicted by refined: ±{float(spread):.2g}"[:26] in board.scatter.value


@pytest.mark.parametrize(("control", "value"), [("damping", 1.0), ("measurement", "log_likelihood"), ("steps", 9)])
def test_every_dial_changes_the_table_and_is_asked_for_once(board, asked, control, value) -> None:
    before, dial = board.table.value, getattr(board, control)
    was = dial.value
    dial.value = value
    assert board.table.value != before
    assert board.error.value == ""
    count = len(asked)
    dial.value = was
    assert board.table.value == before
    assert len(asked) == count, "what was asked once is kept"


def test_steps_are_no_setting_of_a_method_that_has_none(board, asked) -> None:
    board.steps.value = 12
    assert {dials.steps for name, dials in asked if name == "plain"} == {0}
    assert {dials.steps for name, dials in asked if name == "refined"} == {5, 12}


def test_its_still_says_the_same_without_a_kernel(board) -> None:
    still = board.as_html()
    assert board.table.value in still and board.scatter.value in still
    assert not re.search(r"<script|https?://", still)


def test_captions_that_do_not_fit_and_no_method_are_refused(bank) -> None:
    with pytest.raises(ValueError, match=r"1 methods, 3 queries and 2 captions; expected at least one"):
        BelieveBoard(bank, {"a": lambda _: torch.zeros(3, 30)}, QUERIES, ["a", "b"])
    with pytest.raises(ValueError, match=r"0 methods"):
        BelieveBoard(bank, {}, QUERIES, ["a", "b", "c"])


def test_scores_that_do_not_fit_the_bank_are_said(bank, board) -> None:
    board._methods["plain"] = lambda _: torch.zeros(3, 29)
    board.damping.value = 3.0
    assert "expected (3, 30)" in board.error.value
