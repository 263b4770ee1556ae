"""Data that does not ship: found on this machine, or downloaded once and kept.

``read(file)`` gives a published file's content, checked by its SHA-256, from the first of these that has it:

1. ``$INFLIB_DATA``, a folder of the reader's own. A wrong file there is an error; nothing there is ever changed.
2. the cache, ``$INFLIB_CACHE`` or ``data/cache/`` of the repository (without one ``~/.cache/inflib``). It is ours: a
   damaged file is fetched again.
3. the file's mirrors, in order, each going on where a broken connection stopped. ``INFLIB_OFFLINE=1`` forbids this.

A download is held in memory (these are files of some ten megabytes) and comes under its name in the cache only when its
hash is right; of a broken one, what came is kept beside it as ``.part``.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import warnings
import zlib
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen
from uuid import uuid4

from ..batches import bar

FOLDER = Path(__file__).resolve().parents[2] / "data"  # of the repository, from which the course is used
TIMEOUT = 20.0  # seconds without a byte
ATTEMPTS = 4  # connections to one mirror
PIECE = 2**20  # bytes between two steps of the progress bar


@dataclass(frozen=True)
class PublishedFile:
    """A file that others publish: where it belongs below a data folder, its content's hash, its mirrors."""

    path: str  # "mnist/train-labels-idx1-ubyte.gz"
    sha256: str  # of the content, after unpacking
    mirrors: tuple[str, ...]  # addresses of folders, in which it has the same name

    @property
    def name(self) -> str:
        return self.path.rsplit("/", 1)[-1]

    @property
    def addresses(self) -> list[str]:
        """Of the file itself, one a mirror."""
        return [f"{mirror.rstrip('/')}/{self.name}" for mirror in self.mirrors]


_MNIST = ("https://ossci-datasets.s3.amazonaws.com/mnist", "https://storage.googleapis.com/cvdf-datasets/mnist")

MNIST = {
    part: PublishedFile(f"mnist/{name}", sha256, _MNIST)
    for part, name, sha256 in (
        (
            "train_images",
            "train-images-idx3-ubyte.gz",
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        ),
        (
            "train_labels",
            "train-labels-idx1-ubyte.gz",
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        ),
        (
            "test_images",
            "t10k-images-idx3-ubyte.gz",
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        ),
        (
            "test_labels",
            "t10k-labels-idx1-ubyte.gz",
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        ),
    )
}
TINY_SHAKESPEARE = PublishedFile(
    "tinyshakespeare/input.txt",
    "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
    ("https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare",),
)


class WrongContentError(ValueError):
    """Bytes that are not the file they should be."""


def read(file: PublishedFile, *, progress: bool = True) -> bytes:
    """The file's content, unpacked if it is gzipped: from ``$INFLIB_DATA``, the cache, or a mirror (then cached).

    Raises ValueError where ``$INFLIB_DATA`` holds another file under that name, or one that cannot be read, and
    FileNotFoundError where the file is not on this machine and cannot be downloaded; it says why, and where to put the
    file by hand. A cache that cannot be read or written is a warning: the content is returned from memory.
    """
    own, cached = _own(file), cache_folder() / file.path
    try:
        packed = None if own is None else _held(own)
        if packed is not None:
            return _unpack(packed, file)
    except PermissionError as problem:
        raise ValueError(
            f"{own} cannot be read ({problem}); expected a file that can be read, in folders that can be searched. "
            f"chmod them, or set INFLIB_DATA to another folder, or to none to have {file.addresses[0]} downloaded."
        ) from problem
    except (OSError, WrongContentError) as problem:
        raise ValueError(
            f"{own} is not the file expected: {_say(problem)}. It was left as it is. Replace it with "
            f"{file.addresses[0]}, or move it away to have that downloaded."
        ) from problem
    reasons = []
    try:
        packed = _held(cached)
        if packed is not None:
            return _unpack(packed, file)
    except (OSError, WrongContentError) as problem:
        reasons.append(f"{cached}: {_say(problem)}")
    packed, content = _download(file, cached, reasons, progress)
    _keep(cached, packed)
    return content


def at_hand(file: PublishedFile) -> bool:
    """Whether ``read`` would find a file of that name on this machine, right or wrong."""
    own = _own(file)
    return (own is not None and own.is_file()) or (cache_folder() / file.path).is_file()


def cache_folder() -> Path:
    """Where downloads are kept: ``$INFLIB_CACHE``, the repository's ``data/cache``, without one ``~/.cache/inflib``."""
    named = os.environ.get("INFLIB_CACHE")
    if named or FOLDER.is_dir():
        return Path(named).expanduser() if named else FOLDER / "cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "inflib"


def _held(path: Path) -> bytes | None:
    """What the file holds; None where there is none."""
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None


def _own(file: PublishedFile) -> Path | None:
    """The file's place below ``$INFLIB_DATA``, where that is set."""
    named = os.environ.get("INFLIB_DATA")
    return Path(named).expanduser() / file.path if named else None


def _unpack(packed: bytes, file: PublishedFile) -> bytes:
    """The content, if it has the right hash; else WrongContentError with what came and what was expected."""
    content = packed
    if packed[:2] == b"\x1f\x8b":  # gzip's first two bytes
        try:
            content = gzip.decompress(packed)
        except (EOFError, OSError, zlib.error) as problem:
            raise WrongContentError(
                f"{len(packed):,} bytes came that cannot be unpacked ({problem}); expected a whole archive"
            ) from problem
    sha256 = hashlib.sha256(content).hexdigest()
    if sha256 != file.sha256:
        raise WrongContentError(
            f"{len(content):,} bytes came with SHA-256 {sha256}; expected {file.sha256} (of the content, unpacked)"
        )
    return content


# --- downloading -------------------------------------------------------------------------------------------------


def _download(file: PublishedFile, cached: Path, reasons: list[str], progress: bool) -> tuple[bytes, bytes]:
    """(as it came, unpacked) from the first mirror that gives the right bytes."""
    if os.environ.get("INFLIB_OFFLINE", "0") not in ("", "0"):
        raise FileNotFoundError(_missing(file, cached, [*reasons, "INFLIB_OFFLINE forbids downloading it"]))
    for address in file.addresses:
        try:
            return _from_mirror(address, file, cached.with_name(f"{file.name}.part"), progress)
        except (OSError, HTTPException, WrongContentError) as problem:
            reasons.append(f"{address}: {_say(problem)}")
    raise FileNotFoundError(_missing(file, cached, reasons))


def _from_mirror(address: str, file: PublishedFile, part: Path, progress: bool) -> tuple[bytes, bytes]:
    """One mirror's file, over several connections if they break; begins with ``part``, if an earlier run left one.

    What an earlier connection brought is kept until the whole has the right hash: where a mirror sends all of the file
    anew and breaks off, or sends another file, the next mirror goes on with the longest piece.
    """
    held, longest = bytearray(_left(part)), b""
    try:
        for attempt in range(1, ATTEMPTS + 1):
            begun = len(held)
            longest = max(longest, bytes(held), key=len)
            try:
                _receive(address, held, f"downloading {file.name}", progress)
                packed = bytes(held)
                held.clear()  # no piece, whether this is right or wrong
                content = _unpack(packed, file)
                longest = b""
                return packed, content
            except WrongContentError:
                if not begun:
                    raise  # it came in one piece: the mirror's file is wrong, not the piece from before
            except HTTPError as problem:
                if problem.code != 416 or not begun:  # 416: nothing comes after what is held, so that was wrong
                    raise
                held.clear()
            except (OSError, HTTPException):
                if attempt == ATTEMPTS or len(held) <= begun:  # no connection at all: try the next mirror
                    raise
        raise ConnectionError(f"{ATTEMPTS} connections did not bring the whole file")
    finally:
        _keep_part(part, max(bytes(held), longest, key=len))


def _receive(address: str, held: bytearray, what: str, progress: bool) -> None:
    """Add to ``held`` what it lacks; where the server gives no part of a file, all of it from the start."""
    headers = {"User-Agent": "inflib", "Accept-Encoding": "identity"}
    if held:
        headers["Range"] = f"bytes={len(held)}-"
    with urlopen(Request(address, headers=headers), timeout=TIMEOUT) as response:
        if not (held and response.headers.get("Content-Range", "").startswith(f"bytes {len(held)}-")):
            held.clear()
            if response.status == 206:
                raise ConnectionError("the server answered with another part of the file than asked for")
        length = response.headers.get("Content-Length")
        total = len(held) + int(length) if length else None
        pieces = iter(lambda: response.read(PIECE), b"")
        for piece in bar(pieces, -(-int(length) // PIECE) if length else None, what, "MiB") if progress else pieces:
            held += piece
    if total is not None and len(held) != total:
        raise ConnectionError(f"the connection closed after {len(held):,} of {total:,} bytes")


# --- keeping -----------------------------------------------------------------------------------------------------


def _keep(path: Path, packed: bytes) -> None:
    """Write to a temporary name beside ``path``, then rename; a warning where that cannot be done."""
    temporary = path.with_name(f"{path.name}.{uuid4().hex}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(packed)
        os.replace(temporary, path)
    except OSError as problem:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        warnings.warn(
            f"{path.name} was downloaded and is used from memory, but could not be kept in {path.parent} "
            f"({_say(problem)}); it will be downloaded again. Set INFLIB_CACHE to a folder that can be written.",
            stacklevel=3,
        )


def _left(part: Path) -> bytes:
    """What an earlier run kept of a broken download; nothing where that cannot be read."""
    try:
        return part.read_bytes()
    except OSError:
        return b""


def _keep_part(part: Path, held: bytes) -> None:
    """Leave what came of a broken download for the next run, if there is where; else no trace."""
    with suppress(OSError):
        if held:
            part.parent.mkdir(parents=True, exist_ok=True)
            part.write_bytes(held)
        else:
            part.unlink(missing_ok=True)


def _missing(file: PublishedFile, cached: Path, reasons: list[str]) -> str:
    own = _own(file)
    where = f"at {own}" if own else f"at {cached}, or below a folder of your own that INFLIB_DATA names ({file.path})"
    return (
        f"{file.path} is not on this machine and could not be downloaded ({'; '.join(reasons)}). "
        f"Fetch {' or '.join(file.addresses)} by hand and put it {where}."
    )


def _say(problem: Exception) -> str:
    """An error in words: some of the network's have none."""
    return str(problem) or type(problem).__name__
