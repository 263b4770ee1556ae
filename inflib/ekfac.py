"""EK-FAC: K-FAC's eigenvectors with the eigenvalues that fit best.

Diagonalise K-FAC, S ⊗ A = (Q_S ⊗ Q_A)(λ_S ⊗ λ_A)(Q_S ⊗ Q_A)ᵀ, keep the basis and replace its eigenvalues by the exact
curvature's diagonal in that basis (George et al. 2018; Grosse et al. 2023, eq. 18–20):

    Λ = E[(Q_Sᵀ Dθ Q_A)²]   (o, i),      F ≈ (Q_S ⊗ Q_A) diag(Λ) (Q_S ⊗ Q_A)ᵀ

the closest matrix with those eigenvectors in Frobenius norm. Dθ = Σ_t g_t a_tᵀ is a per-example gradient with labels
from the model, drawn afresh: a second pass over the data.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .ahead import Ahead
from .allocation import of_layer
from .batches import accumulator, cached_bytes, chunks, double
from .blocks import BlockDiagonal, Factor, joined, numbers
from .checkpoint import NOWHERE, Checkpoint, Done
from .finite import check_finite
from .hooks import Pair, Recording
from .kfac import Moments
from .layers import OneHot
from .passes import Fit


@dataclass(frozen=True)
class Eigenbasis:
    """Per layer: orthogonal Q_S (o, o) and Q_A (i, i), columns eigenvectors, with S's and A's own eigenvalues.

    No Q where a factor is diagonal, as one of an embedding's is; a block-diagonal one where it is cut into blocks.
    """

    Q_S: dict[str, Factor]
    Q_A: dict[str, Factor]
    lambda_S: dict[str, Tensor]  # (o,)
    lambda_A: dict[str, Tensor]  # (i,)


def eigenbasis(moments: Moments, kept: Checkpoint = NOWHERE) -> Eigenbasis:
    """One ``eigh`` per factor or block of one, in float64; eigenvalues clamped at 0. What ``kept`` has is there."""
    found = {}
    for part in parts_of(moments):
        with of_layer(part.layer):
            found[part] = kept_eigh(part.of(moments), kept, part.file)
    return put_together(moments, found)


@dataclass(frozen=True)
class Part:
    """What one eigendecomposition is of: a layer's factor S or A, or one of its blocks."""

    layer: str
    side: str
    block: int
    size: int
    file: str  # what a checkpoint calls its eigenvectors

    def of(self, moments: Moments) -> Tensor:
        """The matrix itself, (size, size)."""
        sums = moments.S_sum if self.side == "S" else moments.A_sum
        count = moments.examples if self.side == "S" else moments.positions[self.layer]
        return _matrices(sums[self.layer])[self.block] / count


def parts_of(moments: Moments) -> list[Part]:
    """What there is to decompose; a diagonal is not, whose eigenvectors are the axes."""
    found = []
    for at, name in enumerate(moments.A_sum):
        for side, sums in (("S", moments.S_sum), ("A", moments.A_sum)):
            blocks = _matrices(sums[name])
            for k, block in enumerate(blocks):
                file = f"basis-{at:04}-{side}" + (f"-{k}" if len(blocks) > 1 else "")
                found.append(Part(name, side, k, len(block), file))
    return found


def _matrices(factor: Factor) -> list[Tensor]:
    if isinstance(factor, BlockDiagonal):
        return factor.blocks
    return [factor] if factor.ndim == 2 else []


def put_together(moments: Moments, found: Mapping[Part, tuple[Tensor, Tensor]]) -> Eigenbasis:
    """The basis, from each part's (eigenvalues, eigenvectors)."""
    basis = Eigenbasis({}, {}, {}, {})
    sides = {"S": (basis.lambda_S, basis.Q_S, moments.S), "A": (basis.lambda_A, basis.Q_A, moments.A)}
    for side, (values, Q, mean) in sides.items():
        for name in moments.A_sum:
            own = [both for part, both in found.items() if (part.layer, part.side) == (name, side)]
            if own:
                values[name] = torch.cat([v for v, _ in own])
                Q[name] = joined([vectors for _, vectors in own]) if len(own) > 1 else own[0][1]
            else:
                values[name] = numbers(mean(name))
    return basis


def kept_eigh(matrix: Tensor, kept: Checkpoint, file: str) -> tuple[Tensor, Tensor]:
    """``eigh``, read where ``kept`` has it in that file."""
    if held := kept.read(file):
        values, vectors = (held[0][part].to(matrix) for part in ("values", "vectors"))
        return values, vectors.mT.contiguous().mT  # laid out as eigh's are, or products would be rounded otherwise
    values, vectors = eigh(matrix)
    kept.save(file, {"values": values, "vectors": vectors}, {}, Done(whole=True))
    return values, vectors


def eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """(eigenvalues ≥ 0 ascending, eigenvectors as columns) of a symmetric matrix, computed in float64.

    A backend without float64 or ``eigh`` (MPS) has it done on the CPU. Results come in the matrix's dtype and device.
    """
    exact = double(matrix)
    try:
        values, vectors = torch.linalg.eigh(exact)
    except (NotImplementedError, RuntimeError):
        values, vectors = torch.linalg.eigh(exact.cpu())
    return values.clamp_min(0).to(matrix), vectors.to(matrix)


@dataclass(frozen=True)
class Squares:
    """Sums of squared rotated gradients with their count; ``+`` merges two shards of the data."""

    sums: dict[str, Tensor]  # (o, i) per layer
    examples: int

    def means(self) -> dict[str, Tensor]:
        """Λ per layer, (o, i)."""
        return {name: total / self.examples for name, total in self.sums.items()}

    def __add__(self, other: Squares) -> Squares:
        return Squares({k: v + other.sums[k] for k, v in self.sums.items()}, self.examples + other.examples)


def corrected_eigenvalues(
    fit: Fit, basis: Eigenbasis | None, *, check: bool = False, ahead: Ahead | None = None
) -> Squares:
    """Λ = E[(Q_Sᵀ Dθ Q_A)²], (o, i) per layer: pass 1 over the data, with labels drawn afresh (eq. 20).

    basis=None leaves the coordinates as they are: Λ is then the curvature's own diagonal. check and ahead: as
    for ``Fit.recordings``.
    """
    file = "squares" if basis else "diagonal"
    held, counts, done = fit.kept.read(file) or ({}, {"examples": 0}, Done())
    sums = {name: x.to(fit.layers[name].weight.device) for name, x in held.items()}
    examples = counts["examples"]
    Q_S, Q_A = (basis.Q_S, basis.Q_A) if basis else ({}, {})
    for batch, recording, seeds in fit.recordings(1, "corrected eigenvalues", check=check, done=done, ahead=ahead):
        _add_squares(sums, recording, seeds, fit.one_seed, Q_S, Q_A)
        check_finite("rotated gradients", sums, batch.index)
        examples += batch.size
        del recording, seeds
        if fit.kept.due:
            fit.kept.save(file, sums, {"examples": examples}, fit.progress_made())
    if fit.kept and not done.whole:
        fit.kept.save(file, sums, {"examples": examples}, fit.progress_made(whole=True))
    return Squares({name: sums[name].contiguous() for name in fit.layers}, examples)


def _add_squares(
    sums: dict[str, Tensor],
    recording: Recording,
    seeds: Iterator[tuple[Tensor, float]],
    one_seed: bool,
    Q_S: dict[str, Factor],
    Q_A: dict[str, Factor],
) -> None:
    """sums += Σ_n Σ_c w_c G̃², (o, i) per layer, of one recorded batch."""
    squares: dict[str, Tensor] = {}  # (B, o) Σ_c w_c g̃_c², for layers applied once an example
    for seed, weight in seeds:
        pairs = recording.pairs(seed, last=one_seed)
        for name in list(pairs):
            with of_layer(name):
                a, g = pair = pairs.pop(name)
                if isinstance(a, OneHot):
                    columns = a.columns(g)
                    square = weight * rotate(columns.rows, Q_S.get(name)).square()  # (U, o)
                    total = sums.setdefault(name, square.new_zeros(a.size, square.shape[1]).T)
                    total.T.index_add_(0, columns.token, square)
                elif g.shape[1] == 1:
                    _accumulate(squares, name, weight * rotate(g[:, 0], Q_S.get(name)).square())
                else:
                    for G in rotated_gradients(pair, Q_S.get(name), Q_A.get(name)):
                        # summed as it lies in memory, (b, i, o): ten times as fast
                        _accumulate(sums, name, weight * G.mT.square_().sum(0).mT)
    for name, square in squares.items():
        # rank one: the rotated gradient's square is g̃² ⊗ ã², so a batch is one matrix product
        with of_layer(name):
            a = rotate(recording.activations[name][:, 0], Q_A.get(name))
            _accumulate(sums, name, square.T @ a.square())  # (o, i)


def rotate(x: Tensor, Q: Factor | None) -> Tensor:
    """Coordinates of the rows of x (..., d) in the basis of Q's columns, in the accumulator's dtype."""
    x = x.to(accumulator(x.dtype))
    if Q is None:
        return x
    # as (Qᵀ xᵀ)ᵀ: where the bias makes d odd, some processors take half as long for it as for x Q
    return (Q.to(x).T @ x.flatten(0, -2).T).T.unflatten(0, x.shape[:-1])


def rotated_gradients(pair: Pair, Q_S: Factor | None, Q_A: Factor | None) -> Iterator[Tensor]:
    """Q_Sᵀ (Σ_t g_t a_tᵀ) Q_A of every example, (b, o, i), some examples at a time.

    Each side is rotated where that takes the fewer multiplications: g before the sum over t, T · o² an example, or the
    sum's rows after it, o² · i; and a likewise, T · i² against o · i².
    """
    (T, i), o = pair.a.shape[1:], pair.g.shape[2]
    if isinstance(pair.a, OneHot):
        rotated = Pair(pair.a, rotate(pair.g, Q_S))
        for rows in chunks(len(pair.a), o * i * pair.g.element_size()):
            yield Pair(rotated.a[rows], rotated.g[rows]).matrices()
        return
    first_a, first_g = Q_A is None or o >= T, Q_S is None or i >= T
    for rows in chunks(len(pair.a), o * i * pair.a.element_size(), cached_bytes(pair.a)):
        a, g = rotate(pair.a[rows], Q_A if first_a else None), rotate(pair.g[rows], Q_S if first_g else None)
        G = torch.bmm(a.mT, g).mT  # (b, o, i); aᵀg is faster than gᵀa where the bias makes i odd
        if not first_g:
            G = rotate(G.mT, Q_S).mT
        yield G if first_a else rotate(G, Q_A)


def _accumulate(sums: dict[str, Tensor], name: str, value: Tensor) -> None:
    sums[name] = sums[name] + value if name in sums else value
