"""Is it the same? Hashes of tensors, and of a model as the function that it is.

What a curvature, an index or a pass over the data was made from is known by a hash, and compared wherever it is used
again: other weights, other settings or another example would give other numbers in a way nobody could see.

A large tensor is not hashed anew for every question. A checksum as fast as memory, the tensor's 64-bit words summed in
columns of two foldings with prime widths, tells whether it still holds what was hashed before; it reads the numbers
themselves, so that a change through ``.data``, which no version counter sees, is noticed too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from hashlib import blake2b
from numbers import Integral, Number, Real
from types import CodeType
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from .noted import written

FOLDS = (1021, 2039)  # columns: whole rows or channels that change places line up with neither
SMALL = 2**16  # bytes: below it a whole hash is as fast
# not what a model computes, but how it is trained, where it came from, and what its library notes down
BESIDE_THE_FUNCTION = {
    "gradient_checkpointing",
    "hf_device_map",
    "_compiled_call_impl",
    "_gradient_checkpointing_func",
    "_is_hf_initialized",
    "name_or_path",
    "warnings_issued",
}
_ITS_OWN = {*nn.Module().__dict__, *BESIDE_THE_FUNCTION}  # training, _parameters, _modules, hooks, ...
_HASHED: WeakKeyDictionary[nn.Module, dict[str, tuple[bytes, bytes]]] = WeakKeyDictionary()


# --- tensors ---------------------------------------------------------------------------------------------------


def hash_tensor(digest: Any, tensor: Tensor) -> None:
    """Add a tensor's dtype, shape and bytes to a hashlib digest; its strides and device are no part of it."""
    if parts := _plain_parts(tensor):
        for part in parts:
            hash_tensor(digest, part)
        return
    digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
    if tensor.numel() and not tensor.is_meta:
        digest.update(_bytes(tensor).cpu().numpy().data)


def checksum(tensor: Tensor) -> bytes:
    """What notices any accidental change of a tensor at the speed of memory: the column sums of two foldings, hashed.

    For comparisons within one process; where the tensor is small, all of its bytes.
    """
    if parts := _plain_parts(tensor):
        return b"".join(map(checksum, parts))
    digest = blake2b(f"{tensor.dtype}{tuple(tensor.shape)}".encode(), digest_size=16)
    if tensor.numel() and not tensor.is_meta:  # which holds nothing, and is refused where it is used
        for part in _folded(_bytes(tensor)):
            digest.update(part)
    return digest.digest()


def _plain_parts(tensor: Tensor) -> list[Tensor]:
    """The tensors that a sparse or nested one is made of; none for any other."""
    if tensor.is_nested:
        return list(tensor.unbind())
    if tensor.layout == torch.strided:
        return []
    size = torch.tensor(tensor.shape, device="cpu")
    if tensor.layout == torch.sparse_coo:
        tensor = tensor.coalesce()
        return [size, tensor.indices(), tensor.values()]
    columns = tensor.layout in (torch.sparse_csc, torch.sparse_bsc)
    places = [tensor.ccol_indices(), tensor.row_indices()] if columns else [tensor.crow_indices(), tensor.col_indices()]
    return [size, *places, tensor.values()]


def _folded(flat: Tensor) -> Iterator[memoryview]:
    """Bytes that stand for flat (n,): column sums of its 64-bit words in each folding, and what they leave over."""
    used = len(flat) // 8 * 8 if len(flat) > SMALL else 0
    if used:
        words = flat[:used].view(torch.int64)
        for width in FOLDS:
            rows = len(words) // width
            yield _column_sums(words[: rows * width].view(rows, width)).data
            yield words[rows * width :].cpu().numpy().data
    yield flat[used:].cpu().numpy().data


def _column_sums(words: Tensor) -> np.ndarray:
    if words.device.type == "cpu":
        return np.add.reduce(words.numpy(), axis=0)  # several times as fast as torch's
    return words.sum(0).cpu().numpy()


def _bytes(tensor: Tensor) -> Tensor:
    """A tensor's numbers as uint8 (n,), row by row; whatever strides it has."""
    flat = tensor.detach().resolve_conj().resolve_neg().reshape(-1).contiguous()
    if flat.numel() == 1:  # called contiguous with any stride, where ``view`` asks for 1
        flat = flat.as_strided((1,), (1,))
    flat = flat.view(torch.uint8)
    return flat.clone() if flat.storage_offset() % 8 else flat  # words begin at multiples of their size


# --- settings of what is no model ------------------------------------------------------------------------------


def say_settings(value: Any) -> str:
    """An object, as an objective, by its class and all of its attributes, in the same words in every process.

    Tensors are said by their hashes, functions as a model's are. What a class's methods do is no part of it.
    """
    if value is None or isinstance(value, (Number, np.number, np.bool_, str, torch.dtype, torch.device)):
        return repr(value)
    if isinstance(value, nn.Module):
        return hash_weights(value)
    if isinstance(value, np.ndarray):
        return say_settings(torch.as_tensor(value) if value.dtype.kind in "biufc" else value.tolist())
    if isinstance(value, Tensor):
        digest = blake2b(digest_size=16)
        hash_tensor(digest, value)
        return digest.hexdigest()
    if isinstance(value, Mapping):
        return f"{{{', '.join(sorted(f'{key!r}: {say_settings(part)}' for key, part in value.items()))}}}"
    if isinstance(value, (tuple, list)):
        return f"({', '.join(map(say_settings, value))})"
    if hasattr(value, "__qualname__") or hasattr(value, "func"):
        return _say_function(value)
    held = getattr(value, "__dict__", {})
    return f"{type(value).__name__}({', '.join(f'{key}={say_settings(held[key])}' for key in sorted(held))})"


# --- models ----------------------------------------------------------------------------------------------------


def hash_weights(model: nn.Module) -> str:
    """A hash of the model as a function, 16 digits of numbers and 16 of structure. Equal hashes: equal functions.

    The numbers are every parameter and buffer (also those that are not saved) with its name, and which are one and the
    same tensor. The structure is every module's name and class, and its settings: numbers, words, flags and functions,
    alone or in tuples, lists and dicts (a LeakyReLU's slope, an eps, a stride, ``self.act = F.gelu``).

    No part of it: train or eval mode, devices, strides, gradients, hooks, addresses and all else that differs from one
    process to the next. Nor what a forward pass may leave behind in a class that is not torch.nn's: whole numbers (call
    counters), flags whose name begins with _, tensors that are no buffers (caches), and what one was seen to write
    (noted.py). What matters belongs in a buffer.
    """
    numbers, structure = blake2b(digest_size=8), blake2b(digest_size=8)
    first: dict[int, str] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        structure.update(f"{name}:{type(module).__name__}\n".encode())
        if id(module) in first:  # the same module under another name
            structure.update(f"is {first[id(module)]}\n".encode())
            continue
        first[id(module)] = name
        for setting in _settings(module):
            structure.update(f"{setting}\n".encode())
        for own, tensor in _tensors(module):
            full = f"{name}.{own}" if name else own
            known = first.setdefault(id(tensor), full)
            numbers.update(f"{full}={known}".encode())
            if known == full:
                numbers.update(_hashed(module, own, tensor))
    return numbers.hexdigest() + structure.hexdigest()


def difference(one: str, other: str) -> str:
    """What differs between two hashes of ``hash_weights``, in words."""
    half = len(one) // 2
    parts = {"weights or buffers": slice(half), "modules or their settings": slice(half, None)}
    return " and ".join(what for what, span in parts.items() if one[span] != other[span])


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for held in (module._parameters, module._buffers):
        for name, tensor in held.items():
            if tensor is not None:
                yield name, tensor


def _hashed(module: nn.Module, name: str, tensor: Tensor) -> bytes:
    """The hash of one of a module's tensors, remembered for as long as its checksum stays what it was."""
    large = tensor.numel() * tensor.element_size() > SMALL
    seen = checksum(tensor) if large else b""
    known = _HASHED.get(module, {}).get(name)
    if large and known is not None and known[0] == seen:
        return known[1]
    digest = blake2b(digest_size=16)
    hash_tensor(digest, tensor)
    if large:
        _HASHED.setdefault(module, {})[name] = (seen, digest.digest())
    return digest.digest()


def everything_noted(model: nn.Module) -> bytes:
    """A hash of what ``hash_weights`` leaves out because a forward pass may have left it behind: attributes that are
    whole numbers, flags and tensors. For use within a session.
    """
    digest = blake2b(digest_size=16)
    for module in model.modules():
        for setting in _settings(module, whole=True):
            digest.update(f"{setting}\n".encode())
        for name in sorted(module.__dict__.keys() - _ITS_OWN):
            if isinstance(module.__dict__[name], Tensor):
                digest.update(checksum(module.__dict__[name]))
    return digest.digest()


def _settings(module: nn.Module, whole: bool = False) -> Iterator[str]:
    """A module's settings as text, in the order of their names; ``whole``: with numbers and flags that may be notes."""
    # whole numbers are settings in torch's own modules, and nobody's counters
    counts = whole or type(module).__module__.startswith("torch.nn.")
    notes = {} if whole else written(module)
    for name in sorted((module.__dict__.keys() | notes.keys()) - _ITS_OWN):
        value = notes[name] if name in notes else module.__dict__[name]
        noted = not whole and name.startswith("_") and isinstance(value, bool)  # by a library, the first time it runs
        said = "" if noted else _say(value, counts)
        if said:
            yield f"{name}={said}"


def say_setting(value: Any) -> str:
    """A setting of a module that is not torch.nn's, as its hash goes by it."""
    return _say(value, False)


def _say(value: Any, counts: bool) -> str:
    """A setting in the same words in every process; "" for what is none."""
    if isinstance(value, (bool, np.bool_, str, torch.dtype)):
        return repr(value)
    if isinstance(value, Integral):
        return repr(int(value)) if counts else ""
    if isinstance(value, Real):
        return repr(float(value))
    if isinstance(value, Mapping):
        parts = {str(key): _say(part, counts) for key, part in value.items()}
        return f"{{{', '.join(f'{key}: {parts[key]}' for key in sorted(parts) if parts[key])}}}"
    if isinstance(value, (tuple, list)):
        return f"({', '.join(_say(part, counts) for part in value)})"
    return _say_function(value) if callable(value) and not isinstance(value, nn.Module) else ""


def _say_function(value: Any) -> str:
    """A function by its name; a lambda by what it names; a partial by its parts."""
    name = getattr(value, "__qualname__", type(value).__qualname__)
    parts = [name.rsplit("<locals>.")[-1]]
    if hasattr(value, "func") and hasattr(value, "keywords"):  # functools.partial
        parts += [_say_function(value.func), _say(value.args, True), _say(value.keywords, True)]
    code = getattr(value, "__code__", None)
    if isinstance(code, CodeType) and "<" in name:  # made in a function, or a lambda: its name says little
        constants = [c for c in code.co_consts if isinstance(c, (float, str))]
        held = [cell.cell_contents for cell in value.__closure__ or ()]
        parts += [repr(code.co_names), repr(constants), _say(held, False)]
    return " ".join(parts)
