"""Scores against the dense formula, closed forms and refits: right numbers, right signs, right units."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from networks import ZOO, Case, Conv1D, batches, cases, drawn, make, sequences, snapshot, zoo
from oracle import LOSSES, assert_close
from test_curvature import FITS, drawn_damping, fitted
from torch import Tensor, nn

from inflib import (
    CrossEntropy,
    SquaredError,
    TrainIndex,
    capture,
    contribution,
    damping_of,
    ekfac,
    gauss_newton,
    hessian,
    identity,
    influence,
    kfac,
    predicted_change,
    register,
    relative,
    self_influence,
)
from inflib.contractions import own_layer
from inflib.hooks import Pair
from inflib.layers import _KINDS, positions_last
from inflib.queries import HELD

pytestmark = [
    pytest.mark.usefixtures("float64", "conv1d"),
    pytest.mark.filterwarnings("ignore::inflib.IndefiniteWarning", "ignore::inflib.CoverageNote"),
]


@pytest.fixture(scope="module")
def conv1d() -> Any:
    register(Conv1D, positions_last, positions_last, transposed=True)
    yield
    del _KINDS[Conv1D]


def scored(case: Case, curvature: Any, damping: Any = None, **options: Any) -> Tensor:
    train, queries = options.pop("train", case.train), options.pop("queries", case.queries)
    return influence(case.model, case.objective, train, queries, curvature, damping, progress=False, **options)


# --- the formula ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", FITS)
@given(cases(), st.integers(0, 1000))
@drawn(8)
def test_scores_are_the_dense_formula(which: str, case: Case, seed: int) -> None:
    """C by the curvature's own fit, the rest by the oracle; C itself is checked in its own tests."""
    C, numbers = fitted(case, which), drawn_damping(case, seed)
    dense = C.to_dense()
    if float(torch.linalg.cond(dense + case.problem.damping(numbers))) > 1e5:
        return
    assert_close(scored(case, C, numbers), case.problem.influence(dense, numbers, *case.queries[0]), 1e-10)


@pytest.mark.parametrize(
    ("which", "exact"),
    [
        ("identity", lambda p: torch.eye(len(p.places))),
        ("diagonal", lambda p: torch.diag(p.gauss_newton().diagonal())),
        ("Gauss-Newton", lambda p: p.gauss_newton()),
        ("Gauss-Newton blocks", lambda p: p.block_diagonal(p.gauss_newton())),
        ("Hessian", lambda p: p.hessian()),
    ],
)
@pytest.mark.parametrize("name", ["CrossEntropy", "SquaredError", "Bernoulli"])
def test_scores_of_exact_curvatures_share_nothing_with_their_oracle(which: str, exact: Callable, name: str) -> None:
    case = make(name, widths=(3, 4, 4, 3), n=6)
    numbers = {"fc0": 0.3, "fc1": 2.0, "fc2": 0.05}
    expected = case.problem.influence(exact(case.problem), numbers, *case.queries[0])
    assert_close(scored(case, fitted(case, which), numbers), expected, 1e-10)


@pytest.mark.parametrize("animal", ZOO)
@pytest.mark.parametrize("which", ["Gauss-Newton", "EK-FAC"])
def test_scores_are_right_however_the_layers_are_used(animal: str, which: str) -> None:
    case = zoo(animal)
    C = fitted(case, which, layers=case.layers)
    dense = case.problem.gauss_newton() if which == "Gauss-Newton" else C.to_dense()
    numbers = drawn_damping(case, 5)
    expected = case.problem.influence(dense, numbers, *case.queries[0])
    assert_close(scored(case, C, numbers), expected, 1e-10)
    assert_close(scored(case, C, numbers, keep=("layer",)).sum(-1), expected, 1e-10)
    own = self_influence(case.model, case.objective, case.train, C, numbers, progress=False)
    assert_close(own, case.problem.influence(dense, numbers, case.x, case.y).diagonal(), 1e-10)


@given(sequences(), st.sampled_from(["EK-FAC", "diagonal", "Gauss-Newton"]), st.integers(0, 1000))
@drawn(20)
def test_drawn_networks_over_positions_are_right_from_gradients_to_scores(case: Case, which: str, seed: int) -> None:
    pairs = capture(case.model, case.objective, case.x, case.y)
    assert_close(case.problem.flat({n: p.matrices() for n, p in pairs.items()}), case.problem.gradients(), 1e-12)
    C, numbers = fitted(case, which), drawn_damping(case, seed)
    G = case.problem.gauss_newton()
    for name, span in case.problem.spans.items():
        assert C.mean_eigenvalues()[name] == pytest.approx(float(G[span, span].diagonal().mean()), rel=1e-11, abs=1e-25)
    dense = {"EK-FAC": C.to_dense(), "diagonal": torch.diag(G.diagonal()), "Gauss-Newton": G}[which]
    assert_close(scored(case, C, numbers), case.problem.influence(dense, numbers, *case.queries[0]), 1e-10)


@pytest.mark.parametrize("which", [w for w in FITS if w != "Hessian"])
def test_default_damping_is_the_tenth_of_the_mean(which: str) -> None:
    case = make(n=8)
    C = fitted(case, which)
    numbers = 0.0 if which == "identity" else case.problem.relative(C.to_dense(), 0.1)
    expected = case.problem.influence(C.to_dense(), numbers, *case.queries[0])
    assert_close(scored(case, C), expected, 1e-10)
    if which != "identity":
        assert_close(scored(case, C, relative(0.1)), expected, 1e-10)
        assert_close(scored(case, C, damping_of(C)), expected, 1e-10)


def test_identity_gives_plain_gradient_dot_products() -> None:
    case = make(n=8)
    query = case.problem.gradients(case.query_y, None, case.query_x)
    assert_close(scored(case, identity(case.model, case.objective)), query @ case.problem.gradients().T, 1e-12)


# --- measurements -----------------------------------------------------------------------------------------------------------

MEASUREMENTS: dict[str, tuple[Any, Callable]] = {
    "log_likelihood": ("log_likelihood", lambda f, y: -LOSSES["CrossEntropy"](f, y)),
    "logit": ("logit", lambda f, y: (f * (torch.arange(3) == y)).sum()),
    "margin": (
        "margin",  # log p_y − log(1 − p_y)
        lambda f, y: (lambda p: p.log() - (1 - p).log())((f.softmax(0) * (torch.arange(3) == y)).sum()),
    ),
    "a function of outputs": (lambda f, y: f[:, 0] - f[:, 2], lambda f, y: f[0] - f[2]),
    "a function of both": (
        lambda f, y: f.softmax(1).gather(1, y[:, None])[:, 0],
        lambda f, y: (f.softmax(0) * (torch.arange(3) == y)).sum(),
    ),
}


@pytest.mark.parametrize("measurement", MEASUREMENTS)
def test_scores_of_every_measurement_are_the_dense_formula(measurement: str) -> None:
    case = make(n=7)
    given_, formula = MEASUREMENTS[measurement]
    C = fitted(case, "Gauss-Newton")
    expected = case.problem.influence(case.problem.gauss_newton(), 0.1, *case.queries[0], formula)
    assert_close(scored(case, C, 0.1, measurement=given_), expected, 1e-10)


def test_unknown_measurements_are_refused() -> None:
    case = make()
    C = fitted(case, "EK-FAC")
    with pytest.raises(
        ValueError, match=r"measurement='accuracy' is not defined for CrossEntropy; expected one of log_l"
    ):
        scored(case, C, measurement="accuracy")
    with pytest.raises(ValueError, match=r"measurement has shape \(3, 3\); expected one number per example, \(3,\)"):
        scored(case, C, measurement=lambda f, y: f)


# --- splits -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", FITS)
@given(cases(depth=(2, 3)))
@drawn(6)
def test_layers_sum_to_the_total_in_the_curvatures_order(which: str, case: Case) -> None:
    C = fitted(case, which)
    split, total = scored(case, C, 0.5, keep=("layer",)), scored(case, C, 0.5)
    assert split.shape == (*total.shape, len(C.layers))
    assert_close(split.sum(-1), total, 1e-11)
    assert_close(scored(case, C, 0.5, keep="layer"), split, 1e-15)
    own = self_influence(case.model, case.objective, case.train, C, 0.5, keep=("layer",), progress=False)
    assert own.shape == (len(case.y), len(C.layers))
    assert_close(own.sum(-1), self_influence(case.model, case.objective, case.train, C, 0.5, progress=False), 1e-11)


@pytest.mark.parametrize("fit", [ekfac, kfac])
@given(cases(depth=(2, 3), activations=("tanh", "gelu", "linear")))
@drawn(8)
def test_a_layer_scored_alone_gives_its_share_at_default_damping(fit: Any, case: Case) -> None:
    C = fit(case.model, case.objective, case.train, progress=False)
    split = scored(case, C, keep=("layer",))
    for k, name in enumerate(case.layers):
        assert_close(scored(case, C.restrict([name])), split[..., k], 1e-11)
        refitted = fit(case.model, case.objective, case.train, layers=[name], progress=False)
        assert_close(scored(case, refitted), split[..., k], 1e-9)


def test_unknown_axes_are_refused() -> None:
    case = make()
    with pytest.raises(ValueError, match=r"keep='batch'; expected"):
        scored(case, fitted(case, "EK-FAC"), keep=("batch",))


# --- signs and units ----------------------------------------------------------------------------------------------------------


def ridge(d: int = 3, outputs: int = 2, n: int = 12, seed: int = 0) -> tuple[nn.Linear, Tensor, Tensor, Tensor]:
    """A linear layer at the exact minimum of (1/N) Σ ½‖Wx − y‖² + ½ λ‖W‖², its data, and W's (o, i+1) matrix."""
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(n, d, generator=generator), torch.randn(n, outputs, generator=generator)
    model = nn.Linear(d, outputs)
    W = _ridge_solution(x, y, torch.full((n,), 1 / n), 0.1)
    _set(model, W)
    return model, x, y, W


def _ridge_solution(x: Tensor, y: Tensor, weights: Tensor, l2: float) -> Tensor:
    """argmin Σ w_n ½‖Wx_n − y_n‖² + ½ l2 ‖W‖², W (o, i+1)."""
    a = torch.cat([x, torch.ones(len(x), 1)], dim=1)
    A = (a.T * weights) @ a + l2 * torch.eye(a.shape[1])
    return torch.linalg.solve(A, (a.T * weights) @ y).T


def _set(model: nn.Linear, W: Tensor) -> None:
    with torch.no_grad():
        model.weight.copy_(W[:, :-1])
        model.bias.copy_(W[:, -1])


@pytest.mark.parametrize("fit", [ekfac, kfac, gauss_newton, hessian])
def test_ridge_regression_is_the_closed_form(fit: Any) -> None:
    """Damping λ is the penalty; Δ W for weight ε on example n is ε (A + λ)⁻¹ residual ⊗ a exactly."""
    model, x, y, W = ridge()
    train, queries = [(x, y)], [(x[:4] + 0.3, y[:4])]
    C = fit(model, SquaredError(), train, progress=False)
    scores = influence(model, SquaredError(), train, queries, C, 0.1, progress=False)
    a = torch.cat([x, torch.ones(12, 1)], dim=1)
    inverse = torch.linalg.inv(a.T @ a / 12 + 0.1 * torch.eye(4))
    aq = torch.cat([queries[0][0], torch.ones(4, 1)], dim=1)
    r, rq = y - a @ W.T, queries[0][1] - aq @ W.T  # residuals
    expected = (aq @ inverse @ a.T) * (rq @ r.T)
    assert_close(scores, expected, 1e-10)


@pytest.mark.parametrize("epsilon", [1e-5, -1e-5])
def test_scores_are_the_derivative_of_the_measurement_when_an_example_is_upweighted(epsilon: float) -> None:
    model, x, y, W = ridge()
    query_x, query_y = x[:4] + 0.3, y[:4]
    C = gauss_newton(model, SquaredError(), [(x, y)], progress=False)
    scores = influence(model, SquaredError(), [(x, y)], [(query_x, query_y)], C, 0.1, progress=False)

    def log_likelihood(W: Tensor) -> Tensor:
        f = torch.cat([query_x, torch.ones(4, 1)], dim=1) @ W.T
        return -0.5 * ((f - query_y) ** 2).sum(1)

    for n in range(12):
        weights = torch.full((12,), 1 / 12)
        weights[n] += epsilon
        change = log_likelihood(_ridge_solution(x, y, weights, 0.1)) - log_likelihood(W)
        assert_close(change / epsilon, scores[:, n], 1e-3)


def softmax_regression(x: Tensor, y: Tensor, weights: Tensor, l2: float) -> Tensor:
    """argmin Σ w_n ℓ_n + ½ l2 ‖W‖² for each row of weights (M, N) by Newton's method, (M, C, i+1)."""
    a = torch.cat([x, torch.ones(len(x), 1)], dim=1)
    shape = (3, a.shape[1])

    def objective(flat: Tensor, w: Tensor) -> Tensor:
        losses = torch.func.vmap(lambda row, y: LOSSES["CrossEntropy"](flat.reshape(shape) @ row, y))(a, y)
        return (w * losses).sum() + l2 / 2 * (flat**2).sum()

    flat = torch.zeros(len(weights), 3 * a.shape[1])
    for _ in range(15):
        slope = torch.func.vmap(torch.func.grad(objective))(flat, weights)
        step = torch.linalg.solve(torch.func.vmap(torch.func.hessian(objective))(flat, weights), slope)
        flat = flat - step
    assert float(step.norm()) < 1e-12
    return flat.reshape(len(weights), *shape)


@pytest.fixture(scope="module")
def logistic(float64: None) -> dict[str, Any]:
    """Softmax regression at its minimum, with every example's leave-one-out refit."""
    generator = torch.Generator().manual_seed(4)
    n, l2 = 60, 0.02
    x = torch.randn(n, 2, generator=generator)
    y = ((x[:, 0] + 0.7 * torch.randn(n, generator=generator)) > 0).long() + (x[:, 1] > 0.8).long()
    weights = torch.full((n + 1, n), 1 / n)
    weights[torch.arange(n), torch.arange(n)] = 0
    *refits, W = softmax_regression(x, y, weights, l2)
    model = nn.Linear(2, 3)
    _set(model, W)
    query_x = torch.randn(5, 2, generator=generator)
    query_y = torch.tensor([0, 1, 2, 0, 1])
    return dict(model=model, x=x, y=y, W=W, l2=l2, refits=refits, query_x=query_x, query_y=query_y)


def _log_likelihood(W: Tensor, x: Tensor, y: Tensor) -> Tensor:
    a = torch.cat([x, torch.ones(len(x), 1)], dim=1)
    return -torch.func.vmap(lambda row, y: LOSSES["CrossEntropy"](W @ row, y))(a, y)


def test_scores_predict_leave_one_out_refits_of_logistic_regression(logistic: dict[str, Any]) -> None:
    model, x, y, l2 = (logistic[k] for k in ("model", "x", "y", "l2"))
    queries = [(logistic["query_x"], logistic["query_y"])]
    C = gauss_newton(model, CrossEntropy(), [(x, y)], progress=False)
    scores = influence(model, CrossEntropy(), [(x, y)], queries, C, l2, progress=False)
    predicted = predicted_change(scores, n_train=len(y))
    before = _log_likelihood(logistic["W"], *queries[0])
    actual = torch.stack([_log_likelihood(W, *queries[0]) - before for W in logistic["refits"]], dim=1)
    correlation = float(torch.corrcoef(torch.stack([predicted.flatten(), actual.flatten()]))[0, 1])
    size = float((predicted * actual).sum() / (actual * actual).sum())  # regression of predicted on actual
    assert correlation > 0.99
    assert 0.85 < size < 1.1
    large = actual.abs() > 0.2 * actual.abs().max()
    assert bool((predicted.sign() == actual.sign())[large].all())


def test_a_removed_proponent_lowers_the_measurement_and_a_removed_opponent_raises_it(logistic: dict[str, Any]) -> None:
    model, x, y = (logistic[k] for k in ("model", "x", "y"))
    queries = [(logistic["query_x"][:1], logistic["query_y"][:1])]
    C = ekfac(model, CrossEntropy(), [(x, y)], progress=False)
    scores = influence(model, CrossEntropy(), [(x, y)], queries, C, logistic["l2"], progress=False)[0]
    before = float(_log_likelihood(logistic["W"], *queries[0]))
    after = [float(_log_likelihood(W, *queries[0])) for W in logistic["refits"]]
    assert float(scores.max()) > 0 > float(scores.min())
    assert after[int(scores.argmax())] < before < after[int(scores.argmin())]


def test_predicted_change_is_minus_score_over_n_and_plus_for_a_repeat() -> None:
    scores = torch.tensor([[2.0, -4.0]])
    assert torch.equal(predicted_change(scores, 10), torch.tensor([[-0.2, 0.4]]))
    assert torch.equal(predicted_change(scores, 10, remove=False), torch.tensor([[0.2, -0.4]]))
    with pytest.raises(ValueError, match=r"n_train=0; expected the number of training examples, at least 1"):
        predicted_change(scores, 0)


def test_an_example_is_a_proponent_of_itself() -> None:
    for which in ("EK-FAC", "K-FAC", "Gauss-Newton", "identity"):
        case = make(n=8)
        own = self_influence(case.model, case.objective, case.train, fitted(case, which), progress=False)
        assert float(own.min()) > 0


# --- self-influence -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", FITS)
@given(cases())
@drawn(6)
def test_self_influence_is_the_diagonal_of_train_against_train(which: str, case: Case) -> None:
    C = fitted(case, which)
    square = scored(case, C, 0.7, queries=case.train)
    own = self_influence(case.model, case.objective, case.train, C, 0.7, progress=False)
    assert_close(own, square.diagonal(), 1e-10)


@pytest.mark.parametrize("T", [1, 2, 3])
@pytest.mark.parametrize("inputs", [1, 2, 4])
def test_the_parts_of_self_influence_add_up_to_the_rotated_matrix_squared(T: int, inputs: int) -> None:
    a, g, Q_S, Q_A = (torch.randn(*shape) for shape in ((5, T, inputs), (5, T, 3), (3, 3), (inputs, inputs)))
    inverse = torch.rand(3, inputs)
    G = torch.einsum("bto,bti->boi", g, a)
    expected = ((Q_S.T @ G @ Q_A).square() * inverse).sum((1, 2))
    assert_close(own_layer(Pair(a, g), inverse, Q_S, Q_A), expected, 1e-13)


@pytest.mark.parametrize("which", FITS)
def test_train_against_train_is_symmetric(which: str) -> None:
    case = make(n=8, splits=[3])
    square = scored(case, fitted(case, which), 0.7, queries=batches(case.x, case.y, 5))
    assert_close(square, square.T, 1e-10)


# --- what may not matter --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["EK-FAC", "diagonal", "Gauss-Newton", "Gauss-Newton blocks"])
@given(cases(examples=(2, 7)), st.integers(1, 4), st.integers(1, 3), st.sampled_from([1, 200, 2000, 10**9]))
@drawn(6)
def test_batches_and_chunks_do_not_matter(which: str, case: Case, size: int, query_size: int, max_bytes: int) -> None:
    C = fitted(case, which)
    whole = scored(case, C, 0.2, train=[(case.x, case.y)])
    other = scored(
        case,
        C,
        0.2,
        train=batches(case.x, case.y, size),
        queries=batches(case.query_x, case.query_y, query_size),
        max_bytes=max_bytes,
    )
    assert_close(other, whole, 1e-12)
    one, two = (
        self_influence(case.model, case.objective, t, C, 0.2, max_bytes=b, progress=False)
        for t, b in (([(case.x, case.y)], 10**9), (batches(case.x, case.y, size), max_bytes))
    )
    assert_close(two, one, 1e-12)


@pytest.mark.parametrize("animal", ["tokens", "called twice", "two inputs"])
@pytest.mark.parametrize("max_bytes", [1, 500, 10**9])
def test_chunks_do_not_matter_for_many_positions_either(animal: str, max_bytes: int) -> None:
    case = zoo(animal)
    C = fitted(case, "EK-FAC")
    whole = scored(case, C)
    assert_close(scored(case, C, max_bytes=max_bytes), whole, 1e-12)
    split = scored(case, C, max_bytes=max_bytes, keep=("layer",))
    assert_close(split.sum(-1), whole, 1e-12)


def test_training_batches_may_have_different_numbers_of_positions() -> None:
    case = zoo("tokens")
    ragged = [(case.x[:2, :2], case.y[:2]), (case.x[2:4], case.y[2:4]), (case.x[4:, :2], case.y[4:])]
    C = ekfac(case.model, case.objective, ragged, progress=False)
    queries = [(case.query_x[:1, :3], case.query_y[:1]), (case.query_x[1:], case.query_y[1:])]
    together = scored(case, C, train=ragged, queries=queries)
    one_by_one = torch.cat(
        [torch.cat([scored(case, C, train=[b], queries=[q]) for b in ragged], dim=1) for q in queries], dim=0
    )
    assert_close(together, one_by_one, 1e-12)


def test_the_order_of_the_data_moves_its_columns_and_nothing_else() -> None:
    case = make(n=9)
    order = torch.tensor([4, 2, 8, 0, 1, 3, 7, 6, 5])
    C = fitted(case, "EK-FAC")
    moved = ekfac(case.model, case.objective, [(case.x[order], case.y[order])], progress=False)
    one = scored(case, C)
    two = scored(case, moved, train=[(case.x[order], case.y[order])])
    assert_close(two, one[:, order], 1e-9)


class Passes:
    """Batches that count how often they are walked through, and from some walk on come in another order."""

    def __init__(self, data: list[tuple[Any, Tensor]], turn: int = 10**9):
        self.data, self.turn, self.ended = data, turn, 0

    def __iter__(self) -> Iterator[tuple[Any, Tensor]]:
        yield self.data[0]
        yield from self.data[1:] if self.ended < self.turn else self.data[:0:-1]
        self.ended += 1


@pytest.mark.parametrize("animal", ["perceptron", "tokens"])
def test_many_queries_come_in_groups_each_with_a_pass_of_its_own(animal: str) -> None:
    case = make(n=9, splits=[2, 5]) if animal == "perceptron" else zoo(animal)
    C, n = fitted(case, "EK-FAC"), len(case.query_y)
    one = 8 * sum(o * i for o, i in C.shapes.values())  # bytes of a query's gradient
    for held, expected in ((n, 1), (2, -(-n // 2)), (1, n)):
        train = Passes(case.train)
        assert_close(scored(case, C, train=train, max_bytes=held * one // HELD), scored(case, C), 1e-12)
        assert train.ended == expected
    assert expected == n >= 2
    train = Passes(case.train)  # one group, whatever it takes: a solve is dear
    scored(case, fitted(case, "Gauss-Newton"), train=train, max_bytes=1)
    assert train.ended == 1


def test_an_order_that_changes_from_group_to_group_is_refused() -> None:
    case = make(n=9, splits=[2, 4, 6])
    C = fitted(case, "EK-FAC")
    turning = Passes(case.train, turn=2)
    with pytest.raises(ValueError, match=r"train does not keep its order \(batch 1 differed between two passes\)"):
        scored(case, C, train=turning, max_bytes=1)
    assert turning.ended == 2


def test_all_is_deterministic() -> None:
    case = make(n=9)
    one, two = (scored(case, fitted(case, "EK-FAC", labels="sampled", seed=3)) for _ in range(2))
    assert torch.equal(one, two)


@pytest.mark.parametrize("loader", [False, True])
def test_the_global_random_generators_are_never_touched(loader: bool) -> None:
    case = make(n=9)
    dataset = torch.utils.data.TensorDataset(case.x, case.y)
    train: Any = torch.utils.data.DataLoader(dataset, batch_size=4) if loader else case.train
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    for fit in FITS.values():
        C = fit(case.model, case.objective, train, progress=False)
        scored(case, C, 0.1, train=train, queries=train)
        self_influence(case.model, case.objective, train, C, 0.1, progress=False)
    C = ekfac(case.model, case.objective, train, labels="sampled", draws=3, progress=False)
    TrainIndex.build(case.model, case.objective, train, C).influence(case.model, case.objective, train)
    if loader:
        shuffled = torch.utils.data.DataLoader(dataset, batch_size=4, shuffle=True)
        ekfac(case.model, case.objective, shuffled, progress=False)  # fine with expected labels
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])  # noqa: NPY002


def test_scores_are_the_same_inside_no_grad() -> None:
    case = make()
    C = fitted(case, "EK-FAC")
    with torch.no_grad():
        inside = scored(case, C)
    assert torch.equal(inside, scored(case, C))
    assert not inside.requires_grad


@pytest.mark.parametrize("which", FITS)
@pytest.mark.parametrize("animal", ["tokens, relu in place", "tied modules", "residual", "all frozen"])
def test_scores_leave_the_model_byte_for_byte_as_it_was(which: str, animal: str) -> None:
    case = zoo(animal)
    for p in case.model.parameters():
        p.grad = torch.ones_like(p) if p.requires_grad else None
    before = snapshot(case.model)
    C = fitted(case, which)
    scored(case, C, 0.5)
    self_influence(case.model, case.objective, case.train, C, 0.5, progress=False)
    assert snapshot(case.model) == before


# --- precision ----------------------------------------------------------------------------------------------------------------


def test_float32_models_score_close_to_their_float64_twins() -> None:
    case = make(n=10)
    exact = scored(case, fitted(case, "EK-FAC"))
    model = case.model.float()
    train, queries = ([(x.float(), y) for x, y in data] for data in (case.train, case.queries))
    C = ekfac(model, case.objective, train, progress=False)
    found = influence(model, case.objective, train, queries, C, progress=False)
    assert found.dtype == torch.float32
    assert_close(found, exact, 1e-4)


# --- what is refused ------------------------------------------------------------------------------------------------------------


def test_a_curvature_of_other_layers_or_shapes_is_refused() -> None:
    case, other, deeper = make(), make(widths=(3, 5, 3)), make(widths=(3, 4, 4, 3))
    C = fitted(other, "EK-FAC")
    with pytest.raises(
        ValueError, match=r"layer 'fc0': the curvature was made for \(5, 4\), the model has \(4, 4\); refit"
    ):
        scored(case, C)
    with pytest.raises(ValueError, match=r"'fc2' matches no layer"):
        scored(case, fitted(deeper, "EK-FAC"))


def test_no_warning_is_given_by_a_plain_run() -> None:
    case = make()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scored(case, fitted(case, "EK-FAC"))


def test_a_contribution_is_what_removal_is_predicted_to_take_away() -> None:
    scores = torch.tensor([[2.0, -4.0, 0.0]])
    assert torch.equal(contribution(scores, 4), torch.tensor([[0.5, -1.0, 0.0]]))  # proponents are positive
    assert torch.equal(contribution(scores, 4), -predicted_change(scores, 4))
    with pytest.raises(ValueError, match="n_train=0"):
        contribution(scores, 0)
