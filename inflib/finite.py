"""What leaves is finite and no rounding noise: curvatures, inverses, solutions and scores, looked at before they go.

A model that is sure of every example has gradients near 0. Their squares, Λ, leave a dtype's range below (in float32
from gradients of 1e-19 on, 44 nats), 1/(Λ + λ) then leaves it above, and relative damping, a share of Λ, helps with
neither. float64 does, or more damping, or a measurement that does not saturate.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from .notes import note

REMEDY = (
    "Use float64 (model.double(), and the data), more damping (damping=, as a number), or a measurement that does not "
    "saturate (measurement='margin')."
)
NOISE = 16  # roundings: a gradient smaller than so many of another layer's is what cancellation left


class RoundingNote(UserWarning):
    """Says that numbers are so small that they hold rounding more than signal: an underflow, or what cancels."""


def check_finite(what: str, values: Mapping[str, Tensor], batch: int) -> None:
    """Raise FloatingPointError naming the layer, the quantity and the batch where some layer's value is not finite."""
    name = _first_not_finite(values)
    if name is not None:
        raise FloatingPointError(
            f"layer {name!r}: {what} of batch {batch} hold NaN or infinity; expected finite numbers. "
            "Look at that batch's inputs and loss, or use a wider dtype (float32 in place of half precision)."
        )


def check_numbers(what: str, values: Mapping[str, Tensor]) -> None:
    """Raise FloatingPointError that names the first layer whose values, made from finite ones, are not finite."""
    name = _first_not_finite(values)
    if name is not None:
        raise FloatingPointError(
            f"layer {name!r}: its {what} hold NaN or infinity; expected finite numbers. A product left the range of "
            f"{values[name].dtype}: an overflow, or gradients that underflowed and were divided by. {REMEDY}"
        )


def _first_not_finite(values: Mapping[str, Tensor]) -> str | None:
    # a sum is finite unless a term is not, or it overflows: only then is every number looked at. All layers in one
    # question, because a GPU's queue has to be waited for to answer it.
    totals = [x.sum(dtype=torch.promote_types(x.dtype, torch.float32)) for x in values.values()]
    if not totals or bool(torch.stack(totals).isfinite().all()):
        return None
    return next((name for name, x in values.items() if not bool(x.isfinite().all())), None)


def check_inverse(layer: str, inverse: Tensor, eigenvalues: Tensor, damping: float) -> None:
    """Raise FloatingPointError where 1/(Λ + λ) is infinite, as Λ underflowed, or 0, as λ overflows."""
    low, high = float(inverse.min()), float(inverse.max())
    if low > 0 and math.isfinite(high):  # False for NaN
        return
    how, why = "is 0", f"Give damping that {inverse.dtype} can hold."
    if low > 0:
        how, why = "overflows", f"Its gradients underflow: the model is too sure of its examples. {REMEDY}"
    raise FloatingPointError(
        f"layer {layer!r}: 1/(Λ + λ) {how} in {inverse.dtype} (Λ from {float(eigenvalues.min()):.3g} to "
        f"{float(eigenvalues.max()):.3g}, λ = {damping:.3g}); expected a finite inverse. {why}"
    )


def rounding_noise(eigenvalues: Mapping[str, Tensor], weights: Mapping[str, Tensor] | None = None) -> dict[str, float]:
    """{layer: mean eigenvalue} of the layers in which it is rounding noise or about to underflow.

    E‖Dθ‖², a layer's sum of Λ, is compared with the largest of all layers; a Λ near the smallest number of its dtype
    has no digits left. Λ = 0 throughout is no noise: no gradient comes. ``weights`` are the layers', where they are at
    hand: gradients are rounded in their dtype, which may have fewer digits than Λ's.
    """
    traces = {name: float(values.sum(dtype=torch.float64)) for name, values in eigenvalues.items()}
    largest, noisy = max(traces.values(), default=0.0), {}
    for name, values in eigenvalues.items():
        kind, mean = torch.finfo(values.dtype), traces[name] / values.numel()
        small = traces[name] <= _noise((weights or eigenvalues)[name].dtype) ** 2 * largest
        if mean > 0 and (small or mean < kind.tiny / kind.eps):
            noisy[name] = mean
    return noisy


def _noise(dtype: torch.dtype) -> float:
    """What cancellation leaves, as a share of a gradient's size; in half precision small gradients are as small."""
    eps = torch.finfo(dtype).eps
    return eps if dtype.itemsize < 4 else NOISE * eps


def note_rounding(eigenvalues: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
    """Warn (RoundingNote), once for all layers, where a mean eigenvalue is rounding noise or about to underflow."""
    if noisy := rounding_noise(eigenvalues, weights):
        names = ", ".join(f"{name!r} ({mean:.3g})" for name, mean in noisy.items())
        note(
            f"the mean eigenvalue of layer {names} is rounding noise: its gradients cancel or underflow, "
            "and damping relative to it amplifies them. Leave such layers out with layers=, use float64, or give "
            "damping= as a number.",
            RoundingNote,
        )


def note_underflow(what: str, largest: Mapping[str, Tensor], dtype: torch.dtype, start: int) -> None:
    """Warn (RoundingNote) where an example's largest gradient in every layer (B,) has a square that underflows."""
    most = torch.stack(list(largest.values())).amax(0)  # (B,)
    under = (most < math.sqrt(torch.finfo(dtype).tiny)).nonzero()
    if len(under):
        n = int(under[0])
        note(
            f"{what} {start + n} has no gradient above {float(most[n]):.3g} in any layer "
            f"({', '.join(map(repr, largest))}), and so have {len(under)} in its batch: products with them underflow "
            f"{dtype}, and scores are 0 or rounding. {REMEDY}",
            RoundingNote,
        )
