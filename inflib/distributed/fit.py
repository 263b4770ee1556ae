"""EK-FAC by several processes: sums added up, eigendecompositions dealt out."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from ..batches import Data, accumulator
from ..blocks import Blocks, Factor, like, numbers, zeros
from ..checkpoint import Checkpoint
from ..curvature import facts_of
from ..ekfac import Eigenbasis, Squares, corrected_eigenvalues, kept_eigh, parts_of, put_together
from ..finite import note_rounding
from ..kfac import Moments, accumulate_moments
from ..kronecker import Kronecker
from ..layers import LayerSpec
from ..objectives import Objective
from ..passes import Fit
from ..placement import plain_numbers
from .ranks import Ranks
from .shares import shared

T = TypeVar("T")


@plain_numbers
def ekfac(
    ranks: Ranks,
    model: nn.Module,
    objective: Objective,
    train: Data,
    layers: LayerSpec = None,
    labels: str | None = None,
    draws: int = 1,
    seed: int = 0,
    progress: bool = True,
    *,
    sharing: str = "expand",
    blocks: Blocks = None,
    checkpoint: str | Path | None = None,
) -> Kronecker:
    """``inflib.ekfac`` of all the data, on every process; each passes over its share of ``train``'s batches.

    Arguments, and what is raised, as for ``inflib.ekfac``; ``train`` is the whole data in every process, a list of
    batches or a DataLoader in order. ``checkpoint`` is a folder in which each process keeps its own sums: the same
    number of processes goes on from them.
    """
    part = shared(ranks, model, train)
    fit = Fit.of(
        model, objective, part.data, layers, labels, draws, seed, progress and ranks.rank == 0, sharing,
        _own_folder(checkpoint, ranks), part.start, blocks,
    )  # fmt: skip
    with fit.kept as kept:
        moments = _all_moments(ranks, fit, accumulate_moments(fit, passes=2) if part.batches else no_moments(fit))
        basis = _dealt_out(ranks, moments, kept)
        squares = corrected_eigenvalues(fit, basis) if part.batches else no_squares(fit)
        found = ranks.total("the sums of Λ", [squares.sums[k] for k in fit.layers])
    Λ = Squares(dict(zip(fit.layers, found, strict=True)), moments.examples).means()
    if ranks.rank == 0:
        note_rounding(Λ, {name: layer.weight for name, layer in fit.layers.items()})
    return Kronecker(Λ, basis.Q_S, basis.Q_A, facts_of(fit, "EK-FAC", moments.examples))


def _own_folder(checkpoint: str | Path | None, ranks: Ranks) -> Path | None:
    if checkpoint is None:
        return None
    Path(checkpoint).mkdir(exist_ok=True)
    return Path(checkpoint) / f"rank-{ranks.rank}-of-{ranks.size}"


def no_moments(fit: Fit) -> Moments:
    """The sums over no example."""
    sums: dict[str, dict[str, Factor]] = {"S": {}, "A": {}}
    for side, found in sums.items():
        cuts = fit.cuts(side)
        for name, layer in fit.layers.items():
            none = layer.weight.new_zeros(0, dtype=accumulator(layer.weight.dtype))
            d = layer.shape["SA".index(side)]
            found[name] = none.new_zeros(d) if layer.diagonal == side else zeros(none, cuts[name])
    return Moments(sums["A"], sums["S"], dict.fromkeys(fit.layers, 0), 0)


def no_squares(fit: Fit) -> Squares:
    """The sums over no example."""
    dtypes = {k: accumulator(layer.weight.dtype) for k, layer in fit.layers.items()}
    return Squares({k: layer.weight.new_zeros(layer.shape, dtype=dtypes[k]) for k, layer in fit.layers.items()}, 0)


def _all_moments(ranks: Ranks, fit: Fit, own: Moments) -> Moments:
    names, device = list(fit.layers), next(iter(fit.layers.values())).weight.device
    A, S = (
        ranks.total(f"the sums of {side}", [numbers(sums[k]) for k in names])
        for side, sums in (("A", own.A_sum), ("S", own.S_sum))
    )
    # positions of whole gradients are Σ ‖Dθ‖², no whole numbers; float64 counts examples exactly up to 9e15
    counts = torch.tensor([own.examples, *(own.positions[k] for k in names)], dtype=torch.float64, device=device)
    (counts,) = ranks.total("the counts", [counts])
    examples, *positions = counts.tolist()
    cut_A, cut_S = fit.cuts("A"), fit.cuts("S")
    return Moments(
        {k: like(x, cut_A[k]) for k, x in zip(names, A, strict=True)},
        {k: like(x, cut_S[k]) for k, x in zip(names, S, strict=True)},
        dict(zip(names, positions, strict=True)),
        int(examples),
    )


def deal(sizes: dict[T, int], hands: int) -> dict[T, int]:
    """Who decomposes which factor: the largest first, each to whom has least to do (d³) so far."""
    work = [0] * hands
    dealt = {}
    for key in sorted(sizes, key=lambda key: -sizes[key]):
        dealt[key] = work.index(min(work))
        work[dealt[key]] += sizes[key] ** 3
    return dealt


def _dealt_out(ranks: Ranks, moments: Moments, kept: Checkpoint) -> Eigenbasis:
    """``eigenbasis``, each factor or block of one decomposed by one process and sent to all."""
    parts = parts_of(moments)
    owner = deal({part: part.size for part in parts}, ranks.size)
    own = {part: kept_eigh(part.of(moments), kept, part.file) for part in parts if owner[part] == ranks.rank}
    found, held = {}, numbers(next(iter(moments.A_sum.values())))
    for part in parts:
        v, Q = own.get(part, (held.new_empty(part.size), held.new_empty(part.size, part.size).mT))
        what = f"the eigenvectors of {part.layer!r}"
        both = [ranks.sent(what, x, owner[part]) for x in (v.contiguous(), Q.mT.contiguous())]
        found[part] = both[0], both[1].mT
    return put_together(moments, found)
