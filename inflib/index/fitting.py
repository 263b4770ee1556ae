"""What a store is asked to be, its axes fitted to that, and the file they are kept in."""

from __future__ import annotations

import json
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..curvature import Damping, resolve_damping
from ..fingerprints import hash_tensor, say_settings
from ..kronecker import Kronecker
from ..objectives import Objective
from ..order import Same
from ..storage import FORMAT, curvature_parts, read, seal, write_safetensors
from .axes import Axes, by_components, by_eigenvalue, largest
from .bits import BITS
from .records import Kept, record, whitening
from .sides import captured, rotated_some
from .survey import Survey

AXES_FORMAT = "inflib axes 1"


def request(
    objective: Objective,
    curvature: Kronecker,
    known: Survey,
    *,
    axes: float | int,
    bits: int,
    components: int | None,
    damping: Damping,
    sample: int,
    seed: int,
) -> dict[str, Any]:
    """The facts of a store: what decides every byte of it, beside the examples."""
    _check(axes, bits, components, sample)
    curvature.inverse_eigenvalues(damping)  # says where Λ + λ₀ is 0
    facts = {
        "weights": curvature.facts.weights,
        "objective": say_settings(objective),
        "curvature": {**curvature.facts.written(), "hash": curvature_hash(curvature)},
        "layers": {
            name: [*shape, "vectors" if known.once[name] else "codes"] for name, shape in curvature.shapes.items()
        },
        "axes": {"axes": axes, "components": components, **({"sample": sample, "seed": seed} if components else {})},
        "bits": bits,
        "damping": resolve_damping(curvature, damping),
        "dtype": str(known.dtype),
    }
    return json.loads(json.dumps(facts))  # as they are read again


def _check(axes: float | int, bits: int, components: int | None, sample: int) -> None:
    share = isinstance(axes, float) and 0 < axes <= 1
    if not (share or (isinstance(axes, int) and not isinstance(axes, bool) and axes >= 1)):
        raise ValueError(
            f"axes={axes!r}; expected a share of each layer's axes, above 0.0 and to 1.0, or a number (int)."
        )
    if bits not in BITS:
        raise ValueError(f"bits={bits!r}; expected one of {BITS}.")
    if components is not None and not 1 <= components <= sample:
        raise ValueError(f"components={components} with sample={sample}; expected 1 ≤ components ≤ sample.")


def curvature_hash(curvature: Kronecker) -> str:
    return _hash_of(curvature_parts(curvature)[0])


def check_curvature_file(path: Path, curvature: Kronecker) -> None:
    """Raise ValueError where the file holds another curvature, perhaps of a build that was stopped early."""
    if _hash_of(read(path, FORMAT)[0]) != curvature_hash(curvature):
        raise ValueError(
            f"{path.parent} holds a store of other curvature: {path.name} is not the one that this call has; expected "
            "the same. Use another folder, or remove this one."
        )


def _hash_of(tensors: dict[str, Tensor]) -> str:
    digest = blake2b(digest_size=16)
    for name in sorted(tensors):
        digest.update(name.encode())
        hash_tensor(digest, tensors[name])
    return digest.hexdigest()


def record_bytes(curvature: Kronecker, known: Survey, *, axes: float | int, bits: int, components: int | None) -> int:
    """What an example takes in a store, without a pass over the data."""
    _check(axes, bits, components, components or 1)
    kept: dict[str, Axes | None] = {}
    for name, values in curvature.eigenvalues.items():
        at = largest(values, axes)
        spread = values.new_ones(len(at) if components is None else min(components, len(at)))
        kept[name] = None if known.once[name] else Axes(at, spread, None, values.numel())
    return record(kept, curvature.shapes, bits, known.dtype).itemsize


def plain_axes(curvature: Kronecker, facts: dict[str, Any]) -> Kept:
    """The axes with the largest Λ; None for layers whose vectors are kept."""
    return {
        name: None
        if facts["layers"][name][2] == "vectors"
        else by_eigenvalue(values, facts["damping"][name], facts["axes"]["axes"])
        for name, values in curvature.eigenvalues.items()
    }


def fit_axes(
    path: Path,
    model: nn.Module,
    objective: Objective,
    train: Same,
    curvature: Kronecker,
    known: Survey,
    facts: dict[str, Any],
) -> None:
    """Write what is kept of each layer: a pass over a sample of the examples where components are asked for."""
    kept = plain_axes(curvature, facts)
    components = facts["axes"]["components"]
    if components is not None:
        found = _sample(model, objective, train, curvature, kept, known, facts)
        kept = {k: axes and by_components(axes, found[k], components) for k, axes in kept.items()}
    tensors: dict[str, Tensor] = {}
    for name, axes in kept.items():
        if axes is not None:
            tensors |= {f"at/{name}": axes.at.cpu(), f"spread/{name}": axes.spread.cpu()}
            tensors |= {} if axes.P is None else {f"P/{name}": axes.P.cpu()}
    write_safetensors(tensors, seal(tensors, {"format": AXES_FORMAT, "facts": json.dumps(facts, sort_keys=True)}), path)


def _sample(
    model: nn.Module,
    objective: Objective,
    train: Same,
    curvature: Kronecker,
    kept: Kept,
    known: Survey,
    facts: dict[str, Any],
) -> dict[str, Tensor]:
    """z (n, K) of the examples of batches drawn by ``seed``, until there are ``sample`` of them."""
    order = np.random.Generator(np.random.Philox(facts["axes"]["seed"])).permutation(len(known.sizes))
    enough = int(np.searchsorted(np.cumsum(np.array(known.sizes)[order]), facts["axes"]["sample"])) + 1
    skip = set(order[enough:].tolist())
    parts: dict[str, list[Tensor]] = {name: [] for name, axes in kept.items() if axes is not None}
    for _, found in captured(model, objective, train, "train", curvature, None, False, skip):
        for name in parts:
            axes = kept[name]
            assert axes is not None
            white = whitening(curvature.eigenvalues[name], facts["damping"][name])
            for G in rotated_some(found[name], curvature, name, once=False):
                assert isinstance(G, Tensor)
                parts[name].append(axes.coordinates(G.flatten(1) * white))
    return {name: torch.cat(some) for name, some in parts.items()}


def read_axes(path: Path, curvature: Kronecker, facts: dict[str, Any]) -> tuple[Kept, str]:
    """What is kept of each layer, on the curvature's device, and the file's checksum; refused for other facts."""
    tensors, metadata = read(path, AXES_FORMAT)
    there = json.loads(metadata["facts"])
    for key, value in facts.items():
        if there.get(key) != value:
            raise ValueError(
                f"{path.parent} holds a store of other {key}: {there.get(key)!r:.200}, this call's is {value!r:.200}; "
                "expected the same. Use another folder, or remove this one."
            )
    kept: dict[str, Axes | None] = {}
    for name in curvature.layers:
        o, i, kind = facts["layers"][name]
        device = curvature.eigenvalues[name].device
        at, spread, P = (tensors.get(f"{part}/{name}") for part in ("at", "spread", "P"))
        kept[name] = None if at is None or spread is None else Axes(at, spread, P, o * i).to(device)
        if (kind == "vectors") != (kept[name] is None):
            raise ValueError(
                f"{path} has no axes for layer {name!r}; expected some. Remove the folder and build again."
            )
    return kept, metadata["checksum"]
