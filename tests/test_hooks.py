"""Capture: Σ_t g_t a_tᵀ is autograd's per-example gradient, for every way a model may use its layers."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from hypothesis import given
from networks import ZOO, Case, Conv1D, Plain, Tokens, batches, cases, drawn, make, snapshot, targets_for, zoo
from oracle import LOSSES, Problem, assert_close
from torch import Tensor, nn

import inflib
from inflib import CrossEntropy, capture, coverage, ekfac, influence, register
from inflib.hooks import forward, watching
from inflib.layers import _KINDS, positions_last
from inflib.selection import select

pytestmark = pytest.mark.usefixtures("float64", "conv1d")


@pytest.fixture(scope="module")
def conv1d() -> Iterator[None]:
    """Conv1D known to inflib for the duration of this module."""
    register(Conv1D, positions_last, positions_last, transposed=True)
    yield
    del _KINDS[Conv1D]


def captured(case: Case, measurement: Any = None, **options: Any) -> Tensor:
    """Per-example gradients (N, D) from capture, laid out by the oracle."""
    found = capture(case.model, case.objective, case.x, case.y, measurement=measurement, **options)
    assert list(found) == case.layers
    return case.problem.flat({name: pair.matrices() for name, pair in found.items()})


# --- right --------------------------------------------------------------------------------------------------------------


@given(cases())
@drawn(40)
def test_captured_gradients_are_those_of_vmap_grad(case: Case) -> None:
    assert_close(captured(case), case.problem.gradients(), 1e-12)


@pytest.mark.parametrize("name", ["CrossEntropy", "SquaredError", "Bernoulli"])
@pytest.mark.parametrize("animal", ZOO)
def test_captured_gradients_are_right_however_the_layers_are_used(animal: str, name: str) -> None:
    case = zoo(animal, name)
    assert_close(captured(case), case.problem.gradients(), 1e-12)


@pytest.mark.parametrize("animal", ["tokens", "called twice", "all frozen, in place", "two inputs"])
def test_capture_works_inside_no_grad(animal: str) -> None:
    case = zoo(animal)
    expected = case.problem.gradients()
    with torch.no_grad():
        found = captured(case)
    assert_close(found, expected, 1e-12)


@pytest.mark.parametrize(
    ("measurement", "formula"),
    [
        ("log_likelihood", lambda f, y: -LOSSES["CrossEntropy"](f, y)),
        ("logit", lambda f, y: (f * (torch.arange(3) == y)).sum()),
        (lambda f, y: (f[:, 0] * f[:, 1]).sin(), lambda f, y: (f[0] * f[1]).sin()),
    ],
)
def test_a_measurements_gradient_takes_the_losses_place(measurement: Any, formula: Callable) -> None:
    case = make()
    assert_close(captured(case, measurement), case.problem.gradients(formula=formula), 1e-12)


def test_shapes_are_batch_positions_features_with_a_one_for_the_bias() -> None:
    case = zoo("tokens")
    found = capture(case.model, case.objective, case.x, case.y)
    assert found["up"].a.shape == (6, 5, 4)
    assert found["up"].g.shape == (6, 5, 4)
    assert found["down"].a.shape == (6, 5, 5)
    assert found["down"].g.shape == (6, 5, 3)
    assert torch.equal(found["up"].a, torch.cat([case.x, torch.ones(6, 5, 1)], dim=2))
    plain = capture(Tokens(bias=False), CrossEntropy(), case.x, case.y)
    assert torch.equal(plain["up"].a, case.x)


def test_the_calls_of_a_tied_layer_line_up_along_its_positions() -> None:
    case = zoo("called twice")
    found = capture(case.model, case.objective, case.x, case.y)
    assert found["same"].a.shape == (6, 2, 4)
    assert torch.equal(found["same"].a[:, 0, :3], case.x)
    assert found["out"].a.shape == (6, 1, 4)


def test_what_a_layer_read_is_kept_when_the_model_changes_it_later() -> None:
    class Late(nn.Module):
        """Adds to a layer's input in place after the layer has read it; its weights are fixed, so autograd allows it."""

        def __init__(self) -> None:
            super().__init__()
            self.up = nn.Linear(3, 3).requires_grad_(False)

        def forward(self, x: Tensor) -> Tensor:
            h = x * 2
            seen = self.up(h)
            h.add_(1)
            return torch.tanh(seen) + h

    class Early(Late):
        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(self.up(x * 2)) + (x * 2 + 1)

    late, early = Late(), Early()
    early.load_state_dict(late.state_dict())
    x, y = torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1])
    expected = Problem(early, ["up"], LOSSES["CrossEntropy"], x, y)
    found = capture(late, CrossEntropy(), x, y)["up"].matrices()
    assert_close(expected.flat({"up": found}), expected.gradients(), 1e-12)


def test_part_of_the_layers_gives_the_same_pairs_as_all_of_them() -> None:
    case = make(widths=(3, 4, 4, 3))
    every = capture(case.model, case.objective, case.x, case.y)
    some = capture(case.model, case.objective, case.x, case.y, layers=["fc1"])
    assert list(some) == ["fc1"]
    assert torch.equal(some["fc1"].a, every["fc1"].a)
    assert torch.equal(some["fc1"].g, every["fc1"].g)


def test_hooks_of_the_users_own_are_called_and_seen() -> None:
    case = make()
    calls: list[str] = []
    case.model.register_forward_hook(lambda module, args, output: output * 2)
    case.model.fc0.register_forward_hook(lambda *_: calls.append("fc0"))
    # twice the logits: an example's gradient is what the oracle finds for the doubled outputs
    double = lambda f, y: LOSSES["CrossEntropy"](2 * f, y)  # noqa: E731
    found = capture(case.model, case.objective, case.x, case.y)
    assert set(calls) == {"fc0"}
    case.model._forward_hooks.clear()
    calls.clear()
    problem = Problem(case.model, case.layers, double, case.x, case.y)
    assert_close(problem.flat({n: p.matrices() for n, p in found.items()}), problem.gradients(), 1e-12)


def test_a_transformer_with_masks_and_buffers_is_captured() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(7, 4)
            self.block = nn.TransformerEncoderLayer(4, 2, 5, 0.0, batch_first=True)
            self.head = nn.Linear(4, 3)
            self.register_buffer("mask", torch.triu(torch.full((3, 3), -1e9), 1))

        def forward(self, tokens: Tensor) -> Tensor:
            return self.head(self.block(self.embed(tokens), src_mask=self.mask)[:, -1])

    model = Masked().double().eval()
    x, y = torch.randint(0, 7, (4, 3)), torch.tensor([0, 1, 2, 0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", inflib.CoverageNote)
        found = capture(model, CrossEntropy(), x, y)
    problem = Problem(model, ["block.linear1", "block.linear2", "head"], LOSSES["CrossEntropy"], x, y)
    assert_close(problem.flat({n: p.matrices() for n, p in found.items()}), problem.gradients(), 1e-12)


# --- the registry ---------------------------------------------------------------------------------------------------------


def test_a_registered_type_is_as_exact_as_linear() -> None:
    case = zoo("weight stored transposed")
    twin = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))
    with torch.no_grad():
        for k in (0, 2):
            twin[k].weight.copy_(case.model[k].weight.T)
            twin[k].bias.copy_(case.model[k].bias)
    fits = [ekfac(model, case.objective, case.train, progress=False) for model in (case.model, twin)]
    scores = [
        influence(model, case.objective, case.train, case.queries, fit, progress=False)
        for model, fit in zip((case.model, twin), fits, strict=True)
    ]
    assert_close(fits[0].to_dense(), fits[1].to_dense(), 1e-12)
    assert_close(scores[0], scores[1], 1e-12)


@pytest.fixture
def registered() -> Iterator[Callable[..., None]]:
    """``register``, undone after the test."""
    before = dict(_KINDS)
    yield register
    _KINDS.clear()
    _KINDS.update(before)


@pytest.mark.parametrize("square", [True, False])
def test_a_type_registered_with_its_weight_the_wrong_way_round_is_caught(registered: Any, square: bool) -> None:
    registered(Conv1D, positions_last, positions_last)
    width = 3 if square else 4
    model = nn.Sequential(Conv1D(3, width), nn.Tanh(), Conv1D(width, 3))
    x, y = torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1])
    with pytest.raises(ValueError, match=r"layer '0'.*registered wrongly.*inflib.register"):
        ekfac(model, CrossEntropy(), [(x, y)], progress=False)


@pytest.mark.parametrize(
    ("activations", "gradients"),
    [
        (lambda m, x: x.flip(1), positions_last),  # positions in another order than the gradients'
        (lambda m, x: 2 * x, positions_last),
        (positions_last, lambda m, g: g[:, :1]),
        (positions_last, lambda m, g: g.flatten()),
        (lambda m, x: x.sum(1, keepdim=True), lambda m, g: g.sum(1, keepdim=True)),
    ],
)
def test_a_type_registered_with_the_wrong_reading_is_caught(registered: Any, activations: Any, gradients: Any) -> None:
    class MyLinear(nn.Linear):
        pass

    registered(MyLinear, activations, gradients)
    model = Tokens()
    model.up = MyLinear(3, 4)
    x, y = torch.randn(5, 2, 3), torch.tensor([0, 1, 2, 0, 1])
    with pytest.raises(ValueError, match=r"layer 'up'.*registered wrongly.*inflib.register"):
        ekfac(model, CrossEntropy(), [(x, y)], progress=False)


class SecondUse(nn.Module):
    """Uses a layer's weight once more, as a tensor, where no hook can see it."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(3, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.tanh(self.up(x))) + torch.tanh(self.up(x)) @ self.up.weight


@pytest.mark.parametrize("fit", [inflib.ekfac, inflib.kfac, inflib.diagonal])
def test_a_weight_used_outside_its_module_is_caught_by_a_fit(fit: Callable) -> None:
    case = make()
    with pytest.raises(ValueError, match=r"layer 'up'.*differs from autograd's.*used outside its module.*untied"):
        fit(SecondUse(), case.objective, case.train, progress=False)


@pytest.mark.parametrize("fit", [inflib.identity, inflib.gauss_newton])
def test_a_weight_used_outside_its_module_is_caught_by_the_scores_of_curvatures_that_capture_nothing(
    fit: Callable,
) -> None:
    case, model = make(), SecondUse()
    curvature = fit(model, case.objective, case.train, progress=False)
    for call in (
        lambda: influence(model, case.objective, case.train, case.queries, curvature, 0.1, progress=False),
        lambda: inflib.self_influence(model, case.objective, case.train, curvature, 0.1, progress=False),
    ):
        with pytest.raises(ValueError, match=r"layer 'up'.*used outside its module"):
            call()


def test_untied_counts_only_the_modules_own_use() -> None:
    case, model = make(), SecondUse()
    fit = ekfac(model, case.objective, case.train, layers=inflib.untied("up"), labels="observed", progress=False)

    class FirstUse(SecondUse):
        def forward(self, x: Tensor) -> Tensor:
            h = torch.tanh(self.up(x))
            return self.down(h) + h @ self.up.weight.detach()

    only = FirstUse()
    only.load_state_dict(model.state_dict())
    problem = Problem(only, ["up"], LOSSES["CrossEntropy"], case.x, case.y)
    assert float(fit.eigenvalues["up"].sum()) == pytest.approx(float(problem.fisher().trace()), rel=1e-12)


# --- the model as it was found --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("animal", ["tokens, relu in place", "tied modules", "all frozen", "residual", "two inputs"])
def test_capture_leaves_the_model_byte_for_byte_as_it_was(animal: str) -> None:
    case = zoo(animal)
    for p in case.model.parameters():
        if p.requires_grad:
            p.grad = torch.randn_like(p)
    case.model.register_forward_hook(lambda *_: None)
    before = snapshot(case.model)
    capture(case.model, case.objective, case.x, case.y)
    assert snapshot(case.model) == before


def test_inputs_and_targets_are_left_as_they_were() -> None:
    case = make("SquaredError", activation="relu in place")
    x, y = case.x.clone().requires_grad_(), case.y.clone().requires_grad_()
    capture(case.model, case.objective, x, y)
    assert x.grad is None
    assert y.grad is None
    assert torch.equal(x, case.x)
    assert x.requires_grad


def test_hooks_come_off_when_the_block_raises() -> None:
    case = make()
    before = snapshot(case.model)
    with pytest.raises(KeyError), watching(select(case.model), 4):
        assert snapshot(case.model) != before
        raise KeyError
    assert snapshot(case.model) == before


def test_a_running_statistic_or_cache_that_the_forward_pass_updates_is_put_back() -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Plain()
            self.register_buffer("calls", torch.zeros(()))
            self.register_buffer("last", torch.zeros(3))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            self.last = x.mean(0)
            return self.inner(x)

    model = nn.Sequential(
        Counts(), nn.Unflatten(1, (1, 3)), nn.InstanceNorm1d(1, track_running_stats=True), nn.Flatten()
    )
    model.append(nn.Linear(3, 3))
    case = make()
    before = snapshot(model)
    fit = ekfac(model, case.objective, batches(case.x, case.y, 3), progress=False)
    influence(model, case.objective, batches(case.x, case.y, 3), case.queries, fit, progress=False)
    assert snapshot(model) == before


# --- what is refused ----------------------------------------------------------------------------------------------------


def with_between(model: nn.Sequential, *modules: nn.Module) -> nn.Sequential:
    """fc0, the modules, act0, fc1."""
    return nn.Sequential(model.fc0, *modules, model.act0, model.fc1)


@pytest.mark.parametrize(
    "module",
    [
        nn.Dropout(0.1),
        nn.Dropout(1),
        nn.AlphaDropout(0.1),
        nn.Dropout1d(0.1),
        nn.BatchNorm1d(4),
        nn.MultiheadAttention(4, 2, dropout=0.1),
        nn.LSTM(4, 4, num_layers=2, dropout=0.1),
    ],
)
@pytest.mark.parametrize(
    "fit",
    [inflib.ekfac, inflib.kfac, inflib.diagonal, inflib.identity, inflib.gauss_newton, inflib.hessian],
)
def test_a_module_in_train_mode_that_mixes_examples_or_draws_is_refused(module: nn.Module, fit: Callable) -> None:
    case = make()
    model = with_between(case.model, module)
    before = snapshot(model)
    with pytest.raises(RuntimeError, match=rf"module '1' \({type(module).__name__}\) is in train mode.*model.eval\(\)"):
        fit(model, case.objective, case.train, progress=False)
    assert snapshot(model) == before


class Asks(nn.Module):
    """Notes which weights of the model ask for a gradient while it runs, and may break off."""

    def __init__(self, fails: bool):
        super().__init__()
        self.fails, self.asked, self.fused = fails, [True], True
        self.model: list[nn.Module] = []  # in a list: not a submodule

    def forward(self, x: Tensor) -> Tensor:
        self.asked = [p.requires_grad for p in self.model[0].parameters()]
        self.fused = torch.backends.mha.get_fastpath_enabled()
        if self.fails:
            raise ArithmeticError("broke off")
        return x


@pytest.mark.parametrize("fails", [False, True])
def test_no_weight_asks_for_a_gradient_while_the_model_is_recorded_and_all_do_as_before_afterwards(fails: bool) -> None:
    case, asks = make(), Asks(fails)
    model = with_between(case.model, asks)
    asks.model.append(model)
    model[0].bias.requires_grad_(False)
    before = [p.requires_grad for p in model.parameters()]
    assert set(before) == {True, False}
    for run in (
        lambda: capture(model, case.objective, case.x, case.y),
        lambda: forward(model, select(model), case.x, 7),
    ):
        with pytest.raises(ArithmeticError) if fails else nullcontext():
            run()
        assert [p.requires_grad for p in model.parameters()] == before
    assert not any(asks.asked)  # a look asks for some
    assert not asks.fused
    assert [p.requires_grad for p in model.parameters()] == before
    assert torch.backends.mha.get_fastpath_enabled()


def test_a_fused_layer_is_seen_inside_where_no_weight_asks_for_a_gradient() -> None:
    case = zoo("transformer layer")
    asking = captured(case)
    case.model.requires_grad_(False)
    assert torch.equal(captured(case), asking)


def test_a_harmless_module_in_train_mode_is_fine() -> None:
    case = make()
    model = with_between(case.model, nn.Dropout(0.0), nn.LayerNorm(4), nn.BatchNorm1d(4).eval())
    assert model.training
    assert ekfac(model, case.objective, case.train, progress=False).layers == ("0", "5")


def test_batchnorm_in_eval_mode_is_right_and_one_without_statistics_is_refused() -> None:
    case = make()
    norm = nn.BatchNorm1d(4)
    model = with_between(case.model, norm)
    model(case.x)  # gathers statistics
    model.eval()
    case.model, case.layers = model, ["0", "3"]
    assert_close(captured(case), case.problem.gradients(), 1e-12)
    model[1] = nn.BatchNorm1d(4, track_running_stats=False).eval()
    with pytest.raises(
        RuntimeError, match=r"'1' \(BatchNorm1d\) keeps no running statistics.*track_running_stats=True"
    ):
        ekfac(model, case.objective, case.train, progress=False)


@pytest.mark.parametrize("fit", [inflib.ekfac, inflib.gauss_newton, inflib.hessian])
def test_a_functional_dropout_is_noticed(fit: Callable) -> None:
    case = make()
    model = Plain(change=lambda h: nn.functional.dropout(h.tanh(), 0.5, training=True))
    before, state = snapshot(model), torch.get_rng_state()
    with pytest.raises(RuntimeError, match=r"draws random numbers in its forward pass.*model.eval\(\)"):
        fit(model, case.objective, case.train, progress=False)
    assert snapshot(model) == before
    assert torch.equal(state, torch.get_rng_state())


class Branch(nn.Module):
    def __init__(self, use: Callable[[nn.Module, Tensor], Any]):
        super().__init__()
        self.used, self.odd, self.use = nn.Linear(3, 3), nn.Linear(3, 3), use

    def forward(self, x: Tensor) -> Tensor:
        extra = self.use(self.odd, x)
        return self.used(x) + (0 if extra is None else extra)


def _under_no_grad(module: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return module(x)


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda module, x: None, r"layer 'odd' took no part in the forward pass.*Leave it out: layers=lambda"),
        (lambda module, x: module(x).detach(), r"layer 'odd'.*does not reach the model's output.*layers="),
        (_under_no_grad, r"layer 'odd'.*does not reach the model's output.*layers="),
        (lambda module, x: (module(x), None)[1], r"layer 'odd'.*does not reach the model's output.*layers="),
    ],
)
def test_a_layer_without_a_part_in_the_output_is_refused_and_may_be_left_out(use: Any, message: str) -> None:
    case, model = make(), Branch(use)
    before = snapshot(model)
    with pytest.raises(ValueError, match=message):
        ekfac(model, case.objective, case.train, progress=False)
    assert snapshot(model) == before
    assert ekfac(model, case.objective, case.train, layers="used", progress=False).layers == ("used",)


def test_a_model_that_computes_under_no_grad_is_refused() -> None:
    class Cut(Plain):
        @torch.no_grad()
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)

    with pytest.raises(ValueError, match=r"cut off from all of its layers.*Remove torch.no_grad\(\)"):
        capture(Cut(), CrossEntropy(), torch.randn(2, 3), torch.tensor([0, 1]))


def test_inference_mode_is_refused_with_what_to_use() -> None:
    case = make()
    with torch.inference_mode(), pytest.raises(RuntimeError, match=r"inside torch.inference_mode\(\).*no_grad"):
        ekfac(case.model, case.objective, case.train, progress=False)


def test_a_batch_axis_that_is_not_first_is_refused_with_the_shapes() -> None:
    class TokensFirst(Tokens):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.transpose(0, 1))

    with pytest.raises(
        ValueError, match=r"output has shape \(5, 3\); expected 4, the number of targets, as its first axis"
    ):
        capture(TokensFirst(), CrossEntropy(), torch.randn(4, 5, 3), torch.tensor([0, 1, 2, 0]))


def test_an_example_without_a_batch_axis_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Linear was given an input of shape \(3,\); expected \(B.*DataLoader"):
        capture(Plain(), CrossEntropy(), torch.randn(3), torch.tensor([0]))


@pytest.mark.parametrize("where", ["activations", "gradients"])
@pytest.mark.parametrize("fit", [inflib.ekfac, inflib.kfac, inflib.diagonal, inflib.gauss_newton, inflib.hessian])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused_with_layer_and_batch(where: str, fit: Callable, bad: float) -> None:
    case = make("SquaredError", n=6)
    (case.x if where == "activations" else case.y)[5, 0] = bad
    train = batches(case.x, case.y, 2)
    labels = None if fit is inflib.hessian else "observed"
    with pytest.raises(FloatingPointError, match=r"layer 'fc\d': .* of batch 2 hold NaN or infinity"):
        fit(case.model, case.objective, train, labels=labels, progress=False)


@pytest.mark.parametrize("side", ["train", "queries", "self"])
@pytest.mark.parametrize("where", ["activations", "gradients"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("which", ["ekfac", "gauss_newton"])
def test_scores_refuse_numbers_that_are_not_finite_on_either_side(
    side: str, where: str, bad: float, which: str
) -> None:
    case = make("SquaredError", n=6)
    fit = getattr(inflib, which)(case.model, case.objective, case.train, progress=False)
    x, y = case.x.clone(), case.y.clone()
    (x if where == "activations" else y)[5, 0] = bad
    spoilt, good = batches(x, y, 2), batches(case.x, case.y, 2)
    train, queries = (good, spoilt) if side == "queries" else (spoilt, good)
    what = "activations" if where == "activations" else "output gradients"
    with pytest.raises(FloatingPointError, match=rf"layer 'fc0': {what} of batch 2 hold NaN or infinity.*dtype"):
        if side == "self":
            inflib.self_influence(case.model, case.objective, spoilt, fit, progress=False)
        else:
            influence(case.model, case.objective, train, queries, fit, progress=False)


@pytest.mark.parametrize("keep", [(), ("layer",), ("layer", "token"), None])
def test_scores_of_sequences_refuse_them_too(keep: tuple[str, ...] | None) -> None:
    case = zoo("tokens")
    fit = ekfac(case.model, case.objective, case.train, progress=False)
    x = case.x.clone()
    x[-1, 0, 0] = float("nan")
    last = len(case.y) - 1
    with pytest.raises(FloatingPointError, match=rf"activations of batch {last} hold NaN or infinity"):
        if keep is None:
            inflib.self_influence(case.model, case.objective, batches(x, case.y, 1), fit, progress=False)
        else:
            influence(case.model, case.objective, batches(x, case.y, 1), case.queries, fit, keep=keep, progress=False)


def test_half_precision_models_keep_their_sums_in_float32() -> None:
    case = make()
    model = case.model.bfloat16()
    train = [(x.bfloat16(), y) for x, y in case.train]
    moments = inflib.kfac(model, case.objective, train, progress=False)
    for fit in (inflib.ekfac, inflib.kfac, inflib.diagonal, inflib.identity):
        curvature = fit(model, case.objective, train, progress=False)
        assert all(v.dtype == torch.float32 for v in curvature.eigenvalues.values())
        scores = influence(model, case.objective, train, train, curvature, progress=False)
        assert scores.dtype == torch.float32
        assert bool(torch.isfinite(scores).all())
    assert all(q.dtype == torch.float32 for q in (*moments.Q_S.values(), *moments.Q_A.values()))


def test_coverage_of_a_zoo_of_models_names_every_parameter_once() -> None:
    for animal in ZOO:
        case = zoo(animal)
        table = coverage(case.model)
        assert [row[0] for row in table.rows] == case.layers, animal
        assert sum(table.numbers.values()) == sum(p.numel() for p in case.model.parameters()), animal
        asking = [p.requires_grad for p in case.model.parameters()]
        still = sum(p.numel() for p in case.model.parameters() if not p.requires_grad)
        assert table.numbers["frozen"] == (still if any(asking) else 0), animal


def test_targets_for_makes_what_each_objective_takes() -> None:
    generator = torch.Generator().manual_seed(0)
    assert targets_for("CrossEntropy", 4, 3, generator).dtype == torch.int64
    assert set(targets_for("Bernoulli", 9, 3, generator).unique().tolist()) <= {0.0, 1.0}
