"""The exact curvature of small models: what every approximation is measured against.

    Gauss-Newton   G = (1/N) Σ Jᵀ H_out J                  J = d outputs/dθ, H_out = Hessian of ℓ in the outputs
    Fisher         F = (1/N) Σ E_y[∇ℓ ∇ℓᵀ]                 y from the model: F = G here; y of the data: empirical
    Hessian        H = (1/N) Σ ∇²ℓ                          = G + Σ_c (dℓ/df_c) ∇²f_c

Everything here goes through ``torch.func`` (per-example Jacobians, forward over reverse), never through the hooks that
the approximations use, so that the two check each other. A dense matrix takes D² numbers, for D up to a few thousand;
``gauss_newton_product`` gives G v without it, in the memory of a few gradients.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.func import grad, jvp, vjp, vmap

from .batches import BYTE_BUDGET, Batch, Data, accumulator, chunks, rows_of, walk
from .curvature import facts_of
from .dense import BlockDense, Dense
from .finite import check_finite
from .hooks import Matrices, checked_outputs
from .jacobians import (
    as_parameters,
    jacobian,
    matrices_of,
    output_hessians,
    parameters_from,
    plain_attention,
    shapes_of,
)
from .layers import Exactly, LayerSpec
from .memory import check_dense
from .objectives import Objective, check_curved, check_objective, from_hessian, label_seeds
from .objectives.derivatives import root
from .passes import Fit
from .placement import call, check_mode, plain_numbers


@plain_numbers
def gauss_newton(
    model: nn.Module,
    objective: Objective,
    train: Data,
    layers: LayerSpec = None,
    labels: str | None = None,
    draws: int = 1,
    seed: int = 0,
    progress: bool = True,
    *,
    blocks: bool = False,
    max_bytes: int = BYTE_BUDGET,
) -> Dense | BlockDense:
    """The exact Gauss-Newton Hessian G, dense (D, D), or its diagonal blocks per layer with blocks=True.

    labels: None or "expected" gives G = (1/N) Σ Jᵀ H_out J; "sampled" and "observed" give the Fisher with such labels
    (the second is the empirical Fisher). Sampled labels are those that ``ekfac`` draws for Λ from the same seed.
    max_bytes bounds the Jacobians taken at once, and one example's H_out, (F, F) for F outputs, else refused.
    Other arguments and errors as for ``ekfac``. Source: Grosse et al. 2023, section 2; Martens 2020.
    """
    fit = Fit.of(model, objective, train, layers, labels or "expected", draws, seed, progress)
    _refuse_untied(fit)
    check_dense(fit.layers, blocks)
    sizes = {name: o * i for name, (o, i) in shapes_of(fit).items()}
    spans = sizes if blocks else {"": sum(sizes.values())}
    sums: dict[str, Tensor] = {}
    examples = 0
    for batch, rows in _square_root_rows(fit, max_bytes):
        _check_finite(fit, "curvature rows", rows, batch.index)
        parts = rows.to(accumulator(rows.dtype)).split(list(spans.values()), dim=1)  # each (R, d)
        for name, part in zip(spans, parts, strict=True):
            sums[name] = sums[name] + part.T @ part if name in sums else part.T @ part
        examples = batch.start + batch.size
    facts = facts_of(fit, "exact Gauss-Newton" + (" (blocks)" if blocks else ""), examples)
    means = {name: total / examples for name, total in sums.items()}
    return BlockDense(means, shapes_of(fit), facts) if blocks else Dense(means[""], shapes_of(fit), facts)


@plain_numbers
def hessian(
    model: nn.Module,
    objective: Objective,
    train: Data,
    layers: LayerSpec = None,
    labels: str | None = None,
    draws: int = 1,
    seed: int = 0,
    progress: bool = True,
) -> Dense:
    """The exact Hessian of the mean loss at the data's labels, dense (D, D).

    It may be indefinite: ``solve`` needs its damping given, and warns (IndefiniteWarning) where the damped matrix
    still has negative eigenvalues. Arguments as for ``ekfac``; labels other than "observed" are refused.
    """
    if labels not in (None, "observed"):
        raise ValueError(f"labels={labels!r} for hessian; expected None: the Hessian is that of the data's own loss.")
    fit = Fit.of(model, objective, train, layers, "observed", draws, seed, progress)
    _refuse_untied(fit)
    check_dense(fit.layers, blocks=False)
    theta = torch.cat([m.flatten() for m in matrices_of(fit).values()])  # (D,)
    total, examples = theta.new_zeros(len(theta), len(theta), dtype=accumulator(theta.dtype)), 0
    for batch in walk(train, name="train", progress=progress, what="Hessian"):
        outputs = checked_outputs(fit.model, fit.objective, batch)
        if batch.index == 0:
            check_objective(objective, outputs, batch.targets, "observed")

        def loss(flat: Tensor, batch: Batch = batch) -> Tensor:
            outputs = call(model, batch.inputs, parameters_from(fit, flat))
            return objective.loss(outputs, batch.targets).sum()

        with plain_attention():
            unit = torch.eye(len(theta), dtype=theta.dtype, device=theta.device)
            try:
                total += vmap(lambda v, loss=loss: jvp(grad(loss), (theta,), (v,))[1], chunk_size=64)(unit)
            except NotImplementedError:  # an operation without a forward derivative: reverse mode twice
                total += vmap(vjp(grad(loss), theta)[1], chunk_size=64)(unit)[0]
        _check_finite(fit, "Hessian rows", total, batch.index)
        examples = batch.start + batch.size
    mean = (total + total.T) / (2 * examples)
    return Dense(mean, shapes_of(fit), facts_of(fit, "exact Hessian", examples), default_damping=None)


@plain_numbers
def gauss_newton_product(
    model: nn.Module,
    objective: Objective,
    train: Data,
    v: Matrices,
    *,
    max_bytes: int = BYTE_BUDGET,
    progress: bool = True,
) -> Matrices:
    """G v for a stack of K vectors {layer: (K, o, i)}, exactly, without G: (1/N) Σ Jᵀ (H_out (J v)).

    Read from the right: J v by forward mode, H_out by reverse mode twice through the loss alone, Jᵀ by reverse mode;
    each batch costs about three gradients a vector. G is over the layers that v names, all other weights held fixed.
    ``max_bytes`` bounds what vectors pushed through together take. Source: Pearlmutter 1994; Schraudolph 2002.
    """
    shapes = {name: (x.shape[-2], x.shape[-1]) if x.ndim > 1 else (0, 0) for name, x in v.items()}
    fit = Fit.of(model, objective, train, Exactly(shapes), "expected", progress=progress)
    _refuse_untied(fit)
    check_mode(model)
    own = matrices_of(fit)
    for name, matrix in own.items():
        if v[name].ndim != 3 or v[name].shape[1:] != matrix.shape:
            raise ValueError(
                f"v[{name!r}] has shape {tuple(v[name].shape)}; expected (K, {matrix.shape[0]}, {matrix.shape[1]})."
            )
    v = {name: v[name].to(matrix) for name, matrix in own.items()}  # in the layers' order
    totals = {name: torch.zeros_like(x, dtype=accumulator(x.dtype)) for name, x in v.items()}
    examples = 0
    for batch in walk(train, name="train", progress=progress, what="Gauss-Newton product"):
        _check_curvature(fit, batch)
        each = bytes_of_a_product(fit, batch)
        for some in chunks(len(next(iter(v.values()))), each, max_bytes):
            found = _batch_product(fit, batch, own, {name: x[some] for name, x in v.items()})
            check_finite("Gauss-Newton products", found, batch.index)
            for name, x in found.items():
                totals[name][some] += x
        examples = batch.start + batch.size
    return {name: total.div_(examples) for name, total in totals.items()}


def _batch_product(fit: Fit, batch: Batch, own: Matrices, v: Matrices) -> Matrices:
    """Σ_n Jᵀ H_out J v over one batch, for all K vectors of the stack at once."""

    def outputs(matrices: Matrices) -> Tensor:
        return call(fit.model, batch.inputs, as_parameters(fit, matrices))

    def slope(f: Tensor) -> Tensor:
        return grad(lambda f: fit.objective.loss(f, batch.targets).sum())(f)

    def product(direction: Matrices) -> Matrices:
        f, along = jvp(outputs, (own,), (direction,))  # type: ignore[misc]  # J v
        wide = accumulator(f.dtype)
        bent = vjp(slope, f.to(wide))[1](along.to(wide))[0]  # H_out J v, H_out being symmetric
        return vjp(outputs, own)[1](bent.to(f.dtype))[0]  # Jᵀ H_out J v

    with plain_attention():
        try:
            return vmap(product)(v)
        except RuntimeError:  # a forward pass that writes into a buffer, which vmap cannot follow
            each = [product({name: x[k] for name, x in v.items()}) for k in range(len(next(iter(v.values()))))]
            return {name: torch.stack([one[name] for one in each]) for name in v}


def _check_curvature(fit: Fit, batch: Batch) -> None:
    """Raise ValueError where the objective has no Gauss-Newton curvature; a loss by itself is looked at throughout."""
    if batch.index == 0 or from_hessian(fit.objective):
        outputs = checked_outputs(fit.model, fit.objective, batch).detach()
        check = partial(check_objective, labels="expected") if batch.index == 0 else check_curved
        check(fit.objective, outputs, batch.targets)


def bytes_of_a_product(fit: Fit, batch: Batch) -> int:
    """Roughly what one vector adds to memory: the tangents of all that a backward pass would keep, and a gradient."""
    kept = 0

    def count(x: Tensor) -> Tensor:
        nonlocal kept
        kept += x.numel() * x.element_size()
        return x

    own = {name: m.requires_grad_() for name, m in matrices_of(fit).items()}
    with saved_tensors_hooks(count, lambda x: x), plain_attention(), torch.enable_grad():
        checked_outputs(fit.model, fit.objective, batch, as_parameters(fit, own))
    return 2 * kept + 2 * sum(m.numel() * m.element_size() for m in own.values())


# --- square roots -------------------------------------------------------------------------------------------------


def _square_root_rows(fit: Fit, max_bytes: int) -> Iterator[tuple[Batch, Tensor]]:
    """Rows r (R, D) of a square root of the curvature, Σ rᵀ r over all of them = N · C, chunk by chunk."""
    for batch in walk(fit.data, name="train", progress=fit.progress, what="exact curvature"):
        outputs = checked_outputs(fit.model, fit.objective, batch).detach()
        width = outputs[0].numel()  # F: outputs per example, tokens × classes
        if fit.labels == "expected":
            _check_output_hessian(outputs, max_bytes)
        if batch.index == 0:
            check_objective(fit.objective, outputs, batch.targets, fit.labels)
        numbers = width * (sum(o * i for o, i in shapes_of(fit).values()) + width)  # J and H_out
        for rows in chunks(batch.size, 2 * numbers * outputs.element_size(), max_bytes):
            targets = rows_of(batch.targets, rows, batch.size)
            J = jacobian(fit, batch, outputs, rows)  # (b, F, D)
            _check_finite(fit, "output Jacobians", J, batch.index)
            if fit.labels == "expected":
                H = output_hessians(fit.objective, outputs[rows], targets)  # (b, F, F)
                R = root(H, type(fit.objective).__name__)
                yield batch, (R.mT @ J.to(R)).flatten(0, 1)
            else:
                constants = {"labels": fit.labels, "draws": fit.draws, "seed": fit.seed, "pass_": 1}
                start = batch.start + rows.start
                for s, weight in label_seeds(fit.objective, outputs[rows], targets, start=start, **constants):  # type: ignore[arg-type]
                    yield batch, weight**0.5 * torch.einsum("bf,bfd->bd", s.reshape(len(s), -1), J)


def _check_output_hessian(outputs: Tensor, max_bytes: int) -> None:
    """Raise ValueError where one example's H_out (F, F) takes more than ``max_bytes``."""
    F = outputs[0].numel()
    size = F * F * outputs.element_size()
    if size > max_bytes:
        of = " × ".join(f"{n:,}" for n in outputs.shape[1:])
        raise ValueError(
            f"labels='expected' would take a Hessian in {of} = {F:,} outputs, {size:,} bytes an example; expected at "
            f"most {max_bytes:,}. Use labels='sampled', which has none, shorter sequences, or allow it: "
            "gauss_newton(..., max_bytes=...)."
        )


def _check_finite(fit: Fit, what: str, rows: Tensor, batch: int) -> None:
    """``check_finite`` of each layer's part of rows (..., D)."""
    parts = rows.split([o * i for o, i in shapes_of(fit).values()], dim=-1)
    check_finite(what, dict(zip(fit.layers, parts, strict=True)), batch)


def _refuse_untied(fit: Fit) -> None:
    name = next((name for name, layer in fit.layers.items() if layer.untied), None)
    if name is not None:
        raise ValueError(
            f"layer {name!r} is marked untied; expected plain layers: an exact derivative counts every use of a weight."
        )
