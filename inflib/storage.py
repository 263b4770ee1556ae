"""Curvatures and indexes to and from safetensors files, together with the facts that make them valid.

A file holds the eigenvalues and eigenvectors of a Kronecker curvature, and as metadata its layers' shapes, its method,
label kind, draws, seed and number of examples, and a hash of the weights it was fitted at; an index's file holds the
rotated gradients of its training examples as well. What was saved is given back for that model only, and only as it was
written: with other layers, shapes or weights, or one bit that changed, the numbers would be wrong in a way nobody could
see. Files of format 1 had no checksum, and a hash of weights that did not tell a Tanh from a ReLU: they are refused.
"""

from __future__ import annotations

import errno
import glob
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from hashlib import blake2b
from pathlib import Path
from typing import Any
from uuid import uuid4

from torch import Tensor, nn

from .curvature import Relative
from .fingerprints import hash_tensor
from .hooks import Pair
from .index import Side, TrainIndex
from .kronecker import Kronecker
from .scoring import layers_of
from .wholeness import check_curvature, check_index, read_facts

FORMAT = "inflib curvature 2"
INDEX_FORMAT = "inflib index 2"
READERS = {FORMAT: "inflib.load", INDEX_FORMAT: "inflib.load_index"}


def save(value: Kronecker | TrainIndex, path: str | Path) -> None:
    """Write a Kronecker curvature or an index to ``path``; an existing file is replaced only by a complete new one."""
    if isinstance(value, TrainIndex):
        tensors, facts = _curvature_parts(value.curvature)
        for name, held in value.held.items():
            parts = {"a": held.a, "g": held.g} if isinstance(held, Pair) else {"G": held}
            tensors |= {f"index/{part}/{name}": x.contiguous().cpu() for part, x in parts.items()}
        write_safetensors(tensors, seal(tensors, facts | {"format": INDEX_FORMAT}), Path(path))
    elif isinstance(value, Kronecker):
        tensors, facts = _curvature_parts(value)
        write_safetensors(tensors, seal(tensors, facts | {"format": FORMAT}), Path(path))
    else:
        raise TypeError(
            f"save got a {type(value).__name__}; expected a Kronecker curvature (ekfac, kfac, diagonal, identity) or a "
            "TrainIndex. An exact curvature is made anew: gauss_newton(...)."
        )


def load(path: str | Path, model: nn.Module) -> Kronecker:
    """The curvature saved at ``path``, on the model's device; refused unless it was fitted at this model's weights.

    Raises FileNotFoundError, or ValueError saying what in the file differs from the model.
    """
    tensors, metadata = _read(Path(path), FORMAT)
    return _curvature(Path(path), tensors, metadata, model)


def load_index(path: str | Path, model: nn.Module) -> TrainIndex:
    """The index saved at ``path``, on the model's device; refused unless it was built at this model's weights.

    Which training examples it was built from is for the caller to know: ``len(index)`` of them, in their order.
    Raises as ``load`` does.
    """
    tensors, metadata = _read(Path(path), INDEX_FORMAT)
    curvature = _curvature(Path(path), tensors, metadata, model)
    check_index(Path(path), tensors, curvature.shapes)
    device, held = next(model.parameters()).device, Side()
    for name in curvature.layers:
        G = tensors.get(f"index/G/{name}")
        a_and_g = (tensors[f"index/{part}/{name}"].to(device) for part in ("a", "g") if G is None)
        held[name] = Pair(*a_and_g) if G is None else G.to(device)
    return TrainIndex(curvature, held)


def _curvature_parts(curvature: Kronecker) -> tuple[dict[str, Tensor], dict[str, str]]:
    """A curvature's tensors by name, and its facts as text."""
    parts = {"eigenvalues": curvature.eigenvalues, "Q_S": curvature.Q_S, "Q_A": curvature.Q_A}
    tensors = {f"{part}/{name}": x.contiguous().cpu() for part, held in parts.items() for name, x in held.items()}
    damping = curvature.default_damping
    facts = {
        "facts": json.dumps(asdict(curvature.facts)),
        "layers": json.dumps({name: list(shape) for name, shape in curvature.shapes.items()}),
        "damping": json.dumps({"relative": damping.factor} if isinstance(damping, Relative) else damping),
    }
    return tensors, facts


def _curvature(path: Path, tensors: dict[str, Tensor], metadata: dict[str, Any], model: nn.Module) -> Kronecker:
    """The curvature in a file's tensors, refused where it is not whole or the model is another."""
    facts, shapes, default = read_facts(path, metadata)
    check_curvature(path, tensors, shapes)
    device = next(model.parameters()).device
    parts: dict[str, dict[str, Tensor]] = {"eigenvalues": {}, "Q_S": {}, "Q_A": {}}
    for part in parts:
        for name in shapes:
            if f"{part}/{name}" in tensors:
                parts[part][name] = tensors[f"{part}/{name}"].to(device)
    curvature = Kronecker(parts["eigenvalues"], parts["Q_S"], parts["Q_A"], facts, default)
    try:
        layers_of(model, curvature)
    except ValueError as error:
        raise ValueError(f"{path} was saved for another model: {error}") from None
    return curvature


def _read(path: Path, expected: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A file's tensors and metadata; ValueError where it is of another format, or not as it was written."""
    tensors, metadata = read_safetensors(path)
    came = metadata.get("format")
    if came != expected:
        fix = f"Read it with {READERS[came]}." if came in READERS else "Fit and save it again."
        raise ValueError(f"{path} is of format {came!r}; expected {expected!r}. {fix}")
    if metadata.get("checksum") != seal(tensors, metadata)["checksum"]:
        raise ValueError(
            f"{path} is damaged: its numbers or facts are not those that were written (the checksum differs). Copy it "
            "again from where it came, or fit and save it again."
        )
    return tensors, metadata


def seal(tensors: dict[str, Tensor], metadata: dict[str, Any]) -> dict[str, Any]:
    """The metadata with a checksum over every tensor and every other entry: one bit that changes is noticed."""
    digest = blake2b(digest_size=16)
    facts = {key: value for key, value in metadata.items() if key != "checksum"}
    digest.update(json.dumps(facts, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        hash_tensor(digest, tensors[name])
    return facts | {"checksum": digest.hexdigest()}


# --- files ---------------------------------------------------------------------------------------------------------


def write_safetensors(tensors: dict[str, Tensor], metadata: dict[str, str], path: Path) -> None:
    """Write into a temporary folder beside ``path``, then move the file there. The same contents give the same bytes.

    What a killed process left of an earlier try is removed. Raises OSError that names the path and the bytes needed,
    the old file being as it was, where the disk is full or the folder may not be written to.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    if not path.parent.is_dir():
        raise FileNotFoundError(f"cannot write {path}: expected its folder to exist. Create {path.parent} first.")
    try:
        _remove_strays(path)
        with _folder_beside(path) as folder:
            temporary = folder / "file"
            temporary.touch(exist_ok=False)
            mode = temporary.stat().st_mode  # what the umask asks for; safetensors makes files for their owner only
            # one entry, because safetensors writes several in an order that changes from call to call
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
def _folder_beside(path: Path) -> Iterator[Path]:
    """A folder of its own beside ``path``, locked for as long as its process lives, and gone afterwards.

    A folder, because safetensors writes to a name of its own choosing beside the one it is given.
    """
    folder = path.with_name(f"{path.name}.{uuid4().hex}.part")
    folder.mkdir()
    lock = _lock(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _remove_strays(path: Path) -> None:
    """Remove what processes that were killed left of writing to ``path``; those still writing hold a lock."""
    for stray in path.parent.glob(f"{glob.escape(path.name)}.*.part"):
        lock = _lock(stray)
        if lock is None:
            continue
        if stray.is_dir():
            shutil.rmtree(stray, ignore_errors=True)
        else:
            stray.unlink(missing_ok=True)
        os.close(lock)


def _lock(path: Path) -> int | None:
    """A lock on a file or folder that ends with its process; None where another holds it, or locks are unknown."""
    try:
        import fcntl
    except ImportError:  # not POSIX
        return None
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, metadata) of a safetensors file; ValueError where it is damaged."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise FileNotFoundError(f"{path} {what}; expected a file written by inflib.save. Check the path.")
    try:
        with safe_open(str(path), framework="pt") as file:
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
