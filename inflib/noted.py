"""What a forward pass writes down in its modules' own attributes: a list that grows, a last value, a flag.

It is no setting of the model, though it is held as settings are. So it is seen when it happens, and from then on a hash
goes by an empty value in its place, whatever is written there later, by inflib's passes or the user's own.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable
from operator import is_not
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

OWN = frozenset(nn.Module().__dict__)  # training, _parameters, hooks: torch's own attributes
CONTAINERS = frozenset((list, dict, defaultdict, OrderedDict, Counter))
_WRITTEN: WeakKeyDictionary[nn.Module, dict[str, Any]] = WeakKeyDictionary()


class Held(NamedTuple):
    """What a module's attributes held, and copies of the containers among them."""

    module: nn.Module
    attributes: dict[str, Any]
    copies: dict[str, Any]


def attributes(model: nn.Module) -> list[Held]:
    """What the modules' attributes hold now; those of torch's own modules, which write nothing down, are left out."""
    found = []
    for module in model.modules():
        if not type(module).__module__.startswith("torch.nn."):
            held = dict(module.__dict__)
            copies = {k: _copied(v) for k, v in held.items() if type(v) in CONTAINERS and k not in OWN}
            found.append(Held(module, held, copies))
    return found


def note_changes(before: list[Held], said: Callable[[Any], str]) -> None:
    """Remember what was written since ``attributes``; ``said``: a setting as a hash goes by it.

    Tensors of vmap's, which are none outside of it, are taken out again.
    """
    for module, held, copies in before:
        now = module.__dict__
        for name, copy in copies.items():
            if now.get(name) is held[name] and not _same(held[name], copy) and said(held[name]) != said(copy):
                _note(module, name, held)
        if len(now) == len(held) and not any(map(is_not, now.values(), held.values())):
            continue
        for name in [k for k in now if k not in OWN and now[k] is not held.get(k, ...)]:
            if isinstance(now[name], Tensor):
                if torch._C._functorch.is_functorch_wrapped_tensor(now[name]):
                    now[name] = held.get(name)
            elif not isinstance(now[name], nn.Module) and said(now[name]) != said(held.get(name)):
                _note(module, name, held)


def _note(module: nn.Module, name: str, held: dict[str, Any]) -> None:
    before = held.get(name)
    empty = type(before)() if isinstance(before, (bool, float, str, list, tuple, dict)) else None
    _WRITTEN.setdefault(module, {}).setdefault(name, empty)


def written(module: nn.Module) -> dict[str, Any]:
    """The attributes that forward passes were seen to write, each with an empty value of its type."""
    return _WRITTEN.get(module, {})


def _copied(value: Any) -> Any:
    if isinstance(value, list):
        return [_copied(part) for part in value]
    return {key: _copied(part) for key, part in value.items()} if isinstance(value, dict) else value


def _same(one: Any, other: Any) -> bool:
    """Whether a container holds what it did: by identity, numbers and words by value."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(_same, one, other))
    return one is other or (isinstance(one, (int, float, str)) and type(one) is type(other) and one == other)
