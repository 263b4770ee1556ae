"""Backwards through training: what each query measured at the end, differentiated in every example's weight.

p_k = dm/dz_k, (Q, S, D) for all queries, is carried from the last state to the first:

    (p, q) ← p ∂U_k/∂(z, g)            through the optimiser's step: q (Q, D) is what reached the gradient
    dm/dw_n += ⟨q, ∇ℓ_n⟩ / |B_k|       of the examples in the batch
    p_θ += H_k q                       H_k the Hessian of L_k

Both products are the derivative of (∇L_k, ℓ) along q: forward mode over reverse, in which the Q queries share
everything but their tangents.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import grad, jacrev, jvp, vjp, vmap

from ...batches import BYTE_BUDGET, Data, chunks, walk
from ...jacobians import plain_attention
from ...objectives import Measurement, Objective
from ...placement import plain_numbers
from .replay import Tape, Training, segments_that_fit
from .run import Run

COPIES = 4  # of a query's derivative: p before and after the step, q and H q


@dataclass(frozen=True, eq=False)
class ThroughTraining:
    """Derivatives of Q trained measurements in N weights, with what was trained."""

    scores: Tensor  # N · dm/dw, (Q, N): comparable with influence(...)
    measured: Tensor  # m at the trained weights, (Q,)
    parameters: dict[str, Tensor]  # the trained weights
    sensitivity: Tensor  # ‖dm/dθ_k‖ at the checkpoints and at the end, (Q, c + 1)
    steps: Tensor  # the k of these, (c + 1,)

    @property
    def amplification(self) -> Tensor:
        """‖dm/dθ_0‖ / ‖dm/dθ_T‖, (Q,): how much more a small change of the start counts than one of the end."""
        return self.sensitivity[:, 0] / self.sensitivity[:, -1]

    def __repr__(self) -> str:
        Q, N = self.scores.shape
        return (
            f"derivatives of {Q} trained measurements in the weights of {N} examples, through {int(self.steps[-1])} "
            f"steps; a change of the start counts {float(self.amplification.median()):.2g} times one of the end"
        )


@plain_numbers
@torch.no_grad()
def through_training(
    model: nn.Module,
    objective: Objective,
    train: Data,
    queries: Data,
    run: Run,
    *,
    measurement: Measurement | None = None,
    weights: Tensor | None = None,
    checkpoints: int | None = None,
    max_bytes: int = BYTE_BUDGET,
    progress: bool = True,
) -> ThroughTraining:
    """Train by ``run`` from where the model is, and differentiate what each query measures at the end.

    model:       at its start, in evaluation mode; it is left as it was. All its trainable parameters are trained.
    train:       (inputs, targets) batches, joined: ``run`` names examples by their position. In memory as a whole.
    measurement: as for ``influence``.
    weights:     (N,), where to differentiate; None at ones. What retraining on half-subsets does is told better from
                 their middle, ½ for every example (``benchmarks/top_rung.py``).
    checkpoints: how many states are kept on the way, None: √T. They and T / checkpoints more are held at a time, S
                 numbers a weight each (2 for SGD, 3 for Adam); a training step is taken twice.
    max_bytes:   the largest temporary array of the queries' products; only speed depends on it.

    Cost: two trainings, and for each query and step a product with the Hessian, about two gradients of the batch.
    Raises MemoryError before anything is trained where the states do not fit, with a number of checkpoints that does;
    FloatingPointError for a training that diverges, RuntimeError for one that cannot be repeated.
    """
    training = Training(model, objective, train, run, weights)
    asked = list(walk(queries, name="queries", progress=False))
    z = training.start()
    Q, T, state = sum(batch.size for batch in asked), len(run), z.numel() * z.element_size()
    segments = segments_that_fit(T, checkpoints, state, COPIES * Q * state, z.device)
    with plain_attention():
        tape = Tape(training, segments, progress)
        parameters = training.named(tape.end[0])
        measured, slope = _measure(training, asked, measurement, parameters)
        p = torch.cat([slope[:, None], slope.new_zeros(Q, *z[1:].shape)], dim=1)  # (Q, S, D)
        slopes = z.new_zeros(Q, training.N)
        norms, kept = [slope.norm(dim=1)], set(tape.bounds)
        each = _bytes_a_query(training)
        for k, before in tape.backwards():
            for rows in chunks(Q, each, max_bytes):
                p[rows] = _pull(training, k, before, p[rows], slopes[rows])
            if k in kept:
                norms.append(p[:, 0].norm(dim=1))
    return ThroughTraining(
        training.N * slopes, measured, parameters, torch.stack(norms[::-1], dim=1), torch.tensor(tape.bounds)
    )


def _measure(
    training: Training, asked: list, measurement: Measurement | None, parameters: dict[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """Every query's measurement at the trained weights, (Q,), and its derivative there, (Q, D)."""
    values, slopes = [], []
    for batch in asked:

        def measure(own: dict[str, Tensor], batch=batch) -> tuple[Tensor, Tensor]:  # type: ignore[no-untyped-def]
            found = training.objective.measure(measurement, training.outputs(own, batch.inputs), batch.targets)
            return found, found

        slope, value = jacrev(measure, has_aux=True)(parameters)
        values.append(value)
        slopes.append(training.flat(slope))
    return torch.cat(values), torch.cat(slopes)


def _pull(training: Training, k: int, z: Tensor, p: Tensor, slopes: Tensor) -> Tensor:
    """dm/dz before step k, from dm/dz after it, both (Q, S, D); the batch's share is added to ``slopes`` (Q, N)."""
    run, rows = training.run, training.order[k]
    update = partial(run.optimiser.update, k=k + 1, rate=run.rates[k])
    through = vjp(update, z, training.gradient(z[0], k))[1]
    p, q = vmap(through)(p)  # (Q, S, D), (Q, D)
    gradient = grad(partial(training.losses, k=k), has_aux=True)
    theta = training.named(z[0])

    def along(direction: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        return jvp(gradient, (theta,), (direction,))[1]

    product, dots = vmap(along)(training.named(q))  # H q {name: (Q, *shape)}, ⟨q, ∇ℓ_n⟩ (Q, B)
    slopes.index_add_(1, rows, dots / len(rows))
    p[:, 0] += training.flat(product)
    return p


def _bytes_a_query(training: Training) -> int:
    """Of one query's tangents in a step: those of what a batch's forward pass leaves for its gradient, and of that."""
    held = 0

    def count(x: Tensor) -> Tensor:
        nonlocal held
        held += x.numel() * x.element_size()
        return x

    parameters = {name: p.clone().requires_grad_() for name, p in training.own.items()}
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(count, lambda x: x):
        training.losses(parameters, 0)
    return 2 * held
