"""Derivatives of a loss in the model's outputs, by autograd alone: its gradient, its Hessian, and seeds from that.

    g = dℓ/df  (B, ...)        H_out = d²ℓ/df²  (B, F, F)        Σ_c s_c s_cᵀ = H_out with s_c = √λ_c v_c

λ_c and v_c being H_out's eigenvalues and eigenvectors, F the number of an example's outputs. Examples are taken
together: the derivative of Σ_n ℓ_n in f_n is that of ℓ_n, once each ℓ_n is seen to be its own example's (proof.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..batches import chunks, mapped, rows_of
from .checks import TooManySeedsError

PerExample = Callable[[Tensor, Any], Tensor]  # (outputs, targets) → (B,)
T = TypeVar("T")


def output_gradient(function: PerExample, outputs: Tensor, targets: Any) -> Tensor:
    """d function(outputs, targets)_b / d outputs_b, shaped like outputs, for a per-example function (B,)."""
    return _slope(function, outputs, targets, False)[1]


def _slope(function: PerExample, outputs: Tensor, targets: Any, again: bool) -> tuple[Tensor, Tensor]:
    """The outputs as a leaf and the gradient there, to be differentiated ``again`` or not."""
    with torch.enable_grad():
        f = outputs.detach().requires_grad_()
        value = differentiable(function, f, targets, getattr(function, "__name__", "function"))
        (gradient,) = torch.autograd.grad(value.sum(), f, create_graph=again)
    return f, gradient


def differentiable(function: PerExample, outputs: Tensor, targets: Any, what: str) -> Tensor:
    """function(outputs, targets), if it has a number per example and torch knows its gradient; else a ValueError."""
    try:
        value = per_example(function(outputs, targets), outputs, what)
    except RuntimeError as error:
        if "numpy()" not in str(error):
            raise
        raise ValueError(_cut_off(what, "it is computed by NumPy")) from None
    if not value.requires_grad:
        raise ValueError(_cut_off(what, f"it comes without a gradient ({value.dtype})"))
    return value


def _cut_off(what: str, why: str) -> str:
    return (
        f"the {what} is cut off from the outputs: {why}; expected one that torch can differentiate. Compute it from "
        "the outputs in torch alone, without torch.no_grad(), .detach(), .item(), NumPy, argmax or comparisons."
    )


def output_products(loss: PerExample, outputs: Tensor, targets: Any, directions: Tensor) -> Tensor:
    """H_out u of every example for K directions u (K, B, ...), shaped like these."""
    f, slope = _slope(loss, outputs, targets, True)
    if not slope.requires_grad:  # a loss that is linear in the outputs
        return torch.zeros_like(directions)
    try:
        with torch.enable_grad():
            found = [
                torch.autograd.grad((slope * u).sum(), f, retain_graph=True, materialize_grads=True)[0]
                for u in directions
            ]
    except RuntimeError as error:  # of which NotImplementedError is one
        if "not implemented" not in str(error):
            raise
        raise _no_second(loss, error) from None
    return torch.stack(found).detach()


def _no_second(loss: PerExample, error: Exception) -> ValueError:
    owner = type(getattr(loss, "__self__", loss)).__name__
    return ValueError(
        f"{owner}: its loss has no second derivative in torch ({str(error).splitlines()[0]:.80}); expected one for the "
        "curvature. Write the loss in operations that have one, or use labels='observed' (the empirical Fisher)."
    )


def output_hessians(loss: PerExample, outputs: Tensor, targets: Any) -> Tensor:
    """H_out = d²ℓ/df² of every example, (B, F, F), one column of all of them at a time."""
    F = outputs[0].numel()
    unit = torch.eye(F, dtype=outputs.dtype, device=outputs.device)
    directions = unit[:, None].expand(F, outputs.shape[0], F).reshape(F, *outputs.shape)
    columns = output_products(loss, outputs, targets, directions)  # (F, B, ...)
    return columns.reshape(F, -1, F).movedim(0, 2)


def precisely(function: Callable[[Tensor, Any], T], outputs: Tensor, targets: Any) -> T:
    """function(outputs, targets) in float64; in float32 at least where the loss holds tensors that refuse it."""
    try:
        return function(outputs.double(), mapped(targets, lambda y: y.double() if y.is_floating_point() else y))
    except (RuntimeError, TypeError):
        return function(outputs.to(torch.promote_types(outputs.dtype, torch.float32)), targets)


def roots(loss: PerExample, outputs: Tensor, targets: Any, name: str) -> Tensor:
    """R (B, F, F) with R Rᵀ = H_out, its columns the seeds; ValueError where H_out has negative eigenvalues."""
    H = precisely(lambda f, y: output_hessians(loss, f, y), outputs, targets)
    if not bool(H.isfinite().all()):
        raise FloatingPointError(
            f"{name}: the Hessian of its loss in the outputs holds NaN or infinity; expected finite numbers. Look at "
            "the loss where an output is large, zero or equal to its target."
        )
    return root(H, name)


def root(H: Tensor, name: str) -> Tensor:
    """R (B, F, F) with R Rᵀ = H for positive semi-definite H, the eigenvectors times √λ, in H's dtype.

    Raises ValueError where an eigenvalue is below 0 by more than rounding, naming the objective ``name``.
    """
    values, vectors = _eigh(H)
    check_convex(values, H.dtype, name)
    return (vectors * values.clamp_min(0).sqrt()[:, None, :]).to(H)


def check_convex(values: Tensor, dtype: torch.dtype, name: str) -> None:
    """Raise ValueError for eigenvalues (B, F) of H_out below 0 by more than rounding in ``dtype``."""
    rounding = 1e-12 if dtype == torch.float64 else 1e-5
    slack = 1e-6 * values.abs().amax(1, keepdim=True) + rounding * values.abs().amax().clamp_min(1)
    low = values + slack < 0
    if bool(low.any()):
        n, c = low.nonzero()[0].tolist()
        raise ValueError(
            f"{name}: the loss is not convex in the model's outputs: its Hessian there has the eigenvalue "
            f"{float(values[n, c]):.3g} at example {n} of those looked at; a Gauss-Newton curvature expects none below "
            "0. Use hessian(...), which takes any loss, or labels='observed' (the empirical Fisher), or another loss; "
            "where the loss's sign was turned, turn it back."
        )


def _eigh(H: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues and eigenvectors in float64, on the CPU for a device that has neither that nor ``eigh`` (MPS)."""
    try:
        return torch.linalg.eigh(H.double())
    except (TypeError, NotImplementedError, RuntimeError):
        values, vectors = torch.linalg.eigh(H.cpu().double())
        return values.to(H), vectors.to(H)


def seeds_of(loss: PerExample, outputs: Tensor, targets: Any, name: str, most: int) -> Iterator[Tensor]:
    """Seeds s_c = √λ_c v_c of the loss's own Hessian, F of them; ValueError above ``most`` outputs an example."""
    F = outputs[0].numel()
    if most < F:
        raise TooManySeedsError(
            f"{name} has no seeds written for its loss, and the Hessian of that loss in {F:,} outputs an example is "
            f"too large to take them from; expected at most {most:,} outputs. Define seeds(outputs, targets) with "
            f"Σ s sᵀ = H beside loss, use labels='observed', or allow it: {name}.max_outputs = {F}."
        )
    parts = [
        roots(loss, outputs[rows], rows_of(targets, rows, len(outputs)), name).to(outputs.dtype)
        for rows in chunks(len(outputs), 32 * F * F)
    ]
    whole = torch.cat(parts)  # (B, F, F)
    for c in range(F):
        yield whole[:, :, c].reshape(outputs.shape)


def per_example(value: Tensor, outputs: Tensor, what: str) -> Tensor:
    """``value``, if it has one number per example; else a ValueError that says how to get there."""
    if not isinstance(value, Tensor) or value.shape != outputs.shape[:1]:
        shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(
            f"the {what} has shape {shape}; expected one number per example, ({outputs.shape[0]},). "
            "Use reduction='none' and sum over everything but the first axis."
        )
    return value
