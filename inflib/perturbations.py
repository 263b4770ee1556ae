"""Changing a training example instead of removing it: how a score moves with the example's input.

    ∂ score(q, n) / ∂x_n = −∂/∂x_n ⟨P_q, ∇_θ ℓ(x_n, y_n)⟩,          P_q = (C + diag λ)⁻¹ ∇m_q

(Koh & Liang 2017, "Understanding Black-box Predictions via Influence Functions", eq. 5: their I_pert,loss.) Replacing
x_n by x_n + δ in training is expected to move what query q measures by ⟨∂score/∂x_n, δ⟩ / N, to first order in δ: which
pixels of a training digit would have to change, and which way. The curvature is taken as it is.

⟨P_q, ∇_θ ·⟩ is a derivative along P_q, taken forward over one reverse pass to the input: exact, no finite step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import grad, jvp, vmap

from .batches import BYTE_BUDGET, Batch, Data, chunks, mapped, say, tensors
from .curvature import Curvature, Damping, layers_of
from .exact import bytes_of_a_product
from .finite import check_numbers
from .hooks import Matrices, checked_outputs
from .jacobians import as_parameters, matrices_of, plain_attention
from .layers import Exactly
from .objectives import Measurement, Objective
from .order import check_order
from .passes import Fit
from .placement import call, check_mode, plain_numbers
from .queries import Preconditioned, gather, passes


@plain_numbers
def perturbation(
    model: nn.Module,
    objective: Objective,
    train: Data,
    queries: Data,
    curvature: Curvature,
    damping: Damping = None,
    *,
    at: str | None = None,
    measurement: Measurement | None = None,
    max_bytes: int = BYTE_BUDGET,
    progress: bool = True,
) -> Tensor:
    """The gradient of every score in its training example's input, (Q, N, *input's shape).

    at:    which input, by its name where inputs are a dict; or the name of a module whose *output* is changed in its
           place, an embedding where the inputs are token ids. None: the one tensor of floating-point inputs.
    train: give few examples: the answer is as large as all of them together for each query.

    ``contribution(perturbation(...), n_train)`` is the measurement's expected change per unit of the input, in the
    sense of ``influence``: positive where a larger input would make the example more of a proponent. Other arguments,
    and errors, as for ``influence``. Raises TypeError for inputs that are whole numbers, ValueError for a name that is
    no input and no module, or for inputs of several shapes. Source: Koh & Liang 2017, eq. 5.
    """
    layers = layers_of(model, curvature)
    check_mode(model)
    train, queries = check_order(train, "train"), check_order(queries, "queries")
    asked = gather(
        model, layers, objective, queries, "queries", "log_likelihood" if measurement is None else measurement, progress
    )
    groups = Preconditioned(asked, curvature, damping, max_bytes)
    fit = Fit.of(model, objective, train, Exactly(curvature.shapes, curvature.facts.untied), "observed", progress=False)
    found = []
    for P, batches in passes(groups, train, "perturbations", progress):  # (Q', o, i) a layer
        columns: list[Tensor] = []
        for batch in batches:
            fit.proof.recording(batch)
            columns.append(-_along(fit, batch, P, at, max_bytes))
            _check_shape(columns, at)
            check_numbers("gradients in the input", {", ".join(layers): columns[-1]})
        found.append(torch.cat(columns, dim=1))
        del P
    return torch.cat(found)


def _along(fit: Fit, batch: Batch, P: Matrices, at: str | None, max_bytes: int) -> Tensor:
    """∂/∂x ⟨P_q, ∇_θ Σ_n ℓ_n⟩ of a batch, (Q, B, *shape): each example's loss sees its own x alone."""
    checked_outputs(fit.model, fit.objective, batch)
    x, outputs = _changed(fit, batch, at)
    own, parts, each = matrices_of(fit), [], 2 * bytes_of_a_product(fit, batch)

    def slope(matrices: Matrices) -> Tensor:
        return grad(lambda x: fit.objective.loss(outputs(matrices, x), batch.targets).sum())(x)

    for some in chunks(len(next(iter(P.values()))), each, max_bytes):
        directions = {name: P[name][some].to(matrix) for name, matrix in own.items()}
        with plain_attention():
            parts.append(vmap(lambda one: jvp(slope, (own,), (one,))[1])(directions))
    return torch.cat(parts)


def _changed(fit: Fit, batch: Batch, at: str | None) -> tuple[Tensor, Callable[[Matrices, Tensor], Tensor]]:
    """What is changed, x (B, ...), and the model's outputs as a function of the weights and of it."""
    modules = dict(fit.model.named_modules())
    if at is not None and not (isinstance(batch.inputs, Mapping) and at in batch.inputs):
        if at not in modules:
            there = list(batch.inputs) if isinstance(batch.inputs, Mapping) else "one without a name"
            raise ValueError(
                f"at={at!r}; expected the name of an input ({there}) or of a module whose output is to be changed."
            )
        return _after(fit, batch, modules[at])
    every = [x for x in tensors(batch.inputs) if x.is_floating_point() and len(x) == batch.size]
    x = batch.inputs[at] if at is not None else every[0] if len(every) == 1 else None
    if x is None or not x.is_floating_point():
        raise TypeError(
            f"the inputs are {say(batch.inputs)} with {len(every)} floating-point tensors that have the batch's "
            "examples; expected one to change. Name it, at='...'; token ids have no derivative, their embedding has: "
            "at= the name of the module that reads them."
        )

    def outputs(matrices: Matrices, now: Tensor) -> Tensor:
        inputs = mapped(batch.inputs, lambda part: now if part is x else part)
        return call(fit.model, inputs, as_parameters(fit, matrices))

    return x.detach(), outputs


def _after(fit: Fit, batch: Batch, module: nn.Module) -> tuple[Tensor, Callable[[Matrices, Tensor], Tensor]]:
    """The same for a module's output, to which x, which is 0, is added."""
    seen: list[Tensor] = []
    with module.register_forward_hook(lambda _module, _args, y: seen.append(y.detach())), torch.no_grad():
        call(fit.model, batch.inputs)
    if len(seen) != 1 or len(seen[0]) != batch.size:
        raise ValueError(
            f"at: the module gave {[tuple(y.shape) for y in seen]} in a forward pass over {batch.size} examples; "
            "expected one output with the examples on its first axis."
        )

    def outputs(matrices: Matrices, shift: Tensor) -> Tensor:
        handle = module.register_forward_hook(lambda _module, _args, y: y + shift)
        try:
            return call(fit.model, batch.inputs, as_parameters(fit, matrices))
        finally:
            handle.remove()

    return torch.zeros_like(seen[0]), outputs


def _check_shape(columns: list[Tensor], at: Any) -> None:
    if columns[-1].shape[2:] != columns[0].shape[2:]:
        raise ValueError(
            f"the inputs of a batch are {tuple(columns[-1].shape[2:])} an example, those before it "
            f"{tuple(columns[0].shape[2:])}; expected one shape. Ask about batches of one length at a time."
        )
