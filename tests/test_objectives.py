"""Objectives: per-example losses, seeds of expected labels, samplers, measurements, against formulas written out."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from networks import OBJECTIVES, batches, drawn, make, targets_for
from oracle import LOSSES, Problem, assert_close, label_distribution
from torch import Tensor
from torch.func import grad, hessian, vmap

from inflib import Bernoulli, CrossEntropy, Objective, SquaredError, capture, ekfac, gauss_newton, influence
from inflib.objectives import label_kind, label_seeds, output_gradient
from inflib.randomness import LabelStreams

pytestmark = pytest.mark.usefixtures("float64")
NAMES = sorted(OBJECTIVES)


def some(name: str, n: int = 5, outputs: int = 3, seed: int = 0, soft: bool = True) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, outputs, generator=generator), targets_for(name, n, outputs, generator, soft)


# --- losses -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@given(seed=st.integers(0, 1000), n=st.integers(1, 5), outputs=st.integers(2, 4))
@drawn(20)
def test_loss_is_the_formula_summed_over_an_examples_outputs(name: str, seed: int, n: int, outputs: int) -> None:
    f, y = some(name, n, outputs, seed)
    loss = OBJECTIVES[name]().loss(f, y)
    assert loss.shape == (n,)
    assert_close(loss, torch.stack([LOSSES[name](f[k], y[k]) for k in range(n)]), 1e-13)


@pytest.mark.parametrize("name", ["SquaredError", "Bernoulli"])
def test_one_output_may_come_without_an_axis_of_its_own(name: str) -> None:
    f, y = some(name, 5, 1)
    objective = OBJECTIVES[name]()
    assert_close(objective.loss(f[:, 0], y[:, 0]), objective.loss(f, y), 1e-15)
    flat = torch.stack(list(objective.seeds(f[:, 0])))
    assert flat.shape == (1, 5)
    assert_close(flat, torch.stack(list(objective.seeds(f)))[..., 0], 1e-15)


def test_squared_error_sums_over_every_axis_but_the_first() -> None:
    f, y = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    expected = torch.stack(
        [sum((f[n, t, c] - y[n, t, c]) ** 2 / 2 for t in range(3) for c in range(4)) for n in (0, 1)]
    )
    assert_close(SquaredError().loss(f, y), expected, 1e-14)


@pytest.mark.parametrize("name", NAMES)
def test_output_gradient_is_that_of_the_formula_also_inside_no_grad(name: str) -> None:
    f, y = some(name)
    expected = vmap(grad(LOSSES[name]))(f, y)
    with torch.no_grad():
        assert_close(output_gradient(OBJECTIVES[name]().loss, f, y), expected, 1e-13)


# --- seeds --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@given(seed=st.integers(0, 1000), n=st.integers(1, 4), outputs=st.integers(1, 4))
@drawn(20)
def test_seeds_square_to_the_hessian_of_the_loss_in_the_outputs(name: str, seed: int, n: int, outputs: int) -> None:
    f, y = some(name, n, outputs, seed)
    seeds = list(OBJECTIVES[name]().seeds(f))
    assert all(s.shape == f.shape for s in seeds)
    H = vmap(hessian(LOSSES[name]))(f, y)
    assert_close(sum(torch.einsum("bi,bj->bij", s, s) for s in seeds), H, 1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_seeds_square_to_the_gradients_second_moment_over_the_models_labels(name: str) -> None:
    f, _ = some(name)
    expected = torch.zeros(5, 3, 3)
    for y, p in label_distribution(name, f):
        g = vmap(grad(LOSSES[name]))(f, y)
        expected += torch.einsum("n,ni,nj->nij", p, g, g)
    seeds = OBJECTIVES[name]().seeds(f)
    assert_close(sum(torch.einsum("bi,bj->bij", s, s) for s in seeds), expected, 1e-12)


# --- samplers -----------------------------------------------------------------------------------------------------------


def grid(count: int, columns: int = 1) -> Tensor:
    """Uniform numbers without luck: the midpoints of ``count`` equal intervals."""
    return ((torch.arange(count) + 0.5) / count)[:, None].expand(count, columns)


def test_cross_entropy_samples_each_class_as_often_as_its_probability_says() -> None:
    logits = torch.tensor([0.3, -1.2, 0.9, 0.0])
    drawn_ = CrossEntropy().sample(logits.expand(4000, 4), grid(4000))
    p = logits.exp() / logits.exp().sum()
    counts = torch.stack([(drawn_ == c).sum() for c in range(4)])
    assert drawn_.dtype == torch.int64
    assert ((counts - 4000 * p).abs() <= 1).all()


def test_a_class_of_probability_zero_is_never_sampled() -> None:
    logits = torch.tensor([-math.inf, 0.0, -math.inf, 1.0, -math.inf])
    found = CrossEntropy().sample(logits.expand(1000, 5), grid(1000))
    assert sorted(set(found.tolist())) == [1, 3]


def test_squared_error_samples_from_the_unit_gaussian_around_the_output() -> None:
    f = torch.tensor([[0.5, -2.0]]).expand(501, 2)
    found = SquaredError().sample(f, grid(501, 2))
    expected = torch.distributions.Normal(f, torch.ones(())).icdf(grid(501, 2))
    assert_close(found, expected, 1e-10)


def test_bernoulli_samples_ones_as_often_as_its_probability_says() -> None:
    f = torch.tensor([[0.7, -1.5]])
    found = Bernoulli().sample(f.expand(2000, 2), grid(2000, 2))
    assert set(found.unique().tolist()) <= {0.0, 1.0}
    assert ((found.sum(0) - 2000 / (1 + (-f[0]).exp())).abs() <= 1).all()


@pytest.mark.parametrize("name", NAMES)
def test_uniforms_says_how_many_numbers_sample_takes(name: str) -> None:
    f, y = some(name)
    objective = OBJECTIVES[name]()
    found = objective.sample(f, torch.full((5, objective.uniforms(f)), 0.4))
    assert found.shape == y.shape
    objective.check(f, found)


# --- streams of sampled labels --------------------------------------------------------------------------------------------


def test_uniform_numbers_are_inside_the_open_interval_and_spread_evenly() -> None:
    u = LabelStreams(3, 0, 0).uniforms(0, 2000, 5)
    assert u.dtype == torch.float64
    assert float(u.min()) > 0 and float(u.max()) < 1
    assert abs(float(u.mean()) - 1 / 2) < 4 / (12 * u.numel()) ** 0.5
    assert abs(float(u.var()) - 1 / 12) < 0.002
    assert abs(float(torch.corrcoef(u.T)[0, 1:].abs().max())) < 0.1  # numbers of one example
    assert abs(float(torch.corrcoef(torch.stack([u[:-1, 0], u[1:, 0]]))[0, 1])) < 0.1  # neighbouring examples


def test_every_example_pass_draw_and_seed_has_a_stream_of_its_own() -> None:
    seen = torch.stack(
        [LabelStreams(s, p, d).uniforms(n, 1, 4)[0] for s in (0, 1) for p in (0, 1) for d in (0, 1) for n in (0, 1, 7)]
    )
    assert len(seen.flatten().unique()) == seen.numel()


@given(start=st.integers(0, 50), cut=st.integers(1, 9))
@drawn(15)
def test_an_examples_stream_does_not_depend_on_its_batch(start: int, cut: int) -> None:
    whole = LabelStreams(5, 1, 2).uniforms(start, 10, 3)
    stream = LabelStreams(5, 1, 2)
    assert torch.equal(whole, torch.cat([stream.uniforms(start, cut, 3), stream.uniforms(start + cut, 10 - cut, 3)]))
    assert torch.equal(whole[:, :2], stream.uniforms(start, 10, 2))


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_out_of_range_is_refused(seed: int) -> None:
    case = make()
    with pytest.raises(ValueError, match=rf"seed is {seed}; expected a whole number from 0"):
        ekfac(case.model, case.objective, case.train, labels="sampled", seed=seed, progress=False)


def test_sampled_gradients_have_the_expected_second_moment_in_the_limit() -> None:
    f, y = some("CrossEntropy")
    objective = CrossEntropy()

    def moment(labels: str, draws: int) -> Tensor:
        constants = {"labels": labels, "draws": draws, "seed": 0, "pass_": 0, "start": 0}
        return sum(w * torch.einsum("bi,bj->bij", s, s) for s, w in label_seeds(objective, f, y, **constants))

    exact = moment("expected", 1)
    few, many = (float((moment("sampled", d) - exact).norm()) / float(exact.norm()) for d in (10, 640))
    assert many < 0.15
    assert many < few / 3  # 64 times the draws: 8 times smaller, give or take


# --- measurements -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("measurement", [None, "log_likelihood"])
def test_the_default_measurement_is_the_log_likelihood(name: str, measurement: str | None) -> None:
    f, y = some(name)
    objective = OBJECTIVES[name]()
    assert_close(
        objective.measure(measurement, f, y), -torch.stack([LOSSES[name](f[k], y[k]) for k in range(5)]), 1e-13
    )


def test_margin_is_the_log_odds_of_the_target_class() -> None:
    f, y = some("CrossEntropy", n=6, outputs=4)
    p = f.exp() / f.exp().sum(1, keepdim=True)
    chosen = torch.stack([p[k, y[k]] for k in range(6)])
    assert_close(CrossEntropy().measure("margin", f, y), (chosen / (1 - chosen)).log(), 1e-12)


def test_margin_of_two_classes_is_the_difference_of_their_logits() -> None:
    f, y = some("CrossEntropy", n=6, outputs=2)
    expected = torch.stack([f[k, y[k]] - f[k, 1 - y[k]] for k in range(6)])
    assert_close(CrossEntropy().measure("margin", f, y), expected, 1e-14)


def test_logit_is_the_targets_own_output() -> None:
    f, y = some("CrossEntropy")
    assert torch.equal(CrossEntropy().measure("logit", f, y), torch.stack([f[k, y[k]] for k in range(5)]))
    f, y = some("SquaredError", outputs=1)
    assert torch.equal(SquaredError().measure("logit", f, y), f[:, 0])
    f = torch.randn(4)
    y = torch.tensor([0.0, 1.0, 1.0, 0.0])
    assert torch.equal(Bernoulli().measure("logit", f, y), torch.stack([-f[0], f[1], f[2], -f[3]]))


@pytest.mark.parametrize("measurement", ["logit", "margin", "log_likelihood"])
def test_a_target_that_is_left_out_measures_zero_and_the_others_what_they_did(measurement: str) -> None:
    f, y = some("CrossEntropy")
    came = CrossEntropy(ignore_index=-100).measure(measurement, f, y.where(torch.arange(5) != 2, -100))
    assert came[2] == 0
    kept = [0, 1, 3, 4]
    assert torch.equal(came[kept], CrossEntropy().measure(measurement, f[kept], y[kept]))


def test_a_measurement_may_be_any_function_of_outputs_and_targets() -> None:
    f, y = some("SquaredError")
    assert torch.equal(SquaredError().measure(lambda f, y: f[:, 2] * y[:, 0], f, y), f[:, 2] * y[:, 0])


# --- an objective of one's own --------------------------------------------------------------------------------------------


class Poisson(Objective):
    """Counts y ~ Poisson(exp f), one per output."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs.exp() - targets * outputs).sum(1)

    def seeds(self, outputs: Tensor, targets: object = None) -> list[Tensor]:
        unit = torch.eye(outputs.shape[1]).to(outputs)
        return [(outputs / 2).exp() * unit[c] for c in range(outputs.shape[1])]


class OnlyALoss(Objective):
    """The least an objective can be."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).abs().sum(1)


class MeanLoss(Objective):
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).abs().mean()


class UnsummedLoss(Objective):
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).abs()


def test_a_new_objective_works_through_fit_and_scores() -> None:
    case = make("SquaredError")
    y, query_y = (t.abs().mul(3).round() for t in (case.y, case.query_y))
    train, queries = batches(case.x, y, 3), [(case.query_x, query_y)]
    problem = Problem(case.model, case.layers, lambda f, y: (f.exp() - y * f).sum(), case.x, y)
    G = gauss_newton(case.model, Poisson(), train, progress=False)
    assert_close(G.to_dense(), problem.gauss_newton(), 1e-12)
    scores = influence(case.model, Poisson(), train, queries, G, 0.1, progress=False)
    assert_close(scores, problem.influence(problem.gauss_newton(), 0.1, case.query_x, query_y), 1e-10)
    fit = ekfac(case.model, Poisson(), train, progress=False)
    trace = sum(float(v.sum()) for v in fit.eigenvalues.values())
    assert trace == pytest.approx(float(problem.gauss_newton().trace()), rel=1e-12)


def test_an_objective_without_a_sampler_works_with_observed_labels_and_says_so() -> None:
    case = make("SquaredError")
    with pytest.raises(NotImplementedError, match=r"OnlyALoss has no sampler; use labels='observed'"):
        ekfac(case.model, OnlyALoss(), case.train, labels="sampled", progress=False)
    fit = ekfac(case.model, OnlyALoss(), case.train, labels="observed", progress=False)
    problem = Problem(case.model, case.layers, lambda f, y: (f - y).abs().sum(), case.x, case.y)
    assert sum(float(v.sum()) for v in fit.eigenvalues.values()) == pytest.approx(float(problem.fisher().trace()))


@pytest.mark.parametrize(("objective", "shape"), [(MeanLoss(), r"\(\)"), (UnsummedLoss(), r"\(3, 3\)")])
@pytest.mark.parametrize("function", [capture, ekfac, influence])
def test_a_loss_that_is_not_one_number_per_example_is_refused(
    objective: Objective, shape: str, function: object
) -> None:
    case = make("SquaredError", n=7, splits=[3])
    with pytest.raises(ValueError, match=rf"loss has shape {shape}; expected one number per example, \(3,\).*'none'"):
        if function is capture:
            capture(case.model, objective, *case.train[0])
        elif function is ekfac:
            ekfac(case.model, objective, case.train, labels="observed", progress=False)
        else:
            fit = ekfac(case.model, case.objective, case.train, progress=False)
            influence(case.model, objective, case.train, case.train[:1], fit, progress=False)


def test_a_loss_that_is_no_tensor_is_refused() -> None:
    class Number(Objective):
        def loss(self, outputs: Tensor, targets: Tensor) -> float:
            return 1.0

    case = make("SquaredError")
    with pytest.raises(ValueError, match=r"loss has shape float; expected one number per example"):
        capture(case.model, Number(), case.x, case.y)


# --- what is refused ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("bad", "low", "high"), [(3, 0, 3), (-1, -1, 2), (-100, -100, 2)])
def test_class_indices_out_of_range_are_refused_with_the_range(bad: int, low: int, high: int) -> None:
    y = torch.tensor([0, 1, 2, 0, 1])
    y[3] = bad
    y[0] = 0 if bad > 0 else y[0]
    with pytest.raises(ValueError, match=rf"targets from {low} to {high}; expected 0 to 2.*3 outputs"):
        CrossEntropy().check(torch.randn(5, 3), y)


def test_targets_of_the_wrong_kind_are_refused() -> None:
    f = torch.randn(5, 3)
    with pytest.raises(ValueError, match=r"float64 targets; expected class indices: targets.long\(\)"):
        CrossEntropy().check(f, torch.zeros(5))
    with pytest.raises(
        ValueError, match=r"rows that sum to 0 up to 0; expected class indices \(B,\).*or probabilities"
    ):
        CrossEntropy().check(f, torch.zeros(5, 3))
    with pytest.raises(ValueError, match=r"targets of shape list; expected \(5,\)"):
        CrossEntropy().check(f, [0, 1, 2, 0, 1])
    with pytest.raises(ValueError, match=r"outputs of shape \(5, 2, 3\); expected logits \(B, C\)"):
        CrossEntropy().check(torch.randn(5, 2, 3), torch.zeros(5, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"shape \(2, 4\); expected \(2, 3\).*Fix: look at what the batches hold"):
        SquaredError().check(torch.randn(2, 3), torch.randn(2, 4))
    with pytest.raises(ValueError, match=r"shape tuple; .*Fix: a pair of targets and weights belongs to Weighted"):
        SquaredError().check(torch.randn(2, 3), (torch.randn(2, 3), torch.ones(2)))
    with pytest.raises(ValueError, match=r"SquaredError got targets of shape \(5,\); expected \(5, 1\)"):
        SquaredError().check(torch.randn(5, 1), torch.randn(5))
    with pytest.raises(ValueError, match=r"SquaredError got targets of shape \(5, 1\); expected \(5,\)"):
        SquaredError().check(torch.randn(5), torch.randn(5, 1))
    with pytest.raises(ValueError, match=r"Bernoulli got targets of shape \(5,\); expected \(5, 3\)"):
        Bernoulli().check(f, torch.ones(5))


@pytest.mark.parametrize("bad", [-0.1, 1.5, math.nan])
def test_bernoulli_targets_outside_of_the_unit_interval_are_refused(bad: float) -> None:
    y = torch.full((5, 3), 0.5)
    y[2, 1] = bad
    with pytest.raises(ValueError, match=r"Bernoulli got targets from .*expected values in \[0, 1\]"):
        Bernoulli().check(torch.randn(5, 3), y)


@pytest.mark.parametrize("name", NAMES)
def test_targets_on_another_device_than_the_outputs_are_refused(name: str) -> None:
    f, y = some(name)
    with pytest.raises(ValueError, match=r"targets on meta, outputs on cpu; expected one device.*y.to\('cpu'\)"):
        OBJECTIVES[name]().check(f, y.to("meta"))


def test_unknown_names_are_refused_with_those_there_are() -> None:
    f, y = some("SquaredError")
    with pytest.raises(
        ValueError, match=r"'margin' is not defined for SquaredError; expected one of log_likelihood, logit"
    ):
        SquaredError().measure("margin", f, y)
    with pytest.raises(ValueError, match=r"'loss' is not defined"):  # a method's name is not a measurement's
        SquaredError().measure("loss", f, y)
    with pytest.raises(ValueError, match=r"labels='true'; expected one of 'expected', 'sampled', 'observed'"):
        label_kind(CrossEntropy(), "true")
    with pytest.raises(ValueError, match=r"'logit' needs one output per example, this model has 3.*lambda"):
        SquaredError().measure("logit", f, y)


def test_a_measurement_that_is_not_one_number_per_example_is_refused() -> None:
    f, y = some("CrossEntropy")
    with pytest.raises(ValueError, match=r"measurement has shape \(5, 3\); expected one number per example, \(5,\)"):
        CrossEntropy().measure(lambda f, y: f, f, y)


@pytest.mark.parametrize("draws", [0, -2, 1.5])
def test_draws_must_be_a_whole_positive_number(draws: float) -> None:
    case = make()
    with pytest.raises(ValueError, match=rf"draws={draws}; expected a whole number"):
        ekfac(case.model, case.objective, case.train, labels="sampled", draws=draws, progress=False)  # type: ignore[arg-type]
