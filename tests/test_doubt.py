"""Several networks' scores as one, and what drawing labels, networks and dampings again says of a score."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from oracle import assert_close
from torch import Tensor, nn

from inflib import CrossEntropy, Curvature, damping_of, ekfac, gauss_newton, influence, relative
from inflib.doubt import (
    average_scores,
    damping_by_agreement,
    damping_by_training,
    ensemble_influence,
    error_bars,
)
from inflib.doubt.error_bars import combined, student_quantile

pytestmark = pytest.mark.usefixtures("float64")

Member = tuple[nn.Module, Curvature]


def data(N: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(N, 4, generator=generator, dtype=torch.float64), torch.randint(3, (N,), generator=generator))]


TRAIN, QUERIES = data(12, 0), data(3, 1)


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


def member(seed: int, draw: int | None = None) -> Member:
    """A network with its curvature; with ``draw``, from sampled labels of that seed."""
    model = network(seed)
    labels = {} if draw is None else dict(labels="sampled", seed=draw)
    return model, ekfac(model, CrossEntropy(), TRAIN, progress=False, **labels)


def scored(one: Member, factor: float = 0.1) -> Tensor:
    model, curvature = one
    return influence(model, CrossEntropy(), TRAIN, QUERIES, curvature, relative(factor), progress=False)


# --- ensembles -------------------------------------------------------------------------------------------------------


def test_an_ensembles_scores_are_the_mean_of_its_members() -> None:
    members = [member(seed) for seed in range(3)]
    expected = torch.stack([scored(one) for one in members]).mean(0)
    assert_close(ensemble_influence(members, CrossEntropy(), TRAIN, QUERIES), expected, 1e-14)
    lazily = (member(seed) for seed in range(3))
    assert_close(ensemble_influence(lazily, CrossEntropy(), TRAIN, QUERIES), expected, 1e-14)


def test_dampings_and_measurements_reach_every_member() -> None:
    members = [member(seed) for seed in range(2)]
    found = ensemble_influence(members, CrossEntropy(), TRAIN, QUERIES, relative(2.0), measurement="margin")
    each = [
        influence(m, CrossEntropy(), TRAIN, QUERIES, c, relative(2.0), measurement="margin", progress=False)
        for m, c in members
    ]
    assert_close(found, (each[0] + each[1]) / 2, 1e-14)


def test_standardised_members_count_alike_in_every_query_and_keep_the_unit() -> None:
    one, other = torch.randn(2, 3, 50)
    scales = torch.tensor([1.0, 20.0, 300.0])[:, None]
    found = average_scores([one, scales * other], standardised=True)
    for q in range(3):
        a, b = one[q].numpy(), (scales * other)[q].numpy()
        expected = (a / a.std() + b / b.std()) / 2 * (a.std() + b.std()) / 2
        assert np.abs(found[q].numpy() - expected).max() < 1e-12 * np.abs(expected).max()
    assert_close(average_scores([one, one], standardised=True), one, 1e-14)


def test_scores_split_by_layers_are_averaged_alike() -> None:
    x = torch.randn(4, 2, 6, 3)
    assert_close(average_scores(x), x.mean(0), 1e-14)
    assert average_scores(x, standardised=True).shape == (2, 6, 3)


def test_members_that_cannot_be_averaged_are_refused() -> None:
    with pytest.raises(ValueError, match="no member came"):
        average_scores([])
    with pytest.raises(ValueError, match=r"member 1 has scores of shape \(2, 4\), those before it \(2, 3\)"):
        average_scores([torch.ones(2, 3), torch.ones(2, 4)])
    with pytest.raises(ValueError, match="member 0 gives query 1 the same score"):
        average_scores([torch.tensor([[1.0, 2.0], [3.0, 3.0]])], standardised=True)


# --- error bars ------------------------------------------------------------------------------------------------------


def test_an_error_bar_joins_the_spread_of_networks_with_that_of_dampings() -> None:
    members = [member(seed) for seed in range(4)]
    found = error_bars(members, CrossEntropy(), TRAIN, QUERIES, relative(0.2), level=0.95)
    S = {f: np.stack([scored(one, f).numpy() for one in members]) for f in (0.2, 0.2 / 3, 0.6)}  # {λ: (M, Q, N)}
    middle = S[0.2].mean(0)
    drawn = S[0.2].std(0, ddof=1) / 2
    damping = np.sqrt(((S[0.6].mean(0) - middle) ** 2 + (S[0.2 / 3].mean(0) - middle) ** 2) / 2)
    half = np.sqrt((3.182446 * drawn) ** 2 + (1.959964 * damping) ** 2)  # t with 3 degrees of freedom
    assert_close(found.scores, torch.from_numpy(middle), 1e-12)
    assert_close(found.low, torch.from_numpy(middle - half), 1e-5)
    assert_close(found.high, torch.from_numpy(middle + half), 1e-5)
    assert found.undecided.tolist() == (np.abs(middle) <= half).tolist()
    assert 0 < float(found.undecided.double().mean()) < 1
    assert found.members == 4


def test_curvatures_of_one_network_are_label_draws_and_count_as_one_network() -> None:
    draws = [member(0, draw) for draw in range(3)]
    alone = error_bars(draws, CrossEntropy(), TRAIN, QUERIES)
    each = np.stack([scored(one).numpy() for one in draws])
    assert_close(alone.drawn, torch.from_numpy(each.std(0, ddof=1) / math.sqrt(3)), 1e-12)
    assert alone.members == 1
    both = error_bars([*draws, member(1, 0), member(1, 1)], CrossEntropy(), TRAIN, QUERIES)
    other = np.stack([scored(member(1, draw)).numpy() for draw in range(2)]).mean(0)
    assert_close(both.scores, torch.from_numpy((each.mean(0) + other) / 2), 1e-12)
    assert_close(both.drawn, torch.from_numpy(np.abs(each.mean(0) - other) / 2), 1e-12)


def test_a_groups_bar_is_that_of_its_summed_scores() -> None:
    members = [member(seed) for seed in range(3)]
    groups = torch.randint(2, (5, 12)).bool()
    found = error_bars(members, CrossEntropy(), TRAIN, QUERIES, groups=groups)
    sums = np.stack([scored(one).numpy() @ groups.numpy().T.astype(float) for one in members])
    assert_close(found.scores, torch.from_numpy(sums.mean(0)), 1e-12)
    assert_close(found.drawn, torch.from_numpy(sums.std(0, ddof=1) / math.sqrt(3)), 1e-12)


def test_another_curvature_of_some_members_adds_how_far_its_scores_are() -> None:
    members = [member(seed) for seed in range(3)]
    beside = [(model, gauss_newton(model, CrossEntropy(), TRAIN)) for model, _ in members[:2]]
    plain = error_bars(members, CrossEntropy(), TRAIN, QUERIES)
    found = error_bars(members, CrossEntropy(), TRAIN, QUERIES, beside=beside)
    gaps = []
    for (model, exact), one in zip(beside, members, strict=False):
        at = damping_of(one[1])  # EK-FAC's numbers, for both
        gaps.append((influence(model, CrossEntropy(), TRAIN, QUERIES, exact, at) - scored(one)).numpy())
    expected = np.sqrt((gaps[0] ** 2 + gaps[1] ** 2) / 2)
    assert_close(found.approximation, torch.from_numpy(expected), 1e-10)
    assert torch.equal(plain.approximation, torch.zeros(3, 12))
    assert torch.equal(found.scores, plain.scores)
    wider = ((plain.high - plain.scores) ** 2 + (1.644854 * found.approximation) ** 2).sqrt()
    assert_close(found.high - found.scores, wider, 1e-6)
    with pytest.raises(ValueError, match="which is no member's"):
        error_bars(members[:2], CrossEntropy(), TRAIN, QUERIES, beside=[member(7)])


def test_bars_cover_what_they_estimate_as_often_as_they_say() -> None:
    generator = torch.Generator().manual_seed(0)
    truth = torch.randn(40, 500, generator=generator)
    for M in (2, 5):
        drawn = truth + torch.randn(M, 1, 40, 500, generator=generator)
        still = [one.expand(3, 40, 500)[None] for one in drawn]  # no damping matters
        bars = combined(still, level=0.9)
        covered = ((bars.low <= truth) & (truth <= bars.high)).double().mean()
        assert float(covered) == pytest.approx(0.9, abs=0.01)


@pytest.mark.parametrize(
    ("freedom", "level", "expected"),
    [(1, 0.9, 6.3138), (2, 0.95, 4.3027), (4, 0.9, 2.1318), (9, 0.99, 3.2498), (30, 0.5, 0.6828)],  # printed tables
)
def test_quantiles_are_students(freedom: int, level: float, expected: float) -> None:
    assert student_quantile(level, freedom) == pytest.approx(expected, abs=1e-4)


def test_what_gives_no_bar_is_refused() -> None:
    with pytest.raises(ValueError, match="one member has no spread; expected at least two"):
        error_bars([member(0)], CrossEntropy(), TRAIN, QUERIES)
    with pytest.raises(ValueError, match="level=90; expected"):
        error_bars([member(0), member(1)], CrossEntropy(), TRAIN, QUERIES, level=90)
    with pytest.raises(ValueError, match=r"groups have shape \(2, 11\); expected \(K, 12\)"):
        error_bars([member(0), member(1)], CrossEntropy(), TRAIN, QUERIES, groups=torch.ones(2, 11))


# --- dampings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("momentum", [0.0, 0.6, 0.9])
def test_a_damping_by_training_moves_quadratics_about_as_far_as_training_does(momentum: float) -> None:
    rates = [0.01 * (1 + math.cos(math.pi * k / 400)) for k in range(400)]
    damping = damping_by_training(rates, momentum=momentum)
    for h in (1e-4, 0.01, 0.1, 1.0, 10.0):
        x, v = 1.0, 0.0  # how far from the minimum of ½ h x²
        for rate in rates:
            v = momentum * v + h * x
            x -= rate * v
        assert 1 - x == pytest.approx(h / (h + damping), rel=0.35)
        if h == 1e-4:
            assert 1 - x == pytest.approx(h / (h + damping), rel=0.06)


def test_weight_decay_is_added_and_impossible_recipes_are_refused() -> None:
    assert damping_by_training([0.5, 0.3], momentum=0.2, weight_decay=0.25) == pytest.approx(1.25)
    for dials in ({"rates": []}, {"rates": [0.1], "momentum": 1.0}, {"rates": [0.1], "weight_decay": -1.0}):
        with pytest.raises(ValueError, match="expected the rate of each step"):
            damping_by_training(**dials)


def test_a_damping_by_agreement_is_where_scores_follow_those_of_exact_g() -> None:
    model, curvature = member(0)
    exact = gauss_newton(model, CrossEntropy(), TRAIN)
    at, tried = 0.02, (0.01, 0.1, 1.0, 10.0)
    G = influence(model, CrossEntropy(), TRAIN, QUERIES, exact, at, measurement="margin").numpy()
    agreement = {}
    for f in tried:
        one = influence(model, CrossEntropy(), TRAIN, QUERIES, curvature, relative(f), measurement="margin").numpy()
        agreement[f] = np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(one, G, strict=True)])
    best = max(agreement, key=agreement.__getitem__)
    assert best not in (tried[0], tried[-1])
    asked = model, CrossEntropy(), TRAIN, QUERIES, curvature, at
    assert damping_by_agreement(*asked, factors=tried, steps=60, measurement="margin") == relative(best)
    with pytest.raises(ValueError, match="no factor came"):
        damping_by_agreement(*asked, factors=())
