"""What comes from outside: inputs that a model may write into or does not take, models and names that are none.

A model is run more than once on a batch, and on parts of it, so a forward that changes its inputs in place
(``x -= self.mean``) would see other numbers each time. It is given copies: the first time it is run, and from then on
where it was seen to write.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from .batches import mapped, say, tensors

_WRITES: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()  # whether a model changes its inputs in place


@contextmanager
def given(model: nn.Module, inputs: Any) -> Iterator[Any]:
    """The inputs to run the model on, or copies of them; ValueError where one that was no copy has been written into.

    Tensors made under torch.inference_mode(), which no gradient can be taken beside, are copied too.
    """
    copies = _WRITES.get(model, True)
    inputs = mapped(inputs, lambda x: x.clone() if _plain(x) and (copies or x.is_inference()) else x)
    before = _versions(inputs)
    yield inputs
    if _versions(inputs) == before:
        _WRITES.setdefault(model, False)
        return
    _WRITES[model] = True
    if not copies:
        raise ValueError(
            "the model changes its inputs in place, which it did not when it was run before, so that a second pass "
            "would see other numbers; expected inputs to stay as they are. Write x = x - mean in its forward, not "
            "x -= mean. This batch's tensors hold what it wrote: load them anew."
        )


def _plain(x: Tensor) -> bool:
    return x.layout == torch.strided and not x.is_nested


def _versions(inputs: Any) -> list[int]:
    """How often each of the inputs has been written into."""
    return [x._version for x in tensors(inputs) if _plain(x) and not x.is_inference()]


@contextmanager
def explained(model: nn.Module, args: tuple, kwargs: Mapping[str, Any]) -> Iterator[None]:
    """Python's error about arguments that the model's forward does not take, in words about the batch's inputs."""
    try:
        yield
    except TypeError as error:
        text = _unfitting(model, args, kwargs, error)
        if text is None:
            raise
        raise TypeError(text) from None


def _unfitting(model: nn.Module, args: tuple, kwargs: Mapping[str, Any], error: TypeError) -> str | None:
    """What is said of inputs that a forward does not take; None where its error is about something else."""
    came = f"a dict with {', '.join(map(repr, kwargs))}" if kwargs else f"{len(args)} ({', '.join(map(say, args))})"
    taken = inspect.signature(model.forward)
    try:
        taken.bind(*args, **kwargs)
    except TypeError as unbound:
        return (
            f"the model's forward takes {taken}, the batch's inputs are {came}: {unbound}; expected inputs that it "
            "takes. A dict's names are its arguments' (take out columns that are none), a tuple is one for each; where "
            "it takes a dict, a tuple or an object itself, give a tuple of that one: ((inputs,), targets)."
        )
    if any(f"unexpected keyword argument {name!r}" in str(error) for name in kwargs):
        return (
            f"the model does not take {came}: {error}; expected a dict whose names are its forward's arguments. Take "
            "out the columns that are none."
        )
    if "must be Tensor, not" in str(error):
        return (
            f"the batch's inputs are {came}, and a layer was given what is no tensor: {error}; expected tensors. "
            "Convert them: torch.as_tensor(x)."
        )
    return None


# --- the model, and names in it -------------------------------------------------------------------------------------


def check_module(model: Any) -> None:
    """Raise TypeError for what is no torch module: a trainer, a pipeline, another argument in its place."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model came as a {type(model).__name__}; expected a torch.nn.Module. Give the module itself.")


def check_names(model: nn.Module, wanted: Any) -> None:
    """Raise TypeError for layers= that are no names: the modules themselves, numbers."""
    if wanted is None or isinstance(wanted, str) or (callable(wanted) and not isinstance(wanted, nn.Module)):
        return
    parts = list(wanted) if isinstance(wanted, Iterable) and not isinstance(wanted, nn.Module) else [wanted]
    other = next((part for part in parts if not isinstance(part, str)), None)
    if other is not None:
        name = next((name for name, module in model.named_modules() if module is other and name), "blocks.*")
        raise TypeError(
            f"layers= holds a {type(other).__name__}; expected names of modules, as in model.named_modules(), a glob "
            f"or a predicate of (name, module). Give layers={name!r}, or a list of names."
        )


def check_model(model: nn.Module) -> None:
    """Raise TypeError for what is no module, ValueError for one whose layers or weights are not to be had."""
    check_module(model)
    if isinstance(model, torch.jit.ScriptModule):
        raise ValueError(
            f"the model is a {type(model).__name__}, compiled by torch.jit, whose layers no hook can watch; expected "
            "the module that it was made from. Give that one, with the same state dict."
        )
    lazy = next((name for name, p in model.named_parameters() if is_lazy(p)), None)
    if lazy is not None:
        raise ValueError(
            f"parameter {lazy!r} has no shape yet (a lazy module that has seen no input); expected a model whose "
            "weights are there. Run it on a batch once, model(x), before it is trained."
        )
    for name, p in model.named_parameters():
        if p.is_inference():
            raise ValueError(
                f"parameter {name!r} was made under torch.inference_mode(), so that no gradient can be asked of it; "
                "expected others. Build or load the model outside of it, under torch.no_grad() at most."
            )
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        raise ValueError(
            f"the model is wrapped in {type(model).__name__}, which splits batches and renames layers "
            "('module.…'); expected the model itself. Pass model.module: it is the same model, with the same weights."
        )
