"""What is known without any library: gradients by ``torch.func``, dense matrices, refits of a linear model."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, vmap

from .library import Case, Examples

Named = dict[str, Tensor]


def gradients(case: Case, examples: Examples) -> Tensor:
    """∇ℓ of every example, (N, D): each layer's weights and bias, one layer behind the other."""
    parameters = dict(case.model.named_parameters())

    def loss(weights: Named, x: Tensor, y: Tensor) -> Tensor:
        outputs = functional_call(case.model, weights, (x[None],))[0]
        return 0.5 * (outputs - y).square().sum() if case.loss == "squared error" else F.cross_entropy(outputs, y)

    found = vmap(grad(loss), (None, 0, 0))({k: p.detach() for k, p in parameters.items()}, *_plain(examples))
    return torch.cat([part for _, part in blocks(case.model, found)], 1)


def scores(case: Case, damping: float) -> Tensor:
    """∇ℓ_qᵀ (C + λ)⁻¹ ∇ℓ_n with C the layers' own blocks of the exact curvature, (Q, N)."""
    C = curvature(case)
    of_queries, of_train = gradients(case, case.queries), gradients(case, case.train)
    return of_queries @ torch.linalg.solve(C + damping * torch.eye(len(C), dtype=C.dtype), of_train.T)


def curvature(case: Case) -> Tensor:
    """(D, D): the Fisher's blocks, of the labels that the case asks for; "expected" is the Gauss-Newton matrix."""
    if case.labels == "observed":
        g = gradients(case, case.train)
        return _only_blocks(case, g.T @ g / len(g))
    weights = {k: p.detach() for k, p in case.model.named_parameters()}

    def outputs(weights: Named, x: Tensor) -> Tensor:
        return functional_call(case.model, weights, (x[None],))[0]

    jacobians = vmap(jacrev(outputs), (None, 0))(weights, case.train.inputs)  # {name: (N, c, …)}
    J = torch.cat([part for _, part in blocks(case.model, jacobians, outputs=True)], 2)  # (N, c, D)
    p = case.model(case.train.inputs).detach().softmax(-1)
    H = p.diag_embed() - p[:, :, None] * p[:, None] if case.loss == "cross-entropy" else torch.eye(J.shape[1]).to(J)
    return _only_blocks(case, torch.einsum("ncx,ncd,ndy->xy", J, H.expand(len(J), -1, -1), J) / len(J))


def blocks(model: nn.Module, found: Named, outputs: bool = False) -> list[tuple[str, Tensor]]:
    """(layer, its weights row by row with the bias behind each row) of tensors named as parameters are."""
    keep = 2 if outputs else 1  # axes before the parameter's own
    parts = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            weight, bias = found[f"{name}.weight"], found[f"{name}.bias"][..., None]
            parts.append((name, torch.cat([weight, bias], -1).flatten(keep)))
    return parts


def _only_blocks(case: Case, matrix: Tensor) -> Tensor:
    sizes = [m.weight.numel() + m.bias.numel() for m in case.model.modules() if isinstance(m, nn.Linear)]
    return matrix * torch.block_diag(*(torch.ones(n, n) for n in sizes)).to(matrix)


def _plain(examples: Examples) -> tuple[Tensor, Tensor]:
    return examples.inputs, examples.targets


# --- refits --------------------------------------------------------------------------------------------------------


def ridge(case: Case, penalty: float, extra: Tensor | None = None) -> Tensor:
    """The weights (o, i + 1) that minimise (1/N) Σ ½‖W a − y‖² + Σ extra_n ℓ_n + ½ penalty ‖W‖²."""
    a, y = _with_one(case.train.inputs), case.train.targets
    weights = torch.full((len(a), 1), 1 / len(a), dtype=a.dtype)
    if extra is not None:
        weights = weights + extra[:, None]
    left = (weights * a).T @ a + penalty * torch.eye(a.shape[1], dtype=a.dtype)
    return torch.linalg.solve(left, (weights * a).T @ y).T


def refitted_slopes(case: Case, penalty: float, step: float = 1e-4) -> Tensor:
    """dm/dε (Q, N) of a ridge regression, by fitting it anew with ε = ±``step`` on one example after the other."""
    columns = []
    for n in range(len(case.train)):
        extra = torch.zeros(len(case.train), dtype=torch.float64)
        extra[n] = step
        up, down = (_measured(case, ridge(case, penalty, sign * extra)) for sign in (1, -1))
        columns.append((up - down) / (2 * step))
    return torch.stack(columns, 1)


def _measured(case: Case, W: Tensor) -> Tensor:
    """m = −½‖W a − y‖² of every query, (Q,)."""
    return -0.5 * (_with_one(case.queries.inputs) @ W.T - case.queries.targets).square().sum(1)


def _with_one(x: Tensor) -> Tensor:
    return torch.cat([x, torch.ones_like(x[:, :1])], 1)
