"""From a user's ``layers=`` to {name: Layer}, in ``named_modules`` order.

What was trained is what counts: ``layers=None`` means the understood layers whose weight asks for a gradient.

Modules that share one weight are one layer, which every one of them applies; a weight that a module outside the choice
uses too (an embedding tied to the unembedding) is refused, unless ``untied(...)`` says to count one use of it only.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from .layers import Exactly, Layer, LayerSpec, Untied, kind_of

MOST = 16  # names that a message shows


def select(model: nn.Module, layers: LayerSpec = None) -> dict[str, Layer]:
    """{name: Layer} in ``named_modules`` order.

    layers: None (every understood layer that was trained), a glob ("blocks.*.mlp.*"), a list of globs, a predicate of
    (name, module), or ``untied(...)`` of one of these. The name of a convolution in groups means all of its layers,
    "name.group0", ... What was trained is what asks for a gradient; where nothing does, everything counts. A frozen
    layer that is named is included, bias and all.
    Raises ValueError where nothing matches, for weights that are no floating-point numbers, or where a chosen layer's
    weight is shared with a module that is not chosen.
    """
    return chosen(model, layers)[0]


def chosen(model: nn.Module, layers: LayerSpec = None) -> tuple[dict[str, Layer], list[str]]:
    """``select``, and for layers=None the reasons why some understood layers are left out."""
    _check_unwrapped(model)
    shapes = layers.shapes if isinstance(layers, Exactly) else None
    is_untied = isinstance(layers, Untied) or (isinstance(layers, Exactly) and layers.untied)
    wanted = layers.layers if isinstance(layers, Untied) else list(shapes) if shapes is not None else layers
    understood = {name: module for name, module in model.named_modules() if kind_of(module) is not None}
    supported = {name: module for name, module in understood.items() if _weight(module).is_floating_point()}
    only_trained = wanted is None and any(p.requires_grad for p in model.parameters())
    groups = {
        name: set() if only_trained and not _weight(module).requires_grad else _wanted_groups(wanted, name, module)
        for name, module in supported.items()
    }
    taken = {name: module for name, module in supported.items() if groups[name]}
    _check_patterns(model, wanted, understood, supported, taken)
    if not is_untied:  # naming one user of a weight names its other users too: a layer is a weight
        weights = {id(_weight(module)) for module in taken.values()}
        taken = {name: module for name, module in supported.items() if id(_weight(module)) in weights}
    whole, reasons = _tied(model, taken, is_untied, explicit=wanted is not None and not callable(wanted))
    found = {part.name: part for layer in whole for part in _parts(layer, taken, groups)}
    if not found:
        raise ValueError(f"layers={layers!r} leaves no layer to fit. " + "; ".join(reasons.values()))
    found = {name: _own_bias(layer, only_trained, (shapes or {}).get(name)) for name, layer in found.items()}
    return found, list(reasons.values())


def _own_bias(layer: Layer, only_trained: bool, shape: tuple[int, int] | None) -> Layer:
    """The layer without its bias where that was not trained, or where a curvature of this shape has none."""
    frozen = only_trained and not all(p.requires_grad for p in layer.parameters)
    left_out = shape is not None and layer.shape == (shape[0], shape[1] + 1)
    return replace(layer, bias_name=None) if layer.bias and (frozen or left_out) else layer


def _check_unwrapped(model: nn.Module) -> None:
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        raise ValueError(
            f"the model is wrapped in {type(model).__name__}, which splits batches and renames layers "
            "('module.…'); expected the model itself. Pass model.module: it is the same model, with the same weights."
        )


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


def _check_patterns(model: nn.Module, wanted: Any, understood: dict, supported: dict, taken: dict) -> None:
    patterns = [wanted] if isinstance(wanted, str) else [] if wanted is None or callable(wanted) else list(wanted)
    names = {part for name, module in supported.items() for part in (name, *_group_names(name, module))}
    for pattern in patterns:
        if any(_matches(name, pattern) for name in names):
            continue
        named = dict(model.named_modules()).get(pattern)
        if pattern in understood:
            raise ValueError(
                f"layers={pattern!r} has a weight of {_weight(understood[pattern]).dtype}; expected floating-point "
                "numbers, which have a gradient. Leave it out: quantised weights were not trained, their adapters were."
            )
        if named is not None:
            raise ValueError(
                f"layers={pattern!r} is a {type(named).__name__}, which inflib does not understand; expected one of "
                f"{_list(supported)}. {_way_on(named)}"
            )
        raise ValueError(f"layers={pattern!r} matches no layer; expected a name or glob among {_list(supported)}.")
    if taken:
        return
    if wanted is None and supported:
        asking = [name for name, p in model.named_parameters() if p.requires_grad]
        raise ValueError(
            f"no layer that inflib understands was trained: only {', '.join(asking[:4])}{' ...' if asking[4:] else ''} "
            f"ask for a gradient. Name frozen layers to include them, layers='*', or unfreeze what was trained: "
            f"module.requires_grad_(True). There are {_list(supported)}."
        )
    raise ValueError(f"layers={wanted!r} selects no layer; the model has {_list(supported)}.")


def _way_on(module: nn.Module) -> str:
    """What to do about a module that is named and has no Kind."""
    name = type(module).__name__
    if isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
        return f"A {name} applies several matrices step by step inside one call, where no hook sees them: leave it out."
    if isinstance(module, nn.MultiheadAttention):
        return (
            "A MultiheadAttention applies in_proj and out_proj inside one call, where no hook sees them: leave it out, "
            "or build attention from nn.Linear modules."
        )
    return f"Teach it the type with inflib.register({name}, ...)."


def _list(supported: Iterable[str]) -> str:
    names = list(supported)
    shown = ", ".join(map(repr, names[:MOST])) or "no layer of a type inflib understands"
    return shown + (f" and {len(names) - MOST} more (see inflib.coverage)" if len(names) > MOST else "")


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
