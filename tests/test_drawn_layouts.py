"""Random models that read and mix their examples in whatever way: right for each example alone, or refused.

A model is drawn as a list of steps on x (B, T, d): a layer that is given x in some arrangement, then a step across tokens
or, for some, across examples. ``OWN`` arrangements keep an example's rows together, so nothing drawn of them alone may be
refused; ``ODD`` ones sort, route or reuse, and ``ACROSS`` makes one example see another.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from alone import QUIET, Case, apart, class_loss, dots_apart
from hypothesis import given
from hypothesis import strategies as st
from networks import drawn
from torch import Tensor, nn

from inflib import CrossEntropy, ekfac, identity, influence
from inflib.kfac import second_moments

pytestmark = [pytest.mark.usefixtures("float64"), pytest.mark.filterwarnings("ignore::inflib.RowsNote")]

WIDTH, CLASSES = 4, 3
Arrangement = Callable[[nn.Module, Tensor], Tensor]  # (layer, x (B, T, d)) → (B, T, d)


def windows(layer: nn.Module, x: Tensor, slowest: bool = False) -> Tensor:
    """Windows of two tokens, where there are so many, as rows of their own; ``slowest``: before the batch."""
    B, T, d = x.shape
    size = 2 if T % 2 == 0 else 1
    split = x.reshape(B, T // size, size, d)
    split = split.transpose(0, 1) if slowest else split
    seen = layer(split.flatten(0, 1)).reshape(split.shape)
    return (seen.transpose(0, 1) if slowest else seen).reshape(x.shape)


def second_as_rows(layer: nn.Module, x: Tensor) -> Tensor:
    turned = x.transpose(0, 1)
    return layer(turned.flatten(0, 1)).reshape(turned.shape).transpose(0, 1)


def in_pairs(layer: nn.Module, x: Tensor, beside: bool = False) -> Tensor:
    """x and −x in one call, one batch after the other or each beside its own."""
    both = layer(torch.stack([x, -x], dim=1 if beside else 0).flatten(0, 1))
    first, second = (both[0::2], both[1::2]) if beside else both.chunk(2)
    return first - second / 2


OWN: dict[str, Arrangement] = {
    "as it is": lambda layer, x: layer(x),
    "tokens as rows": lambda layer, x: layer(x.flatten(0, 1)).reshape(x.shape),
    "batch second": lambda layer, x: layer(x.transpose(0, 1)).transpose(0, 1),
    "batch second, as rows": second_as_rows,
    "batch third": lambda layer, x: layer(x[:, None].permute(1, 2, 0, 3)).permute(2, 0, 1, 3)[:, 0],
    "windows": windows,
    "windows slowest": lambda layer, x: windows(layer, x, slowest=True),
    "pairs": in_pairs,
    "pairs beside": lambda layer, x: in_pairs(layer, x, beside=True),
    "first token": lambda layer, x: torch.cat([layer(x[:, :1]), x[:, 1:]], dim=1),
    "token by token": lambda layer, x: torch.stack([layer(x[:, t]) for t in range(x.shape[1])], dim=1),
}


def sorted_rows(layer: nn.Module, x: Tensor) -> Tensor:
    order = x[:, 0, 0].argsort()
    return layer(x[order])[order.argsort()]


def routed(layer: nn.Module, x: Tensor) -> Tensor:
    """Some of the tokens."""
    tokens = x.flatten(0, 1)
    own = (tokens[:, 0] > 0).nonzero().flatten()
    return tokens.index_add(0, own, layer(tokens[own])).reshape(x.shape)


ODD: dict[str, Arrangement] = {
    "sorted": sorted_rows,
    "reversed": lambda layer, x: layer(x.flip(0)).flip(0),
    "two ways": lambda layer, x: layer(x) + layer(x.transpose(0, 1)).transpose(0, 1) / 2,
    "one by one": lambda layer, x: torch.stack([layer(one) for one in x]),
    "routed tokens": routed,
    "outside its module": lambda layer, x: layer(x) + nn.functional.linear(x.sin(), layer.weight) / 4,
}
ALONG: dict[str, Callable[[Tensor], Tensor]] = {
    "nothing": lambda x: x,
    "causal": lambda x: x + x.cumsum(1) / 3,
    "attention": lambda x: x + (x @ x.mT / 2).softmax(-1) @ x,
}
ACROSS: dict[str, Callable[[Tensor], Tensor]] = {
    "batch mean": lambda x: x - x.mean(0) / 3,
    "batch mean, cut off": lambda x: x - x.mean(0).detach() / 3,
    "neighbour": lambda x: torch.cat([x[:1], x[1:] + x[:-1] / 4]),
}
POOLS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda x: x.mean(1),
    "first": lambda x: x[:, 0],
    "last": lambda x: x[:, -1],
}


class Drawn(nn.Module):
    def __init__(self, steps: list[tuple[str, str]], pool: str):
        super().__init__()
        self.steps, self.pool = steps, pool
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH, bias=n % 2 == 0) for n in range(len(steps)))
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        for (arrangement, mixing), layer in zip(self.steps, self.layers, strict=True):
            x = (ALONG | ACROSS)[mixing](torch.tanh((OWN | ODD)[arrangement](layer, x)) + x / 2)
        return self.head(POOLS[self.pool](x))


def cases(own: bool) -> st.SearchStrategy[Case]:
    """Models with batches (B, T) of up to five each, the square ones often.

    One to four batches of what is ``own``; else one or two, both of which are looked at: of more, one later one is.
    """
    arrangements, mixings = (OWN, ALONG) if own else (OWN | ODD, ALONG | ACROSS)
    step = st.tuples(st.sampled_from(list(arrangements)), st.sampled_from(list(mixings)))
    shape = st.integers(1, 5).flatmap(lambda T: st.tuples(st.sampled_from([T, 1, 2, 3, 5]), st.just(T)))

    def build(steps: list[tuple[str, str]], pool: str, shapes: list[tuple[int, int]], seed: int) -> Case:
        torch.manual_seed(seed)
        model = Drawn(steps, pool).eval()
        data = [(torch.randn(B, T, WIDTH), torch.randint(0, CLASSES, (B,))) for B, T in shapes]
        return Case(model, CrossEntropy(), class_loss, data)

    return st.builds(
        build,
        st.lists(step, min_size=1, max_size=3),
        st.sampled_from(list(POOLS)),
        st.lists(shape, min_size=1, max_size=4 if own else 2),
        st.integers(0, 2**16),
    )


def compared(case: Case) -> str:
    """The words of a refusal; "" where all is right, which is asserted."""
    model, objective, data = case.model, case.objective, case.batches
    C = identity(model, objective)
    try:
        scores = influence(model, objective, data, data, C, **QUIET)
        fit = ekfac(model, objective, data, labels="observed", **QUIET)
        moments = second_moments(model, objective, data, labels="observed", **QUIET)
    except ValueError as error:
        return str(error)
    truth = case.gradients(C.shapes)
    assert dots_apart(scores, truth) < 1e-10
    for name, (A, S) in case.moments(C.shapes).items():
        assert apart(moments.A(name), A) < 1e-10 and apart(moments.S(name), S) < 1e-10
        Λ = (fit.Q_S[name].T @ truth[name] @ fit.Q_A[name]).square().mean(0)
        assert apart(fit.eigenvalues[name], Λ) < 1e-10
    return ""


@drawn(30)
@given(cases(own=True))
def test_rows_that_are_an_examples_own_are_found(case: Case) -> None:
    assert compared(case) == ""


@drawn(50)
@given(cases(own=False))
def test_whatever_is_drawn_is_right_or_refused(case: Case) -> None:
    assert len(compared(case)) < 700
