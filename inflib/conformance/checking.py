"""A check is a function of a library that says how far its scores are from a property they must have."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from .library import ROUNDING, Library

PASSED, FAILED, RAISED, NOT_OFFERED = "passed", "failed", "raised", "not offered"


@dataclass(frozen=True)
class Check:
    """A named property. ``measure`` gives its error, to be below ``bound``, or below the library's own rounding."""

    name: str
    needs: tuple[str, ...]
    bound: float
    measure: Callable[[Library], float]

    @property
    def sees(self) -> str:
        """What is checked and which mistake it sees, in a paragraph."""
        return " ".join(inspect.cleandoc(self.measure.__doc__ or "").split())

    def run(self, library: Library) -> Outcome:
        missing = [what for what in self.needs if not _offered(what, library)]
        bound = max(self.bound, library.rounding)
        if missing:
            return Outcome(self.name, NOT_OFFERED, None, bound, ", ".join(missing))
        try:
            error = float(self.measure(library))
        except Exception as problem:
            first = " ".join(str(problem).split())
            return Outcome(self.name, RAISED, None, bound, f"{type(problem).__name__}: {first}")
        return Outcome(self.name, PASSED if error < bound else FAILED, error, bound, "")


@dataclass(frozen=True)
class Outcome:
    """What became of a check: "passed", "failed", "raised" or "not offered"."""

    check: str
    status: str
    error: float | None  # relative; None where none came out
    bound: float
    why: str  # what is missing, or what was raised

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


CHECKS: dict[str, Check] = {}


def check(*needs: str, bound: float = ROUNDING) -> Callable[[Callable[[Library], float]], Callable[[Library], float]]:
    """Enter a function among the checks. A need may be a choice: "expected labels | sampled labels"."""

    def enter(measure: Callable[[Library], float]) -> Callable[[Library], float]:
        name = measure.__name__
        CHECKS[name] = Check(name, needs, bound, measure)
        return measure

    return enter


def run(library: Library, names: Iterable[str] | None = None) -> list[Outcome]:
    """Every check, or those named, on a library. Raises KeyError for a check there is not."""
    return [CHECKS[name].run(library) for name in (CHECKS if names is None else names)]


def _offered(what: str, library: Library) -> bool:
    return any(each in library.offers for each in what.split(" | "))


def kind(library: Library, *order: str) -> str:
    """The first of these label kinds that a library offers."""
    return next(each for each in order if f"{each} labels" in library.offers)


def distance(found: Tensor, expected: Tensor) -> float:
    """‖found − expected‖ / ‖expected‖ in the Frobenius norm; infinite where shapes or numbers make no sense."""
    if found.shape != expected.shape or not bool(found.isfinite().all()):
        return float("inf")
    ours, theirs = found.detach().double(), expected.detach().double()
    return float((ours - theirs).norm() / theirs.norm())
