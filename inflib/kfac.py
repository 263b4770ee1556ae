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

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from numbers import Integral
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from .batches import Batch, Data, accumulator, length, walk
from .checkpoint import Checkpoint, Done, Tensors
from .coverage import select_and_say
from .fingerprints import hash_weights
from .finite import check_finite
from .gradient_moments import add_products, add_squares, trace
from .hooks import Pair, Recording
from .layers import Layer, LayerSpec, OneHot
from .memory import check_factors
from .objectives import Objective, check_objective, label_kind, label_seeds
from .order import Same
from .padding import Padding
from .placement import check_mode, plain_numbers
from .positions import present_means, present_rows
from .proof import Proof
from .randomness import check_seed
from .symmetric import add_rows, laid, mirrored

SHARING = ("expand", "reduce", "gradients")


@dataclass(frozen=True)
class Fit:
    """One curvature fit's constants, handed from pass to pass."""

    model: nn.Module
    objective: Objective
    data: Same
    layers: dict[str, Layer]
    labels: str
    draws: int
    seed: int
    progress: bool
    sharing: str
    proof: Proof
    kept: Checkpoint = field(default_factory=Checkpoint)
    start: int = 0  # position of the data's first example among all examples, whose label streams go by it

    @classmethod
    def of(
        cls,
        model: nn.Module,
        objective: Objective,
        data: Data,
        layers: LayerSpec = None,
        labels: str | None = None,
        draws: int = 1,
        seed: int = 0,
        progress: bool = True,
        sharing: str = "expand",
        checkpoint: str | Path | None = None,
        start: int = 0,
    ) -> Fit:
        """Check the arguments and choose the layers."""
        if not (isinstance(draws, Integral) and int(draws) >= 1):
            raise ValueError(
                f"draws={draws!r}; expected a whole number of label draws per example, at least 1. Leave it at draws=1."
            )
        if sharing not in SHARING:
            raise ValueError(
                f"sharing={sharing!r}; expected 'expand' (each position counts by itself), 'reduce' (an example's "
                "positions count together) or 'gradients' (its whole gradient counts). Leave it at sharing='expand'."
            )
        check_seed(seed)
        check_mode(model)
        chosen, kind = select_and_say(model, layers), label_kind(objective, labels)
        same = Same.of(data, "train", ordered=kind == "sampled")  # label streams go by position
        if checkpoint is not None and not same.by_batch:
            raise ValueError(
                "checkpoint= with data that may come in another order each time (a loader that shuffles, or "
                "what is neither a list nor a DataLoader); expected an order that a fit can go on in. Use "
                "DataLoader(..., shuffle=False)."
            )
        proof = Proof(model, chosen, objective, batches=length(data), seed=int(seed), say=True)
        fit = cls(model, objective, same, chosen, kind, int(draws), int(seed), progress, sharing, proof, start=start)
        return fit if checkpoint is None else replace(fit, kept=Checkpoint.at(checkpoint, fit.facts()))

    def facts(self) -> dict[str, Any]:
        """What the sums depend on beside the data, for a checkpoint to be known by."""
        return {
            "weights": hash_weights(self.model),
            "layers": {name: layer.shape for name, layer in self.layers.items()},
            "untied": any(layer.untied for layer in self.layers.values()),
            "objective": repr(self.objective),
            "labels": self.labels,
            "draws": self.draws,
            "seed": self.seed,
            "sharing": self.sharing,
            "start": self.start,
        }

    def sharing_of(self, name: str) -> str:
        """How a layer's positions are counted: an elementwise one's together, which is exact, an embedding's apart."""
        kind = self.layers[name].kind
        return "reduce" if kind.elementwise else "expand" if self.layers[name].diagonal else self.sharing

    @property
    def one_seed(self) -> bool:
        """Whether a batch is back-propagated once: its forward pass may then be forgotten on the way."""
        return self.labels == "observed" or (self.labels == "sampled" and self.draws == 1)

    def recordings(
        self,
        pass_: int,
        what: str,
        *,
        check: bool,
        done: Done = Done(),  # noqa: B008 (immutable)
    ) -> Iterator[tuple[Batch, Recording, Iterator[tuple[Tensor, float]]]]:
        """Every batch with its forward pass and its label seeds (``pass_`` names the streams of sampled labels).

        check=True has the proof look at batches whose turn it is. Batches that are ``done`` are only compared with
        those that were.
        """
        checked = not done.items
        for batch in walk(self.data, name="train", progress=self.progress, what=what):
            if self.data.at <= done.items:
                if check:
                    self.proof.see(batch)
                continue
            if not checked:
                self.data.check_resumed(done)
                checked = True
            recording = self.proof.recording(batch, look=check)
            self.objective.check(recording.outputs, batch.targets)
            if check and batch.index == 0:
                check_objective(self.objective, recording.outputs, batch.targets, self.labels)
            seeds = label_seeds(
                self.objective,
                recording.outputs,
                batch.targets,
                labels=self.labels,
                draws=self.draws,
                seed=self.seed,
                pass_=pass_,
                start=self.start + batch.start,
            )
            yield batch, recording, seeds
            del recording, seeds  # or this batch would be held while the next one is recorded
        if not checked:
            self.data.check_resumed(done)

    def progress_made(self, whole: bool = False) -> Done:
        """How far the present pass has come, for a checkpoint."""
        return Done(self.data.at, self.data.digest(self.data.at), whole)


@dataclass(frozen=True)
class Moments:
    """Sums Σ a aᵀ and Σ g gᵀ with their counts; ``+`` merges two shards of the data."""

    A_sum: dict[str, Tensor]  # (i, i) per layer; of an embedding the diagonal, (i,)
    S_sum: dict[str, Tensor]  # (o, o) per layer; of an unembedding that an embedding reads the diagonal, (o,)
    positions: dict[str, float]  # examples × positions (T) per layer, without padding; of whole gradients Σ ‖Dθ‖²
    examples: int

    def A(self, layer: str) -> Tensor:
        """Activation second moment E[a aᵀ], (i, i); of an embedding its diagonal, (i,)."""
        return self.A_sum[layer] / self.positions[layer]

    def S(self, layer: str) -> Tensor:
        """Output-gradient second moment Σ_t E[g gᵀ], (o, o)."""
        return self.S_sum[layer] / self.examples

    def __add__(self, other: Moments) -> Moments:
        return Moments(
            {k: v + other.A_sum[k] for k, v in self.A_sum.items()},
            {k: v + other.S_sum[k] for k, v in self.S_sum.items()},
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
) -> Moments:
    """One pass over the data → the sums that A and S are made of (eq. 16). Arguments as for ``inflib.ekfac``."""
    return accumulate_moments(Fit.of(model, objective, data, layers, labels, draws, seed, progress, sharing))


def accumulate_moments(fit: Fit) -> Moments:
    """``second_moments`` of a Fit: pass 0 over its data. Raises MemoryError where the factors would not fit."""
    check_factors(fit.layers)
    A, S, positions, examples, done = _begun(fit)
    padding = Padding(fit.model)

    def save(whole: bool = False) -> None:
        sums = {"A": A, "S": S}
        held = {f"{side}/{name}": x for side, by_layer in sums.items() for name, x in by_layer.items()}
        counts = {"positions": positions, "examples": examples}
        fit.kept.save("moments", held, counts, fit.progress_made(whole))

    for batch, recording, seeds in fit.recordings(0, "second moments", check=True, done=done):
        there = padding.present(batch, recording)
        whole = [name for name in fit.layers if fit.sharing_of(name) == "gradients"]
        for name in (name for name in fit.layers if name not in whole):
            positions[name] += _add_activations(A, name, recording.activations[name], there[name], fit.sharing_of(name))
        squares: dict[str, Tensor] = {}
        check_finite("activations", A, batch.index)
        for seed_, weight in seeds:
            g = recording.gradients(seed_, last=fit.one_seed)
            for name in whole:
                add_products(A, S, squares, name, Pair(recording.activations[name], g.pop(name)), weight)
            for name in g:
                rows = _gradient_rows(g[name], fit.sharing_of(name))
                if fit.layers[name].diagonal == "S":
                    S[name] = S.get(name, 0) + weight * rows.square().sum(0)
                else:
                    add_rows(S, name, rows, weight)
        add_squares(A, squares, recording.activations)
        positions |= {name: trace(A[name]) for name in whole}
        check_finite("output gradients", S, batch.index)
        examples += batch.size
        del recording, seeds
        if fit.kept.due:
            save()
    if fit.kept and not done.whole:
        save(whole=True)
    return Moments(mirrored(A, fit.layers), mirrored(S, fit.layers), positions, examples)


def check_uses(layers: dict[str, Layer]) -> None:
    """Raise ValueError for a weight that is multiplied by and looked up: two Kronecker products, and K-FAC has one."""
    name = next((name for name, layer in layers.items() if layer.lookups), None)
    if name is not None:
        raise ValueError(
            f"layer {name!r} is an embedding and an unembedding with one weight, whose curvature is no one product "
            f"S ⊗ A; expected plain layers. Use ekfac, whose eigenvalues count both uses, or layers=untied({name!r})."
        )


def _begun(fit: Fit) -> tuple[Tensors, Tensors, dict[str, float], int, Done]:
    """A, S, positions, examples and how far they go: empty, or as a checkpoint has them."""
    held = fit.kept.read("moments")
    if held is None:
        return {}, {}, dict.fromkeys(fit.layers, 0), 0, Done()
    tensors, counts, done = held
    A, S = (
        {name: laid(tensors[f"{side}/{name}"].to(layer.weight.device)) for name, layer in fit.layers.items()}
        for side in ("A", "S")
    )
    return A, S, counts["positions"], counts["examples"], done


def _add_activations(A: dict[str, Tensor], name: str, a: Tensor, there: Tensor | None, sharing: str) -> int:
    """A[name] += Σ a aᵀ, of an embedding its diagonal alone; returns how many rows that were."""
    if isinstance(a, OneHot):
        counts, rows = a.counts(there)
        A[name] = A[name] + counts if name in A else counts
        return rows
    found = _activation_rows(a, there, sharing)
    add_rows(A, name, found, 1.0)
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
