"""Whatever goes wrong, and wherever: the user's own error arrives, and the model is byte for byte as it was.

A bomb goes off at the first, the second, the third, ... call of something that inflib runs: the model's forward or
backward pass, a hook, the loss, the sampler, the data. Every call of every public function is tried.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import Plain, Residual, Twice, make, snapshot
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import inflib
from inflib import CrossEntropy, capture, influence, predicted_change, self_influence
from inflib.layers import _KINDS, positions_last

pytestmark = [
    pytest.mark.usefixtures("float64"),
    pytest.mark.filterwarnings("ignore::inflib.CoverageNote", "ignore::inflib.IndefiniteWarning"),
]

CASE = dict(n=5, splits=[3])


class BombError(Exception):
    """Nothing in inflib raises or catches this."""


class Bomb:
    """Counts calls and raises at one of them."""

    def __init__(self, error: type[BaseException] = BombError):
        self.error, self.at, self.calls = error, -1, 0

    def set(self, at: int) -> None:
        self.at, self.calls = at, 0

    def __call__(self) -> None:
        self.calls += 1
        if self.calls == self.at:
            raise self.error


class _Backward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bomb: Bomb) -> Tensor:
        ctx.bomb = bomb
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        ctx.bomb()
        return grad, None


class Registered(nn.Linear):
    """A layer type of the test's own, whose reading by our hook can go wrong."""


def bombs() -> dict[str, Callable[[Bomb], tuple[nn.Module, inflib.Objective, Any]]]:
    """Where it can go wrong → (model, objective, data) in which it does."""
    case = make(**CASE)
    data = case.train

    def forward(bomb: Bomb) -> Any:
        return Plain(change=lambda h: (bomb(), torch.tanh(h))[1]), case.objective, data

    def backward(bomb: Bomb) -> Any:
        return Plain(change=lambda h: torch.tanh(_Backward.apply(h, bomb))), case.objective, data

    def hook(bomb: Bomb) -> Any:
        model = Plain()
        model.down.register_forward_hook(lambda *_: bomb())
        return model, case.objective, data

    def our_hook(bomb: Bomb) -> Any:
        model = Plain()
        model.down = Registered(4, 3)
        inflib.register(Registered, lambda m, x: (bomb(), positions_last(m, x))[1], positions_last)
        return model, case.objective, data

    def our_gradients(bomb: Bomb) -> Any:
        model = Plain()
        model.up = Registered(3, 4)
        inflib.register(Registered, positions_last, lambda m, g: (bomb(), positions_last(m, g))[1])
        return model, case.objective, data

    def loss(bomb: Bomb) -> Any:
        class Loss(CrossEntropy):
            def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
                bomb()
                return super().loss(outputs, targets)

        return Plain(), Loss(), data

    def the_data(bomb: Bomb) -> Any:
        class Data:
            def __iter__(self) -> Iterator[Any]:
                for batch in data:
                    bomb()
                    yield batch

        return Plain(), case.objective, Data()

    return {f.__name__: f for f in (forward, backward, hook, our_hook, our_gradients, loss, the_data)}


@pytest.fixture(autouse=True)
def _registry() -> Iterator[None]:
    before = dict(_KINDS)
    yield
    _KINDS.clear()
    _KINDS.update(before)


def _fit(name: str, **options: Any) -> Callable[[nn.Module, Any, Any], Any]:
    return lambda model, objective, data: getattr(inflib, name)(model, objective, data, progress=False, **options)


def _influence(model: nn.Module, objective: Any, data: Any) -> Any:
    return influence(model, objective, data, data, inflib.identity(model, objective), progress=False)


def _self_influence(model: nn.Module, objective: Any, data: Any) -> Any:
    return self_influence(model, objective, data, inflib.identity(model, objective), progress=False)


def _index(model: nn.Module, objective: Any, data: Any) -> Any:
    index = inflib.TrainIndex.build(model, objective, data, inflib.identity(model, objective), progress=False)
    return index.influence(model, objective, data)


def _capture(model: nn.Module, objective: Any, data: Any) -> Any:
    return [capture(model, objective, *batch) for batch in data]


def _refine(model: nn.Module, objective: Any, data: Any) -> Any:
    rough = inflib.diagonal(model, objective, data, progress=False)
    fine = inflib.refine(rough, model, objective, data, steps=2, progress=False)
    return influence(model, objective, data, data, fine, 0.5, progress=False)


CALLS: dict[str, Callable[[nn.Module, Any, Any], Any]] = {
    "ekfac": _fit("ekfac"),
    "ekfac, sampled": _fit("ekfac", labels="sampled", draws=2),
    "kfac, observed": _fit("kfac", labels="observed"),
    "diagonal": _fit("diagonal"),
    "gauss_newton": _fit("gauss_newton"),
    "gauss_newton, sampled": _fit("gauss_newton", labels="sampled"),
    "hessian": _fit("hessian"),
    "influence": _influence,
    "self_influence": _self_influence,
    "TrainIndex": _index,
    "capture": _capture,
    "refine": _refine,
}
EXACT = ("gauss_newton", "gauss_newton, sampled", "hessian")
# torch.func refuses an autograd.Function of the old style; exact curvatures use no hook of ours
NOT_FOR = {("backward", call) for call in (*EXACT, "refine")}
NOT_FOR |= {(where, call) for where in ("our_hook", "our_gradients") for call in EXACT}
PAIRS = [(call, where) for call in CALLS for where in bombs() if (where, call) not in NOT_FOR]


@pytest.mark.parametrize(("call", "where"), PAIRS)
def test_the_model_is_as_it_was_after_an_exception_anywhere(call: str, where: str) -> None:
    bomb = Bomb()
    model, objective, data = bombs()[where](bomb)
    (model.down if where == "our_gradients" else model.up).requires_grad_(False)
    model.down.weight.grad = torch.randn_like(model.down.weight)
    model.down.eval()
    before, state = snapshot(model), torch.get_rng_state()
    went_off = 0
    for at in range(1, 400):
        bomb.set(at)
        try:
            CALLS[call](model, objective, data)
        except BombError:
            went_off += 1
        assert snapshot(model) == before
        assert torch.equal(state, torch.get_rng_state())
        assert torch.is_grad_enabled()
        if went_off < at:
            break
    assert 0 < went_off < 399


def test_an_interruption_leaves_the_model_as_it_was() -> None:
    bomb = Bomb(KeyboardInterrupt)
    model, objective, data = bombs()["forward"](bomb)
    before = snapshot(model)
    for at in (1, 4, 7):
        bomb.set(at)
        with pytest.raises(KeyboardInterrupt):
            inflib.ekfac(model, objective, data, progress=False)
        assert snapshot(model) == before


def test_an_error_in_a_measurement_leaves_the_model_as_it_was() -> None:
    case = make(**CASE)
    before = snapshot(case.model)
    curvature = inflib.ekfac(case.model, case.objective, case.train, progress=False)

    def fails(f: Tensor, y: Tensor) -> Tensor:
        raise BombError

    with pytest.raises(BombError):
        influence(case.model, case.objective, case.train, case.queries, curvature, measurement=fails, progress=False)
    assert snapshot(case.model) == before


@pytest.mark.parametrize("mode", ["train", "eval", "mixed"])
@pytest.mark.parametrize("frozen", ["none", "some", "all"])
def test_the_model_is_as_it_was_after_every_public_call(mode: str, frozen: str, tmp_path: Path) -> None:
    case = make(**CASE)
    model = Residual()
    model.train(mode != "eval")
    if mode == "mixed":
        model.two.eval()
    for k, p in enumerate(model.parameters()):
        p.requires_grad_(frozen == "none" or (frozen == "some" and k % 2 == 0))
        p.grad = torch.randn_like(p) if p.requires_grad else None
    model.register_forward_hook(lambda *_: None)
    model.one.register_forward_pre_hook(lambda *_: None)
    before = snapshot(model)
    for name, call in CALLS.items():
        call(model, case.objective, case.train)
        assert snapshot(model) == before, name
    curvature = inflib.ekfac(model, case.objective, case.train, progress=False)
    inflib.save(curvature, tmp_path / "f")
    inflib.load(tmp_path / "f", model)
    inflib.coverage(model)
    inflib.damping_of(curvature)
    curvature.to_dense()
    assert snapshot(model) == before


def test_the_model_still_trains_as_before_after_all_of_it() -> None:
    """Two copies, one of them scored in between: the same weights after some more steps."""
    case, twin = make(**CASE), make(**CASE)
    for k, model in enumerate((case.model, twin.model)):
        optimiser = torch.optim.Adam(model.parameters(), 0.01)
        for step in range(6):
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(case.x), case.y).backward()
            if k and step % 2:
                for call in CALLS.values():
                    call(model, case.objective, case.train)
            optimiser.step()
    for p, q in zip(case.model.parameters(), twin.model.parameters(), strict=True):
        assert torch.equal(p, q)


# --- what the messages say ----------------------------------------------------------------------------------------------

Row = tuple[Callable[[], Any], type[Exception], str, str, str]


def errors() -> dict[str, Row]:
    """What a user does wrong → (the call, its error, what came, what was expected, the fix), the last three as words."""
    case, twin = make(**CASE), make("SquaredError", **CASE)
    model, objective, train, x, y = case.model, case.objective, case.train, case.x, case.y
    yes_no = make("Bernoulli", **CASE)
    curvature = inflib.ekfac(model, objective, train, progress=False)
    dense = inflib.gauss_newton(model, objective, train, progress=False)
    two = Twice()
    two_curvature = inflib.ekfac(two, objective, train, progress=False)

    def fit(net: nn.Module = model, of: Any = objective, data: Any = train, **options: Any) -> Callable[[], Any]:
        return lambda: inflib.ekfac(net, of, data, progress=False, **options)

    def score(
        damping: Any = None, c: Any = curvature, net: Any = model, a: Any = train, q: Any = train, **options: Any
    ) -> Callable[[], Any]:
        return lambda: influence(net, objective, a, q, c, damping, progress=False, **options)

    class Mean(CrossEntropy):
        def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
            return super().loss(outputs, targets).mean()

    class Unused(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.odd = nn.Linear(3, 3)

    class Pairs(Plain):
        def forward(self, x: Tensor) -> Any:
            return super().forward(x), x

    dropped = Plain(change=lambda h: nn.functional.dropout(h, 0.5, training=True))
    bad_x, bad_y = x.clone(), twin.y.clone()
    bad_x[4, 0], bad_y[4, 0] = float("nan"), float("inf")
    zero = make(**CASE)
    zero.model.fc1.weight.data.zero_()
    flat = inflib.ekfac(zero.model, objective, train, progress=False)
    modes = [nn.Sequential(nn.Linear(3, 3), m) for m in (nn.Dropout(0.5), nn.BatchNorm1d(3))]
    value, kind, run = ValueError, TypeError, RuntimeError
    eval_first = (r"depends on", r"expected eval mode", r"Call model.eval\(\)")
    finite = (r"expected finite numbers", r"Look at that batch's inputs")
    devices = (r"expected one device", r"Move the batches: .*x.to\('cpu'\)")
    again = r"Use a list"
    index = inflib.TrainIndex.build(model, objective, train, curvature, progress=False)
    observed = inflib.ekfac(model, objective, train, labels="observed", progress=False)
    return {
        "dropout in train mode": (
            fit(modes[0]),
            run,
            r"'1' \(Dropout\) is in train mode.*" + eval_first[0],
            *eval_first[1:],
        ),
        "batch norm in train mode": (fit(modes[1]), run, r"'1' \(BatchNorm1d\) is in train mode", *eval_first[1:]),
        "functional dropout": (fit(dropped), run, r"draws random numbers", r"expected the same output", eval_first[2]),
        "a mean loss": (
            fit(of=Mean(), labels="observed"),
            value,
            r"loss has shape \(\)",
            r"expected one number per example, \(3,\)",
            r"reduction='none'",
        ),
        "an image without its batch axis": (
            fit(nn.Conv2d(1, 3, 2), data=[(x[None], y)]),
            value,
            r"Conv2d was given an input of shape \(1, 5, 3\)",
            r"expected \(B, channels, height, width\)",
            r"Give batches of examples",
        ),
        "an unused layer": (
            fit(Unused()),
            value,
            r"'odd' took no part in the forward pass",
            r"expected every chosen layer to be used",
            r"Leave it out: layers=lambda name, module: not name.endswith\('odd'\)",
        ),
        "a pattern for nothing": (
            fit(layers="blocks.*"),
            value,
            r"layers='blocks.\*' matches no layer",
            r"expected a name or glob",
            r"among 'fc0', 'fc1'",
        ),
        "activations not finite": (
            fit(data=[(x[:3], y[:3]), (bad_x[3:], y[3:])]),
            FloatingPointError,
            r"layer 'fc0': activations of batch 1 hold NaN or infinity",
            *finite,
        ),
        "gradients not finite": (
            fit(twin.model, twin.objective, [(x[:3], twin.y[:3]), (x[3:], bad_y[3:])], labels="observed"),
            FloatingPointError,
            r"layer 'fc0': output gradients of batch 1 hold NaN or infinity",
            *finite,
        ),
        "nothing to fit": (
            fit(data=[]),
            value,
            r"train is empty",
            r"Expected at least one",
            r"\(inputs, targets\) batch",
        ),
        "damping negative": (
            score(-1),
            value,
            r"layer 'fc0' is -1.0",
            r"expected a finite number ≥ 0",
            r"0.1 · mean eigenvalue is the default",
        ),
        "damping NaN": (
            score(float("nan")),
            value,
            r"layer 'fc0' is nan",
            r"expected a finite number",
            r"is the default",
        ),
        "damping 0, singular": (
            score(0),
            value,
            r"layer 'fc\d': damping 0 with a singular curvature \(smallest",
            r"expected damping > 0",
            r"Leave it at None .* or use relative\(0.01\)",
        ),
        "damping 0, singular, dense": (
            score(0, dense),
            value,
            r"damped matrix is singular \(eigenvalues from",
            r"expected damping > 0",
            r"for instance relative\(0.01\)",
        ),
        "no gradient reaches a layer": (
            score(None, flat, zero.model),
            value,
            r"layer 'fc0': all its eigenvalues are 0",
            r"expected damping > 0",
            r"Give it as a number, or leave the layer out",
        ),
        "damping for one layer of two": (
            score({"fc0": 0.1}),
            value,
            r"no number for layer 'fc1'",
            r"expected one for every layer",
            r"Start from damping_of",
        ),
        "damping for an unknown layer": (
            score({"fc0": 1, "fc1": 1, "fc7": 1}),
            value,
            r"'fc7' is not a layer",
            r"expected one of",
            r"fc0, fc1",
        ),
        "damping that is no number": (
            score("small"),
            kind,
            r"is 'small'",
            r"expected a number",
            r"relative\(factor\) or None",
        ),
        "a Hessian without damping": (
            score(None, inflib.hessian(model, objective, train, progress=False)),
            value,
            r"Hessian has no default damping",
            r"may be indefinite",
            r"give damping=, for instance damping_of\(gauss_newton",
        ),
        "keep": (score(keep=("head",)), value, r"keep='head'", r"some of \('layer', 'token'\)", r"Leave it out"),
        "measurement": (
            score(measurement="loss"),
            value,
            r"measurement='loss' is not defined for CrossEntropy",
            r"expected one of log_likelihood, margin, logit",
            r"or a callable \(outputs, targets\) -> \(B,\)",
        ),
        "labels": (
            fit(labels="true"),
            value,
            r"labels='true'",
            r"expected one of 'expected', 'sampled', 'observed'",
            r"or None for the default",
        ),
        "draws 0": (fit(draws=0), value, r"draws=0", r"expected a whole number", r"Leave it at draws=1"),
        "draws 2.0": (fit(draws=2.0), value, r"draws=2.0", r"expected a whole number", r"Leave it at draws=1"),
        "draws '2'": (fit(draws="2"), value, r"draws='2'", r"expected a whole number", r"Leave it at draws=1"),
        "sharing": (
            fit(sharing="mean"),
            value,
            r"sharing='mean'",
            r"expected 'expand' .*, 'reduce' .* or 'gradients'",
            r"Leave it at sharing='expand'",
        ),
        # whatever the labels: the facts of a curvature hold its seed
        "seed negative": (fit(seed=-1), value, r"seed is -1", r"expected a whole number from 0", r"Leave it at seed=0"),
        "seed too large": (fit(seed=2**64), value, r"seed is 18446744073709551616", r"to 2\*\*64 − 1", r"seed=0"),
        "seed with a fraction": (
            fit(seed=1.5, labels="sampled"),
            value,
            r"seed is 1.5",
            r"expected a whole number",
            r"seed=0",
        ),
        "seed None": (fit(seed=None, labels="sampled"), value, r"seed is None", r"expected a whole number", r"seed=0"),
        "classes from 1": (
            fit(data=[(x, torch.tensor([1, 2, 3, 1, 2]))]),
            value,
            r"targets from 1 to 3",
            r"expected 0 to 2, because the model has 3 outputs",
            r"Number the classes from 0",
        ),
        "classes below 0": (
            score(q=[(x, torch.tensor([-100, 2, 1, 1, 2]))]),
            value,
            r"targets from -100 to 2",
            r"expected 0 to 2",
            r"Number the classes from 0",
        ),
        "classes in a column": (
            fit(data=[(x, y[:, None])]),
            value,
            r"CrossEntropy got targets of shape \(5, 1\)",
            r"expected \(5,\): class indices",
            r"y.reshape\(\(5,\)\)",
        ),
        "classes as one-hot": (
            fit(data=[(x, torch.eye(3)[y].long())]),
            value,
            r"int64 targets of shape \(5, 3\)",
            r"expected class indices \(5,\)",
            r"targets.argmax\(1\)",
        ),
        **{
            f"classes as {d}": (
                fit(data=[(x, y.to(d))]),
                value,
                rf"got {d} targets",
                r"expected class indices",
                r"targets.long\(\)",
            )
            for d in (torch.float64, torch.int32, torch.uint8, torch.bool)
        },
        "numbers without their axis": (
            fit(twin.model, twin.objective, [(x, twin.y[:, 0])]),
            value,
            r"SquaredError got targets of shape \(5,\)",
            r"expected \(5, 3\): one target per output",
            r"look at what the batches hold",
        ),
        "numbers that are bool": (
            fit(twin.model, twin.objective, [(x, twin.y > 0)]),
            value,
            r"SquaredError got torch.bool targets",
            r"expected numbers",
            r"targets.to\(torch.float64\)",
        ),
        "yes and no as -1 and 1": (
            fit(yes_no.model, yes_no.objective, [(x, 2 * yes_no.y - 1)]),
            value,
            r"Bernoulli got targets from -1 to 1",
            r"expected values in \[0, 1\]",
            r"Rescale them",
        ),
        "inputs in another dtype": (
            fit(data=[(x.float(), y)]),
            value,
            r"inputs are torch.float32, the model is torch.float64",
            r"expected one dtype",
            r"x.to\(torch.float64\) or model.to\(torch.float32\)",
        ),
        "queries in another dtype": (
            score(q=[(x.half(), y)]),
            value,
            r"inputs are torch.float16",
            r"expected one dtype",
            r"Convert one of them",
        ),
        "inputs on another device": (
            fit(data=[(x.to("meta"), y)]),
            value,
            r"inputs are on meta, the model is on cpu",
            *devices,
        ),
        "targets on another device": (
            fit(data=[(x, y.to("meta"))]),
            value,
            r"targets on meta, outputs on cpu",
            r"expected one device",
            r"y.to\('cpu'\)",
        ),
        "a curvature of another shape": (
            score(net=make(widths=(3, 6, 3)).model),
            value,
            r"layer 'fc0'.*the model has \(6, 4\)",
            r"made for \(4, 4\)",
            r"refit it",
        ),
        "a curvature of other layers": (
            score(net=nn.Sequential(nn.Linear(3, 3))),
            value,
            r"layers='fc0' matches no layer",
            r"expected a name or glob",
            r"among '0'",
        ),
        "an index's tokens": (
            lambda: inflib.TrainIndex.build(two, objective, train, two_curvature, progress=False).influence(
                two, objective, train, keep=("token",)
            ),
            value,
            r"keep='token'",
            r"some of \('layer',\)",
            r"Split by token with inflib.influence",
        ),
        "an index without a basis": (
            lambda: inflib.TrainIndex.build(model, objective, train, dense, progress=False),
            kind,
            r"Dense has none",
            r"needs an eigenbasis",
            r"Use ekfac or kfac",
        ),
        "an index in another basis": (
            lambda: index.influence(model, objective, train, observed),
            value,
            r"EK-FAC curvature has another eigenbasis",
            r"expected one fitted with the same data",
            r"Build an index for it",
        ),
        "no training examples": (
            lambda: predicted_change(torch.ones(1, 1), 0),
            value,
            r"n_train=0",
            r"at least 1",
            r"Use len\(dataset\)",
        ),
        "NaN training examples": (
            lambda: predicted_change(torch.ones(1, 1), float("nan")),
            value,
            r"n_train=nan",
            r"at least 1",  # type: ignore[arg-type]
            r"Use len\(dataset\)",
        ),
        "a model that returns a tuple": (
            fit(Pairs()),
            kind,
            r"returned a tuple of 2",
            r"expected a tensor or an object with .logits",
            r"Wrap the model",
        ),
        "batches of three": (
            fit(data=[(x, x, y)]),
            kind,
            r"train: batch 0 is a tuple of 3",
            r"expected a pair",
            r"Wrap several model inputs",
        ),
        "a generator": (
            score(a=(b for b in train)),
            kind,
            r"train is a one-shot iterator",
            r"expected something that can be walked",
            again,
        ),
        "a shuffling loader": (
            score(a=DataLoader(TensorDataset(x, y), shuffle=True)),
            value,
            r"train does not keep its order \(its sampler",
            r"expected the same examples in the same order",
            r"shuffle=False",
        ),
    }


def shortcomings(row: Row) -> str:
    """What is wrong with the error that a row's call raises; nothing where all is well."""
    call, error, *parts = row
    try:
        call()
    except error as raised:
        said = str(raised)
        missing = [part for part in parts if not re.search(part, said, re.DOTALL)]
        if type(raised) is error and not missing and said[-1] in ".)":
            return ""
        return f"{type(raised).__name__} without {missing}: {said}"
    except Exception as other:
        return f"{type(other).__name__} in place of {error.__name__}: {other}"
    return "no error"


def test_an_error_says_what_came_what_was_expected_and_the_fix() -> None:
    wrong = {what: found for what, row in errors().items() if (found := shortcomings(row))}
    assert not wrong, "\n".join(f"{what}: {found}" for what, found in wrong.items())


def test_the_check_of_messages_sees_what_they_lack() -> None:
    def fails(said: str, error: type[Exception] = ValueError) -> Callable[[], Any]:
        def call() -> None:
            raise error(said)

        return call

    whole = "x is 1; expected 2. Use 2."
    for row, found in (
        ((fails(whole), ValueError, "is 1", "expected 2", "Use 2"), r"^$"),
        ((fails(whole), ValueError, "is 1", "expected 2", "Use 3"), r"without \['Use 3'\]"),
        ((fails(whole, UnicodeError), ValueError, "is 1", "expected 2", "Use 2"), r"^UnicodeError without"),
        ((fails(whole, KeyError), ValueError, "is 1", "expected 2", "Use 2"), r"KeyError in place of ValueError"),
        ((lambda: None, ValueError, "is 1", "expected 2", "Use 2"), r"^no error$"),
    ):
        assert re.search(found, shortcomings(row)), (found, shortcomings(row))
