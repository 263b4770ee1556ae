"""The study behind notebook 09: its scores are the library's, kept once; its committed results hang together."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import published_results
import pytest
import study
import study_scores
import torch

from inflib import CrossEntropy, damping_of, ekfac, gauss_newton, influence
from inflib.lab import mlp
from inflib.validation import BankRecipe, Training, half_subsets

KNOWN = json.loads(study.RESULTS.read_text())


def tiny() -> BankRecipe:
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(30, 4, generator=g), torch.arange(30) % 3
    return BankRecipe(
        name="tiny",
        build=lambda seed: mlp((4, 5, 3), seed=seed),
        objective=CrossEntropy(),
        inputs=x[:24],
        targets=y[:24],
        queries=[(x[24:], y[24:])],
        training=Training(epochs=3, batch_size=8, weight_decay=1e-2),
        masks=half_subsets(24, 2),
    )


def test_scores_are_those_of_networks_from_seeds_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study_scores, "KEPT", tmp_path)
    recipe, each = tiny(), []
    for seed in (100, 101):
        model = recipe.train(seed, progress=False).model(0).double()
        data, queries = recipe.data(dtype=torch.float64), recipe.asked(torch.float64)
        plain = ekfac(model, CrossEntropy(), data, progress=False)
        exact = gauss_newton(model, CrossEntropy(), data, progress=False)
        options: dict[str, Any] = {"measurement": "margin", "progress": False}
        numbers = damping_of(plain, 0.3)
        each.append(
            [influence(model, CrossEntropy(), data, queries, C, numbers, **options) for C in (plain, exact)]
        )  # fmt: skip
    for k, (name, steps) in enumerate((("EK-FAC", 0), ("exact G", 0), ("refined", 40))):
        found = study_scores.method(recipe, name, 2, (0.3,), steps).scores(0.3)
        expected = (each[0][min(k, 1)] + each[1][min(k, 1)]) / 2  # forty steps are exact G's solve
        assert torch.allclose(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max())), name


def test_scores_that_are_kept_are_not_computed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study_scores, "KEPT", tmp_path)
    first = study_scores.kept(tiny(), 100, "identity", None, 0)
    monkeypatch.setattr(study_scores, "compute", None)
    assert torch.equal(study_scores.kept(tiny(), 100, "identity", None, 0), first)


@pytest.mark.parametrize("item", sorted(KNOWN))
def test_committed_results_are_of_items_that_there_are_with_values_inside_their_intervals(item: str) -> None:
    assert item in study.ITEMS
    rows = KNOWN[item]["rows"]
    assert rows
    for row in rows:
        if {"value", "low", "high"} <= row.keys():
            assert row["low"] <= row["value"] <= row["high"], row
            top = KNOWN[item]["ceilings"].get(row["measurement"])
            assert top is None or row["value"] <= top["high"] + 0.01, row


def intervals(value: Any) -> Iterator[list[float]]:
    """Every [mean, low, high] inside."""
    if isinstance(value, list) and len(value) == 3 and all(isinstance(x, (int, float)) for x in value):
        yield value
    elif isinstance(value, (dict, list)):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from intervals(inner)


CELLS = ("bars", "damping_choice", "ensembling", "proximal", "sizes", "smooth_training", "top_rung")


@pytest.mark.parametrize("name", CELLS)
def test_committed_cells_hold_means_inside_their_intervals(name: str) -> None:
    found = list(intervals(json.loads((study.RESULTS.parent / f"{name}.json").read_text())))
    assert found
    assert [row for row in found if not row[1] <= row[0] <= row[2]] == []


def test_concrete_is_standardised_by_its_training_part_and_split_once_for_ever() -> None:
    (x, y), (held, _) = published_results.concrete_data()
    assert x.shape == (927, 8) and held.shape == (103, 8)
    assert float(x.mean(0).abs().max()) < 1e-5 and float((x.std(0, correction=0) - 1).abs().max()) < 1e-5
    assert float(y.std(correction=0)) == pytest.approx(1, abs=1e-5)
    assert not bool((held[:, None] == x[None]).all(2).all(1).all())


def test_an_item_that_there_is_not_is_refused() -> None:
    with pytest.raises(SystemExit, match="item 'none'; expected some of logistic, decay"):
        study.main(["none"])
