"""What a store keeps of the exact scores, for how many bytes, and how long it takes to build and to ask.

    python benchmarks/store.py --folder build/store            # all stages, those that are done are not done again
    python benchmarks/store.py --folder build/store --stages fit exact

Notebook 08's model of two plays, its MLP layers, 2,000 sequences of 128 characters; 40 queries, completions of 15
characters from the other plays (held out). Damping 0.1 · mean everywhere. Each row: bytes a layer and sequence
(float32 takes 263,000), the mean over queries of the correlation with exact EK-FAC scores, and the share of the exact
ten strongest that are among the first 50 and 100. Beside the store, at equal bytes: two random projections of
activations and gradients (LoGra, Choe et al. 2024) with their own Fisher matrix, a random projection of the
half-whitened gradient, and its best approximation of rank c, each in half precision. What is there is written to
results/store.json.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import Cost
from run import machine
from torch import Tensor

from inflib import NextToken, Store, TrainIndex, completion, damping_of, ekfac, influence, load, save, self_influence
from inflib.index.sides import captured
from inflib.kronecker import Kronecker
from inflib.lab.language_models import corpus_of, language_model
from inflib.lab.shakespeare import TWO_PLAYS, shakespeare

RESULTS = Path(__file__).parent / "results" / "store.json"
STORES: dict[str, dict[str, Any]] = {
    "all axes, 1 bit": dict(axes=1.0),
    "a quarter, 1 bit": dict(axes=0.25),
    "a quarter, 2 bits": dict(axes=0.25, bits=2),
    "an eighth, 1 bit": dict(axes=0.125),
    "a sixteenth, 1 bit": dict(axes=0.0625),
    "928 axes, 1 bit": dict(axes=928),
    "928 components of a quarter, 1 bit": dict(axes=0.25, components=928, sample=1000),
    "464 components of a quarter, 2 bits": dict(axes=0.25, components=464, sample=1000, bits=2),
}
LOGRA = (32, 32)
PROJECTED = 1024
RANKS = (1, 4)


class Study:
    """The model, its data, and a folder in which stages leave what they found."""

    def __init__(self, folder: Path):
        self.folder, self.objective = folder, NextToken()
        folder.mkdir(parents=True, exist_ok=True)
        corpus = corpus_of("shakespeare")
        self.model = language_model("shakespeare", corpus, dtype=torch.float32)
        self.train, self.N = corpus.batches(32), len(corpus)
        self.queries = held_out(corpus.vocabulary)

    @property
    def curvature(self) -> Kronecker:
        return load(self.folder / "curvature.safetensors", self.model)

    def done(self, stage: str) -> dict[str, Any] | None:
        path = self.folder / f"{stage}.json"
        return json.loads(path.read_text()) if path.exists() else None

    def keep(self, stage: str, facts: dict[str, Any]) -> None:
        (self.folder / f"{stage}.json").write_text(json.dumps(facts))


def held_out(vocabulary: Any, count: int = 40) -> list[Any]:
    """Completions of 15 characters after 60, from plays that the model was not trained on."""
    known, rest = set(vocabulary.symbols), shakespeare(128)
    outside = [n for n in range(len(rest)) if not TWO_PLAYS.start - 128 < n * 128 < TWO_PLAYS.stop]
    texts = [text for text in rest[outside].texts if set(text) <= known]
    picked = np.random.Generator(np.random.Philox(0)).choice(len(texts), count, replace=False)
    return [completion(vocabulary.encode(texts[n][:60]), vocabulary.encode(texts[n][60:75])) for n in picked]


# --- stages ----------------------------------------------------------------------------------------------------------


def fit(study: Study) -> dict[str, Any]:
    with Cost() as cost:
        curvature = ekfac(study.model, study.objective, study.train, ["blocks.*.mlp.*"], progress=False)
    save(curvature, study.folder / "curvature.safetensors")
    return {"cpu_s": cost.cpu_s}


def exact(study: Study) -> dict[str, Any]:
    with Cost() as cost:
        scores = influence(study.model, study.objective, study.train, study.queries, study.curvature, progress=False)
    torch.save(scores, study.folder / "exact.pt")
    return {"cpu_s": cost.cpu_s}


def own(study: Study) -> dict[str, Any]:
    with Cost() as cost:
        self_influence(study.model, study.objective, study.train, study.curvature, progress=False)
    return {"cpu_s": cost.cpu_s}


def one_store(study: Study, name: str) -> dict[str, Any]:
    """Build a store, ask it, search in it; its folder is removed."""
    path = study.folder / "store"
    shutil.rmtree(path, ignore_errors=True)
    curvature = study.curvature
    arguments = (study.model, study.objective, study.train, curvature)
    with Cost() as cost:
        store = TrainIndex.build(*arguments, path=path, shard=500, progress=False, **STORES[name])
    assert isinstance(store, Store)
    prepared = store.prepare(study.model, study.objective, study.queries)
    store.scores(prepared)  # every shard is looked at once
    one = {k: x[:1] for k, x in prepared.items()}
    with Cost() as asked:
        store.scores(one)  # type: ignore[arg-type]
    scores, bounds = store.scores(prepared), store.bounds(prepared)
    right = torch.load(study.folder / "exact.pt")
    error = (scores - right).abs()
    facts = {"build_cpu_s": cost.cpu_s, "peak_mib": cost.peak_mib - cost.baseline_mib, "query_cpu_s": asked.cpu_s}
    facts["query_wall_s"] = asked.wall_s
    facts |= {"bytes": store.record.itemsize / len(curvature.layers), "pairs": error.numel()}
    facts |= {"bounds_broken": int((error > bounds).sum()), "error_of_bound": float((error / bounds).max())}
    facts |= compared(scores, right)
    if "components" in STORES[name]:
        rest = outside_sample(study, STORES[name]["sample"])
        facts["outside_sample"] = {"examples": len(rest), **compared(scores[:, rest], right[:, rest])}
    some = study.queries[:4]
    found = store.search(study.model, study.objective, some, study.train, k=10, candidates=100)
    pairs = zip(found.examples.tolist(), right[: len(some)].topk(10).indices.tolist(), strict=True)
    facts["search"] = {
        "found": float(np.mean([len({*came} & {*true}) / 10 for came, true in pairs])),  # of the exact ten
        "last_place": int(found.places.max()),
        "not_proved_for": found.open.tolist(),
    }
    shutil.rmtree(path)
    return facts


def outside_sample(study: Study, sample: int) -> list[int]:
    """The examples that no component was fitted on: the store draws whole batches by its seed, 0."""
    sizes = [len(y) for _, y in study.train]
    order = np.random.Generator(np.random.Philox(0)).permutation(len(sizes))
    enough = int(np.searchsorted(np.cumsum(np.array(sizes)[order]), sample)) + 1
    starts = np.cumsum([0, *sizes])
    return [n for batch in sorted(order[enough:].tolist()) for n in range(starts[batch], starts[batch + 1])]


def compared(scores: Tensor, right: Tensor) -> dict[str, float]:
    """Mean over queries: Pearson correlation, NDCG@20 and the share of the exact ten among the first 50 and 100."""
    rows = list(zip(scores.double(), right.double(), strict=True))
    facts = {"pearson": float(np.mean([float(torch.corrcoef(torch.stack(pair))[0, 1]) for pair in rows]))}
    facts["ndcg_20"] = float(np.mean([ndcg(near, true) for near, true in rows]))
    for first in (50, 100):
        share = [
            len({*true.topk(10).indices.tolist()} & {*near.topk(first).indices.tolist()}) / 10 for near, true in rows
        ]
        facts[f"recall_{first}"] = float(np.mean(share))
    return facts


def ndcg(near: Tensor, true: Tensor, k: int = 20) -> float:
    """Of the exact scores, those below 0 counted as 0, in the order of the others."""
    gain, weight = true.clamp_min(0), 1 / torch.arange(2, k + 2).double().log2()
    return float((gain[near.topk(k).indices] * weight).sum() / (gain.topk(k).values * weight).sum())


# --- other ways to keep as many bytes --------------------------------------------------------------------------------


def others(study: Study) -> dict[str, Any]:
    """LoGra, a random projection of the half-whitened gradient and its rank-c approximation, in one pass each side."""
    curvature = study.curvature
    keepers: dict[str, Callable[[str, Tensor, Tensor], Tensor]] = {
        "two random projections 32 × 32 (LoGra)": logra(curvature),
        "a random projection of the whitened gradient, 1,024": projection(curvature),
    }
    kept = {name: {k: [] for k in curvature.layers} for name in keepers}
    asked: dict[str, Any] = {name: {k: [] for k in curvature.layers} for name in keepers}
    ranks = {c: [] for c in RANKS}
    P = {k: torch.cat([t for _, t in sides]) for k, sides in gathered(study, study.queries, "log_likelihood").items()}
    for side, data, measurement in ((asked, study.queries, "log_likelihood"), (kept, study.train, None)):
        for _, found in captured(study.model, study.objective, data, "train", curvature, measurement):
            for name, pair in found.items():
                t = whitened(curvature, name, pair)
                for what, keeper in keepers.items():
                    side[what][name].append(keeper(name, pair, t))
                if side is kept:
                    for c in RANKS:
                        ranks[c].append((name, P[name] @ low_rank(t, c, curvature.shapes[name]).T))
    right = torch.load(study.folder / "exact.pt")
    rows = {}
    for what in keepers:
        scores = torch.zeros_like(right)
        for name in curvature.layers:
            q, n = torch.cat(asked[what][name]), torch.cat(kept[what][name]).half().float()
            if "LoGra" in what:
                F = n.T @ n / len(n)
                q = torch.linalg.solve(F + 0.1 * F.diagonal().mean() * torch.eye(len(F)), q.T).T
            scores -= q @ n.T
        rows[what] = {"bytes": 2 * PROJECTED, **compared(scores, right)}
    for c in RANKS:
        scores = -sum(torch.cat([s for name, s in ranks[c] if name == layer], dim=1) for layer in curvature.layers)
        o, i = next(iter(curvature.shapes.values()))
        rows[f"rank {c} of the whitened gradient"] = {"bytes": 2 * c * (o + i), **compared(scores, right)}  # type: ignore[arg-type]
    return rows


def gathered(study: Study, data: Any, measurement: str) -> dict[str, list[tuple[int, Tensor]]]:
    found: dict[str, list[tuple[int, Tensor]]] = {}
    for batch, pairs in captured(study.model, study.objective, data, "queries", study.curvature, measurement):
        for name, pair in pairs.items():
            found.setdefault(name, []).append((batch.start, whitened(study.curvature, name, pair)))
    return found


def whitened(curvature: Kronecker, name: str, pair: Any) -> Tensor:
    """Half-whitened gradients (b, D)."""
    white = (curvature.eigenvalues[name] + damping_of(curvature)[name]).rsqrt()
    return (curvature.Q_S[name].T @ pair.matrices() @ curvature.Q_A[name] * white).flatten(1)


def logra(curvature: Kronecker) -> Callable[[str, Any, Tensor], Tensor]:
    """(P_g g)ᵀ (P_a a) summed over tokens, (b, 1024)."""
    draw = torch.Generator().manual_seed(0)
    sides = {
        k: tuple(torch.randn(d, r, generator=draw) / r**0.5 for d, r in zip(shape, LOGRA, strict=True))
        for k, shape in curvature.shapes.items()
    }
    return lambda name, pair, _: torch.bmm((pair.g @ sides[name][0]).mT, pair.a @ sides[name][1]).flatten(1)


def projection(curvature: Kronecker) -> Callable[[str, Any, Tensor], Tensor]:
    """Random signs, a Fourier transform, 512 of its complex numbers: an orthogonal projection, scaled, (b, 1024)."""
    draw, plans = torch.Generator().manual_seed(0), {}
    for name, (o, i) in curvature.shapes.items():
        signs = torch.randint(0, 2, (o * i,), generator=draw) * 2.0 - 1
        plans[name] = signs, torch.randperm(o * i // 2 - 1, generator=draw)[: PROJECTED // 2] + 1

    def keep(name: str, _: Any, t: Tensor) -> Tensor:
        signs, at = plans[name]
        spectrum = torch.fft.rfft(t * signs, norm="ortho")[:, at]
        return torch.view_as_real(spectrum).flatten(1) * (t.shape[1] / (PROJECTED / 2) / 1) ** 0.5

    return keep


def low_rank(t: Tensor, c: int, shape: tuple[int, int]) -> Tensor:
    """The best approximation of rank c (two steps of subspace iteration), its factors in half precision, (b, D)."""
    U, s, V = torch.svd_lowrank(t.unflatten(1, shape), q=c + 4, niter=2)
    left, right = (U[..., :c] * s[:, None, :c]).half().float(), V[..., :c].half().float()
    return (left @ right.mT).flatten(1)


# --- all together ----------------------------------------------------------------------------------------------------


def stages() -> Iterator[tuple[str, Callable[[Study], dict[str, Any]]]]:
    yield from (("fit", fit), ("exact", exact), ("own", own), ("others", others))
    for name in STORES:
        yield f"store: {name}", lambda study, name=name: one_store(study, name)  # type: ignore[misc]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where stages keep what they found")
    parser.add_argument("--stages", nargs="*", help="by the beginning of their names (default: all)")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    study = Study(options.folder)
    for name, act in stages():
        wanted = options.stages is None or any(name.startswith(some) for some in options.stages)
        if wanted and study.done(name) is None:
            torch.manual_seed(0)
            study.keep(name, act(study))
        if (facts := study.done(name)) is not None:
            print(f"{name:48}", {k: v for k, v in facts.items() if k != "search"}, flush=True)
    found = {name: facts for name, _ in stages() if (facts := study.done(name)) is not None}
    facts = {"machine": machine(), "threads": options.threads, "torch": torch.__version__, "sequences": study.N}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(rounded(facts | {"stages": found}), indent=1, ensure_ascii=False) + "\n")


def rounded(value: Any) -> Any:
    """Four digits of every fraction inside."""
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    if isinstance(value, list):
        return [rounded(one) for one in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


if __name__ == "__main__":
    os.environ["TQDM_DISABLE"] = "1"
    main()
