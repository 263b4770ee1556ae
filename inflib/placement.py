"""Calling the user's model as it is: where it lies, in which mode, and so that nothing of it has changed afterwards.

The model runs under the user's own autocast, inflib's products do not (``plain_numbers``); its outputs are
differentiated in float32 at least. Checkpoints and compiled graphs are passed over: hooks see every layer, once.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from functools import wraps
from threading import RLock
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils import checkpoint as checkpoints

from .batches import accumulator, say, tensors
from .fingerprints import say_setting
from .givens import check_module, explained, given
from .noted import attributes, note_changes
from .randomness import preserved_rng
from .texts import check_ids, context_of

P = ParamSpec("P")
R = TypeVar("R")


def call(model: nn.Module, inputs: Any, parameters: dict[str, Tensor] | None = None) -> Tensor:
    """The model's output on a batch, as one tensor (B, ...); ``parameters``, if given, stand in for the model's own.

    In float32 at least, so that the loss and its derivatives are. Buffers that the forward pass changes are put back.
    Raises RuntimeError for a model that draws random numbers, ValueError for tokens that it has no rows for.
    """
    with given(model, inputs) as inputs:
        outputs = _called(model, inputs, parameters)
    outputs = getattr(outputs, "logits", outputs)
    if not isinstance(outputs, Tensor):
        raise TypeError(
            f"the model returned {say(outputs)}; expected a tensor or an object with .logits. "
            "Wrap the model in a module that returns the tensor the loss is computed from."
        )
    return outputs.to(accumulator(outputs.dtype)) if outputs.is_floating_point() else outputs


def _called(model: nn.Module, inputs: Any, parameters: dict[str, Tensor] | None) -> Any:
    args: tuple = (inputs,)
    kwargs: Mapping[str, Any] = {}
    if isinstance(inputs, Mapping):
        args, kwargs = (), inputs
    elif isinstance(inputs, (tuple, list)):
        args = tuple(inputs)
    with _as_found(model), _users_autocast(), _without_checkpoints(), _uncompiled():
        check_placement(model, inputs)
        with explained(model, args, kwargs):
            if parameters is not None:
                return functional_call(model, parameters, args, dict(kwargs))
            check_tokens(model, inputs)
            return model(*args, **kwargs)


@contextmanager
def _as_found(model: nn.Module) -> Iterator[None]:
    """Put back what a forward pass changes (running statistics, the random generator); raise if it drew numbers.

    Parameters too: torch's functional_call puts those of a module that has two names, and whose weight another module
    has too, back as the tensors that stood in for them.
    """
    parameters = [(m._parameters, k, p) for m in model.modules() for k, p in m._parameters.items()]
    held = [(m, k, b, b.clone(), b._version) for m in model.modules() for k, b in m._buffers.items() if b is not None]
    notes = attributes(model)
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
        for own, key, parameter in parameters:
            own[key] = parameter
        note_changes(notes, say_setting)
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
        if x.is_nested or x.layout != torch.strided:
            kind, fix = (
                ("nested", "torch.nested.to_padded_tensor(x, 0.0), with a mask")
                if x.is_nested
                else (f"{x.layout}".removeprefix("torch."), "x.to_dense()")
            )
            raise ValueError(
                f"an input is a {kind} tensor; expected plain ones, whose first axis is the examples'. Give {fix}."
            )
        if x.device != weight.device:
            raise ValueError(
                f"the inputs are on {x.device}, the model is on {weight.device}; expected one device. "
                f"Move the batches: [(x.to('{weight.device}'), y.to('{weight.device}')) for x, y in data]."
            )
        if x.is_floating_point() and x.dtype != weight.dtype and not torch.is_autocast_enabled(x.device.type):
            raise ValueError(
                f"the inputs are {x.dtype}, the model is {weight.dtype}; expected one dtype. "
                f"Convert one of them: x.to({weight.dtype}) or model.to({x.dtype})."
            )


def check_tokens(model: nn.Module, inputs: Any) -> None:
    """Raise ValueError for token ids, or positions, that a Hugging Face model's embeddings have no row for.

    On a GPU the look-up itself would end the process's use of it, on a CPU it says no more than "out of range".
    """
    ids = inputs.get("input_ids") if isinstance(inputs, Mapping) else next(tensors(inputs), None)
    if not isinstance(ids, Tensor) or ids.is_floating_point() or ids.ndim < 2 or ids.numel() == 0:
        return
    check_ids(model, [int(ids.max())])
    most, T, words = context_of(model), ids.shape[1], getattr(model, "get_input_embeddings", lambda: None)()
    learnt = [m.num_embeddings for m in model.modules() if isinstance(m, nn.Embedding) and m is not words]
    if most is not None and most < T and any(most <= rows < T for rows in learnt):
        raise ValueError(
            f"a sequence of {T} positions came, and the model has learned {most}; expected no longer ones. Cut them: "
            f"[ids[:{most + 1}] for ids in sequences] (the last token of each is only predicted)."
        )


# --- autocast and checkpoints -------------------------------------------------------------------------------------

_AUTOCAST: ContextVar[tuple[tuple[str, torch.dtype], ...]] = ContextVar(
    "autocast", default=()
)  # (device, dtype) in force


def autocast_in_force() -> tuple[tuple[str, torch.dtype], ...]:
    """Under which autocasts, (device, dtype), the model is called."""
    return _AUTOCAST.get()


_ONE_AT_A_TIME = RLock()


def plain_numbers(function: Callable[P, R]) -> Callable[P, R]:
    """Decorates what a user calls: inside, only the model runs under the autocast that the call came from.

    One thread at a time: hooks would hear another's pass through the same model.
    """

    @wraps(function)
    def plain(*args: P.args, **kwargs: P.kwargs) -> R:
        with _ONE_AT_A_TIME:
            return without_autocast(*args, **kwargs)

    def without_autocast(*args: P.args, **kwargs: P.kwargs) -> R:
        devices = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
        asked = tuple((d, torch.get_autocast_dtype(d)) for d in devices if torch.is_autocast_enabled(d))
        if not asked:
            return function(*args, **kwargs)
        token = _AUTOCAST.set(asked)
        try:
            with ExitStack() as stack:
                for device, _ in asked:
                    stack.enter_context(torch.autocast(device, enabled=False))
                return function(*args, **kwargs)
        finally:
            _AUTOCAST.reset(token)

    return plain


@contextmanager
def _users_autocast() -> Iterator[None]:
    with ExitStack() as stack:
        for device, dtype in _AUTOCAST.get():
            stack.enter_context(torch.autocast(device, dtype=dtype))
        yield


@contextmanager
def _without_checkpoints() -> Iterator[None]:
    """torch.utils.checkpoint runs its function and forgets nothing: a second run of it in the backward pass would be
    one that no hook expects (reentrant ones hide their graph from autograd.grad altogether)."""
    held = {name: getattr(checkpoints, name) for name in _PLAIN if hasattr(checkpoints, name)}
    try:
        for name in held:
            setattr(checkpoints, name, _PLAIN[name])
        yield
    finally:
        for name, own in held.items():
            setattr(checkpoints, name, own)


@contextmanager
def _uncompiled() -> Iterator[None]:
    """What torch.compile made runs as it was written: a compiled graph knows nothing of our hooks.

    Modules, their methods, and functions that a forward calls: where torch's compiler was ever loaded, any of them.
    """
    if "torch._dynamo" not in sys.modules:
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


class _Plain:
    @staticmethod
    def apply(function: Callable[..., Any], _preserve_rng_state: bool, *args: Any) -> Any:
        return function(*args)


def _plain_generator(*_args: Any, **_kwargs: Any) -> Iterator[None]:
    yield


_PLAIN: dict[str, Any] = {
    "CheckpointFunction": _Plain,
    "_checkpoint_without_reentrant_generator": _plain_generator,
    "_checkpoint_without_reentrant_generator_impl": _plain_generator,  # its name from torch 2.14 on
}


# --- modes -------------------------------------------------------------------------------------------------------


def check_mode(model: nn.Module) -> None:
    """Raise RuntimeError for a module whose mode makes one example's output depend on others or on luck.

    Raises ValueError for weights of which a process holds only a part.
    """
    check_module(model)
    for name, parameter in model.named_parameters():
        if type(parameter.data).__name__ == "DTensor":
            raise ValueError(
                f"parameter {name!r} is sharded over processes (fully_shard); expected whole weights in every process, "
                "so build the model anew in each and load its full state dict into it."
            )
        if parameter.is_meta:
            raise ValueError(
                f"parameter {name!r} is on the meta device: it has a shape and no numbers (init_empty_weights, weights "
                "offloaded to disk); expected weights that are there. Load them, without device_map, before you ask."
            )
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
