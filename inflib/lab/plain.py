"""EK-FAC in one file, as notebooks 03 to 06 derive it: short, slow, for linear layers. Notebook 10 breaks its lines.

    pairs      a and g of every layer, by hooks
    Plain.fit  A and S, their eigenvectors Q, then Λ from labels drawn afresh
    solve      Q_S [(Q_Sᵀ V Q_A) / (Λ + λ)] Q_Aᵀ
    scores     ∇ℓ_qᵀ (C + λ)⁻¹ ∇ℓ_n, layer by layer

It answers the checks of ``inflib.conformance``; ``mistakes`` changes one line of this text and runs it again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inflib.conformance import OFFERS, PAD, ROUNDING, Case, Examples

Pairs = dict[str, tuple[Tensor, Tensor]]  # layer: a (B, T, i) and g (B, T, o)
Matrices = dict[str, Tensor]
earlier: WeakKeyDictionary[nn.Module, dict[Any, Fitted]] = WeakKeyDictionary()  # a sound program never looks here


@dataclass(frozen=True)
class Fitted:
    """For each layer Q_S (o, o), Q_A (i, i) and Λ (o, i)."""

    Q_S: Matrices
    Q_A: Matrices
    values: Matrices


class Plain:
    """The library of this file."""

    name, version, rounding = "plain", "1", ROUNDING
    offers: frozenset[str] = frozenset(OFFERS)
    lacks: Mapping[str, str] = {}

    def fit(self, case: Case) -> Fitted:
        kept = earlier.setdefault(case.model, {})
        kept[case.layers] = fitted = fit(case)
        return fitted

    def layer_scores(self, fitted: Fitted, case: Case, damping: float | None) -> Tensor:
        asked, given = gradients(case, case.queries), gradients(case, case.train)
        parts = []
        for name in fitted.values:
            solved = solve(fitted, name, asked[name], damping_of(fitted, name, damping))
            parts.append(torch.einsum("qoi,noi->qn", solved, given[name]))  # ∇m = −∇ℓ_q, and −∇ℓ_n: the signs cancel
        return torch.stack(parts, -1)  # (Q, N, L)

    def scores(self, fitted: Fitted, case: Case, damping: float | None) -> Tensor:
        return self.layer_scores(fitted, case, damping).sum(-1)

    def self_influence(self, fitted: Fitted, case: Case, damping: float | None) -> Tensor:
        own, total = gradients(case, case.train), torch.zeros(len(case.train), dtype=torch.float64)
        for name, v in own.items():
            total += (v * solve(fitted, name, v, damping_of(fitted, name, damping))).sum((1, 2))
        return total


# --- the fit -------------------------------------------------------------------------------------------------------


def fit(case: Case) -> Fitted:
    """EK-FAC of the training examples, in two passes."""
    A, S = second_moments(case)
    Q_A, Q_S = ({k: torch.linalg.eigh(m)[1] for k, m in moments.items()} for moments in (A, S))
    total: Matrices = {}
    for pairs in labelled(case, 1):
        for k, (a, g) in pairs.items():
            v = torch.einsum("bto,bti->boi", g, a)  # (B, o, i): summed over a sequence's tokens
            add(total, k, into_basis(Q_S[k], v, Q_A[k]).square().sum(0))
    return Fitted(Q_S, Q_A, {k: x / len(case.train) for k, x in total.items()})


def second_moments(case: Case) -> tuple[Matrices, Matrices]:
    """A, the mean of a aᵀ over positions, and S, the mean of g gᵀ over examples."""
    A: Matrices = {}
    S: Matrices = {}
    positions = 0
    for pairs in labelled(case, 0):
        for k, (a, g) in pairs.items():
            x = a  # the bias's 1 is last
            add(A, k, torch.einsum("bti,btj->ij", x, x))
            add(S, k, torch.einsum("bto,btp->op", g, g) / len(case.train))
        positions += int(a[..., -1].sum())
    return {k: x / positions for k, x in A.items()}, S


def into_basis(Q_S: Tensor, v: Tensor, Q_A: Tensor) -> Tensor:
    """Coordinates of v (…, o, i) along the eigenvectors, which are columns."""
    return Q_S.T @ v @ Q_A


def solve(fitted: Fitted, name: str, v: Tensor, damping: float | Tensor) -> Tensor:
    """(C + λ)⁻¹ v for a stack v (K, o, i)."""
    Q_S, Q_A, values = fitted.Q_S[name], fitted.Q_A[name], fitted.values[name]
    x = into_basis(Q_S, v, Q_A) / (values + damping)
    return Q_S @ x @ Q_A.T


def damping_of(fitted: Fitted, name: str, damping: float | None) -> float | Tensor:
    """The number given, or a tenth of the layer's mean eigenvalue."""
    return 0.1 * fitted.values[name].mean() if damping is None else damping


# --- activations, gradients, labels ----------------------------------------------------------------------------------


def layers_of(case: Case) -> dict[str, nn.Linear]:
    """The layers chosen, or all that are not frozen."""
    linear = {k: m for k, m in case.model.named_modules() if isinstance(m, nn.Linear)}
    if case.layers is not None:
        return {k: linear[k] for k in case.layers}
    return {k: m for k, m in linear.items() if m.weight.requires_grad}


def batches(case: Case, examples: Examples) -> Iterator[tuple[int, Examples]]:
    """Each batch with the number of its first example."""
    order = torch.arange(len(examples))
    for n in order.split(case.batch_size):
        yield int(n[0]), examples[n]


def recorded(case: Case, some: Examples) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]:
    """The model's outputs, and for each layer its inputs a (B, T, i), 0 at padding, and its own outputs."""
    found: dict[str, tuple[Tensor, Tensor]] = {}

    def hook(name: str) -> Any:
        def keep(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
            found[name] = inputs[0].detach().clone(), output.requires_grad_() if output.is_leaf else output
            return output.clone()  # what follows may write over it

        return keep

    handles = [layer.register_forward_hook(hook(name)) for name, layer in layers_of(case).items()]
    tokens = case.loss == "next token"
    try:
        outputs = case.model(some.inputs[:, :-1] if tokens else some.inputs)
    finally:
        for handle in handles:
            handle.remove()
    there = some.inputs[:, 1:] != PAD if tokens else torch.ones(len(some), 1, dtype=torch.bool)
    return outputs, {k: (with_one(a, there), out) for k, (a, out) in found.items()}


def with_one(a: Tensor, there: Tensor) -> Tensor:
    """(B, T, i + 1): the bias's input is 1; all is 0 where there is nothing but padding."""
    a = a.reshape(len(a), -1, a.shape[-1])
    return torch.cat([a, torch.ones_like(a[..., :1])], -1) * there[..., None]


def pulled(outputs: Tensor, found: dict[str, tuple[Tensor, Tensor]], seed: Tensor) -> Pairs:
    """a and g, where the loss has the derivative ``seed`` in the model's outputs."""
    g = torch.autograd.grad(outputs, [out for _, out in found.values()], seed, retain_graph=True)
    return {k: (a, x.reshape(len(x), -1, x.shape[-1])) for (k, (a, _)), x in zip(found.items(), g, strict=True)}


def gradients(case: Case, examples: Examples) -> Matrices:
    """∇ℓ of every example, (N, o, i + 1)."""
    parts: dict[str, list[Tensor]] = {}
    for _, some in batches(case, examples):
        outputs, found = recorded(case, some)
        pairs = pulled(outputs, found, derivative(case, outputs.detach(), data_labels(case, some), some))
        for k, (a, g) in pairs.items():
            parts.setdefault(k, []).append(torch.einsum("bto,bti->boi", g, a))
    return {k: torch.cat(each) for k, each in parts.items()}


def labelled(case: Case, pass_: int) -> Iterator[Pairs]:
    """a and g of every batch, with labels of the kind that the case asks for."""
    for first, some in batches(case, case.train):
        outputs, found = recorded(case, some)
        for seed in seeds(case, outputs.detach(), some, first, pass_):
            yield pulled(outputs, found, seed)


def seeds(case: Case, outputs: Tensor, some: Examples, first: int, pass_: int) -> Iterator[Tensor]:
    """What to pull back so that the mean of g gᵀ is the mean over the labels."""
    if case.labels == "observed":
        yield derivative(case, outputs, data_labels(case, some), some)
    elif case.labels == "sampled":
        for draw in range(case.draws):
            yield derivative(case, outputs, drawn(case, outputs, first, pass_, draw), some) / case.draws**0.5
    else:
        for c in range(outputs.shape[-1]):
            e = F.one_hot(torch.tensor(c), outputs.shape[-1]).to(outputs)
            p = outputs.softmax(-1)
            yield e.expand_as(outputs) if case.loss == "squared error" else p[:, c : c + 1].sqrt() * (e - p)


def data_labels(case: Case, some: Examples) -> Tensor:
    """The data's labels; of tokens, the next."""
    return some.inputs[:, 1:] if case.loss == "next token" else some.targets


def drawn(case: Case, outputs: Tensor, first: int, pass_: int, draw: int) -> Tensor:
    """Labels from the model, of every example by a generator of its own."""
    labels = []
    for n, row in enumerate(outputs, first):
        stream = torch.Generator().manual_seed(10_000 * n + 100 * draw + pass_)
        if case.loss == "squared error":
            labels.append(row + torch.randn(row.shape, generator=stream, dtype=row.dtype))
        else:
            p = row.softmax(-1)
            y = torch.stack([torch.multinomial(each, 1, generator=stream) for each in p.reshape(-1, p.shape[-1])])
            labels.append(y.reshape(p.shape[:-1]))
    return torch.stack(labels)


def derivative(case: Case, outputs: Tensor, labels: Tensor, some: Examples) -> Tensor:
    """dℓ/d outputs: ℓ is ½‖f − y‖², or −log p(y), summed over the tokens that count."""
    if case.loss == "squared error":
        return outputs - labels
    given = outputs.softmax(-1) - F.one_hot(labels, outputs.shape[-1])
    if case.loss == "next token":
        given = given * some.targets[:, 1:, None]
    return given


def add(total: Matrices, name: str, x: Tensor) -> None:
    total[name] = total[name] + x if name in total else x
