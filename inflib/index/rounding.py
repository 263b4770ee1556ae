"""What half precision loses of an index: float16 has no numbers below 6e-8, and few digits below 6e-5.

Gradients in the eigenbasis differ by many orders of magnitude, and the small ones count most: a score divides them by
the smallest eigenvalues. So what is lost is measured as it counts, ‖(G̃ − kept) / √(Λ + λ)‖ over ‖G̃ / √(Λ + λ)‖ at the
default damping, and said where scores would come in another order. bfloat16, as large, keeps .4% of every number.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..finite import RoundingNote
from ..hooks import Pair
from ..kronecker import Kronecker
from ..notes import note

Rotated = Pair | Tensor
LOST = 0.02  # of an example's gradient in a layer: from here on, neighbours in a ranking change places


@dataclass
class Rounding:
    """Counts, layer by layer, the examples of which rounding to ``dtype`` loses more than ``LOST``."""

    curvature: Kronecker
    dtype: torch.dtype
    lost: dict[str, int] = field(default_factory=dict)
    worst: float = 0.0

    def see(self, layer: str, exact: Rotated) -> None:
        """Look at some examples' gradients before they are rounded."""
        found = self._lost(layer, exact)
        self.lost[layer] = self.lost.get(layer, 0) + int((found > LOST).sum())
        self.worst = max(self.worst, float(found.max()) if len(found) else 0.0)

    def say(self, examples: int) -> None:
        """Warn once (RoundingNote) where examples lost more than they should."""
        layer = max(self.lost, key=lambda name: self.lost[name], default=None)
        if layer is not None and self.lost[layer]:
            note(
                f"{self.dtype} loses more than {LOST:.0%} of {self.lost[layer]} of {examples} examples' gradients in "
                f"layer {layer!r} (up to {self.worst:.0%}), in the units that scores weigh them by, as they lie "
                "below its smallest numbers: scores will come in another order. Use dtype=torch.bfloat16, which takes "
                "as much memory.",
                RoundingNote,
            )

    def _lost(self, layer: str, exact: Rotated) -> Tensor:
        if isinstance(exact, Pair):  # of two factors the errors add up
            sides = [_apart(x.flatten(1), x.to(self.dtype).flatten(1)) for x in exact]
            return (sides[0].square() + sides[1].square()).sqrt()
        values = self.curvature.eigenvalues[layer]
        white = (values + 0.1 * values.mean()).clamp_min(torch.finfo(values.dtype).tiny).rsqrt().to(exact)
        return _apart((exact * white).flatten(1), (exact.to(self.dtype).to(exact) * white).flatten(1))


def _apart(exact: Tensor, kept: Tensor) -> Tensor:
    """‖exact − kept‖ / ‖exact‖ of each row, 0 where it is 0."""
    scale = exact.norm(dim=1)
    return (exact - kept.to(exact)).norm(dim=1) / scale.where(scale > 0, 1)
