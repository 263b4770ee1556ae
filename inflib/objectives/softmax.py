"""The softmax family: any cross-entropy is a weight times one Hessian, diag(p) − ppᵀ, whatever its targets.

    ℓ = −Σ_c q_c w_c log p_c        q = (1 − ε) target + ε / C        H_out = W (diag(p) − ppᵀ),  W = Σ_c q_c w_c

for targets that are a class or a distribution, class weights w and label smoothing ε, as ``F.cross_entropy`` defines
them. W belongs to the data's target, so that with class weights each example counts W times: in the seeds, in the
gradients at labels drawn from softmax f, whose own weights play no part, and at the data's labels (once, not W²).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class SoftmaxTerms:
    """Class weights (C,) or None, label smoothing ε and the label that is left out or None; classes on axis 1."""

    def __init__(self, weight: Tensor | None, label_smoothing: float, ignore_index: int | None, who: str):
        if not 0 <= label_smoothing < 1:
            raise ValueError(
                f"{who}: label_smoothing={label_smoothing!r}; expected a share from 0 to below 1. Use that of training."
            )
        if weight is not None:
            weight = torch.as_tensor(weight).detach()
            if weight.ndim != 1 or not bool((weight >= 0).all()) or not bool(weight.isfinite().all()):
                raise ValueError(
                    f"{who}: weight came with shape {tuple(weight.shape)}, or has entries below 0 or not finite; "
                    "expected one finite weight ≥ 0 per class, (C,). Use those of training."
                )
        self.weight, self.smoothing, self.ignored = weight, float(label_smoothing), ignore_index

    def weights(self, outputs: Tensor) -> Tensor | None:
        """Class weights like ``outputs``; ValueError where they are not one per class."""
        if self.weight is not None and len(self.weight) != outputs.shape[1]:
            raise ValueError(
                f"weight has {len(self.weight)} entries, the model {outputs.shape[1]} classes; expected one weight per "
                "class. Give a weight for each output."
            )
        return None if self.weight is None else self.weight.to(outputs)

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """ℓ of outputs (B, C, ...) at targets (B, ...) or soft ones (B, C, ...), (B, ...)."""
        ignore: dict[str, Any] = {} if self.ignored is None else {"ignore_index": self.ignored}
        if targets.is_floating_point():
            targets, ignore = targets.to(outputs), {}
        return F.cross_entropy(
            outputs, targets, self.weights(outputs), reduction="none", label_smoothing=self.smoothing, **ignore
        )

    def counted(self, targets: Tensor) -> Tensor:
        """Which of the targets (B, ...) are in the loss; all where none is left out."""
        return torch.ones_like(targets, dtype=torch.bool) if self.ignored is None else targets != self.ignored

    def scale(self, outputs: Tensor, targets: Tensor | None) -> Tensor:
        """W of each target, (B, ...); 1 without targets."""
        if targets is None:
            return torch.ones_like(outputs[:, 0])
        w = self.weights(outputs)
        if w is None:
            w = outputs.new_ones(outputs.shape[1])
        if targets.is_floating_point():
            q = targets.to(outputs) * (1 - self.smoothing) + self.smoothing / len(w)
            return torch.einsum("bc...,c->b...", q, w)
        counted = self.counted(targets)
        W = (1 - self.smoothing) * w[targets.where(counted, 0)] + self.smoothing * w.mean()
        return W * counted

    def at_labels(self, outputs: Tensor, drawn: Tensor, targets: Tensor | None) -> Tensor:
        """√W (p − e_y) at drawn labels y (B, ...), W of the data's targets; shaped like outputs."""
        e_y = F.one_hot(drawn, outputs.shape[1]).movedim(-1, 1)
        return self.scale(outputs, targets).sqrt()[:, None] * (outputs.softmax(1) - e_y)

    def unsquared(self, gradient: Tensor, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss's gradient over √W, so that W counts once in its square; 0 where W is."""
        W = self.scale(outputs, targets)
        return gradient * W.where(W > 0, math.inf).rsqrt()[:, None]


def softmax_seeds(outputs: Tensor, root: Tensor) -> Iterator[Tensor]:
    """√W_p √p_c (e_c − p) at one position and class at a time, for outputs (B, C, P) and √W (B, P).

    All positions at once would add products of different positions' gradients. Where every W is 0 there is none.
    """
    p = outputs.softmax(1)
    for at in root.any(0).nonzero().flatten().tolist():
        own, scale = p[:, :, at], root[:, at, None]  # (B, C), (B, 1)
        for c in range(outputs.shape[1]):
            s = torch.zeros_like(p)
            s[:, :, at] = -own[:, c : c + 1].sqrt() * own * scale
            s[:, c, at] += own[:, c].sqrt() * scale[:, 0]
            yield s


def check_classes(targets: Tensor, counted: Tensor, C: int, who: str, noun: str, ignored: str) -> None:
    """Raise ValueError for counted class indices outside of 0 to C − 1."""
    some = targets[counted]
    if some.numel() == 0:
        return
    low, high = (int(x) for x in some.aminmax())
    if low < 0 or high >= C:
        raise ValueError(
            f"{who} got {noun} from {low} to {high}; expected 0 to {C - 1}, because the model has {C} outputs. "
            f"Number the classes from 0, or give the model an output for each of them{ignored}."
        )
