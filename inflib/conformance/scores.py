"""Checks of scores as such: their sign, their symmetry, their limits, and cases in which they are known exactly."""

from __future__ import annotations

import torch
from torch import nn

from . import cases, oracle
from .checking import check, distance, kind
from .library import Case, Library

ANY = "expected labels | observed labels"
λ = 0.05  # a damping in the midst of the small networks' eigenvalues


def steady(library: Library, case: Case) -> Case:
    """The case with labels in which nothing is random."""
    return case.but(labels=kind(library, "expected", "observed"))


@check(ANY, "damping")
def scores_are_symmetric(library: Library) -> float:
    """With the training examples for queries, the score of n for q is that of q for n, the curvature being symmetric.
    Sees a rotation undone by other than its inverse, as where svd's third result, Vᵀ, is taken for V."""
    case = cases.classifier()
    case = steady(library, case.but(queries=case.train))
    found = library.scores(library.fit(case), case, λ)
    return distance(found, found.T)


@check(ANY, "damping")
def an_example_speaks_for_itself(library: Library) -> float:
    """The score of a training example for itself is ∇ℓᵀ (C + λ)⁻¹ ∇ℓ, and cannot be negative. The error is the share
    of examples for which it is not above 0. Sees the flipped sign."""
    case = cases.classifier()
    case = steady(library, case.but(queries=case.train))
    own = library.scores(library.fit(case), case, λ).diagonal()
    return float((own <= 0).double().mean())


@check(ANY, "damping", "self-influence")
def self_influence_is_the_diagonal(library: Library) -> float:
    """Self-influence, which libraries compute by another way, is the diagonal of the training examples' scores for
    each other. Sees a mistake that one of the two ways has alone."""
    case = cases.classifier()
    case = steady(library, case.but(queries=case.train))
    fitted = library.fit(case)
    return distance(library.self_influence(fitted, case, λ), library.scores(fitted, case, λ).diagonal())


@check(ANY, "damping")
def more_damping_leaves_less(library: Library) -> float:
    """∇ℓᵀ (C + λ)⁻¹ ∇ℓ falls as λ grows, for every example. The error is the share of steps that do not fall. Sees
    a multiplication by the damped eigenvalues in place of the division."""
    case = cases.classifier()
    case = steady(library, case.but(queries=case.train))
    fitted = library.fit(case)
    own = torch.stack([library.scores(fitted, case, factor * λ).diagonal() for factor in (0.1, 1, 10, 100)])
    return float((own.diff(dim=0) >= 0).double().mean())


@check(ANY, "damping", bound=1e-5)
def much_damping_is_the_dot_product(library: Library) -> float:
    """As λ grows, λ times the score becomes ∇ℓ_qᵀ ∇ℓ_n, which autograd gives example by example. Sees a wrong sign,
    a wrong scale (a mean for a sum, a 1/N), gradients of other examples, columns laid out in two ways."""
    case = steady(library, cases.classifier())
    found = 1e8 * library.scores(library.fit(case), case, 1e8)
    return distance(found, oracle.gradients(case, case.queries) @ oracle.gradients(case, case.train).T)


@check("expected labels", "squared error", "damping", bound=1e-6)
def a_linear_model_is_refitted(library: Library) -> float:
    """For ridge regression the score is no approximation: it is the slope dm/dε, here measured by fitting the model
    anew with a little more and a little less weight on each example. Sees a wrong sign or scale, 1/N, a damping that
    means something else."""
    case = cases.regression((4, 2))
    W = oracle.ridge(case, λ)
    layer = next(m for m in case.model.modules() if isinstance(m, nn.Linear))
    with torch.no_grad():
        layer.weight.copy_(W[:, :-1])
        layer.bias.copy_(W[:, -1])
    return distance(library.scores(library.fit(case), case, λ), oracle.refitted_slopes(case, λ))


@check("expected labels", "squared error", "damping")
def a_deep_linear_network_is_exact(library: Library) -> float:
    """In a deep linear network with squared error the output gradients depend on no example, so K-FAC and EK-FAC are
    each layer's exact block, and scores equal a dense solve. Sees a transposed eigenbasis, observed labels, a bias
    column in two places, any wrong factor."""
    case = cases.regression((4, 3, 3, 2))
    return distance(library.scores(library.fit(case), case, λ), oracle.scores(case, λ))


@check(ANY, "damping")
def one_example_is_exact(library: Library) -> float:
    """Fitted on a single example a layer's activation is one vector, and EK-FAC is the exact block whatever the loss:
    scores equal a dense solve. Sees what the deep linear network does, in a network with activations."""
    case = steady(library, cases.classifier())
    alone = case.but(train=case.train[:1])
    return distance(library.scores(library.fit(alone), alone, λ), oracle.scores(alone, λ))


@check(ANY, "damping", "layer scores")
def layers_add_up(library: Library) -> float:
    """The scores split by layer sum to the scores. Sees a layer that is missing, or counted twice, in one of them."""
    case = steady(library, cases.classifier())
    fitted = library.fit(case)
    return distance(library.layer_scores(fitted, case, λ).sum(-1), library.scores(fitted, case, λ))


@check(ANY, "layers", "default damping")
def each_layer_has_its_own_damping(library: Library) -> float:
    """At the default damping, a share of each layer's own mean eigenvalue, the scores of the layers one at a time sum
    to those of all. Sees one layer's damping used for the others: with a given number every test passes."""
    case = steady(library, cases.classifier())
    names = [name for name, m in case.model.named_modules() if isinstance(m, nn.Linear)]
    alone = [case.but(layers=(name,)) for name in names]
    parts = [library.scores(library.fit(each), each, None) for each in alone]
    whole = case.but(layers=tuple(names))
    return distance(torch.stack(parts).sum(0), library.scores(library.fit(whole), whole, None))
