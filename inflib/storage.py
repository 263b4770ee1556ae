"""Curvatures to and from safetensors files, together with the facts that make them valid.

A file holds the eigenvalues and eigenvectors of a Kronecker curvature, and as metadata its layers' shapes, its method,
label kind, draws, seed and number of examples, and a hash of the weights it was fitted at. ``load`` gives it back for
that model only: with other layers, other shapes or other weights the numbers would be wrong in a way nobody could see.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any
from uuid import uuid4

from torch import Tensor, nn

from .curvature import Facts, Kronecker, Relative, hash_weights
from .scoring import layers_of

FORMAT = "inflib curvature 1"


def save(curvature: Kronecker, path: str | Path) -> None:
    """Write a Kronecker curvature to ``path``; an existing file is replaced only when the new one is complete."""
    if not isinstance(curvature, Kronecker):
        raise TypeError(
            f"save got a {type(curvature).__name__}; expected a Kronecker curvature (ekfac, kfac, diagonal, identity)."
        )
    parts = {"eigenvalues": curvature.eigenvalues, "Q_S": curvature.Q_S, "Q_A": curvature.Q_A}
    tensors = {f"{part}/{name}": x.contiguous().cpu() for part, held in parts.items() for name, x in held.items()}
    damping = curvature.default_damping
    facts = {
        "format": FORMAT,
        "facts": json.dumps(asdict(curvature.facts)),
        "layers": json.dumps({name: list(shape) for name, shape in curvature.shapes.items()}),
        "damping": json.dumps({"relative": damping.factor} if isinstance(damping, Relative) else damping),
    }
    write_safetensors(tensors, facts, Path(path))


def load(path: str | Path, model: nn.Module) -> Kronecker:
    """The curvature saved at ``path``, on the model's device; refused unless it was fitted at this model's weights.

    Raises FileNotFoundError, or ValueError saying what in the file differs from the model.
    """
    tensors, metadata = read_safetensors(Path(path))
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{path} is of format {metadata.get('format')!r}; expected {FORMAT!r}. Fit and save it again.")
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
    if facts.weights != hash_weights(model):
        raise ValueError(
            f"{path} was fitted at weights with hash {facts.weights}, this model's are {hash_weights(model)}; "
            "expected the same. Load the checkpoint it was fitted at, or fit again: ekfac(model, objective, train)."
        )
    return curvature


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
