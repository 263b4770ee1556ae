"""Which module types are understood, and what to say of one more.

Teach inflib a module type of your own with::

    register(MyLinear, activations=lambda module, x: x.flatten(1, -2), gradients=lambda module, g: g.flatten(1, -2))

A type of another library is registered by its full name, so that nothing has to be imported: transformers' Conv1D is.
On the first batch of every fit, capture is compared with autograd's own weight gradients (``proof``), so a wrong
registration is an error, not a wrong score.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from . import convolutions
from .elementwise import channels, features_last, is_normalisation
from .kinds import Kind, positions_last

_KINDS: dict[type[nn.Module] | str, tuple[Kind, ...]] = {}


def register(
    module_type: type[nn.Module] | str,
    activations: Callable[[Any, Tensor], Tensor] = positions_last,
    gradients: Callable[[Any, Tensor], Tensor] = positions_last,
    *,
    transposed: bool = False,
    weight: str = "weight",
    bias: str | None = "bias",
    groups: str | None = None,
    part: str = "",
    inside: bool = False,
) -> None:
    """Teach inflib that modules of ``module_type`` (and subclasses) apply one matrix at every position.

    module_type: the class, or its full name ("package.module.Class") where its library may not be installed.
    activations: (module, input) → (B, T, i), T the positions at which the matrix is applied.
    gradients:   (module, gradient at the output) → (B, T, o), positions in the same order.
    transposed:  True where the weight is stored (i, o). weight, bias: the parameters' names on the module.
    groups:      the module's attribute that counts matrices applied side by side, each to its share of the features;
                 activations and gradients then hold all shares, one after the other.
    part:        for a module with several matrices, each registered by itself: what follows the module's name in the
                 layer's, "mixer.up".
    inside:      True where the product is not the module's output but one that its forward makes on the way, by
                 F.linear(x, W, b), x @ W.T, or with transposed=True x @ W (an einsum is not seen). activations and
                 gradients then read x and the product's gradient; a bias that is added to ``x @ W`` afterwards is none
                 of its: bias=None.

    A module that holds its weights as plain parameters, y = relu(x @ W1) @ W2::

        register(Mixer, weight="W1", bias=None, transposed=True, part="W1", inside=True)
        register(Mixer, weight="W2", bias=None, transposed=True, part="W2", inside=True)
    """
    kind = Kind(activations, gradients, transposed, weight, bias, groups, part, inside=inside)
    others = [other for other in _KINDS.get(module_type, ()) if part and other.part and other.part != part]
    _KINDS[module_type] = (*others, kind)


# --- what is understood from the start ------------------------------------------------------------------------------

register(nn.Linear, positions_last, positions_last)
for _convolution in (nn.Conv1d, nn.Conv2d, nn.Conv3d):
    register(_convolution, convolutions.patches, convolutions.positions, groups="groups")
register("transformers.pytorch_utils.Conv1D", positions_last, positions_last, transposed=True)  # GPT-2's linear layer


def alone(kind: Kind) -> Kind:
    """A kind's bias as a layer of its own, "name.bias", one number an output."""
    assert kind.bias is not None
    part = f"{kind.part}.bias" if kind.part else "bias"
    return replace(
        kind, weight=kind.bias, bias=None, part=part, groups=None, transposed=False, elementwise=True, scales=False,
        standing=False,
    )  # fmt: skip


_PATCHES = Kind(
    convolutions.input_positions, convolutions.output_patches, transposed=True, groups="groups"
)  # whose bias is no column of the matrix
_SHIFT = replace(alone(_PATCHES), gradients=convolutions.positions, standing=True)
_KINDS |= dict.fromkeys(
    (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), (replace(_PATCHES, bias=None), _SHIFT)
)

_LAST = Kind(features_last, features_last, elementwise=True, scales=True, usual=False)
_CHANNELS = replace(_LAST, activations=channels, gradients=channels)
_KINDS |= dict.fromkeys((nn.LayerNorm, nn.RMSNorm), (_LAST,))
_KINDS |= dict.fromkeys(
    (nn.GroupNorm, nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm), (_CHANNELS,)
)

_KINDS[nn.Embedding] = (Kind(positions_last, positions_last, transposed=True, bias=None, one_hot=True, usual=False),)

_JOINT = [  # one weight for queries, keys and values, by thirds
    Kind(
        positions_last, positions_last, weight="in_proj_weight", bias="in_proj_bias", part=part, share=(k, 3),
        inside=True,
    )
    for k, part in enumerate("qkv")
]  # fmt: skip
_THREE = [  # one each, where keys or values have widths of their own (kdim, vdim); their biases are one parameter still
    Kind(positions_last, positions_last, weight=f"{part}_proj_weight", bias=None, part=part, inside=True)
    for part in "qkv"
]
_BIASES = [replace(alone(kind), standing=True, without="in_proj_weight") for kind in _JOINT]
_KINDS[nn.MultiheadAttention] = (*_JOINT, *_THREE, *_BIASES)
_KINDS[nn.modules.linear.NonDynamicallyQuantizableLinear] = (Kind(positions_last, positions_last, inside=True),)


def kinds_of(module: nn.Module) -> tuple[Kind, ...]:
    """The Kinds that a module is read by; none for a type that is not understood, or without its weight."""
    known = (key for t in type(module).__mro__ for key in (t, f"{t.__module__}.{t.__qualname__}") if key in _KINDS)
    kinds = next((_KINDS[key] for key in known), ())
    if not kinds and is_normalisation(module):
        kinds = (_LAST,)
    if isinstance(module, nn.Embedding) and module.max_norm is not None:  # it changes its weight as it is read
        return ()
    if isinstance(module, nn.MultiheadAttention) and module.bias_k is None and not module.add_zero_attn:
        kinds = tuple(kind for kind in kinds if kind.part != "k.bias")  # a softmax sees no shift that all keys share
    held = {name for name, p in module._parameters.items() if p is not None}
    return tuple(kind for kind in kinds if kind.weight in held and kind.without not in held)


def kind_of(module: nn.Module) -> Kind | None:
    """The first Kind that a module is read by, or None."""
    return next(iter(kinds_of(module)), None)


def forward_of_its_own(module: Any) -> bool:
    """Whether a module's class extends one that is understood, and writes its forward anew."""
    known = next((t for t in type(module).__mro__ if t in _KINDS or f"{t.__module__}.{t.__qualname__}" in _KINDS), None)
    return known is not None and type(module).forward is not getattr(known, "forward", None)
