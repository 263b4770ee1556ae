"""Whether an example's output is its own: asked of it alone, and among copies of itself.

Statistics over the batch, ranks within it and routing with limited room pass a model's gradients by. What they do to an
output shows where the example's company changes:

    alone           a batch of that example only, which costs 1/B of a pass. Where the output is not what it was in the
                    batch, or the model takes no batch of one, that decides nothing: a model may squeeze such a batch.
    among copies    a batch of B, all of them that example; here a change is refused. A whole pass, made where alone
                    the output differs, and once for the last example of a first batch: before it stand as many that
                    compete with it as a batch has room for, while alone it always finds room. Whoever is asked so is
                    not asked alone.
    a pair          where alone it differs and among copies it does not: a model that divides by B.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .batches import Batch, rows_of
from .placement import call

# how far an output may move, relative to its largest entry, when other examples are replaced
_APART = {torch.float64: 1e-5, torch.float32: 1e-3}  # float64 too: norms that round to float32 inside
_COUNTED = 5e-2  # the same when they are fewer: no rounding of any dtype, batches of each size in an order of its own


def check_independence(
    model: nn.Module, batch: Batch, outputs: Tensor, draw: np.random.Generator, *, crowded: bool
) -> None:
    """Raise ValueError where an example's output changes with the others of its batch; outputs (B, ...) are theirs.

    Asked of the first example and one drawn by chance; ``crowded``: of the last among copies of it, too.
    """
    if batch.size == 1 or not bool(outputs.isfinite().all()):
        return
    if crowded:
        _check_among_copies(model, batch, outputs, batch.size - 1)
    for n in (0, int(draw.integers(1, batch.size))):
        if crowded and n == batch.size - 1:
            continue  # alone, whatever came, copies would have had to decide
        if _apart(_tried(model, rows_of(batch.inputs, [n], batch.size)), outputs[n : n + 1]) > _tolerance(outputs):
            _check_among_copies(model, batch, outputs, n)
            if n == 0 and batch.size > 2:
                _check_count(model, batch, outputs)


def check_undrawn(model: nn.Module, batch: Batch, outputs: Tensor) -> None:
    """Raise RuntimeError where a model that draws numbers makes something else of the same batch (three tries)."""
    for _ in range(3):
        with torch.no_grad():
            again = call(model, batch.inputs)
        if bool(outputs.isfinite().all()) and _apart(again, outputs) > _tolerance(outputs):
            raise RuntimeError(
                "the model draws random numbers in its forward pass, from NumPy, Python or a generator of its own; "
                "expected the same output every time. Leave out augmentation and noise: model.eval() does not."
            )


def _check_among_copies(model: nn.Module, batch: Batch, outputs: Tensor, n: int) -> None:
    try:
        with torch.no_grad():
            again = call(model, rows_of(batch.inputs, [n] * batch.size, batch.size))
    except (RuntimeError, ValueError, IndexError, KeyError, AssertionError) as error:
        raise ValueError(
            f"the model takes its batch of {batch.size}, but no batch of {batch.size} copies of example {n} "
            f"({str(error).splitlines()[0]:.120}), so that its examples cannot be shown to be independent; expected "
            "each of them on one index of every input's first axis. Where lengths are ragged (offsets, packed rows, "
            "nodes of several graphs) give batches of one example."
        ) from None
    apart = _apart(again[n : n + 1], outputs[n : n + 1]) if again.shape == outputs.shape else math.inf
    if apart > _tolerance(outputs):
        moved = float((again[n] - outputs[n]).abs().max()) if again.shape == outputs.shape else math.inf
        raise ValueError(
            f"the output of example {n} changes by {moved:.2g} when the others of its batch are replaced by copies "
            "of it; expected it to depend on its own input alone. Statistics over the batch, ranks, routing with "
            "limited room do so: use running statistics (model.eval()), or give batches of one example. An input "
            f"that has {batch.size} rows by chance is taken for examples: give prototypes or positions as x[None]."
        )


def _check_count(model: nn.Module, batch: Batch, outputs: Tensor) -> None:
    pair = _tried(model, rows_of(batch.inputs, [0, 0], batch.size))
    if pair is not None and _COUNTED < _apart(pair[:1], outputs[:1]) < math.inf:
        raise ValueError(
            f"the output of example 0 among {batch.size} copies of it is another than among two (by "
            f"{_apart(pair[:1], outputs[:1]):.2g} of its largest entry); expected it to depend on its own input alone. "
            "Take what is divided by the number of examples, or multiplied by it, out of the model's forward."
        )


def _tried(model: nn.Module, inputs: Any) -> Tensor | None:
    """The model's outputs on fewer examples than it was given; None where it does not take them."""
    with torch.no_grad():
        try:
            return call(model, inputs)
        except Exception:  # written for batches of one size: whatever it raises
            return None


def _apart(found: Tensor | None, outputs: Tensor) -> float:
    """The largest difference relative to the largest entry of outputs; ∞ for another shape or what is no number."""
    if found is None or found.shape != outputs.shape:
        return math.inf
    apart = float((found - outputs).abs().max() / outputs.abs().max().clamp_min(1e-30))
    return math.inf if math.isnan(apart) else apart


def _tolerance(outputs: Tensor) -> float:
    return _APART.get(outputs.dtype, 1e-2)
