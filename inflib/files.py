"""Files that are there whole, or not at all: written beside their place and moved there, sealed with a checksum.

A process that is killed leaves a folder that nobody holds a lock on; the next writer removes it. A lock is its
process's alone: a loader's workers, forked while it is held, would hold it on when their parent is no more.
"""

from __future__ import annotations

import errno
import glob
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Any
from uuid import uuid4
from weakref import WeakSet

import torch
from torch import Tensor

try:
    import fcntl

    LOCKS = True  # whether this system has locks that end with their process
except ImportError:  # not POSIX
    LOCKS = False

from .fingerprints import hash_tensor

_HELD: WeakSet[Lock] = WeakSet()  # this process's locks


def seal(tensors: dict[str, Tensor], metadata: dict[str, Any]) -> dict[str, Any]:
    """The metadata with a checksum over every tensor and every other entry: one bit that changes is noticed."""
    digest = blake2b(digest_size=16)
    facts = {key: value for key, value in metadata.items() if key != "checksum"}
    digest.update(json.dumps(facts, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        hash_tensor(digest, tensors[name])
    return facts | {"checksum": digest.hexdigest()}


def write_safetensors(tensors: dict[str, Tensor], metadata: dict[str, Any], path: Path) -> None:
    """Write into a temporary folder beside ``path``, then move the file there. The same contents give the same bytes.

    What a killed process left of an earlier try is removed. Raises OSError that names the path and the bytes needed,
    the old file being as it was, where the disk is full or the folder may not be written to.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    if not path.parent.is_dir():
        raise FileNotFoundError(f"cannot write {path}: expected its folder to exist. Create {path.parent} first.")
    try:
        remove_strays(path)
        with folder_beside(path) as folder:
            temporary = folder / "file"
            temporary.touch(exist_ok=False)
            mode = temporary.stat().st_mode  # what the umask asks for; safetensors makes files for their owner only
            # one entry, because safetensors writes several in an order that changes from call to call
            with torch.device("cpu"):  # safetensors makes tensors of its own
                save_file(tensors, temporary, {"inflib": json.dumps(metadata, sort_keys=True)})
            temporary.chmod(mode)
            os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        size = sum(x.numel() * x.element_size() for x in tensors.values())
        was = " The file that was there is as it was." if path.exists() else ""
        raise OSError(
            getattr(error, "errno", None) or errno.EIO,
            f"cannot write {path} ({error}); expected a folder that may be written to, with {size:,} bytes free. Make "
            f"room, or save elsewhere.{was}",
        ) from error


@contextmanager
def folder_beside(path: Path) -> Iterator[Path]:
    """A folder of its own beside ``path``, locked for as long as its process lives, and gone afterwards.

    A folder, because safetensors writes to a name of its own choosing beside the one it is given.
    """
    folder = path.with_name(f"{path.name}.{uuid4().hex}.part")
    folder.mkdir()
    held = lock(folder)
    try:
        yield folder
    finally:
        try:
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            if held is not None:
                held.release()


def remove_strays(path: Path) -> None:
    """Remove what processes that were killed left of writing to ``path``; those still writing hold a lock."""
    _remove_dead(path.parent.glob(f"{glob.escape(path.name)}.*.part"))


def remove_strays_in(folder: Path) -> None:
    """``remove_strays`` of every file in a folder."""
    _remove_dead(folder.glob("*.part"))


def _remove_dead(strays: Iterable[Path]) -> None:
    for stray in strays:
        held = lock(stray)
        if held is None:
            continue
        if stray.is_dir():
            shutil.rmtree(stray, ignore_errors=True)
        else:
            stray.unlink(missing_ok=True)
        held.release()


class Lock:
    """A lock on a file or folder, until ``release``, or its process's end, or until nothing knows of it any more."""

    def __init__(self, descriptor: int):
        self._descriptor: int | None = descriptor
        _HELD.add(self)

    def fileno(self) -> int:
        assert self._descriptor is not None
        return self._descriptor

    def release(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    __del__ = release  # an interrupt may come before any ``finally`` does


def lock(path: Path) -> Lock | None:
    """A lock on a file or folder; None where another holds it, or locks are unknown."""
    if not LOCKS:
        return None
    try:
        held = Lock(os.open(path, os.O_RDONLY))
    except OSError:
        return None
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        held.release()
        return None
    return held


def _leave_to_parent() -> None:
    """Close a forked process's copies of its parent's locks, which would keep them locked beyond their end."""
    for held in list(_HELD):
        held.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_parent)


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, metadata) of a safetensors file; ValueError where it is damaged."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise FileNotFoundError(f"{path} {what}; expected a file written by inflib.save. Check the path.")
    try:
        with torch.device("cpu"), safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        found = json.loads(metadata["inflib"]) if "inflib" in metadata else metadata
        if not isinstance(found, dict):
            raise ValueError(f"its metadata is {found!r:.40}, no JSON object")
        return tensors, found
    except (SafetensorError, ValueError) as error:  # ValueError: metadata that is no JSON, or no UTF-8
        raise ValueError(
            f"{path} is damaged or no safetensors file ({error}); expected one written by inflib.save."
        ) from None
