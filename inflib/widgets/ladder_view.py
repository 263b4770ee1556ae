"""How the ladder draws a comparison: the matrices as images, the table, and two square plots.

Plain functions from a ``Comparison`` to HTML and SVG that need no script and no style sheet.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from html import escape

import numpy as np
import torch
from torch import Tensor

from .base import png
from .rungs import CORRECTED, UNCORRECTED, Comparison, correlation

PIXELS = 84  # of a matrix's image; larger matrices show the largest entry of each square
ENDS = (np.array([8, 81, 156]), np.array([247, 247, 247]), np.array([166, 54, 3]))  # blue, paper, orange


def pictures_html(comparison: Comparison, exact: str) -> str:
    """Every rung's matrix on one scale: square roots of entries, so that small ones show; the identity in its own."""
    limit = float(comparison.matrices[exact].abs().max())
    figures = []
    for rung, matrix in comparison.matrices.items():
        own = float(matrix.abs().max()) > 5 * limit  # the identity's scale is arbitrary
        image = coloured(matrix, float(matrix.abs().max()) if own else limit)
        address = "data:image/png;base64," + base64.b64encode(png(image)).decode()
        figures.append(
            '<figure style="display:inline-block;margin:4px 6px 4px 0;text-align:center">'
            f'<img class="inflib-colour" width="112" height="112" style="image-rendering:pixelated" '
            f'alt="the matrix of {escape(rung)}" src="{address}"><figcaption>{escape(rung)}</figcaption></figure>'
        )
    scale = "orange positive, blue negative; colour grows with √|entry|, on one scale (the identity on its own)"
    return f'<div>{"".join(figures)}</div><div class="inflib-quiet">{scale}</div>'


def coloured(matrix: Tensor, limit: float) -> np.ndarray:
    """(h, w, 3) uint8: the entry of largest size in each square, on the diverging scale.

    Of entries that are equal but for rounding the first, so that every machine draws the same picture.
    """
    size = -(-len(matrix) // PIXELS)
    padded = torch.nn.functional.pad(matrix, (0, -len(matrix) % size) * 2).double()
    squares = padded.unfold(0, size, size).unfold(1, size, size).flatten(2)  # (h, w, size²)
    largest = squares.abs() >= squares.abs().amax(2, keepdim=True) * (1 - 1e-9)
    order = torch.arange(size * size, 0, -1)
    chosen = squares.gather(2, (largest * order).argmax(2, keepdim=True)).squeeze(2)
    depth = (chosen.abs() / limit).clamp(max=1).sqrt().numpy()[..., None]
    end = np.where(chosen.numpy()[..., None] < 0, ENDS[0], ENDS[2])
    return np.round(ENDS[1] + depth * (end - ENDS[1])).astype(np.uint8)


COLUMNS = {  # of the table, and what they say
    "matrix error": "how far the rung's matrix C is from exact G: ‖C − G‖ / ‖G‖, Frobenius norms; 0 is exact",
    "solve error": "how far (C + λ)⁻¹v is from (G + λ)⁻¹v: ‖x − x_G‖ / ‖x_G‖ over all queries' gradients v; 0 is exact",
    "scores": "correlation across the training examples with the scores by exact G, the mean over queries; 1 is exact",
}


def table_html(comparison: Comparison) -> str:
    """A row for each rung; a column says what it means under the pointer, and when it has the keyboard's focus."""
    cell = '<td style="text-align:right;padding:1px 10px">'
    head = "<th></th>" + "".join(
        f'<th style="padding:1px 10px"><span class="inflib-explained" tabindex="0" title="{escape(what)}" '
        f'data-says="{escape(what)}" aria-label="{name}: {escape(what)}" data-lm-suppress-shortcuts="true">'
        f"{name}</span></th>"
        for name, what in COLUMNS.items()
    )
    rows = "".join(
        f'<tr><td style="text-align:left">{escape(rung)}{" *" * row.indefinite}</td>{cell}{row.matrix:.2f}</td>'
        f"{cell}{row.solve:.2f}</td>{cell}{row.scores:.2f}</td></tr>"
        for rung, row in comparison.rows.items()
    )
    note = "* indefinite at this damping" if any(row.indefinite for row in comparison.rows.values()) else ""
    return (
        f'<div class="inflib-explains"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
        '<div class="inflib-quiet" style="max-width:340px">relative errors against G; '
        f"scores: mean correlation with G's over queries<br>{note}</div>"
    )


def eigenvalues_svg(found: Mapping[str, tuple[Tensor, Tensor]], size: int = 260) -> str:
    """Eigenvalues of K-FAC (rings) and EK-FAC (dots) against the exact ones, both axes in powers of ten."""
    if not found:
        return ""
    every = torch.cat([exact for exact, _ in found.values()])
    most = float(every.max())
    low, pad, span = float(every[every > 1e-4 * most].min()) / 2, 26, size - 36

    def at(value: float) -> int:
        return round(span * np.clip(np.log10(max(value, low) / low) / np.log10(2 * most / low), 0, 1))

    marks, errors = "", []
    for rung, (exact, own) in found.items():
        both, (mark, sign) = zip(exact.tolist(), own.tolist(), strict=True), _MARKS[rung]
        points = {(pad + at(x), 10 + span - at(y)) for x, y in both if x > low}
        marks += f"<g {mark}>" + "".join(f'<circle cx="{x}" cy="{y}" r="2"/>' for x, y in sorted(points)) + "</g>"
        errors.append(f"{rung} off by {float((own - exact).norm() / exact.norm()):.0%} {sign}")
    legend = "".join(
        f'<text x="{pad + 6}" y="{24 + 14 * k}" fill="{_INK}">{escape(text)}</text>' for k, text in enumerate(errors)
    )
    axes = ("exact eigenvalue, qᵀGq", "the rung's eigenvalue")
    return square(marks + legend, f"eigenvalues: {', '.join(errors)}", axes, size)


_MARKS = {UNCORRECTED: ('fill="none" stroke="#2A8BCB"', "○"), CORRECTED: ('fill="#D55E00"', "●")}
_INK, _QUIET = "var(--jp-ui-font-color1, #222)", "var(--jp-border-color1, #999)"


def square(inside: str, said: str, axes: tuple[str, str], size: int, *, diagonal: bool = True) -> str:
    """A square plot, with the identity line or without, its axes named, and what it says to those who do not see it."""
    pad, span = 26, size - 36
    identity = f'<line x1="{pad}" y1="{10 + span}" x2="{pad + span}" y2="10" stroke="{_QUIET}" stroke-dasharray="4 3"/>'
    return (
        f'<svg width="{size}" height="{size}" viewBox="0 0 {size} {size}" role="img" aria-label="{escape(said)}" '
        'style="font-family:system-ui,sans-serif;font-size:11px">'
        f'<rect x="{pad}" y="10" width="{span}" height="{span}" fill="none" stroke="{_QUIET}"/>'
        f"{identity if diagonal else ''}{inside}"
        f'<text x="{pad + span // 2}" y="{size - 6}" text-anchor="middle" fill="{_INK}">{escape(axes[0])}</text>'
        f'<text x="12" y="{10 + span // 2}" text-anchor="middle" fill="{_INK}" '
        f'transform="rotate(-90 12 {10 + span // 2})">{escape(axes[1])}</text></svg>'
    )


def scatter_svg(comparison: Comparison, rung: str, exact: str, query: int, size: int = 260) -> str:
    """One query's scores: the rung's (vertical) against the exact ones, each in units of its own largest size."""
    x, y = comparison.scores[exact][query], comparison.scores[rung][query]
    x, y = x / x.abs().max().clamp_min(1e-300), y / y.abs().max().clamp_min(1e-300)
    pad, span = 26, size - 36
    points = "".join(
        f'<circle cx="{pad + round((a + 1) / 2 * span)}" cy="{10 + round((1 - b) / 2 * span)}" r="2"/>'
        for a, b in zip(x.tolist(), y.tolist(), strict=True)
    )
    r = correlation(comparison.scores[rung][query : query + 1], comparison.scores[exact][query : query + 1])
    return square(
        f'<g fill="#D55E00" fill-opacity="0.6">{points}</g>'
        f'<text x="{pad + 6}" y="24" fill="{_INK}">query {query + 1}: r = {r:.2f}</text>',
        f"scores of {rung} against exact scores, correlation {r:.2f}",
        ("exact score", rung),
        size,
    )
