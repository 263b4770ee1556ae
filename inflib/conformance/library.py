"""What a library has to do to be asked: fit a curvature, and score examples with it. The rest is said, not assumed.

An adapter brings a library's answers into the conventions that every check speaks:

    score      dm/dε of a query's measurement m = −ℓ (its log-likelihood) for the objective (1/N) Σ ℓ + ε ℓ_n, so that
               an example which speaks for a query scores above 0; ℓ is summed over an example's tokens
    curvature  the mean over the examples fitted; each layer's weight and bias together
    damping    a number added to it, the same for every layer; None is the library's own choice for each layer

Another sign, scale or order of axes is a convention, and the adapter's to translate. What a library cannot do at all
is left out of ``offers``, and ``lacks`` says why: a check that needs it is then "not offered", which is no failure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

from torch import Tensor, nn

ROUNDING = 1e-8  # what float64 may leave of an equality, relative
PAD = 0  # the token that fills a sequence up; real tokens are 1 and more

OFFERS = {
    "expected labels": "a curvature from the exact mean over the model's own labels",
    "sampled labels": "a curvature from labels drawn from the model",
    "observed labels": "a curvature from the data's labels, the empirical Fisher",
    "squared error": "½‖f − y‖², the loss of a Gaussian of unit variance",
    "next token": "sequences, their loss summed over the tokens that count",
    "padding": "sequences of several lengths in one batch",
    "layers": "the layers that count, chosen by name",
    "trainable layers": "without a choice, the layers that are not frozen",
    "layer scores": "scores split by layer",
    "self-influence": "every example's influence on itself without the whole matrix",
    "damping": "the damping as a number",
    "default damping": "a damping of each layer's own, chosen by the library",
    "own streams": "drawn labels that belong to an example: no batch and no generator of others moves them",
    "draws": "several drawn labels for each example",
}


@dataclass(frozen=True)
class Examples:
    """Inputs with what they are trained on.

    inputs: (N, i) numbers, or (N, T) token ids, PAD behind the shorter ones.
    targets: (N,) classes, (N, o) numbers, or for tokens (N, T) bool: which of them are in the loss, never the first.
    """

    inputs: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, which: Any) -> Examples:
        return Examples(self.inputs[which], self.targets[which])


@dataclass(frozen=True)
class Case:
    """One small problem, and how it is to be worked."""

    model: nn.Module
    loss: str  # "cross-entropy", "squared error" or "next token"
    train: Examples
    queries: Examples
    layers: tuple[str, ...] | None = None  # None: the library's own choice
    labels: str = "expected"
    draws: int = 1
    batch_size: int = 100

    def but(self, **changes: Any) -> Case:
        """The case with something changed."""
        return replace(self, **changes)


class Library(Protocol):
    """What is asked of a library; how the answers are meant is said at the top of this file."""

    name: str
    version: str
    offers: frozenset[str]  # keys of OFFERS
    lacks: Mapping[str, str]  # the others, each with why
    rounding: float  # what its arithmetic may leave of an equality, relative: ROUNDING, more where it has no float64

    def fit(self, case: Case) -> Any:
        """The curvature of ``case.train``, in whatever form the library keeps it."""

    def scores(self, fitted: Any, case: Case, damping: float | None) -> Tensor:
        """(Q, N), of ``case.queries`` and ``case.train``, which need not be the examples fitted."""

    def layer_scores(self, fitted: Any, case: Case, damping: float | None) -> Tensor:
        """(Q, N, L); needed for "layer scores"."""

    def self_influence(self, fitted: Any, case: Case, damping: float | None) -> Tensor:
        """(N,), of ``case.train``; needed for "self-influence"."""
