"""Train M networks at once: shared minibatches, each network with its own weight on every example.

    step of network m:   ∇_θm (1/B) Σ_{n in minibatch} w_mn ℓ_n(θ_m)        B counts the examples of weight 0 too

No parameter belongs to two networks, so one backward pass of the M losses' sum gives each its own gradient, and an
elementwise optimiser is an optimiser for each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor, nn

from ...batches import bar, mapped, tensors
from ...objectives import Objective
from ...placement import plain_numbers
from .stacked import Networks, gradients_of, stack
from .training import Training


@plain_numbers
def retrain(
    build: Callable[[int], nn.Module],
    objective: Objective,
    inputs: Any,
    targets: Any,
    training: Training,
    weights: Tensor,
    seeds: int | Sequence[int] = 0,
    *,
    order: int | None = None,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> Networks:
    """Train one network for each row of ``weights``, all in one batch.

    build:   seed → a network before training; the same architecture for every seed, without BatchNorm and Dropout.
    inputs:  (N, ...), or a tuple or dict of such tensors; targets (N, ...) as the objective wants them.
    weights: (M, N) weights of the examples, 0 leaves one out and 1 keeps it; bool or floating point.
    seeds:   of the networks' starts, M of them or one for all.
    order:   the seed of the minibatches, which all M share; None: the first of ``seeds``.
    device:  where to train; None: where the networks are built.

    A loss divides by the full minibatch, never by what the weights keep. The same call gives the same bits on the same
    machine and device. Raises ValueError for weights that do not fit the examples, for networks that cannot be stacked,
    and for a training that diverges.
    """
    weights = weights[None] if weights.ndim == 1 else weights
    starts = [int(seeds)] * len(weights) if isinstance(seeds, int) else [int(s) for s in seeds]
    count = _check(inputs, targets, weights, starts)
    built = {seed: build(seed) for seed in dict.fromkeys(starts)}
    networks = stack([built[seed] for seed in starts], device)
    like = next(iter(networks.parameters.values()))
    x, y = (mapped(part, lambda t: t.to(like.device)) for part in (inputs, targets))
    w = weights.to(device=like.device, dtype=like.dtype)
    parameters, gradients = networks.parameters, gradients_of(networks.template, objective)
    optimiser, steps = training.optimise(list(parameters.values())), training.steps(count)
    rows = training.minibatches(count, starts[0] if order is None else order)
    for step, chosen in enumerate(bar(rows, steps, "retraining", "step") if progress else rows):
        chosen = chosen.to(like.device)
        some_x, some_y = mapped((x, y), itemgetter(chosen))
        found = gradients(parameters, some_x, some_y, w[:, chosen] / len(chosen))
        for name, p in parameters.items():
            p.grad = found[name]
        for group in optimiser.param_groups:
            group["lr"] = training.rate(step, steps)
        optimiser.step()
    _check_finite(parameters, training)
    return Networks({name: p.detach() for name, p in parameters.items()}, networks.template)


def _check(inputs: Any, targets: Any, weights: Tensor, starts: list[int]) -> int:
    """The number of examples N, where everything agrees on it."""
    counts = [len(t) for t in tensors((inputs, targets))]
    if not counts or len(set(counts)) > 1 or counts[0] == 0:
        raise ValueError(f"inputs and targets hold {counts} examples; expected as many of each, at least one.")
    if weights.ndim != 2 or weights.shape[1] != counts[0] or len(weights) == 0:
        raise ValueError(f"weights have shape {tuple(weights.shape)}; expected (M, {counts[0]}), one row per network.")
    if len(starts) != len(weights):
        raise ValueError(f"{len(starts)} seeds for {len(weights)} networks; expected one each, or one number for all.")
    return counts[0]


def _check_finite(parameters: dict[str, Tensor], training: Training) -> None:
    fine = torch.stack([p.flatten(1).isfinite().all(1) for p in parameters.values()]).all(0)
    if not bool(fine.all()):
        bad = (~fine).nonzero().flatten().tolist()
        raise ValueError(
            f"{len(bad)} of {len(fine)} networks ended with weights that are not finite, network {bad[0]} first; "
            f"expected a training that converges. Lower lr={training.lr:g}, and look for non-finite inputs."
        )
