"""Calling the user's model as it is: where it lies, in which mode, and so that nothing of it has changed afterwards."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from .batches import say, tensors
from .randomness import preserved_rng


def call(model: nn.Module, inputs: Any, parameters: dict[str, Tensor] | None = None) -> Tensor:
    """The model's output on a batch, as one tensor (B, ...); ``parameters``, if given, stand in for the model's own.

    Buffers that the forward pass changes are put back. Raises RuntimeError for a model that draws random numbers.
    """
    check_placement(model, inputs)
    args: tuple = (inputs,)
    kwargs: Mapping[str, Any] = {}
    if isinstance(inputs, Mapping):
        args, kwargs = (), inputs
    elif isinstance(inputs, (tuple, list)):
        args = tuple(inputs)
    with _as_found(model):
        if parameters is None:
            outputs = model(*args, **kwargs)
        else:
            outputs = functional_call(model, parameters, args, dict(kwargs))
    outputs = getattr(outputs, "logits", outputs)
    if not isinstance(outputs, Tensor):
        raise TypeError(
            f"the model returned {say(outputs)}; expected a tensor or an object with .logits. "
            "Wrap the model in a module that returns the tensor the loss is computed from."
        )
    return outputs


@contextmanager
def _as_found(model: nn.Module) -> Iterator[None]:
    """Put back what a forward pass changes (running statistics, the random generator); raise if it drew numbers."""
    held = [(m, k, b, b.clone(), b._version) for m in model.modules() for k, b in m._buffers.items() if b is not None]
    generators = _generators(model)
    states = [generator.get_state() for generator in generators]
    drew = False
    try:
        with preserved_rng(generators):
            yield
            drew = any(not torch.equal(g.get_state(), s) for g, s in zip(generators, states, strict=True))
    finally:
        for module, key, buffer, before, version in held:
            if buffer._version != version:
                with torch.no_grad():
                    buffer.copy_(before)
            module._buffers[key] = buffer
    if drew:
        raise RuntimeError(
            "the model draws random numbers in its forward pass (a functional dropout?); expected the same output "
            "every time. Call model.eval() first."
        )


def check_placement(model: nn.Module, inputs: Any) -> None:
    """Raise where inputs and model are on different devices, or floating inputs have another dtype."""
    weight = next((p for p in model.parameters() if p.is_floating_point()), None)
    if weight is None:
        return
    for x in tensors(inputs):
        if x.device != weight.device:
            raise ValueError(
                f"the inputs are on {x.device}, the model is on {weight.device}; expected one device. "
                f"Move the batches: [(x.to('{weight.device}'), y.to('{weight.device}')) for x, y in data]."
            )
        if x.is_floating_point() and x.dtype != weight.dtype and not torch.is_autocast_enabled():
            raise ValueError(
                f"the inputs are {x.dtype}, the model is {weight.dtype}; expected one dtype. "
                f"Convert one of them: x.to({weight.dtype}) or model.to({x.dtype})."
            )


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


def _generators(model: nn.Module) -> list[torch.Generator]:
    """torch's global generators that the model can draw from: the CPU's, and those of the GPUs it is on."""
    gpus = sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})
    return [torch.default_generator, *(torch.cuda.default_generators[index] for index in gpus)]
