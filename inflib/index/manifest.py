"""A store's folder, and the manifest that says what is in it.

    manifest.json            the facts: weights, objective, curvature, layers, axes, bits, λ₀; every shard, its checksum
    growing.json             while examples are appended, or lost shards made again: what the manifest will be then
    curvature.safetensors    the curvature in whose eigenbasis the store is
    axes.safetensors         what is kept of each layer
    shards/0…0.npy           the examples from number 0…0 on, one record each; memory-mapped
    shards/0…0.npy.json      until the manifest has it: the checksum of a shard that is complete

A shard is written under a temporary name and moved to its own, then its note; when every shard has its note, whoever
sees it first writes the checksums into the manifest and removes the notes. So shards may come from several processes,
machines or days: what joins them is that they lie in one folder and are of one store. Nothing in the folder depends on
who wrote it when. Until the last shard of an append has its note, the store is the one that it was before.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

FORMAT = "inflib store 1"
MANIFEST, GROWING, CURVATURE, AXES = "manifest.json", "growing.json", "curvature.safetensors", "axes.safetensors"
SHARDS = "shards"


@dataclass(frozen=True)
class Shard:
    """Examples ``start .. start + examples − 1``, made of a run of batches with the hash ``data``."""

    start: int
    examples: int
    data: str
    checksum: str | None = None  # None until the manifest has it

    @property
    def name(self) -> str:
        return f"{SHARDS}/{self.start:012d}.npy"


@dataclass(frozen=True)
class Manifest:
    """What a store was made from, and its shards in order."""

    facts: dict[str, Any]
    shards: tuple[Shard, ...] = field(default=())

    @property
    def examples(self) -> int:
        return sum(shard.examples for shard in self.shards)

    @property
    def complete(self) -> bool:
        return all(shard.checksum is not None for shard in self.shards)

    @property
    def store(self) -> str:
        """A hash of the facts: shards with the same one belong together."""
        return blake2b(json.dumps(self.facts, sort_keys=True).encode(), digest_size=16).hexdigest()

    def text(self) -> str:
        """As it is written."""
        held = {"format": FORMAT, "facts": self.facts, "shards": [asdict(shard) for shard in self.shards]}
        return json.dumps(held, sort_keys=True, indent=1, ensure_ascii=False) + "\n"


def read_manifest(folder: Path, name: str = MANIFEST) -> Manifest:
    """The manifest of the store in ``folder``; FileNotFoundError or ValueError where it is not one."""
    path = folder / name
    try:
        held = json.loads(path.read_text("utf-8"))
        if held["format"] != FORMAT:
            raise ValueError(f"its format is {held['format']!r}")
        return Manifest(held["facts"], tuple(Shard(**shard) for shard in held["shards"]))
    except FileNotFoundError:
        raise FileNotFoundError(f"{folder} has no {name}; expected the folder of a store. Check the path.") from None
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is damaged, or no store's ({error}); expected format {FORMAT!r}. Build the store anew."
        ) from None


def read_planned(folder: Path) -> Manifest:
    """What the manifest will be when what is being written is whole."""
    try:
        return read_manifest(folder, GROWING)
    except FileNotFoundError:
        return read_manifest(folder)


def with_notes(folder: Path, read: Callable[[Path], Manifest] = read_manifest) -> Manifest:
    """The manifest with the checksums of those shards, too, that only have a note; ValueError for another store's.

    Read again until it is as before: another process may join shards and remove their notes at any moment.
    """
    manifest = read(folder)
    while True:
        found = noted(folder, manifest)
        before, manifest = manifest, read(folder)
        if manifest == before:
            return found


def noted(folder: Path, manifest: Manifest) -> Manifest:
    """``with_notes`` of this manifest, at one look."""
    return replace(manifest, shards=tuple(_noted(folder, manifest.store, shard) for shard in manifest.shards))


def _noted(folder: Path, store: str, shard: Shard) -> Shard:
    path = folder / f"{shard.name}.json"
    if shard.checksum is not None or not path.is_file() or not (folder / shard.name).is_file():
        return shard
    try:
        note = json.loads(path.read_text("utf-8"))
        came = {key: note[key] for key in ("store", "start", "examples", "data")}
        checksum = str(note["checksum"])
    except (FileNotFoundError, KeyError, TypeError, ValueError):
        return shard  # joined meanwhile, or no note: then it is made again
    expected = {"store": store, "start": shard.start, "examples": shard.examples, "data": shard.data}
    for key, value in expected.items():
        if came[key] != value:
            raise ValueError(
                f"{folder / shard.name} is another store's: its note has {key} {came[key]!r}; expected {value!r}. "
                "Remove both, or put them where they belong: shards are joined only where model, curvature, axes and "
                "examples are the same."
            )
    return replace(shard, checksum=checksum)


def note(manifest: Manifest, shard: Shard) -> str:
    """What is written beside a shard that is complete."""
    return json.dumps({"store": manifest.store, **asdict(shard)}, sort_keys=True)
