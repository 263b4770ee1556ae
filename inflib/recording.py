"""What a forward pass leaves behind: every layer's activations, and the way back to its output's gradient.

A layer is called once or several times, each time with rows that its layout (rows.py) tells apart into examples; the
positions of its calls line up along T. ``Recording.gradients`` may be asked for one seed after another.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from .batches import accumulator, per_row
from .layers import Layer, OneHot, positions_last
from .layers.elementwise import slopes as slopes_of
from .layers.onehot import dense, joined

Matrices = dict[str, Tensor]  # layer → (K, o, i), a stack of K matrices


class Pair(NamedTuple):
    """One layer, one batch: activations a (B, T, i), their last feature 1 with a bias, and gradients g (B, T, o)."""

    a: Tensor  # an embedding's: a OneHot, which stands for one
    g: Tensor

    def matrices(self) -> Tensor:
        """Per-example weight gradients Σ_t g_t a_tᵀ, (B, o, i), in float32 at least."""
        a, g = (x.to(accumulator(torch.promote_types(self.a.dtype, self.g.dtype))) for x in self)
        if isinstance(a, OneHot):
            return dense(a, g)
        if a.shape[1] == 1:
            return g.mT * a  # (B, o, 1) · (B, 1, i)
        return torch.bmm(g.mT, a)


Uses = list[tuple[Layer, slice | None]]  # the layers that a call is of, each with its cut of the output


class Arrived(NamedTuple):
    """What has been back-propagated already: gradients at the outputs of a layer's calls, of slopes over ``sizes``."""

    gradients: dict[str, list[Tensor]]
    sizes: Tensor  # (B,) powers of two; 0: nothing is to arrive of that example


class Captured(dict[str, Pair]):
    """{layer: Pair}, and ``lengths``: the positions of each of a layer's calls, which line up along T."""

    lengths: dict[str, tuple[int, ...]]


class Call(NamedTuple):
    """One call of a layer's module: where its output's gradient is found, and what of it is the layer's."""

    module: nn.Module
    edge: GradientEdge
    cut: slice | None = None  # of the output's features, those that the layer makes
    slopes: Tensor | None = None  # of an elementwise module, ∂y/∂w
    ids: Tensor | None = None  # (B, T), of an embedding that reads the weight of a layer that multiplies by it

    def gradients(self, layer: Layer, g: Tensor, size: int) -> Tensor:
        """The gradient at the call's output → the layer's g (B, T, o); of an embedding's call its own, (B, T, i)."""
        if self.ids is not None:
            return layer.layout.examples(positions_last, self.module, g, size)
        return layer.gradients(self.module, g, self.slopes, size)


@dataclass
class Recording:
    """A forward pass through the watched layers: outputs (B, ...), activations, and the way back.

    raw=True keeps the modules' inputs as they came, for whoever looks for the examples in them.
    """

    layers: dict[str, Layer]
    size: int
    raw: bool = False
    outputs: Tensor = field(default_factory=lambda: torch.empty(0))
    activations: dict[str, Tensor] = field(default_factory=dict)  # (B, T, i) per layer
    lengths: dict[str, list[int]] = field(default_factory=dict)  # positions of each call
    inputs: dict[str, list[Tensor]] = field(default_factory=dict)  # of each call, where raw
    calls: dict[str, list[Call]] = field(default_factory=dict)
    edges: dict[str, list[GradientEdge]] = field(default_factory=dict)  # of all calls so far, idle ones included
    weights: dict[str, Tensor] = field(default_factory=dict)  # parameters that a gradient can be asked for, by name
    shared: list[str] = field(default_factory=list)  # embeddings that were given ids once for all examples
    arrived: Arrived | None = None  # of the slopes that are asked for, where a look (proof.py) has had to know
    rows: int = 0  # of the last call's first axis, where that is the examples' or a multiple of them

    def gradients(self, seed: Tensor, *, last: bool = False) -> dict[str, Tensor]:
        """g (B, T, o) of every layer for Σ_b ⟨seed_b, outputs_b⟩, for one seed after another up to the ``last``.

        Of a layer that an embedding reads too, those of the modules that multiply by it.
        """
        return {name: pair.g for name, pair in self._pairs(seed, last, lookups=False).items()}

    def pairs(self, seed: Tensor, *, last: bool = False) -> dict[str, Pair]:
        """The same with the activations: whose Σ_t g_t a_tᵀ are the whole gradients."""
        return self._pairs(seed, last, lookups=True)

    def pairs_arrived(self) -> dict[str, Pair]:
        """The pairs of what has arrived, without a pass; once."""
        assert self.arrived is not None
        (gradients, sizes), self.arrived, found = self.arrived, None, {}
        for name, calls in self.calls.items():
            a, g = paired(self.layers[name], self.activations[name], calls, gradients.pop(name), self.size)
            each = per_row(sizes, g)
            found[name] = Pair(a, (g * each.to(g)).masked_fill_(each == 0, 0))
        return found

    def _pairs(self, seed: Tensor, last: bool, lookups: bool) -> dict[str, Pair]:
        found = self.output_gradients(seed, last=last)
        return {
            name: paired(self.layers[name], self.activations[name], calls, found.pop(name), self.size, lookups=lookups)
            for name, calls in self.calls.items()
        }

    def output_gradients(self, seed: Tensor, *, last: bool = False) -> dict[str, list[Tensor]]:
        """The gradient at the output of each of a layer's calls, of the output's shape, as far as it is the layer's."""
        edges = [call.edge for calls in self.calls.values() for call in calls]
        with torch.enable_grad():
            total = _along(self.outputs, seed)
        found = iter(torch.autograd.grad(total, edges, retain_graph=not last, allow_unused=True))
        return {
            name: [
                _reached(name, next(found))[..., call.cut if call.cut is not None else slice(None)] for call in calls
            ]
            for name, calls in self.calls.items()
        }

    def weight_gradients(self, seed: Tensor) -> dict[str, Tensor]:
        """Autograd's own gradient of Σ_b ⟨seed_b, outputs_b⟩ in ``weights``; 0 where it does not depend on one."""
        if not self.weights:
            return {}
        with torch.enable_grad():
            total = _along(self.outputs, seed)
        found = torch.autograd.grad(total, list(self.weights.values()), retain_graph=True, allow_unused=True)
        named = zip(self.weights.items(), found, strict=True)
        return {name: torch.zeros_like(w) if g is None else g for (name, w), g in named}

    def read(self, layers: dict[str, Layer]) -> None:
        """From raw inputs to activations, as if the layers' layouts had been known from the start."""
        self.layers, self.raw = layers, False
        for name, layer in layers.items():
            calls, self.calls[name] = self.calls[name], []
            for call, x in zip(calls, self.inputs.pop(name), strict=True):
                if call.ids is None:
                    self.add(layer, layer.own(layer.features(call.module, x, self.size)))
                else:
                    call = call._replace(ids=layer.ids(call.module, x, self.size))
                self.calls[name].append(call)

    def every_length(self) -> dict[str, tuple[int, ...]]:
        """The positions of each call that a pair is made of, embeddings' at the end."""
        looked = {name: [c.ids.shape[1] for c in calls if c.ids is not None] for name, calls in self.calls.items()}
        return {name: (*lengths, *looked[name]) for name, lengths in self.lengths.items()}

    def drop_idle(self) -> dict[str, frozenset[int]]:
        """Forget the calls that the output does not depend on, where another of the same layer's is; which they were.

        DoRA reads its adapters once more, for a norm that it detaches.
        """
        if all(len(calls) == 1 for calls in self.calls.values()):
            return dict.fromkeys(self.calls, frozenset())
        edges = [call.edge for calls in self.calls.values() for call in calls]
        with torch.enable_grad():
            total = self.outputs.sum()
        found = iter(torch.autograd.grad(total, edges, retain_graph=True, allow_unused=True))
        idle = {}
        for name, calls in self.calls.items():
            reached = [next(found) is not None for _ in calls]
            idle[name] = frozenset(at for at, yes in enumerate(reached) if not yes) if any(reached) else frozenset()
            self.calls[name] = [one for at, one in enumerate(calls) if at not in idle[name]]
            self.inputs[name] = [x for at, x in enumerate(self.inputs[name]) if at not in idle[name]]
        return idle

    def seen(
        self, uses: Uses, module: nn.Module, args: tuple, kwargs: Any, output: Tensor, *, looks_up: bool = False
    ) -> Tensor | None:
        """One call of layers (each with its cut of the output) → the output to go on with; None where it is left."""
        every, uses = uses, [(layer, cut) for layer, cut in uses if not self._is_idle(layer)]
        if not uses:
            return self._went_on(every, output)[0]
        x = (args[0] if args else next(iter(kwargs.values()))).detach()
        _check_plain(uses[0][0], x, self.layers)
        if looks_up:
            given = len(output)
            x, output = _ids(module, x, output, self.rows or self.size)
            self.shared += [uses[0][0].name] * (len(output) != given)
        if len(x) % self.size == 0 and x.ndim > 1:
            self.rows = len(x)
        slopes = {
            layer.kind.weight: slopes_of(module, layer.kind.weight, args, kwargs)
            for layer, _ in uses
            if layer.kind.scales
        }
        ids = self._record(uses, module, x, output.detach(), looks_up)
        output, edge = self._went_on(every, output)
        for layer, cut in uses:
            own = slopes.get(layer.kind.weight) if layer.kind.scales else None
            self.calls.setdefault(layer.name, []).append(Call(module, edge, cut, own, ids.get(layer.name)))
        return output

    def _went_on(self, every: Uses, output: Tensor) -> tuple[Tensor, GradientEdge]:
        """The output to go on with, and the way back to it, which is kept as one more call of its layers."""
        if not output.requires_grad:  # nothing below needs a gradient: the graph starts at a leaf of our own
            output = output.detach().requires_grad_()
        edge = get_gradient_edge(output)
        if output.is_leaf or output._is_view():
            # an in-place operation is refused on a leaf, and rewrites a view's history: the same numbers as neither
            output = torch.ops.aten._unsafe_view(output, output.shape)
        for layer, _ in every:
            self.edges.setdefault(layer.name, []).append(edge)
        return output, edge

    def _is_idle(self, layer: Layer) -> bool:
        """Whether this call of the layer is one that nothing depends on, as was seen."""
        return not self.raw and len(self.edges.get(layer.name, ())) in layer.idle

    def _record(self, uses: Uses, module: nn.Module, x: Tensor, output: Tensor, looks_up: bool) -> dict[str, Tensor]:
        """Keep what a module was given (an elementwise one: what it gave) as the activations of its layers.

        Returns the ids (B, T) where the module is an embedding that only reads a layer's weight.
        """
        kept: dict[Any, Tensor] = {}
        ids: dict[str, Tensor] = {}
        for layer, _ in uses:
            kind, given = layer.kind, output if layer.kind.elementwise else x
            if not self.raw:
                check_rows(layer, given, self.size)
            if looks_up and layer.lookups:
                ids[layer.name] = given if self.raw else layer.ids(module, given, self.size)
            elif not self.raw:
                key = (kind.elementwise, kind.activations, kind.gradients, layer.layout)
                if key not in kept:
                    kept[key] = layer.features(module, given, self.size)
                self.add(layer, layer.own(kept[key]))
            else:
                _check_read(layer, module, given)
            if self.raw:
                if kind.elementwise not in kept:
                    kept[kind.elementwise] = given.clone()  # so that a later in-place operation cannot change it
                self.inputs.setdefault(layer.name, []).append(kept[kind.elementwise])
        return ids

    def add(self, layer: Layer, features: Tensor) -> None:
        """One more call of a layer, (B, T, i) without the bias's 1: a tied layer's calls line up along T."""
        if layer.kind.one_hot:
            a: Any = OneHot(features[..., 0], layer.shape[1], layer.weight.dtype)
        else:
            a = _with_ones(features, layer.bias)
        self.lengths.setdefault(layer.name, []).append(a.shape[1])
        if layer.name in self.activations:
            a = joined([self.activations[layer.name], a], dim=1)
        self.activations[layer.name] = a


def _along(outputs: Tensor, seed: Tensor) -> Tensor:
    """Σ_b ⟨seed_b, outputs_b⟩, a scalar: for a given gradient torch would first import sympy. Their product, as large
    as a language model's logits, is not made."""
    return torch.dot(outputs.flatten(), seed.flatten().to(outputs.dtype))


def paired(
    layer: Layer, a: Tensor, calls: list[Call], gradients: list[Tensor], size: int, *, lookups: bool = True
) -> Pair:
    """A layer's activations and its calls' output gradients as one Pair; ``lookups``: with embeddings' calls too."""
    each = list(zip(calls, gradients, strict=True))
    parts = [call.gradients(layer, g, size) for call, g in each if call.ids is None]
    pair = Pair(a, joined(parts, dim=1) if len(parts) > 1 else parts[0])
    turned = [layer.looked_up(c.gradients(layer, g, size), c.ids) for c, g in each if lookups and c.ids is not None]
    if not turned:
        return pair
    return Pair(joined([pair.a, *(a for a, _ in turned)], dim=1), joined([pair.g, *(g for _, g in turned)], dim=1))


def _ids(module: nn.Module, ids: Tensor, output: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """An embedding's ids (B, ..., 1), −1 where it has no gradient, and its output, each example with rows of its own.

    Positions that all examples share, ids (T,) or (1, T), are read once for each of them: the sum over examples that
    reaches a shared row is no example's gradient.
    """
    shared = ids.ndim == 1 and len(ids) != size
    if shared:
        ids, output = ids[None], output[None]
    if len(ids) == 1 < size:
        ids, output = ids.expand(size, *ids.shape[1:]), output.expand(size, *output.shape[1:])
    padding = getattr(module, "padding_idx", None)
    ids = ids if padding is None else ids.masked_fill(ids == padding, -1)
    return ids[..., None], output


def _reached(name: str, gradient: Tensor | None) -> Tensor:
    if gradient is None:
        raise ValueError(
            f"layer {name!r} took part in the forward pass, but its output does not reach the model's output "
            "(detached, computed under no_grad, or unused); expected a differentiable path. "
            "Leave the layer out with layers=."
        )
    return gradient


def _check_read(layer: Layer, module: nn.Module, x: Tensor) -> None:
    """Raise ValueError where x is nothing that the layer's kind reads, in its kind's words."""
    try:
        layer.rows(module, x)
    except ValueError as error:
        raise ValueError(f"layer {layer.name!r}: {error}") from None


def _check_plain(layer: Layer, x: Tensor, layers: dict[str, Layer]) -> None:
    """Raise ValueError for a layer that is called inside a transform of torch.func."""
    if torch._C._functorch.is_functorch_wrapped_tensor(x):
        raise ValueError(
            f"layer {layer.name!r} is called inside torch.vmap, or another transform of torch.func, where its rows "
            "cannot be seen; expected it to be called on the batch. Call it on all rows at once (a Linear takes "
            f"(B, ..., features)), or use gauss_newton. {leave_out([layer.name], layers)}"
        )


class RowsChangedError(ValueError):
    """A batch's rows do not fit where its layer's examples were seen to be."""


def check_rows(layer: Layer, x: Tensor, size: int) -> None:
    """Raise RowsChangedError where a module's input cannot hold ``size`` examples where the layer's layout says."""
    if not layer.layout.fits(x.shape, size):
        raise RowsChangedError(
            f"layer {layer.name!r} was given {tuple(x.shape)} for {size} examples; expected the examples "
            f"{layer.layout}, where they were in the batch that was looked at. Rows that come and go with the data "
            f"(routed experts, a weight used in several ways) have no place of one example's own. "
            f"{leave_out([layer.name], {layer.name: layer, '': layer})}"
        )


def leave_out(names: Iterable[str], among: dict[str, Layer]) -> str:
    """How to choose all layers but these, in words to copy: by the ends of their names, where those tell them apart."""
    everything = any(not layer.kind.usual for layer in among.values())
    said = "inflib.everything({})" if everything else "{}"
    # a predicate is asked about modules, whose groups are not named apart
    out, every = ({name.rsplit(".group", 1)[0] for name in some} for some in (names, among))
    kept = every - out
    if not kept:
        return "No layer is left without them: choose others, layers=, or change the model's forward."
    for parts in (1, 2, 3):
        ends = {".".join(name.split(".")[-parts:]) for name in out}
        if len(ends) <= 4 and not any(name.endswith(tuple(ends)) for name in kept):
            which = tuple(sorted(ends)) if len(ends) > 1 else next(iter(ends))
            rule = f"lambda name, module: not name.endswith({which!r})"
            return f"Leave it out: layers={said.format(rule)}."
    rule = f"lambda name, module: name not in {sorted(out)!r}"
    return f"Leave it out: layers={said.format(rule)}."


def _with_ones(a: Tensor, bias: bool) -> Tensor:
    """A copy of a, so that a later in-place operation of the model cannot change it, with the bias's 1 appended."""
    if not bias:
        return a.clone()
    width = a.shape[-1] + 1
    out = a.new_empty(*a.shape[:-1], aligned(width))[..., :width]
    out[..., :-1] = a
    out[..., -1] = 1
    return out


def aligned(width: int) -> int:
    """The next multiple of 16: rows that begin there are multiplied a sixth faster than rows of an odd width."""
    return -(-width // 16) * 16
