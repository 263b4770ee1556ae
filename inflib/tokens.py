"""The influence of one token of a training sequence: of its loss as an output, of its embedding as an input.

``influence(..., keep=("token",))`` splits a gradient by position (Grosse et al. 2023, eq. 31), but what passes through
position t carries every later token's loss. Appendix B.1 asks about the token itself. With P_q = (C + λ)⁻¹ ∇m_q:

    output token   d/dε of weighting its loss by 1 + ε          −⟨P_q, ∇_θ ℓ_t⟩                              (eq. 36)
    input token    d/dε of scaling its embedding by 1 + ε       −⟨P_q, ∇_θ (e_t · ∂ℓ/∂e_t)⟩                  (eq. 38)

⟨P_q, ∇_θ ·⟩ is a derivative along P_q, so one forward-mode pass gives it for all tokens at once: exactly, where the
paper takes a small finite step. On the input side it goes over a backward pass to the embeddings' scales.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import grad, jvp, vmap

from .batches import BYTE_BUDGET, Batch, Data, chunks, tensors, walk
from .contractions import Keep, join
from .curvature import Curvature, Damping, layers_of
from .exact import bytes_of_a_product
from .finite import check_numbers
from .hooks import Matrices, checked_outputs
from .jacobians import as_parameters, matrices_of, plain_attention
from .layers import Exactly
from .objectives import Measurement
from .order import check_order
from .passes import Fit
from .placement import call, check_mode, plain_numbers
from .positions import check_batch
from .queries import Preconditioned, gather, passes
from .sequences import NextToken

PerToken = Callable[[Fit, Batch, Matrices], Tensor]  # of a batch (B, T), along one query's P


@plain_numbers
def output_tokens(
    model: nn.Module,
    objective: NextToken,
    train: Data,
    queries: Data,
    curvature: Curvature,
    damping: Damping = None,
    *,
    measurement: Measurement | None = None,
    max_bytes: int = BYTE_BUDGET,
    progress: bool = True,
) -> Tensor:
    """Influence of every predicted token on every query, (Q, N, T); position t is the token ``targets[:, t]``.

    Its loss alone, with all before it as context: the tokens' influences add up to the sequence's. 0 where the target
    does not count. Arguments, units, sign and errors as for ``inflib.influence``. Source: Grosse et al. 2023, eq. 36.
    """
    _check_objective(objective)

    def along(fit: Fit, batch: Batch, direction: Matrices) -> Tensor:
        def losses(matrices: Matrices) -> Tensor:
            outputs = call(fit.model, batch.inputs, as_parameters(fit, matrices))
            return objective.token_losses(outputs, batch.targets)  # (B, T)

        return jvp(losses, (matrices_of(fit),), (direction,))[1]

    return _per_token(model, objective, train, queries, curvature, damping, along, measurement, max_bytes, progress)


@plain_numbers
def input_tokens(
    model: nn.Module,
    objective: NextToken,
    train: Data,
    queries: Data,
    curvature: Curvature,
    damping: Damping = None,
    *,
    embedding: str | None = None,
    measurement: Measurement | None = None,
    max_bytes: int = BYTE_BUDGET,
    progress: bool = True,
) -> Tensor:
    """Influence of every token that is read on every query, (Q, N, T); position t is the token ``input_ids[:, t]``.

    What scaling its embedding by 1 + ε does to the sequence's influence, d/dε: positive where a stronger token would
    make the sequence more of a proponent. The tokens do not add up to the sequence's influence.

    embedding: the name of the nn.Embedding that reads the tokens; None finds the one whose input is a batch's ids.
    Other arguments, units and errors as for ``inflib.influence``. Source: Grosse et al. 2023, eq. 37 and 38.
    """
    _check_objective(objective)
    module = _embedding(model, objective, train, embedding)

    def along(fit: Fit, batch: Batch, direction: Matrices) -> Tensor:
        own = matrices_of(fit)
        unscaled = torch.zeros_like(batch.targets, dtype=next(iter(own.values())).dtype)  # (B, T)

        def slope(matrices: Matrices) -> Tensor:
            def loss(scales: Tensor) -> Tensor:
                handle = module.register_forward_hook(lambda _module, _args, e: e * (1 + scales[..., None]))
                try:
                    outputs = call(fit.model, batch.inputs, as_parameters(fit, matrices))
                finally:
                    handle.remove()
                return objective.token_losses(outputs, batch.targets).sum()

            return grad(loss)(unscaled)

        # forward over reverse: torch's reverse over forward is wrong through a LayerNorm (2.13)
        return jvp(slope, (own,), (direction,))[1]

    return _per_token(model, objective, train, queries, curvature, damping, along, measurement, max_bytes, progress)


def _per_token(
    model: nn.Module,
    objective: NextToken,
    train: Data,
    queries: Data,
    curvature: Curvature,
    damping: Damping,
    along: PerToken,
    measurement: Measurement | None,
    max_bytes: int,
    progress: bool,
) -> Tensor:
    """−``along`` every query's preconditioned gradient, for every batch: (Q, N, T)."""
    layers = layers_of(model, curvature)
    check_mode(model)
    train, queries = check_order(train, "train"), check_order(queries, "queries")
    asked = gather(
        model, layers, objective, queries, "queries", "log_likelihood" if measurement is None else measurement, progress
    )
    groups = Preconditioned(asked, curvature, damping, max_bytes)
    fit = Fit.of(model, objective, train, Exactly(curvature.shapes), "observed", progress=progress)
    scores = []
    for P, batches in passes(groups, train, "token influence", progress):  # (Q', o, i) a layer
        columns = []
        for batch in batches:
            checked_outputs(model, objective, batch)
            parts, each = [], 2 * bytes_of_a_product(fit, batch)
            for some in chunks(len(next(iter(P.values()))), each, max_bytes):
                directions = {name: P[name][some].to(layers[name].weight.dtype) for name in layers}
                with plain_attention():
                    parts.append(-vmap(lambda one, batch=batch: along(fit, batch, one))(directions))  # (Q'', B, T)
            columns.append(torch.cat(parts))
            check_numbers("token influences", {", ".join(layers): columns[-1]})
        scores.append(join(columns, Keep(token=True)))
        del P
    return torch.cat(scores)


def _check_objective(objective: Any) -> None:
    if not isinstance(objective, NextToken):
        raise TypeError(
            f"token influence got {type(objective).__name__}(); expected NextToken(), whose loss has a term a token."
        )


def _embedding(model: nn.Module, objective: NextToken, train: Data, name: str | None) -> nn.Embedding:
    """The module that turns token ids into vectors: the one named, or the one that is given a batch's own ids."""
    modules = {n: m for n, m in model.named_modules() if isinstance(m, nn.Embedding)}
    if name is not None:
        if name not in modules:
            raise ValueError(f"embedding={name!r}; expected the name of an nn.Embedding, one of {list(modules)}.")
        return modules[name]
    batch, found = next(walk(train, name="train", progress=False)), []
    check_batch(objective, batch.inputs, batch.targets)

    def hook(n: str) -> Callable[..., None]:
        return lambda _module, args, _output: found.append(n) if _same(args[0], batch.inputs) else None

    handles = [module.register_forward_hook(hook(n)) for n, module in modules.items()]
    try:
        with torch.no_grad():
            call(model, batch.inputs)
    finally:
        for handle in handles:
            handle.remove()
    if len(found) != 1:
        raise ValueError(
            f"{len(found)} nn.Embedding modules read the token ids ({found or list(modules)}); expected one. "
            "Name it: embedding='...'."
        )
    return modules[found[0]]


def _same(ids: Tensor, inputs: Any) -> bool:
    if isinstance(inputs, Mapping) and "input_ids" in inputs:  # not its position_ids, which an embedding reads too
        inputs = inputs["input_ids"]
    return any(x.shape == ids.shape and torch.equal(x, ids) for x in tensors(inputs) if x.dtype == ids.dtype)
