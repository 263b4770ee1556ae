"""Segmentation: a label at every pixel, an image's loss the sum over those that count.

    ℓ_n = Σ_{pixels that count} −log p(label | image)            H_out: one block W_p (diag(p_p) − p_p p_pᵀ) a pixel

A training loss that was a mean over pixels is a weighted sum: ``Weighted(PixelCrossEntropy())`` with an image's weight
1 / (its pixels that count) is that, image by image.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ..batches import double
from .checks import TooManySeedsError, check_device
from .derivatives import output_gradient
from .objective import Objective
from .sampling import inverse_cdf
from .softmax import SoftmaxTerms, check_classes, softmax_seeds


class PixelCrossEntropy(Objective):
    """Softmax cross-entropy of logits (B, C, H, W) and masks of class indices (B, H, W), summed over the pixels.

    ignore_index is the label of pixels that are in no loss (void, borders; often 255); weight: class weights (C,);
    label_smoothing as in ``F.cross_entropy``. Volumes (B, C, D, H, W) go too. Labels are drawn from the model, one per
    pixel ("sampled"); "expected" takes a backward pass per pixel and class and is refused above ``max_seeds`` of them.
    """

    default_labels = "sampled"

    def __init__(
        self,
        weight: Tensor | None = None,
        *,
        label_smoothing: float = 0.0,
        ignore_index: int = -100,
        max_seeds: int = 4096,
    ):
        self.terms = SoftmaxTerms(weight, label_smoothing, ignore_index, "PixelCrossEntropy")
        self.max_seeds = max_seeds

    def check(self, outputs: Tensor, targets: Any) -> None:
        if outputs.ndim < 3:
            raise ValueError(
                f"PixelCrossEntropy got outputs of shape {tuple(outputs.shape)}; expected a map of logits per image, "
                "(B, C, H, W). For one label per image use CrossEntropy()."
            )
        size = (outputs.shape[0], *outputs.shape[2:])
        if not isinstance(targets, Tensor) or targets.shape != size:
            raise ValueError(_shape_message(outputs, targets, size))
        if targets.dtype != torch.int64:
            raise ValueError(
                f"PixelCrossEntropy got {targets.dtype} masks; expected the class index of every pixel, int64: "
                "mask.long()."
            )
        check_device(targets, outputs, "PixelCrossEntropy")
        counted = self.terms.counted(targets)
        fix = f"; where a label means void, PixelCrossEntropy(ignore_index=...), now {self.terms.ignored}"
        check_classes(targets, counted, outputs.shape[1], "PixelCrossEntropy", "masks with labels", fix)
        empty = ~counted.flatten(1).any(1)
        if bool(empty.any()):
            raise ValueError(
                f"image {int(empty.nonzero()[0])} of a batch has no pixel that counts (all have the label "
                f"{self.terms.ignored}, ignore_index); expected at least one. Leave the image out."
            )
        self.terms.weights(outputs)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.pixel_losses(outputs, targets).flatten(1).sum(1)  # (B,)

    def pixel_losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """−log p of every pixel's label, weighted, (B, H, W); 0 where it is ignored."""
        return self.terms.losses(outputs, targets)

    def seeds(self, outputs: Tensor, targets: Any = None) -> Iterator[Tensor]:
        """√p_pc (e_c − p_p) at one pixel p at a time: all at once would add products of different pixels' gradients."""
        C = outputs.shape[1]
        root = self.terms.scale(outputs, targets).sqrt().flatten(1)  # (B, P)
        pixels = int(root.any(0).sum())
        if pixels * C > self.max_seeds:
            raise TooManySeedsError(
                f"labels='expected' would take {pixels:,} pixels × {C:,} classes = {pixels * C:,} backward passes for "
                f"a batch; expected at most {self.max_seeds:,}. Use labels='sampled' (the default), smaller images, or "
                "allow it: PixelCrossEntropy(max_seeds=...)."
            )
        for s in softmax_seeds(outputs.flatten(2), root):
            yield s.reshape(outputs.shape)

    def uniforms(self, outputs: Tensor) -> int:
        return outputs[0, 0].numel()

    def sample(self, outputs: Tensor, uniforms: Tensor, targets: Any = None) -> Tensor:
        """A label for every pixel (B, H, W), from the pixel's own number; those of ignored pixels count as nothing."""
        p = double(outputs).movedim(1, -1).softmax(-1)  # (B, H, W, C)
        return inverse_cdf(p, uniforms.to(p.device).reshape(*p.shape[:-1], 1)).to(outputs.device)

    def sampled_gradient(self, outputs: Tensor, drawn: Tensor, targets: Any) -> Tensor:
        return self.terms.at_labels(outputs, drawn, targets)

    def observed_gradient(self, outputs: Tensor, targets: Any) -> Tensor:
        return self.terms.unsquared(output_gradient(self.loss, outputs, targets), outputs, targets)

    def logit(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The labels' logits, summed over the pixels that count (B,)."""
        return self._sum(targets, lambda y: outputs.gather(1, y))

    def margin(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The labels' log odds, f_y − log Σ_{c≠y} exp f_c, summed over the pixels that count (B,)."""
        return self._sum(
            targets,
            lambda y: outputs.gather(1, y) - outputs.scatter(1, y, -math.inf).logsumexp(1, keepdim=True),
        )

    def _sum(self, targets: Tensor, each: Callable[[Tensor], Tensor]) -> Tensor:
        counted = self.terms.counted(targets)
        values = each(targets.where(counted, 0)[:, None])[:, 0]  # (B, H, W)
        return values.where(counted, 0).flatten(1).sum(1)


def _shape_message(outputs: Tensor, targets: Any, size: tuple[int, ...]) -> str:
    came = tuple(targets.shape) if isinstance(targets, Tensor) else type(targets).__name__
    fix = "one mask per image, of the image's size"
    if isinstance(targets, Tensor):
        if targets.shape == (size[0], 1, *size[1:]):
            fix = "masks without an axis for channels: mask.squeeze(1)"
        elif targets.shape == outputs.shape:
            fix = "the class index of every pixel in place of one-hot masks: mask.argmax(1)"
        elif targets.ndim == outputs.ndim - 1 and targets.shape == outputs.shape[:-1]:
            fix = "logits with the classes on axis 1, (B, C, H, W): logits.movedim(-1, 1)"
        elif targets.ndim == len(size) and targets.shape[0] == size[0]:
            fix = (
                "logits as large as the masks: resize them in the model as training did "
                f"(F.interpolate(logits, {tuple(targets.shape[1:])})), or the masks with mode='nearest'"
            )
        elif targets.ndim == 1:
            fix = "a label for every pixel; for one label per image pool the logits and use CrossEntropy()"
    return (
        f"PixelCrossEntropy got masks of shape {came} beside logits {tuple(outputs.shape)}; expected {tuple(size)}, "
        f"the class index of every pixel. Fix: {fix}."
    )
