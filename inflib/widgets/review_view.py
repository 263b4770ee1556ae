"""How a review is drawn: progress, what retraining came to, and the still."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from torch import Tensor

from .base import signed, unsigned
from .ladder_view import square
from .review_decisions import KEEP, RELABEL, REMOVE, Decisions
from .review_effects import Repair
from .review_examples import shown

WORDS = {KEEP: "kept", RELABEL: "relabelled", REMOVE: "removed"}


def progress_text(decisions: Decisions) -> str:
    """How many are decided, and how."""
    N, counts = len(decisions.given), decisions.counts()
    each = ", ".join(f"{counts[what]:,} {word}" for what, word in WORDS.items())
    return f"{len(decisions):,} of {N:,} decided ({len(decisions) / N:.1%}): {each}"


def progress_html(decisions: Decisions) -> str:
    part = 100 * len(decisions) / len(decisions.given)
    return (
        f'<div class="inflib-quiet inflib-progress" role="status">{progress_text(decisions)}</div>'
        '<div style="height:5px;background:var(--jp-layout-color3,#ddd);margin:2px 0" aria-hidden="true">'
        f'<div style="height:100%;width:{part:.2f}%;background:var(--jp-brand-color1,#1976d2)"></div></div>'
    )


def repair_lines(repair: Repair) -> list[tuple[str, str, str, str]]:
    """(what, before, after, predicted) of the clean set."""
    before, after = repair.before, repair.after
    return [
        (
            "loss (nats)",
            f"{before.loss:.3f}",
            f"{after.loss:.3f}",
            _beside(repair.predicted_loss, after.loss - before.loss),
        ),
        ("accuracy", f"{before.accuracy:.1%}", f"{after.accuracy:.1%}", "influence has none"),
        (
            "mean log odds",
            f"{float(before.margin.mean()):.2f}",
            f"{float(after.margin.mean()):.2f}",
            _beside(float(repair.predicted.mean()), float(repair.actual.mean())),
        ),
    ]


def _beside(predicted: float, actual: float) -> str:
    return f"{signed(predicted)}, order only; came {signed(actual)}"


def repair_note(repair: Repair) -> str:
    """What was retrained, what it mended, and whether the prediction had the order right."""
    return (
        f"Retrained with {repair.relabelled:,} relabelled and {repair.removed:,} removed: {len(repair.mended):,} of "
        f"{len(repair.after.right):,} clean examples are read rightly that were not, {len(repair.broken):,} no longer. "
        f"Predicted and actual changes of the log odds: rank correlation {repair.agreement:.2f}."
    )


def repair_html(repair: Repair, clean: Any, classes: Sequence[str], *, former: bool) -> str:
    """The table, the scatter of predicted against actual, and some clean examples that were mended."""
    cell = "padding:1px 12px 1px 0;text-align:left"
    head = "".join(f'<th style="{cell}">{name}</th>' for name in ("clean set", "before", "after", "predicted"))
    rows = "".join(
        f"<tr>{''.join(f'<td style={cell!r}>{escape(x)}</td>' for x in line)}</tr>" for line in repair_lines(repair)
    )
    old = '<div class="inflib-quiet">Decisions have changed since; retrain again.</div>' if former else ""
    return (
        f'<div class="inflib-repair"><div class="inflib-heading">What retraining came to</div>{old}'
        f'<div style="display:flex;flex-wrap:wrap;gap:8px 24px"><div style="flex:1 1 320px;min-width:0">'
        f'<table style="border-collapse:collapse"><tr>{head}</tr>{rows}</table>'
        f'<p class="inflib-quiet">{escape(repair_note(repair))}</p>{_mended(repair, clean, classes)}</div>'
        f"{_scatter(repair.predicted, repair.actual)}</div></div>"
    )


def _mended(repair: Repair, clean: Any, classes: Sequence[str], most: int = 6) -> str:
    if not repair.mended:
        return ""
    each = "".join(
        f'<figure style="margin:0 6px 6px 0;display:inline-block;max-width:100%">{example_html(clean, n, 56)}'
        f"<figcaption>{escape(classes[int(clean.labels[n])])}</figcaption></figure>"
        for n in repair.mended[:most]
    )
    return f'<div class="inflib-quiet">now read rightly:</div>{each}'


def example_html(examples: Any, n: int, width: int) -> str:
    """A picture or a text, for where no script runs."""
    item = shown(examples, n)
    if "text" in item:
        return f'<div style="white-space:pre-wrap;overflow-wrap:anywhere">{escape(str(item["text"])[:400])}</div>'
    colour = ' class="inflib-colour"' * bool(item["colour"])
    return f'<img src="{item["picture"]}" width="{width}" alt=""{colour}>'


def _scatter(predicted: Tensor, actual: Tensor, size: int = 240) -> str:
    wide, high = (float(x.abs().max().clamp_min(1e-300)) for x in (predicted, actual))
    pad, span = 26, size - 36
    points = "".join(
        f'<circle cx="{pad + round((a / wide + 1) / 2 * span)}" cy="{10 + round((1 - b / high) / 2 * span)}" r="2"/>'
        for a, b in zip(predicted.tolist(), actual.tolist(), strict=True)
    )
    return square(
        f'<g fill="#D55E00" fill-opacity="0.6">{points}</g>',
        "actual against predicted change of the log odds, a point for each clean example",
        (f"predicted: ±{unsigned(wide, 2)} nats, order only", f"actual: ±{unsigned(high, 2)} nats"),
        size,
        diagonal=False,
    )
