"""A store, written shard by shard: killed at any moment, the same call goes on and ends with the same bytes.

What is there already is compared, not trusted: a folder holds a store of the same facts (weights, curvature, axes,
bits, λ₀) and examples, or is refused. Examples that it has are not written again, others are appended; until those are
whole, the store is what it was.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from ..ahead import Ahead, in_bytes
from ..kronecker import Kronecker
from ..notes import note as say
from ..objectives import Objective
from ..order import Same
from ..storage import load, save_curvature
from .fitting import check_curvature_file, curvature_hash, fit_axes, read_axes, request
from .folder import building, free, once, put, put_text, sweep
from .manifest import (
    AXES,
    CURVATURE,
    GROWING,
    MANIFEST,
    SHARDS,
    Manifest,
    Shard,
    note,
    noted,
    read_manifest,
    read_planned,
    with_notes,
)
from .records import Kept, fill, record
from .shards import shard_checksum
from .sides import captured
from .store import Store
from .survey import Survey, survey

SHARD_BYTES = 2**28  # of a shard, which is what a build holds of the store


class StoreNote(UserWarning):
    """A store was opened that is being appended to, or was when that was stopped."""


def build_store(
    model: nn.Module,
    objective: Objective,
    train: Same,
    curvature: Kronecker,
    folder: Path,
    *,
    part: tuple[int, int],
    append: bool,
    shard: int | None,
    progress: bool,
    **chosen: Any,
) -> Store:
    """See ``TrainIndex.build``. ``chosen``: axes, bits, components, damping, sample and seed (fitting.py)."""
    _check_part(part)
    known = survey(model, train, curvature)
    facts = request(objective, curvature, known, **chosen)
    with building(folder, part) as temporary:
        resumed = not once(temporary, folder / CURVATURE, lambda path: save_curvature(curvature, path))
        # components are fitted to the examples that a store is begun with; the manifest knows these from then on
        fitted = chosen["components"] is not None and not (folder / MANIFEST).exists()
        begun = {**facts, "examples": _hash(train.prints)} if fitted else facts
        if resumed and (folder / AXES).exists():
            read_axes(folder / AXES, curvature, begun)  # says which fact is another
        if resumed:
            check_curvature_file(folder / CURVATURE, curvature)
        once(temporary, folder / AXES, lambda path: fit_axes(path, model, objective, train, curvature, known, begun))
        kept, seal = read_axes(folder / AXES, curvature, begun)
        each = record(kept, curvature.shapes, chosen["bits"], known.dtype)
        shards = _plan(train, known, shard or max(1, SHARD_BYTES // each.itemsize))
        planned = Manifest({**facts, "axes": {**facts["axes"], "checksum": seal}}, tuple(shards))
        once(temporary, folder / MANIFEST, lambda path: path.write_text(planned.text(), "utf-8"))
        manifest, at, there = _placed(folder, planned, append)
        wanted = [n for n in range(len(shards)) if n % part[1] == part[0] and there.shards[at + n].checksum is None]
        _check_room(folder, sum(shards[n].examples for n in wanted) * each.itemsize)
        if wanted and manifest != read_planned(folder):
            put_text(temporary, folder / GROWING, manifest.text())
        for n, records in _filled(
            model, objective, train, curvature, kept, facts, known, shards, wanted, each, progress
        ):
            _write(temporary, folder, manifest, manifest.shards[at + n], records)
        manifest = _join(temporary, folder)
    sweep(folder)
    return Store(folder, curvature, kept, facts["damping"], facts["bits"], manifest)


def open_store(folder: Path, model: nn.Module) -> Store:
    """The store in a folder, on the model's device; refused unless it is complete and of this model.

    Shards are looked at when they are first read: a missing or damaged one is refused by its name. Examples that are
    being appended are not in it until all of them are there; a StoreNote says so.
    """
    manifest = with_notes(folder)
    curvature = load(folder / CURVATURE, model)
    facts = {key: value for key, value in manifest.facts.items() if key != "axes"}
    if curvature_hash(curvature) != facts["curvature"]["hash"]:
        raise ValueError(f"{folder / CURVATURE} is another curvature than the store was built with; put back its own.")
    kept, seal = read_axes(folder / AXES, curvature, facts)
    if seal != manifest.facts["axes"]["checksum"]:
        raise ValueError(f"{folder / AXES} is another store's; expected the one this store was built with.")
    if not manifest.complete:
        missing = next(shard for shard in manifest.shards if shard.checksum is None)
        raise ValueError(
            f"{folder} is not complete: {missing.name} was not written yet. Make the call that builds it again, it "
            "goes on from there."
        )
    if (more := read_planned(folder).examples - manifest.examples) > 0:
        say(
            f"{folder}: {more:,} examples are being appended to it, or that was stopped; these are the "
            f"{manifest.examples:,} from before. If it was stopped, make the same call again: it goes on from there.",
            StoreNote,
        )
    return Store(folder, curvature, kept, facts["damping"], facts["bits"], manifest)


def _plan(train: Same, known: Survey, most: int) -> list[Shard]:
    """Runs of whole batches, of at most so many examples each unless one batch has more."""
    shards: list[Shard] = []
    start = first = size = 0
    for index, examples in enumerate([*known.sizes, most + 1]):  # the last closes the last shard
        if size and size + examples > most:
            shards.append(Shard(start, size, _hash(train.prints[first:index])))
            start, first, size = start + size, index, 0
        size += examples
    return shards


def _hash(prints: Sequence[bytes]) -> str:
    return blake2b(b"".join(prints), digest_size=16).hexdigest()


def _placed(folder: Path, planned: Manifest, append: bool) -> tuple[Manifest, int, Manifest]:
    """The folder's manifest with the planned shards in it, which of its shards is the first of them, and with notes.

    Read again where another process joins shards meanwhile.
    """
    while True:
        before = read_planned(folder)
        manifest, at = _with_planned(folder, before, planned, append)
        there = noted(folder, manifest)
        if read_planned(folder) == before:
            return manifest, at, there


def _with_planned(folder: Path, there: Manifest, planned: Manifest, append: bool) -> tuple[Manifest, int]:
    """Shards that the manifest has and the folder no longer have no checksum in what is returned: made again, perhaps
    by another number of threads, they may be rounded otherwise.
    """
    there = replace(there, shards=tuple(_if_there(folder, shard) for shard in there.shards))
    _check_facts(folder, there.facts, planned.facts)
    keys = [(shard.examples, shard.data) for shard in there.shards]
    wanted = [(shard.examples, shard.data) for shard in planned.shards]
    for at in range(len(keys) - len(wanted) + 1 if append else 1):
        if keys[at : at + len(wanted)] == wanted:
            return there, at
    if not append:
        raise ValueError(
            f"{folder} holds a store of {there.examples} other examples; {planned.examples} came. Expected those that "
            "it was begun with, in the same batches: the call that was made then. New examples go in with append=True, "
            "another store into another folder."
        )
    there = noted(folder, there)
    if not there.complete:
        raise ValueError(
            f"{folder} is not complete; expected it to be, before other examples are appended. Finish the call that "
            f"was interrupted first.{_given_up(folder)}"
        )
    more = tuple(replace(shard, start=shard.start + there.examples) for shard in planned.shards)
    return replace(there, shards=there.shards + more), len(there.shards)


def _given_up(folder: Path) -> str:
    """What to do where an append that was stopped is not to be finished."""
    before = read_manifest(folder)
    if not (before.complete and (folder / GROWING).exists()):
        return ""
    first = Shard(before.examples, 0, "").name
    return f" To give it up, remove {GROWING} and {first} and what comes after it: the examples before stay."


def _check_facts(folder: Path, there: dict[str, Any], now: dict[str, Any]) -> None:
    for key, value in now.items():
        if there.get(key) != value:
            raise ValueError(
                f"{folder} holds a store of another {key}: {there.get(key)!r:.200}, this call's is {value!r:.200}; "
                "expected the same. Use another folder, or remove this one."
            )


def _if_there(folder: Path, shard: Shard) -> Shard:
    return shard if (folder / shard.name).is_file() else replace(shard, checksum=None)


def _filled(
    model: nn.Module,
    objective: Objective,
    train: Same,
    curvature: Kronecker,
    kept: Kept,
    facts: dict[str, Any],
    known: Survey,
    shards: list[Shard],
    wanted: list[int],
    each: np.dtype,
    progress: bool,
) -> Iterator[tuple[int, np.ndarray]]:
    """The records of each wanted shard, one after the other; no more than one is held."""
    if not wanted:
        return
    starts = np.cumsum([0, *known.sizes])
    of_batch = np.searchsorted([shard.start for shard in shards], starts[:-1], side="right") - 1
    skip = {index for index, n in enumerate(of_batch) if n not in set(wanted)}
    records = np.zeros(0, each)
    size = in_bytes(known.examples * each.itemsize)
    ahead = Ahead("store", len(known.sizes), 1, lambda: f"it takes {size} on disk", done=len(skip))
    for batch, found in captured(model, objective, train, "train", curvature, None, progress, skip, ahead):
        n = int(of_batch[batch.index])
        at = batch.start - shards[n].start
        if at == 0:
            records = np.zeros(shards[n].examples, each)
        fill(records[at : at + batch.size], found, curvature, kept, facts["damping"], facts["bits"], batch.index)
        if at + batch.size == shards[n].examples:
            yield n, records


def _write(temporary: Path, folder: Path, manifest: Manifest, shard: Shard, records: np.ndarray) -> None:
    (folder / SHARDS).mkdir(exist_ok=True)
    shard = replace(shard, checksum=shard_checksum(records))
    put(temporary, folder / shard.name, records.nbytes, lambda file: np.save(file, records))
    put_text(temporary, folder / f"{shard.name}.json", note(manifest, shard))


def _join(temporary: Path, folder: Path) -> Manifest:
    """Write the checksums into the manifest and remove the notes, once every shard has one; the manifest now."""
    manifest = with_notes(folder, read_planned)
    if not manifest.complete:
        return with_notes(folder)
    if manifest != read_manifest(folder):
        put_text(temporary, folder / MANIFEST, manifest.text())
    (folder / GROWING).unlink(missing_ok=True)
    for shard in manifest.shards:
        (folder / f"{shard.name}.json").unlink(missing_ok=True)
    return manifest


def _check_room(folder: Path, needed: int) -> None:
    if free(folder) < needed:
        raise OSError(
            f"{folder}: {needed:,} bytes are still to be written, {free(folder):,} are free. Make room, take fewer "
            "axes= or bits=, or another folder."
        )


def _check_part(part: tuple[int, int]) -> None:
    which, of = part
    if not 0 <= which < of:
        raise ValueError(f"part={part}; expected (which, of how many), which from 0: (rank, world_size).")
