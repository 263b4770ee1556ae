"""A fit's sums on disk, so that a fit that was stopped goes on where it was.

Moments and Λ are sums over the data, added to batch by batch; the same terms in the same order give the same bits, with
or without a stop in between. A checkpoint is a folder of files that are there whole or not at all (files.py):

    moments.safetensors      Σ a aᵀ and Σ g gᵀ of the first batches, with their counts
    basis-0003-S.safetensors eigenvalues and eigenvectors of one factor, of the fourth layer
    squares.safetensors      Σ G̃² of the first batches

each with the facts of the fit: another model, seed or label kind would add other terms, and is refused. The batches
that are in a sum are walked over again without the model, and must be those that went in.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from .files import Lock, lock, read_safetensors, remove_strays_in, seal, write_safetensors

SECONDS = 60.0  # between two saves of a pass
SHARE = 20.0  # and so many times as long as a save takes

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Done:
    """How far a pass has come: items of the data walked over, and a digest of them."""

    items: int = 0
    digest: str = ""
    whole: bool = False


@dataclass
class Checkpoint:
    """A folder of sums, held for as long as the ``with`` lasts; None keeps nothing."""

    folder: Path | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    _held: Lock | None = None
    _next: float = 0.0

    @classmethod
    def at(cls, path: str | Path | None, facts: Mapping[str, Any]) -> Checkpoint:
        """The checkpoint at ``path``; its parent must exist."""
        return cls(None if path is None else Path(path), json.loads(json.dumps(facts)))

    def __bool__(self) -> bool:
        return self.folder is not None

    def __enter__(self) -> Checkpoint:
        if self.folder is None:
            return self
        if self.folder.is_file():
            raise ValueError(f"checkpoint={str(self.folder)!r} is a file; expected a folder, there or not yet there.")
        if not self.folder.parent.is_dir():
            raise FileNotFoundError(f"checkpoint={str(self.folder)!r}: create its parent, {self.folder.parent}, first.")
        self.folder.mkdir(exist_ok=True)
        self._held = lock(self.folder)
        if self._held is None and os.name == "posix":
            raise ValueError(
                f"checkpoint={str(self.folder)!r} is in use by another fit; expected one at a time. Wait for it, or "
                "give each its own folder."
            )
        remove_strays_in(self.folder)
        self._rest(0.0)
        return self

    def __exit__(self, *_: object) -> None:
        if self._held is not None:
            self._held.release()
            self._held = None

    @property
    def due(self) -> bool:
        """Whether enough time has passed since the last save of a running sum."""
        return self.folder is not None and time.monotonic() >= self._next

    def save(self, name: str, tensors: Tensors, counts: Mapping[str, Any], done: Done) -> None:
        """Write ``name`` with its counts; nothing where nothing is kept."""
        if self.folder is None:
            return
        began = time.monotonic()
        held = {key: x.contiguous().cpu() for key, x in tensors.items()}
        facts = {"facts": self.facts, "counts": dict(counts), "done": vars(done)}
        write_safetensors(held, seal(held, facts), self._file(name))
        self._rest(time.monotonic() - began)

    def read(self, name: str) -> tuple[Tensors, dict[str, Any], Done] | None:
        """(tensors, counts, how far) of ``name``, or None where it was not saved; ValueError for another fit's."""
        if self.folder is None or not self._file(name).exists():
            return None
        path = self._file(name)
        tensors, metadata = read_safetensors(path)
        if metadata.get("checksum") != seal(tensors, metadata)["checksum"]:
            raise ValueError(f"{path} is damaged: its checksum differs. Remove it; the fit then begins that part anew.")
        for key in {**self.facts, **metadata["facts"]}:
            now, then = self.facts.get(key), metadata["facts"].get(key)
            if now != then:
                raise ValueError(
                    f"{self.folder} was begun with {key} = {_short(then)}, this fit has {_short(now)}; expected the "
                    "same. Give checkpoint= another folder, or remove this one."
                )
        return tensors, metadata["counts"], Done(**metadata["done"])

    def _file(self, name: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{name}.safetensors"

    def _rest(self, took: float) -> None:
        self._next = time.monotonic() + max(SECONDS, SHARE * took)


NOWHERE = Checkpoint()


def _short(value: Any) -> str:
    said = json.dumps(value)
    return said if len(said) < 80 else f"{said[:77]}..."
