"""Training as a function of the examples' weights, one step after another, and its states kept on the way.

A state is one tensor z (S, D): the weights of all trainable parameters in one row, the optimiser's memory in the
others. The states of T steps would be T of them; ``Tape`` keeps one every T/c steps and makes the others again, a
segment at a time, so that c + T/c are held: 2 √T for c = √T.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import grad
from torch.utils import _pytree as pytree

from ...batches import Data, bar, mapped, walk
from ...memory import free_bytes, say_bytes
from ...objectives import Objective, per_example
from ...placement import call, check_mode
from .run import Run


class Training:
    """A model, its objective and its data, as functions of one row of weights θ (D,) in place of the model's own."""

    def __init__(self, model: nn.Module, objective: Objective, train: Data, run: Run, weights: Tensor | None):
        check_mode(model)
        self.model, self.objective, self.run = model, objective, run
        self.inputs, self.targets, self.N = joined(train)
        self.own = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
        self._check_parameters()
        self.weights = self._checked_weights(weights)
        self.order = [rows.to(self.weights.device) for rows in run.order]
        outside = max(int(rows.max()) for rows in run.order), min(int(rows.min()) for rows in run.order)
        if outside[0] >= self.N or outside[1] < 0:
            raise ValueError(
                f"the run's batches hold positions from {outside[1]} to {outside[0]}; the training data has "
                f"{self.N} examples, expected 0 to {self.N - 1}. Make it for this data: Run.of(training, {self.N})."
            )

    def _check_parameters(self) -> None:
        if not self.own:
            raise ValueError("no parameter of the model requires a gradient; expected some that training changes.")
        kinds = {(p.dtype, p.device) for p in self.own.values()}
        if len(kinds) > 1:
            raise ValueError(f"trainable parameters are of {sorted(map(str, kinds))}; expected one dtype and device.")

    def _checked_weights(self, weights: Tensor | None) -> Tensor:
        like = next(iter(self.own.values()))
        if weights is None:
            return torch.ones(self.N, dtype=like.dtype, device=like.device)
        if weights.shape != (self.N,):
            raise ValueError(f"weights have shape {tuple(weights.shape)}; expected ({self.N},), one an example.")
        return weights.to(like)

    # --- weights as one row --------------------------------------------------------------------------------------

    def start(self) -> Tensor:
        """The state before the first step, (S, D): the model's weights, and zeros."""
        theta = self.flat(self.own)
        return torch.cat([theta[None], theta.new_zeros(self.run.optimiser.rows - 1, len(theta))])

    def flat(self, parameters: dict[str, Tensor]) -> Tensor:
        """{name: (..., *shape)} → (..., D)."""
        return torch.cat([p.flatten(p.ndim - self.own[name].ndim) for name, p in parameters.items()], dim=-1)

    def named(self, theta: Tensor) -> dict[str, Tensor]:
        """(..., D) → {name: (..., *shape)}: the inverse of ``flat``."""
        parts = theta.split([p.numel() for p in self.own.values()], dim=-1)
        return {
            name: part.reshape(*part.shape[:-1], *p.shape)
            for (name, p), part in zip(self.own.items(), parts, strict=True)
        }

    def outputs(self, parameters: dict[str, Tensor], inputs: Any) -> Tensor:
        buffers = {name: b.clone() for name, b in self.model.named_buffers()}
        return call(self.model, inputs, buffers | parameters)

    # --- steps ---------------------------------------------------------------------------------------------------

    def losses(self, parameters: dict[str, Tensor], k: int) -> tuple[Tensor, Tensor]:
        """L_k = Σ w_n ℓ_n / |B_k| of step k's batch, and its losses ℓ_n (B,)."""
        rows = self.order[k]
        outputs = self.outputs(parameters, mapped(self.inputs, lambda x: x[rows]))
        losses = per_example(
            self.objective.loss(outputs, mapped(self.targets, lambda x: x[rows])), outputs, "training loss"
        )
        return (self.weights[rows] * losses).sum() / len(rows), losses

    def gradient(self, theta: Tensor, k: int) -> Tensor:
        """∇L_k (D,)."""
        gradients, _ = grad(partial(self.losses, k=k), has_aux=True)(self.named(theta))
        return self.flat(gradients)

    def step(self, z: Tensor, k: int) -> Tensor:
        """U_k: the state after step k, from 0 on."""
        return self.run.optimiser.update(z, self.gradient(z[0], k), k + 1, self.run.rates[k])

    def steps(self, z: Tensor, begin: int, end: int) -> Iterator[Tensor]:
        """The states before steps ``begin`` … ``end − 1``, and after the last."""
        yield z
        for k in range(begin, end):
            z = self.step(z, k)
            if not bool(z.isfinite().all()):
                raise FloatingPointError(
                    f"the weights are no longer finite after step {k + 1} of {len(self.run)}, at a learning rate of "
                    f"{self.run.rates[k]:.3g}; expected a training that converges. Lower the rate."
                )
            yield z


def joined(train: Data) -> tuple[Any, Any, int]:
    """All batches of ``train`` as one: inputs, targets, and how many examples there are."""
    batches = list(walk(train, name="train", progress=False))
    parts = [(batch.inputs, batch.targets) for batch in batches]
    try:
        inputs, targets = pytree.tree_map(lambda *xs: torch.cat(xs) if isinstance(xs[0], Tensor) else xs[0], *parts)
    except (RuntimeError, ValueError) as problem:
        raise ValueError(
            f"the batches of train cannot be joined ({problem}); expected one length for all, since a run mixes them. "
            "Pad them alike."
        ) from None
    return inputs, targets, batches[-1].start + batches[-1].size


# --- states on the way -----------------------------------------------------------------------------------------------


class Tape:
    """A training run forwards, its state kept at the start of each segment; then read backwards."""

    def __init__(self, training: Training, segments: int, progress: bool):
        T = len(training.run)
        self.training, self.bounds = training, [T * c // segments for c in range(segments + 1)]
        self.kept: list[Tensor] = []
        z = training.start()
        for c in bar(range(segments), segments, "training", "segment") if progress else range(segments):
            self.kept.append(z)
            for state in training.steps(z, self.bounds[c], self.bounds[c + 1]):
                z = state
        self.end = z

    def backwards(self) -> Iterator[tuple[int, Tensor]]:
        """(k, the state before step k) for k = T − 1 … 0, a segment made again at a time."""
        after = self.end
        for c in reversed(range(len(self.kept))):
            begin, end = self.bounds[c], self.bounds[c + 1]
            *before, last = self.training.steps(self.kept.pop(), begin, end)
            _check_same(last, after, end)
            after = before[0]
            for k in reversed(range(begin, end)):
                yield k, before.pop()


def _check_same(again: Tensor, first: Tensor, k: int) -> None:
    """Raise RuntimeError where a segment that was made again ends elsewhere."""
    gap = float((again - first).norm() / first.norm().clamp_min(1e-30))
    if gap > 1e3 * torch.finfo(first.dtype).eps:
        raise RuntimeError(
            f"step {k} ended elsewhere when it was repeated (relative difference {gap:.2g}); expected the same numbers "
            "every time. Call torch.use_deterministic_algorithms(True)."
        )


def segments_that_fit(T: int, asked: int | None, state: int, beside: int, device: torch.device) -> int:
    """The number of checkpoints: ``asked``, or √T; MemoryError where they and a segment's states do not fit.

    state, beside: bytes of one state, and of what is held beside the states.
    """

    def bytes_of(c: int) -> int:
        return (c + -(-T // c)) * state + beside

    best = max(1, math.isqrt(T))
    count = best if asked is None else asked
    if not 1 <= count <= T:
        raise ValueError(f"checkpoints={count}; expected 1 to {T}, the number of steps. None takes √T: {best}.")
    room = free_bytes(device)
    if room is None or bytes_of(count) <= room:
        return count
    if bytes_of(best) <= room:
        instead = f"With checkpoints={best} it would be {say_bytes(bytes_of(best))}."
    else:
        instead = (
            f"No number would do, the best, {best}, takes {say_bytes(bytes_of(best))}: ask fewer queries at a time "
            f"(they hold {say_bytes(beside)}), or train for fewer steps."
        )
    raise MemoryError(
        f"{count} checkpoints of {say_bytes(state)}, the {-(-T // count)} states of a segment and the queries' "
        f"derivatives take {say_bytes(bytes_of(count))}; expected at most {say_bytes(room)}, what is free. {instead}"
    )
