"""The gradient of a score in the training input, against finite differences of the score itself, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from kinds import Texts, kinds, shaken
from networks import Case, make, zoo
from oracle import assert_close
from torch import Tensor

from inflib import CrossEntropy, ekfac, gauss_newton, influence, perturbation, predicted_change

pytestmark = [pytest.mark.usefixtures("float64"), pytest.mark.filterwarnings("ignore::inflib.CoverageNote")]
QUIET: dict[str, Any] = {"progress": False}
STEP = 1e-4


def places(x: Tensor) -> list[int]:
    """A few numbers of the input, drawn."""
    return torch.randperm(x.numel(), generator=torch.Generator().manual_seed(0))[:8].tolist()


def by_differences(case: Case, fit: Any, x: Tensor, **options: Any) -> Tensor:
    """Central differences of the scores in a few numbers of the examples' inputs, (Q, 8)."""
    found = []
    for place in places(x):
        n = place // x[0].numel()
        sides = []
        for sign in (1, -1):
            moved = x.clone()
            moved.view(-1)[place] += sign * STEP
            one = [(moved[n : n + 1], case.y[n : n + 1])]
            sides.append(influence(case.model, case.objective, one, case.queries, fit, **options, **QUIET)[:, 0])
        found.append((sides[0] - sides[1]) / (2 * STEP))
    return torch.stack(found, dim=1)


def at_places(found: Tensor, x: Tensor) -> Tensor:
    """The same numbers' gradients, of (Q, N, *shape) → (Q, 8)."""
    return found.flatten(1)[:, places(x)]


CASES = {
    "perceptron": make,
    "tokens": lambda: zoo("tokens", n=3),
    "normalised tokens": lambda: kinds("LayerNorm, tokens", n=3),
}


@pytest.mark.parametrize("which", CASES)
@pytest.mark.parametrize("curvature", [ekfac, gauss_newton])
def test_it_is_the_slope_of_the_score_in_every_number_of_the_input(which: str, curvature: Any) -> None:
    case = CASES[which]()
    fit = curvature(case.model, case.objective, case.train, layers="all", **QUIET)
    found = perturbation(case.model, case.objective, case.train, case.queries, fit, **QUIET)
    assert found.shape == (len(case.query_y), *case.x.shape)
    assert_close(at_places(found, case.x), by_differences(case, fit, case.x), 1e-6)


def test_it_follows_the_measurement_and_the_damping_and_does_not_depend_on_chunks() -> None:
    case = make()
    fit = ekfac(case.model, case.objective, case.train, **QUIET)
    options: dict[str, Any] = {"measurement": "margin", "damping": 0.3}
    found = perturbation(case.model, case.objective, case.train, case.queries, fit, **options, **QUIET)
    assert_close(at_places(found, case.x), by_differences(case, fit, case.x, **options), 1e-6)
    again = perturbation(case.model, case.objective, case.train, case.queries, fit, max_bytes=1, **options, **QUIET)
    assert_close(again, found, 1e-12)


def test_a_small_change_of_an_example_moves_its_predicted_change_as_the_gradient_says() -> None:
    case = make()
    fit = ekfac(case.model, case.objective, case.train, **QUIET)
    slope = perturbation(case.model, case.objective, case.train, case.queries, fit, **QUIET)
    δ = 1e-5 * torch.randn_like(case.x)
    scores = [
        influence(case.model, case.objective, [(x, case.y)], case.queries, fit, **QUIET) for x in (case.x, case.x + δ)
    ]
    moved = predicted_change(scores[1] - scores[0], len(case.y), remove=False)
    assert_close((slope * δ).flatten(2).sum(2) / len(case.y), moved, 1e-4)


def test_an_input_among_several_is_named() -> None:
    case = zoo("inputs by name", n=3)
    fit = ekfac(case.model, case.objective, case.train, **QUIET)
    args = (case.model, case.objective, case.train, case.queries, fit)
    with pytest.raises(TypeError, match=r"2 floating-point tensors.*Name it, at="):
        perturbation(*args, **QUIET)
    with pytest.raises(ValueError, match=r"at='three'; expected the name of an input \(\['one', 'other'\]\)"):
        perturbation(*args, at="three", **QUIET)
    found = perturbation(*args, at="other", **QUIET)
    assert found.shape == (2, *case.x["other"].shape)
    moved = {**case.x, "other": case.x["other"] + 1e-6}
    scores = [influence(*args[:2], [(x, case.y)], case.queries, fit, **QUIET) for x in (case.x, moved)]
    assert_close(found.sum(2) * 1e-6, scores[1] - scores[0], 1e-4)


def test_token_ids_are_changed_at_their_embedding() -> None:
    model, ids = shaken(Texts()), torch.tensor([[1, 2, 3], [4, 5, 0]])
    data = [(ids, torch.tensor([0, 2]))]
    fit = ekfac(model, CrossEntropy(), data, **QUIET)
    with pytest.raises(TypeError, match=r"token ids have no derivative, their embedding has"):
        perturbation(model, CrossEntropy(), data, data, fit, **QUIET)
    found = perturbation(model, CrossEntropy(), data, data, fit, at="token", **QUIET)
    assert found.shape == (2, 2, 3, 4)

    # only example 0 holds token 1, at its first position: moving that row of the table moves nothing else
    def scores() -> Tensor:
        plain = ekfac(model, CrossEntropy(), data, **QUIET)
        return influence(model, CrossEntropy(), data, data, _refitted(fit, plain), damping=0.1, **QUIET)

    slope = perturbation(model, CrossEntropy(), data, data, fit, damping=0.1, at="token", **QUIET)[1, 0, 0]
    differences = []
    for j in range(4):
        sides = []
        for sign in (1, -1):
            with torch.no_grad():
                model.token.weight[1, j] += sign * STEP
            sides.append(scores()[1, 0])
            with torch.no_grad():
                model.token.weight[1, j] -= sign * STEP
        differences.append((sides[0] - sides[1]) / (2 * STEP))
    assert_close(slope, torch.stack(differences), 1e-6)


def _refitted(fit: Any, at: Any) -> Any:
    """The first fit's numbers as a curvature of the weights as they are now."""
    from dataclasses import replace

    return replace(fit, facts=at.facts)
