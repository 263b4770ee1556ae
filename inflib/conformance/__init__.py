"""Is an influence library sound? Checks of its scores from outside, which any library can be put to.

    library    what a library has to do (fit, scores), and in which conventions its adapter answers
    cases      the small problems that the checks ask about
    oracle     what is known of them without any library
    checking   a check, and what becomes of it
    scores     sign, symmetry, limits of the damping, layers, exact cases, refits
    changes    what must not matter: order, batches, numbering, in-place operations; what must: weights, frozen layers
    tokens     sequences: sums, masks, shifts, padding
    table      who passes what
    ours       inflib's adapter

    from inflib.conformance import CHECKS, run
    from inflib.conformance.ours import Inflib

    for outcome in run(Inflib()):
        print(outcome.check, outcome.status, CHECKS[outcome.check].sees)

A failed check proves a mistake, or a convention that the adapter did not translate. Checks that pass prove nothing
about whether EK-FAC describes a model well: that is what ``inflib.validation`` is for.
"""

from __future__ import annotations

from . import changes, scores, tokens  # noqa: F401 - their checks are entered as they are imported
from .checking import CHECKS, FAILED, NOT_OFFERED, PASSED, RAISED, Check, Outcome, run
from .library import OFFERS, PAD, ROUNDING, Case, Examples, Library
from .table import as_data, markdown

__all__ = [
    "CHECKS",
    "FAILED",
    "NOT_OFFERED",
    "OFFERS",
    "PAD",
    "PASSED",
    "RAISED",
    "ROUNDING",
    "Case",
    "Check",
    "Examples",
    "Library",
    "Outcome",
    "as_data",
    "markdown",
    "run",
]
