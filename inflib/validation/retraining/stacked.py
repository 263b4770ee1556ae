"""M networks of one architecture as one: every parameter stacked along a new first axis, (M, ...).

Any model goes through ``torch.func``: the forward pass of one network, mapped over the stacks. A plain multilayer
perceptron has a quicker way (perceptrons.py), which gives the same numbers.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import vmap

from ...batches import Data, mapped, walk
from ...jacobians import plain_attention
from ...objectives import Measurement, Objective
from ...placement import call, check_mode
from . import perceptrons

Parameters = dict[str, Tensor]  # {name: (M, ...)}
Outputs = Callable[[Parameters, Any], Tensor]  # stacked parameters, a batch's inputs → outputs (M, B, ...)
Gradients = Callable[[Parameters, Any, Any, Tensor], Parameters]  # with targets and weights (M, B) → ∇ Σ_n w_mn ℓ_n


@dataclass(frozen=True, eq=False)
class Networks:
    """M networks: what each computes on the same inputs, and each as a model of its own."""

    parameters: Parameters
    template: nn.Module  # of their architecture; its own weights do not matter

    def __len__(self) -> int:
        return len(next(iter(self.parameters.values())))

    def outputs(self, inputs: Any) -> Tensor:
        """Every network's outputs on a batch of inputs, (M, B, ...)."""
        return forward_of(self.template)(self.parameters, inputs)

    def model(self, m: int) -> nn.Module:
        """Network m on its own, in evaluation mode."""
        if not 0 <= m < len(self):
            raise IndexError(f"network {m} was asked for; expected 0 to {len(self) - 1}.")
        model = copy.deepcopy(self.template)
        with torch.no_grad():
            for name, p in model.named_parameters():
                p.data = self.parameters[name][m].detach().clone()
        return model.eval()

    def models(self) -> Iterator[nn.Module]:
        """Each network in turn."""
        return map(self.model, range(len(self)))

    @torch.no_grad()
    def measure(self, objective: Objective, queries: Data, measurement: Measurement | None = None) -> Tensor:
        """The measurement of every query on every network, (M, Q)."""
        device = next(iter(self.parameters.values())).device
        columns = []
        for batch in walk(queries, name="queries", progress=False):
            inputs, targets = mapped((batch.inputs, batch.targets), lambda x: x.to(device))
            each = [objective.measure(measurement, f, targets) for f in self.outputs(inputs)]
            columns.append(torch.stack(each))
        return torch.cat(columns, dim=1)

    def __repr__(self) -> str:
        size = sum(p[0].numel() for p in self.parameters.values())
        return f"Networks({len(self)} of {type(self.template).__name__}, {size:,} parameters each)"


def stack(models: Sequence[nn.Module], device: torch.device | str | None = None) -> Networks:
    """The models as one, in evaluation mode; they are left as they were.

    Raises ValueError for no model, for models that differ in their parameters' names, shapes or dtypes, and for
    buffers, whose changes in training would be lost.
    """
    if not models:
        raise ValueError("no model came; expected at least one network to stack.")
    template = copy.deepcopy(models[0]).eval().to(device)
    if any(True for _ in template.buffers()):
        name = next(name for name, _ in template.named_buffers())
        raise ValueError(
            f"buffer {name!r} came; expected parameters alone: what training writes into a buffer (BatchNorm) is not "
            "stacked. Use LayerNorm or GroupNorm, or retrain one by one."
        )
    check_mode(template)
    parameters = {}
    for name, p in template.named_parameters():
        own = [dict(model.named_parameters()).get(name) for model in models]
        if any(q is None or q.shape != p.shape or q.dtype != p.dtype for q in own):
            raise ValueError(f"parameter {name!r} differs in shape or dtype between the models; expected one network.")
        parameters[name] = torch.stack([q.detach() for q in own if q is not None]).to(p.device)
    return Networks(parameters, template)


def forward_of(template: nn.Module) -> Outputs:
    """The forward pass of stacked networks: the quick one where the template is a multilayer perceptron."""
    layers = perceptrons.layers_of(template)
    if layers is not None:
        return lambda parameters, inputs: perceptrons.outputs(layers, parameters, inputs)

    def one(parameters: Parameters, inputs: Any) -> Tensor:
        return call(template, inputs, parameters)

    def outputs(parameters: Parameters, inputs: Any) -> Tensor:
        with plain_attention():
            return vmap(one, in_dims=(0, None))(parameters, inputs)

    return outputs


def gradients_of(template: nn.Module, objective: Objective) -> Gradients:
    """The gradients of stacked networks' weighted losses: by hand for a multilayer perceptron, else by autograd."""
    layers = perceptrons.layers_of(template)
    if layers is not None:
        return partial(perceptrons.gradients, layers, perceptrons.slope_of(objective))
    forward = forward_of(template)

    def gradients(parameters: Parameters, inputs: Any, targets: Any, weights: Tensor) -> Parameters:
        leaves = {name: p.detach().requires_grad_() for name, p in parameters.items()}
        total = (weights * perceptrons.losses(objective, forward(leaves, inputs), targets)).sum()
        return dict(zip(leaves, torch.autograd.grad(total, list(leaves.values())), strict=True))

    return gradients
