"""The board: named methods against the same measurements, in one tidy table, each at the dial chosen for it.

Queries fall in two halves. On the one, and there alone, every method's dial (damping, steps, whatever it varies) is
chosen, by one rule for all: the largest value of the first measurement. What is reported comes from the other half.
With one dial each this is a comparison at the same numbers; with several, of each method at its best.

    row:  method, dial, labels, measurement, value, low, high, cost in passes over the training data
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from .bank import Bank, BankRecipe
from .calibration import calibration
from .datamodeling import ceiling, lds, sides
from .intervals import Interval, bootstrap
from .pbrf import Proximal
from .removal import remove_top

Scores = Callable[[Any], Tensor]  # dial → scores (Q, N) of all queries


@dataclass(frozen=True)
class Method:
    """A way to score, with its dial.

    scores: dial → scores (Q, N) of all queries against all training examples, asked once for each dial.
    dials:  the settings to choose from: dampings, numbers of steps; (None,) for none.
    labels: what the curvature's labels were: "expected", "sampled", "observed", or "" where there are none.
    passes: cost of one answer to all queries, in forward-and-backward passes over the training data.
    """

    scores: Scores
    dials: Sequence[Any] = (None,)
    labels: str = ""
    passes: float = 0.0


@dataclass(frozen=True)
class Measurement:
    """A ground truth: how well some queries' scores do, and what the truth itself would reach."""

    of: Callable[[Tensor, Tensor, int], Interval]  # scores (Q', N), the queries' positions (Q',), resamples → a value
    ceiling: Interval | None = None
    note: str = ""  # what was left out, for the reader of the table


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    method: str
    dial: Any
    labels: str
    measurement: str
    value: float
    low: float
    high: float
    passes: float


@dataclass(frozen=True)
class Board:
    """The table, with the ceilings that belong to its measurements."""

    rows: tuple[Row, ...]
    ceilings: dict[str, Interval] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)

    def value(self, method: str, measurement: str) -> Interval:
        """A method's value. Raises KeyError for what is not on the board."""
        for row in self.rows:
            if (row.method, row.measurement) == (method, measurement):
                return Interval(row.value, row.low, row.high)
        raise KeyError(
            f"{method!r} by {measurement!r} is not on the board; it has {sorted({r.method for r in self.rows})}."
        )

    def table(self) -> str:
        """As text, a line a row."""
        lines = [("method", "dial", "labels", "measurement", "value [interval]", "passes")]
        for r in self.rows:
            dial = "" if r.dial is None else f"{r.dial:g}" if isinstance(r.dial, (int, float)) else str(r.dial)
            value = f"{Interval(r.value, r.low, r.high):.3f}"
            lines.append((r.method, dial, r.labels, r.measurement, value, f"{r.passes:g}"))
        lines += [("ceiling", "", "", name, f"{top:.3f}", "") for name, top in self.ceilings.items()]
        widths = [max(len(line[k]) for line in lines) for k in range(6)]
        padded = ([text.ljust(w) for text, w in zip(line, widths, strict=True)] for line in lines)
        return "\n".join(["  ".join(line).rstrip() for line in padded] + [f"{k}: {v}" for k, v in self.notes.items()])

    def to_json(self) -> str:
        """As JSON; ``Board.from_json`` reads it back."""
        tops = {k: asdict(v) for k, v in self.ceilings.items()}
        held = {"rows": [asdict(r) for r in self.rows], "ceilings": tops, "notes": self.notes}
        return json.dumps(held, indent=1, default=str)

    @classmethod
    def from_json(cls, text: str) -> Board:
        """The board that ``to_json`` wrote."""
        held = json.loads(text)
        tops = {k: Interval(**v) for k, v in held["ceilings"].items()}
        return cls(tuple(Row(**r) for r in held["rows"]), tops, held["notes"])

    def __repr__(self) -> str:
        return self.table()


def halves(queries: int) -> tuple[Tensor, Tensor]:
    """Positions of the queries on which dials are chosen, and of those that are reported: every other one."""
    if queries < 4:
        raise ValueError(f"{queries} queries; expected at least 4, half of them to choose dials on.")
    return torch.arange(0, queries, 2), torch.arange(1, queries, 2)


def choose(method: Method, measurement: Measurement, choosing: Tensor) -> tuple[Any, Tensor]:
    """The dial with the largest value on these queries (the first of equals), and its scores of all queries."""
    if not method.dials:
        raise ValueError("a method came without dials; expected at least one setting: dials=(None,) for none.")
    best: tuple[float, Any, Tensor] | None = None
    for dial in method.dials:
        scores = method.scores(dial)
        value = measurement.of(scores[choosing], choosing, 1).mean  # the interval plays no part
        if best is None or value > best[0]:
            best = value, dial, scores
    assert best is not None
    return best[1], best[2]


def board(
    methods: Mapping[str, Method | Tensor],
    measurements: Mapping[str, Measurement],
    split: tuple[Tensor, Tensor],
    *,
    resamples: int = 1000,
) -> Board:
    """Every method at the dial that the first measurement chooses on queries ``split[0]``, reported on ``split[1]``.

    methods: {name: Method}, or scores (Q, N) as they are. split: as ``halves`` gives it. Raises ValueError where the
    two halves share a query, and for nothing to compare or to compare by.
    """
    choosing, reported = split
    if not methods or not measurements:
        raise ValueError(f"{len(methods)} methods, {len(measurements)} measurements; expected at least one of each.")
    shared = set(choosing.tolist()) & set(reported.tolist())
    if shared:
        raise ValueError(
            f"queries {sorted(shared)[:5]} are in both halves; expected none: what chose a dial cannot judge it. "
            "Use halves(Q)."
        )
    first, rows = next(iter(measurements.values())), []
    for name, given in methods.items():
        method = given if isinstance(given, Method) else Method(_always(given))
        dial, scores = choose(method, first, choosing)
        for what, measurement in measurements.items():
            v = measurement.of(scores[reported], reported, resamples)
            rows.append(Row(name, dial, method.labels, what, v.mean, v.low, v.high, method.passes))
    tops = {what: m.ceiling for what, m in measurements.items() if m.ceiling is not None}
    return Board(tuple(rows), tops, {what: m.note for what, m in measurements.items() if m.note})


# --- measurements ----------------------------------------------------------------------------------------------


def by_retraining(bank: Bank, measurement: str = "margin") -> Measurement:
    """The linear datamodeling score against a bank, with its ceiling."""
    top = ceiling(bank, measurement) if bank.seeds > 1 else None
    return Measurement(lambda s, rows, n: lds(s, bank, measurement, rows, n)[1], top)


def by_size(bank: Bank, measurement: str = "margin") -> Measurement:
    """The slope of what a bank measured on what the scores predict; 1 is right."""
    return Measurement(lambda s, rows, n: calibration(*sides(s, bank, measurement, rows), resamples=n).slope)


def by_reference(reference: Tensor, which: Tensor | None = None) -> Measurement:
    """Mean per-query Pearson correlation with a reference (Q, M) about the examples ``which``; None: about all N.

    Exact G's scores, or the ``response`` of ``pbrf`` to the M examples that it was asked about.
    """
    columns = slice(None) if which is None else which
    return Measurement(lambda s, rows, n: calibration(s[:, columns], reference[rows], resamples=n).correlation)


def by_removal(recipe: BankRecipe, k: int = 20, *, flips: bool = True, **options: Any) -> Measurement:
    """The share of queries flipped by removing their first k examples and retraining; else how far the margin falls.

    options: of ``remove_top``: seeds=, measurement=, device=. Each value is Q' retrainings a seed: let a measurement
    that is cheaper choose the dials: put this one after it.
    """

    def of(scores: Tensor, rows: Tensor, resamples: int) -> Interval:
        found = remove_top(recipe, {"": scores}, (k,), queries=rows, progress=False, **options)
        return bootstrap(found.flips["", k] if flips else -found.change["", k], resamples=resamples)

    return Measurement(of)


def by_proximal(found: Proximal, which: Sequence[int]) -> Measurement:
    """Mean per-query Pearson correlation with the proximal Bregman responses to the examples ``which``.

    Minimisations that did not converge, as on a network that interpolates its data, are left out and counted in the
    board's note. Raises ValueError where fewer than three are left, and for other than one response an example.
    """
    done = found.converged
    if len(which) != len(done):
        raise ValueError(f"which holds {len(which)} examples; expected {len(done)}, those that pbrf was asked about.")
    left = f"{int((~done).sum())} of {len(done)} proximal objectives did not converge"
    if int(done.sum()) < 3:
        raise ValueError(
            f"{left}; expected at least 3 that did. Give more damping, train with weight decay or smooth activations, "
            "or allow pbrf more max_steps."
        )
    columns = torch.as_tensor(which)[done]
    reference = by_reference(found.response[:, done], columns)
    return Measurement(reference.of, note="" if bool(done.all()) else f"{left}, and are left out")


def _always(scores: Tensor) -> Scores:
    return lambda _: scores
