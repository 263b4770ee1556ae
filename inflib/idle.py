"""Calls of a layer that nothing of the output depends on: are they those that were seen to be, in this batch too?

DoRA reads its adapters once more, for a norm that it detaches; a recurrent network may cut its history off. Such calls
are no part of an example's gradient, nor of A. Which they are was found where a batch was looked at (``proof``), by
their place among the layer's calls; a longer sequence has more of them. So each batch's own graph is asked: walking it
costs nothing beside the forward pass, and only layers that are called several times have a question.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from .recording import Recording, RowsChangedError, leave_out


def check_idle(recording: Recording) -> None:
    """Raise RowsChangedError where other calls than the layers' ``idle`` are without a way to the output."""
    asked = {name: edges for name, edges in recording.edges.items() if len(edges) > 1 or recording.layers[name].idle}
    if recording.raw or not asked:
        return
    behind = _behind(recording.outputs)
    for name, edges in asked.items():
        idle, reached = recording.layers[name].idle, [_key(edge) in behind for edge in edges]
        if any(reached) and any(not yes and at not in idle for at, yes in enumerate(reached)):
            raise RowsChangedError(_said(name, recording))
        # a function of the model's own may lead to a call and give it no gradient
        back = [edges[at] for at in sorted(idle) if at < len(edges) and reached[at]]
        if back and any(g is not None for g in _gradients(recording.outputs, back)):
            raise RowsChangedError(_said(name, recording))


def _behind(outputs: Tensor) -> set[tuple[int, int]]:
    """Every node that the outputs were made by, with which of its own outputs they were made from."""
    if outputs.grad_fn is None:
        return set()
    found, left = {(id(outputs.grad_fn), outputs.output_nr)}, [outputs.grad_fn]
    seen = {outputs.grad_fn}  # held, so that no other comes to have a node's id
    while left:
        for node, place in left.pop().next_functions:
            if node is None:
                continue
            found.add((id(node), place))
            if node not in seen:
                seen.add(node)
                left.append(node)
    return found


def _key(edge: GradientEdge) -> tuple[int, int]:
    return id(edge.node), edge.output_nr


def _gradients(outputs: Tensor, edges: list[GradientEdge]) -> tuple[Tensor | None, ...]:
    with torch.enable_grad():
        return torch.autograd.grad(outputs.sum(), edges, retain_graph=True, allow_unused=True)


def _said(name: str, recording: Recording) -> str:
    return (
        f"layer {name!r}: of its {len(recording.edges[name])} calls others reach the model's output than in the batch "
        f"that was looked at; expected it to be so in every batch. {leave_out([name], recording.layers)}"
    )
