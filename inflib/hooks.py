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
from typing import Any

import torch
from torch import Tensor, nn

from .batches import Batch
from .idle import check_idle
from .inside import watching_inside
from .layers import Layer
from .objectives import Objective, output_gradient
from .placement import call, check_mode, check_tokens
from .positions import check_batch
from .recording import (
    Captured,
    Matrices,
    Pair,
    Recording,
    RowsChangedError,
    aligned,
    check_rows,
    leave_out,
)

__all__ = [
    "Captured",
    "Matrices",
    "Pair",
    "Recording",
    "RowsChangedError",
    "aligned",
    "check_rows",
    "checked_outputs",
    "forward",
    "frozen",
    "leave_out",
    "pairs",
    "values_of",
    "watching",
]


@contextmanager
def watching(layers: dict[str, Layer], size: int, *, raw: bool = False) -> Iterator[Recording]:
    """Hooks on the chosen layers for the duration of a ``with``; they come off whatever happens inside."""
    recording = Recording(layers, size, raw)
    own: dict[nn.Module, list[Layer]] = {}  # several layers for a module in groups
    for layer in layers.values():
        for module in () if layer.kind.inside or layer.kind.one_hot else layer.modules:
            own.setdefault(module, []).append(layer)
    with ExitStack() as stack:
        for module, parts in own.items():
            # before the user's hooks, which may scale what the layer gave
            handle = module.register_forward_hook(_hook(recording, parts), with_kwargs=True, prepend=True)
            stack.callback(handle.remove)
        stack.enter_context(watching_inside(recording))
        yield recording


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Weights that ask for no gradient for the duration of a ``with``: autograd then keeps nothing for their sake."""
    asking = [p for p in model.parameters() if p.requires_grad]
    fused = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)  # fused attention, taken where no gradient is asked, skips hooks
        for p in asking:
            p.requires_grad_(False)
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for p in asking:
            p.requires_grad_(True)


def _hook(recording: Recording, layers: list[Layer]) -> Callable[..., Tensor | None]:
    def hook(module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Tensor) -> Tensor | None:
        return recording.seen([(layer, None) for layer in layers], module, args, kwargs, output)

    return hook


def forward(
    model: nn.Module,
    layers: dict[str, Layer],
    inputs: Any,
    size: int,
    *,
    raw: bool = False,
    weights: Iterable[str] = (),
) -> Recording:
    """Run the model on a batch of ``size`` examples and record the chosen layers; raw=True, their inputs as they came.

    ``weights`` names parameters whose gradients the recording can be asked for too: others stand in for them.
    Raises RuntimeError for a model in train mode with BatchNorm or Dropout or one that draws random numbers,
    ValueError for a layer that took no part, a batch axis that is not first, or rows that are not as they were shown.
    """
    check_mode(model)
    if torch.is_inference_mode_enabled():
        raise RuntimeError(
            "called inside torch.inference_mode(), where no gradient can be taken; expected to be outside of it. "
            "Use torch.no_grad() instead, or nothing: inflib leaves no gradients behind."
        )
    with watching(layers, size, raw=raw) as recording, frozen(model), torch.enable_grad(), _in_words(recording):
        if names := list(weights):
            check_tokens(model, inputs)
            standing_in = {n: p.detach() for n, p in model.named_parameters()}
            recording.weights = {n: standing_in[n].requires_grad_() for n in names}
            recording.outputs = call(model, inputs, standing_in)
        else:
            recording.outputs = call(model, inputs)
    check_idle(recording)
    if missing := [name for name in layers if name not in recording.calls]:
        raise ValueError(_unused(missing, layers))
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


@contextmanager
def _in_words(recording: Recording) -> Iterator[None]:
    """Torch's errors that recording gives rise to, as what they mean."""
    try:
        yield
    except RuntimeError as error:
        said = f"{str(error).splitlines()[0]:.120}"
        if "does not require grad" in said:
            raise ValueError(
                "the model's forward differentiates by its weights (torch.autograd.grad, .backward()), which ask for "
                f"no gradient while layers are recorded ({said}); expected a forward that takes none by them. Steps of "
                "training inside it give an example weights of its own: take them out, and fit at what they lead to."
            ) from None
        if recording.shared and "size" in said.lower():
            name = recording.shared[0]
            raise ValueError(
                f"layer {name!r} looked up ids once for all {recording.size} examples, which is read as once for each "
                f"of them, and the model then stopped ({said}); expected what it gives to be added to the batch, or "
                "expanded, not repeated. Give batches of one example, look up ids.expand(B, -1), or leave it out. "
                f"{leave_out([name], recording.layers)}"
            ) from None
        raise


def _unused(missing: list[str], layers: dict[str, Layer]) -> str:
    """What is said of layers that the model's output was made without, as far as could be seen."""
    also = f", nor did {len(missing) - 1} others ({', '.join(missing[1:4])}, ...)" if len(missing) > 1 else ""
    why, rewrite = "its module was never called", ""
    if layers[missing[0]].kind.inside:
        why = "none of F.linear, x @ W and x @ W.T was seen with its weight; einsum, bmm and their like are not"
        rewrite = "Write the product as x @ W, or register the module by what it is given and gives, inside=False. "
    elif ".lora_" in missing[0]:
        rewrite = (
            "PEFT merges an attention's adapters into its weights as it runs: model.merge_and_unload(), and name them. "
        )
    return (
        f"layer {missing[0]!r} took no part in the forward pass ({why}){also}; expected every chosen layer to be used. "
        f"{rewrite}{leave_out(missing, layers)}"
    )


def pairs(recording: Recording, objective: Objective, targets: Any, measurement: Any = None) -> Captured:
    """One backward pass through a recording, unless a look has made it → {layer: Pair(a, g)}."""
    if recording.arrived is not None:
        found = Captured(recording.pairs_arrived())
    else:
        objective.check(recording.outputs, targets)
        seed = output_gradient(values_of(objective, measurement), recording.outputs, targets)
        found = Captured(recording.pairs(seed, last=True))
    found.lengths = recording.every_length()
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
