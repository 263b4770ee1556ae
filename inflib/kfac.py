"""K-FAC: the curvature of a layer as a Kronecker product of two small second moments.

    F_layer = E[Dθ Dθᵀ] = E[g gᵀ ⊗ a aᵀ] ≈ E[g gᵀ] ⊗ E[a aᵀ] = S ⊗ A

(Martens & Grosse 2015; Grosse et al. 2023, eq. 16) with A = Σ a aᵀ / positions (i, i) and S = Σ g gᵀ / examples (o, o),
g of the per-example loss *summed* over tokens, so that S ⊗ A has the curvature's scale for any number of positions.
Row-major: entry (o i, o' i') is S[o, o'] A[i, i'].

That counts every position of an example (a token, a pixel) as an example of its own, ``sharing="expand"``: exact for
linear networks with a loss at every position. ``sharing="reduce"`` takes an example's positions together, A = Σ ā āᵀ /
examples and S = Σ ḡ ḡᵀ / examples with ā the mean of a and ḡ the sum of g over them: exact for linear networks whose
outputs are averaged over positions before the loss, as after global pooling (Eschenhagen et al. 2023,
"Kronecker-Factored Approximate Curvature for Modern Neural Network Architectures"). ``sharing="gradients"`` takes whole
gradients instead (gradient_moments.py).

Two kinds of layers are always counted in the way that is right for them. A normalisation's scale and shift have their
own gradients for g and 1 for a, so positions together make S ⊗ A their exact block. An embedding's a are unit vectors,
whose A is diagonal by positions: the tokens' frequencies, a vector.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor, nn

from .ahead import Ahead, eigh_seconds, in_bytes
from .allocation import of_layer
from .batches import Data, accumulator, length
from .blocks import BlockDiagonal, Blocks, Factor, Sizes, like, numbers
from .checkpoint import Done
from .finite import check_finite
from .gradient_moments import add_products, add_squares, trace
from .hooks import Pair
from .layers import Layer, LayerSpec, OneHot
from .memory import check_factors, factor_bytes
from .objectives import Objective
from .padding import Padding
from .passes import Fit
from .placement import plain_numbers
from .positions import present_means, present_rows
from .symmetric import add_rows, laid, mirrored


@dataclass(frozen=True)
class Moments:
    """Sums Σ a aᵀ and Σ g gᵀ with their counts; ``+`` merges two shards of the data."""

    A_sum: dict[str, Factor]  # (i, i) per layer, or its blocks; of an embedding the diagonal, (i,)
    S_sum: dict[str, Factor]  # (o, o) per layer; of an unembedding that an embedding reads the diagonal, (o,)
    positions: dict[str, float]  # examples × positions (T) per layer, without padding; of whole gradients Σ ‖Dθ‖²
    examples: int

    def A(self, layer: str) -> Factor:
        """Activation second moment E[a aᵀ], (i, i); of an embedding its diagonal, (i,)."""
        return self.A_sum[layer] / self.positions[layer]

    def S(self, layer: str) -> Factor:
        """Output-gradient second moment Σ_t E[g gᵀ], (o, o)."""
        return self.S_sum[layer] / self.examples

    def __add__(self, other: Moments) -> Moments:
        return Moments(
            {k: v + other.A_sum[k] for k, v in self.A_sum.items()},  # type: ignore[operator] # alike in both
            {k: v + other.S_sum[k] for k, v in self.S_sum.items()},  # type: ignore[operator]
            {k: v + other.positions[k] for k, v in self.positions.items()},
            self.examples + other.examples,
        )


@plain_numbers
def second_moments(
    model: nn.Module,
    objective: Objective,
    data: Data,
    layers: LayerSpec = None,
    labels: str | None = None,
    draws: int = 1,
    seed: int = 0,
    progress: bool = True,
    *,
    sharing: str = "expand",
    blocks: Blocks = None,
) -> Moments:
    """One pass over the data → the sums that A and S are made of (eq. 16). Arguments as for ``inflib.ekfac``."""
    how = layers, labels, draws, seed, progress, sharing
    return accumulate_moments(Fit.of(model, objective, data, *how, blocks=blocks))


def accumulate_moments(fit: Fit, passes: int = 1) -> Moments:
    """``second_moments`` of a Fit: pass 0 over its data, of ``passes`` that there will be.

    Raises MemoryError where the factors would not fit.
    """
    cuts = {side: fit.cuts(side) for side in "SA"}
    check_factors(fit.layers, fit.blocks)
    A, S, positions, examples, done = _begun(fit)
    padding = Padding(fit.model)

    def save(whole: bool = False) -> None:
        sums = {"A": A, "S": S}
        held = {f"{side}/{name}": numbers(x) for side, by_layer in sums.items() for name, x in by_layer.items()}
        counts = {"positions": positions, "examples": examples}
        fit.kept.save("moments", held, counts, fit.progress_made(whole))

    for batch, recording, seeds in fit.recordings(
        0, "second moments", check=True, done=done, ahead=_ahead(fit, passes, done.items)
    ):
        there = padding.present(batch, recording)
        whole = [name for name in fit.layers if fit.sharing_of(name) == "gradients"]
        for name in (name for name in fit.layers if name not in whole):
            a, sharing = recording.activations[name], fit.sharing_of(name)
            with of_layer(name):
                positions[name] += _add_activations(A, name, a, there[name], sharing, cuts["A"][name])
        squares: dict[str, Tensor] = {}
        check_finite("activations", {name: numbers(x) for name, x in A.items()}, batch.index)
        for seed_, weight in seeds:
            g = recording.gradients(seed_, last=fit.one_seed)
            padding.check_reached(there, g, batch.index)
            for name in whole:
                pair, sizes = Pair(recording.activations[name], g.pop(name)), (cuts["S"][name], cuts["A"][name])
                add_products(A, S, squares, name, pair, weight, *sizes)
            for name in g:
                with of_layer(name):
                    rows = _gradient_rows(g[name], fit.sharing_of(name))
                    if fit.layers[name].diagonal == "S":
                        S[name] = S.get(name, 0) + weight * rows.square().sum(0)  # type: ignore[operator] # not cut
                    else:
                        add_rows(S, name, rows, weight, cuts["S"][name])
        add_squares(A, squares, recording.activations, cuts["A"])
        positions |= {name: trace(A[name]) for name in whole}
        check_finite("output gradients", {name: numbers(x) for name, x in S.items()}, batch.index)
        examples += batch.size
        del recording, seeds
        if fit.kept.due:
            save()
    if fit.kept and not done.whole:
        save(whole=True)
    return Moments(mirrored(A, fit.layers), mirrored(S, fit.layers), positions, examples)


def _ahead(fit: Fit, passes: int, done: int) -> Ahead:
    weight = next(iter(fit.layers.values())).weight

    def holds() -> str:
        return f"factors and eigenvectors take {in_bytes(factor_bytes(fit.layers, fit.blocks))}"

    return Ahead("fit", length(fit.data), passes, holds, lambda: eigh_seconds(fit.sides, weight.device), done)


def check_uses(layers: dict[str, Layer]) -> None:
    """Raise ValueError for a weight that is multiplied by and looked up: two Kronecker products, and K-FAC has one."""
    name = next((name for name, layer in layers.items() if layer.lookups), None)
    if name is not None:
        raise ValueError(
            f"layer {name!r} is an embedding and an unembedding with one weight, whose curvature is no one product "
            f"S ⊗ A; expected plain layers. Use ekfac, whose eigenvalues count both uses, or layers=untied({name!r})."
        )


def _begun(fit: Fit) -> tuple[dict[str, Factor], dict[str, Factor], dict[str, float], int, Done]:
    """A, S, positions, examples and how far they go: empty, or as a checkpoint has them."""
    held = fit.kept.read("moments")
    if held is None:
        return {}, {}, dict.fromkeys(fit.layers, 0), 0, Done()
    tensors, counts, done = held
    A, S = ({name: _laid(fit, tensors[f"{side}/{name}"], name, side) for name in fit.layers} for side in "AS")
    return A, S, counts["positions"], counts["examples"], done


def _laid(fit: Fit, saved: Tensor, name: str, side: str) -> Factor:
    found = like(saved.to(fit.layers[name].weight.device), fit.cuts(side)[name])
    # a copy of its own: a file's numbers begin anywhere, and products into them are rounded by where they begin
    return replace(found, flat=found.flat.clone()) if isinstance(found, BlockDiagonal) else laid(found)


def _add_activations(
    A: dict[str, Factor], name: str, a: Tensor, there: Tensor | None, sharing: str, sizes: Sizes
) -> int:
    """A[name] += Σ a aᵀ, of an embedding its diagonal alone; returns how many rows that were."""
    if isinstance(a, OneHot):
        counts, rows = a.counts(there)
        A[name] = A[name] + counts if name in A else counts
        return rows
    found = _activation_rows(a, there, sharing)
    add_rows(A, name, found, 1.0, sizes)
    return len(found)


def _activation_rows(a: Tensor, there: Tensor | None, sharing: str) -> Tensor:
    """a (B, T, i) without padding as (B·T, i) rows, or their means over positions (B, i)."""
    if sharing == "expand":
        return present_rows(a, there).to(accumulator(a.dtype))
    return present_means(a.to(accumulator(a.dtype)), there)


def _gradient_rows(g: Tensor, sharing: str) -> Tensor:
    """g (B, T, o) as (B·T, o) rows, or summed over positions (B, o)."""
    g = g.to(accumulator(g.dtype))
    return g.flatten(0, 1) if sharing == "expand" else g.sum(1)
