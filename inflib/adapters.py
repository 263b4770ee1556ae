"""Adapters beside a frozen weight, as PEFT makes them: y = W x + B A x, where A and B are layers of their own.

What was trained is what counts, so of an adapted model the adapters are the layers. Said before the fit, rather than by
an eigenvalue of 0 or a layer that no forward pass reaches: adapters that were never trained (B begins at 0, and A's
gradient, Bᵀ g xᵀ, is 0 with it), that are merged into W, switched off, or not the active ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import nn

from .layers import Layer

SECOND = ("lora_B",)  # what an adapter's second matrix is called, which begins at 0
MOST = 4  # names that a message shows


class Adapter(NamedTuple):
    """A chosen layer that is a matrix of an adapter."""

    layer: Layer
    module: Any  # the adapted module, which holds all its adapters
    at: str  # its name in the model
    part: str  # "lora_A", "lora_B"
    name: str  # of the adapter: "default"


def check_adapters(model: nn.Module, layers: dict[str, Layer]) -> None:
    """Raise ValueError where a chosen adapter is merged, switched off, not active, or never was trained."""
    found = list(_adapters(model, layers))
    _refuse(
        [a.at for a in found if a.name in getattr(a.module, "merged_adapters", ())],
        "merged into their weights, and take no part in the forward pass",
        "Take them out again, model.unmerge_adapter(), or let the weights count that they were merged into: "
        "model.merge_and_unload(), and layers= with their names",
    )
    _refuse(
        [a.at for a in found if a.module.disable_adapters is True],
        "switched off (disable_adapter_layers)",
        "Switch them on: model.enable_adapter_layers()",
    )
    others = sorted({a.name for a in found if a.name not in a.module.active_adapters})
    _refuse(
        [a.at for a in found if a.name in others],
        f"of the adapter {', '.join(map(repr, others))}, which is not active",
        f"Make it the active one, model.set_adapter({others[0] if others else ''!r}), or leave its layers out, "
        "layers='*.NAME' with the active adapter's name",
    )
    _refuse(
        [a.at for a in found if a.part in SECOND and not bool(a.layer.weight.any())],
        "as they were made: their second matrix, B, is 0, so that their first has no gradient",
        "Train them first, or load what was trained (PeftModel.from_pretrained); leave out with layers= those that "
        "training never reached",
    )


def _adapters(model: nn.Module, layers: dict[str, Layer]) -> Iterator[Adapter]:
    """The chosen layers NAME of modules ``at.part.NAME``, where ``at`` is a module that PEFT has adapted."""
    modules = dict(model.named_modules())
    for full, layer in layers.items():
        at, part, name = ("", "", *full.rsplit(".", 2))[-3:]
        module: Any = modules.get(at)
        if part == "base_layer":  # the adapted module's own bias, trained beside its adapters (bias="all")
            continue
        # transformers' models have both names too, as methods
        if isinstance(getattr(module, "active_adapters", None), (list, tuple)) and hasattr(module, "disable_adapters"):
            yield Adapter(layer, module, at, part, name)


def _refuse(names: list[str], what: str, fix: str) -> None:
    if names:
        shown = list(dict.fromkeys(names))
        more = f" and {len(shown) - MOST} more" if len(shown) > MOST else ""
        raise ValueError(
            f"the adapters of {', '.join(shown[:MOST])}{more} are {what}; expected trained adapters that the forward "
            f"pass applies. {fix}."
        )
