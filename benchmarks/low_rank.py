"""Queries of sequences at low rank: what they keep of exact scores, and what meeting the examples takes.

    python benchmarks/low_rank.py            # two minutes; nothing is left but results/low_rank.json

Notebook 08's model of two plays, its MLP layers (65,600 numbers each), 320 of its 2,000 sequences of 128 characters, 40
completions of 15 characters after 60 from others. The model's own passes are the same for all and are made
once, beforehand. Each row: a rank, the CPU-seconds of its contractions and of exact ones for 1, 10 and 40 queries, and
the mean and least correlation of a query's scores with exact ones. Beside the weighted metric (inflib.low_rank), the
plain one: P_q's own leading singular vectors, as the paper has it.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import torch
from measure import Cost
from run import machine
from store import rounded
from torch import Tensor

from inflib import NextToken, completion, ekfac, precondition
from inflib.batches import walk
from inflib.contractions import Pairs, contract
from inflib.hooks import Matrices
from inflib.kronecker import Kronecker
from inflib.lab.language_models import corpus_of, language_model
from inflib.low_rank import Folded, leading
from inflib.low_rank.leading import leading_queries
from inflib.proof import Proof
from inflib.queries import gather
from inflib.selection import select

RESULTS = Path(__file__).parent / "results" / "low_rank.json"
RANKS = (1, 2, 4, 8, 16, 32)
ASKED = (1, 10, 40)
EVERY = 6  # the 334 sequences of which 320 make whole batches


def plain(P: Matrices, rank: int) -> dict[str, Folded]:
    """Each P_q's own leading singular vectors."""
    found = {}
    for name, stack in P.items():
        both = list(leading(stack, rank))
        x, y = (torch.cat([pair[side].T for pair in both]) for side in (0, 1))
        found[name] = Folded(y, x, tuple(pair[0].shape[1] for pair in both))
    return found


def weighted(asked: list[Pairs], curvature: Kronecker, rank: int) -> dict[str, Folded]:
    inverse = curvature.inverse_eigenvalues(None)
    return {
        k: Folded.joined([leading_queries(found[k], k, curvature, inverse[k], rank) for found in asked])
        for k in inverse
    }


def scores(folded: dict[str, Folded], training: list[Pairs]) -> Tensor:
    """(Q, N)."""
    return torch.cat([sum(x.contract(found[k]) for k, x in folded.items()) for found in training], dim=1)  # type: ignore


def first(folded: dict[str, Folded], count: int) -> dict[str, Folded]:
    """Of so many queries alone."""
    return {
        k: Folded(x.a[: sum(x.ranks[:count])], x.g[: sum(x.ranks[:count])], x.ranks[:count]) for k, x in folded.items()
    }


def main() -> None:
    torch.set_num_threads(1)
    corpus, objective = corpus_of("shakespeare"), NextToken()
    model = language_model("shakespeare", corpus, dtype=torch.float32)
    train, asked = corpus[slice(0, 320 * EVERY, EVERY)].batches(32), corpus[slice(3, 40 * 8 * EVERY, 8 * EVERY)].texts
    words = corpus.vocabulary
    queries = [completion(words.encode(t[:60]), words.encode(t[60:75])) for t in asked]
    curvature = ekfac(model, objective, train, ["blocks.*.mlp.*"], progress=False)
    layers = select(model, list(curvature.layers))
    proof = Proof(model, layers, objective)
    training = [dict(proof.pairs(batch)) for batch in walk(train, progress=False)]
    pairs = gather(model, layers, objective, queries, "queries", "log_likelihood", False)
    P = precondition(model, objective, queries, curvature, progress=False).x

    def exactly(count: int) -> Tensor:
        some = {k: x[:count] for k, x in P.items()}
        return torch.cat([contract(some, found) for found in training], dim=1)

    exact = exactly(len(queries))
    rows: list[dict[str, Any]] = [{"exact": True, **{str(n): _seconds(partial(exactly, n)) for n in ASKED}}]
    print(rows[-1], flush=True)
    for rank in RANKS:
        with Cost() as once:
            short = weighted(pairs, curvature, rank)
        row: dict[str, Any] = {"rank": rank, "once": once.cpu_s}
        for name, folded in (("weighted", short), ("plain", plain(P, rank))):
            each = torch.stack(
                [torch.corrcoef(torch.stack(pair))[0, 1] for pair in zip(scores(folded, training), exact, strict=True)]
            )
            row |= {f"{name}_mean": float(each.mean()), f"{name}_least": float(each.min())}
        rows.append(row | {str(n): _seconds(partial(scores, first(short, n), training)) for n in ASKED})
        print(rows[-1], flush=True)
    facts = {"machine": machine(), "sequences": sum(len(y) for _, y in train), "queries": len(queries), "rows": rows}
    RESULTS.write_text(json.dumps(rounded(facts), indent=1) + "\n")


def _seconds(work: Any) -> float:
    """CPU-seconds, the least of two."""
    costs = []
    for _ in range(2):
        with Cost() as cost:
            work()
        costs.append(cost.cpu_s)
    return min(costs)


if __name__ == "__main__":
    main()
