"""One fit of a curvature: what it is of, checked before anything is computed, and its passes over the data.

Pass 0 sums moments, pass 1 squares in their eigenbasis. Each pass walks over the same batches in the same order, draws
labels of its own, has the proof look at a batch or two, and skips what a checkpoint has.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from numbers import Integral
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from .ahead import Ahead, telling
from .batches import Batch, Data, length, walk
from .blocks import Blocks, Sizes, check_blocks, cut, say_blocks
from .checkpoint import Checkpoint, Done
from .coverage import select_and_say
from .fingerprints import hash_weights, say_settings
from .hooks import Recording
from .layers import Layer, LayerSpec
from .objectives import Objective, check_objective, label_kind, label_seeds
from .order import Same
from .placement import check_mode
from .proof import Proof
from .randomness import check_seed

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
    blocks: Blocks = None

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
        blocks: Blocks = None,
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
        check_blocks(blocks)
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
        numbers = int(draws), int(seed)
        fit = cls(model, objective, same, chosen, kind, *numbers, progress, sharing, proof, start=start, blocks=blocks)
        return fit if checkpoint is None else replace(fit, kept=Checkpoint.at(checkpoint, fit.facts()))

    def facts(self) -> dict[str, Any]:
        """What the sums depend on beside the data, for a checkpoint to be known by."""
        return {
            "weights": hash_weights(self.model),
            "layers": {name: layer.shape for name, layer in self.layers.items()},
            "untied": any(layer.untied for layer in self.layers.values()),
            "objective": say_settings(self.objective),
            "labels": self.labels,
            "draws": self.draws,
            "seed": self.seed,
            "sharing": self.sharing,
            "start": self.start,
            "blocks": say_blocks(self.blocks),
        }

    def sharing_of(self, name: str) -> str:
        """How a layer's positions are counted: an elementwise one's together, which is exact, an embedding's apart."""
        kind = self.layers[name].kind
        return "reduce" if kind.elementwise else "expand" if self.layers[name].diagonal else self.sharing

    def cuts(self, side: str) -> dict[str, Sizes]:
        """The blocks of each layer's factor S or A; a diagonal is not cut."""
        which = "SA".index(side)
        return {
            name: cut(layer.shape[which], None if layer.diagonal == side else self.blocks)
            for name, layer in self.layers.items()
        }

    @property
    def sides(self) -> list[int]:
        """d of every factor that is a matrix (d, d), or of each of its blocks."""
        cuts = {side: self.cuts(side) for side in "SA"}
        return [d for k, layer in self.layers.items() for side in "SA" if layer.diagonal != side for d in cuts[side][k]]

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
        ahead: Ahead | None = None,
    ) -> Iterator[tuple[Batch, Recording, Iterator[tuple[Tensor, float]]]]:
        """Every batch with its forward pass and its label seeds (``pass_`` names the streams of sampled labels).

        check=True has the proof look at batches whose turn it is. Batches that are ``done`` are only compared with
        those that were. What is ``ahead`` is told of once it turns out long.
        """
        checked = not done.items
        walked = walk(self.data, name="train", progress=self.progress, what=what)
        for batch in telling(self._left(walked, done, check), ahead if self.progress else None):
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

    def _left(self, walked: Iterator[Batch], done: Done, check: bool) -> Iterator[Batch]:
        """The batches that are not done; the proof sees those that are, with check."""
        for batch in walked:
            if self.data.at > done.items:
                yield batch
            elif check:
                self.proof.see(batch)

    def progress_made(self, whole: bool = False) -> Done:
        """How far the present pass has come, for a checkpoint."""
        return Done(self.data.at, self.data.digest(self.data.at), whole)
