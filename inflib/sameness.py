"""Is the model still the function that a curvature was fitted at? Its outputs say what no hash of its settings can.

A hash knows weights, buffers and settings (fingerprints.py). It does not know a number of layers from a count of calls,
a mask from a cache, nor what a hook, a closure or a forward written anew computes. So within a session the first
example of a fit is kept with the outputs that it had, and runs once more wherever the curvature is used.
"""

from __future__ import annotations

from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from .batches import batch_size, mapped, rows_of
from .placement import autocast_in_force, call, check_mode

MOST = 8  # fits of a model whose example is kept
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}  # of an output's largest entry


class Kept(NamedTuple):
    """An example of a fit, what the model made of it, and under which autocast."""

    inputs: Any
    outputs: Tensor
    autocast: tuple[tuple[str, torch.dtype], ...]


_KEPT: WeakKeyDictionary[nn.Module, dict[str, Kept]] = WeakKeyDictionary()


def keep_example(model: nn.Module, weights: str, batch: Any) -> None:
    """Remember what the model, at the weights of this hash, makes of a batch's first example; of None, nothing."""
    if not (isinstance(batch, (tuple, list)) and len(batch) == 2):
        return
    inputs, targets = batch
    held = _KEPT.setdefault(model, {})
    held.pop(weights, None)
    while len(held) >= MOST:
        held.pop(next(iter(held)))
    for some in (rows_of(inputs, [0], batch_size(targets, "train", 0)), inputs):
        try:
            held[weights] = Kept(some, _outputs(model, some), autocast_in_force())
        except (RuntimeError, ValueError, IndexError, AssertionError):  # a model that takes no batch of one
            continue
        return


def check_function(model: nn.Module, weights: str) -> None:
    """Raise ValueError where the model makes something else of the example than when it was kept."""
    kept = _KEPT.get(model, {}).get(weights)
    if kept is None or kept.autocast != autocast_in_force() or not bool(kept.outputs.isfinite().all()):
        return
    device = next((p.device for p in model.parameters()), kept.outputs.device)
    now, then = _outputs(model, mapped(kept.inputs, lambda x: x.to(device))), kept.outputs.to(device)
    apart = float((now - then).abs().max()) if now.shape == then.shape else float("inf")
    if not apart <= TOLERANCE.get(then.dtype, 3e-2) * float(then.abs().max().clamp_min(1e-30)):  # NaN too
        raise ValueError(
            f"the model's outputs for the first example of the curvature's fit differ by {apart:.2g} from what they "
            "were then, its weights and settings being the same; expected the same function. An attribute, a hook, a "
            "global or its forward has changed: put it back, or fit again: ekfac(model, objective, train)."
        )


def _outputs(model: nn.Module, inputs: Any) -> Tensor:
    check_mode(model)
    with torch.no_grad():
        return call(model, inputs).detach().clone()
