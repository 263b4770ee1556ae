"""Fifteen mistakes as people make them: one line of ``plain.py`` each, right and wrong, and the check that sees it.

``broken(mistake)`` changes the line in the program's text and returns the library that it then is.
"""

from __future__ import annotations

import random
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType

from ..conformance import Library

SOURCE = Path(__file__).with_name("plain.py")


@dataclass(frozen=True)
class Mistake:
    """One line of the program, right and wrong."""

    name: str
    right: str
    wrong: str
    seen_by: str  # the name of a check
    tokens: bool = False  # whether sequences alone show it


MISTAKES = [
    Mistake(
        "transposed eigenbasis",
        "torch.linalg.eigh(m)[1] for k",
        "torch.linalg.eigh(m)[1].T for k",
        "units_may_be_renumbered",
    ),
    Mistake(
        "multiplied by Λ + λ",
        "/ (values + damping)",
        "* (values + damping)",
        "more_damping_leaves_less",
    ),
    Mistake("V for Vᵀ", "return Q_S @ x @ Q_A.T", "return Q_S @ x @ Q_A", "scores_are_symmetric"),
    Mistake(
        "mean over tokens",
        "given = given * some.targets[:, 1:, None]",
        "given = given * some.targets[:, 1:, None] / some.targets.sum(1)[:, None, None]",
        "a_completion_may_be_cut_in_two",
        tokens=True,
    ),
    Mistake(
        "observed labels",
        'if case.labels == "observed":',
        "if True:",
        "the_curvature_has_the_models_labels",
    ),
    Mistake(
        "bias column first",
        "x = a  # the bias's 1 is last",
        "x = a.roll(1, -1)  # the bias's 1 is first",
        "a_deep_linear_network_is_exact",
    ),
    Mistake(
        "one damping for all layers",
        "0.1 * fitted.values[name].mean()",
        "0.1 * next(iter(fitted.values.values())).mean()",
        "each_layer_has_its_own_damping",
    ),
    Mistake(
        "sign",
        'torch.einsum("qoi,noi->qn", solved, given[name])',
        '-torch.einsum("qoi,noi->qn", solved, given[name])',
        "an_example_speaks_for_itself",
    ),
    Mistake(
        "in-place activation",
        "return output.clone()",
        "return output",
        "an_operation_may_be_in_place",
    ),
    Mistake(
        "rows in another order",
        "order = torch.arange(len(examples))",
        "order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(0))",
        "columns_follow_the_examples",
    ),
    Mistake(
        "frozen layers counted",
        "for k, m in linear.items() if m.weight.requires_grad",
        "for k, m in linear.items()",
        "a_frozen_layer_counts_for_nothing",
    ),
    Mistake(
        "unshifted labels",
        'return some.inputs[:, 1:] if case.loss == "next token"',
        'return some.inputs[:, :-1] if case.loss == "next token"',
        "the_last_token_is_a_target",
        tokens=True,
    ),
    Mistake(
        "shifted mask",
        "given = given * some.targets[:, 1:, None]",
        "given = given * some.targets[:, :-1, None]",
        "a_token_out_of_the_loss_is_no_target",
        tokens=True,
    ),
    Mistake(
        "inherited seeds",
        "manual_seed(10_000 * n + 100 * draw + pass_)",
        "manual_seed(10_000 * (n - first) + 100 * draw + pass_)",
        "draws_follow_the_examples",
    ),
    Mistake(
        "stale weights",
        "fitted = fit(case)",
        "fitted = kept.get(case.layers) or fit(case)",
        "new_weights_make_new_scores",
    ),
]


@cache
def program(mistake: Mistake | None = None) -> ModuleType:
    """The program as a module of its own, with that mistake in it, or without one.

    Raises ValueError where the line to change is not there, or there more than once.
    """
    text = SOURCE.read_text(encoding="utf-8")
    if mistake is not None:
        count = text.count(mistake.right)
        if count != 1:
            raise ValueError(
                f"{SOURCE.name} holds {mistake.right!r} {count} times; expected once: say the mistake anew."
            )
        text = text.replace(mistake.right, mistake.wrong)
    module = ModuleType(f"plain with {mistake.name if mistake else 'no mistake'}")
    sys.modules[module.__name__] = module  # where a dataclass looks for what its annotations mean
    exec(compile(text, str(SOURCE), "exec"), module.__dict__)
    return module


def broken(mistake: Mistake | None) -> Library:
    """The library with that mistake in it; for None the sound one."""
    library: Library = program(mistake).Plain()
    return library


def boxes(count: int = 6, seed: int = 0) -> dict[str, Mistake | None]:
    """What is in so many boxes, None for nothing wrong, drawn without looking; about one in three is sound."""
    draw = random.Random(seed)
    return {
        f"box {k}": None if draw.random() < 1 / 3 else MISTAKES[draw.randrange(len(MISTAKES))]
        for k in range(1, count + 1)
    }
