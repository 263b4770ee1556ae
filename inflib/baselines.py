"""Simpler answers to the same question, to be beaten: scores (Q, N) of training examples without any curvature.

    gradient dot      ∇m_q · (−∇ℓ_n)                                influence with C = I
    gradient cosine   the same, divided by both gradients' norms
    TracIn            Σ_k η_k ∇m_q(θ_k) · (−∇ℓ_n(θ_k))              over checkpoints θ_k with learning rates η_k
    BM25              Σ_words idf(w) · tf(w, n)                     of the query's words: no model at all

Signs are those of ``influence``: positive is a proponent. (TracIn: Pruthi, Liu, Kale & Sundararajan 2020. BM25:
Robertson & Zaragoza 2009, in the form of Lucene.)
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from .batches import BYTE_BUDGET, Data, length, walk
from .contractions import own_scorer
from .curvature import layers_of
from .finite import check_numbers
from .kronecker import identity
from .layers import LayerSpec
from .objectives import Measurement, Objective
from .order import Same
from .placement import plain_numbers
from .proof import Proof
from .scoring import influence, self_influence


def gradient_dot(
    model: nn.Module,
    objective: Objective,
    train: Data,
    queries: Data,
    layers: LayerSpec = None,
    *,
    measurement: Measurement | None = None,
    progress: bool = True,
) -> Tensor:
    """∇m_q · (−∇ℓ_n), (Q, N), in nats squared per squared weight: ``influence`` with the identity for a curvature."""
    plain = identity(model, objective, train, layers=layers, progress=progress)
    return influence(model, objective, train, queries, plain, measurement=measurement, progress=progress)


@plain_numbers
def gradient_cosine(
    model: nn.Module,
    objective: Objective,
    train: Data,
    queries: Data,
    layers: LayerSpec = None,
    *,
    measurement: Measurement | None = None,
    progress: bool = True,
) -> Tensor:
    """``gradient_dot`` over both gradients' norms, (Q, N), from −1 to 1; 0 where a gradient is 0."""
    train, queries = (Same.of(x, name, ordered=True) for x, name in ((train, "train"), (queries, "queries")))
    plain = identity(model, objective, train, layers=layers, progress=progress)
    dots = influence(model, objective, train, queries, plain, measurement=measurement, progress=progress)
    own = self_influence(model, objective, train, plain, progress=progress).sqrt()  # (N,) ‖∇ℓ_n‖
    norms, squares = [], own_scorer(plain, None, BYTE_BUDGET)
    proof = Proof(
        model,
        layers_of(model, plain),
        objective,
        "log_likelihood" if measurement is None else measurement,
        length(queries),
    )
    for batch in walk(queries, name="queries", progress=False):
        norms.append(squares(proof.pairs(batch)).sum(-1).sqrt())
    lengths = torch.cat(norms)[:, None] * own  # (Q, N)
    cosines = torch.where(lengths > 0, dots / lengths, 0)
    check_numbers("cosines", {", ".join(plain.layers): cosines})
    return cosines


def tracin(
    model: nn.Module,
    objective: Objective,
    train: Data,
    queries: Data,
    checkpoints: Iterable[tuple[Mapping[str, Tensor], float]],
    layers: LayerSpec = None,
    *,
    measurement: Measurement | None = None,
    progress: bool = True,
) -> Tensor:
    """``gradient_dot`` summed over checkpoints, each times its learning rate, (Q, N).

    ``checkpoints``: (state dict, learning rate at that time) pairs, as saved while the model was trained. The model
    ends with the weights it came with. Raises ValueError where there is no checkpoint.
    """
    total: Tensor | None = None
    before = {name: value.clone() for name, value in model.state_dict().items()}
    try:
        for weights, rate in checkpoints:
            model.load_state_dict(weights)
            scores = rate * gradient_dot(
                model, objective, train, queries, layers, measurement=measurement, progress=progress
            )
            total = scores if total is None else total + scores
    finally:
        model.load_state_dict(before)
    if total is None:
        raise ValueError(
            "no checkpoint came; expected at least one (state dict, learning rate) pair of a training run."
        )
    return total


def bm25(
    documents: Sequence[Sequence[Hashable]], queries: Sequence[Sequence[Hashable]], *, k1: float = 1.5, b: float = 0.75
) -> Tensor:
    """BM25 of every document for every query, (Q, N) float64, 0 where they share no word.

    Documents and queries are lists of tokens: words, or token ids. A word that comes twice in a query counts twice.
    k1 says how soon a word's repetitions stop counting, b how far long documents are marked down. Raises ImportError
    where bm25s is not installed, ValueError where there is no document or no query.
    """
    try:
        import bm25s
    except ImportError:
        raise ImportError("BM25 needs the package bm25s; install it: pip install bm25s") from None
    if not any(len(document) for document in documents):
        raise ValueError(f"{len(documents)} documents with no word in them came; expected at least one with words.")
    if not len(queries):
        raise ValueError("no queries came; expected at least one list of words, [] for a query without any: [[]].")
    retriever = bm25s.BM25(k1=k1, b=b, method="lucene", dtype="float64")
    retriever.index([[repr(word) for word in document] for document in documents], show_progress=False)
    known = retriever.vocab_dict
    rows = []
    for query in queries:
        words = [repr(word) for word in query if repr(word) in known]
        rows.append(retriever.get_scores(words) if words else np.zeros(len(documents)))
    return torch.from_numpy(np.stack(rows)).double()
