"""A model seen through ``torch.func``: its outputs as a function of the chosen layers' matrices, and its Jacobian.

    f_n(W_1, W_2, ...)        J_n = df_n/dθ  (F, D)        H_out = d²ℓ/df²  (F, F)

Nothing here goes through hooks, so that what is built on this checks what is built on them.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad, jacrev, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from .batches import Batch, accumulator, mapped, tensors
from .curvature import unflatten
from .hooks import Matrices
from .objectives import Objective
from .passes import Fit
from .placement import call, check_mode


def shapes_of(fit: Fit) -> dict[str, tuple[int, int]]:
    """{layer: (o, i)} of the chosen layers, i counting the bias's column."""
    return {name: layer.shape for name, layer in fit.layers.items()}


def matrices_of(fit: Fit) -> dict[str, Tensor]:
    """The chosen layers' weights as matrices {layer: (o, i)}, the bias as last column."""
    own = {n: p.detach() for n, p in fit.model.named_parameters()}
    return {name: layer.join(own) for name, layer in fit.layers.items()}


def parameters_from(fit: Fit, flat: Tensor) -> dict[str, Tensor]:
    """A vector (D,) → {parameter name: tensor}, for ``functional_call``."""
    return as_parameters(fit, {name: m[0] for name, m in unflatten(flat[None], shapes_of(fit)).items()})


def as_parameters(fit: Fit, matrices: Matrices) -> dict[str, Tensor]:
    """Matrices {layer: (o, i)} → {parameter name: tensor} for ``functional_call``, all others as they are, detached,
    and copies of the buffers.
    """
    found = {n: p.detach() for n, p in fit.model.named_parameters()}
    found |= {n: b.clone() for n, b in fit.model.named_buffers()}  # which the forward pass may write into
    for name, layer in fit.layers.items():
        found |= layer.split(matrices[name], found)
    return found


# --- derivatives --------------------------------------------------------------------------------------------------


def jacobian(fit: Fit, batch: Batch, outputs: Tensor, rows: slice) -> Tensor:
    """Jacobian of the examples ``rows``' outputs in the chosen layers' matrices, (b, F, D), each example by itself.

    By reverse mode under vmap; a model that vmap cannot follow, as its forward pass looks at its inputs' values
    (Hugging Face's masks do) or writes into a buffer, is run on one example after another. Raises ValueError where
    an example's outputs by itself are not those it has in its batch.
    """
    layers = fit.layers.values()
    names = [n for layer in layers for n in (layer.weight_name, layer.bias_name) if n is not None]
    every = {n: p.detach() for n, p in fit.model.named_parameters()}
    own = {n: every[n] for n in names}
    parts, rebuilt = _examples_of(batch.inputs, batch.size)
    if not parts:
        raise ValueError(
            f"no input has the batch's {batch.size} examples on its first axis; expected one that has: an exact "
            "Jacobian takes one example after the other. Give inputs (B, ...), and transpose in forward."
        )
    parts = [x[rows] for x in parts]

    def one(parameters: dict[str, Tensor], *parts: Tensor) -> tuple[Tensor, Tensor]:
        buffers = {n: b.clone() for n, b in fit.model.named_buffers()}
        inputs = rebuilt([x[None] for x in parts])
        f = call(fit.model, inputs, every | buffers | parameters)[0].flatten()  # (F,)
        return f, f

    check_mode(fit.model)
    differentiate = jacrev(one, has_aux=True)
    with plain_attention():
        try:
            J, f = vmap(differentiate, in_dims=(None, *(0 for _ in parts)))(own, *parts)  # {parameter: (b, F, *shape)}
        except RuntimeError:
            each = [differentiate(own, *(x[n] for x in parts)) for n in range(len(outputs[rows]))]
            J = {n: torch.stack([found[0][n] for found in each]) for n in own}
            f = torch.stack([found[1] for found in each])
    _check_alone(f, outputs[rows].reshape(len(f), -1), batch.start + (rows.start or 0))
    return torch.cat([layer.join(J).flatten(2) for layer in layers], dim=2)


def _examples_of(value: Any, size: int) -> tuple[list[Tensor], Callable[[list[Tensor]], Any]]:
    """The tensors in ``value`` that hold a batch's ``size`` examples, and ``value`` with others in their place."""

    def own(x: Tensor) -> bool:
        return x.ndim > 0 and x.shape[0] == size

    def rebuilt(parts: list[Tensor]) -> Any:
        rest = iter(parts)
        return mapped(value, lambda x: next(rest) if own(x) else x)

    return [x for x in tensors(value) if own(x)], rebuilt


def _check_alone(alone: Tensor, together: Tensor, start: int) -> None:
    """Raise ValueError where the outputs (b, F) of examples by themselves are not those in their batch."""
    gap = (alone.detach() - together).norm(dim=1) / together.norm(dim=1).clamp_min(1)
    # in float64 too a model may round to float32 inside, and under an autocast of its own to bfloat16
    allowed = {torch.float64: 1e-5}.get(alone.dtype, 3e-2)
    if bool((gap > allowed).any()):
        n = int(gap.argmax())
        raise ValueError(
            f"example {start + n} has other outputs by itself than in its batch (relative difference "
            f"{float(gap[n]):.2g}); expected them to depend on its own inputs alone. Leave statistics "
            "over the batch out of forward, and give inputs whose first axis is the examples'."
        )


def output_hessians(objective: Objective, outputs: Tensor, targets: Any) -> Tensor:
    """H_out = d²ℓ/df² of each example, (B, F, F), by differentiating one example's loss twice, under vmap if it can."""
    parts, rebuilt = _examples_of(targets, len(outputs))

    def of(f: Tensor, *parts: Tensor) -> Tensor:
        y = rebuilt([x[None] for x in parts])

        def loss(flat: Tensor) -> Tensor:
            return objective.loss(flat.reshape(1, *f.shape), y)[0]

        return jacrev(grad(loss))(f.flatten())

    wide = outputs.to(accumulator(outputs.dtype))
    try:
        return vmap(of)(wide, *parts)
    except RuntimeError:  # a loss that looks at its targets' values
        return torch.stack([of(*one) for one in zip(wide, *parts, strict=True)])


@contextmanager
def plain_attention() -> Iterator[None]:
    """Attention by its formula: the fused kernels know neither forward mode nor a second derivative.

    And an embedding's padding row is no function of its weight, in forward mode as in reverse (see ``_PaddingRows``).
    """
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), _PaddingRows():
            yield
    except (RuntimeError, IndexError) as error:
        if _is_said(error):
            raise
        raise RuntimeError(
            "an exact derivative follows the model through torch.func (vmap, forward and reverse mode), which stopped: "
            f"{next(iter(str(error).splitlines()), type(error).__name__):.160}; expected operations that it knows. "
            "Backward hooks, custom autograd functions, requires_grad_(), packed sequences, sparse gradients and "
            "batches of one size only are none: take them out, or use ekfac, kfac or diagonal, which need none."
        ) from error
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


def _is_said(error: Exception) -> bool:
    """Whether an error is inflib's own, or of memory, which is said elsewhere."""
    if isinstance(error, torch.OutOfMemoryError) or "allocat" in str(error):
        return True
    innermost = traceback.extract_tb(error.__traceback__)[-1].filename
    return innermost != __file__ and Path(innermost).is_relative_to(Path(__file__).parent)


class _PaddingRows(TorchFunctionMode):
    """``padding_idx`` in forward mode: torch leaves that row out of a lookup's gradient, and not out of its tangent.

    It matters where the weight has another use, the unembedding's: there the row counts, and a tangent has it.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if func is not F.embedding:
            return found
        given = dict(zip(("input", "weight", "padding_idx"), args, strict=False)) | (kwargs or {})
        padding = given.get("padding_idx")
        if padding is None:
            return found
        here = given["input"] == (padding if padding >= 0 else len(given["weight"]) + padding)
        return torch.where(here[..., None], found.detach(), found)
