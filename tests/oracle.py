"""Independent answers: dense matrices by ``torch.func`` and textbook formulas, sharing no code with inflib.

No hooks, no factors, no rotation, no loss of the library is used here. A ``Problem`` holds a model, the names of its
layers, a loss given as a formula of one example's outputs f (F,) and target y, and the data. Every vector and matrix
is over coordinates written out one by one: layers in order, for each output o its inputs i, then its bias.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian, jacrev, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree

Formula = Callable[[Tensor, Tensor], Tensor]  # (outputs (F,) of one example, its target) → ()


# --- losses, as formulas ----------------------------------------------------------------------------------------------


def cross_entropy(f: Tensor, y: Tensor) -> Tensor:
    chosen = torch.arange(f.shape[0]) == y
    return f.exp().sum().log() - (f * chosen).sum()


def squared_error(f: Tensor, y: Tensor) -> Tensor:
    return ((f - y) ** 2).sum() / 2


def bernoulli(f: Tensor, y: Tensor) -> Tensor:
    p = 1 / (1 + (-f).exp())
    return -(y * p.log() + (1 - y) * (1 - p).log()).sum()


def next_token(f: Tensor, y: Tensor) -> Tensor:
    """Summed over the tokens of one sequence; f (T · V,), y (T,), −100 for a token that does not count."""
    rows = f.reshape(len(y), -1)
    log_p = rows - rows.exp().sum(1, keepdim=True).log()
    chosen = torch.arange(rows.shape[1])[None] == y[:, None]
    return -(log_p * chosen).sum()


LOSSES: dict[str, Formula] = {
    "CrossEntropy": cross_entropy,
    "SquaredError": squared_error,
    "Bernoulli": bernoulli,
    "NextToken": next_token,
}


def label_distribution(name: str, f: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Targets of all examples with their probabilities given the outputs f (N, F): [(targets (N, ...), weights (N,))].

    Complete for discrete labels. For the unit Gaussian the 2F points f ± √F e_j have the same first two moments, which
    is all that the second moment of a gradient linear in y depends on.
    """
    N, F = f.shape
    if name == "CrossEntropy":
        p = f.exp() / f.exp().sum(1, keepdim=True)
        return [(torch.full((N,), c), p[:, c]) for c in range(F)]
    if name == "Bernoulli":
        p = 1 / (1 + (-f).exp())
        found = []
        for bits in itertools.product([0.0, 1.0], repeat=F):
            y = torch.tensor(bits).to(f).expand(N, F)
            found.append((y, (y * p + (1 - y) * (1 - p)).prod(1)))
        return found
    steps = [sign * math.sqrt(F) * torch.eye(F)[j].to(f) for j in range(F) for sign in (1, -1)]
    return [(f + step, torch.full((N,), 1 / (2 * F)).to(f)) for step in steps]


def grouped(model: nn.Module, name: str) -> tuple[str, int | None]:
    """A layer's module and its group in that: "mix.group2" is the third group of the convolution "mix"."""
    modules = dict(model.named_modules())
    if name in modules:
        return name, None
    path, _, group = name.rpartition(".")
    if path not in modules:  # a part's own bias, "attention.q.bias"
        return path.rpartition(".")[0], None
    return path, int(group.removeprefix("group")) if group.startswith("group") else None


def written_out(model: nn.Module, name: str, columns: int | None = None) -> tuple[list[str], Tensor]:
    """The parameters that a layer's matrix is made of, and where each of its entries (o, i) lies in them, end to end.

    columns: how many there are, where that tells whether the bias is one of them (of an embedding, or a normalisation
    without its shifts, it is not); None for all that the module has.
    """
    modules, (path, group) = dict(model.named_modules()), grouped(model, name)
    module, prefix = modules[path], f"{path}." if path else ""
    part = name.removeprefix(prefix) if name != path else ""
    if isinstance(module, nn.MultiheadAttention) and module.in_proj_weight is None:
        if part.endswith(".bias"):
            thirds = torch.arange(module.in_proj_bias.numel()).chunk(3)
            return [prefix + "in_proj_bias"], thirds["qkv".index(part[0])][:, None]
        weight = getattr(module, f"{part}_proj_weight")
        return [f"{prefix}{part}_proj_weight"], torch.arange(weight.numel()).reshape(weight.shape)
    if isinstance(module, nn.MultiheadAttention):
        weight, bias = module.in_proj_weight, module.in_proj_bias
        own = torch.arange(weight.numel()).reshape(weight.shape).chunk(3)["qkv".index(part)]
        if bias is None:
            return [prefix + "in_proj_weight"], own
        shifts = weight.numel() + torch.arange(bias.numel()).chunk(3)["qkv".index(part)]
        return [prefix + "in_proj_weight", prefix + "in_proj_bias"], torch.cat([own, shifts[:, None]], dim=1)
    if part in module._parameters and part != "bias":  # a plain parameter by its own name
        at = torch.arange(module._parameters[part].numel()).reshape(module._parameters[part].shape)
        if part == "W1":
            return [name], at.T
        if part == "W2":
            return [name], at
        shifts = at.numel() + torch.arange(module.b3.numel())
        return [name, prefix + "b3"], torch.cat([at, shifts[:, None]], dim=1)
    if part == "bias":
        return [name], torch.arange(module.bias.numel())[:, None]
    weight, bias = module.weight, getattr(module, "bias", None)
    at = torch.arange(weight.numel()).reshape(weight.shape)
    kind = type(module).__name__
    tied = [n for n, m in modules.items() if isinstance(m, nn.Linear) and m.weight is weight and m is not module]
    looks_up = isinstance(module, nn.Embedding)
    if looks_up and tied and columns in (None, weight.shape[1], weight.shape[1] + 1):
        bias = modules[tied[0]].bias
        if bias is None:
            return [prefix + "weight"], at
        shifts = weight.numel() + torch.arange(bias.numel())
        return [prefix + "weight", f"{tied[0]}.bias"], torch.cat([at, shifts[:, None]], dim=1)
    if "Norm" in kind:
        shifts = [] if bias is None else [weight.numel() + torch.arange(bias.numel())]
        return [prefix + n for n in ("weight", "bias")[: 1 + len(shifts)]], torch.cat([at.flatten(), *shifts])[:, None]
    if group is not None:
        at = at.chunk(module.groups)[group]
    at = at.flatten(1)
    if looks_up or kind == "Conv1D" or "Transpose" in kind:
        at = at.T
    if bias is None or "Transpose" in kind or columns == at.shape[1]:
        return [prefix + "weight"], at
    shifts = weight.numel() + torch.arange(bias.numel())
    shifts = shifts if group is None else shifts.chunk(module.groups)[group]
    return [prefix + "weight", prefix + "bias"], torch.cat([at, shifts[:, None]], dim=1)


# --- a model as a function of one vector ------------------------------------------------------------------------------


@dataclass
class Problem:
    """A model with ``layers`` seen as a function of one vector θ (D,), and its data x, y."""

    model: nn.Module
    layers: list[str]
    loss: Formula
    x: Any  # a tensor, tuple or dict of tensors, examples first
    y: Tensor
    one_by_one: bool = False  # for a model that vmap cannot follow

    def __post_init__(self) -> None:
        self.own = {n: p.detach().clone() for n, p in self.model.named_parameters()}
        buffers = {n: b.detach().clone() for n, b in self.model.named_buffers()}
        self.spans: dict[str, slice] = {}
        self.shapes: dict[str, tuple[int, int]] = {}
        self.places: list[tuple[str, int]] = []  # coordinate → (parameter, position in it)
        for name in self.layers:
            start = len(self.places)
            names, at = written_out(self.model, name)
            ends = list(itertools.accumulate(self.own[n].numel() for n in names))
            for place in at.flatten().tolist():
                k = next(k for k, end in enumerate(ends) if place < end)
                self.places.append((names[k], place - (ends[k - 1] if k else 0)))
            self.spans[name] = slice(start, len(self.places))
            self.shapes[name] = (at.shape[0], at.shape[1])
        self.where: dict[str, Tensor] = {}  # parameter → the coordinate of each of its entries
        for coordinate, (name, at) in enumerate(self.places):
            found = self.where.setdefault(name, torch.full((self.own[name].numel(),), -1))
            found[at] = coordinate
        self.rest = {n: p for n, p in self.own.items() if n not in self.where} | buffers

    @property
    def N(self) -> int:
        return self.y.shape[0]

    @property
    def theta(self) -> Tensor:
        return torch.stack([self.own[name].reshape(-1)[at] for name, at in self.places])

    def outputs_of(self, theta: Tensor, one: Any) -> Tensor:
        """Outputs (F,) of one example."""
        parameters = {
            n: torch.where(at >= 0, theta[at], self.own[n].flatten()).reshape(self.own[n].shape)
            for n, at in self.where.items()
        }
        batch = pytree.tree_map(lambda x: x[None], one)
        args, kwargs = (), {}
        if isinstance(batch, Mapping):
            kwargs = dict(batch)
        elif isinstance(batch, (tuple, list)):
            args = tuple(batch)
        else:
            args = (batch,)
        with sdpa_kernel(SDPBackend.MATH):  # which alone knows second derivatives
            found = functional_call(self.model, (parameters, self.rest), args, kwargs)
        return getattr(found, "logits", found)[0].reshape(-1)

    def of_examples(self, function: Callable[..., Tensor], *rows: Any, theta: Tensor | None = None) -> Tensor:
        """function(θ, *one) of every example, (N, ...)."""
        theta = self.theta if theta is None else theta
        if not self.one_by_one:
            return vmap(function, in_dims=(None, *(0 for _ in rows)))(theta, *rows)
        count = len(pytree.tree_leaves(rows)[0])
        return torch.stack([function(theta, *pytree.tree_map(lambda x, n=n: x[n], rows)) for n in range(count)])

    # --- first derivatives

    def outputs(self, x: Any = None) -> Tensor:
        """(N, F)."""
        return self.of_examples(self.outputs_of, self.x if x is None else x)

    def gradients(self, y: Tensor | None = None, formula: Formula | None = None, x: Any = None) -> Tensor:
        """Per-example gradient of the loss, or another formula, (N, D)."""
        formula = formula or self.loss
        one = grad(lambda theta, x, y: formula(self.outputs_of(theta, x), y))
        return self.of_examples(one, self.x if x is None else x, self.y if y is None else y)

    def jacobians(self) -> Tensor:
        """d outputs / dθ, (N, F, D)."""
        return self.of_examples(jacrev(self.outputs_of), self.x)

    # --- curvatures, each a mean over the examples

    def gauss_newton(self) -> Tensor:
        """(1/N) Σ Jᵀ H_out J, (D, D)."""
        H = vmap(hessian(self.loss))(self.outputs(), self.y)  # (N, F, F)
        J = self.jacobians()
        return torch.einsum("nfd,nfg,nge->de", J, H, J) / self.N

    def fisher(self, *labels: Tensor) -> Tensor:
        """(1/N) Σ ∇ℓ ∇ℓᵀ at given labels, the mean over several sets of them; none given: the data's own."""
        sets = labels or (self.y,)
        total = torch.zeros(len(self.places), len(self.places)).to(self.theta)
        for y in sets:
            g = self.gradients(y)
            total += g.T @ g / self.N / len(sets)
        return total

    def expected_fisher(self, name: str) -> Tensor:
        """(1/N) Σ_n Σ_y p(y) ∇ℓ ∇ℓᵀ over every label y there is."""
        total = torch.zeros(len(self.places), len(self.places)).to(self.theta)
        for y, p in label_distribution(name, self.outputs()):
            g = self.gradients(y if self.y.ndim == y.ndim else y.reshape(self.y.shape))
            total += torch.einsum("n,nd,ne->de", p, g, g) / self.N
        return total

    def hessian(self) -> Tensor:
        """The Hessian of the mean loss, (D, D)."""

        def mean_loss(theta: Tensor) -> Tensor:
            def one(theta: Tensor, x: Any, y: Tensor) -> Tensor:
                return self.loss(self.outputs_of(theta, x), y)

            return self.of_examples(one, self.x, self.y, theta=theta).mean()

        return hessian(mean_loss)(self.theta)

    # --- vectors and stacks

    def stacks(self, flat: Tensor) -> dict[str, Tensor]:
        """(K, D) → {layer: (K, o, i)}."""
        found = {}
        for name, (o, i) in self.shapes.items():
            part = flat[:, self.spans[name]]
            found[name] = torch.stack([part[:, row * i : (row + 1) * i] for row in range(o)], dim=1)
        return found

    def flat(self, stacks: Mapping[str, Tensor]) -> Tensor:
        """{layer: (K, o, i)} → (K, D)."""
        return torch.cat([stacks[n][:, o] for n in self.layers for o in range(self.shapes[n][0])], dim=1)

    def block_diagonal(self, matrix: Tensor) -> Tensor:
        """``matrix`` (D, D) with zeros off its layers' blocks."""
        found = torch.zeros_like(matrix)
        for span in self.spans.values():
            found[span, span] = matrix[span, span]
        return found

    def damping(self, numbers: float | Mapping[str, float]) -> Tensor:
        """diag λ, (D, D)."""
        numbers = numbers if isinstance(numbers, Mapping) else dict.fromkeys(self.layers, numbers)
        parts = [torch.full((self.shapes[n][0] * self.shapes[n][1],), float(numbers[n])) for n in self.layers]
        return torch.diag(torch.cat(parts)).to(self.theta)

    def relative(self, matrix: Tensor, factor: float = 0.1) -> dict[str, float]:
        """{layer: factor · mean of the diagonal of its block}."""
        return {n: factor * float(matrix.diagonal()[span].mean()) for n, span in self.spans.items()}

    def influence(
        self,
        C: Tensor,
        numbers: float | Mapping[str, float],
        x: Any,
        y: Tensor,
        measurement: Formula | None = None,
    ) -> Tensor:
        """∇m_qᵀ (C + diag λ)⁻¹ (−∇ℓ_n), (Q, N), by one dense solve."""
        m = self.gradients(y, measurement, x) if measurement else -self.gradients(y, None, x)
        return -m @ torch.linalg.solve(C + self.damping(numbers), self.gradients().T)


# --- Kronecker products, by their indices -------------------------------------------------------------------------------


def kron(S: Tensor, A: Tensor) -> Tensor:
    """The matrix with entry [(o, i), (p, j)] = S[o, p] A[i, j], rows and columns counted o first."""
    o, i = S.shape[0], A.shape[0]
    found = torch.empty(o * i, o * i).to(S)
    for row in range(o):
        for column in range(o):
            found[row * i : (row + 1) * i, column * i : (column + 1) * i] = S[row, column] * A
    return found


def block_diag(*blocks: Tensor) -> Tensor:
    size = sum(len(b) for b in blocks)
    found, at = torch.zeros(size, size).to(blocks[0]), 0
    for block in blocks:
        found[at : at + len(block), at : at + len(block)] = block
        at += len(block)
    return found


# --- factors of a plain multilayer perceptron, with no module involved --------------------------------------------------


def perceptron_moments(
    weights: list[Tensor],
    biases: list[Tensor | None],
    activation: Callable[[Tensor], Tensor],
    loss: Formula,
    x: Tensor,
    y: Tensor,
) -> list[tuple[Tensor, Tensor]]:
    """(A, S) of every layer with expected labels: A = mean of a aᵀ, S = mean of (df/dz)ᵀ H_out (df/dz)."""

    def run(shifts: list[Tensor], one: Tensor) -> tuple[Tensor, list[Tensor]]:
        inputs, h = [], one
        for layer, (W, b, shift) in enumerate(zip(weights, biases, shifts, strict=True)):
            h = activation(h) if layer else h
            inputs.append(h if b is None else torch.cat([h, torch.ones(1).to(h)]))
            h = W @ h + shift + (0 if b is None else b)
        return h, inputs

    zero = [torch.zeros(len(W)).to(x) for W in weights]
    f, inputs = vmap(lambda one: run(zero, one))(x)
    J = vmap(jacrev(lambda shifts, one: run(shifts, one)[0]), in_dims=(None, 0))(zero, x)  # each (N, F, o)
    H = vmap(hessian(loss))(f, y)
    found = []
    for a, j in zip(inputs, J, strict=True):
        found.append((a.T @ a / len(x), torch.einsum("nfo,nfg,ngp->op", j, H, j) / len(x)))
    return found


# --- comparing ----------------------------------------------------------------------------------------------------------


def difference(came: Tensor, expected: Tensor) -> float:
    """‖came − expected‖ / ‖expected‖; the plain norm where expected is 0."""
    assert came.shape == expected.shape, f"shape {tuple(came.shape)}, expected {tuple(expected.shape)}"
    scale = float(expected.double().norm())
    return float((came.double() - expected.double()).norm()) / (scale if scale > 1e-200 else 1.0)


def assert_close(came: Tensor, expected: Tensor, tolerance: float) -> None:
    error = difference(came, expected)
    assert error <= tolerance, f"relative error {error:.3g}, expected at most {tolerance:g}\n{came}\n{expected}"
