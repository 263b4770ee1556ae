"""Who passes what: the outcomes of several libraries as data, and as a table to read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .checking import CHECKS, FAILED, NOT_OFFERED, PASSED, RAISED, Outcome

SIGNS = {PASSED: "yes", FAILED: "**no**", RAISED: "raises", NOT_OFFERED: "–"}


def markdown(found: Mapping[str, Sequence[Outcome]], lines: Mapping[str, str] | None = None) -> str:
    """A row a check, a column a library, and below the table what each failure was and the line that shows it.

    lines: {library: the line that runs one check on it, with ``{check}`` where the name goes}.
    """
    names = list(found)
    by_check = {name: {o.check: o for o in outcomes} for name, outcomes in found.items()}
    rows = [f"| check | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for check in CHECKS:
        cells = [SIGNS[by_check[name][check].status] if check in by_check[name] else "" for name in names]
        rows.append(f"| {check.replace('_', ' ')} | {' | '.join(cells)} |")
    passed = [sum(o.status == PASSED for o in found[name]) for name in names]
    asked = [sum(o.status != NOT_OFFERED for o in found[name]) for name in names]
    totals = " | ".join(f"{p} of {a}" for p, a in zip(passed, asked, strict=True))
    rows.append(f"| **passed, of what is offered** | {totals} |")
    return "\n".join([*rows, "", *_failures(found, lines or {})])


def _failures(found: Mapping[str, Sequence[Outcome]], lines: Mapping[str, str]) -> list[str]:
    said = []
    for name, outcomes in found.items():
        for o in outcomes:
            if o.status in (FAILED, RAISED):
                what = f"error {o.error:.2g}, bound {o.bound:.0e}" if o.error is not None else o.why[:200]
                again = f" Again: `{lines[name].format(check=o.check)}`" if name in lines else ""
                said.append(f"- **{name}**, {o.check.replace('_', ' ')}: {what}.{again}")
    return said


def as_data(found: Mapping[str, Sequence[Outcome]], about: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """For a JSON file: what is said about each library (versions, settings), with its outcomes."""
    return {
        name: {**about.get(name, {}), "outcomes": [o.as_dict() for o in outcomes]} for name, outcomes in found.items()
    }
