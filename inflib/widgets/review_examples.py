"""Labelled examples to review: what the model reads, the label, and what a person looks at, a picture or a text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from ..batches import Data, mapped, tensors
from .base import png_address

MOST = 160  # pixels along a side; larger pictures are shown coarser


class Labelled(Protocol):
    """Has ``images`` or ``texts`` beside these: ``Examples``, or ``inflib.lab.Digits``."""

    @property
    def inputs(self) -> Any: ...  # (N, ...), or a tuple or dict of such tensors

    @property
    def labels(self) -> Tensor: ...  # (N,) int64


class Examples:
    """N labelled examples of anybody's.

    inputs: (N, ...) what the model reads, or a tuple or dict of such tensors; labels (N,) class numbers.
    images: n → (H, W) or (H, W, 3) uint8, any sequence of them; or texts: n → a string.
    ink:    whether grey images are white on black, as MNIST's are, and to be shown as ink on paper.
    names:  n → what it is called, "scan_0017.png"; None for its number.

    Raises ValueError where these do not belong together.
    """

    def __init__(
        self,
        inputs: Any,
        labels: Tensor,
        *,
        images: Sequence[Any] | np.ndarray | None = None,
        texts: Sequence[str] | None = None,
        ink: bool = False,
        names: Callable[[int], str] | None = None,
    ) -> None:
        shown = images if images is not None else texts
        sizes = [len(x) for x in tensors(inputs)] + ([] if shown is None else [len(shown)])
        if (images is None) == (texts is None) or labels.ndim != 1 or {*sizes} != {len(labels)}:
            raise ValueError(
                f"labels {tuple(labels.shape)}, inputs and what is shown of {sizes} examples; expected labels "
                "(N,), as many inputs, and as many images or texts, one of the two."
            )
        self.inputs, self.labels, self.images, self.texts, self.ink = inputs, labels, images, texts, ink
        self.names = names or (lambda n: f"example {n:,}")


def shown(examples: Any, n: int) -> dict[str, object]:
    """What a person sees of example n: {"text": ...} or {"picture": a data: address, "colour": not to be inverted}."""
    if getattr(examples, "texts", None) is not None:
        return {"text": str(examples.texts[n])}
    image, ink = np.asarray(examples.images[n]), getattr(examples, "ink", True)
    step = -(-max(image.shape[:2]) // MOST)
    image = np.ascontiguousarray(image[::step, ::step])
    inverted = ink and image.ndim == 2
    return {"picture": png_address(255 - image if inverted else image), "colour": not inverted}


def name_of(examples: Any, n: int) -> str:
    """What example n is called: by the user, by its place in its data set, or its number."""
    if hasattr(examples, "names"):
        return str(examples.names(n))
    index = getattr(examples, "index", None)
    return f"example {n:,}" if index is None else f"example {n:,}, #{int(index[n])} of its data set"


def few(inputs: Any, rows: Sequence[int] | slice) -> Any:
    """The inputs of some examples."""
    return mapped(inputs, lambda x: x[rows])


def batches(model: nn.Module, inputs: Any, labels: Tensor, size: int = 500) -> Data:
    """(inputs, labels) batches on the model's device, floating inputs of its dtype."""
    weight = next(model.parameters())

    def placed(x: Tensor) -> Tensor:
        return x.to(weight) if x.is_floating_point() else x.to(weight.device)

    return [
        (mapped(few(inputs, slice(at, at + size)), placed), labels[at : at + size].to(weight.device))
        for at in range(0, len(labels), size)
    ]


@torch.no_grad()
def outputs_of(model: nn.Module, data: Data) -> Tensor:
    """The model's outputs (N, C), float64 on the CPU."""
    return torch.cat(list(_outputs(model, data)))


def _outputs(model: nn.Module, data: Data) -> Iterator[Tensor]:
    for inputs, _ in data:
        if isinstance(inputs, dict):
            found = model(**inputs)
        else:
            found = model(*inputs) if isinstance(inputs, tuple) else model(inputs)
        yield getattr(found, "logits", found).double().cpu()


def check_fits(
    signals: Mapping[str, Tensor], labels: Tensor, classes: Sequence[str], outputs: int, indexed: int
) -> None:
    """Refuse signals, labels, names and an index that are not of the same examples and classes."""
    N = len(labels)
    if indexed != N:
        raise ValueError(
            f"the index holds {indexed} examples, and {N} came; expected those it was built from, in order."
        )
    if labels.ndim != 1 or labels.is_floating_point() or not 0 <= int(labels.min()) <= int(labels.max()) < outputs:
        raise ValueError(
            f"labels of shape {tuple(labels.shape)} and type {labels.dtype} from {labels.min()} to {labels.max()}; "
            f"expected class numbers (N,) from 0 to {outputs - 1}, for the model has {outputs} outputs."
        )
    if len(classes) != outputs or len(set(classes)) != outputs:
        raise ValueError(f"{len(classes)} names of classes; expected {outputs}, each another, for the model's outputs.")
    for name, values in signals.items():
        if tuple(values.shape) != (N,) or not bool(torch.as_tensor(values).isfinite().all()):
            raise ValueError(f"signal {name!r} has shape {tuple(values.shape)}; expected {N} finite numbers.")
