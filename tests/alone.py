"""What a model's gradients are, one example at a time: an oracle for models too large to be built as dense matrices.

Each example is a batch of one, without its padding; its loss is a formula written here, and autograd's gradient of it in
every covered weight is its gradient. No layout of rows, no mask and no loss of the library takes part. A ``Case`` is a
model with its batches; ``examine`` says how far the library is from the oracle, or in what words it refuses.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from oracle import grouped, written_out
from torch import Tensor, nn

import inflib
from inflib import Objective, capture, ekfac, identity, influence
from inflib.kfac import second_moments
from inflib.layers import LayerSpec

QUIET: dict[str, Any] = {"progress": False}
Formula = Callable[[Tensor, Tensor], Tensor]  # outputs (1, ...) and targets (1, ...) of one example → ()
Batch = tuple[Any, Any]
Shapes = Mapping[str, tuple[int, int]]  # layer → (o, i), i counting the bias's column


def class_loss(f: Tensor, y: Tensor) -> Tensor:
    return f[0].logsumexp(0) - f[0, y[0]]


def token_loss(f: Tensor, y: Tensor) -> Tensor:
    """Summed over the positions of one example, logits (1, T, V); −100 does not count."""
    counted = (y[0] != -100).nonzero().flatten()
    rows = f[0, counted]
    return (rows.logsumexp(1) - rows[range(len(counted)), y[0, counted]]).sum()


def pixel_loss(f: Tensor, y: Tensor) -> Tensor:
    """Summed over the pixels of one image, logits (1, C, h, w); 255 does not count."""
    counted = (y[0] != 255).nonzero().tolist()
    return sum((f[0, :, i, j].logsumexp(0) - f[0, y[0, i, j], i, j] for i, j in counted), f.new_zeros(()))


def yes_loss(f: Tensor, y: Tensor) -> Tensor:
    """Of logits (1,) or (1, C), summed."""
    return ((1 + f.exp()).log() - y * f).sum()


def squared_loss(f: Tensor, y: Tensor) -> Tensor:
    return ((f - y) ** 2).sum() / 2


# --- one example alone ------------------------------------------------------------------------------------------------


def alone(inputs: Any, targets: Any, n: int, padded: Mapping[str, tuple[str, ...]]) -> Batch:
    """Example n as a batch of one; ``padded`` says which inputs (or "targets") are cut to where a mask is 1."""
    if isinstance(inputs, Tensor):
        return inputs[n : n + 1], targets[n : n + 1]
    if isinstance(inputs, tuple):
        return tuple(x[n : n + 1] for x in inputs), targets[n : n + 1]
    some = {name: x[n : n + 1] if isinstance(x, Tensor) else x for name, x in inputs.items()}
    some["targets"] = targets[n : n + 1]
    for mask, names in padded.items():
        seen = some[mask][0].bool()
        seen = seen.any(0) if seen.ndim > 1 else seen
        for name in (*names, mask):
            some[name] = some[name][..., seen]
    return some, some.pop("targets")


@dataclass
class Case:
    """A model in float64 and eval mode with what is asked of it; examples of ``batches`` are numbered through."""

    model: nn.Module
    objective: Objective
    loss: Formula
    batches: list[Batch]
    padded: dict[str, tuple[str, ...]] = field(default_factory=dict)
    layers: LayerSpec = None
    together: bool = False  # an example's loss is that of its batch: there is none of it alone

    def examples(self) -> list[Batch]:
        return [alone(x, y, n, self.padded) for x, y in self.batches for n in range(len(y))]

    def gradients(self, shapes: Shapes) -> dict[str, Tensor]:
        """{layer: (N, o, i)} with the bias, where i counts it, as last column."""
        spots = self._spots(shapes)
        weights = {id(p): p for spot in spots.values() for p in spot.parameters}
        asked = [(p, p.requires_grad) for p in weights.values()]
        found: dict[str, list[Tensor]] = {name: [] for name in shapes}
        try:
            for p in weights.values():
                p.requires_grad_()
            for loss in self._losses():
                loss.backward()  # into .grad: what is recomputed by a nested backward pass has no other way out
                own = {key: torch.zeros_like(p) if p.grad is None else p.grad for key, p in weights.items()}
                for name, spot in spots.items():
                    found[name].append(spot.matrix(own).clone())
                self.model.zero_grad()
        finally:
            for p, before in asked:
                p.requires_grad_(before)
        return {name: torch.stack(parts) for name, parts in found.items()}

    def _losses(self) -> Any:
        if self.together:
            for x, y in self.batches:
                for n in range(len(y)):
                    yield self.loss(run(self.model, x)[n : n + 1], y[n : n + 1])
        else:
            for x, y in self.examples():
                yield self.loss(run(self.model, x), y)

    def moments(self, shapes: Shapes) -> dict[str, tuple[Tensor, Tensor]]:
        """{linear layer: (A (i, i), S (o, o))}: the mean of a aᵀ over everything that its module is given for examples
        alone, and the mean over examples of Σ g gᵀ at its outputs.
        """
        rows: dict[str, list[tuple[Tensor, Tensor]]] = {}
        handles = [
            module.register_forward_hook(_keep(rows.setdefault(name, []), spot))
            for name, spot in self._spots(shapes).items()
            for module in spot.users(self.model)
            if spot.linear
        ]
        try:
            for loss in self._losses():
                loss.backward()
            self.model.zero_grad()
        finally:
            for handle in handles:
                handle.remove()
        examples = sum(len(y) for _, y in self.batches)
        found = {}
        for name, some in rows.items():
            reached = [
                (a, z.grad.flatten(0, -2)) for a, z in some if z.grad is not None
            ]  # the loss depends on this call
            a, g = (torch.cat(parts) for parts in zip(*reached, strict=True))
            found[name] = a.T @ a / len(a), g.T @ g / examples
        return found

    def _spots(self, shapes: Shapes) -> dict[str, _Spot]:
        return {name: _Spot(self.model, name, shape[1]) for name, shape in shapes.items()}

    def covered(self, shapes: Shapes) -> tuple[int, int]:
        """How many of the numbers that ask for a gradient lie in these layers, and how many there are."""
        trained = {id(p): p.numel() for p in self.model.parameters() if p.requires_grad}
        trained = trained or {id(p): p.numel() for p in self.model.parameters() if p.is_floating_point()}
        inside: dict[int, set[int]] = {}
        for spot in self._spots(shapes).values():
            for p, entries in spot.inside().items():
                inside[p] = inside.get(p, set()) | (entries if p in trained else set())
        return sum(map(len, inside.values())), sum(trained.values())


def _keep(rows: list[tuple[Tensor, Tensor]], spot: _Spot) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        a = args[0].detach().flatten(0, -2)
        a = a.clone() if spot.bias is None else torch.cat([a, torch.ones_like(a[:, :1])], dim=1)
        if output.requires_grad:
            output.retain_grad()
        rows.append((a, output))

    return hook


Catalogue = dict[str, Callable[[], Case]]


def enter(catalogue: Catalogue, name: str) -> Callable[[Callable[[], Case]], Callable[[], Case]]:
    """Decorates what builds a case: ``catalogue`` then holds it by name."""

    def add(build: Callable[[], Case]) -> Callable[[], Case]:
        catalogue[name] = build
        return build

    return add


def run(model: nn.Module, inputs: Any) -> Tensor:
    if isinstance(inputs, Mapping):
        outputs = model(**inputs)
    else:
        outputs = model(*inputs) if isinstance(inputs, tuple) else model(inputs)
    return outputs if isinstance(outputs, Tensor) else outputs.logits


class _Spot:
    """Where a layer's matrix lies in the model."""

    def __init__(self, model: nn.Module, name: str, columns: int):
        module = model.get_submodule(grouped(model, name)[0])
        self.linear = isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
        self.linear &= type(module).__name__ != "NonDynamicallyQuantizableLinear"  # never called
        names, self.at = written_out(model, name, columns)
        self.parameters = [model.get_parameter(n) for n in names]
        self.weight, self.bias = self.parameters[0], self.parameters[1] if len(names) > 1 else None

    def users(self, model: nn.Module) -> list[nn.Module]:
        """Every module that applies this weight."""
        return [m for m in model.modules() if m._parameters.get("weight") is self.weight]

    def matrix(self, gradients: dict[int, Tensor]) -> Tensor:
        return torch.cat([gradients[id(p)].flatten() for p in self.parameters])[self.at]

    def inside(self) -> dict[int, set[int]]:
        """Which entries of each parameter are the layer's."""
        found, start, at = {}, 0, self.at.flatten()
        for p in self.parameters:
            found[id(p)] = set((at[(at >= start) & (at < start + p.numel())] - start).tolist())
            start += p.numel()
        return found


# --- how far the library is from it -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Finding:
    """Errors relative to the oracle's largest, nan where not looked at; or the words of a refusal."""

    layers: tuple[str, ...] = ()
    share: float = float("nan")  # of the numbers that ask for a gradient, covered
    gradients: float = float("nan")  # worst entry of a layer's captured matrix, by the layer's largest
    dots: float = float("nan")  # worst dot product, by the two gradients' lengths
    eigenvalues: float = float("nan")  # worst entry of Λ (observed labels), by the layer's largest
    activations: float = float("nan")  # worst entry of A, by its largest
    slopes: float = float("nan")  # worst entry of S, by its largest
    refusal: str = ""
    notes: tuple[str, ...] = ()

    @property
    def worst(self) -> float:
        return max(self.gradients, self.dots, self.eigenvalues)


def examine(case: Case) -> Finding:
    """What the library says of a case, beside what is."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            found = _measured(case)
        except Exception as error:  # what kind it is, is for the test to say
            return Finding(refusal=f"{type(error).__name__}: {error}", notes=_said(caught))
    return Finding(**found, notes=_said(caught))


def as_told(refusal: str) -> LayerSpec:
    """What a refusal says to write after ``layers=``; None where it says nothing of the kind."""
    found = re.search(r"layers=((?:inflib\.everything\()?lambda name, module: .+?)\.(?: |$)", refusal)
    return eval(found[1], {"inflib": inflib}) if found else None


def _said(caught: list[warnings.WarningMessage]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(f"{w.category.__name__}: {w.message}" for w in caught))


def _measured(case: Case) -> dict[str, Any]:
    model, objective, data = case.model, case.objective, case.batches
    C = identity(model, objective, layers=case.layers)
    names, shapes = list(C.layers), C.shapes
    pairs = [capture(model, objective, x, y, layers=case.layers) for x, y in data]
    captured = {name: torch.cat([p[name].matrices() for p in pairs]) for name in names}
    scores = influence(model, objective, data, data, C, **QUIET)
    fit = ekfac(model, objective, data, layers=case.layers, labels="observed", **QUIET)
    truth = case.gradients(shapes)
    inside, trained = case.covered(shapes)
    return {
        "layers": tuple(names),
        "share": inside / trained,
        "gradients": max(apart(captured[name], truth[name]) for name in names),
        "dots": dots_apart(scores, truth),
        **_moments_apart(case, shapes),
        "eigenvalues": max(
            apart(fit.eigenvalues[k], rotated(truth[k], fit.Q_S.get(k), fit.Q_A.get(k)).square().mean(0)) for k in names
        ),
    }


def _moments_apart(case: Case, shapes: Shapes) -> dict[str, float]:
    if case.together:
        return {}
    found = second_moments(
        case.model, case.objective, case.batches, layers=case.layers, labels="observed", progress=False
    )
    truth = case.moments(shapes).items()
    return {
        "activations": max((apart(found.A(name), A) for name, (A, _) in truth), default=float("nan")),
        "slopes": max((apart(found.S(name), S) for name, (_, S) in truth), default=float("nan")),
    }


def rotated(G: Tensor, Q_S: Tensor | None, Q_A: Tensor | None) -> Tensor:
    """Gradients (N, o, i) in a basis; None stands for the axes."""
    G = G if Q_S is None else Q_S.T @ G
    return G if Q_A is None else G @ Q_A


def apart(found: Tensor, truth: Tensor) -> float:
    """The largest difference, by the largest entry; by 1 where all should be 0."""
    if found.shape != truth.shape:
        return float("inf")
    scale = truth.abs().max()
    return float((found - truth).abs().max() / (scale if scale > 0 else 1))


def dots_apart(scores: Tensor, gradients: dict[str, Tensor]) -> float:
    """The worst difference of scores (N, N) from the gradients' dot products, by the lengths of the two.

    A gradient that is 0 (of a single token in an attention's query) counts as a thousandth of the longest.
    """
    flat = torch.cat([g.flatten(1) for g in gradients.values()], dim=1)
    lengths = flat.norm(dim=1)
    lengths = lengths.clamp_min(1e-3 * float(lengths.max()))
    return float(((scores - flat @ flat.T).abs() / (lengths[:, None] * lengths)).max())
