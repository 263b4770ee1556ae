"""One plain test for each mistake that influence code is known to make; test_planted_bugs.py makes them on purpose.

Each of these mistakes yields numbers of the right shape that look plausible. So nothing is compared with the
library's own basis, inverse, loss or sign: EK-FAC is rebuilt from the oracle's matrices, and what a score promises is
seen by fitting again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from networks import ACTIVATIONS, Case, make
from oracle import LOSSES, Problem, assert_close, block_diag, difference, kron, perceptron_moments
from torch import Tensor, nn

from inflib import (
    Bernoulli,
    CrossEntropy,
    TrainIndex,
    capture,
    ekfac,
    gauss_newton,
    identity,
    influence,
    predicted_change,
    self_influence,
)
from inflib.kfac import second_moments
from inflib.randomness import LabelStreams

pytestmark = pytest.mark.usefixtures("float64")

APART = {"fc0": 0.004, "fc1": 0.6, "fc2": 0.05}  # damping that no layer could take for another's


# --- EK-FAC and its scores, rebuilt ---------------------------------------------------------------------------------------


@pytest.fixture
def case() -> Case:
    """Three layers of unequal shapes, more examples than inputs, so that no eigenvalue is repeated but S's one zero."""
    return make(widths=(3, 4, 5, 3), n=16)


def ekfac_by_hand(case: Case) -> Tensor:
    """U diag(Uᵀ F U) Uᵀ in each layer, U = Q_S ⊗ Q_A from S and A written out, F the expected Fisher, (D, D)."""
    linears = [m for m in case.model if isinstance(m, nn.Linear)]
    weights, biases = [m.weight.detach() for m in linears], [m.bias.detach() for m in linears]
    moments = perceptron_moments(weights, biases, torch.tanh, LOSSES[case.name], case.x, case.y)
    F, blocks = case.problem.expected_fisher(case.name), []
    for span, (A, S) in zip(case.problem.spans.values(), moments, strict=True):
        Q_A, Q_S = torch.linalg.eigh(A).eigenvectors, torch.linalg.eigh(S).eigenvectors
        assert min(float((Q - Q.T).norm()) for Q in (Q_A, Q_S)) > 0.1  # transposing must make a difference
        U = kron(Q_S, Q_A)
        blocks.append(U @ torch.diag((U.T @ F[span, span] @ U).diagonal()) @ U.T)
    return block_diag(*blocks)


def scores_by_hand(case: Case, numbers: Mapping[str, float], x: Tensor, y: Tensor) -> Tensor:
    """∇log p_qᵀ (C + λ_layer)⁻¹ (−∇ℓ_n), layer by layer, (Q, N, L)."""
    C, problem = ekfac_by_hand(case) + case.problem.damping(numbers), case.problem
    query, train = -problem.gradients(y, None, x), problem.gradients()
    shares = [query[:, s] @ torch.linalg.solve(C[s, s], -train[:, s].T) for s in problem.spans.values()]
    return torch.stack(shares, dim=-1)


def numbers_of(case: Case, damping: Mapping[str, float] | None) -> Mapping[str, float]:
    return damping or case.problem.relative(ekfac_by_hand(case), 0.1)


DAMPING = pytest.mark.parametrize("damping", [APART, None], ids=["given", "default"])


@DAMPING
def test_ekfac_scores_are_the_dense_formula_layer_by_layer(case: Case, damping: Any) -> None:
    C = ekfac(case.model, case.objective, case.train, progress=False)
    options: dict[str, Any] = {"keep": ("layer",), "progress": False}
    came = influence(case.model, case.objective, case.train, case.queries, C, damping, **options)
    assert_close(came, scores_by_hand(case, numbers_of(case, damping), case.query_x, case.query_y), 1e-10)


@DAMPING
def test_self_influence_is_the_dense_formula(case: Case, damping: Any) -> None:
    C = ekfac(case.model, case.objective, case.train, progress=False)
    came = self_influence(case.model, case.objective, case.train, C, damping, keep=("layer",), progress=False)
    expected = scores_by_hand(case, numbers_of(case, damping), case.x, case.y)
    assert_close(came, torch.stack([expected[n, n] for n in range(len(case.y))]), 1e-10)


@DAMPING
def test_an_index_gives_the_dense_formula_layer_by_layer(case: Case, damping: Any) -> None:
    C = ekfac(case.model, case.objective, case.train, progress=False)
    index = TrainIndex.build(case.model, case.objective, case.train, C, progress=False)
    came = index.influence(case.model, case.objective, case.queries, damping=damping, keep=("layer",))
    assert_close(came, scores_by_hand(case, numbers_of(case, damping), case.query_x, case.query_y), 1e-10)


def test_an_exact_curvature_is_damped_layer_by_layer(case: Case) -> None:
    for blocks in (False, True):
        C = gauss_newton(case.model, case.objective, case.train, blocks=blocks, progress=False)
        G = case.problem.gauss_newton()
        expected = case.problem.influence(case.problem.block_diagonal(G) if blocks else G, APART, *case.queries[0])
        came = influence(case.model, case.objective, case.train, case.queries, C, APART, progress=False)
        assert_close(came, expected, 1e-10)


# --- the bias ---------------------------------------------------------------------------------------------------------------


def test_a_captured_gradient_holds_the_weights_and_then_the_bias(case: Case) -> None:
    found = capture(case.model, case.objective, case.x, case.y)
    for n in range(len(case.y)):
        case.model.zero_grad()
        nn.functional.cross_entropy(case.model(case.x[n : n + 1]), case.y[n : n + 1]).backward()
        for name in case.layers:
            layer = case.model.get_submodule(name)
            matrix = found[name].matrices()[n]
            assert_close(matrix[:, :-1], layer.weight.grad, 1e-12)
            assert_close(matrix[:, -1], layer.bias.grad, 1e-12)


# --- the sign, by fitting again ---------------------------------------------------------------------------------------------

PENALTY = 0.05


def logistic_regression(a: Tensor, y: Tensor, weights: Tensor) -> Tensor:
    """argmin Σ w_n ℓ_n + ½ PENALTY ‖θ‖², θ (i,), by Newton's method; the last feature of a is the bias's 1."""
    theta = torch.zeros(a.shape[1])
    for _ in range(30):
        p = 1 / (1 + (-a @ theta).exp())
        slope = a.T @ (weights * (p - y)) + PENALTY * theta
        bend = (a.T * (weights * p * (1 - p))) @ a + PENALTY * torch.eye(len(theta))
        theta = theta - torch.linalg.solve(bend, slope)
    assert float(slope.norm()) < 1e-12
    return theta


class Convex:
    """Logistic regression at its minimum, with the log-likelihood of one query as a function of the weights."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(2)
        self.n = 24
        self.x = torch.randn(self.n, 2, generator=generator)
        self.y = (self.x[:, :1] + 0.8 * torch.randn(self.n, 1, generator=generator) > 0).double()
        self.a = torch.cat([self.x, torch.ones(self.n, 1)], dim=1)
        self.query = torch.tensor([[0.4, -1.0]]), torch.ones(1, 1)
        theta = self.fitted()
        self.model = nn.Linear(2, 1)
        with torch.no_grad():
            self.model.weight.copy_(theta[None, :-1])
            self.model.bias.copy_(theta[-1:])
        self.before = self.log_likelihood(theta)

    def fitted(self, example: int = 0, epsilon: float = 0.0) -> Tensor:
        """Fitted from the start, with ``epsilon`` more weight on one example."""
        weights = torch.full((self.n,), 1 / self.n)
        weights[example] += epsilon
        return logistic_regression(self.a, self.y[:, 0], weights)

    def log_likelihood(self, theta: Tensor) -> float:
        return -float((1 + (-(self.query[0][0] @ theta[:-1] + theta[-1])).exp()).log())  # of y = 1

    def change(self, example: int, epsilon: float) -> float:
        return self.log_likelihood(self.fitted(example, epsilon)) - self.before

    def scores(self, route: str) -> Tensor:
        """(N,)."""
        train, queries, objective = [(self.x, self.y)], [self.query], Bernoulli()
        fit = gauss_newton if route == "exact" else ekfac
        C = fit(self.model, objective, train, progress=False)
        if route != "index":
            return influence(self.model, objective, train, queries, C, PENALTY, progress=False)[0]
        index = TrainIndex.build(self.model, objective, train, C, progress=False)
        return index.influence(self.model, objective, queries, damping=PENALTY)[0]


def test_scores_are_the_slope_of_the_measurement_in_an_examples_weight() -> None:
    convex = Convex()
    slopes = [convex.change(n, 1e-5) / 1e-5 for n in range(convex.n)]
    assert_close(convex.scores("exact"), torch.tensor(slopes), 1e-3)


@pytest.mark.parametrize("route", ["exact", "EK-FAC", "index"])
def test_more_weight_on_a_proponent_raises_the_measurement_and_on_an_opponent_lowers_it(route: str) -> None:
    convex = Convex()
    scores = convex.scores(route)
    proponent, opponent = int(scores.argmax()), int(scores.argmin())
    assert float(scores[opponent]) < 0 < float(scores[proponent])
    assert convex.change(opponent, 1 / convex.n) < 0 < convex.change(proponent, 1 / convex.n)


def test_the_predicted_change_is_that_of_a_fit_without_the_example_or_with_it_twice() -> None:
    convex = Convex()
    scores = convex.scores("exact")
    for remove, epsilon in ((True, -1 / convex.n), (False, 1 / convex.n)):
        actual = torch.tensor([convex.change(n, epsilon) for n in range(convex.n)])
        assert_close(predicted_change(scores, convex.n, remove=remove), actual, 0.2)


# --- fresh labels -------------------------------------------------------------------------------------------------------------


def labels_of(case: Case, pass_: int, draw: int, seed: int) -> Tensor:
    """Example n's label: the first class whose cumulative probability reaches the uniform number of its stream."""
    f = case.problem.outputs()
    cumulative = (f.exp() / f.exp().sum(1, keepdim=True)).cumsum(1)
    return (LabelStreams(seed, pass_, draw).uniforms(0, len(f), 1) > cumulative).sum(1)


def last_moment(case: Case, labels: list[Tensor]) -> Tensor:
    """S of a softmax network's last layer at these labels: the mean of (p − e_y)(p − e_y)ᵀ."""
    f = case.problem.outputs()
    p = f.exp() / f.exp().sum(1, keepdim=True)
    g = torch.cat([p - torch.eye(p.shape[1])[y] for y in labels])
    return g.T @ g / len(g)


def test_eigenvalues_are_fitted_on_other_labels_than_their_basis() -> None:
    case = make(n=40, splits=[25])
    options: dict[str, Any] = {"labels": "sampled", "draws": 2, "seed": 11, "progress": False}
    passes = [[labels_of(case, pass_, draw, 11) for draw in (0, 1)] for pass_ in (0, 1)]
    drawn = [*passes[0], *passes[1]]
    assert not any(torch.equal(a, b) for k, a in enumerate(drawn) for b in drawn[:k])

    moments = second_moments(case.model, case.objective, case.train, **options)
    assert_close(moments.S("fc1"), last_moment(case, passes[0]), 1e-12)
    found = ekfac(case.model, case.objective, case.train, **options)
    S = found.Q_S["fc1"].T @ last_moment(case, passes[0]) @ found.Q_S["fc1"]
    assert_close(S, torch.diag(S.diagonal()), 1e-11)

    reused, fresh = (case.problem.fisher(*labels) for labels in passes)
    for name, span in case.problem.spans.items():
        U = kron(found.Q_S[name], found.Q_A[name])
        expected, other = (
            (U.T @ F[span, span] @ U).diagonal().reshape(case.problem.shapes[name]) for F in (fresh, reused)
        )
        assert difference(other, expected) > 0.01
        assert_close(found.eigenvalues[name], expected, 1e-11)


# --- hooks --------------------------------------------------------------------------------------------------------------------


def hooks_on(model: nn.Module) -> list[str]:
    """Every hook of every kind on the model's modules and parameters."""
    found = []
    for holder, value in (*model.named_modules(), *model.named_parameters()):
        kinds = [kind for kind in dir(value) if kind.endswith("_hooks")]
        found += [
            f"{holder}.{kind}" for kind in kinds if isinstance(getattr(value, kind), Mapping) and getattr(value, kind)
        ]
    return found


class InjectedError(Exception):
    pass


class RaisesInBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h: Tensor) -> Tensor:
        return h.clone()

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Tensor:
        raise InjectedError


class Fragile(nn.Sequential):
    """A perceptron that can be told to fail between its layers."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(3, 4), ACTIVATIONS["tanh"](), nn.Linear(4, 3))
        self.told = SimpleNamespace(breaks="")  # no setting of the function: a fit before does not know of it

    def forward(self, x: Tensor) -> Tensor:
        h = self[1](self[0](x))
        if self.told.breaks == "forward":
            raise InjectedError
        return self[2](RaisesInBackward.apply(h) if self.told.breaks == "backward" else h)


class BrokenLoss(CrossEntropy):
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        raise InjectedError


def calls(model: nn.Module, objective: CrossEntropy, case: Case) -> dict[str, Callable[[], Any]]:
    """Everything public that watches the model's layers, ready to be called.

    Always the same one batch: a hook left behind by one capture would stop the next with batches of other sizes.
    """
    C = identity(model, objective)  # no pass over the data
    data = [(case.x, case.y)]
    return {
        "capture": lambda: capture(model, objective, case.x, case.y),
        "ekfac": lambda: ekfac(model, objective, data, labels="observed", progress=False),
        "influence": lambda: influence(model, objective, data, data, C, progress=False),
        "self_influence": lambda: self_influence(model, objective, data, C, progress=False),
        "TrainIndex.build": lambda: TrainIndex.build(model, objective, data, C, progress=False),
    }


CALLS = ("capture", "ekfac", "influence", "self_influence", "TrainIndex.build")


@pytest.mark.parametrize("which", CALLS)
def test_no_hook_is_left_after_a_call(which: str) -> None:
    model = Fragile()
    calls(model, CrossEntropy(), make())[which]()
    assert hooks_on(model) == []
    model[0].register_forward_hook(lambda *_: None)
    assert hooks_on(model) == ["0._forward_hooks"]  # so that an empty list says something


@pytest.mark.parametrize("breaks", ["forward", "backward", "loss"])
@pytest.mark.parametrize("which", CALLS)
def test_no_hook_is_left_after_an_exception(which: str, breaks: str) -> None:
    model = Fragile()
    call = calls(model, BrokenLoss() if breaks == "loss" else CrossEntropy(), make())[which]
    model.told.breaks = breaks
    with pytest.raises(InjectedError):
        call()
    assert hooks_on(model) == []


def test_the_oracle_of_the_convex_model_agrees_with_the_shared_one() -> None:
    """Two independent answers about one model: its gradient is the penalty's, turned round."""
    convex = Convex()
    problem = Problem(convex.model, [""], LOSSES["Bernoulli"], convex.x, convex.y)
    assert_close(problem.gradients().mean(0), -PENALTY * problem.theta, 1e-10)
