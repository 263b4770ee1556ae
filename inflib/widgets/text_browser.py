"""The text browser: which training sequences raised or lowered the model's belief in a completion, token by token.

Type a prompt and a completion, choose a ready one, or click on a training text; look at the proponents and opponents,
at the tokens in them that matter, at the layers that carry it. Words are completed while they are typed. Nothing refits
and nothing is trained: see ``TextInfluence``, which answers, ``TextAnswer``, which is what is shown, and ``text_view``.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

import ipywidgets as W
from torch import nn

from ..index import Index
from ..kronecker import Kronecker
from ..objectives import Objective
from .asking import STYLE, WRAP, Asking
from .base import InputError, csv_link, csv_text
from .chips import Chips
from .engine import Others
from .heat import visible
from .layer_bars import LayerBars
from .passages import Passages
from .ranking import ALL_LAYERS, Settings
from .text_answer import HEATS, TextAnswer
from .text_influence import Corpus, TextInfluence
from .text_view import bars_of, heated, subject_html, vocabulary_html

OWN = "your own, typed below"


class TextBrowser(Asking):
    """Browse the influence of training sequences on log p(completion | prompt), and on other measurements of it.

    index:      a ``TrainIndex`` or ``Store`` of the corpus's sequences; its own curvature sets the unit of damping.
    corpus:     the sequences, in the index's order, with their vocabulary.
    queries:    (prompt, completion) pairs to choose from beside what is typed; the first is shown first.
    curvatures: {name: curvature} to choose from, see ``three_methods``; None for the index's own alone.
    context:    how many tokens the model reads at most; None for the longest that it was trained on.
    n_train:    how many sequences it was trained on; None where the index holds them all.
    others:     (model, index) of networks from other seeds: marks what cannot be told from zero, as in ImageBrowser.
    method, damping, count, unit_norm, heat: what is shown first. Afterwards the controls decide. ``heat`` is what
    colours a token: "position" (eq. 31 of Grosse et al. 2023), "output" (eq. 36) or "input" (eq. 38).

    In both boxes ⏎ stands for a new line. ``answer`` is what is shown, as plain values; ``table()``, ``token_table()``
    and ``to_csv(path)`` hand it out. ``ask`` raises ``InputError``, a ValueError, for what cannot be asked.

    Raises ValueError without queries, where index and corpus differ in number or the index holds more than ``n_train``,
    for a method or heat that there is not, and for a context that the model cannot read.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        index: Index,
        corpus: Corpus,
        queries: Sequence[tuple[str, str]],
        *,
        curvatures: Mapping[str, Kronecker] | None = None,
        context: int | None = None,
        method: str | None = None,
        damping: float = 0.1,
        count: int = 8,
        unit_norm: bool = False,
        heat: str = "output",
        n_train: int | None = None,
        others: Others = (),
    ) -> None:
        if not queries:
            raise ValueError("queries is empty; expected at least one (prompt, completion) pair: the one shown first.")
        self.influence = TextInfluence(model, objective, index, corpus, curvatures, context, n_train, others)
        for what, came, known in (("method", method, self.influence.curvatures), ("heat", heat, HEATS)):
            if came is not None and came not in known:
                raise ValueError(f"{what}={came!r}; expected one of {', '.join(map(repr, known))}.")
        first = Settings(
            method or next(iter(self.influence.curvatures)), damping, count=count, unit_norm=unit_norm, heat=heat
        )
        super().__init__("TextBrowser", "inflib-text-browser", self.influence, first)
        self.answer: TextAnswer
        self._queries = [(first, then) for first, then in queries]
        self._dice = random.Random()
        self.count.max = max(50, count)
        self.unit_norm = W.Checkbox(
            value=unit_norm, description="÷ norm of its gradient", indent=False, layout=W.Layout(width="auto")
        )
        heats = [(name, key) for key, (name, _) in HEATS.items()]
        self.heat = W.Dropdown(options=heats, value=first.heat, description="Colour", style=STYLE, layout=_COLOUR)
        self._make_question_controls()
        self._make_view()
        self._watch_controls()
        self.ask(*self._queries[0])

    # --- from Python --------------------------------------------------------------------------------------------

    @property
    def settings(self) -> Settings:
        return replace(super().settings, unit_norm=self.unit_norm.value, heat=self.heat.value)

    @property
    def setting_controls(self) -> tuple[W.Widget, ...]:
        return *super().setting_controls, self.unit_norm, self.heat

    def ask(self, prompt: str, completion: str) -> TextAnswer:
        """Show the proponents and opponents of this completion. Raises InputError for what cannot be asked."""
        with self.working():
            prompt, completion = (self.influence.words.recased(_typed(text)) for text in (prompt, completion))
            self._fill(prompt, completion)
            return self._draw(self.influence.ask(prompt, completion, self.settings))

    def ask_text(self, n: int) -> TextAnswer:
        """Make training sequence n the question: its last word, after all that stands before it."""
        return self.ask(*self.influence.as_question(n))

    def surprise(self) -> TextAnswer:
        """Ask something at random: as often a ready question as a training text made into one."""
        others = [pair for pair in self._queries if pair != self._asked()]
        if others and self._dice.random() < 0.5:
            return self.ask(*self._dice.choice(others))
        N = len(self.influence.corpus.sequences)
        n = self._dice.randrange(N)
        same = self.influence.as_question(n) == self._asked()
        return self.ask_text((n + 1) % N if same else n)

    def token_table(self) -> list[dict[str, object]]:
        """What is shown, a row for each token of each sequence."""
        return self.answer.token_table()

    def to_csv(self, path: str | Path, *, tokens: bool = False) -> Path:
        """Write ``table``, or ``token_table``, as a CSV file."""
        path = Path(path)
        path.write_text(csv_text(self.token_table() if tokens else self.table()), encoding="utf-8")
        return path

    @property
    def stale(self) -> bool:
        q = self.answer.question
        asked = tuple(map(self.influence.words.recased, self._asked()))
        return asked != (q.prompt, q.completion) or self.settings != self.answer.settings

    def as_text(self) -> str:
        return f"TextBrowser: {self.answer.as_text()}"

    def as_html(self) -> str:
        return f"<p><b>Text browser</b> (a still; run the notebook for its controls)</p>{self.answer.as_html()}"

    # --- controls -----------------------------------------------------------------------------------------------

    def _make_question_controls(self) -> None:
        ready = [(visible(f"{first} → {then}"), k) for k, (first, then) in enumerate(self._queries)]
        self.ready = W.Dropdown(options=[(OWN, -1), *ready], value=-1, description="Query", **_BOX)
        self.prompt = W.Textarea(description="Prompt", rows=2, **_BOX)
        self.completion = W.Text(description="Completion", **_BOX)
        self.button = W.Button(description="Ask", button_style="primary", layout=W.Layout(width="96px"))
        self.surprise_me = W.Button(description="Surprise me", layout=W.Layout(width="104px"))
        self.fits = W.HTML()
        self.chips, self.vocabulary = Chips(), W.HTML(vocabulary_html(self.influence.words))
        self._typed_in = self.prompt

    def _make_view(self) -> None:
        self.subject, self.numbers, self.explanation, self.csv = W.HTML(), W.HTML(), W.HTML(), W.HTML()
        self.bars, self.bars_title = LayerBars(), W.HTML(_LAYERS)
        self.headings, self.lists = (W.HTML(), W.HTML()), (Passages(), Passages())
        indent = W.HTML(layout=W.Layout(width="82px"))
        buttons = W.HBox([indent, self.button, self.surprise_me])
        offered = W.VBox([self.fits, self.chips, self.vocabulary], layout=_INDENTED)
        ask = [self.ready, self.prompt, self.completion, buttons, offered]
        how = [*self.how, W.HBox([self.heat, self.unit_norm], layout=W.Layout(grid_gap="10px")), self.count]
        left = W.VBox([self.bars_title, self.bars], layout=W.Layout(flex="0 0 290px"))
        both = [W.VBox(pair) for pair in zip(self.headings, self.lists, strict=True)]
        right = W.VBox([self.numbers, *both], layout=W.Layout(flex="1 1 480px", min_width="0"))
        self.arrange(
            [W.HBox([W.VBox(ask), W.VBox(how)], layout=WRAP)],
            [self.subject, W.HBox([left, right], layout=WRAP), self.explanation, self.csv],
        )

    def _watch_controls(self) -> None:
        for control in self.setting_controls:
            self.watch(control, self._again)
        self.watch(self.button, self._ask_typed)
        self.completion.on_msg(
            lambda _widget, content, _buffers: (
                self.attempt(self._ask_typed) if content.get("event") == "submit" else None
            )
        )
        self.watch(self.ready, self._ask_ready)
        for box in (self.prompt, self.completion):
            box.observe(self._type, "value")
        self.watch(self.surprise_me, self.surprise)
        self.chips.on_choose(self._complete)
        for view in self.lists:
            view.on_choose(lambda row: self.attempt(lambda: self.ask_text(row)))
        self.bars.on_choose(lambda name: self.attempt(lambda: self._toggle(name)))

    def _asked(self) -> tuple[str, str]:
        """What stands in the boxes: a prompt and a completion."""
        return _typed(self.prompt.value), _typed(self.completion.value)

    def _ask_typed(self) -> None:
        self.ask(self.prompt.value, self.completion.value)

    def _ask_ready(self) -> None:
        if self.ready.value >= 0:
            self.ask(*self._queries[self.ready.value])

    def _again(self) -> TextAnswer:
        """The question that is shown, with the controls' new settings."""
        q = self.answer.question
        return self._draw(self.influence.ask(q.prompt, q.completion, self.settings))

    def _toggle(self, layer: str) -> None:
        """A layer was clicked: that one alone, or all again."""
        self.layer.value = ALL_LAYERS if self.layer.value == layer else layer
        self._again()

    # --- drawing ------------------------------------------------------------------------------------------------

    def _fill(self, prompt: str, completion: str) -> None:
        """Make boxes and ready queries agree with what is asked."""
        self.prompt.value, self.completion.value = prompt, completion.replace("\n", "⏎")
        pair = (_typed(prompt), _typed(completion))
        self.ready.value = self._queries.index(pair) if pair in self._queries else -1

    def _type(self, change: dict[str, Any]) -> None:
        """While typing: say what fits, offer words; the answer on show belongs to another question."""
        self._draw_fits()
        if not self._working:
            self._typed_in = change["owner"]
            self._offer()
            self.draw_stale()

    def _offer(self) -> None:
        """Words for the box that was typed in, or for the other where only that one holds an unknown word."""
        offers = {box: self.influence.words.offer(_typed(box.value)) for box in (self.prompt, self.completion)}
        unknown = [box for box, offer in offers.items() if not offer.known and offer.words]
        if unknown and self._typed_in not in unknown:
            self._typed_in = unknown[0]
        offer = offers[self._typed_in]
        self.chips.show(offer.words, "" if not offer.words else "goes on:" if offer.known else "is it")

    def _complete(self, word: str) -> None:
        """A word that was offered is put where it belongs."""
        box = self._typed_in
        value = self.influence.words.offer(_typed(box.value)).put_into(box.value, word)
        box.value = value if box is self.prompt else value.rstrip()

    def _draw_fits(self) -> None:
        """While typing: how many tokens of how many, or what is wrong."""
        try:
            recased = map(self.influence.words.recased, self._asked())
            first, then = self.influence.encode(*recased)
            note = f"{len(first)} + {len(then)} tokens, of at most {self.influence.context}"
            note += f". {escape(seam)}" if (seam := self.influence.seam(*self._asked())) else ""
        except InputError as error:
            note = f"<b>!</b> {escape(str(error).partition('; expected')[0])}"
        self.fits.value = f'<div class="inflib-quiet inflib-one-line" style="max-width:370px">{note}</div>'

    def _draw(self, answer: TextAnswer) -> TextAnswer:
        """Show the answer, and make the controls agree with it."""
        self.answer = answer
        self._draw_fits()
        self.draw_damping()
        self.subject.value = subject_html(answer)
        self.bars.show(*bars_of(answer))
        self.numbers.value = f'<div class="inflib-quiet">{escape(answer.numbers())}</div>'
        limit = answer.limit
        for heading, view, title, note, few in zip(
            self.headings, self.lists, answer.titles(), answer.notes(), answer.lists, strict=True
        ):
            heading.value = (
                f'<div class="inflib-heading">{escape(title)}</div><div class="inflib-quiet">{escape(note)}</div>'
            )
            view.show([heated(answer, ranked, limit) for ranked in few], title)
        remarks = "".join(
            f'<div class="inflib-quiet">{escape(text)}</div>' for text in (answer.legend(), *answer.remarks())
        )
        self.explanation.value = f'<div class="inflib-scale">{answer.colour_scale()}</div>{remarks}'
        self.csv.value = csv_link(answer.table(), "influence_text.csv", "Save what is shown as CSV")
        return answer


_STYLE = {"description_width": "78px"}
_BOX = {"style": _STYLE, "layout": {"width": "460px"}}
_COLOUR = {"width": "230px"}
_INDENTED = {"width": "460px", "padding": "0 0 0 82px"}
_LAYERS = (
    '<div class="inflib-heading">Layers</div><div class="inflib-quiet">parts of all influence; a click filters</div>'
)


def _typed(text: str) -> str:
    """What was typed, ⏎ being a new line: the completion's box has a single one."""
    return text.replace("⏎", "\n")
