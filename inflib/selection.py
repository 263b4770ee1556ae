"""From a user's ``layers=`` to {name: Layer}, in ``named_modules`` order.

What was trained is what counts: ``layers=None`` means the understood matrices whose weight asks for a gradient, in
linear layers, convolutions and attention, with their biases. Embeddings and normalisations are taken where they are
named, or by ``layers="all"`` and ``everything(...)``.

Modules that share one weight are one layer, which every one of them applies; a weight that a module outside the choice
uses too (an embedding tied to the unembedding) is refused, unless ``untied(...)`` says to count one use of it only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from .givens import check_model, check_names
from .layers import Choice, Exactly, Kind, Layer, LayerSpec, alone, kinds_of
from .layers.naming import bare, listed, matches, same


@dataclass(frozen=True)
class Part:
    """One of the ways in which a module is read: a candidate for a layer."""

    name: str
    at: str  # the module's name
    module: nn.Module
    kind: Kind
    shift: bool = False  # a bias by itself, whose layer it is too

    @property
    def weight(self) -> Tensor:
        return getattr(self.module, self.kind.weight)

    @property
    def key(self) -> tuple[int, tuple[int, int]]:
        """What is shared where modules share a weight."""
        return id(self.weight), self.kind.share

    def names(self) -> list[str]:
        """By which it is chosen whole: its own, and that of a module whose part it is, where it is no mere bias."""
        names = [self.name] + [self.at] * self.kind.standing
        inside = isinstance(self.module, nn.modules.linear.NonDynamicallyQuantizableLinear)
        return names + [self.at.rpartition(".")[0]] * (inside and "." in self.at)

    def group_names(self) -> list[str]:
        """The names of the layers that a module's groups are; its own name where it has one group."""
        count = self.kind.groups_of(self.module)
        if count == 1:
            return [self.name]
        return [f"{self.name}.group{k}" if self.name else f"group{k}" for k in range(count)]


Parts = dict[str, Part]


def select(model: nn.Module, layers: LayerSpec = None) -> dict[str, Layer]:
    """{name: Layer} in ``named_modules`` order.

    layers: None (every matrix that was trained), "all" (embeddings and normalisations too), a glob ("blocks.*.mlp.*"),
    a list of globs, a predicate of (name, module), or ``untied(...)``, ``everything(...)`` or ``without_biases(...)``
    of one of these. The name of a convolution in groups means all of its layers, "name.group0", ...; "name.bias" is a
    bias as a layer of its own. Prefixes that wrappers add may be left out. What was trained is what asks for a
    gradient; where nothing does, everything counts. A frozen layer that is named is included, bias and all.
    Raises ValueError where nothing matches, for weights that are no floating-point numbers, or where a chosen layer's
    weight is shared with a module that is not chosen.
    """
    return chosen(model, layers)[0]


def chosen(model: nn.Module, layers: LayerSpec = None) -> tuple[dict[str, Layer], list[str]]:
    """``select``, and for layers=None the reasons why some understood layers are left out."""
    check_model(model)
    if isinstance(layers, Exactly):
        choice, shapes = Choice(list(layers.shapes), layers.untied, everything=True), layers.shapes
    else:
        choice, shapes = Choice.of(layers), {}
        check_names(model, choice.layers)
    wanted = choice.layers
    understood = {part.name: part for part in _parts(model)}
    supported = {name: part for name, part in understood.items() if part.weight.is_floating_point()}
    only_trained = wanted is None and any(p.requires_grad for p in model.parameters())
    groups = {name: _groups(choice, part, only_trained) for name, part in supported.items()}
    taken = {name: part for name, part in supported.items() if groups[name]}
    _check_patterns(model, choice, understood, supported, taken)
    if not choice.untied:  # naming one user of a weight names its other users too: a layer is a weight
        weights = {_user(part, choice) for part in taken.values()}
        taken = {name: part for name, part in supported.items() if _user(part, choice) in weights}
    whole, reasons = _tied(model, taken, choice)
    found = {layer.name: layer for one in whole for layer in _grouped(one, taken, groups)}
    found = {name: layer for name, layer in found.items() if not shapes or name in shapes}
    if not found:
        raise ValueError(f"layers={layers!r} leaves no layer to fit. " + "; ".join(reasons.values()))
    apart = {id(part.weight) for part in taken.values() if part.shift}
    found = {name: _own_bias(layer, choice, only_trained, shapes.get(name), apart) for name, layer in found.items()}
    return found, list(reasons.values())


def _parts(model: nn.Module) -> Iterator[Part]:
    for at, module in model.named_modules():
        for kind in kinds_of(module):
            yield Part(kind.named(at), at, module, kind, shift=kind.elementwise and not kind.scales)
            if kind.bias is not None and module._parameters.get(kind.bias) is not None:
                shift = alone(kind)
                yield Part(shift.named(at), at, module, shift, shift=True)


def _own_bias(
    layer: Layer, choice: Choice, only_trained: bool, shape: tuple[int, int] | None, apart: set[int]
) -> Layer:
    """The layer without its bias where that was not trained, is another layer, or is not in a curvature's shape."""
    if layer.bias_name is None:
        return layer
    bias, without = layer.parameters[-1], replace(layer, bias_name=None)
    left_out = not choice.biases or (only_trained and not bias.requires_grad) or id(bias) in apart
    return without if left_out or (shape is not None and without.shape == shape) else layer


# --- what is asked for -----------------------------------------------------------------------------------------------


def _groups(choice: Choice, part: Part, only_trained: bool) -> set[int]:
    """The groups of a module that are chosen: all of them by its own name, or some by theirs."""
    names = part.group_names()
    every, wanted = set(range(len(names))), choice.layers
    if wanted is None:
        return every if _by_itself(choice, part, only_trained) else set()
    patterns = _patterns(wanted)
    if any(same(name, pattern) for pattern in patterns for name in part.names()):
        return every
    if part.shift and not choice.biases:
        return set()
    if part.shift and not part.kind.standing:
        return {k for k, name in enumerate(names) if any(same(name, pattern) for pattern in patterns)}
    reached = part.kind.usual or choice.everything
    if callable(wanted):
        return every if reached and wanted(part.name, part.module) else set()
    if reached and any(matches(part.name, pattern) for pattern in patterns):
        return every
    return {k for k, name in enumerate(names) if any((matches if reached else same)(name, p) for p in patterns)}


def _by_itself(choice: Choice, part: Part, only_trained: bool) -> bool:
    """Whether a part is chosen where no layer is named: what was trained, a bias alone where its weight was not."""
    if not (part.kind.usual or choice.everything):
        return False
    if part.shift and not part.kind.standing:
        weights = [k for k in kinds_of(part.module) if k.bias == part.kind.weight and k.share == part.kind.share]
        frozen = all(not getattr(part.module, k.weight).requires_grad for k in weights)
        return only_trained and choice.biases and frozen and part.weight.requires_grad
    return (choice.biases or not part.shift) and (part.weight.requires_grad or not only_trained)


def _patterns(wanted: Any) -> list[str]:
    if wanted is None or callable(wanted):
        return []
    return [wanted] if isinstance(wanted, str) else list(wanted)


def _check_patterns(model: nn.Module, choice: Choice, understood: Parts, supported: Parts, taken: Parts) -> None:
    usual = [name for name, part in supported.items() if _offered(part, choice)]
    for pattern in _patterns(choice.layers):
        if any(matches(name, pattern) for part in taken.values() for name in (*part.names(), *part.group_names())):
            continue
        named = {bare(name): module for name, module in model.named_modules()}.get(bare(pattern))
        part = understood.get(pattern)
        if part is not None:
            raise ValueError(
                f"layers={pattern!r} has a weight of {part.weight.dtype}; expected floating-point "
                "numbers, which have a gradient. Leave it out: quantised weights were not trained, their adapters were."
            )
        if named is not None:
            inside = [name for name, p in supported.items() if p.kind.standing and p.at.startswith(f"{pattern}.")]
            if inside:
                raise ValueError(
                    f"layers={pattern!r} is a {type(named).__name__}, which holds layers and is none; expected their "
                    f"names, {listed(inside)}, or all of them: layers={pattern + '.*'!r}."
                )
            raise ValueError(
                f"layers={pattern!r} is a {type(named).__name__}, which inflib does not understand; expected one of "
                f"{listed(usual)}. {_way_on(named)}"
            )
        beyond = [name for name, part in supported.items() if matches(name, pattern) and not _offered(part, choice)]
        if beyond:
            raise ValueError(
                f"layers={pattern!r} matches only {listed(beyond)}, embeddings, normalisations or biases, which "
                f"a glob does not reach; expected a matrix. Say layers=inflib.everything({pattern!r}), or name each."
            )
        raise ValueError(f"layers={pattern!r} matches no layer; expected a name or glob among {listed(usual)}.")
    if taken:
        return
    if choice.layers is None and supported:
        asking = [name for name, p in model.named_parameters() if p.requires_grad]
        trained = ", ".join(asking[:4]) + (" ..." if asking[4:] else "")
        if not choice.everything and any(part.weight.requires_grad for part in supported.values()):
            raise ValueError(
                f"no matrix was trained: only {trained} ask for a gradient, embeddings, normalisations or biases among "
                "them; expected layers that were. Take those in: layers='all'."
            )
        raise ValueError(
            f"no layer that inflib understands was trained: only {trained} ask for a gradient; expected matrices, "
            "embeddings or normalisations that do. Name frozen layers to include them, layers='*', merge trained parts "
            f"into their weights, or unfreeze what was trained: module.requires_grad_(True). There are {listed(usual)}."
        )
    if usual:
        raise ValueError(
            f"layers={choice.layers!r} selects no layer; the model has {listed(usual)}; expected at least one of them."
        )
    raise ValueError(
        f"layers={choice.layers!r} selects no layer; expected a module with a weight in floating point that inflib "
        "understands (linear, convolution, attention, embedding, normalisation). A weight that is computed from others "
        "is none: take parametrizations off, torch.nn.utils.parametrize.remove_parametrizations(module, 'weight'), or "
        "remove_weight_norm(module). For a type of your own see inflib.register."
    )


def _offered(part: Part, choice: Choice) -> bool:
    return (part.kind.usual or choice.everything) and (not part.shift or part.kind.standing)


def _way_on(module: nn.Module) -> str:
    """What to do about a module that is named and has no Kind."""
    kind = type(module).__name__
    if isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
        return f"A {kind} applies several matrices step by step inside one call, where no hook sees them: leave it out."
    if "expert" in kind.lower() and any(p.ndim == 3 for p in module._parameters.values() if p is not None):
        return (
            f"A {kind} holds a matrix for each of several experts, to which rows are routed as the data asks, so that "
            "no example has a place of its own in them: leave it out."
        )
    if isinstance(module, nn.Embedding):
        return "An Embedding with max_norm changes its weight as it is read: leave it out."
    return f"Teach it the type with inflib.register({kind}, ...)."


# --- weights that several modules share ------------------------------------------------------------------------------


def _grouped(layer: Layer, taken: Parts, groups: dict[str, set[int]]) -> list[Layer]:
    """A layer with several groups as one Layer for each that is chosen by any of its users; others as they are."""
    users = [
        part for part in taken.values() if any(part.module is m for m in layer.modules) and part.kind == layer.kind
    ]
    names = users[0].group_names()
    if len(names) == 1:
        return [layer]
    kept = sorted(set().union(*(groups[part.name] for part in users)))
    return [replace(layer, name=names[k], group=k, groups=len(names)) for k in kept]


def _user(part: Part, choice: Choice) -> Any:
    """What users of one weight have in common: an embedding belongs to them where embeddings were asked for."""
    return part.key, part.kind.one_hot and not choice.everything


def _tied(model: nn.Module, taken: Parts, choice: Choice) -> tuple[list[Layer], dict[str, str]]:
    """Chosen modules that share one weight become one Layer; weights shared with anything else are refused."""
    explicit = choice.layers is not None and not callable(choice.layers)
    owners = _owners(model)
    users: dict[Any, list[Part]] = {}
    for part in taken.values():
        users.setdefault(part.name if choice.untied else part.key, []).append(part)
    found, reasons = [], {}
    for parts in users.values():
        layer = _layer(parts, choice.untied)
        reason = "" if choice.untied else _shared_elsewhere(layer, owners)
        if not reason:
            found.append(layer)
        elif explicit:
            raise ValueError(reason)
        else:
            reasons[layer.name] = reason
    return found, reasons


def _layer(parts: list[Part], is_untied: bool) -> Layer:
    lookups = [part for part in parts if part.kind.one_hot]
    first, parts = parts[0], [part for part in parts if not part.kind.one_hot] or parts
    lookups = [] if lookups == parts else lookups
    modules, kind = tuple(part.module for part in parts), parts[0].kind
    biases = {id(m._parameters.get(kind.bias)) if kind.bias else None for m in modules}
    counts = {kind.groups_of(m) for m in modules}
    if len(biases) > 1 or len(counts) > 1 or any(part.kind != kind for part in parts):
        names = [part.name for part in parts]
        raise ValueError(
            f"layers {', '.join(names)} share a weight but not their bias, type or groups; expected all shared. "
            f"Use layers=untied({names!r}) to treat each as a layer of its own."
        )
    prefixes = [f"{part.at}." if part.at else "" for part in (first, parts[0])]
    has_bias = kind.bias is not None and modules[0]._parameters.get(kind.bias) is not None
    bias_name = f"{prefixes[1]}{kind.bias}" if has_bias else None
    group, groups = kind.share
    looking = tuple(part.module for part in lookups)
    weight_name = prefixes[0] + first.kind.weight
    return Layer(first.name, modules, kind, weight_name, bias_name, looking, is_untied, group, groups)


def _owners(model: nn.Module) -> dict[int, list[tuple[str, nn.Module]]]:
    """{id(parameter): the (name, module) pairs that hold it}."""
    owners: dict[int, list[tuple[str, nn.Module]]] = {}
    for name, module in model.named_modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                owners.setdefault(id(parameter), []).append((name, module))
    return owners


def _shared_elsewhere(layer: Layer, owners: dict[int, list[tuple[str, nn.Module]]]) -> str:
    for what, parameter in zip((layer.kind.weight, layer.kind.bias), layer.parameters, strict=False):
        users = (*layer.modules, *layer.lookups)
        others = [(n, m) for n, m in owners[id(parameter)] if not any(m is own for own in users)]
        if others:
            name, module = others[0]
            return (
                f"layer {layer.name!r} shares its {what} with {name!r} ({type(module).__name__}), which is not one of "
                f"the layers chosen with that weight; expected all users of a {what} to be. Leave it out with layers=, "
                f"or use layers=untied({layer.name!r}) to count only this layer's use of it"
                + (", or everything(...) to count both." if isinstance(module, nn.Embedding) else ".")
            )
    return ""
