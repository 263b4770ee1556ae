"""A convolution is one matrix, applied to a patch of the input at every position of the output.

    y[b, :, t] = W x[b, patch t] + bias           W (o, i),  i = C_in / groups · kernel cells

The T positions are the output's pixels, row by row. Activation a_t is the patch of the padded input that the kernel
covers there, channel after channel, as ``weight.flatten(1)`` counts it, so that the weight's gradient is Σ_t g_t a_tᵀ
as for any other layer (Grosse & Martens 2016, "A Kronecker-factored approximate Fisher matrix for convolution layers").

A convolution in several groups is as many matrices (o / groups, i), each seeing its own channels only: each is a layer
by itself, "name.group0", "name.group1", ..., and ``layers="name"`` means all of them.

A transposed convolution is the same the other way round: an input pixel's channels are a_t, and what it adds to under
the kernel are its outputs, so that g_t is the patch of the *output's* gradient there, and o = C_out / groups · cells.
Its bias is added once an output pixel, not once a patch: it is a layer by itself, "name.bias" (elementwise.py).

Memory: the patches of a batch, B · T · i numbers, are kept from the forward pass until its gradients are used (twice
as many while they are made). An input pixel is in kernel cells / stride² of them: 9 for 3 × 3, 2.25 at stride 2. Where
that is too much, give smaller batches.
"""

from __future__ import annotations

from math import prod
from typing import Any

from torch import Tensor
from torch.nn import functional as F


def patches(module: Any, x: Tensor) -> Tensor:
    """(B, C_in, *space) → (B, T, groups · i): the input under the kernel at each position, groups side by side.

    Raises ValueError for an input without a batch axis.
    """
    _check_space(module, x)
    dimensions = len(module.kernel_size)
    x = padded(module, x)
    for axis, (cells, stride, gap) in enumerate(zip(module.kernel_size, module.stride, module.dilation, strict=True)):
        x = x.unfold(2 + axis, gap * (cells - 1) + 1, stride)[..., ::gap]
    positions = prod(x.shape[2 : 2 + dimensions])
    x = x.movedim(1, 1 + dimensions)  # (B, *positions, C_in, *kernel)
    return x.reshape(x.shape[0], positions, prod(x.shape[1 + dimensions :]))


def padded(module: Any, x: Tensor) -> Tensor:
    """x with the border that the convolution puts round it: ``padding`` cells in ``padding_mode``."""
    if module.padding == "same":  # where the total is odd, one cell more behind than before
        totals = [gap * (cells - 1) for gap, cells in zip(module.dilation, module.kernel_size, strict=True)]
        border = [(total // 2, total - total // 2) for total in totals]
    elif module.padding == "valid":
        border = []
    else:
        border = [(cells, cells) for cells in module.padding]
    if not any(map(any, border)):
        return x
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    return F.pad(x, [cells for pair in reversed(border) for cells in pair], mode=mode)  # the last axis comes first


def positions(module: Any, x: Tensor) -> Tensor:
    """(B, C, *space) → (B, T, C)."""
    return x.flatten(2).mT


def output_patches(module: Any, gradient: Tensor) -> Tensor:
    """A transposed convolution's output gradients (B, C_out, *space) → what each input pixel adds to, (B, T, o)."""
    dimensions = len(module.kernel_size)
    x = F.pad(gradient, [cells for border in reversed(module.padding) for cells in (border, border)])
    sides = zip(module.kernel_size, module.stride, module.dilation, module.output_padding, strict=True)
    for axis, (cells, stride, gap, beyond) in enumerate(sides, start=2):
        reach = gap * (cells - 1) + 1
        x = x[(slice(None),) * axis + (slice(x.shape[axis] - beyond),)]  # rows that no input pixel reaches
        x = x.unfold(axis, reach, stride)[..., ::gap]
    space = x.shape[2 : 2 + dimensions]
    x = x.movedim(1, 1 + dimensions)  # (B, *positions, C_out, *kernel)
    return x.reshape(x.shape[0], prod(space), prod(x.shape[1 + dimensions :]))


def input_positions(module: Any, x: Tensor) -> Tensor:
    """A transposed convolution's input (B, C_in, *space) → (B, T, C_in); ValueError for one without a batch axis."""
    _check_space(module, x)
    return positions(module, x)


def _check_space(module: Any, x: Tensor) -> None:
    dimensions = len(module.kernel_size)
    if x.ndim != dimensions + 2:
        raise ValueError(
            f"a {type(module).__name__} was given an input of shape {tuple(x.shape)}; expected (B, channels, "
            + ", ".join(("depth", "height", "width")[3 - dimensions :] if dimensions > 1 else ("length",))
            + "). Give batches of examples: DataLoader(dataset, batch_size=...), or x[None] for a single one."
        )
