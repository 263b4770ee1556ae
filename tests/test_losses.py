"""Every loss people train with: its curvature in every route, against Hessians of formulas written out here.

The oracle takes an example's loss as a formula of its outputs and a number n, by which the formula looks up the
example's own target and weight: no objective, no seeds and no torch loss function of the library's is used.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from networks import batches, perceptron
from oracle import Problem, assert_close
from torch import Tensor, nn

from inflib import (
    Bernoulli,
    CrossEntropy,
    Huber,
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
from inflib.exact import gauss_newton_product
from inflib.objectives import label_seeds

pytestmark = pytest.mark.usefixtures("float64")
N, C = 7, 3
QUIET: dict[str, Any] = {"progress": False}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


LABELS = torch.tensor([0, 2, 1, 1, 0, 2, 2])
SOFT = torch.rand(N, C, generator=generator(1), dtype=torch.float64).softmax(1)
CLASS_WEIGHTS = torch.tensor([0.5, 2.0, 1.2])
WEIGHTS = torch.tensor([0.3, 1.0, 2.5, 0.0, 1.7, 0.9, 3.0], dtype=torch.float64)
NUMBERS = torch.randn(N, C, generator=generator(2), dtype=torch.float64) * 2
COUNTS = torch.randint(0, 5, (N, C), generator=generator(3)).double()


def log_softmax(f: Tensor) -> Tensor:
    return f - f.exp().sum().log()


def distribution(q: Tensor, w: Tensor | None = None) -> Callable[[Tensor], Tensor]:
    """−Σ_c q_c w_c log p_c."""
    return lambda f: -(q * (1 if w is None else w.double()) * log_softmax(f)).sum()


def one_hot(y: Tensor) -> Tensor:
    return (torch.arange(C) == y).double()


def huber(r: Tensor, delta: float) -> Tensor:
    return torch.where(r.abs() <= delta, r**2 / 2, delta * r.abs() - delta**2 / 2).sum()


class FourTimes(CrossEntropy):
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return 4 * nn.functional.cross_entropy(outputs, targets, reduction="none")


class Temperature(CrossEntropy):
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return super().loss(outputs / 2, targets)


class OnTheInstance(CrossEntropy):
    def __init__(self) -> None:
        super().__init__()
        self.loss = lambda outputs, targets: 3 * CrossEntropy().loss(outputs, targets)  # type: ignore[method-assign]


class LogCoshError(SquaredError):
    """A loss whose Hessian depends on the targets: Σ log cosh(f − y)."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if bool((targets > 1e6).any()):  # so that vmap cannot follow
            raise ValueError("no such target")
        return (outputs - targets).cosh().log().sum(1)


class OnlyALoss(Objective):
    """Nonlinear in its targets, which are no tensor but a dict, and coupling the outputs."""

    def loss(self, outputs: Tensor, targets: dict[str, Tensor]) -> Tensor:
        y, w = targets["y"], targets["w"]
        return w * (outputs * y.exp()).logsumexp(1) + 0.5 * (outputs - y).square().sum(1)


class TorchsHuberError(SquaredError):
    """Whose backward pass has no forward derivative in torch."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.huber_loss(outputs, targets, reduction="none", delta=0.8).sum(1)


@dataclass
class Loss:
    objective: Objective
    targets: Any
    formula: Callable[[int], Callable[[Tensor], Tensor]]  # example n → its loss as a function of its outputs (C,)


SMOOTH = 0.9 * torch.stack([one_hot(y) for y in LABELS]) + 0.1 / C
IGNORING = LABELS.where(torch.tensor([1, 0, 1, 1, 1, 1, 0]).bool(), -100)

CASES: dict[str, Loss] = {
    "class weights": Loss(
        CrossEntropy(CLASS_WEIGHTS), LABELS, lambda n: distribution(one_hot(LABELS[n]), CLASS_WEIGHTS)
    ),
    "label smoothing": Loss(CrossEntropy(label_smoothing=0.1), LABELS, lambda n: distribution(SMOOTH[n])),
    "class weights and smoothing": Loss(
        CrossEntropy(CLASS_WEIGHTS, label_smoothing=0.1), LABELS, lambda n: distribution(SMOOTH[n], CLASS_WEIGHTS)
    ),
    "soft targets": Loss(CrossEntropy(), SOFT, lambda n: distribution(SOFT[n])),
    "soft targets, class weights and smoothing": Loss(
        CrossEntropy(CLASS_WEIGHTS, label_smoothing=0.2),
        SOFT,
        lambda n: distribution(0.8 * SOFT[n] + 0.2 / C, CLASS_WEIGHTS),
    ),
    "ignored labels": Loss(
        CrossEntropy(ignore_index=-100),
        IGNORING,
        lambda n: distribution(one_hot(IGNORING[n])) if IGNORING[n] >= 0 else lambda f: (0 * f).sum(),
    ),
    "ignored labels, class weights and smoothing": Loss(
        CrossEntropy(CLASS_WEIGHTS, label_smoothing=0.1, ignore_index=-100),
        IGNORING,
        lambda n: distribution(SMOOTH[n], CLASS_WEIGHTS) if IGNORING[n] >= 0 else lambda f: (0 * f).sum(),
    ),
    "Huber": Loss(Huber(0.8), NUMBERS, lambda n: lambda f: huber(f - NUMBERS[n], 0.8)),
    "Poisson": Loss(Poisson(), COUNTS, lambda n: lambda f: (f.exp() - COUNTS[n] * f).sum()),
    "weighted cross-entropy": Loss(
        Weighted(CrossEntropy()),
        (LABELS, WEIGHTS),
        lambda n: lambda f: WEIGHTS[n] * distribution(one_hot(LABELS[n]))(f),
    ),
    "weighted, class weights": Loss(
        Weighted(CrossEntropy(CLASS_WEIGHTS, label_smoothing=0.1)),
        (LABELS, WEIGHTS),
        lambda n: lambda f: WEIGHTS[n] * distribution(SMOOTH[n], CLASS_WEIGHTS)(f),
    ),
    "weighted squared error": Loss(
        Weighted(SquaredError()),
        (NUMBERS, WEIGHTS),
        lambda n: lambda f: WEIGHTS[n] * ((f - NUMBERS[n]) ** 2).sum() / 2,
    ),
    "weighted Bernoulli": Loss(
        Weighted(Bernoulli()),
        (SOFT, WEIGHTS),
        lambda n: lambda f: WEIGHTS[n] * ((1 + f.exp()).log() - SOFT[n] * f).sum(),
    ),
    "weighted Huber": Loss(
        Weighted(Huber()), (NUMBERS, WEIGHTS), lambda n: lambda f: WEIGHTS[n] * huber(f - NUMBERS[n], 1.0)
    ),
    "weighted Poisson": Loss(
        Weighted(Poisson()),
        (COUNTS, WEIGHTS),
        lambda n: lambda f: WEIGHTS[n] * (f.exp() - COUNTS[n] * f).sum(),
    ),
    "weights left out": Loss(Weighted(CrossEntropy()), LABELS, lambda n: distribution(one_hot(LABELS[n]))),
    "four times": Loss(FourTimes(), LABELS, lambda n: lambda f: 4 * distribution(one_hot(LABELS[n]))(f)),
    "a temperature": Loss(Temperature(), LABELS, lambda n: lambda f: distribution(one_hot(LABELS[n]))(f / 2)),
    "a loss on the instance": Loss(
        OnTheInstance(), LABELS, lambda n: lambda f: 3 * distribution(one_hot(LABELS[n]))(f)
    ),
    "log cosh": Loss(LogCoshError(), NUMBERS, lambda n: lambda f: ((f - NUMBERS[n]).cosh().log()).sum()),
    "weighted, a loss of one's own": Loss(
        Weighted(LogCoshError()),
        (NUMBERS, WEIGHTS),
        lambda n: lambda f: WEIGHTS[n] * ((f - NUMBERS[n]).cosh().log()).sum(),
    ),
    "Huber, torch's": Loss(TorchsHuberError(), NUMBERS, lambda n: lambda f: huber(f - NUMBERS[n], 0.8)),
    "only a loss": Loss(
        OnlyALoss(),
        {"y": SOFT, "w": WEIGHTS},
        lambda n: lambda f: WEIGHTS[n] * (f * SOFT[n].exp()).exp().sum().log() + ((f - SOFT[n]) ** 2).sum() / 2,
    ),
}


def picked(targets: Any, rows: slice) -> Any:
    if isinstance(targets, dict):
        return {k: y[rows] for k, y in targets.items()}
    return tuple(y[rows] for y in targets) if isinstance(targets, tuple) else targets[rows]


@dataclass
class Setting:
    loss: Loss
    model: nn.Module
    x: Tensor

    @classmethod
    def of(cls, name: str, widths: tuple[int, ...] = (3, 4, C)) -> Setting:
        model = perceptron(list(widths), [True] * (len(widths) - 1), "tanh", 4)
        return cls(CASES[name], model, torch.randn(N, widths[0], generator=generator(5), dtype=torch.float64))

    @property
    def data(self) -> list[tuple[Tensor, Any]]:
        return [(self.x[rows], picked(self.loss.targets, rows)) for rows in (slice(0, 4), slice(4, N))]

    @property
    def problem(self) -> Problem:
        layers = [n for n, m in self.model.named_modules() if isinstance(m, nn.Linear)]
        formula = lambda f, n: self.loss.formula(int(n))(f)  # noqa: E731
        return Problem(self.model, layers, formula, self.x, torch.arange(N), one_by_one=True)

    def gauss_newton(self, formula: Callable[[Tensor, Any], Tensor] | None = None) -> Tensor:
        problem = self.problem
        J, f = problem.jacobians(), problem.outputs()
        H = torch.stack([torch.func.hessian(self.loss.formula(n))(f[n]) for n in range(N)])
        return torch.einsum("nfd,nfg,nge->de", J, H, J) / N


NAMES = pytest.mark.parametrize("name", list(CASES))


@NAMES
def test_the_gauss_newton_hessian_and_the_hessian_are_those_of_the_formula(name: str) -> None:
    case = Setting.of(name)
    G = case.gauss_newton()
    assert_close(gauss_newton(case.model, case.loss.objective, case.data, **QUIET).to_dense(), G, 1e-10)
    H = hessian(case.model, case.loss.objective, case.data, **QUIET)
    assert_close(H.to_dense(), sum_of_hessians(case) / N, 1e-10)


def sum_of_hessians(case: Setting) -> Tensor:
    problem, theta = case.problem, case.problem.theta
    return sum(
        torch.func.hessian(lambda t, n=n: case.loss.formula(n)(problem.outputs_of(t, case.x[n])))(theta)
        for n in range(N)
    )


@NAMES
def test_seeds_are_the_gauss_newton_hessians_square_root(name: str) -> None:
    """K-FAC's S and EK-FAC's Λ, for one layer, where S ⊗ A and Λ can be had from G directly."""
    case = Setting.of(name)
    G, spans = case.gauss_newton(), case.problem.spans
    fit = ekfac(case.model, case.loss.objective, case.data, **QUIET)
    for layer, span in spans.items():
        U = torch.kron(fit.Q_S[layer], fit.Q_A[layer])
        expected = (U.T @ G[span, span] @ U).diagonal().reshape(fit.eigenvalues[layer].shape)
        assert_close(fit.eigenvalues[layer], expected, 1e-10)


@NAMES
def test_kfac_is_exact_where_one_input_is_all_there_is(name: str) -> None:
    """One layer, one input repeated: a aᵀ is the same for every example, and S ⊗ A is G."""
    case = Setting.of(name, (3, C))
    case.x = case.x[:1].expand(N, 3).clone()
    G = case.gauss_newton()
    for fit in (kfac, ekfac):
        assert_close(fit(case.model, case.loss.objective, case.data, **QUIET).to_dense(), G, 1e-10)


@NAMES
def test_products_and_the_refined_solve_are_those_of_the_formula(name: str) -> None:
    case = Setting.of(name)
    G, problem = case.gauss_newton(), case.problem
    v = torch.randn(2, len(problem.places), generator=generator(6), dtype=torch.float64)
    product = gauss_newton_product(case.model, case.loss.objective, case.data, problem.stacks(v), **QUIET)
    assert_close(problem.flat(product), v @ G, 1e-10)
    rough = ekfac(case.model, case.loss.objective, case.data, **QUIET)
    fine = refine(rough, case.model, case.loss.objective, case.data, tolerance=1e-12, **QUIET)
    solved = problem.flat(fine.solve(problem.stacks(v), 0.1))
    assert_close(solved, torch.linalg.solve(G + 0.1 * torch.eye(len(G)), v.T).T, 1e-9)


@NAMES
def test_scores_are_the_dense_formula(name: str) -> None:
    case = Setting.of(name)
    problem = case.problem
    gradients = torch.stack(
        [
            torch.func.grad(lambda t, n=n: case.loss.formula(n)(problem.outputs_of(t, case.x[n])))(problem.theta)
            for n in range(N)
        ]
    )
    G = case.gauss_newton()
    C = gauss_newton(case.model, case.loss.objective, case.data, **QUIET)
    came = influence(case.model, case.loss.objective, case.data, case.data, C, 0.1, **QUIET)
    damped = G + 0.1 * torch.eye(len(G))
    assert_close(came, gradients @ torch.linalg.solve(damped, gradients.T), 1e-10)


# --- labels drawn and observed: a weight counts once --------------------------------------------------------------------

DRAWN = [
    n for n, loss in CASES.items() if "Huber" not in n and type(loss.objective) in (CrossEntropy, Poisson, Weighted)
]
DRAWN.remove("weighted, a loss of one's own")


def moment(loss: Loss, f: Tensor, labels: str, draws: int = 1) -> Tensor:
    constants: dict[str, Any] = {"labels": labels, "draws": draws, "seed": 1, "pass_": 0, "start": 0}
    seeds = label_seeds(loss.objective, f, loss.targets, **constants)
    return sum(w * torch.einsum("bi,bj->bij", s, s) for s, w in seeds)  # type: ignore[return-value]


@pytest.mark.parametrize("name", DRAWN)
def test_drawn_labels_have_the_hessian_for_their_second_moment(name: str) -> None:
    loss, f = CASES[name], torch.randn(N, C, generator=generator(8), dtype=torch.float64)
    H = torch.stack([torch.func.hessian(loss.formula(n))(f[n]) for n in range(N)])
    few, many = (moment(loss, f, "sampled", draws) - H for draws in (20, 2000))
    assert float(many.norm() / H.norm()) < 0.08
    assert float(many.norm()) < 0.4 * float(few.norm())
    for n in range(N):  # each example by itself: no weight is another's
        assert float((many[n]).norm()) <= 0.2 * float(H[n].norm())


def test_a_weight_of_two_is_the_example_twice_under_every_kind_of_label() -> None:
    model = perceptron([3, 4, C], [True, True], "tanh", 4)
    x = torch.randn(N, 3, generator=generator(5), dtype=torch.float64)
    twice = torch.tensor([0, 1, 1, 2, 3, 3, 4, 5, 6])
    w = torch.tensor([1, 2, 1, 2, 1, 1, 1]).double()
    for labels in ("expected", "observed"):
        for fit in (gauss_newton, ekfac, kfac):
            weighted = fit(model, Weighted(CrossEntropy()), [(x, (LABELS, w))], labels=labels, **QUIET)
            repeated = fit(model, CrossEntropy(), [(x[twice], LABELS[twice])], labels=labels, **QUIET)
            if fit is gauss_newton:
                assert_close(weighted.to_dense() * N, repeated.to_dense() * len(twice), 1e-12)
            trace = repeated.to_dense().trace() * len(twice)
            if fit is not kfac:  # whose A is a mean over positions, weighted by nothing
                assert_close(weighted.to_dense().trace() * N, trace, 1e-12)


def test_a_classs_weight_counts_as_the_weight_of_its_examples() -> None:
    f = torch.randn(N, C, generator=generator(8), dtype=torch.float64)
    by_class = Loss(CrossEntropy(CLASS_WEIGHTS), LABELS, CASES["class weights"].formula)
    by_example = Loss(Weighted(CrossEntropy()), (LABELS, CLASS_WEIGHTS[LABELS].double()), by_class.formula)
    for labels in ("expected", "sampled", "observed"):
        assert_close(moment(by_class, f, labels, 3), moment(by_example, f, labels, 3), 1e-14)


def test_losses_are_those_of_torch() -> None:
    f = torch.randn(N, C, generator=generator(8), dtype=torch.float64)
    for name in CASES:
        expected = torch.stack([CASES[name].formula(n)(f[n]) for n in range(N)])
        assert_close(CASES[name].objective.loss(f, CASES[name].targets), expected, 1e-13)


@pytest.mark.parametrize("rate", [0.02, 0.9, 7.3, 340.0])
def test_poisson_draws_every_count_as_often_as_its_probability_says(rate: float) -> None:
    u = ((torch.arange(20000) + 0.5) / 20000)[:, None]
    found = Poisson().sample(torch.full((20000, 1), rate, dtype=torch.float64).log(), u)[:, 0]
    counts = torch.bincount(found.long())
    k = torch.arange(len(counts)).double()
    p = (k * torch.tensor(rate).log() - rate - torch.lgamma(k + 1)).exp()
    assert ((counts - 20000 * p).abs() <= 1.01).all()


# --- pixels -------------------------------------------------------------------------------------------------------------


class Segmenter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.see, self.name = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(3, C, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.name(torch.tanh(self.see(x)))


MASKS = torch.randint(0, C, (4, 2, 3), generator=generator(9))
MASKS[0, 0, 1] = MASKS[1] = 255
MASKS[1, 1, 2] = 1


def pixel_formula(weight: Tensor, smoothing: float) -> Callable[[Tensor, Tensor], Tensor]:
    """f (C · H · W,), y (H, W)."""

    def loss(f: Tensor, y: Tensor) -> Tensor:
        f, y = f.reshape(C, -1), y.flatten()
        log_p = f - f.exp().sum(0).log()
        q = (1 - smoothing) * (torch.arange(C)[:, None] == y).double() + smoothing / C
        return -(q * weight[:, None] * log_p * (y != 255)).sum()

    return loss


PIXELS = {
    "plain": (PixelCrossEntropy(ignore_index=255), pixel_formula(torch.ones(C), 0.0)),
    "weighted classes": (
        PixelCrossEntropy(CLASS_WEIGHTS, label_smoothing=0.1, ignore_index=255),
        pixel_formula(CLASS_WEIGHTS.double(), 0.1),
    ),
}


@pytest.mark.parametrize("kind", list(PIXELS))
def test_dense_prediction_is_exact_with_ignored_pixels(kind: str) -> None:
    objective, formula = PIXELS[kind]
    torch.manual_seed(3)
    model, x = Segmenter(), torch.randn(4, 2, 2, 3)
    problem = Problem(model, ["see", "name"], formula, x, MASKS)
    data, G = batches(x, MASKS, 3), problem.gauss_newton()
    came = gauss_newton(model, objective, data, **QUIET)
    assert_close(came.to_dense(), G, 1e-10)
    assert_close(hessian(model, objective, data, **QUIET).to_dense(), problem.hessian(), 1e-10)
    fit = ekfac(model, objective, data, labels="expected", **QUIET)
    for layer, span in problem.spans.items():
        U = torch.kron(fit.Q_S[layer], fit.Q_A[layer])
        expected = (U.T @ G[span, span] @ U).diagonal().reshape(fit.eigenvalues[layer].shape)
        assert_close(fit.eigenvalues[layer], expected, 1e-10)
    fine = refine(fit, model, objective, data, tolerance=1e-12, **QUIET)
    assert_close(fine.to_dense(), G, 1e-10)
    scores = influence(model, objective, data, data, came, 0.1, **QUIET)
    assert_close(scores, problem.influence(G, 0.1, x, MASKS), 1e-10)
    drawn = ekfac(model, objective, data, draws=400, **QUIET)  # sampled, its default
    assert drawn.facts.labels == "sampled"
    for layer, values in fit.eigenvalues.items():
        assert float(drawn.eigenvalues[layer].sum()) == pytest.approx(float(values.sum()), rel=0.1)


def test_a_pixels_margin_and_logit_are_sums_over_the_pixels_that_count() -> None:
    f = torch.randn(4, C, 2, 3, generator=generator(1), dtype=torch.float64)
    objective = PixelCrossEntropy(ignore_index=255)
    logit, margin = torch.zeros(4), torch.zeros(4)
    for n in range(4):
        for h in range(2):
            for w in range(3):
                if (y := int(MASKS[n, h, w])) != 255:
                    p = f[n, :, h, w].softmax(0)[y]
                    logit[n] += f[n, y, h, w]
                    margin[n] += (p / (1 - p)).log()
    assert_close(objective.measure("logit", f, MASKS), logit, 1e-12)
    assert_close(objective.measure("margin", f, MASKS), margin, 1e-12)


@pytest.mark.parametrize(
    ("f", "y", "message"),
    [
        (torch.randn(4, C), MASKS, r"outputs of shape \(4, 3\); expected a map of logits per image.*CrossEntropy\(\)"),
        (torch.randn(4, C, 2, 3), MASKS[:, None], r"masks of shape \(4, 1, 2, 3\).*mask.squeeze\(1\)"),
        (torch.randn(4, C, 2, 3), torch.ones(4, C, 2, 3).long(), r"one-hot masks: mask.argmax\(1\)"),
        (torch.randn(4, 2, 3, C), MASKS, r"classes on axis 1, \(B, C, H, W\): logits.movedim\(-1, 1\)"),
        (torch.randn(4, C, 1, 2), MASKS, r"as large as the masks.*F.interpolate\(logits, \(2, 3\)\).*'nearest'"),
        (torch.randn(4, C, 2, 3), torch.ones(4).long(), r"one label per image pool the logits"),
        (torch.randn(4, C, 2, 3), MASKS.to(torch.uint8), r"uint8 masks; expected the class index.*mask.long\(\)"),
        (torch.randn(4, C, 2, 3), MASKS, r"labels from 0 to 255; expected 0 to 2.*ignore_index=\.\.\.\), now -100"),
    ],
)
def test_masks_that_do_not_fit_are_named_as_one_who_segments_would(f: Tensor, y: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PixelCrossEntropy().check(f, y)


def test_an_image_without_a_pixel_that_counts_and_too_many_passes_are_refused() -> None:
    f, y = torch.randn(2, C, 2, 3), torch.full((2, 2, 3), 255)
    y[0] = 1
    with pytest.raises(ValueError, match=r"image 1 of a batch has no pixel that counts \(all have the label 255"):
        PixelCrossEntropy(ignore_index=255).check(f, y)
    with pytest.raises(ValueError, match=r"6 pixels × 3 classes = 18 backward passes.*at most 17.*PixelCrossEntropy\("):
        next(PixelCrossEntropy(ignore_index=255, max_seeds=17).seeds(f, y))
    with pytest.raises(
        ValueError, match=r"outputs of shape \(2, 3, 2, 3\); expected logits \(B, C\).*PixelCrossEntropy"
    ):
        CrossEntropy().check(f, y)


# --- what is refused ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: CrossEntropy(torch.tensor([1.0, -1.0])), r"weight came with shape \(2,\).*expected one finite weight"),
        (lambda: CrossEntropy(label_smoothing=1.0), r"label_smoothing=1.0; expected a share"),
        (lambda: Huber(0.0), r"delta=0.0; expected a number above 0"),
        (
            lambda: CrossEntropy(torch.ones(2)).check(torch.randn(5, 3), torch.ones(5).long()),
            r"weight has 2 entries, the model 3 classes",
        ),
        (lambda: Poisson().check(torch.randn(5, 1), -torch.ones(5, 1)), r"from -1; expected counts, none below 0"),
        (
            lambda: Weighted(CrossEntropy()).check(torch.randn(7, 3), (LABELS, -WEIGHTS)),
            r"weights of shape \(7,\) from -3 to -?0.*one finite weight ≥ 0 per example",
        ),
        (
            lambda: Weighted(CrossEntropy()).check(torch.randn(7, 3), (LABELS, WEIGHTS[:6])),
            r"weights of shape \(6,\).*per example, \(7,\)",
        ),
        (
            lambda: Weighted(CrossEntropy()).check(torch.randn(7, 3), (LABELS, LABELS)),
            r"pair of targets whose second is torch.int64 \(7,\); expected \(y, w\)",
        ),
        (
            lambda: CrossEntropy().check(torch.randn(7, 3), (LABELS, WEIGHTS)),
            r"targets of shape tuple.*Weighted\(CrossEntropy\(\)\)",
        ),
        (lambda: CrossEntropy().measure("margin", torch.randn(7, 3), SOFT), r"'margin' got soft targets \(7, 3\)"),
        (lambda: Huber().uniforms(torch.randn(7, 3)), r"Huber has no sampler.*'expected' \(exact, the default\)"),
    ],
)
def test_what_no_loss_can_mean_is_refused(call: Callable[[], Any], message: str) -> None:
    with pytest.raises((ValueError, NotImplementedError), match=message):
        call()


def test_only_a_plain_objective_can_be_weighted() -> None:
    for inner in (Weighted(CrossEntropy()), CrossEntropy):
        with pytest.raises(TypeError, match=r"expected a plain objective"):
            Weighted(inner)  # type: ignore[arg-type]
