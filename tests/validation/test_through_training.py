"""Through training: the derivative of retraining itself, whatever the optimiser remembers and however states are kept."""

from __future__ import annotations

import copy
import math
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from networks import snapshot
from oracle import assert_close
from torch import Tensor, nn
from torch.optim import lr_scheduler

from inflib import CrossEntropy, NextToken, Objective, SquaredError, hessian, influence, memory
from inflib.validation import Run, ThroughTraining, Training, retrain, through_training
from inflib.validation.through_training import SGD, Adam, AdamW, Optimiser

pytestmark = pytest.mark.usefixtures("float64")

LR, EPOCHS, BATCH = 0.1, 4, 5
# ours, and torch's own with the same dials
OPTIMISERS: dict[str, tuple[Optimiser, Callable[..., torch.optim.Optimizer], dict[str, Any]]] = {
    "SGD": (SGD(), torch.optim.SGD, {}),
    "SGD with momentum and decay": (SGD(0.9, 0.05), torch.optim.SGD, {"momentum": 0.9, "weight_decay": 0.05}),
    "AdamW": (AdamW(0.1, (0.8, 0.95)), torch.optim.AdamW, {"weight_decay": 0.1, "betas": (0.8, 0.95)}),
    "Adam with decay": (Adam(0.05, eps=1e-2), torch.optim.Adam, {"weight_decay": 0.05, "eps": 1e-2}),
}


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).eval()


def digits(N: int = 12, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Inputs (N, 4), the first 0 throughout as a picture's corner is, and three classes."""
    generator = torch.Generator().manual_seed(seed)
    X = torch.randn(N, 4, generator=generator)
    X[:, 0] = 0
    return X, torch.randint(3, (N,), generator=generator)


def run_of(optimiser: Optimiser, N: int = 12, epochs: int = EPOCHS, size: int = BATCH, lr: float = LR) -> Run:
    """Shuffled minibatches, the last of an epoch smaller, and rates that fall along half a cosine."""
    order = [rows for _ in range(epochs) for rows in torch.randperm(N).split(size)]
    return Run(optimiser, tuple(order), tuple(lr * fall(k / len(order)) for k in range(len(order))))


def fall(share: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * share))


def torch_trains(model: nn.Module, loss: Callable, data: tuple, run: Run, make: Callable, w: Tensor) -> nn.Module:
    """The model trained by torch's own optimiser on the weighted loss, in a plain loop; the cosine is torch's too."""
    trained = copy.deepcopy(model)
    optimiser = make(trained.parameters(), lr=run.rates[0])
    schedule = lr_scheduler.LambdaLR(optimiser, lambda k: fall(k / len(run.order)))
    for rows in run.order:
        optimiser.zero_grad()
        (w[rows] * loss(trained(data[0][rows]), data[1][rows])).mean().backward()
        optimiser.step()
        schedule.step()
    return trained


def cross_entropy(f: Tensor, y: Tensor) -> Tensor:
    return nn.functional.cross_entropy(f, y, reduction="none")


def margin(f: Tensor, y: Tensor) -> Tensor:
    others = f.masked_fill(nn.functional.one_hot(y, f.shape[1]).bool(), -math.inf)
    return f.gather(1, y[:, None])[:, 0] - others.logsumexp(1)


def differences(measure: Callable[[Tensor], Tensor], N: int, h: float = 1e-5) -> Tensor:
    """N · dm/dw_n by central differences of measure(w) (Q,), one example after another, (Q, N)."""
    step = h * torch.eye(N)
    return torch.stack([(measure(1 + e) - measure(1 - e)) / (2 * h) * N for e in step], dim=1)


# --- the derivative ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPTIMISERS)
def test_scores_are_central_differences_of_retraining(name: str) -> None:
    model, (X, y), (Z, z) = network(), digits(), digits(3, seed=1)
    ours, torchs, dials = OPTIMISERS[name]
    run = run_of(ours)

    def retrained(w: Tensor) -> Tensor:
        trained = torch_trains(model, cross_entropy, (X, y), run, lambda p, lr: torchs(p, lr=lr, **dials), w)
        return margin(trained(Z), z).detach()

    found = through_training(model, CrossEntropy(), [(X, y)], [(Z, z)], run, measurement="margin")
    assert found.scores.shape == (3, 12)
    assert_close(found.scores, differences(retrained, 12), 1e-6)
    assert_close(found.measured, retrained(torch.ones(12)), 1e-12)


@pytest.mark.parametrize("name", OPTIMISERS)
def test_the_weights_are_those_that_torchs_optimiser_of_that_name_ends_with(name: str) -> None:
    model, (X, y) = network(), digits()
    ours, torchs, dials = OPTIMISERS[name]
    run, w = run_of(ours), torch.linspace(0, 2, 12)
    found = through_training(model, CrossEntropy(), [(X, y)], [(X[:1], y[:1])], run, weights=w)
    trained = torch_trains(model, cross_entropy, (X, y), run, lambda p, lr: torchs(p, lr=lr, **dials), w)
    for parameter, expected in trained.named_parameters():
        assert_close(found.parameters[parameter], expected.detach(), 1e-12)


def test_a_derivative_may_be_taken_where_examples_are_weighted() -> None:
    model, (X, y), (Z, z) = network(), digits(), digits(2, seed=1)
    run, w = run_of(SGD(0.9)), torch.linspace(0, 2, 12)

    def retrained(v: Tensor) -> Tensor:
        make = lambda p, lr: torch.optim.SGD(p, lr=lr, momentum=0.9)  # noqa: E731
        return -cross_entropy(torch_trains(model, cross_entropy, (X, y), run, make, v + w - 1)(Z), z).detach()

    found = through_training(model, CrossEntropy(), [(X, y)], [(Z, z)], run, weights=w)
    assert_close(found.scores, differences(retrained, 12), 1e-6)


def test_a_sequence_model_is_differentiated_alike() -> None:
    torch.manual_seed(0)
    block = nn.TransformerEncoderLayer(4, 2, 5, 0.0, batch_first=True)
    model = nn.Sequential(nn.Embedding(6, 4), block, nn.Linear(4, 6)).eval()
    tokens = torch.randint(6, (7, 4), generator=torch.Generator().manual_seed(1))
    x, y = tokens[:, :-1], tokens[:, 1:]
    run = run_of(AdamW(), N=7, epochs=2, size=3, lr=0.01)

    def loss(f: Tensor, y: Tensor) -> Tensor:
        return nn.functional.cross_entropy(f.mT, y, reduction="none").sum(1)

    def retrained(w: Tensor) -> Tensor:
        trained = torch_trains(model, loss, (x, y), run, lambda p, lr: torch.optim.AdamW(p, lr=lr, eps=1e-8), w)
        return -loss(trained(x[:2]), y[:2]).detach()

    found = through_training(model, NextToken(), [(x[:4], y[:4]), (x[4:], y[4:])], [(x[:2], y[:2])], run)
    assert_close(found.scores, differences(retrained, 7), 1e-6)


def test_where_training_comes_to_rest_it_is_the_influence_with_the_exact_hessian() -> None:
    torch.manual_seed(0)
    X, Y, decay = torch.randn(20, 3), torch.randn(20, 2), 0.1
    model = nn.Linear(3, 2)
    run = Run(SGD(0.7, decay), (torch.arange(20),) * 150, (0.2,) * 150)
    found = through_training(model, SquaredError(), [(X, Y)], [(X[:4], Y[:4])], run)
    model.load_state_dict(found.parameters)
    exact = hessian(model, SquaredError(), [(X, Y)])
    assert_close(found.scores, influence(model, SquaredError(), [(X, Y)], [(X[:4], Y[:4])], exact, decay), 1e-9)
    assert float(found.amplification.max()) < 1e-6  # and has forgotten where it began


@pytest.mark.parametrize("optimiser", ["sgd", "adam", "adamw"])
def test_a_recipes_run_is_the_one_that_many_retrainings_take(optimiser: str) -> None:
    (X, y), (Z, z) = digits(), digits(3, seed=1)
    training = Training(epochs=3, batch_size=5, lr=0.05, weight_decay=0.1, optimiser=optimiser)
    h, seed = 1e-4, 4
    weights = torch.cat([1 + h * torch.eye(12), 1 - h * torch.eye(12)])
    retrained = retrain(network, CrossEntropy(), X, y, training, weights, seed)
    up, down = retrained.measure(CrossEntropy(), [(Z, z)]).split(12)  # (12, Q) each
    found = through_training(network(seed), CrossEntropy(), [(X, y)], [(Z, z)], Run.of(training, 12, seed))
    assert_close(found.scores, (up - down).T / (2 * h) * 12, 1e-6)


# --- how it is computed --------------------------------------------------------------------------------------------------


def found_with(model: nn.Module | None = None, queries: Any = None, **options: Any) -> ThroughTraining:
    X, y = digits()
    queries = [digits(5, seed=1)] if queries is None else queries
    optimiser = options.pop("optimiser", AdamW())
    return through_training(model or network(), CrossEntropy(), [(X, y)], queries, run_of(optimiser), **options)


@pytest.mark.parametrize("checkpoints", [1, 2, 5, 12])
def test_it_does_not_depend_on_how_many_states_are_kept(checkpoints: int) -> None:
    found, expected = found_with(checkpoints=checkpoints), found_with()
    assert torch.equal(found.scores, expected.scores)
    assert found.steps.tolist()[0] == 0 and found.steps.tolist()[-1] == 12
    assert found.sensitivity.shape == (5, checkpoints + 1)


def test_no_more_states_are_held_than_checkpoints_and_one_segments() -> None:
    held: set[object] = set()
    most = 0

    class Counting(SGD):
        """Counts the states that are alive when it makes another."""

        def update(self, z: Tensor, g: Tensor, k: int, rate: float) -> Tensor:
            nonlocal most
            made = super().update(z, g, k, rate)
            if not torch._C._functorch.is_functorch_wrapped_tensor(made):
                held.add(token := object())
                weakref.finalize(made, held.discard, token)
            most = max(most, len(held))
            return made

    run = run_of(Counting(), epochs=36, size=12)
    through_training(network(), CrossEntropy(), [digits()], [digits(2, seed=1)], run, checkpoints=6)
    assert most <= 6 + 36 // 6 + 2


def test_queries_asked_together_are_those_asked_alone() -> None:
    Z, z = digits(5, seed=1)
    together = found_with()
    few = found_with(max_bytes=1)
    alone = [found_with(queries=[(Z[q : q + 1], z[q : q + 1])]) for q in range(5)]
    batches = found_with(queries=[(Z[:2], z[:2]), (Z[2:], z[2:])])
    for other in (few.scores, torch.cat([a.scores for a in alone]), batches.scores):
        assert_close(other, together.scores, 1e-12)


def test_the_model_is_left_as_it_was() -> None:
    model = network()
    before = snapshot(model)
    found_with(model)
    assert snapshot(model) == before


def test_frozen_parameters_stay_and_their_gradients_are_not_asked_for() -> None:
    model = network()
    model[0].requires_grad_(False)
    found = found_with(model)
    assert list(found.parameters) == ["2.weight", "2.bias"]


def test_how_much_the_start_counts_is_a_difference_of_trainings() -> None:
    model, (X, y), (Z, z) = network(), digits(), digits(1, seed=1)
    run = run_of(SGD(0.9), epochs=8)
    found = through_training(model, CrossEntropy(), [(X, y)], [(Z, z)], run)
    slope = []
    for parameter in model.parameters():
        for place in range(parameter.numel()):
            ends = []
            for step in (1e-5, -1e-5):
                moved = copy.deepcopy(model)
                own = dict(zip(model.parameters(), moved.parameters(), strict=True))[parameter]
                with torch.no_grad():
                    own.view(-1)[place] += step
                make = lambda p, lr: torch.optim.SGD(p, lr=lr, momentum=0.9)  # noqa: E731
                trained = torch_trains(moved, cross_entropy, (X, y), run, make, torch.ones(12))
                ends.append(-cross_entropy(trained(Z), z).item())
            slope.append((ends[0] - ends[1]) / 2e-5)
    assert float(found.sensitivity[0, 0]) == pytest.approx(float(torch.tensor(slope).norm()), rel=1e-6)


# --- bad input -----------------------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_said_before_training_with_a_number_of_checkpoints_that_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    state = 2 * 51 * 8  # SGD's, of 51 weights
    T, Q = 12, 5
    monkeypatch.setattr(memory, "LIMIT", (3 + 4 + 4 * Q) * state)
    found_with(optimiser=SGD(), checkpoints=3)
    asked = (T + 1 + 4 * Q) * state
    with pytest.raises(MemoryError, match=rf"12 checkpoints .* take {asked:,} bytes.*With checkpoints=3 it would"):
        found_with(optimiser=SGD(), checkpoints=T)
    monkeypatch.setattr(memory, "LIMIT", (3 + 4 + 4 * Q) * state - 1)
    with pytest.raises(MemoryError, match=r"No number would do.*fewer queries"):
        found_with(optimiser=SGD())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"checkpoints": 0}, ValueError, r"checkpoints=0; expected 1 to 12"),
        ({"checkpoints": 13}, ValueError, r"checkpoints=13; expected 1 to 12"),
        ({"weights": torch.ones(11)}, ValueError, r"\(11,\); expected \(12,\)"),
        ({"queries": []}, ValueError, "queries is empty"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(options: dict[str, Any], error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        found_with(**options)


def test_a_run_for_other_data_is_refused() -> None:
    X, y = digits(8)
    with pytest.raises(ValueError, match=r"positions from 0 to 11.*8 examples.*Run.of\(training, 8"):
        through_training(network(), CrossEntropy(), [(X, y)], [(X, y)], run_of(SGD()))
    with pytest.raises(ValueError, match="2 batches and 1 learning rates"):
        Run(SGD(), (torch.arange(2), torch.arange(2)), (0.1,))


def test_a_training_that_diverges_says_at_which_step() -> None:
    X, y = torch.randn(6, 2), torch.randn(6, 1)
    run = Run(SGD(), (torch.arange(6),) * 400, (100.0,) * 400)
    with pytest.raises(FloatingPointError, match=r"after step \d+ of 400, at a learning rate of 100"):
        through_training(nn.Linear(2, 1), SquaredError(), [(X, y)], [(X, y)], run)


def test_a_model_that_draws_or_counts_its_batch_is_refused() -> None:
    for module in (nn.Dropout(0.5), nn.BatchNorm1d(3)):
        with pytest.raises(RuntimeError, match=r"Call model.eval\(\) first"):
            found_with(nn.Sequential(nn.Linear(4, 3), module).train())


def test_a_loss_that_is_another_the_second_time_is_noticed() -> None:
    class Wandering(Objective):
        calls = 0

        def loss(self, f: Tensor, y: Tensor) -> Tensor:
            self.calls += 1
            return (1 + 0.01 * self.calls) * cross_entropy(f, y)

    X, y = digits()
    with pytest.raises(RuntimeError, match="ended elsewhere when it was repeated"):
        through_training(network(), Wandering(), [(X, y)], [(X, y)], run_of(SGD()))
