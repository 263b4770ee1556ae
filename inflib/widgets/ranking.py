"""From one score for each training example to two lists: what raised the measurement most, and what lowered it most.

What the image browser and the text browser share of what they show, as plain values: how it was asked (``Settings``),
which rows stand in which list (``two_lists``), how much of the whole the lists hold (``Ranking``), and the one unit of
all its numbers (``Scale``). A number is a contribution, score / N: what the measurement is expected to lose if the
example is removed, positive for proponents; where scores have no unit it is the score itself, which has the same sign.
The size of a contribution is that of a Kronecker curvature, which nothing here checks, and its unit says so: on the
course's digits EK-FAC's are worth a fifth to a twelfth of themselves by exact G (``inflib.contribution``).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from .base import signed

ALL_LAYERS = "all layers"
OWN_LABEL, PREDICTED = "its label", "predicted"  # the class asked about, where it is not one for all pictures
UNDECIDED = "≈ 0?"  # beside a number whose interval holds 0
PHRASES = {  # of each measurement: its name in words, its unit
    "log_likelihood": ("log-likelihood", "nats"),
    "margin": ("log odds", "nats"),
    "logit": ("logit", "units of the logit"),
}
UNCHECKED = "order only"  # beside every number in a unit: its size has not been checked


@dataclass(frozen=True)
class Settings:
    """How to score, and how much to show."""

    method: str
    damping: float = 0.1  # times each layer's mean EK-FAC eigenvalue
    layer: str = ALL_LAYERS
    measurement: str = "log_likelihood"
    count: int = 8
    unit_norm: bool = False  # scores divided by the norm of the training gradient
    heat: str = "output"  # what the colour of a token of text means, see ``text_answer.HEATS``
    asked: str = OWN_LABEL  # the class whose measurement is asked about, of pictures: its name, OWN_LABEL or PREDICTED

    @property
    def quantity(self) -> str:
        """The measurement in words."""
        return PHRASES.get(self.measurement, (self.measurement,))[0]

    @property
    def unit(self) -> str:
        return PHRASES.get(self.measurement, ("", "units of the measurement"))[1]


@dataclass(frozen=True)
class Lists:
    """Rows of the largest positive and of the most negative scores, and what part of all they are."""

    raised: tuple[int, ...]
    lowered: tuple[int, ...]
    counts: tuple[int, int]  # how many scores there are of each sign
    parts: tuple[float, float]  # the listed ones' part of all positive, and of all negative, influence
    largest: float  # |score| of the largest in either list; 1 where both are empty


def two_lists(scores: np.ndarray, count: int, among: np.ndarray | None = None) -> Lists:
    """At most ``count`` rows of each sign of scores (N,), largest in size first; ties go by row, 0 is of neither.

    among: the rows that may be in a list (ascending); None for all. What is counted and shared is over all.
    """
    rows = np.arange(len(scores)) if among is None else among
    raised = [int(n) for n in rows[np.lexsort((rows, -scores[rows]))][:count] if scores[n] > 0]
    lowered = [int(n) for n in rows[np.lexsort((rows, scores[rows]))][:count] if scores[n] < 0]
    positive, negative = scores[scores > 0], scores[scores < 0]
    return Lists(
        tuple(raised),
        tuple(lowered),
        counts=(len(positive), len(negative)),
        parts=(_part(scores[raised], positive), _part(scores[lowered], negative)),
        largest=max((abs(float(scores[n])) for n in raised[:1] + lowered[:1]), default=1.0),
    )


def _part(few: np.ndarray, all_: np.ndarray) -> float:
    return float(few.sum() / all_.sum()) if len(all_) else 0.0


@dataclass(frozen=True)
class Scale:
    """The unit of all numbers of one answer: 10^power of the measurement's own, so that six characters hold each."""

    power: int
    unit: str  # the measurement's; empty where there is none

    @classmethod
    def of(cls, largest: float, unit: str) -> Scale:
        """For numbers up to ``largest`` in size: 10⁰ where that reads well, else a power of a thousand."""
        if largest == 0 or not math.isfinite(largest):
            return cls(0, unit)
        exponent = math.floor(math.log10(float(f"{largest:.2e}")))  # as shown: 999.9 is 1,000
        return cls(0 if -1 <= exponent < 3 else 3 * (exponent // 3), unit)

    @property
    def words(self) -> str:
        """10⁻³ nats, order only; nats, order only; empty for no unit and no power."""
        power = f"10{str(self.power).translate(_RAISED)}" if self.power else ""
        return " ".join(filter(None, (power, self.unit)))

    def number(self, value: float) -> str:
        """A value in this unit, with its sign: three digits, no more than three of them behind the point."""
        value = value / 10.0**self.power
        if not 0 < abs(value) < 0.0995:
            return signed(value)
        return f"{'+' if value > 0 else '−'}{abs(value):.3f}"


_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True, eq=False, kw_only=True)
class Scored:
    """A training example, or a query, in one of the two lists."""

    score: float  # dm/dε, the unit of ``inflib.influence``
    contribution: float | None  # ``inflib.contribution`` to the measurement; None where scores have no unit
    share: float  # |score| as a share of the largest in either list: the bar
    interval: tuple[float, float] | None = None  # of the contribution over networks and dampings; None where unknown

    @property
    def undecided(self) -> bool:
        """Whether its interval holds 0."""
        return self.interval is not None and self.interval[0] <= 0 <= self.interval[1]

    @property
    def shown(self) -> float:
        """The number beside it; it has the score's sign."""
        return self.score if self.contribution is None else self.contribution


Row = TypeVar("Row", bound=Scored)


@dataclass(frozen=True, eq=False, kw_only=True)
class Ranking(Generic[Row]):
    """The two lists, how much of the whole they hold, and how they were made."""

    raised: tuple[Row, ...]  # scores > 0, largest first
    lowered: tuple[Row, ...]  # scores < 0, largest in size first
    counts: tuple[int, int]  # how many there are of each sign
    parts: tuple[float, float]  # the shown ones' part of all positive, and of all negative, influence
    settings: Settings
    calibrated: bool  # False: the scores have no unit
    n_train: int
    computed: int | None = None  # over a store: the candidates, whose scores are exact; None where all are

    @property
    def lists(self) -> tuple[tuple[Row, ...], tuple[Row, ...]]:
        return self.raised, self.lowered

    def method(self) -> str:
        """How the scores were made, in one line."""
        s = self.settings
        damping = f"damping {s.damping:.2g} × mean Λ" if self.calibrated else "no damping"
        norm = ", per unit of gradient norm" if s.unit_norm else ""
        return f"{s.method}, {damping}, {s.layer}, {s.quantity}{norm}"

    @property
    def scale(self) -> Scale:
        """One unit for every number shown."""
        largest = max((abs(row.shown) for few in self.lists for row in few), default=0.0)
        return Scale.of(largest, self.unit)

    @property
    def unit(self) -> str:
        """The numbers' unit, and that it is good for their order only; empty where they have none."""
        s = self.settings
        return "" if s.unit_norm or not self.calibrated else f"{s.unit}, {UNCHECKED}"

    def numbers(self) -> str:
        """What the numbers are and in which unit, said once above both lists."""
        what = "Contributions" if self.calibrated else "Gradient dot products"
        if self.settings.unit_norm:
            what = f"{'Scores' if self.calibrated else what} per unit of gradient norm"
        words = self.scale.words
        return f"{what}, in {words}" if words else what

    def notes(self) -> tuple[str, ...]:
        """Under each heading: how much of the whole is shown."""
        signs = ("positive", "negative")
        return tuple(
            f"{len(few)} of {n:,}, together {part:.1%} of all {sign} influence" if few else f"no {sign} score"
            for few, n, part, sign in zip(self.lists, self.counts, self.parts, signs, strict=True)
        )

    def doubt(self) -> str:
        """What the mark of the undecided means; empty where nothing has an interval."""
        rows = [row for few in self.lists for row in few if row.interval is not None]
        if not rows:
            return ""
        count = sum(row.undecided for row in rows)
        return (
            f"{UNDECIDED} ({count} of {len(rows)}): cannot be told from zero, for its 90% interval over networks from "
            "other seeds and dampings from a third to three times this one holds 0. The error of "
            f"{self.settings.method} itself is not in it."
        )

    def by_bits(self) -> str:
        """What of an answer over a store is exact and what is not; empty where all is."""
        if self.computed is None:
            return ""
        return (
            f"Found in a store: its few bits named {self.computed:,} candidates, and the scores shown were then "
            "computed exactly. How many there are of each sign, and the parts of all influence, are told by the bits."
        )

    def placed(self, names: tuple[str, str]) -> Iterator[tuple[str, int, Row]]:
        """(name of the list, place in it from 1, row) of every row of both lists."""
        for name, few in zip(names, self.lists, strict=True):
            yield from ((name, place, row) for place, row in enumerate(few, start=1))

    def how(self) -> dict[str, object]:
        """The columns of a table that say how its scores were made."""
        s = self.settings
        return {
            "method": s.method,
            "damping": s.damping if self.calibrated else "",
            "layers": s.layer,
            "measurement": s.measurement,
            "unit": self.unit,
        }
