"""Do targets and outputs fit together at all? What came, what was expected, and the fix."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor


class TooManySeedsError(ValueError):
    """Expected labels would take more backward passes a batch than the objective allows."""


def check_targets(targets: Any, outputs: Tensor, shape: tuple[int, ...], who: str, expected: str) -> None:
    """Raise ValueError unless ``targets`` is a tensor of that shape on the outputs' device."""
    shape = tuple(shape)
    if not isinstance(targets, Tensor) or targets.shape != shape:
        came = tuple(targets.shape) if isinstance(targets, Tensor) else type(targets).__name__
        same = isinstance(targets, Tensor) and targets.numel() == math.prod(shape)
        fix = f"y.reshape({shape})" if same else "look at what the batches hold beside the inputs"
        pair = isinstance(targets, (tuple, list)) and len(targets) == 2
        fix = f"a pair of targets and weights belongs to Weighted({who}())" if pair else fix
        raise ValueError(f"{who} got targets of shape {came}; expected {shape}: {expected}. Fix: {fix}.")
    check_device(targets, outputs, who)


def check_device(targets: Tensor, outputs: Tensor, who: str) -> None:
    """Raise ValueError where targets and outputs are on different devices."""
    if targets.device != outputs.device:
        raise ValueError(
            f"{who} got targets on {targets.device}, outputs on {outputs.device}; expected one device. "
            f"Move the targets: y.to('{outputs.device}')."
        )


def single(values: Tensor, who: str) -> Tensor:
    """``values`` (B,) or (B, 1) as (B,), for the measurement "logit"."""
    flat = values.reshape(values.shape[0], -1)
    if flat.shape[1] != 1:
        raise ValueError(
            f"{who}: measurement 'logit' needs one output per example, this model has {flat.shape[1]}. "
            "Choose one with a callable: measurement=lambda outputs, targets: outputs[:, 3]."
        )
    return flat.squeeze(1)
