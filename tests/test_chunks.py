"""The numbers again, with every chunk, strip and group as small as it gets: each path that large data takes is taken.

Oracles and cases are those of the tests imported here; what is tiny is how much is worked on at once.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from networks import zoo
from oracle import assert_close
from test_ekfac import (  # noqa: F401
    test_eigenvalues_are_right_in_a_basis_that_is_not_symmetric,
    test_the_trace_is_that_of_the_exact_block,
)
from test_exact import test_exact_curvatures_do_not_depend_on_batches, test_products_agree_with_the_matrix  # noqa: F401
from test_index import (  # noqa: F401
    test_scores_are_those_of_influence,
    test_self_influence_agrees_with_the_pass_over_the_data,
)
from test_kfac import test_factors_are_the_second_moments_of_inputs_and_output_gradients  # noqa: F401
from test_scoring import test_drawn_networks_over_positions_are_right_from_gradients_to_scores  # noqa: F401
from test_tokens import test_output_tokens_add_up_to_the_sequence  # noqa: F401

import inflib
from inflib import TrainIndex, ekfac, influence, self_influence
from inflib.batches import BYTE_BUDGET, CACHED_BYTES
from inflib.contractions import contract
from inflib.hooks import Pair

pytestmark = pytest.mark.usefixtures("float64", "tiny")
TINY = 200  # bytes: some two dozen numbers


def functions() -> Iterator[Any]:
    """Every function and method of the core."""
    for found in pkgutil.iter_modules(inflib.__path__, "inflib."):
        module = importlib.import_module(found.name)
        for value in vars(module).values():
            parts = vars(value).values() if inspect.isclass(value) else [value]
            for part in parts:
                part = (
                    inspect.unwrap(getattr(part, "__func__", part))
                    if callable(part) or hasattr(part, "__func__")
                    else part
                )
                if inspect.isfunction(part) and part.__module__.startswith("inflib"):
                    yield part


@pytest.fixture(scope="module")
def tiny() -> Iterator[None]:
    """STRIP, CACHED_BYTES and BYTE_BUDGET of a few bytes, also where they are a function's default."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("inflib.symmetric.STRIP", 1)
        patched.setattr("inflib.batches.CACHED_BYTES", TINY)
        patched.setattr("inflib.batches.BYTE_BUDGET", TINY)
        for function in set(functions()):
            positional, named = function.__defaults__ or (), function.__kwdefaults__ or {}
            if BYTE_BUDGET in [x for x in (*positional, *named.values()) if type(x) is int]:
                small = {name: TINY if x is BYTE_BUDGET else x for name, x in named.items()}
                patched.setattr(function, "__defaults__", tuple(TINY if x is BYTE_BUDGET else x for x in positional))
                patched.setattr(function, "__kwdefaults__", small)
        yield


def test_everything_is_small_here_and_was_not() -> None:
    assert BYTE_BUDGET > CACHED_BYTES > 1000 * TINY
    assert inflib.batches.CACHED_BYTES == inflib.batches.cached_bytes(torch.zeros(1)) == TINY
    for function in (influence, self_influence, TrainIndex.scores):
        assert inspect.signature(inspect.unwrap(function)).parameters["max_bytes"].default == TINY
    assert len(list(inflib.batches.chunks(10, 100))) == 5


@pytest.mark.parametrize("shape", [(7, 9, 5, 3), (7, 9, 3, 5), (30, 2, 4, 4), (2, 30, 4, 4)])
@pytest.mark.parametrize("T", [1, 3])
def test_every_chunk_of_rows_and_of_queries_is_its_own(shape: tuple[int, int, int, int], T: int) -> None:
    Q, b, o, i = shape
    P, pair = torch.randn(Q, o, i), Pair(torch.randn(b, T, i), torch.randn(b, T, o))
    expected = torch.einsum("qoi,nto,nti->qn", P, pair.g, pair.a)
    assert_close(contract({"": P}, {"": pair}), expected, 1e-12)
    assert_close(contract({"": P}, {"": pair}, max_bytes=10**9), expected, 1e-12)


@pytest.mark.parametrize("animal", ["residual", "tokens", "convolution"])
def test_scores_and_self_influence_are_those_of_one_dense_solve(animal: str) -> None:
    case = zoo(animal)
    C = ekfac(case.model, case.objective, case.train, layers=case.layers, progress=False)
    numbers = dict.fromkeys(C.layers, 0.1)
    expected = case.problem.influence(C.to_dense(), numbers, *case.queries[0])
    found = influence(case.model, case.objective, case.train, case.queries, C, numbers, progress=False)
    assert_close(found, expected, 1e-10)
    own = self_influence(case.model, case.objective, case.train, C, numbers, progress=False)
    assert_close(own, case.problem.influence(C.to_dense(), numbers, case.x, case.y).diagonal(), 1e-10)
