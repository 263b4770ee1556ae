"""A damping from the training recipe alone: how far it could go, and what weight decay held it by.

On a quadratic with curvature h, gradient descent at rates η_1 … η_T moves what it started from to the minimum by the
share 1 − Π (1 − η_k h); a Newton step damped by λ by h / (h + λ). Both are h Σ η for small h and 1 for large, if

    λ = 1 / Σ_k η_k        and with momentum μ, which repeats each step 1 + μ + μ² + … times,    λ = (1 − μ) / Σ_k η_k.

Weight decay is curvature of the objective itself, which G lacks; it is added. One number for all layers, as training
has one. Source of λ = 1 / (η T): Wang et al. 2025, "Better training data attribution via better inverse Hessian-vector
products" (ASTRA). What it is worth beside the best of twelve dampings: ``benchmarks/damping_choice.py``.
"""

from __future__ import annotations

from collections.abc import Iterable


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
