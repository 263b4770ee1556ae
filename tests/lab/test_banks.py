"""The banks of notebook 09: their recipes, and those that ship."""

from __future__ import annotations

import json

import pytest
import torch

from inflib.lab import banks, mnist_5k
from inflib.lab.data import FOLDER
from inflib.validation import rank_correlation

SHIPPED = sorted(path.stem for path in (FOLDER / "banks").glob("*.npz"))


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_bank_is_its_recipes_and_under_a_megabyte(name):
    bank, recipe = banks.bank_of(name), banks.recipe(name)
    assert len(bank.masks) >= 100 and bank.seeds >= 3 and bank.queries >= 100
    assert torch.equal(bank.masks, recipe.masks)
    assert bool((bank.masks.sum(1) * 2 == bank.masks.shape[1]).all())
    assert (FOLDER / "banks" / f"{name}.npz").stat().st_size < 2**20


def test_a_shipped_bank_holds_what_a_retraining_measures():
    # one network of the quickest bank, retrained here: float32 drifts a little from machine to machine, seeds by far more
    recipe, bank = banks.recipe("logistic"), banks.bank_of("logistic")
    found = recipe.train(3, recipe.masks[[7]], progress=False).measure(recipe.objective, recipe.queries, "margin")
    held = bank.measured("margin")
    assert float((found[0] - held[3, 7]).abs().max()) < 0.05
    assert float((held[2, 7] - held[3, 7]).abs().max()) > 0.1


def test_digits_are_averaged_over_two_by_two_pixels():
    inputs = mnist_5k().train[:3].inputs
    found = banks.pooled(inputs)
    pictures = inputs.view(3, 28, 28)
    assert found.shape == (3, 196)
    assert float(found[2, 14 * 5 + 9]) == pytest.approx(float(pictures[2, 10:12, 18:20].mean()), abs=1e-6)


def test_queries_are_twenty_of_each_class_that_no_network_saw():
    recipe = banks.decay()
    (x, y) = recipe.asked()[0]
    assert torch.bincount(y).tolist() == [20] * 10
    assert float(torch.cdist(x, recipe.inputs).min()) > 0


def test_the_sentences_masks_keep_both_halves_and_its_queries_ask_for_names():
    recipe = banks.sentences()
    assert recipe.examples == 310 and sum(len(y) for _, y in recipe.queries) == 100
    logits = recipe.build(0)(**{k: v[:2] for k, v in recipe.inputs.items()})
    assert logits.shape[:2] == recipe.targets[:2].shape


def test_a_bank_that_there_is_not_is_refused():
    with pytest.raises(ValueError, match="bank 'none'; expected one of logistic, decay"):
        banks.recipe("none")


def test_the_predictions_that_ship_reach_the_scores_that_the_study_reports():
    found, bank = banks.predictions_of("decay"), banks.bank_of("decay")
    reported = json.loads((FOLDER.parent / "benchmarks" / "results" / "study.json").read_text())
    for how, item in (
        (banks.Prediction("EK-FAC", 1, 0.1, 0), "decay"),
        (banks.Prediction("refined", 12, 2.0, 20), "twelve"),
    ):
        predicted, actual = found[how][1::2], bank.mean("margin").T[1::2]  # the half that is reported
        lds = float(
            torch.stack([torch.tensor(rank_correlation(p, a)) for p, a in zip(predicted, actual, strict=True)]).mean()
        )
        rows = [r for r in reported[item]["rows"] if r["method"].startswith(how.method) and r["measurement"] == "LDS"]
        assert rows[0]["dial"] == how.damping and lds == pytest.approx(rows[0]["value"], abs=0.005)


def test_a_bank_without_predictions_is_said():
    with pytest.raises(FileNotFoundError, match=r"none\.npz is missing; predictions ship for decay"):
        banks.predictions_of("none")


def test_predictions_are_kept_in_eight_bits_of_their_range(monkeypatch, tmp_path):
    monkeypatch.setattr(banks, "FOLDER", tmp_path)
    (tmp_path / "predictions").mkdir()
    given = {
        banks.Prediction("identity", 1, None, 0): torch.randn(3, 5).double(),
        banks.Prediction("refined", 2, 1.0, 9): torch.randn(3, 5).double(),
    }
    banks.save_predictions("x", given)
    found = banks.predictions_of("x")
    for how, values in given.items():
        reach = values.amax(1) - values.amin(1)
        assert bool(((found[how] - values).abs() <= reach[:, None] / 255 / 2 * 1.001).all())
