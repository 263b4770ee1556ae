"""Boxes that give scores, sound or broken: run checks on one, see which explanations are left, say what is in it.

The reader sees what a box's scores look like and what the checks that were run came to. Of all explanations (sound, or
one of the known mistakes) those stay that would have given the same outcomes: a good next check splits them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

import ipywidgets as W
import numpy as np

from ..conformance import CHECKS, PASSED, Library, Outcome
from .base import Panel, picture

SOUND = "sound"


class Boxes(Panel):
    """Browse boxes: a box's pictures, checks to run on it, and a verdict.

    boxes:    {name: the library in it}.
    truth:    {name: what is in it}, SOUND or the name of a mistake.
    failing:  {explanation: the names of the checks that it fails}, SOUND among them.
    pictures: {name: (H, W) uint8 images}, what the box's scores put first.

    Raises ValueError where a box has no truth, or a truth is no explanation.
    """

    def __init__(
        self,
        boxes: Mapping[str, Library],
        truth: Mapping[str, str],
        failing: Mapping[str, frozenset[str]],
        pictures: Mapping[str, Sequence[np.ndarray]],
    ) -> None:
        super().__init__("Boxes", "inflib-boxes")
        unknown = {name: truth.get(name) for name in boxes if truth.get(name) not in failing}
        if unknown or SOUND not in failing or not boxes:
            raise ValueError(
                f"boxes {unknown or list(boxes)} came with explanations {', '.join(failing)}; expected at least one "
                f"box, and for each an explanation that is among them, as {SOUND!r} must be."
            )
        self._boxes, self._truth, self._failing, self._pictures = dict(boxes), dict(truth), dict(failing), pictures
        self.outcomes: dict[str, dict[str, Outcome]] = {name: {} for name in boxes}
        self.box = W.Dropdown(options=list(boxes), description="Box", **_FORM)
        self.check = W.Dropdown(options=[(n.replace("_", " "), n) for n in CHECKS], description="Check", **_FORM)
        self.run = W.Button(description="Run the check")
        self.verdict = W.Dropdown(options=list(failing), description="It is", **_FORM)
        self.say = W.Button(description="Say so")
        self.face, self.record, self.answer = W.HTML(), W.HTML(), W.HTML()
        for name, view in {"face": self.face, "record": self.record, "answer": self.answer}.items():
            view.add_class(f"inflib-boxes-{name}")
        rows = [[self.box], [self.check, self.run], [self.verdict, self.say]]
        self.arrange([W.HBox(row, layout=_WRAP) for row in rows], [self.answer, self.face, self.record])
        for control, act in {self.box: self._show, self.run: self._run, self.say: self._say}.items():
            self.watch(control, act)
        self._show()

    @property
    def left(self) -> list[str]:
        """The explanations that would have given every outcome seen on this box."""
        seen = self.outcomes[self.box.value]
        return [
            name
            for name, fails in self._failing.items()
            if all((check in fails) == (outcome.status != PASSED) for check, outcome in seen.items())
        ]

    def _run(self) -> None:
        name = self.check.value
        self.outcomes[self.box.value][name] = CHECKS[name].run(self._boxes[self.box.value])
        self._show()

    def _say(self) -> None:
        said, truth, ran = self.verdict.value, self._truth[self.box.value], len(self.outcomes[self.box.value])
        if said == truth:
            self.answer.value = _quiet(f"right: {said}, after {_checks(ran)}")
        elif said not in self.left:
            self.answer.value = _quiet(f"not {said}: it would not have given the outcomes below")
        elif len(self.left) > 1:
            self.answer.value = _quiet(f"not {said}, though nothing so far speaks against it: run a check that would")
        else:
            self.answer.value = _quiet(f"not {said}, though nothing else is left: something new")

    def _show(self) -> None:
        name = self.box.value
        images = "".join(
            f'<img alt="proponent {k}" src="{picture(image)}" style="width:44px;height:44px;margin:1px">'
            for k, image in enumerate(self._pictures[name], 1)
        )
        self.face.value = (
            f'<div class="inflib-quiet">{escape(name)}: what its scores put first</div><div>{images}</div>'
        )
        self.record.value = self._record_html()
        self.answer.value = ""

    def _record_html(self) -> str:
        seen = self.outcomes[self.box.value]
        rows = "".join(
            f'<tr><td style="text-align:left;padding:1px 10px 1px 0">{escape(check.replace("_", " "))}</td>'
            f'<td style="padding:1px 10px">{_SIGNS.get(o.status, "✗ " + o.status)}</td></tr>'
            for check, o in seen.items()
        )
        table = f"<table><tbody>{rows}</tbody></table>" if seen else _quiet("no check was run on this box")
        return table + _quiet(self._left_over())

    def _left_over(self) -> str:
        named = f": {', '.join(self.left)}" if len(self.left) <= 4 else ""
        return f"{len(self.left)} of {len(self._failing)} explanations are left{named}"

    def as_text(self) -> str:
        seen = [f"  {check}: {o.status}" for check, o in self.outcomes[self.box.value].items()]
        return "\n".join([f"Boxes: {self.box.value} of {len(self._boxes)}", *seen, f"  {self._left_over()}"])

    def as_html(self) -> str:
        return (
            "<p><b>Boxes</b> (a still; run the notebook to run checks and to say what is in a box)</p>"
            + self.face.value
            + self.record.value
        )


def _checks(n: int) -> str:
    return "1 check" if n == 1 else f"{n} checks"


def _quiet(text: str) -> str:
    return f'<div class="inflib-quiet">{escape(text)}</div>'


_SIGNS = {PASSED: "✓ holds", "failed": "✗ fails"}
_FORM = {"style": {"description_width": "60px"}, "layout": {"width": "340px", "max_width": "100%"}}
_WRAP = {"flex_flow": "row wrap", "grid_gap": "4px 12px"}
