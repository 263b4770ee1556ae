"""One forward and one backward pass → every layer's activations a and output gradients g.

For a layer f = W a, the gradient of one example's loss is Σ_t g_t a_tᵀ with g = dℓ/df (Grosse et al. 2023, eq. 14–15:
Dθ = a ⊗ g). So nothing but a and g is ever asked of autograd: a is read by a forward hook, g is the gradient at the
layer's *output*, reached through ``torch.autograd.graph.get_gradient_edge`` inside that hook. No weight gradient is
computed, and the model is as it was found afterwards, also after an exception: no hook, no .grad, no changed flag.

What is recorded is read by each layer's layout (rows.py), which ``proof`` has shown to be right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from .batches import Batch, accumulator
from .layers import Layer
from .objectives import Objective, output_gradient
from .placement import call, check_mode
from .positions import check_batch
from .rows import Layout

Matrices = dict[str, Tensor]  # layer → (K, o, i), a stack of K matrices


class Pair(NamedTuple):
    """One layer, one batch: activations a (B, T, i), their last feature 1 with a bias, and gradients g (B, T, o)."""

    a: Tensor
    g: Tensor

    def matrices(self) -> Tensor:
        """Per-example weight gradients Σ_t g_t a_tᵀ, (B, o, i), in float32 at least."""
        a, g = (x.to(accumulator(torch.promote_types(self.a.dtype, self.g.dtype))) for x in self)
        if a.shape[1] == 1:
            return g.mT * a  # (B, o, 1) · (B, 1, i)
        return torch.bmm(g.mT, a)


class Captured(dict[str, Pair]):
    """{layer: Pair}, and ``lengths``: the positions of each of a layer's calls, which line up along T."""

    lengths: dict[str, tuple[int, ...]]


@dataclass
class Recording:
    """A forward pass through the watched layers: outputs (B, ...), activations, and the way back.

    size=None keeps the modules' inputs as they came, for whoever looks for the examples in them.
    """

    layers: dict[str, Layer]
    size: int | None
    outputs: Tensor = field(default_factory=lambda: torch.empty(0))
    activations: dict[str, Tensor] = field(default_factory=dict)  # (B, T, i) per layer
    lengths: dict[str, list[int]] = field(default_factory=dict)  # positions of each call
    inputs: dict[str, list[Tensor]] = field(default_factory=dict)  # of each call, where size is None
    calls: dict[str, list[tuple[nn.Module, GradientEdge]]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)  # calls so far, idle ones included

    def gradients(self, seed: Tensor, *, last: bool = False) -> dict[str, Tensor]:
        """g (B, T, o) of every layer for Σ_b ⟨seed_b, outputs_b⟩, for one seed after another up to the ``last``."""
        found = self.output_gradients(seed, last=last)
        gradients = {}
        for name, calls in self.calls.items():
            parts = [self._read(self.layers[name], m, g) for (m, _), g in zip(calls, found.pop(name), strict=True)]
            gradients[name] = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
        return gradients

    def output_gradients(self, seed: Tensor, *, last: bool = False) -> dict[str, list[Tensor]]:
        """The gradient at the output of each of a layer's calls, of the output's shape."""
        edges = [edge for calls in self.calls.values() for _, edge in calls]
        with torch.enable_grad():
            total = (self.outputs * seed).sum()  # a scalar: for a given gradient torch would first import sympy
        found = iter(torch.autograd.grad(total, edges, retain_graph=not last, allow_unused=True))
        return {name: [_reached(name, next(found)) for _ in calls] for name, calls in self.calls.items()}

    def drop_idle(self) -> dict[str, frozenset[int]]:
        """Forget the calls that the output does not depend on, where another of the same layer's is; which they were.

        DoRA reads its adapters once more, for a norm that it detaches.
        """
        if all(len(calls) == 1 for calls in self.calls.values()):
            return dict.fromkeys(self.calls, frozenset())
        edges = [edge for calls in self.calls.values() for _, edge in calls]
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

    def record(self, layers: list[Layer], module: nn.Module, x: Tensor) -> None:
        """Keep what a module was given as the activations of its layers (several for a module in groups)."""
        if self.size is None:
            _check_read(layers[0], module, x)
            kept = x.clone()  # so that a later in-place operation of the model cannot change it
            for layer in layers:
                self.inputs.setdefault(layer.name, []).append(kept)
            return
        check_rows(layers[0], x, self.size)
        features: dict[Layout, Tensor] = {}
        for layer in layers:
            if layer.layout not in features:
                features[layer.layout] = layer.features(module, x, self.size)
            self.add(layer, layer.own(features[layer.layout]))

    def add(self, layer: Layer, features: Tensor) -> None:
        """One more call of a layer, (B, T, i) without the bias's 1: a tied layer's calls line up along T."""
        a = _with_ones(features, layer.bias)
        self.lengths.setdefault(layer.name, []).append(a.shape[1])
        if layer.name in self.activations:
            a = torch.cat([self.activations[layer.name], a], dim=1)
        self.activations[layer.name] = a

    def _read(self, layer: Layer, module: nn.Module, gradient: Tensor) -> Tensor:
        assert self.size is not None
        return layer.own(layer.layout.examples(layer.kind.gradients, module, gradient, self.size))


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
        layer.kind.activations(module, x)
    except ValueError as error:
        raise ValueError(f"layer {layer.name!r}: {error}") from None


class RowsChangedError(ValueError):
    """A batch's rows do not fit where its layer's examples were seen to be."""


def check_rows(layer: Layer, x: Tensor, size: int) -> None:
    """Raise RowsChangedError where a module's input cannot hold ``size`` examples where the layer's layout says."""
    if not layer.layout.fits(x.shape, size):
        raise RowsChangedError(
            f"layer {layer.name!r} was given {tuple(x.shape)} for {size} examples; expected the examples "
            f"{layer.layout}, where they were in the batch that was looked at. Rows that come and go with the data "
            f"(routed experts, a weight used in several ways) have no place of one example's own. "
            f"{leave_out([layer.name], [layer.name, ''])}"
        )


def leave_out(names: Iterable[str], among: Iterable[str]) -> str:
    """How to choose all layers but these, in words to copy: by the ends of their names, where those tell them apart."""
    # a predicate is asked about modules, whose groups are not named apart
    out, every = ({name.rsplit(".group", 1)[0] for name in some} for some in (names, among))
    kept = every - out
    if not kept:
        return "No layer is left without them: choose others, layers=, or change the model's forward."
    for parts in (1, 2, 3):
        ends = {".".join(name.split(".")[-parts:]) for name in out}
        if len(ends) <= 4 and not any(name.endswith(tuple(ends)) for name in kept):
            which = tuple(sorted(ends)) if len(ends) > 1 else next(iter(ends))
            return f"Leave it out: layers=lambda name, module: not name.endswith({which!r})."
    return f"Leave it out: layers=lambda name, module: name not in {sorted(out)!r}."


@contextmanager
def watching(layers: dict[str, Layer], size: int | None) -> Iterator[Recording]:
    """Hooks on the chosen layers for the duration of a ``with``; they come off whatever happens inside."""
    recording = Recording(layers, size)
    own: dict[nn.Module, list[Layer]] = {}  # several layers for a module in groups
    for layer in layers.values():
        for module in layer.modules:
            own.setdefault(module, []).append(layer)
    with ExitStack() as stack:
        for module, parts in own.items():
            handle = module.register_forward_hook(_hook(recording, parts), with_kwargs=True)
            stack.callback(handle.remove)
        yield recording


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Weights that ask for no gradient for the duration of a ``with``: autograd then keeps nothing for their sake."""
    asking = [p for p in model.parameters() if p.requires_grad]
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # fused attention, taken where no gradient is asked, skips hooks
    try:
        for p in asking:
            p.requires_grad_(False)
        yield
    finally:
        for p in asking:
            p.requires_grad_(True)
        torch.backends.mha.set_fastpath_enabled(fused)


def _hook(recording: Recording, layers: list[Layer]) -> Callable[..., Tensor | None]:
    def hook(module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Tensor) -> Tensor | None:
        at = recording.counts.get(layers[0].name, 0)
        recording.counts[layers[0].name] = at + 1
        if recording.size is not None and at in layers[0].idle:
            return None
        x = args[0] if args else next(iter(kwargs.values()))
        recording.record(layers, module, x.detach())
        if not output.requires_grad:  # nothing below needs a gradient: the graph starts at a leaf of our own
            output = output.detach().requires_grad_()
        edge = get_gradient_edge(output)
        if output.is_leaf or output._is_view():
            # an in-place operation is refused on a leaf, and rewrites a view's history: the same numbers as neither
            output = torch.ops.aten._unsafe_view(output, output.shape)
        for layer in layers:
            recording.calls.setdefault(layer.name, []).append((module, edge))
        return output

    return hook


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


def forward(model: nn.Module, layers: dict[str, Layer], inputs: Any, size: int, *, raw: bool = False) -> Recording:
    """Run the model on a batch of ``size`` examples and record the chosen layers; raw=True, their inputs as they came.

    Raises RuntimeError for a model in train mode with BatchNorm or Dropout or one that draws random numbers,
    ValueError for a layer that took no part, a batch axis that is not first, or rows that are not as they were shown.
    """
    check_mode(model)
    if torch.is_inference_mode_enabled():
        raise RuntimeError(
            "called inside torch.inference_mode(), where no gradient can be taken; expected to be outside of it. "
            "Use torch.no_grad() instead, or nothing: inflib leaves no gradients behind."
        )
    with watching(layers, None if raw else size) as recording, frozen(model), torch.enable_grad():
        recording.outputs = call(model, inputs)
    if missing := [name for name in layers if name not in recording.calls]:
        also = f", nor did {len(missing) - 1} others ({', '.join(missing[1:4])}, ...)" if len(missing) > 1 else ""
        raise ValueError(
            f"layer {missing[0]!r} took no part in the forward pass (its module was never called){also}; expected "
            f"every chosen layer to be used. {leave_out(missing, layers)}"
        )
    if recording.outputs.shape[:1] != (size,):
        raise ValueError(
            f"the model's output has shape {tuple(recording.outputs.shape)}; expected {size}, the number of targets, "
            "as its first axis. Have forward return one row per example: outputs.reshape(B, ...)."
        )
    if not recording.outputs.requires_grad:
        raise ValueError(
            "the model's output is cut off from all of its layers (computed under no_grad, or detached); expected a "
            "differentiable forward pass. Remove torch.no_grad() and .detach() from the model's forward."
        )
    recording.calls = {name: recording.calls[name] for name in layers}  # in the layers' order, not the calls'
    return recording


def pairs(recording: Recording, objective: Objective, targets: Any, measurement: Any = None) -> Captured:
    """One backward pass through a recording → {layer: Pair(a, g)}."""
    objective.check(recording.outputs, targets)
    seed = output_gradient(values_of(objective, measurement), recording.outputs, targets)
    g = recording.gradients(seed, last=True)
    found = Captured((name, Pair(recording.activations[name], g[name])) for name in recording.calls)
    found.lengths = {name: tuple(lengths) for name, lengths in recording.lengths.items()}
    return found


def values_of(objective: Objective, measurement: Any = None) -> Callable[[Tensor, Any], Tensor]:
    """The function (outputs, targets) → (B,) that is differentiated: the loss, or a measurement."""
    if measurement is None:
        return objective.loss
    return lambda outputs, targets: objective.measure(measurement, outputs, targets)


def checked_outputs(
    model: nn.Module, objective: Objective, batch: Batch, parameters: dict[str, Tensor] | None = None
) -> Tensor:
    """The model's outputs (B, ...) without a recording, once inputs, targets and outputs are seen to fit together."""
    check_batch(objective, batch.inputs, batch.targets)
    outputs = call(model, batch.inputs, parameters)
    objective.check(outputs, batch.targets)
    return outputs
