"""Curvatures to and from safetensors files, together with the facts that make them valid.

A file holds the eigenvalues and eigenvectors of a Kronecker curvature, and as metadata its layers' shapes, its method,
label kind, draws, seed and number of examples, and a hash of the weights it was fitted at. What was saved is given back
for that model only, and only as it was written: with other layers, shapes or weights, or one bit that changed, the
numbers would be wrong in a way nobody could see. Files of format 1 had no checksum, and a hash of weights that did not
tell a Tanh from a ReLU: they are refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..blocks import BlockDiagonal, Factor, like, numbers
from ..curvature import Relative, layers_of
from ..files import read_safetensors, seal, write_safetensors
from ..kronecker import Kronecker
from .wholeness import check_curvature, read_facts

FORMAT = "inflib curvature 2"
INDEX_FORMAT = "inflib index 2"
READERS = {FORMAT: "inflib.load", INDEX_FORMAT: "inflib.load_index"}


def save_curvature(curvature: Kronecker, path: Path) -> None:
    """Write a curvature to ``path``."""
    tensors, facts = curvature_parts(curvature)
    write_safetensors(tensors, seal(tensors, facts | {"format": FORMAT}), path)


def load(path: str | Path, model: nn.Module) -> Kronecker:
    """The curvature saved at ``path``, on the model's device; refused unless it was fitted at this model's weights.

    Raises FileNotFoundError, or ValueError saying what in the file differs from the model.
    """
    tensors, metadata = read(Path(path), FORMAT)
    return read_curvature(Path(path), tensors, metadata, model)


def curvature_parts(curvature: Kronecker) -> tuple[dict[str, Tensor], dict[str, str]]:
    """A curvature's tensors by name, and its facts as text."""
    parts: dict[str, Mapping[str, Factor]] = {
        "eigenvalues": curvature.eigenvalues,
        "Q_S": curvature.Q_S,
        "Q_A": curvature.Q_A,
    }
    every = {f"{part}/{name}": x for part, held in parts.items() for name, x in held.items()}
    tensors = {key: numbers(x).contiguous().cpu() for key, x in every.items()}
    blocks = {key: x.sizes for key, x in every.items() if isinstance(x, BlockDiagonal)}
    damping = curvature.default_damping
    facts = {
        "facts": json.dumps(curvature.facts.written()),
        "layers": json.dumps({name: list(shape) for name, shape in curvature.shapes.items()}),
        "damping": json.dumps({"relative": damping.factor} if isinstance(damping, Relative) else damping),
    }
    based = curvature.Q_S | curvature.Q_A
    axes = [key for name in based for key in (f"Q_S/{name}", f"Q_A/{name}") if key not in tensors]  # embeddings'
    facts |= {key: json.dumps(held) for key, held in (("axes", axes), ("blocks", blocks)) if held}
    return tensors, facts


def read_curvature(path: Path, tensors: dict[str, Tensor], metadata: dict[str, Any], model: nn.Module) -> Kronecker:
    """The curvature in a file's tensors, refused where it is not whole or the model is another."""
    facts, shapes, default = read_facts(path, metadata)
    axes, blocks = (json.loads(metadata.get(key, none)) for key, none in (("axes", "[]"), ("blocks", "{}")))
    check_curvature(path, tensors, shapes, axes, blocks)
    device = next(model.parameters()).device
    values = {name: tensors[f"eigenvalues/{name}"].to(device) for name in shapes}
    Q_S, Q_A = (
        {
            name: _laid(like(tensors[key].to(device), tuple(blocks.get(key, ()))))
            for name in shapes
            if (key := f"{part}/{name}") in tensors
        }
        for part in ("Q_S", "Q_A")
    )
    curvature = Kronecker(values, Q_S, Q_A, facts, default)
    try:
        layers_of(model, curvature)
    except ValueError as error:
        raise ValueError(f"{path} was saved for another model: {error}") from None
    return curvature


def _laid(Q: Factor) -> Factor:
    """Eigenvectors that lie in memory column by column, as a fit's do: products are rounded by it."""
    return Q if isinstance(Q, BlockDiagonal) else Q.mT.contiguous().mT


def read(path: Path, expected: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
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
