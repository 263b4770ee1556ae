"""A damping chosen without retraining: from the training recipe, and from that for a curvature that is not exact.

On a quadratic with curvature h, gradient descent at rates η_1 … η_T moves what it started from to the minimum by the
share 1 − Π (1 − η_k h); a Newton step damped by λ by h / (h + λ). Both are h Σ η for small h and 1 for large, if

    λ = 1 / Σ_k η_k        and with momentum μ, which repeats each step 1 + μ + μ² + … times,    λ = (1 − μ) / Σ_k η_k.

Weight decay is curvature of the objective itself, which G lacks; it is added. One number for all layers, as training
has one. It is meant for exact G and for refined scores. EK-FAC errs in its own way at each damping, and does best at
the one where its scores of a few queries agree best with refined ones at this λ. Source of λ = 1 / (η T): Wang et al.
2025, "Better training data attribution via better inverse Hessian-vector products" (ASTRA). What both are worth beside
the best of many dampings: ``benchmarks/damping_choice.py``.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from ..batches import Data
from ..curvature import Curvature, Damping, Relative, resolve_damping
from ..implicit import refine
from ..objectives import Measurement, Objective
from ..scoring import influence

FACTORS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)  # tried, in units of each layer's mean eigenvalue


def damping_by_training(rates: Iterable[float], *, momentum: float = 0.0, weight_decay: float = 0.0) -> float:
    """λ = weight decay + (1 − momentum) / Σ rates, for ``damping=``.

    rates: the learning rate of each step of stochastic gradient descent. Adam's are of another unit: it divides every
           step by the gradient's size, and there is no such number.

    Raises ValueError for rates whose sum is not positive, and for a momentum that is not in [0, 1).
    """
    travelled = sum(rates)
    if not (travelled > 0 and 0 <= momentum < 1 and weight_decay >= 0):
        raise ValueError(
            f"rates that sum to {travelled:g}, momentum={momentum:g}, weight_decay={weight_decay:g}; expected the rate "
            "of each step, a momentum from 0 to below 1, and a decay of 0 or more."
        )
    return weight_decay + (1 - momentum) / travelled


def damping_by_agreement(
    model: nn.Module,
    objective: Objective,
    train: Data,
    queries: Data,
    curvature: Curvature,
    near: Damping,
    *,
    factors: Iterable[float] = FACTORS,
    steps: int = 10,
    measurement: Measurement | None = None,
    progress: bool = True,
) -> Relative:
    """The factor at which ``curvature``'s scores agree best with refined ones at damping ``near``, for ``damping=``.

    queries: a few; ten do. They need no retraining and no labels of their own beyond those they are asked with.
    near:    a damping for exact G: ``damping_by_training(...)``.
    steps:   conjugate-gradient steps of the refined scores, each a pass over ``train``.

    Agreement is Pearson's correlation over the training examples, its mean over the queries. Costs the refined solve
    and one pass over ``train`` for each factor. Raises ValueError where no factor came.
    """
    tried = list(factors)
    if not tried:
        raise ValueError("no factor came; expected some multiples of the mean eigenvalue to choose from.")

    def scores(used: Curvature, damping: Damping) -> Tensor:
        return influence(model, objective, train, queries, used, damping, measurement=measurement, progress=progress)

    at = resolve_damping(curvature, near)
    reference = _centred(scores(refine(curvature, model, objective, train, steps=steps, progress=progress), at))
    agreement = {f: _centred(scores(curvature, Relative(f))) for f in tried}
    return Relative(max(tried, key=lambda f: float(cosine_similarity(agreement[f], reference, dim=1).mean())))


def _centred(scores: Tensor) -> Tensor:
    return scores - scores.mean(1, keepdim=True)
