"""curvlinops 3.0.1 on the workload: the fit, and products with its K-FAC and EK-FAC as an independent witness.

It scores nothing, so only the fit is timed. `reduction="mean"` and joint treatment of weight and bias make its
operator the mean over examples of one (o, i + 1) block per layer, which is inflib's convention; asking for the trace
is the public way to make it compute what it otherwise puts off until the first product.
"""

from __future__ import annotations

from pathlib import Path

import torch
from curvlinops import EKFACLinearOperator, FisherType, KFACLinearOperator
from torch import Tensor, nn
from workload import Workload, batches

FISHER = {"sampled": FisherType.MC, "expected": FisherType.TYPE2, "observed": FisherType.EMPIRICAL}


def operator(work: Workload, kind: type[KFACLinearOperator], batch_size: int, labels: str) -> KFACLinearOperator:
    """K-FAC or EK-FAC (`kind` is the class), its factors computed."""
    model = work.model()
    found = kind(
        model,
        nn.CrossEntropyLoss(reduction="mean"),
        list(model.parameters()),
        batches(work.train_set(), batch_size, work.device),
        check_deterministic=False,
        seed=0,
        fisher_type=FISHER[labels],
        num_per_example_loss_terms=1,
        separate_weight_and_bias=False,
        num_data=len(work.train_x),
    )
    _ = found.trace
    return found


def fit(work: Workload, folder: Path, batch_size: int, labels: str) -> None:
    """EK-FAC; the operator is dropped, since nothing here uses it further."""
    operator(work, EKFACLinearOperator, batch_size, labels)


def product(found: KFACLinearOperator, v: dict[str, Tensor]) -> dict[str, Tensor]:
    """C v for stacks {layer: (K, o, i + 1)}, the bias last.

    The library wants and gives one tensor per parameter, weight then bias, with the K vectors along the last axis.
    """
    columns = []
    for stack in v.values():
        last = stack.movedim(0, -1)  # (o, i + 1, K)
        columns += [last[:, :-1].contiguous(), last[:, -1].contiguous()]
    parts = iter(found @ columns)
    return {name: torch.cat([next(parts), next(parts)[:, None]], dim=1).movedim(-1, 0) for name in v}
