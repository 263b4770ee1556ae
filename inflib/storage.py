"""Curvatures and indexes to and from safetensors files, together with the facts that make them valid.

A file holds the eigenvalues and eigenvectors of a Kronecker curvature, and as metadata its layers' shapes, its method,
label kind, draws, seed and number of examples, and a hash of the weights it was fitted at; an index's file holds the
rotated gradients of its training examples as well. What was saved is given back for that model only: with other layers,
other shapes or other weights the numbers would be wrong in a way nobody could see.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any
from uuid import uuid4

from torch import Tensor, nn

from .curvature import Facts, Relative
from .hooks import Pair
from .index import Side, TrainIndex
from .kronecker import Kronecker
from .scoring import layers_of

FORMAT = "inflib curvature 1"
INDEX_FORMAT = "inflib index 1"
READERS = {FORMAT: "inflib.load", INDEX_FORMAT: "inflib.load_index"}


def save(value: Kronecker | TrainIndex, path: str | Path) -> None:
    """Write a Kronecker curvature or an index to ``path``; an existing file is replaced only by a complete new one."""
    if isinstance(value, TrainIndex):
        tensors, facts = _curvature_parts(value.curvature)
        for name, held in value.held.items():
            parts = {"a": held.a, "g": held.g} if isinstance(held, Pair) else {"G": held}
            tensors |= {f"index/{part}/{name}": x.contiguous().cpu() for part, x in parts.items()}
        write_safetensors(tensors, facts | {"format": INDEX_FORMAT}, Path(path))
    elif isinstance(value, Kronecker):
        tensors, facts = _curvature_parts(value)
        write_safetensors(tensors, facts | {"format": FORMAT}, Path(path))
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
    device, held = next(model.parameters()).device, Side()
    for name in curvature.layers:
        a, g, G = (tensors.get(f"index/{part}/{name}") for part in ("a", "g", "G"))
        held[name] = Pair(a.to(device), g.to(device)) if a is not None and g is not None else G.to(device)  # type: ignore[union-attr]
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
    """The curvature in a file's tensors, refused where the model is another."""
    facts = Facts(**json.loads(metadata["facts"]))
    shapes = {name: tuple(shape) for name, shape in json.loads(metadata["layers"]).items()}
    parts: dict[str, dict[str, Tensor]] = {"eigenvalues": {}, "Q_S": {}, "Q_A": {}}
    device = next(model.parameters()).device
    for part in parts:
        for name in shapes:
            if f"{part}/{name}" in tensors:
                parts[part][name] = tensors[f"{part}/{name}"].to(device)
    damping = json.loads(metadata["damping"])
    default = Relative(damping["relative"]) if isinstance(damping, dict) else damping
    curvature = Kronecker(parts["eigenvalues"], parts["Q_S"], parts["Q_A"], facts, default)
    try:
        layers_of(model, curvature)
    except ValueError as error:
        raise ValueError(f"{path} was saved for another model: {error}") from None
    return curvature


def _read(path: Path, expected: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A file's tensors and metadata; ValueError where it is of another format."""
    tensors, metadata = read_safetensors(path)
    came = metadata.get("format")
    if came != expected:
        fix = f"Read it with {READERS[came]}." if came in READERS else "Fit and save it again."
        raise ValueError(f"{path} is of format {came!r}; expected {expected!r}. {fix}")
    return tensors, metadata


def write_safetensors(tensors: dict[str, Tensor], metadata: dict[str, str], path: Path) -> None:
    """Write to a temporary name beside ``path``, then rename. The same contents give the same bytes."""
    from safetensors.torch import save_file

    if not path.parent.is_dir():
        raise FileNotFoundError(f"cannot write {path}: expected its folder to exist. Create {path.parent} first.")
    temporary = path.with_name(f"{path.name}.{uuid4().hex}.part")
    try:
        temporary.touch(exist_ok=False)
        mode = temporary.stat().st_mode  # what the umask asks for; safetensors makes files for their owner only
        # one entry, because safetensors writes several in an order that changes from call to call
        save_file(tensors, temporary, {"inflib": json.dumps(metadata, sort_keys=True)})
        temporary.chmod(mode)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


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
        return tensors, json.loads(metadata["inflib"]) if "inflib" in metadata else metadata
    except SafetensorError as error:
        raise ValueError(
            f"{path} is damaged or no safetensors file ({error}); expected one written by inflib.save."
        ) from None
