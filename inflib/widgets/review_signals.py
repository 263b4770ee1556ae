"""Which labels look wrong? Orders to review in, the most suspicious example first.

    opposition      of the influence of its ten strongest others, the share that argues against its label
    self-influence  ∇ℓ_nᵀ (C + λ)⁻¹ ∇ℓ_n: an example that moves its own loss much stands alone
    harm            minus its summed influence on the log odds of a clean set's labels
    loss            what anybody would try first

Opposition is relative: the score of another example n' over √(its self-influence), so that the ten are those whose
direction matters and not those whose gradients are long. It is the one that does not fade where the network has learned
the wrong labels by heart: all gradients are short there, and their directions stay.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from ..batches import Data
from ..curvature import Damping
from ..hooks import Pair
from ..index import TrainIndex
from ..low_rank import LowRankNote
from ..objectives import Objective
from ..scoring import influence
from .review_examples import batches, outputs_of

NEAREST = 10  # others whose influence is weighed
PAIRS = 10**8  # of examples: beyond, opposition takes too long to be asked for without being named
SHARE = 0.05  # of 1/(Λ + λ) left out where layers are applied once: an error of a hundredth on the course's digits


def suspicion(
    model: nn.Module,
    objective: Objective,
    index: TrainIndex,
    train: Any,
    clean: Any = None,
    *,
    damping: Damping = None,
    opposition: bool | None = None,
) -> dict[str, Tensor]:
    """{signal: (N,)}, the most suspicious example highest, the recommended signal first.

    index:      of the training examples, under the labels that ``train`` has.
    train:      ``Examples``, or digits; clean: others whose labels can be trusted, for the harm, or None.
    opposition: whether to compare all pairs of examples; None: up to ten thousand examples.

    Raises ValueError where the index holds other examples than ``train``.
    """
    N = len(train.labels)
    if len(index) != N:
        raise ValueError(
            f"the index holds {len(index)} examples, and {N} came; expected those it was built from, in their order."
        )
    data = batches(model, train.inputs, train.labels)
    found = {}
    if opposition or (opposition is None and N * N <= PAIRS):
        found["opposition"] = opposed(model, objective, index, data, damping)
    found["self-influence"] = index.self_influence(damping=damping)
    if clean is not None:
        some = batches(model, clean.inputs, clean.labels)
        found["harm"] = -index.influence(model, objective, some, damping=damping, measurement="margin", sets="all")[0]
    found["loss"] = objective.loss(outputs_of(model, data), train.labels.cpu())
    return {name: values.detach().double().cpu() for name, values in found.items()}


def opposed(model: nn.Module, objective: Objective, index: TrainIndex, data: Data, damping: Damping = None) -> Tensor:
    """The opposition to every example's label, (N,): −1 where the ten strongest others all agree, 1 where none does."""
    size = index.self_influence(damping=damping).clamp_min(torch.finfo(torch.float32).tiny).sqrt()
    parts, at = [], 0
    for batch in data:
        scores = _scores(model, objective, index, data, batch, damping) / size
        rows = torch.arange(len(scores), device=scores.device)
        scores[rows, at + rows] = 0
        parts.append(-shares(scores))
        at += len(scores)
    return torch.cat(parts)


def shares(scores: Tensor, k: int = NEAREST) -> Tensor:
    """What the k largest of each row add up to, over what their sizes do, (B,), from −1 to 1."""
    strongest = scores.gather(1, scores.abs().topk(min(k, scores.shape[1]), dim=1).indices)
    return strongest.sum(1) / strongest.abs().sum(1).clamp_min(torch.finfo(scores.dtype).tiny)


def _scores(
    model: nn.Module, objective: Objective, index: TrainIndex, data: Data, batch: Any, damping: Damping
) -> Tensor:
    """(B, N) influence of all examples on a batch's own log odds."""
    if not all(isinstance(held, Pair) for held in index.held.values()):
        return index.influence(model, objective, [batch], damping=damping, measurement="margin")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LowRankNote)
        how: dict[str, Any] = dict(measurement="margin", low_rank=SHARE, progress=False)
        return influence(model, objective, data, [batch], index.curvature, damping, **how)
