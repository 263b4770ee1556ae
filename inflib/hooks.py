"""One forward and one backward pass → every layer's activations a and output gradients g.

For a layer f = W a, the gradient of one example's loss is Σ_t g_t a_tᵀ with g = dℓ/df (Grosse et al. 2023, eq. 14–15:
Dθ = a ⊗ g). So nothing but a and g is ever asked of autograd: a is read by a forward hook, g is the gradient at the
layer's *output*, reached through ``torch.autograd.graph.get_gradient_edge`` inside that hook. No weight gradient is
computed, and the model is as it was found afterwards, also after an exception: no hook, no .grad, no changed flag.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from .batches import Batch, batch_size, cached_bytes, call, chunks, double
from .layers import Layer, LayerSpec
from .objectives import Objective, output_gradient
from .positions import check_batch
from .selection import select

_TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3}  # of check_capture; half precision: 0.1
Matrices = dict[str, Tensor]  # layer → (K, o, i), a stack of K matrices


class Pair(NamedTuple):
    """One layer, one batch: activations a (B, T, i), their last feature 1 with a bias, and gradients g (B, T, o)."""

    a: Tensor
    g: Tensor

    def matrices(self) -> Tensor:
        """Per-example weight gradients Σ_t g_t a_tᵀ, (B, o, i)."""
        if self.a.shape[1] == 1:
            return self.g.mT * self.a  # (B, o, 1) · (B, 1, i)
        return torch.bmm(self.g.mT, self.a)


@dataclass
class Recording:
    """A forward pass through the watched layers: outputs (B, ...), activations, and the way back."""

    layers: dict[str, Layer]
    outputs: Tensor = field(default_factory=lambda: torch.empty(0))
    activations: dict[str, Tensor] = field(default_factory=dict)  # (B, T, i) per layer
    calls: dict[str, list[tuple[nn.Module, GradientEdge]]] = field(default_factory=dict)

    def gradients(self, seed: Tensor, *, last: bool = False) -> dict[str, Tensor]:
        """g (B, T, o) of every layer for Σ_b ⟨seed_b, outputs_b⟩, for one seed after another up to the ``last``."""
        edges = [edge for calls in self.calls.values() for _, edge in calls]
        with torch.enable_grad():
            total = (self.outputs * seed).sum()  # a scalar: for a given gradient torch would first import sympy
        found = torch.autograd.grad(total, edges, retain_graph=not last, allow_unused=True)
        gradients, at = {}, 0
        for name, calls in self.calls.items():
            parts = []
            for module, _ in calls:
                parts.append(self._positions(name, module, found[at]))
                at += 1
            gradients[name] = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
        return gradients

    def _positions(self, name: str, module: nn.Module, gradient: Tensor | None) -> Tensor:
        if gradient is None:
            raise ValueError(
                f"layer {name!r} took part in the forward pass, but its output does not reach the model's output "
                "(detached, computed under no_grad, or unused); expected a differentiable path. "
                "Leave the layer out with layers=."
            )
        return self.layers[name].own(self.layers[name].kind.gradients(module, gradient))


@contextmanager
def watching(layers: dict[str, Layer]) -> Iterator[Recording]:
    """Hooks on the chosen layers for the duration of a ``with``; they come off whatever happens inside."""
    recording = Recording(layers)
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
        x = args[0] if args else next(iter(kwargs.values()))
        features = layers[0].kind.activations(module, x.detach())
        for layer in layers:
            a = _with_ones(layer.own(features), layer.bias)
            if layer.name in recording.activations:  # called before: a tied layer's calls line up along T
                a = torch.cat([recording.activations[layer.name], a], dim=1)
            recording.activations[layer.name] = a
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


def forward(model: nn.Module, layers: dict[str, Layer], inputs: Any, size: int) -> Recording:
    """Run the model on a batch of ``size`` examples and record the chosen layers.

    Raises RuntimeError for a model in train mode with BatchNorm or Dropout or one that draws random numbers,
    ValueError for a layer that took no part, a batch axis that is not first, or activations that are not finite.
    """
    check_mode(model)
    if torch.is_inference_mode_enabled():
        raise RuntimeError(
            "called inside torch.inference_mode(), where no gradient can be taken; expected to be outside of it. "
            "Use torch.no_grad() instead, or nothing: inflib leaves no gradients behind."
        )
    with watching(layers) as recording, frozen(model), torch.enable_grad():
        recording.outputs = call(model, inputs)
    for name in layers:
        if name not in recording.activations:
            raise ValueError(
                f"layer {name!r} took no part in the forward pass (its module was never called); "
                "expected every chosen layer to be used. Leave it out with layers=."
            )
        a = recording.activations[name]
        if a.shape[0] != size or recording.outputs.shape[:1] != (size,):
            raise ValueError(
                f"layer {name!r} saw {a.shape[0]} rows and the model's output has shape "
                f"{tuple(recording.outputs.shape)}; expected {size}, the number of targets, as the first axis of both."
            )
    if not recording.outputs.requires_grad:
        raise ValueError(
            "the model's output is cut off from all of its layers (computed under no_grad, or detached); expected a "
            "differentiable forward pass. Remove torch.no_grad() and .detach() from the model's forward."
        )
    recording.calls = {name: recording.calls[name] for name in layers}  # in the layers' order, not the calls'
    return recording


def capture(
    model: nn.Module,
    objective: Objective,
    inputs: Any,
    targets: Any,
    layers: LayerSpec = None,
    measurement: Any = None,
) -> dict[str, Pair]:
    """One forward and one backward pass → {layer: Pair(a, g)} with g = dℓ/d(layer output).

    Σ_t g_t a_tᵀ (``pair.matrices()``) is each example's weight gradient, (o, i) with the bias as last column.
    With ``measurement`` given (a name, a callable) g is that measurement's gradient in place of the loss's.
    """
    chosen = select(model, layers)
    return pairs(model, chosen, objective, inputs, targets, batch_size(targets, "capture", 0), measurement)


def pairs(
    model: nn.Module,
    layers: dict[str, Layer],
    objective: Objective,
    inputs: Any,
    targets: Any,
    size: int,
    measurement: Any = None,
) -> dict[str, Pair]:
    """``capture`` for layers already selected."""
    check_batch(objective, inputs, targets)
    recording = forward(model, layers, inputs, size)
    objective.check(recording.outputs, targets)
    if measurement is None:
        seed = output_gradient(objective.loss, recording.outputs, targets)
    else:
        seed = output_gradient(lambda f, y: objective.measure(measurement, f, y), recording.outputs, targets)
    g = recording.gradients(seed, last=True)
    return {name: Pair(recording.activations[name], g[name]) for name in layers}


def checked_outputs(
    model: nn.Module, objective: Objective, batch: Batch, parameters: dict[str, Tensor] | None = None
) -> Tensor:
    """The model's outputs (B, ...) without a recording, once inputs, targets and outputs are seen to fit together."""
    check_batch(objective, batch.inputs, batch.targets)
    outputs = call(model, batch.inputs, parameters)
    objective.check(outputs, batch.targets)
    return outputs


# --- checks ----------------------------------------------------------------------------------------------------


def check_mode(model: nn.Module) -> None:
    """Raise RuntimeError for a module whose mode makes one example's output depend on others or on luck."""
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
            raise RuntimeError(
                f"module {name!r} ({type(module).__name__}) keeps no running statistics, so an "
                "example's output depends on its batch in eval mode too; expected one output per example. "
                "Use track_running_stats=True, or a LayerNorm or GroupNorm."
            )
        if not module.training:
            continue
        rate = module.p if isinstance(module, nn.modules.dropout._DropoutNd) else getattr(module, "dropout", 0.0)
        drops = isinstance(rate, (int, float)) and rate > 0
        if drops or isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise RuntimeError(
                f"module {name!r} ({type(module).__name__}) is in train mode, so an example's output depends on "
                "the batch or on chance; expected eval mode. Call model.eval() first."
            )


def check_finite(what: str, values: dict[str, Tensor], batch: int) -> None:
    """Raise FloatingPointError naming the layer, the quantity and the batch where some layer's value is not finite."""
    # a sum is finite unless a term is not, or it overflows: only then is every number looked at. All layers in one
    # question, because a GPU's queue has to be waited for to answer it.
    totals = [x.sum(dtype=torch.promote_types(x.dtype, torch.float32)) for x in values.values()]
    if not totals or bool(torch.stack(totals).isfinite().all()):
        return
    for name, value in values.items():
        if not bool(torch.isfinite(value).all()):
            raise FloatingPointError(
                f"layer {name!r}: {what} of batch {batch} hold NaN or infinity; expected finite numbers. "
                "Look at that batch's inputs and loss, or use a wider dtype (float32 in place of half precision)."
            )


def check_capture(
    model: nn.Module, layers: dict[str, Layer], objective: Objective, inputs: Any, targets: Any, size: int
) -> None:
    """Compare Σ_n Σ_t g aᵀ with autograd's own weight gradient on one batch; raise ValueError where they differ.

    This is what notices a weight used outside its module, a registered type that is read wrongly, or a forward
    pass that hooks cannot follow. Untied layers are not compared.
    """
    compared = {name: layer for name, layer in layers.items() if not layer.untied}
    names = [n for layer in compared.values() for n in (layer.weight_name, layer.bias_name) if n is not None]
    captured = pairs(model, layers, objective, inputs, targets, size)
    if not names:
        return
    for name, layer in layers.items():
        shape_a, shape_g = captured[name].a.shape, captured[name].g.shape
        fits = len(shape_a) == len(shape_g) == 3 and shape_a[:2] == shape_g[:2]
        if not fits or (shape_g[2], shape_a[2]) != layer.shape:
            raise ValueError(
                f"layer {name!r} ({type(layer.modules[0]).__name__}): its activations (B, T, i) came as "
                f"{tuple(shape_a)}, its output gradients (B, T, o) as {tuple(shape_g)}; expected {layer.shape}, "
                "the shape of its weight matrix, and equal B and T. Its type is registered wrongly: see "
                "inflib.register, and its transposed=."
            )
    built = {name: _summed(captured.pop(name)) for name in compared}  # and the pairs are gone before autograd's graph
    weights = {n: p.detach().requires_grad_() for n, p in model.named_parameters() if p.is_floating_point()}
    with torch.enable_grad():
        loss = objective.loss(call(model, inputs, weights), targets).sum()
        truth = dict(zip(names, torch.autograd.grad(loss, [weights[n] for n in names], allow_unused=True), strict=True))
    for name, layer in compared.items():
        parts = {n: torch.zeros_like(weights[n]) if truth[n] is None else truth[n] for n in truth}
        total, scale = built.pop(name)
        error = float((total - double(layer.join(parts))).norm() / scale.clamp_min(1e-300))
        if error > _TOLERANCE.get(layer.weight.dtype, 0.1):
            raise ValueError(
                f"layer {name!r}: the weight gradient built from its activations and output gradients differs from "
                f"autograd's by {error:.2g} (relative, first batch); expected them equal. Either the weight is used "
                "outside its module too (then leave it out with layers=, or count this use only: layers=untied(...)), "
                "or its type is registered wrongly (see inflib.register)."
            )


def _summed(pair: Pair) -> tuple[Tensor, Tensor]:
    """Σ_n Σ_t g aᵀ in float64, and the norm it would have without cancellation, Σ |g| |a|ᵀ's: rounding's yardstick."""
    a, g = (x.flatten(0, 1) for x in pair)
    total = double(g.new_zeros(g.shape[1], a.shape[1]))
    scale = torch.zeros_like(total)
    for rows in chunks(len(a), 32 * (a.shape[1] + g.shape[1]), cached_bytes(a)):
        some_a, some_g = double(a[rows]), double(g[rows])
        total += some_g.T @ some_a
        scale += some_g.abs().T @ some_a.abs()
    return total, scale.norm()
