"""Checks on sequences: the loss is a sum over tokens, each predicted by those before it, and padding is nothing."""

from __future__ import annotations

import torch

from . import cases
from .checking import check, distance, kind
from .library import PAD, Case, Examples, Library
from .scores import λ

LABELS = "observed labels | own streams"


def _case(library: Library) -> Case:
    return cases.sequences().but(labels=kind(library, "observed", "sampled"))


def _counting(examples: Examples, first: int, last: int) -> Examples:
    """The same sequences, of whose tokens those from first to last alone are in the loss."""
    at = torch.arange(examples.inputs.shape[1])
    return Examples(examples.inputs, ((first <= at) & (at <= last)).expand_as(examples.inputs).clone())


def _last_token_changed(examples: Examples) -> Examples:
    tokens = examples.inputs.clone()
    tokens[:, -1] = tokens[:, -1] % (cases.VOCABULARY - 1) + 1  # another one, and never PAD
    return Examples(tokens, examples.targets)


@check(LABELS, "next token", "damping")
def a_completion_may_be_cut_in_two(library: Library) -> float:
    """log p(bc | a) = log p(b | a) + log p(c | ab), so the scores of a completion are the sum of its two parts', for
    queries and for training sequences alike. Sees a mean over the tokens in place of the sum."""
    case = _case(library)
    fitted, worst = library.fit(case), 0.0
    for side in ("queries", "train"):
        examples = getattr(case, side)
        whole, *parts = (
            library.scores(fitted, case.but(**{side: _counting(examples, *ends)}), λ)
            for ends in ((2, 6), (2, 3), (4, 6))
        )
        worst = max(worst, distance(torch.stack(parts).sum(0), whole))
    return worst


@check(LABELS, "next token", "damping")
def a_token_out_of_the_loss_is_no_target(library: Library) -> float:
    """The last token of a sequence, left out of the loss, may be any other: no prediction that counts rests on it or
    is of it. Sees a mask laid over the inputs' places where it belongs over the targets'."""
    case = _case(library)
    fitted, worst = library.fit(case), 0.0
    for side in ("queries", "train"):
        examples = _counting(getattr(case, side), 2, 5)
        one, other = (
            library.scores(fitted, case.but(**{side: e}), λ) for e in (examples, _last_token_changed(examples))
        )
        worst = max(worst, distance(other, one))
    return worst


@check(LABELS, "next token", "damping", bound=0.5)
def the_last_token_is_a_target(library: Library) -> float:
    """Each token is predicted by those before it, so the last one, where it counts, is nothing but a target, and
    another in its place makes other scores. The error is 1 where they stay. Sees labels that were not shifted: a model
    asked to predict the token that it is reading never looks at the last."""
    case = _case(library)
    fitted, worst = library.fit(case), 0.0
    for side in ("queries", "train"):
        examples = _counting(getattr(case, side), 2, 6)
        one, other = (
            library.scores(fitted, case.but(**{side: e}), λ) for e in (examples, _last_token_changed(examples))
        )
        worst = max(worst, float(distance(other, one) < 1e-6))
    return worst


@check(LABELS, "next token", "padding", "damping")
def padding_changes_nothing(library: Library) -> float:
    """Sequences with padding behind them are the sequences they were, in the fit and in the scores. Sees padded
    positions that count in a mean, or in the loss."""
    case = _case(library)
    longer = case.but(train=_padded(case.train), queries=_padded(case.queries))
    return distance(library.scores(library.fit(longer), longer, λ), library.scores(library.fit(case), case, λ))


def _padded(examples: Examples, by: int = 3) -> Examples:
    n = len(examples)
    tokens = torch.cat([examples.inputs, torch.full((n, by), PAD)], 1)
    return Examples(tokens, torch.cat([examples.targets, torch.zeros(n, by, dtype=torch.bool)], 1))
