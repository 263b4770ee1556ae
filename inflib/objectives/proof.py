"""Do a loss, its seeds and its sampler belong together? Seen on a few examples of a fit's first batch.

    each ℓ_n is a function of f_n alone         ℓ of some examples together = ℓ of each by itself
    H_out has no negative eigenvalue            else there is no Gauss-Newton curvature
    Σ_c s_c s_cᵀ = H_out                        (Σ s sᵀ) u = H_out u for random u, H_out by autograd
    E_y[s sᵀ] = H_out, E_y[s] = 0               s at some hundred drawn labels, as near as so many draws can tell

The third is looked at twice: at the model's outputs, and with these drawn in to where no probability is so near to 1
that H_out is lost to rounding. The fourth is looked at there only. Everything is done on the outputs: no pass through
the model, whatever its size. A sampler over more outputs than ``FEW`` that inflib wrote is left to inflib's own tests.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..batches import rows_of
from ..randomness import LabelStreams
from .derivatives import output_hessians, output_products, per_example, precisely, root
from .objective import Objective, part, written
from .weights import unweighted

EXAMPLES = 8  # looked at
FEW = 32  # outputs of an example whose matrices are compared whole, with more draws
MANY = 256  # outputs of an example whose Hessian is too large to look for negative eigenvalues
REACH = 4.0  # the largest output once drawn in
GROUPS = 32  # of draws, whose spread says how near the mean of all of them is


def check_objective(objective: Objective, outputs: Tensor, targets: Any, labels: str) -> None:
    """Raise ValueError where loss and seeds, or loss and sampler, contradict each other on some of these examples."""
    outputs = outputs.detach()
    some = sorted({round(k * (len(outputs) - 1) / (EXAMPLES - 1)) for k in range(EXAMPLES)})
    f, y = outputs[some], rows_of(targets, some, len(outputs))
    _check_separate(objective, f, y)
    if labels == "observed":
        return
    check_curved(objective, f, y)
    if labels == "sampled":
        _check_sampler(objective, f, y)
    elif not from_hessian(objective):
        _check_seeds(objective, f, y)


def from_hessian(objective: Objective) -> bool:
    """Whether the objective's seeds are taken from its loss, as none were written for it."""
    return not written(unweighted(objective, None)[0], "seeds")


def check_curved(objective: Objective, outputs: Tensor, targets: Any) -> None:
    """Raise ValueError where H_out has an eigenvalue below 0; more than ``MANY`` outputs are not looked at."""
    if outputs[0].numel() > MANY:
        return
    H = precisely(lambda f, y: output_hessians(objective.loss, f, y), outputs, targets)
    if bool(H.isfinite().all()):
        root(H, _name(objective))


def _check_separate(objective: Objective, f: Tensor, y: Any) -> None:
    if len(f) == 1:
        f, y = torch.cat([f, f / 2 + 0.1]), rows_of(y, [0, 0], 1)

    def losses(f: Tensor, y: Any) -> Tensor:
        return per_example(objective.loss(f, y), f, "loss").detach()

    together = precisely(losses, f, y)
    alone = torch.cat([precisely(losses, f[[n]], rows_of(y, [n], len(f))) for n in range(len(f))])
    tolerance = (1e-9 if together.dtype == torch.float64 else 1e-4) * max(1.0, float(together.abs().max()))
    # NaN alone too; where it is in company, the checks of gradients and factors say so
    apart = ~((together - alone).abs() <= tolerance) & together.isfinite()
    if bool(apart.any()):
        n = int(apart.nonzero()[0])
        raise ValueError(
            f"{_name(objective)}: an example's loss is {float(alone[n]):.6g} by itself and {float(together[n]):.6g} "
            f"in a batch of {len(f)}; expected it to depend on no other example. Leave means, maxima and norms over "
            "the batch out of the loss: reduction='none', and sum over everything but the first axis."
        )


def _check_seeds(objective: Objective, f: Tensor, y: Any) -> None:
    near = _products(objective, _drawn_in(f), y)
    for got, want in (near, _products(objective, f, y)):
        error, size = (_norms(x) for x in (got - want, want))
        error = error / torch.maximum(size, _norms(near[1])).clamp_min(torch.finfo(error.dtype).tiny)
        if float(error.max()) > (1e-6 if got.dtype == torch.float64 else 1e-3):
            raise ValueError(
                f"{_name(objective)}: its seeds are not those of its loss: Σ s sᵀ u and H u differ by "
                f"{float(error.max()):.2g} (relative) for a random u on the first batch; expected Σ_c s_c s_cᵀ = H, "
                "the Hessian of the loss in the outputs. Correct seeds(outputs, targets), or leave them out: they "
                "are then taken from the Hessian."
            )


def _products(objective: Objective, f: Tensor, y: Any) -> tuple[Tensor, Tensor]:
    """(Σ s sᵀ) u and H_out u for three random u, each (3, B, ...)."""

    def products(f: Tensor, y: Any) -> tuple[Tensor, Tensor]:
        u = torch.randn(3, *f.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64, device="cpu").to(
            f
        )
        got = torch.zeros_like(u)
        for s in part(objective, "seeds")(f, y):
            if s.shape != f.shape:
                raise ValueError(
                    f"{_name(objective)}: a seed has shape {tuple(s.shape)}; expected {tuple(f.shape)}, the outputs'. "
                    "Yield one tensor like outputs per term of Σ s sᵀ."
                )
            along = (s * u).reshape(3, len(f), -1).sum(2)  # ⟨s, u⟩, (3, B)
            got += s * along.reshape(3, len(f), *(1 for _ in f.shape[1:]))
        return got, output_products(objective.loss, f, y, u)

    return precisely(products, f, y)


def _check_sampler(objective: Objective, f: Tensor, y: Any) -> None:
    few = f[0].numel() <= FEW
    if not few and _inflibs(objective):
        return
    rows = slice(0, 4 if few else 1)
    f, y = _drawn_in(f[rows]).to(torch.promote_types(f.dtype, torch.float32)), rows_of(y, rows, len(f))
    s = _drawn_gradients(objective, f, y, 8 if few else 1)  # (draws, B, F)
    H = output_hessians(objective.loss, f, y).mean(0)[None] if few else _traces(objective, f, y)
    groups = s.unflatten(0, (GROUPS, -1)).flatten(1, 2)
    each = groups.mT @ groups / groups.shape[1] if few else groups.square().sum((1, 2))[:, None, None] / groups.shape[1]
    gap, noise = float((each.mean(0) - H.mean(0)).norm()), sum(_spread(x) for x in (each, H))
    if gap > 6 * noise + 0.05 * float(H.mean(0).norm()) or _has_a_mean(s.flatten(1)):
        came, expected = (float(torch.diagonal(x.mean(0)).sum()) for x in (each, H))
        raise ValueError(
            f"labels='sampled': at labels that {_name(objective)}.sample draws, the loss's gradient in the outputs has "
            f"a second moment of trace {came:.3g} about a mean that should be 0, its Hessian the trace {expected:.3g}; "
            "expected the two matrices to be equal, as for a negative log-likelihood and labels drawn from it. The "
            "sampler is another loss's, or none can exist. Use labels='expected', which needs none, or 'observed', or "
            "define sample(outputs, uniforms, targets) for this loss."
        )


def _drawn_gradients(objective: Objective, f: Tensor, y: Any, times: int) -> Tensor:
    """s at ``GROUPS · times`` labels drawn for each of these examples, (draws, B, F)."""
    own = list(range(len(f))) * times
    many, theirs, found = f[own], rows_of(y, own, len(f)), []
    count = objective.uniforms(many)
    for group in range(GROUPS):
        u = LabelStreams(0, 0, 0).uniforms(group * len(own), len(own), count)
        drawn = objective.sample(many, u, theirs)
        s = part(objective, "sampled_gradient")(many, drawn, theirs)
        found.append(s.reshape(times, len(f), -1))
    return torch.cat(found)


def _has_a_mean(s: Tensor) -> bool:
    """Whether independent vectors (K, D) have a mean other than 0: from the inner products of different ones alone."""
    centred = s - s.mean(0)
    apart = ~torch.eye(len(s), dtype=torch.bool, device=s.device)
    square, spread = (s @ s.T)[apart].mean(), (centred @ centred.T)[apart].square().mean().sqrt()
    noise = spread * (2 / (len(s) * (len(s) - 1))) ** 0.5
    return bool(square > 6 * noise + 0.0025 * s.square().sum(1).mean())


def _traces(objective: Objective, f: Tensor, y: Any) -> Tensor:
    """uᵀ H_out u for eight vectors u of signs, whose mean is H_out's trace, (8, 1, 1)."""
    signs = torch.randint(0, 2, (8, *f.shape), generator=torch.Generator().manual_seed(0), device="cpu").to(f) * 2 - 1
    bent = output_products(objective.loss, f, y, signs)
    return (signs * bent).reshape(8, -1).sum(1)[:, None, None] / len(f)


def _spread(x: Tensor) -> float:
    """The standard error, in norm, of the mean over x's first axis; 0 for one."""
    return float((x - x.mean(0)).norm()) / max(1, len(x) * (len(x) - 1)) ** 0.5


def _drawn_in(f: Tensor) -> Tensor:
    """Each example's outputs scaled down to at most ``REACH``; infinite ones (classes left out) as they are."""
    finite = f.isfinite()
    largest = f.where(finite, 0).reshape(len(f), -1).abs().amax(1)
    scale = (REACH / largest.clamp_min(REACH)).reshape(-1, *(1 for _ in f.shape[1:]))
    return torch.where(finite, f * scale, f)


def _norms(x: Tensor) -> Tensor:
    """(K, B, ...) → (B,)."""
    return x.movedim(1, 0).flatten(1).norm(dim=1)


def _inflibs(objective: Objective) -> bool:
    """Whether all that a drawn label's gradient depends on is inflib's own code."""
    inner = unweighted(objective, None)[0]
    names = ("loss", "uniforms", "sample", "sampled_gradient")
    homes = [next(c for c in type(inner).__mro__ if name in vars(c)).__module__ for name in names]
    return not any(name in vars(inner) for name in names) and all(h.startswith("inflib.") for h in homes)


def _name(objective: Objective) -> str:
    return type(unweighted(objective, None)[0]).__name__
