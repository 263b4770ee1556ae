"""Banks that others publish: masks.pt with losses.pt or margins.pt, as kronfluence's examples have them.

    masks.pt      (K, N)    1 where an example was kept
    losses.pt     (K, Q)    each query's loss, a mean over the seeds of each mask
    margins.pt    (K, Q)    each query's margin

The files are read without running anything they hold: only tensors, and NumPy arrays of plain numbers, are let in. The
seeds are averaged already, so that such a bank has scores and no ceiling.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .banks import Bank
from .masks import check_masks

MEASURED = {"losses.pt": ("log_likelihood", -1.0), "margins.pt": ("margin", 1.0)}
PLAIN = ("bool", "uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64")


def load_published(folder: str | Path) -> Bank:
    """The bank in a folder of published files; its mean over the seeds counts as one.

    Raises FileNotFoundError for a folder without masks or measurements, ValueError for shapes that do not belong
    together, masks that are not 0 and 1, numbers that are not finite, and files that hold anything but numbers.
    """
    folder = Path(folder)
    found = {name: folder / name for name in MEASURED if (folder / name).is_file()}
    if not (folder / "masks.pt").is_file() or not found:
        there = ", ".join(sorted(path.name for path in folder.glob("*"))) or "nothing"
        raise FileNotFoundError(f"{folder} holds {there}; expected masks.pt, and losses.pt or margins.pt (K, Q).")
    kept = _read(folder / "masks.pt")
    if not bool(((kept == 0) | (kept == 1)).all()):
        raise ValueError(
            f"{folder / 'masks.pt'} holds other numbers than 0 and 1; expected 1 where an example was kept."
        )
    masks = kept.bool()
    check_masks(masks, masks.shape[-1])
    values = {}
    for name, path in found.items():
        measured = _read(path).double()
        if measured.ndim != 2 or len(measured) != len(masks) or not bool(measured.isfinite().all()):
            raise ValueError(
                f"{path} has shape {tuple(measured.shape)}, {int((~measured.isfinite()).sum())} numbers not finite; "
                f"expected ({len(masks)}, Q) finite numbers, a row for each mask."
            )
        measurement, sign = MEASURED[name]
        values[measurement] = sign * measured[None]
    return Bank(
        masks, values, {"name": folder.name, "measurements": list(values), "shape": [len(masks), 1, masks.shape[1]]}
    )


def _read(path: Path) -> Tensor:
    """The one tensor or array in a .pt file; nothing in it is run."""
    try:
        with torch.serialization.safe_globals(_arrays()):
            held = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as problem:
        raise ValueError(
            f"{path} cannot be read as numbers alone ({str(problem).splitlines()[0]}); expected one tensor or NumPy "
            "array. What a file would run is not run: save it again as a tensor."
        ) from problem
    if isinstance(held, np.ndarray):
        held = torch.from_numpy(held)
    if not isinstance(held, Tensor):
        raise ValueError(f"{path} holds {type(held).__name__}; expected one tensor or NumPy array.")
    return held


def _arrays() -> list[Any]:
    """What makes up a pickled NumPy array: its class, its dtypes, and how it is put together."""
    rebuild = np.empty(0).__reduce__()[0]
    # older files name NumPy's core without its underscore
    return [
        np.ndarray,
        np.dtype,
        rebuild,
        (rebuild, "numpy.core.multiarray._reconstruct"),
        (rebuild, "numpy._core.multiarray._reconstruct"),
        *(type(np.dtype(name)) for name in PLAIN),
    ]
