"""Calibration, leaving out, removal and the board, on problems whose answer is known."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from linear_banks import N, Q, linear_bank, noise

from inflib import CrossEntropy, SquaredError
from inflib.lab import mlp
from inflib.validation import BankRecipe, Training, half_subsets
from inflib.validation.board import (
    Board,
    Measurement,
    Method,
    board,
    by_proximal,
    by_reference,
    by_removal,
    by_retraining,
    by_size,
    choose,
    halves,
)
from inflib.validation.calibration import bank_calibration, calibration
from inflib.validation.intervals import Interval
from inflib.validation.leave_k_out import LeftOut, leave_k_out
from inflib.validation.pbrf import Proximal
from inflib.validation.removal import disputed, nearest, random_same_class, remove, remove_top

# --- calibration -----------------------------------------------------------------------------------------------------


def test_the_slope_is_how_far_actual_changes_go_for_each_predicted_one():
    predicted = noise(Q, 50)
    found = calibration(predicted, 0.25 * predicted + 7)
    assert found.slope.mean == pytest.approx(0.25) and found.correlation.mean == pytest.approx(1)
    assert (found.slope.low, found.slope.high) == pytest.approx((0.25, 0.25))
    actual = 0.25 * predicted + noise(Q, 50, seed=4)
    noisy = calibration(predicted, actual)
    x, y = (v - v.mean(1, keepdim=True) for v in (predicted, actual))
    assert noisy.slope.mean == pytest.approx(float((x * y).sum() / (x * x).sum()))
    assert noisy.slopes.tolist() == pytest.approx(((x * y).sum(1) / (x * x).sum(1)).tolist())
    each = [float(torch.corrcoef(torch.stack([x[q], y[q]]))[0, 1]) for q in range(Q)]
    assert noisy.per_query.tolist() == pytest.approx(each)
    assert noisy.slope.low < 0.25 < noisy.slope.high


def test_scores_against_a_bank_are_calibrated_in_the_measurements_unit():
    bank, effects = linear_bank()
    assert bank_calibration(effects * N, bank).slope.mean == pytest.approx(1)  # score / N is what an example adds
    assert bank_calibration(effects * N * 19, bank).slope.mean == pytest.approx(1 / 19)


# --- leaving out -----------------------------------------------------------------------------------------------------


def least_squares(seeds=1):
    """A linear model in one full-batch pass after another: after many it is the least-squares fit, whatever the seed."""
    x = noise(20, 3).float()
    y = x @ torch.tensor([[1.0], [-2.0], [0.5]]) + 0.3 * noise(20, 1, seed=1).float()
    return BankRecipe(
        name="least squares",
        build=lambda seed: mlp((3, 1), bias=False, seed=seed).double(),
        objective=SquaredError(),
        inputs=x.double(),
        targets=y.double(),
        queries=[(noise(4, 3, seed=2), noise(4, 1, seed=3))],
        training=Training(epochs=400, batch_size=20, lr=0.3, momentum=0.0, anneal=False),
        masks=half_subsets(20, 2),
        seeds=seeds,
        measurements=("log_likelihood",),
    )


def fitted(recipe, kept):
    return torch.linalg.lstsq(recipe.inputs[kept], recipe.targets[kept]).solution


def test_leaving_a_group_out_is_training_without_it():
    recipe, groups = least_squares(), [[3], [0, 7, 11]]
    found = leave_k_out(recipe, groups, seeds=2, measurement="log_likelihood", progress=False)
    assert found.change.shape == (2, 4, 2)
    (x, y), everyone = recipe.queries[0], torch.arange(20)
    loss = lambda kept: 0.5 * (x @ fitted(recipe, kept) - y).square()[:, 0]  # noqa: E731
    for k, group in enumerate(groups):
        kept = everyone[~torch.isin(everyone, torch.tensor(group))]
        assert torch.allclose(found.effect[:, k], loss(everyone) - loss(kept), atol=1e-8)
    assert float(found.error.max()) < 1e-8 and float(found.seeds_needed().max()) == 1  # convex: no noise to average


def test_the_seeds_needed_put_an_effect_two_errors_from_nothing():
    change = 0.5 + 3 * noise(2000, 1, 1)
    needed = float(LeftOut(change).seeds_needed(2.0))
    assert needed == pytest.approx((2 * 3 / 0.5) ** 2, rel=0.4)
    enough = LeftOut(change[: round(needed)])
    assert float(enough.error) == pytest.approx(0.25, rel=0.4)
    assert "the median effect needs" in repr(enough)


def test_one_seed_cannot_tell_an_effect_from_noise():
    with pytest.raises(ValueError, match=r"seeds=1; expected at least 2"):
        leave_k_out(least_squares(), [[0]], seeds=1)


# --- removal ---------------------------------------------------------------------------------------------------------


def two_blobs():
    """Two far blobs of 12, and three queries in them; one more example of class 1 among class 0, beside query 2."""
    x = torch.cat([noise(12, 2) - 4, noise(12, 2, seed=1) + 4, torch.tensor([[-4.0, 4.0]])])
    y = torch.tensor([0] * 12 + [1] * 13)
    asked = torch.tensor([[-4.0, -4.0], [4.0, 4.0], [-4.0, 4.2]]).double()
    return BankRecipe(
        name="blobs",
        build=lambda seed: mlp((2, 8, 2), seed=seed).double(),
        objective=CrossEntropy(),
        inputs=x.double(),
        targets=y,
        queries=[(asked, torch.tensor([0, 1, 1]))],
        training=Training(epochs=30, batch_size=25, lr=0.1),
        masks=half_subsets(25, 2),
    )


def test_removing_what_an_answer_rests_on_flips_it_and_removing_the_rest_does_not():
    recipe = two_blobs()
    own = torch.zeros(3, 25)
    own[:, 24] = 1.0  # the one example beside query 2
    far = nearest(recipe.inputs, -recipe.queries[0][0])
    found = remove_top(recipe, {"own": own, "far": far}, ks=(1, 2), seeds=2, progress=False, at_once=2)
    assert found.flips["own", 1][:2].tolist() == [0, 0]  # the blobs have others
    without_it = recipe.train(0, (torch.arange(25) != 24)[None], progress=False).model(0)
    whole = recipe.train(0, progress=False).model(0)
    x = recipe.queries[0][0]
    margin = lambda m: (m(x)[2, 1] - m(x)[2, 0]).item()  # noqa: E731
    one = remove_top(recipe, {"own": own}, ks=(1,), seeds=1, progress=False)
    assert float(one.change["own", 1][2]) == pytest.approx(margin(without_it) - margin(whole), abs=1e-9)
    flipped = float(margin(whole) > 0 and margin(without_it) < 0)
    assert float(one.flips["own", 1][2]) == flipped
    assert found.beyond("own", "far", 1).mean == pytest.approx(
        float((found.change["far", 1] - found.change["own", 1]).mean())
    )
    asked_wrongly = replace(recipe, queries=[(x, torch.tensor([1, 1, 1]))])  # query 0 is wrong before and after
    assert float(remove_top(asked_wrongly, {"own": own}, ks=(1,), progress=False).flips["own", 1][0]) == 0
    assert found.mean_change("own", 1).mean < 0 and found.flip_rate("own", 1).mean >= flipped / 3


def test_removal_stands_on_the_board_beside_the_rest():
    recipe = two_blobs()
    own = torch.zeros(3, 25)
    own[:, 24] = 1.0
    rows = torch.tensor([1, 2])
    found = remove_top(recipe, {"own": own[rows]}, (1,), queries=rows, progress=False)
    for flips, values in ((True, found.flips["own", 1]), (False, -found.change["own", 1])):
        value = by_removal(recipe, 1, flips=flips).of(own[rows], rows, 50)
        assert value.mean == pytest.approx(float(values.mean()), abs=1e-12)


def test_what_two_rankings_dispute_is_matched_in_class_and_number():
    labels = torch.tensor([0, 0, 0, 1, 1, 1, 1])
    one = torch.tensor([[9.0, 8, 0, 7, 6, 0, 0]])  # first four: 0 1 3 4
    other = torch.tensor([[9.0, 0, 1, 7, 0, 8, 2]])  # first four: 0 5 3 6
    assert disputed(one, other, 4, labels) == ([[4]], [[5]])  # 1 (class 0) has no partner, 6 is one too many
    assert disputed(one, one, 4, labels) == ([[]], [[]])
    third = torch.tensor([[0.0, 0, 5, 0, 0, 4, 3]])  # first three: 2 5 6
    assert disputed(one, third, 3, labels) == ([[0, 3]], [[2, 5]])


def test_where_nothing_is_removed_nothing_changes():
    recipe = two_blobs()
    found = remove(recipe, {("some", 1): [[], [3], []]}, seeds=1, progress=False)
    change = found.change["some", 1]
    assert change[[0, 2]].tolist() == pytest.approx([0, 0], abs=1e-12) and abs(float(change[1])) > 1e-6
    with pytest.raises(ValueError, match=r"\('some', 1\) has 2 groups; expected 3"):
        remove(recipe, {("some", 1): [[], []]}, progress=False)


def test_simple_rankings_put_their_own_class_and_the_nearest_first():
    labels, own = torch.tensor([0, 1, 0, 1, 1]), torch.tensor([1, 0])
    order = random_same_class(labels, own).argsort(1, descending=True)
    assert set(order[0, :3].tolist()) == {1, 3, 4} and set(order[1, :2].tolist()) == {0, 2}
    x = torch.tensor([[0.0], [1], [2], [3], [10]])
    assert nearest(x, torch.tensor([[2.2]])).argsort(1, descending=True)[0].tolist() == [2, 3, 1, 0, 4]
    same = nearest(x, torch.tensor([[2.2]]), labels, torch.tensor([1])).argsort(1, descending=True)[0].tolist()
    assert same == [3, 1, 4, 2, 0]


def test_rankings_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"ranking 'a' has shape \(3, 4\); expected \(3, 25\)"):
        remove_top(two_blobs(), {"a": torch.zeros(3, 4)}, progress=False)
    with pytest.raises(ValueError, match=r"ks=\(25,\); expected numbers of examples from 1 to 24"):
        remove_top(two_blobs(), {"a": torch.zeros(3, 25)}, ks=(25,), progress=False)


# --- the board -------------------------------------------------------------------------------------------------------


def test_dials_are_chosen_on_one_half_and_reported_on_the_other():
    bank, effects = linear_bank()
    choosing, reported = halves(Q)
    assert choosing.tolist() == [0, 2, 4] and reported.tolist() == [1, 3, 5]

    def scores(dial):  # right on the half that chooses at dial 1, on the other half at dial 2
        out = noise(Q, N, seed=9)
        half = {1: choosing, 2: reported}.get(dial)
        if half is not None:
            out[half] = effects[half]
        return out

    method = Method(scores, (0, 1, 2), labels="expected", passes=3)
    found = board({"dialled": method, "plain": effects}, {"LDS": by_retraining(bank)}, (choosing, reported))
    row = next(r for r in found.rows if r.method == "dialled")
    assert row.dial == 1 and row.value < 0.7 and (row.labels, row.passes) == ("expected", 3)
    assert found.value("plain", "LDS").mean == pytest.approx(1)
    assert found.ceilings["LDS"].mean == pytest.approx(1)


def test_all_measurements_report_at_the_dial_that_the_first_chose():
    bank, effects = linear_bank()
    method = Method(lambda d: d * N * effects, (-1.0, 2.0, 1.0))
    measurements = {
        "LDS": by_retraining(bank),
        "size": by_size(bank),
        "exact": by_reference(effects[:, :9], torch.arange(9)),
    }
    found = board({"m": method}, measurements, halves(Q))
    assert [r.dial for r in found.rows] == [2.0, 2.0, 2.0]  # the first of equals
    assert found.value("m", "size").mean == pytest.approx(0.5)
    assert found.value("m", "exact").mean == pytest.approx(1)
    assert choose(method, Measurement(lambda s, rows, n: Interval(-float(s.sum()), 0, 0)), halves(Q)[0])[0] in (
        -1.0,
        2.0,
    )


def test_proximal_objectives_that_did_not_converge_are_left_out_and_counted():
    response = noise(Q, 8)
    converged = torch.tensor([True, True, False, True, True, True, False, True])
    found = Proximal(response, response, {}, torch.zeros(8), converged, 0.1)
    scores = torch.zeros(Q, N).double()
    which = list(range(0, 16, 2))
    scores[:, which] = response.masked_fill(~converged, 1e9)
    made = board({"m": scores}, {"PBRF": by_proximal(found, which)}, halves(Q))
    assert made.value("m", "PBRF").mean == pytest.approx(1)
    assert made.table().endswith("PBRF: 2 of 8 proximal objectives did not converge, and are left out")
    few = Proximal(response, response, {}, torch.zeros(8), torch.arange(8) < 2, 0.1)
    with pytest.raises(ValueError, match=r"6 of 8 proximal objectives did not converge; expected at least 3"):
        by_proximal(few, which)
    with pytest.raises(ValueError, match=r"which holds 7 examples; expected 8"):
        by_proximal(found, which[:7])


def test_a_board_reads_as_a_table_and_survives_json():
    bank, effects = linear_bank(sigma=3.0)
    found = board(
        {"mine": Method(lambda d: effects, (0.1,), "sampled", 12), "other": -effects},
        {"LDS": by_retraining(bank)},
        halves(Q),
    )
    lines = found.table().splitlines()
    assert len(lines) == 4 and lines[0].split() == [
        "method",
        "dial",
        "labels",
        "measurement",
        "value",
        "[interval]",
        "passes",
    ]
    assert lines[1].split()[:4] == ["mine", "0.1", "sampled", "LDS"] and lines[1].endswith("12")
    assert lines[-1].startswith("ceiling")
    assert Board.from_json(found.to_json()) == found


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda m: board({}, m, halves(Q)), "0 methods, 1 measurements"),
        (
            lambda m: board({"a": noise(Q, N)}, m, (torch.arange(3), torch.arange(2, 6))),
            r"queries \[2\] are in both halves",
        ),
        (lambda m: board({"a": Method(noise, ())}, m, halves(Q)), "came without dials"),
        (lambda m: halves(3), "3 queries; expected at least 4"),
    ],
)
def test_a_board_that_would_mislead_is_refused(call, match):
    with pytest.raises(ValueError, match=match):
        call({"LDS": by_retraining(linear_bank()[0])})


def test_what_is_not_on_the_board_is_said():
    with pytest.raises(KeyError, match="'b' by 'LDS' is not on the board"):
        Board(()).value("b", "LDS")
