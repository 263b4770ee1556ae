"""Checks that change what must not matter: the order of units, of data, the cut into batches, an in-place operation."""

from __future__ import annotations

import copy

import torch
from torch import nn

from . import cases
from .checking import check, distance, kind
from .library import Case, Examples, Library
from .scores import ANY, steady, λ


def scored(library: Library, case: Case, damping: float = λ) -> torch.Tensor:
    return library.scores(library.fit(case), case, damping)


@check(ANY, "damping")
def units_may_be_renumbered(library: Library) -> float:
    """Renumbering the units of the hidden layers and the features of the inputs leaves the function as it was, and so
    the scores. Needs no dense matrix. Sees a transposed eigenbasis, which has no meaning but its accidental order, and
    a bias column that is not where the gradient has it."""
    case = steady(library, cases.classifier())
    other = renumbered(case)
    return distance(scored(library, other), scored(library, case))


def renumbered(case: Case) -> Case:
    """The same function of the same examples, its features and hidden units in another order."""
    model, draw = copy.deepcopy(case.model), torch.Generator().manual_seed(5)
    layers = [m for m in model.modules() if isinstance(m, nn.Linear)]
    order = features = torch.randperm(layers[0].in_features, generator=draw)
    with torch.no_grad():
        for k, layer in enumerate(layers):
            layer.weight.copy_(layer.weight[:, order])
            if k < len(layers) - 1:
                order = torch.randperm(layer.out_features, generator=draw)
                layer.weight.copy_(layer.weight[order])
                layer.bias.copy_(layer.bias[order])
    train, queries = (Examples(e.inputs[:, features], e.targets) for e in (case.train, case.queries))
    return case.but(model=model, train=train, queries=queries)


@check(ANY, "damping")
def doubled_data_change_nothing(library: Library) -> float:
    """The curvature is a mean: fitted on every example twice it is the same, and so are the scores. Sees a sum over
    the examples, whose damping would mean something else with every size of data."""
    case = steady(library, cases.classifier())
    twice = case.but(train=case.train[torch.arange(24) % 12])
    return distance(library.scores(library.fit(twice), case, λ), scored(library, case))


@check(ANY, "damping")
def batches_may_be_cut_anywhere(library: Library) -> float:
    """One example at a time, five, or all at once: the scores are the same. Sees means taken over a batch, a last
    batch that weighs too much, rows that are not examples."""
    case = steady(library, cases.classifier())
    whole = scored(library, case)
    return max(distance(scored(library, case.but(batch_size=size)), whole) for size in (1, 5))


@check(ANY, "damping")
def columns_follow_the_examples(library: Library) -> float:
    """The training examples in another order: column n is still example n's. Sees a loader that shuffles, and rows of
    a batch read in another order than they came."""
    case = steady(library, cases.classifier())
    order = torch.randperm(12, generator=torch.Generator().manual_seed(3))
    return distance(scored(library, case.but(train=case.train[order])), scored(library, case)[:, order])


@check("expected labels | own streams", "damping")
def the_curvature_has_the_models_labels(library: Library) -> float:
    """The Gauss-Newton matrix knows inputs and weights alone: fitted on examples with other targets, it gives the same
    scores. Sees the data's labels where the model's were asked for, the empirical Fisher."""
    case = cases.classifier()
    case = case.but(labels=kind(library, "expected", "sampled"))
    other = case.but(train=Examples(case.train.inputs, (case.train.targets + 1) % 3))
    return distance(library.scores(library.fit(other), case, λ), scored(library, case))


@check(ANY, "damping")
def an_operation_may_be_in_place(library: Library) -> float:
    """ReLU and ReLU in place are one function. Sees an activation or an output gradient that was recorded as a
    reference, and was written over before it was used."""
    plain, inside = (steady(library, cases.classifier(nn.ReLU(inplace=x))) for x in (False, True))
    return distance(scored(library, inside), scored(library, plain))


@check(ANY, "damping", "layers", "trainable layers")
def a_frozen_layer_counts_for_nothing(library: Library) -> float:
    """With its first layer frozen a model has the scores of its other layers. Sees weights counted that no training
    could have moved."""
    case = steady(library, cases.classifier())
    others = scored(library, case.but(layers=("1", "2")))
    case.model.get_submodule("0").requires_grad_(False)
    return distance(scored(library, case), others)


@check(ANY, "damping")
def new_weights_make_new_scores(library: Library) -> float:
    """A model is asked, trained on, fitted again and asked again: the second answer is that of a model which had the
    new weights from the start. Sees factors or gradients kept from the old ones."""
    case = steady(library, cases.classifier())
    scored(library, case)
    with torch.no_grad():
        for p in case.model.parameters():
            p.mul_(0.5).add_(0.1)
    fresh = case.but(model=copy.deepcopy(case.model))
    return distance(scored(library, case), scored(library, fresh))


@check("sampled labels", "own streams", "damping")
def draws_follow_the_examples(library: Library) -> float:
    """An example's drawn labels are its own: neither the cut into batches nor torch's global seed moves them. Sees
    batches or workers that all begin at the same seed, and draw the same numbers for other examples."""
    case = cases.classifier().but(labels="sampled")
    torch.manual_seed(1)
    whole = scored(library, case)
    torch.manual_seed(2)
    return max(distance(scored(library, case.but(batch_size=size)), whole) for size in (1, 5))


@check("sampled labels", "expected labels", "draws", "damping", bound=0.5)
def more_draws_come_nearer(library: Library) -> float:
    """Scores from 64 drawn labels an example are nearer to those of the exact mean than from one, by about 8 times.
    The error is the ratio of the two distances. Sees draws that repeat one another, and labels that are not drawn."""
    case = cases.classifier()
    exact = scored(library, case)
    one, many = (distance(scored(library, case.but(labels="sampled", draws=n)), exact) for n in (1, 64))
    return many / one if one > 0 else float("inf")
