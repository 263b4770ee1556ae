"""Questions about text, answered without a pass over the training data: which sequences taught the model this?

    f = log p(completion | prompt)                                    (Grosse et al. 2023, eq. 24 and 25)

``TextInfluence`` holds an index of the training sequences, prepared once; ``ask`` ranks them for a prompt and a
completion. The index gives every sequence's score split by layer (eq. 30); what its tokens contribute (eq. 31, 36 or
38) is computed for the sequences shown alone. Over a store, so are their scores.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader

from ..batches import Data
from ..index import Index, Side, TrainIndex
from ..kronecker import Kronecker
from ..objectives import Objective
from ..placement import call
from ..scoring import influence
from ..sequences import completion as as_query
from ..sequences import token_batches
from ..texts import TokenNote
from ..tokens import input_tokens, output_tokens
from .base import InputError
from .candidates import exactly
from .engine import Engine, Others
from .ranking import ALL_LAYERS, Settings, two_lists
from .text_answer import Passage, Question, RankedText, TextAnswer
from .text_words import Words

Query = tuple[dict[str, torch.Tensor], torch.Tensor]  # a batch of one: inputs and targets, (1, T) each


TOKENS: dict[str, Callable[..., torch.Tensor]] = {  # (Q, N, T − 1) for each of ``text_answer.HEATS``
    "position": partial(influence, keep=("token",)),
    "output": output_tokens,
    "input": input_tokens,
}


class Vocabulary(Protocol):
    """Token ids and their text."""

    def encode(self, text: str) -> list[int]:
        """Raises ValueError naming the piece that has no id, and its place."""

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """The text of each token; joined they are the text."""


class Corpus(Protocol):
    """Training sequences, for instance ``inflib.lab.Corpus``."""

    @property
    def sequences(self) -> Sequence[Sequence[int]]:
        """The token ids of each."""

    @property
    def vocabulary(self) -> Vocabulary:
        """What its ids mean."""

    def place(self, n: int) -> str:
        """Where in the corpus sequence n stands, in words."""

    def neighbours(self, n: int) -> tuple[str, str]:
        """The texts before and after sequence n; empty where there is none."""


class TextInfluence(Engine):
    """Influence of training sequences on what the model says after a prompt.

    index:      of the corpus's sequences, in their order; its own curvature sets the unit of damping.
    curvatures: {name: curvature}, each in the index's eigenbasis or an identity; None for the index's own alone.
    context:    how many tokens the model reads at most; None for the longest that it was trained on.
    n_train:    how many sequences it was trained on; None where the index holds them all.
    others:     (model, index) of networks from other seeds: what they do not agree on is marked, see ``Engine``.

    Raises ValueError where index and corpus differ in number, where the index holds more than ``n_train``, and for a
    context that the model cannot read.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        index: Index,
        corpus: Corpus,
        curvatures: Mapping[str, Kronecker] | None = None,
        context: int | None = None,
        n_train: int | None = None,
        others: Others = (),
    ) -> None:
        if len(index) != len(corpus.sequences):
            raise ValueError(
                f"the index holds {len(index)} training examples, and the corpus {len(corpus.sequences)} sequences; "
                "expected the sequences that the index was built from, in their order."
            )
        super().__init__(model, objective, index, curvatures, n_train, others)
        self.corpus = corpus
        # the last token is only predicted
        trained = getattr(corpus, "context", None) or max(map(len, corpus.sequences)) - 1
        self.context = trained if context is None else context
        if context is not None:
            self._check_context(trained)
        self._part = getattr(corpus.vocabulary, "part", None)  # of a tokenizer, which reads any text
        self.words = Words(() if self._part else _pieces_of(corpus))
        self._scored: tuple[object, np.ndarray] = (None, np.empty(0))  # the last question's, and of what
        self._prepared: Side = {}  # the last question's query side, and what is exact of its answer
        self._exact: dict[int, np.ndarray] = {}
        self._norms: dict[str, np.ndarray] = {}

    def _check_context(self, trained: int) -> None:
        """Raises ValueError where the model does not read that many tokens."""
        why = "and a question has at least one."
        if self.context >= 1:
            try:
                self._outputs([0] * self.context)
                return
            except (ValueError, IndexError, RuntimeError) as error:
                why = f"which says: {error}"
        raise ValueError(
            f"context={self.context}; expected at most as many tokens as the model reads, {why} Leave it out for the "
            f"longest that the model was trained on, {trained}."
        )

    # --- questions ----------------------------------------------------------------------------------------------

    def encode(self, prompt: str, completion: str) -> tuple[list[int], list[int]]:
        """The token ids of both. Raises InputError: one is empty, unknown to the vocabulary, or both are too long."""
        ids = self._parted(prompt, completion) if self._part else self._apart(prompt, completion)
        positions = len(ids[0]) + len(ids[1]) - 1
        if positions > self.context:
            raise InputError(
                f"{positions - self.context} too many tokens: of the {len(ids[0])} + {len(ids[1])} that came the model "
                f"would read {positions} (the last is only predicted), and it reads at most {self.context}. Leave out "
                "some, for instance at the beginning of the prompt."
            )
        return ids

    def seam(self, prompt: str, completion: str) -> str:
        """What a tokenizer does where prompt and completion meet, if anything is to be said; see ``TokenNote``."""
        if not self._part or not (prompt and completion):
            return ""
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always", TokenNote)
            self._part(prompt, completion)
        return str(said[0].message) if said else ""

    def _parted(self, prompt: str, completion: str) -> tuple[list[int], list[int]]:
        """By a tokenizer, both as one text."""
        for what, text in (("prompt", prompt), ("completion", completion)):
            self._check_any(what, text)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TokenNote)  # ``seam`` says it
            ids: tuple[list[int], list[int]] = self._part(prompt, completion)  # type: ignore[misc]
        return ids

    def _apart(self, prompt: str, completion: str) -> tuple[list[int], list[int]]:
        return self._ids("prompt", prompt), self._ids("completion", completion)

    def _ids(self, what: str, text: str) -> list[int]:
        try:
            ids = self.corpus.vocabulary.encode(text)
        except ValueError as error:
            raise InputError(f"the {what} cannot be read: {error}") from None
        self._check_any(what, ids)
        return ids

    @staticmethod
    def _check_any(what: str, came: Sequence[object]) -> None:
        if not came:
            why = "the model reads first" if what == "prompt" else "the question is about: how likely it is then"
            raise InputError(f"the {what} is empty; expected at least one token, the text that {why}. Type some.")

    def question(self, prompt: str, completion: str) -> Question:
        """What the model makes of the completion, and what it would say itself. Raises InputError as ``encode``."""
        first, then = self.encode(prompt, completion)
        outputs = self._outputs(first + then[:-1])[len(first) - 1 :]  # (T, V), of the completion's tokens
        p = outputs.softmax(-1)[range(len(then)), then]
        own: list[int] = []
        for _ in then:
            own.append(int(self._outputs(first + own)[-1].argmax()))
        pieces = self.corpus.vocabulary.pieces(first + then)[len(first) :]
        likeliest = "".join(self.corpus.vocabulary.pieces(first + own)[len(first) :])
        return Question(prompt, completion, tuple(pieces), tuple(p.tolist()), likeliest)

    @torch.no_grad()
    def _outputs(self, ids: list[int]) -> torch.Tensor:
        """(T, V) float64 logits at every position."""
        device = next(self.model.parameters()).device
        row = torch.tensor([ids], device=device)
        return call(self.model, {"input_ids": row, "attention_mask": torch.ones_like(row)})[0].double().cpu()

    def query(self, prompt: str, completion: str) -> Query:
        """The question as a batch of one: what ``inflib.influence`` takes as queries, [query]."""
        first, then = self.encode(prompt, completion)
        return as_query(first, then, context=self.context, device=next(self.model.parameters()).device)

    # --- answers ------------------------------------------------------------------------------------------------

    def scores(self, prompt: str, completion: str, settings: Settings) -> np.ndarray:
        """(N, L) influence of every training sequence through every layer, in ``layers`` order."""
        key = (prompt, completion, settings.measurement, settings.method, settings.damping)
        if self._scored[0] != key:
            query = self.query(prompt, completion)
            prepared = self.index.prepare(self.model, self.objective, [query], settings.measurement)
            damping = self.damping(settings, all_layers=True)
            scores = self.index.scores(prepared, self.curvatures[settings.method], damping, keep=("layer",))
            self._scored = key, scores[0].double().cpu().numpy()
            self._prepared, self._exact = prepared, {}
        return self._scored[1]

    def parts(self, prompt: str, completion: str, settings: Settings) -> tuple[np.ndarray, np.ndarray | None]:
        """``scores``, and of a store which of them are exact, the candidates for this question; None for all."""
        near = self.scores(prompt, completion, settings)
        if not self.by_candidates:
            return near, None
        total = near[:, [self.layers.index(name) for name in self.damping(settings)]].sum(1)
        if settings.unit_norm:
            total = total / self.norms(settings.layer)
        return exactly(near, total, settings.count, lambda rows: self._exact_rows(rows, settings))

    def _exact_rows(self, rows: Sequence[int], settings: Settings) -> np.ndarray:
        """(C, L) of these sequences; what was computed for the last question is not computed again."""
        new = [n for n in rows if n not in self._exact]
        if new:
            device = next(self.model.parameters()).device
            train: DataLoader[Any] = DataLoader(
                self.corpus.sequences,  # type: ignore[arg-type]
                collate_fn=lambda some: token_batches(some, len(some), device=device)[0],
            )
            found = self.exact(new, self._prepared, train, settings)[0]
            self._exact |= dict(zip(new, found, strict=True))
        return np.stack([self._exact[n] for n in rows])

    def norms(self, layer: str) -> np.ndarray:
        """(N,) ‖∇ℓ_n‖ of every training sequence, in one layer or in all of them."""
        if layer not in self._norms:
            norms = self.index.norms(layers=None if layer == ALL_LAYERS else [layer]).double().cpu().numpy()
            self._norms[layer] = np.maximum(norms, np.finfo(np.float64).tiny)
        return self._norms[layer]

    def ask(self, prompt: str, completion: str, settings: Settings) -> TextAnswer:
        """The proponents and opponents of this completion. Raises InputError as ``encode``."""
        question = self.question(prompt, completion)
        parts, among = self.parts(prompt, completion, settings)  # (N, L)
        charted = parts / self.norms(ALL_LAYERS)[:, None] if settings.unit_norm else parts  # the same for every layer
        if settings.unit_norm:
            parts = parts / self.norms(settings.layer)[:, None]
        chosen = [self.layers.index(name) for name in self.damping(settings)]
        scores = parts[:, chosen].sum(1)
        lists = two_lists(scores, settings.count, among)
        rows = lists.raised + lists.lowered
        tokens = self._tokens(rows, prompt, completion, settings)
        few = scores[list(rows)]
        intervals = self.intervals([self.query(prompt, completion)], settings, rows)
        ranked = [
            RankedText(
                passage=self.passage(n),
                tokens=values,
                layers=parts[n],
                score=score,
                contribution=part,
                share=abs(score) / lists.largest,
                interval=interval,
            )
            for n, values, score, part, interval in zip(
                rows, tokens, few.tolist(), self.contributions(few, settings), intervals, strict=True
            )
        ]
        return TextAnswer(
            question=question,
            layers=self.layers,
            shares=np.stack([charted.clip(min=0).sum(0), charted.clip(max=0).sum(0)], axis=1),
            raised=tuple(ranked[: len(lists.raised)]),
            lowered=tuple(ranked[len(lists.raised) :]),
            counts=lists.counts,
            parts=lists.parts,
            settings=settings,
            calibrated=self.calibrated(settings.method),
            n_train=self.n_train,
            computed=None if among is None else len(among),
        )

    def _tokens(self, rows: Sequence[int], prompt: str, completion: str, settings: Settings) -> list[np.ndarray]:
        """(T,) of each of these sequences: the influence of its tokens in the layers asked about."""
        if not rows:
            return []
        damping, device = self.damping(settings), next(self.model.parameters()).device
        found = TOKENS[settings.heat](
            self.model,
            self.objective,
            token_batches([self.corpus.sequences[n] for n in rows], batch_size=8, device=device),
            [self.query(prompt, completion)],
            self.curvatures[settings.method].restrict(damping),
            damping,
            measurement=settings.measurement,
            progress=False,
        )[0]  # (rows, T − 1)
        norms = self.norms(settings.layer)[list(rows)] if settings.unit_norm else np.ones(len(rows))
        values = found.double().cpu().numpy() / norms[:, None]
        none = (1, 0) if settings.heat == "output" else (0, 1)  # the first token is not predicted, the last not read
        return [
            np.pad(values[k, : len(self.corpus.sequences[n]) - 1], none, constant_values=np.nan)
            for k, n in enumerate(rows)
        ]

    def as_question(self, n: int) -> tuple[str, str]:
        """Training sequence n as a prompt and a completion: its last word, and as much before it as the model reads."""
        pieces = self.corpus.vocabulary.pieces(self.corpus.sequences[n][-(self.context + 1) :])
        at = len(pieces) - 1
        while not self.words.by_word and at > 1 and not _begins_word(pieces, at):
            at -= 1
        then = "".join(pieces[at:])
        return "".join(pieces[:at]), then if self._part else then.strip() or then

    def passage(self, n: int) -> Passage:
        """Training sequence n, its place, and its neighbours."""
        pieces = tuple(self.corpus.vocabulary.pieces(self.corpus.sequences[n]))
        before, after = self.corpus.neighbours(n)
        return Passage(n, self.corpus.place(n), pieces, before, after)


def _begins_word(pieces: Sequence[str], at: int) -> bool:
    """Whether a word's first character stands in that piece, with a blank before it or in it."""
    return bool(pieces[at].strip()) and (pieces[at][0].isspace() or not pieces[at - 1].strip())


def _pieces_of(corpus: Corpus) -> Iterator[str]:
    """The text of every token that occurs."""
    return (corpus.vocabulary.pieces([k])[0] for k in {k for ids in corpus.sequences for k in ids})


def index_size(model: nn.Module, train: Data, curvature: Kronecker, dtype: torch.dtype | None = None) -> str:
    """A sentence that says, before it is built, how much memory ``TrainIndex.build`` will take for these sequences."""
    megabytes = TrainIndex.bytes_needed(model, train, curvature, dtype) / 1e6
    size = f"{megabytes:,.0f}" if megabytes >= 10 else f"{megabytes:.1f}"
    examples, layers = sum(len(targets) for _, targets in train), len(curvature.layers)
    return f"the index of {examples:,} sequences in {layers} layers will take {size} MB"
