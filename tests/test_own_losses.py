"""A loss of one's own: is it each example's own, convex, and do its seeds and its sampler belong to it? Seen or refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from networks import OBJECTIVES, make
from oracle import Problem, assert_close
from torch import Tensor, nn
from torch.nn import functional as F

from inflib import (
    Bernoulli,
    CrossEntropy,
    Huber,
    NextToken,
    Objective,
    PixelCrossEntropy,
    Poisson,
    SquaredError,
    Weighted,
    ekfac,
    gauss_newton,
    hessian,
    influence,
    kfac,
    refine,
)
from inflib.kronecker import diagonal
from inflib.objectives import check_objective

pytestmark = pytest.mark.usefixtures("float64")
QUIET: dict[str, Any] = {"progress": False}


def plain(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets, reduction="none")


class FourTimes(CrossEntropy):
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return 4 * plain(outputs, targets)


class Temperature(CrossEntropy):
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return plain(outputs / 2, targets)


class WrongSign(CrossEntropy):
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return -plain(outputs, targets)


class Cauchy(Objective):
    """Robust and not convex: Σ log(1 + r²), whose Hessian is below 0 for |r| > 1."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (1 + (outputs - targets).square()).log().sum(1)


class MeanInside(CrossEntropy):
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return plain(outputs, targets).mean().expand(len(targets))


class DividedByTheBatch(CrossEntropy):
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return plain(outputs, targets) / len(targets)


class LessTheMeanError(SquaredError):
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return 0.5 * (outputs - outputs.mean(0) - targets).square().sum(1)


class HalfTheSeeds(CrossEntropy):
    def seeds(self, outputs: Tensor, targets: Any = None) -> Iterator[Tensor]:
        return (s / 2 for s in super().seeds(outputs, targets))


class NoCrossTerms(FourTimes):
    """A loss and seeds of one class, with the Hessian's diagonal and trace but not its other entries."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return plain(outputs, targets)

    def seeds(self, outputs: Tensor, targets: Any = None) -> Iterator[Tensor]:
        p = outputs.softmax(1)
        for c in range(p.shape[1]):
            yield torch.zeros_like(p).index_copy(1, torch.tensor([c]), (p * (1 - p)).sqrt()[:, c : c + 1])


class WrongShape(CrossEntropy):
    def seeds(self, outputs: Tensor, targets: Any = None) -> Iterator[Tensor]:
        yield outputs[:, :1]


class UniformLabels(CrossEntropy):
    def sample(self, outputs: Tensor, uniforms: Tensor, targets: Any = None) -> Tensor:
        return (uniforms[:, 0] * outputs.shape[1]).long()


class WholeNoiseError(SquaredError):
    """Correct on the diagonal, but one noise for all outputs: off it the second moment is 1 in place of 0."""

    def sample(self, outputs: Tensor, uniforms: Tensor, targets: Any = None) -> Tensor:
        return outputs + torch.special.ndtri(uniforms[:, :1]).to(outputs)


class Tempered(Temperature):
    """A loss with the sampler that is its own."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return plain(outputs / 2, targets)

    def sample(self, outputs: Tensor, uniforms: Tensor, targets: Any = None) -> Tensor:
        return super().sample(outputs / 2, uniforms, targets)


class TemperedTokens(NextToken):
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return super().token_losses(outputs / 3, targets).sum(1)


FITS: dict[str, Callable[..., Any]] = {
    "ekfac": ekfac,
    "kfac": kfac,
    "diagonal": diagonal,
    "gauss_newton": gauss_newton,
    "refine": lambda model, objective, train, **options: refine(
        ekfac(model, OBJECTIVES[kind(objective)](), train, **QUIET), model, objective, train, **options
    ).to_dense(),
}


def kind(objective: Objective) -> str:
    return "CrossEntropy" if isinstance(objective, CrossEntropy) else "SquaredError"


@pytest.mark.parametrize("route", list(FITS))
@pytest.mark.parametrize(
    ("objective", "message"),
    [
        (WrongSign(), r"WrongSign: the loss is not convex.*eigenvalue -0\.\d+.*hessian\(\.\.\.\).*labels='observed'"),
        (Cauchy(), r"Cauchy: the loss is not convex in the model's outputs"),
        (Weighted(Cauchy()), r"Cauchy: the loss is not convex in the model's outputs"),
        (MeanInside(), r"loss of one example depends on .* others|MeanInside: an example's loss is .* in a batch of 3"),
        (DividedByTheBatch(), r"DividedByTheBatch: (an example's loss is|the loss of example 0 has another slope)"),
        (LessTheMeanError(), r"loss of one example depends on .* others|LessTheMeanError: an example's loss is"),
        (HalfTheSeeds(), r"HalfTheSeeds: its seeds are not those of its loss.*differ by 0.75.*or leave them out"),
        (NoCrossTerms(), r"NoCrossTerms: its seeds are not those of its loss"),
        (WrongShape(), r"WrongShape: a seed has shape \(3, 1\); expected \(3, 3\)"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Objective) else "",
)
def test_a_loss_without_a_curvature_or_with_anothers_seeds_is_refused(
    objective: Objective, message: str, route: str
) -> None:
    case = make(kind(objective), splits=[3])
    with pytest.raises(ValueError, match=message):
        FITS[route](case.model, objective, case.train, **QUIET)


@pytest.mark.parametrize("fit", [ekfac, gauss_newton])
def test_an_example_alone_shows_a_loss_that_divides_by_the_batch(fit: Any) -> None:
    case = make(splits=[1])
    with pytest.raises(
        ValueError,
        match=r"DividedByTheBatch: (an example's loss is|the loss of example 0 has another slope) .* in a batch of 2",
    ):
        fit(case.model, DividedByTheBatch(), case.train, **QUIET)


@pytest.mark.parametrize("route", list(FITS))
def test_an_outlier_in_a_later_batch_shows_that_a_loss_is_not_convex(route: str) -> None:
    case = make("SquaredError", splits=[3])
    near = case.problem.outputs() + 0.1
    near[5, 1] += 3
    train = [(case.x[:3], near[:3]), (case.x[3:], near[3:])]
    with pytest.raises(ValueError, match=r"Cauchy: the loss is not convex.*at example 2"):
        FITS[route](case.model, Cauchy(), train, **QUIET)


@pytest.mark.parametrize("objective", [WrongSign(), FourTimes()], ids=["sign", "scale"])
def test_what_has_no_gauss_newton_has_a_hessian_and_observed_labels(objective: Objective) -> None:
    case = make()
    formula = {"WrongSign": -1, "FourTimes": 4}[type(objective).__name__]
    problem = Problem(
        case.model, case.layers, lambda f, y: formula * (f.exp().sum().log() - f[y]), case.x, case.y, True
    )
    H = hessian(case.model, objective, case.train, **QUIET)
    assert_close(H.to_dense(), problem.hessian(), 1e-10)
    observed = gauss_newton(case.model, objective, case.train, labels="observed", **QUIET)
    assert_close(observed.to_dense(), problem.fisher(), 1e-10)
    with pytest.raises(ValueError, match=r"labels='sampled'|not convex"):
        ekfac(case.model, objective, case.train, labels="sampled", **QUIET)


@pytest.mark.parametrize(
    "objective", [FourTimes(), Temperature(), UniformLabels(), WholeNoiseError(), Weighted(FourTimes())], ids=repr
)
@pytest.mark.parametrize("fit", [ekfac, gauss_newton])
def test_a_sampler_that_is_another_losss_is_refused(objective: Objective, fit: Any) -> None:
    case = make("CrossEntropy" if not isinstance(objective, SquaredError) else "SquaredError")
    with pytest.raises(ValueError, match=r"labels='sampled': at labels that \w+.sample draws.*labels='expected'"):
        fit(case.model, objective, case.train, labels="sampled", **QUIET)


def test_a_sampler_over_many_outputs_is_seen_to_be_another_losss() -> None:
    f = torch.randn(3, 20, 11, generator=torch.Generator().manual_seed(0))
    y = torch.randint(0, 11, (3, 20), generator=torch.Generator().manual_seed(1))
    check_objective(NextToken(), f, y, "sampled")
    for objective in (TemperedTokens(), Weighted(TemperedTokens())):
        with pytest.raises(ValueError, match=r"labels='sampled': at labels that TemperedTokens.sample draws"):
            check_objective(objective, f, y, "sampled")

    class WithItsSampler(TemperedTokens):
        def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
            return super().loss(outputs, targets)

        def sample(self, outputs: Tensor, uniforms: Tensor, targets: Any = None) -> Tensor:
            return super().sample(outputs / 3, uniforms, targets)

    check_objective(WithItsSampler(), f, y, "sampled")


def test_a_loss_with_a_sampler_of_its_own_is_fitted_with_drawn_labels() -> None:
    case = make(n=40)
    formula = lambda f, y: (f / 2).exp().sum().log() - f[y] / 2  # noqa: E731
    problem = Problem(case.model, case.layers, formula, case.x, case.y, True)
    G = gauss_newton(case.model, Tempered(), case.train, labels="sampled", draws=300, **QUIET).to_dense()
    J, f = problem.jacobians(), problem.outputs()
    p = (f / 2).softmax(1)
    H = (torch.diag_embed(p) - p[:, :, None] * p[:, None, :]) / 4
    G_exact = torch.einsum("nfd,nfg,nge->de", J, H, J) / 40
    assert float((G - G_exact).norm() / G_exact.norm()) < 0.05
    assert_close(gauss_newton(case.model, Tempered(), case.train, **QUIET).to_dense(), G_exact, 1e-10)


def test_too_many_outputs_for_a_hessian_are_refused_by_name_and_can_be_allowed() -> None:
    f, y = torch.randn(2, 600), torch.tensor([3, 4])
    with pytest.raises(
        ValueError, match=r"FourTimes has no seeds.*600 outputs.*at most 512.*FourTimes.max_outputs = 600"
    ):
        next(iter(Objective.seeds(FourTimes(), f, y)))

    class Allowed(FourTimes):
        max_outputs = 600

    assert next(iter(Objective.seeds(Allowed(), f, y))).shape == (2, 600)


def test_a_hessian_that_is_not_finite_is_named() -> None:
    class Root(Objective):
        def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
            return (outputs - targets).abs().pow(1.5).sum(1)

    with pytest.raises(FloatingPointError, match=r"Root: the Hessian of its loss in the outputs holds NaN or infinity"):
        list(Root().seeds(torch.zeros(2, 2), torch.zeros(2, 2)))


@pytest.mark.parametrize("labels", ["expected", "sampled", "observed"])
@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_inflibs_own_losses_pass_at_outputs_of_any_size(labels: str, scale: float, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(7)
    w = torch.rand(9, generator=generator, dtype=torch.float32)
    y = torch.randint(0, 4, (9,), generator=generator)
    numbers = torch.randn(9, 4, generator=generator, dtype=torch.float32).to(dtype)
    soft = numbers.float().softmax(1).to(dtype)
    tokens = torch.randint(0, 4, (9, 3), generator=generator)
    cases: list[tuple[Objective, Any, tuple[int, ...]]] = [
        (CrossEntropy(), y, (9, 4)),
        (CrossEntropy(torch.rand(4, generator=generator), label_smoothing=0.1, ignore_index=2), y, (9, 4)),
        (CrossEntropy(), soft, (9, 4)),
        (Weighted(CrossEntropy()), (y, w), (9, 4)),
        (SquaredError(), scale * numbers, (9, 4)),
        (SquaredError(), numbers[:, 0], (9,)),
        (Bernoulli(), soft, (9, 4)),
        (Weighted(Bernoulli()), (soft[:, 0], w), (9,)),
        (NextToken(), tokens, (9, 3, 4)),
        (PixelCrossEntropy(), tokens.reshape(9, 3, 1), (9, 4, 3, 1)),
        (FourTimes(), y, (9, 4)),
    ]
    if scale <= 1:
        cases.append((Poisson(), y[:, None].expand(9, 4).to(dtype), (9, 4)))
    if labels != "sampled":
        cases.append((Huber(), numbers, (9, 4)))
    for objective, targets, shape in cases:
        f = scale * torch.randn(shape, generator=generator, dtype=torch.float32).to(dtype)
        if not (isinstance(objective, FourTimes) and labels == "sampled"):
            check_objective(objective, f, targets, labels)


def test_a_class_left_out_by_an_infinite_logit_passes() -> None:
    f, y = torch.randn(5, 4), torch.tensor([0, 1, 2, 0, 1])
    f[:, 3] = -torch.inf
    for labels in ("expected", "sampled"):
        check_objective(CrossEntropy(), f, y, labels)


def test_a_new_loss_under_an_old_log_likelihood_is_asked_about_itself() -> None:
    class Bits(CrossEntropy):
        def log_likelihood(self, outputs: Tensor, targets: Tensor) -> Tensor:
            return -plain(outputs, targets) / torch.tensor(2.0).log()

    class Twice(Bits):
        def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
            return 2 * plain(outputs, targets)

    f, y = torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1])
    assert torch.equal(Bits().measure(None, f, y), Bits().log_likelihood(f, y))
    assert torch.equal(Twice().measure(None, f, y), -2 * plain(f, y))


def test_scores_under_a_loss_of_ones_own_are_the_dense_formula() -> None:
    case = make()
    formula = lambda f, y: 4 * (f.exp().sum().log() - f[y])  # noqa: E731
    problem = Problem(case.model, case.layers, formula, case.x, case.y, True)
    G = problem.jacobians()
    p = problem.outputs().softmax(1)
    H = 4 * (torch.diag_embed(p) - p[:, :, None] * p[:, None, :])
    G = torch.einsum("nfd,nfg,nge->de", G, H, G) / len(case.y)
    C = gauss_newton(case.model, FourTimes(), case.train, **QUIET)
    came = influence(case.model, FourTimes(), case.train, case.queries, C, 0.1, **QUIET)
    assert_close(came, problem.influence(G, 0.1, case.query_x, case.query_y), 1e-10)


class Cosh(Objective):
    """Σ cosh(f − y), whose Hessian is diag cosh(f − y): nothing but a loss."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).cosh().sum(1)


def test_a_loss_alone_has_its_hessians_seeds_and_asks_for_the_targets() -> None:
    f, y = torch.randn(4, 3), torch.randn(4, 3)
    H = sum(s[:, :, None] * s[:, None, :] for s in Cosh().seeds(f, y))
    assert_close(H, torch.diag_embed((f - y).cosh()), 1e-12)
    with pytest.raises(ValueError, match=r"Cosh: the Hessian of its loss depends on targets"):
        list(Cosh().seeds(f))


def test_a_weight_multiplies_the_log_likelihood_and_no_other_measurement() -> None:
    f, y, w = torch.randn(4, 3), torch.tensor([0, 2, 1, 1]), torch.tensor([0.5, 2.0, 0.0, 3.0])
    plain, weighted = CrossEntropy(), Weighted(CrossEntropy())
    for name in (None, "log_likelihood"):
        assert_close(weighted.measure(name, f, (y, w)), w * f.log_softmax(1)[range(4), y], 1e-13)
    for name in ("margin", "logit"):
        assert torch.equal(weighted.measure(name, f, (y, w)), plain.measure(name, f, y))


@pytest.mark.parametrize(("off", "refused"), [(1e-4, True), (1e-9, False)])
def test_seeds_in_float64_are_held_to_its_digits(off: float, refused: bool) -> None:
    class Nearly(SquaredError):  # noqa: N818
        def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
            return 0.5 * (outputs - targets).square().sum(1)

        def seeds(self, outputs: Tensor, targets: Any = None) -> Any:
            yield from ((1 + off) * s for s in super().seeds(outputs, targets))

    torch.manual_seed(0)
    model, data = nn.Linear(3, 2).double().eval(), [(torch.randn(4, 3).double(), torch.randn(4, 2).double())]
    if refused:
        with pytest.raises(ValueError, match="its seeds are not those of its loss"):
            ekfac(model, Nearly(), data, progress=False)
    else:
        ekfac(model, Nearly(), data, progress=False)


class Margins(Objective):
    """A loss of torch's that is differentiated once."""

    def loss(self, outputs: Tensor, targets: Any) -> Tensor:
        return torch.nn.functional.multi_margin_loss(outputs, targets, reduction="none")


@pytest.mark.parametrize("fit", [ekfac, gauss_newton])
def test_a_loss_without_a_second_derivative_is_said_to_have_none(fit: Any) -> None:
    torch.manual_seed(0)
    model, data = torch.nn.Linear(3, 3).eval(), [(torch.randn(4, 3), torch.randint(0, 3, (4,)))]
    with pytest.raises(ValueError, match=r"Margins: its loss has no second derivative .*expected one.*'observed'"):
        fit(model, Margins(), data, progress=False)
    ekfac(model, Margins(), data, labels="observed", progress=False)
