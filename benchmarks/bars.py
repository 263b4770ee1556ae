"""How often does an error bar hold what retraining shows? Three networks, groups of 10 and 50 digits left out.

    python benchmarks/bars.py               # all settings, about 8 CPU-minutes; goes on where it was
    python benchmarks/bars.py --seconds 30  # some pieces of it

In each setting 20 groups of k of the 2,000 digits are left out: 8 of those whose scores for one query are the largest,
4 of the most negative, 8 drawn by chance; and 8 seeds retrained without each. Change: of the margins of 50 queries,
mean over the seeds. Bars of 90% are those of ``inflib.doubt.error_bars``, five networks from other seeds, at a damping
chosen without retraining (``damping_choice.by_theory``), of EK-FAC's scores and of refined ones (10 steps), each with
the other, of two of the networks, beside it. The measured change has an error of its own: a bar counts as covering it
where the two differ by no more than half the bar and the change's own 90% error, added as squares.

    coverage    share of (query, group) pairs that the bar covers, with its interval over queries and groups: of
                networks and damping alone, and with all parts
    slope       measured over predicted change, least squares through 0; correlation: Pearson's, over all pairs
    decided     share of bars that do not hold 0
    sign        of pairs whose change is two standard errors from 0, the share whose score has its sign: among the
                decided and the undecided
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from cells import Study, arguments, few_queries, kept
from damping_choice import by_theory
from torch import Tensor

from inflib import ekfac, influence, refine
from inflib.doubt.error_bars import combined, student_quantile
from inflib.lab import banks
from inflib.validation import BankRecipe, leave_k_out
from inflib.validation.resampling import draws, two_way

SETTINGS = [(name, k) for k in (50, 10) for name in ("logistic", "decay", "smooth")]
NETWORKS, BESIDE, SEEDS, QUERIES, LEVEL = 5, 2, 8, 50, 0.9
FACTORS = (1.0, 1 / 3, 3.0)


def cell(name: str, k: int) -> dict[str, Any]:
    """All figures of one setting."""
    recipe = few_queries(getattr(banks, name)(), QUERIES)
    seeds = range(100, 100 + NETWORKS)
    each = {
        method: [kept(f"bars {name}, {method}, seed {seed}", partial(scores, recipe, method, seed)) for seed in seeds]
        for method in ("EK-FAC", "refined")
    }
    groups = groups_of(torch.stack([one[0] for one in each["EK-FAC"]]).mean(0), k)
    change = kept(f"bars {name}, change without {k}", lambda: leave_k_out(recipe, groups, SEEDS, progress=False).change)
    sums = {
        method: [-one.double()[..., groups].sum(-1) / recipe.examples for one in found]
        for method, found in each.items()
    }
    return {
        method: figures(sums[method], [o[0] - s[0] for o, s in zip(sums[other], sums[method], strict=True)], change)
        for method, other in (("EK-FAC", "refined"), ("refined", "EK-FAC"))
    }


def scores(recipe: BankRecipe, method: str, seed: int) -> Tensor:
    """One network's, at λ, λ/3 and 3λ, (3, Q, N)."""
    data = recipe.objective, recipe.data(), recipe.asked()
    model = recipe.train(seed, progress=False).model(0)
    curvature = ekfac(model, *data[:2])
    used = curvature if method == "EK-FAC" else refine(curvature, model, *data[:2], steps=10, progress=False)
    damping = by_theory(recipe.training, recipe.examples)
    return torch.stack([influence(model, *data, used, f * damping, measurement="margin") for f in FACTORS])


def groups_of(score: Tensor, k: int) -> Tensor:
    """Positions of 20 groups, (20, k)."""
    generator = torch.Generator().manual_seed(k)
    drawn = [torch.randperm(score.shape[1], generator=generator)[:k] for _ in range(8)]
    return torch.stack([*score[:8].topk(k).indices, *(-score[8:12]).topk(k).indices, *drawn])


def figures(networks: list[Tensor], gaps: list[Tensor], change: Tensor) -> dict[str, Any]:
    """Of predicted changes {network: (3, Q, K)}, their differences from another method's, and measured (R, Q, K)."""
    members = [one[None] for one in networks]
    bars, narrow = combined(members, gaps[:BESIDE], LEVEL), combined(members, level=LEVEL)
    actual, error = change.mean(0), change.std(0) / len(change) ** 0.5
    seen = actual.abs() > 2 * error
    right, decided = bars.scores.sign() == actual.sign(), ~bars.undecided
    own = student_quantile(LEVEL, len(change) - 1) * error

    def covered(b: Any, columns: slice = slice(None)) -> list[float]:
        reach = ((b.high - b.scores).square() + own.square()).sqrt()
        return with_interval(((b.scores - actual).abs() <= reach)[:, columns])

    return {
        "coverage": covered(bars),
        "coverage_of_chosen_groups": covered(bars, slice(0, 12)),
        "coverage_of_drawn_groups": covered(bars, slice(12, None)),
        "coverage_without_approximation": covered(narrow),
        "slope": float((bars.scores * actual).sum() / bars.scores.square().sum()),
        "correlation": float(torch.corrcoef(torch.stack([bars.scores.flatten(), actual.flatten()]))[0, 1]),
        "decided": share(decided),
        "decided_without_approximation": share(~narrow.undecided),
        "sign_right_decided": share(right[decided & seen]),
        "sign_right_undecided": share(right[~decided & seen]),
        "sign_right_decided_without_approximation": share(right[~narrow.undecided & seen]),
        "seen": share(seen),
    }


def share(which: Tensor) -> float | None:
    """The share that is true; None of none."""
    return float(which.double().mean()) if which.numel() else None


def with_interval(which: Tensor) -> list[float]:
    """The share of (query, group) pairs (Q, K) that is true, and its interval, both queries and groups drawn again."""
    rows, columns = (draws(count, 1000, 0, k) for k, count in enumerate(which.shape))
    found = two_way(which.double().mean(1), which.double() @ columns.T / which.shape[1], rows)
    return [found.mean, found.low, found.high]


def main() -> None:
    arguments(__doc__)
    study = Study("bars")
    for name, k in SETTINGS:
        study.cell(f"{name}, {k} left out", partial(cell, name, k))


if __name__ == "__main__":
    main()
