"""From a user's ``layers=`` to {name: Layer}, in ``named_modules`` order, and what that leaves out.

Modules that share one weight are one layer, which every one of them applies; a weight that a module outside the choice
uses too (an embedding tied to the unembedding) is refused, unless ``untied(...)`` says to count one use of it only.
"""

from __future__ import annotations

import fnmatch
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from .layers import Layer, LayerSpec, Untied, kind_of


class CoverageNote(UserWarning):
    """Says once which parameters no chosen layer covers: influence does not see what they could learn."""


def select(model: nn.Module, layers: LayerSpec = None, *, note: bool = False) -> dict[str, Layer]:
    """{name: Layer} in ``named_modules`` order.

    layers: None (every understood layer), a glob ("blocks.*.mlp.*"), a list of globs, a predicate of (name, module),
    or ``untied(...)`` of one of these. The name of a convolution in groups means all of its layers, "name.group0", ...
    Raises ValueError where nothing matches, or where a chosen layer's weight is shared with a module that is not
    chosen. note=True warns (CoverageNote) about parameters left uncovered.
    """
    wanted, is_untied = (layers.layers, True) if isinstance(layers, Untied) else (layers, False)
    supported = {name: module for name, module in model.named_modules() if kind_of(module) is not None}
    groups = {name: _wanted_groups(wanted, name, module) for name, module in supported.items()}
    chosen = {name: module for name, module in supported.items() if groups[name]}
    _check_patterns(model, wanted, supported, chosen)
    if not is_untied:  # naming one user of a weight names its other users too: a layer is a weight
        weights = {id(_weight(module)) for module in chosen.values()}
        chosen = {name: module for name, module in supported.items() if id(_weight(module)) in weights}
    whole, reasons = _tied(model, chosen, is_untied, explicit=wanted is not None)
    found = {part.name: part for layer in whole for part in _parts(layer, chosen, groups)}
    if not found:
        raise ValueError(f"layers={layers!r} leaves no layer to fit. " + "; ".join(reasons.values()))
    if note and wanted is None:
        left = uncovered(model, found)
        if left:
            warnings.warn(
                f"{len(left)} parameters are not covered by any chosen layer and count as fixed: "
                + ", ".join(list(left)[:8])
                + (f" and {len(left) - 8} more" if len(left) > 8 else "")
                + "".join(f". Left out: {reason}" for reason in reasons.values()),
                CoverageNote,
                stacklevel=4,
            )
    return found


def _wants(wanted: Any, name: str, module: nn.Module) -> bool:
    if wanted is None:
        return True
    if isinstance(wanted, str):
        return _matches(name, wanted)
    if callable(wanted):
        return bool(wanted(name, module))
    return any(_matches(name, pattern) for pattern in wanted)


def _matches(name: str, pattern: str) -> bool:
    return name == pattern or fnmatch.fnmatchcase(name, pattern)


def _group_names(name: str, module: nn.Module) -> list[str]:
    """The names of the layers that a module's groups are; its own name where it has one group."""
    kind = kind_of(module)
    count = kind.groups_of(module) if kind is not None else 1
    return [name] if count == 1 else [f"{name}.group{k}" if name else f"group{k}" for k in range(count)]


def _wanted_groups(wanted: Any, name: str, module: nn.Module) -> set[int]:
    """The groups of a module that are chosen: all of them by its own name, or some by theirs."""
    names = _group_names(name, module)
    if _wants(wanted, name, module):
        return set(range(len(names)))
    if callable(wanted) or len(names) == 1:
        return set()
    return {k for k, part in enumerate(names) if _wants(wanted, part, module)}


def _parts(layer: Layer, chosen: dict[str, nn.Module], groups: dict[str, set[int]]) -> list[Layer]:
    """A layer with several groups as one Layer for each that is chosen by any of its users; others as they are."""
    names = _group_names(layer.name, layer.modules[0])
    if len(names) == 1:
        return [layer]
    users = [name for name, module in chosen.items() if any(module is m for m in layer.modules)]
    kept = sorted(set().union(*(groups[name] for name in users)))
    return [replace(layer, name=names[k], group=k, groups=len(names)) for k in kept]


def _check_patterns(model: nn.Module, wanted: Any, supported: dict, chosen: dict) -> None:
    patterns = [wanted] if isinstance(wanted, str) else [] if wanted is None or callable(wanted) else list(wanted)
    names = {part for name, module in supported.items() for part in (name, *_group_names(name, module))}
    for pattern in patterns:
        if any(_matches(name, pattern) for name in names):
            continue
        named = dict(model.named_modules()).get(pattern)
        if named is not None:
            raise ValueError(
                f"layers={pattern!r} is a {type(named).__name__}, which inflib does not understand; expected one of "
                f"{_list(supported)}. Teach it the type with inflib.register({type(named).__name__}, ...)."
            )
        raise ValueError(f"layers={pattern!r} matches no layer; expected a name or glob among {_list(supported)}.")
    if not chosen:
        raise ValueError(f"layers={wanted!r} selects no layer; the model has {_list(supported)}.")


def _list(supported: Iterable[str]) -> str:
    return ", ".join(map(repr, supported)) or "no layer of a type inflib understands"


def _tied(
    model: nn.Module, chosen: dict[str, nn.Module], is_untied: bool, explicit: bool
) -> tuple[list[Layer], dict[str, str]]:
    """Chosen modules that share one weight become one Layer; weights shared with anything else are refused."""
    owners = _owners(model)
    users: dict[int, list[str]] = {}
    for name, module in chosen.items():
        users.setdefault(id(_weight(module)) if not is_untied else id(module), []).append(name)
    found, reasons = [], {}
    for names in users.values():
        layer = _layer(names, chosen, is_untied)
        reason = "" if is_untied else _shared_elsewhere(layer, names, owners)
        if not reason:
            found.append(layer)
        elif explicit:
            raise ValueError(reason)
        else:
            reasons[layer.name] = reason
    return found, reasons


def _weight(module: nn.Module) -> Tensor:
    return getattr(module, kind_of(module).weight)  # type: ignore[union-attr]


def _layer(names: list[str], chosen: dict[str, nn.Module], is_untied: bool) -> Layer:
    modules = tuple(chosen[name] for name in names)
    kind = kind_of(modules[0])
    assert kind is not None
    biases = {id(m._parameters.get(kind.bias)) for m in modules}
    counts = {kind.groups_of(m) for m in modules}
    if len(biases) > 1 or len(counts) > 1 or any(kind_of(m) != kind for m in modules):
        raise ValueError(
            f"layers {', '.join(names)} share a weight but not their bias, type or groups; expected all shared. "
            f"Use layers=untied({names!r}) to treat each as a layer of its own."
        )
    has_bias = modules[0]._parameters.get(kind.bias) is not None
    prefix = f"{names[0]}." if names[0] else ""
    bias_name = prefix + kind.bias if has_bias else None
    return Layer(names[0], modules, kind, prefix + kind.weight, bias_name, is_untied)


def _owners(model: nn.Module) -> dict[int, list[tuple[str, nn.Module]]]:
    """{id(parameter): the (name, module) pairs that hold it}."""
    owners: dict[int, list[tuple[str, nn.Module]]] = {}
    for name, module in model.named_modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                owners.setdefault(id(parameter), []).append((name, module))
    return owners


def _shared_elsewhere(layer: Layer, names: list[str], owners: dict[int, list[tuple[str, nn.Module]]]) -> str:
    for what in (layer.kind.weight, layer.kind.bias):
        parameter = layer.modules[0]._parameters.get(what)
        others = [] if parameter is None else [(n, m) for n, m in owners[id(parameter)] if n not in names]
        if others:
            name, module = others[0]
            return (
                f"layer {layer.name!r} shares its {what} with {name!r} ({type(module).__name__}), which is not one of "
                f"the layers chosen with that weight; expected all users of a {what} to be. Leave it out with layers=, "
                f"or use layers=untied({layer.name!r}) to count only this layer's use of it."
            )
    return ""


# --- what is covered -----------------------------------------------------------------------------------------------


def uncovered(model: nn.Module, layers: dict[str, Layer]) -> dict[str, int]:
    """{parameter name: how many of its numbers no chosen layer covers}, without those that are covered."""
    covered = {(id(p), layer.group): p.numel() // layer.groups for layer in layers.values() for p in layer.parameters}
    left = {id(p): p.numel() for p in model.parameters()}
    for (parameter, _), count in covered.items():
        left[parameter] -= count
    return {name: left[id(p)] for name, p in model.named_parameters() if left[id(p)]}


@dataclass(frozen=True)
class Coverage:
    """What ``layers=`` selects: rows of (layer, module type, o, i) and the parameters left out. Prints as a table."""

    rows: tuple[tuple[str, str, int, int], ...]
    left_out: tuple[tuple[str, str, int], ...]

    def __repr__(self) -> str:
        width = max(len(name) for name in (*(r[0] for r in self.rows), *(r[0] for r in self.left_out)))
        lines = [f"{'layer':{width}}  type     matrix (o, i)"]
        lines += [f"{name:{width}}  {kind:8} ({o}, {i})" for name, kind, o, i in self.rows]
        lines += [f"{name:{width}}  not covered ({kind}, {count} numbers)" for name, kind, count in self.left_out]
        covered, missed = sum(o * i for *_, o, i in self.rows), sum(count for *_, count in self.left_out)
        lines.append(f"{covered} of {covered + missed} parameters covered")
        return "\n".join(lines)


def coverage(model: nn.Module, layers: LayerSpec = None) -> Coverage:
    """Which layers ``layers=`` selects and which parameters none of them covers, as something to print."""
    found = select(model, layers)
    left = uncovered(model, found)
    holders = {f"{n}.{p}" if n else p: m for n, m in model.named_modules() for p in m._parameters}
    return Coverage(
        rows=tuple((name, type(layer.modules[0]).__name__, *layer.shape) for name, layer in found.items()),
        left_out=tuple((name, type(holders[name]).__name__, count) for name, count in left.items()),
    )
