"""Writing into a store's folder: whole files or none, and one process for each part of it.

A process writes into a folder of its own inside the store's, which it holds a lock on for as long as it lives, and
moves what is complete to its place. What a process that was killed left is removed by the next.
"""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from ..files import LOCKS, Lock, folder_beside, lock, remove_strays

WORK = "building"
PATIENCE = 2.0  # seconds that another process may take to look at a folder, or to remove it


@contextmanager
def building(folder: Path, part: tuple[int, int]) -> Iterator[Path]:
    """A folder to write in, gone afterwards; BlockingIOError where a living process builds the same part.

    Raises OSError where the folder cannot be made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    which, of = part
    mine = folder / f"{WORK}-{which}-of-{of}"
    for other in folder.glob(f"{WORK}-*"):
        if other == mine or not other.name.endswith(f"-of-{of}"):  # other parts of as many may work beside this one
            _remove_if_dead(other, PATIENCE)
    held = None
    try:
        held = _held(mine)
        yield mine
    finally:
        try:
            shutil.rmtree(mine, ignore_errors=True)
        finally:  # also where that is interrupted, or this process would be in its own way
            if held is not None:
                held.release()


def _held(mine: Path) -> Lock | None:
    """Make a folder and lock it; BlockingIOError where another process holds it for longer than a look takes.

    One that looks for what killed processes left may hold it for a moment, or remove it before it is locked.
    """
    until = time.monotonic() + PATIENCE
    while True:
        try:
            mine.mkdir()
        except FileExistsError:
            if not LOCKS:
                raise _busy(mine.parent) from None
        held = lock(mine)
        if not LOCKS or (held is not None and _is_still(mine, held)):
            return held
        if held is not None:
            held.release()
        elif time.monotonic() > until:
            raise _busy(mine.parent)
        else:
            time.sleep(0.01)


def _is_still(path: Path, held: Lock) -> bool:
    """Whether what a descriptor was opened at is still there by its name."""
    try:
        return os.path.samestat(path.stat(), os.fstat(held.fileno()))
    except FileNotFoundError:
        return False


def _remove_if_dead(work: Path, patience: float = 0.0) -> None:
    """Remove another process's folder, if that process is no more; BlockingIOError if it lives.

    Several may find the same one at the same time: one removes it, and the others wait until it is gone.
    """
    until = time.monotonic() + patience
    while (held := lock(work)) is None and work.exists():
        if not LOCKS or time.monotonic() > until:
            raise _busy(work.parent)
        time.sleep(0.01)
    if held is not None:
        try:
            shutil.rmtree(work, ignore_errors=True)
        finally:
            held.release()


def _busy(folder: Path) -> BlockingIOError:
    return BlockingIOError(
        errno.EWOULDBLOCK,
        f"{folder} is being built by another process; expected none. Wait for it to end, or give each process its "
        f"part=(rank, world_size). If there is none, remove its folder {WORK}-… in there.",
    )


def sweep(folder: Path) -> None:
    """Remove what killed processes left."""
    for work in folder.glob(f"{WORK}-*"):
        with suppress(BlockingIOError):
            _remove_if_dead(work)


def put(temporary: Path, path: Path, size: int, write: Callable[[BinaryIO], object]) -> None:
    """Write a file and move it to its place, on the disk before it is there; OSError that says what to do."""
    part = temporary / path.name
    try:
        with part.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise OSError(
            error.errno or errno.EIO,
            f"cannot write {path} ({error}); expected a folder that may be written to, with {size:,} bytes free. Make "
            "room and make the same call again: what is complete stays, it goes on from here.",
        ) from error


def put_text(temporary: Path, path: Path, text: str) -> None:
    """``put`` for a text."""
    data = text.encode()
    put(temporary, path, len(data), lambda file: file.write(data))


def once(temporary: Path, path: Path, write: Callable[[Path], object]) -> bool:
    """Make a file unless it is there, and whether it was made; where several processes do, the first one's stays."""
    if path.exists():
        return False
    part = temporary / path.name
    write(part)
    try:
        os.link(part, path)
    except FileExistsError:
        return False
    except OSError:  # no links on this file system
        os.replace(part, path)
        return True
    finally:
        part.unlink(missing_ok=True)
    return True


def free(folder: Path) -> int:
    """Bytes that may still be written there."""
    return shutil.disk_usage(folder).free


def copy_files(folder: Path, path: Path, names: Iterable[str], texts: Mapping[str, str]) -> None:
    """Copy some of a folder's files to a new folder, with texts of other names, all of it or nothing."""
    if path.exists():
        raise FileExistsError(f"{path} is there already; expected a new folder to copy the store to. Name another.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"cannot write {path}: expected its folder to exist. Create {path.parent} first.")
    remove_strays(path)
    with folder_beside(path) as copied:
        for name in names:
            (copied / name).parent.mkdir(exist_ok=True)
            shutil.copy2(folder / name, copied / name)
        for name, text in texts.items():
            (copied / name).write_text(text, "utf-8")
        copied.rename(path)
