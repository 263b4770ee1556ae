"""The two lists of an ``Answer`` as strips of pictures, with what there is to say about them."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from typing import Any

import ipywidgets as W

from .answer import Answer, Ranked
from .base import csv_link, picture
from .strip import Card, Line, Strip


class ImageLists:
    """Proponents above, opponents below: headings and strips; and beneath both the explanation and the CSV link."""

    def __init__(self) -> None:
        self.headings, self.strips = (W.HTML(), W.HTML()), (Strip(), Strip())
        self.numbers, self.explanation, self.csv = W.HTML(), W.HTML(), W.HTML()
        both = [W.VBox(pair) for pair in zip(self.headings, self.strips, strict=True)]
        self.box = W.VBox([self.numbers, *both], layout=W.Layout(flex="1 1 400px"))
        self.remarks = (self.explanation, self.csv)

    def on_choose(self, handler: Callable[[int], Any]) -> None:
        """Call ``handler(position)`` for every picture that is chosen."""
        for strip in self.strips:
            strip.on_choose(handler)

    def show(self, answer: Answer, then: str) -> None:
        """Draw the answer's lists; ``then`` says what choosing a picture does."""
        self.numbers.value = f'<div class="inflib-quiet">{escape(answer.numbers())}</div>'
        for heading, strip, title, note, few in zip(
            self.headings, self.strips, answer.titles(), answer.notes(), answer.lists, strict=True
        ):
            heading.value = (
                f'<div class="inflib-heading">{escape(title)}</div><div class="inflib-quiet">{escape(note)}</div>'
            )
            strip.show([_card(answer, ranked, then) for ranked in few], title)
        self.explanation.value = "".join(f'<div class="inflib-quiet">{escape(text)}</div>' for text in answer.remarks())
        self.csv.value = csv_link(
            answer.table(), f"influence_{answer.subject.file_name}.csv", "Save what is shown as CSV"
        )

    def clear(self) -> None:
        """Show no answer."""
        for part in (self.numbers, *self.headings, *self.remarks):
            part.value = ""
        for strip in self.strips:
            strip.show([], "")


def _card(answer: Answer, ranked: Ranked, then: str) -> Card:
    """A picture of one of the lists."""
    one, number = ranked.picture, answer.scale.number(ranked.shown)
    lines = tuple(Line(text, strong=strong) for text, strong in answer.captions(ranked))
    said = ", ".join((one.name, *(line.text for line in lines if not line.text.startswith("#")), number))
    return Card(
        key=one.position,
        picture=picture(one.image),
        number=number,
        share=ranked.share,
        positive=ranked.shown > 0,
        lines=lines,
        tip=f"{one.name}: a click {then}",
        spoken=f"{said}; {then}",
    )
