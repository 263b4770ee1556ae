"""The influence of one token: of its loss as an output, of its embedding as an input, by slow means and by fast."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from languages import LanguageCase, cut, language, languages
from networks import drawn, snapshot
from oracle import assert_close
from torch import Tensor, nn
from torch.func import functional_call

from inflib import CrossEntropy, Pair, ekfac, gauss_newton, influence
from inflib import queries as inflib_queries
from inflib.tokens import input_tokens, output_tokens

pytestmark = [pytest.mark.usefixtures("float64"), pytest.mark.filterwarnings("ignore::inflib.CoverageNote")]
QUIET: dict[str, Any] = {"progress": False}


def asked(function: Any, case: LanguageCase, C: Any, **options: Any) -> Tensor:
    train, queries = options.pop("train", case.batches()), options.pop("queries", case.asked)
    return function(case.model, case.objective, train, queries, C, 0.1, **QUIET, **options)


@given(languages())
@drawn(6)
def test_output_tokens_add_up_to_the_sequence(case: LanguageCase) -> None:
    C = ekfac(case.model, case.objective, case.train, **QUIET)
    found = asked(output_tokens, case, C)
    assert_close(found.sum(-1), asked(influence, case, C), 1e-10)
    targets = case.batches()[0][1]
    assert found.shape == (len(case.queries), *targets.shape)
    assert bool((found[:, targets == -100] == 0).all())


def test_an_output_token_is_the_sequence_with_that_target_alone() -> None:
    case = language()
    for fit in (ekfac, gauss_newton):
        C = fit(case.model, case.objective, case.train, **QUIET)
        found = asked(output_tokens, case, C)
        (inputs, targets) = case.batches()[0]
        for n in range(len(targets)):
            for t in (targets[n] != -100).nonzero().flatten().tolist():
                alone = torch.full_like(targets[n : n + 1], -100)
                alone[0, t] = targets[n, t]
                one = [({k: x[n : n + 1] for k, x in inputs.items()}, alone)]
                assert_close(found[:, n, t], asked(influence, case, C, train=one)[:, 0], 1e-10)


def test_an_input_token_is_the_slope_in_its_embeddings_scale() -> None:
    """Finite differences of whole sequences' scores, with one embedding scaled by hand."""
    case = language()
    C = ekfac(case.model, case.objective, case.train, **QUIET)
    found = asked(input_tokens, case, C)
    (inputs, targets) = case.batches()[0]
    problem = case.problem
    x, y = case.asked[0]
    P = torch.linalg.solve(C.to_dense() + problem.damping(0.1), -problem.gradients(y, None, x).T)  # (D, Q)
    h = 1e-5
    for n, t in ((0, 0), (0, 3), (1, 1), (2, 2)):
        scores = []
        for scale in (1 + h, 1 - h):

            def hook(_module: Any, _args: Any, e: Tensor, scale: float = scale, n: int = n, t: int = t) -> Tensor:
                e = e.clone()
                e[0, t] = e[0, t] * scale
                return e

            handle = case.model.embed.register_forward_hook(hook)

            def loss(theta: Tensor, n: int = n) -> Tensor:
                own = {k: theta[at].reshape(problem.own[k].shape) for k, at in problem.where.items()}
                row = {k: v[n : n + 1] for k, v in inputs.items()}
                f = functional_call(case.model, (own, problem.rest), (), row)
                return case.objective.loss(f, targets[n : n + 1]).sum()

            theta = problem.theta.requires_grad_()
            scores.append(-torch.autograd.grad(loss(theta), theta)[0] @ P)
            handle.remove()
        assert_close(found[:, n, t], (scores[0] - scores[1]) / (2 * h), 1e-7)


def test_padding_that_is_read_by_nobody_has_no_influence_and_its_side_does_not_matter() -> None:
    case = language()
    C = ekfac(case.model, case.objective, case.train, **QUIET)
    for function in (output_tokens, input_tokens):
        right = asked(function, case, C)
        left = asked(function, case, C, train=case.batches(side="left"))
        one = asked(function, case, C, train=case.batches([1, 2, 1]))
        assert_close(one, right, 1e-10)
        for n, sequence in enumerate(case.sequences):
            length = len(sequence) - 1
            assert bool((right[:, n, length:] == 0).all())
            assert_close(left[:, n, left.shape[2] - length :], right[:, n, :length], 1e-10)


def test_a_few_bytes_at_a_time_change_nothing() -> None:
    case = language()
    C = ekfac(case.model, case.objective, case.train, **QUIET)
    for function in (output_tokens, input_tokens):
        assert_close(asked(function, case, C, max_bytes=1), asked(function, case, C), 1e-12)


def test_a_few_bytes_hold_one_query_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    case = language(queries=(4, 3, 4))
    C = ekfac(case.model, case.objective, case.train, **QUIET)
    sizes, rotated = [], inflib_queries.rotated_gradients

    def watched(pair: Pair, *basis: Tensor | None) -> Iterator[Tensor]:
        sizes.append(len(pair.a))
        return rotated(pair, *basis)

    monkeypatch.setattr(inflib_queries, "rotated_gradients", watched)
    for function in (output_tokens, input_tokens):
        few = asked(function, case, C, max_bytes=1)
        assert sizes and max(sizes) == 1
        assert_close(few, asked(function, case, C), 1e-12)
        assert max(sizes) == 3
        sizes.clear()


def test_the_model_is_left_as_it_was() -> None:
    case = language()
    C = ekfac(case.model, case.objective, case.train, **QUIET)
    before = snapshot(case.model)
    for function in (output_tokens, input_tokens):
        asked(function, case, C)
    assert snapshot(case.model) == before


class TwoReaders(nn.Module):
    """Two embeddings of the same ids."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner, self.extra = inner, nn.Embedding(4, 4, dtype=torch.float64)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.inner(input_ids, attention_mask) + self.extra(input_ids)


def test_the_embedding_must_be_known() -> None:
    case = language()
    case.model = TwoReaders(case.model)
    C = ekfac(case.model, case.objective, case.train, layers="inner.up", **QUIET)
    with pytest.raises(ValueError, match=r"2 nn.Embedding modules read the token ids.*Name it: embedding="):
        asked(input_tokens, case, C)
    with pytest.raises(
        ValueError, match=r"embedding='wte'; expected the name of an nn.Embedding, one of \['inner.embed'"
    ):
        asked(input_tokens, case, C, embedding="wte")
    both = [asked(input_tokens, case, C, embedding=name) for name in ("inner.embed", "extra")]
    assert float((both[0] - both[1]).abs().max()) > 1e-3


def test_an_embedding_of_positions_is_not_that_of_the_tokens() -> None:
    class Placed(nn.Module):
        def __init__(self, inner: nn.Module):
            super().__init__()
            self.inner, self.places = inner, nn.Embedding(8, 4, dtype=torch.float64)

        def forward(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor) -> Tensor:
            return self.inner(input_ids, attention_mask) + self.places(position_ids)

    case = language(positions=True)
    case.model = Placed(case.model)
    C = ekfac(case.model, case.objective, case.train, layers="inner.*", **QUIET)
    assert torch.equal(asked(input_tokens, case, C), asked(input_tokens, case, C, embedding="inner.embed"))


def test_another_objective_is_refused() -> None:
    case = language()
    C = ekfac(case.model, case.objective, case.train, **QUIET)
    with pytest.raises(TypeError, match=r"got CrossEntropy\(\); expected NextToken\(\)"):
        output_tokens(case.model, CrossEntropy(), case.train, case.asked, C)  # type: ignore[arg-type]


def test_a_query_of_another_length_is_asked_as_well() -> None:
    case = language()
    C = ekfac(case.model, case.objective, case.train, **QUIET)
    queries = cut(case.queries, [0, 0], [1, 1])
    assert_close(asked(output_tokens, case, C, queries=queries), asked(output_tokens, case, C), 1e-11)


@pytest.mark.parametrize("of", [output_tokens, input_tokens])
def test_queries_may_be_pushed_through_together_or_one_by_one(of: Any) -> None:
    case = language(queries=(4, 3, 5, 2, 4))
    curvature = ekfac(case.model, case.objective, case.train, layers=case.layers, progress=False)
    arguments = (case.model, case.objective, case.train, case.asked, curvature)
    whole = of(*arguments, progress=False)
    assert len(whole) == 5
    for max_bytes in (1, 20_000, 60_000):
        assert_close(of(*arguments, max_bytes=max_bytes, progress=False), whole, 1e-12)
