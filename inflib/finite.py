"""What goes out is finite: looked at where it is made, so that an error can name the layer and the batch."""

from __future__ import annotations

import torch
from torch import Tensor


def check_finite(what: str, values: dict[str, Tensor], batch: int) -> None:
    """Raise FloatingPointError naming the layer, the quantity and the batch where some layer's value is not finite."""
    # a sum is finite unless a term is not, or it overflows: only then is every number looked at. All layers in one
    # question, because a GPU's queue has to be waited for to answer it.
    totals = [x.sum(dtype=torch.promote_types(x.dtype, torch.float32)) for x in values.values()]
    if not totals or bool(torch.stack(totals).isfinite().all()):
        return
    for name, value in values.items():
        if not bool(torch.isfinite(value).all()):
            raise FloatingPointError(
                f"layer {name!r}: {what} of batch {batch} hold NaN or infinity; expected finite numbers. "
                "Look at that batch's inputs and loss, or use a wider dtype (float32 in place of half precision)."
            )
