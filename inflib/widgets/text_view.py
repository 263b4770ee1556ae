"""How the text browser draws an answer: the question, the bars by layer, and each training text with its heat.

Plain functions from a ``TextAnswer`` to what the pieces on the page take.
"""

from __future__ import annotations

import math
from html import escape
from itertools import pairwise

from .heat import hottest, steps, token_name, visible
from .layer_bars import LayerBar, labels
from .passages import HeatedText
from .text_answer import RankedText, TextAnswer
from .text_words import Words


def vocabulary_html(words: Words) -> str:
    """What may be asked, folded away; of a tokenizer's texts there is nothing to list."""
    if not words.all:
        return '<div class="inflib-quiet">Any text may be asked.</div>'
    listed = (" " if words.by_word else "").join(map(visible, words.all))
    return (
        '<details class="inflib-vocabulary"><summary data-lm-suppress-shortcuts="true" style="cursor:pointer">What may '
        f"be asked: {words.describe()}, in any capitals</summary>"
        '<div class="inflib-quiet" style="max-height:120px;overflow:auto;overflow-wrap:anywhere">'
        f"{escape(listed)}</div></details>"
    )


def subject_html(answer: TextAnswer) -> str:
    """The question, and what the model makes of it."""
    q = answer.question
    prompt, completion = escape(visible(q.prompt)), escape(visible("".join(q.pieces)))
    return (
        f'<div class="inflib-subject"><div class="inflib-said">{prompt}<b>{completion}</b></div>'
        f'<div class="inflib-quiet">{escape(q.describe())}</div>'
        f'<div class="inflib-quiet">{escape(q.token_probabilities())}</div></div>'
    )


def bars_of(answer: TextAnswer) -> tuple[list[LayerBar], str]:
    """The chart by layer; 0.65 of each half is for the bars, the rest for their numbers."""
    bars = answer.bars()
    most = max((abs(part) for _, *parts, _ in bars for part in parts), default=0.0) or 1.0
    found = []
    for (name, up, down, chosen), label in zip(bars, labels(answer.layers), strict=True):
        then = "shows all layers again" if chosen else "shows what goes through this layer alone"
        found.append(
            LayerBar(
                name,
                label,
                0.65 * up / most,
                -0.65 * down / most,
                f"{up:.0%}",
                f"{-down:.0%}",
                chosen,
                tip=f"{name}: a click {then}",
                spoken=f"{name}: {up:.0%} positive, {-down:.0%} negative; {then}",
            )
        )
    return found, "parts of all influence, by layer"


def heated(answer: TextAnswer, ranked: RankedText, limit: float) -> HeatedText:
    """A sequence of one of the lists."""
    one, number = ranked.passage, answer.scale.number
    pieces, values = hottest(one.pieces, ranked.shown_tokens)
    names = [token_name(piece) for piece in pieces]
    if answer.settings.heat == "position":  # reads one, predicts the next
        names = [*(f"{read} → {said}" for read, said in pairwise(names)), names[-1]]
    return HeatedText(
        key=one.position,
        number=number(ranked.shown),
        share=ranked.share,
        positive=ranked.shown > 0,
        place=ranked.place,
        pieces=tuple(map(visible, pieces)),
        names=tuple(names),
        steps=tuple(steps(values, limit).tolist()),
        numbers=tuple("no value" if math.isnan(value) else number(value) for value in values.tolist()),
        text=visible(one.text, lines=True),
        before=visible(one.before, lines=True),
        after=visible(one.after, lines=True),
        spoken=f"{ranked.place}, {number(ranked.shown)}; arrow keys read its tokens",
    )
