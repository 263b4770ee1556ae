"""Nearest neighbours among pictures: a judge of clarity that has never seen the network.

A digit whose nearest other digits carry other labels is ambiguous, whatever a model makes of it. Neighbours are nearest
by Euclidean distance between pixels; of equally near ones the earlier comes first. Source: Cover & Hart 1967.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..batches import BYTE_BUDGET, chunks


def disagreement(inputs: Tensor, labels: Tensor, rows: Tensor | None = None, *, k: int = 10) -> Tensor:
    """The share of each digit's ``k`` nearest other digits with a label other than its own, (R,) from 0 to 1.

    ``inputs`` (N, d) and ``labels`` (N,) are the digits, ``rows`` (R,) those asked about, None for all.
    """
    N = len(inputs)
    if not 1 <= k < N:
        raise ValueError(f"k={k} neighbours among {N} digits; expected 1 to {N - 1}.")
    rows = torch.arange(N, device=inputs.device) if rows is None else rows
    found = []
    for some in chunks(len(rows), 4 * N * inputs.element_size(), BYTE_BUDGET):
        distance = torch.cdist(inputs[rows[some]], inputs)  # (r, N)
        distance[torch.arange(len(distance)), rows[some]] = torch.inf  # no digit is its own neighbour
        near = distance.sort(dim=1, stable=True).indices[:, :k]  # (r, k)
        found.append((labels[near] != labels[rows[some], None]).double().mean(1))
    return torch.cat(found)
