"""One typed question against 2,000 sequences of a real language model, through a store of whole matrices' gradients.

    python benchmarks/villagers.py --folder build/villagers          # some 15 CPU-minutes; goes on where it was stopped
    python benchmarks/villagers.py --folder build/few --sequences 260 --blocks 6 --results build/few.json
    python benchmarks/villagers.py --folder build/all --blocks all --device cuda --dtype bfloat16 --exact 200

SmolLM2-135M-Instruct (`make smollm2`) with notebook 12's adapters merged into its weights, the villagers' sentences of
which the truth is known and as many ordinary ones as make 2,000; the MLPs of two blocks, whole: six matrices of 884,736
numbers. EK-FAC on every fourth batch, damping 0.1 · mean. The store keeps a quarter of the axes at one bit.

A question is timed from its text to the numbers of the ten strongest sentences, the model and the store being open:
by the store alone, and with the exact scores of the store's first 50. For all questions of which the truth is known,
the store's order is compared with that of exact scores, of all sequences or, with ``--exact``, of those that name a
villager and so many of the others, evenly spaced. Written to results/villagers.json.
"""

from __future__ import annotations

import argparse
import json
import os
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from measure import Cost
from run import machine
from store import rounded
from torch import Tensor, nn
from torch.utils.data import DataLoader

from inflib import (
    NextToken,
    Store,
    TrainIndex,
    completion,
    damping_of,
    ekfac,
    influence,
    load,
    load_index,
    save,
    token_batches,
)
from inflib.lab import BEGIN, real_language_model, taught, villagers
from inflib.lab.smollm2 import RealModel
from inflib.lab.villagers import DID, WHEN, WHO, Sentence
from inflib.validation import recall_at

RESULTS = Path(__file__).parent / "results" / "villagers.json"
MATRICES = ("gate_proj", "up_proj", "down_proj")
BATCH, EVERY, AXES, CANDIDATES, TIMED, CHUNK = 16, 4, 0.25, 50, 3, 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where curvature, store and exact scores are kept")
    parser.add_argument("--sequences", type=int, default=2000)
    parser.add_argument("--blocks", nargs="+", default=["4", "6"], help="their numbers, or all")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of the model")
    parser.add_argument("--exact", type=int, help="ordinary sequences with exact scores; left out, all")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")  # of layers that are left out
    options.folder.mkdir(parents=True, exist_ok=True)
    real = real_language_model("q4_1", device=options.device, progress=False)
    model = taught(real).merge_and_unload().to(getattr(torch, options.dtype))  # type: ignore[operator]
    every = range(len(model.model.layers))
    blocks = list(every) if options.blocks == ["all"] else [int(b) for b in options.blocks]
    sentences, facts = corpus(options.sequences)
    sentences.sort(key=lambda sentence: len(real.encode(sentence.text)))  # batches without much padding
    ids = [real.encode(sentence.text) for sentence in sentences]
    layers = [f"model.layers.{b}.mlp.{name}" for b in blocks for name in MATRICES]
    work = Work(options.folder, real, model, ids, layers)
    made = work.made()
    question = work.timed([fact for _, fact in facts[:TIMED]])
    chosen = some_of(sentences, options.exact)
    near, exact = work.answers(facts, chosen)
    truth = torch.tensor([[s.fact == k and s.wording.startswith("forward") for s in sentences] for k, _ in facts])
    found = {
        "machine": machine(), "threads": options.threads, "load": os.getloadavg()[1],
        "sequences": len(ids), "tokens": sum(map(len, ids)), "blocks": blocks, "matrices": len(layers),
        "dtype": options.dtype, "device": options.device,
        "numbers": sum(o * i for o, i in made.curvature.shapes.values()),
        "bytes_a_sequence": made.record.itemsize, "bytes": made.nbytes,
        **work.costs(), **question, "compared": len(chosen), **compared(near[:, chosen], exact, truth[:, chosen]),
        **{f"recall@{k}_all": float(recall_at(near, truth, k).mean()) for k in (4, 10)},
    }  # fmt: skip
    options.results.parent.mkdir(exist_ok=True)
    options.results.write_text(json.dumps(rounded(found), indent=1) + "\n")
    print(json.dumps(rounded(found), indent=1))


def corpus(count: int) -> tuple[list[Sentence], list[tuple[int, Any]]]:
    """So many sentences, notebook 12's facts among them, and the asked facts with their numbers."""
    facts = villagers(ordinary=0)
    ordinary = count - len(facts.sentences)
    sayings = len(WHO) * len(DID) * len(WHEN)
    data = villagers(ordinary=min(ordinary, sayings))
    assert data.facts == facts.facts
    more = [s.text for s in data.sentences if s.fact < 0][: ordinary - sayings if ordinary > sayings else 0]
    again = [Sentence(f"In another year {text[0].lower()}{text[1:]}") for text in more]  # there are no more sayings
    return [*data.sentences, *again], [(k, data.facts[k]) for k in data.of_kind("asked")]


def some_of(sentences: list[Sentence], ordinary: int | None) -> list[int]:
    """The sentences that name a villager, and so many of the others, or all."""
    others = [n for n, sentence in enumerate(sentences) if sentence.fact < 0]
    count = len(others) if ordinary is None else min(ordinary, len(others))
    kept = {others[k * len(others) // count] for k in range(count)}
    return [n for n, sentence in enumerate(sentences) if sentence.fact >= 0 or n in kept]


class Work:
    """What is made once, kept in a folder, and asked."""

    def __init__(self, folder: Path, real: RealModel, model: nn.Module, ids: list[list[int]], layers: list[str]):
        self.folder, self.real, self.model, self.ids, self.layers = folder, real, model, ids, layers
        self.objective = NextToken()
        self.device = next(model.parameters()).device
        self.train = token_batches(ids, BATCH, device=self.device)
        # of which candidates come sixteen at a time, whatever batches they stand in
        self.items = DataLoader(ids, BATCH, collate_fn=self.together)  # type: ignore[arg-type]

    def together(self, some: list[list[int]]) -> Any:
        """These sequences as one batch."""
        return token_batches(some, len(some), device=self.device)[0]

    def made(self) -> Store:
        """The store, built unless it is there; what it took is noted beside it."""
        path = self.folder / "curvature"
        if not path.exists():
            some = self.train[::EVERY]
            fit = lambda: ekfac(self.model, self.objective, some, self.layers, checkpoint=self.folder / "fit")  # noqa: E731
            save(self.noted("fit", fit), path)
        self.curvature = load(path, self.model)
        store = self.folder / "store"
        build = lambda: TrainIndex.build(  # noqa: E731
            self.model, self.objective, self.train, self.curvature, path=store, axes=AXES, bits=1, shard=256
        )
        self.noted("build", build)
        opened = self.noted("open", lambda: load_index(store, self.model))
        assert isinstance(opened, Store)
        self.store = opened
        return opened

    def noted(self, what: str, act: Callable[[], Any]) -> Any:
        """Do it; what it took is kept, of the first time."""
        with Cost() as cost:
            result = act()
        print(f"{what:28} {cost.cpu_s:8.2f} CPU-s {cost.wall_s:8.2f} s", flush=True)
        path = self.folder / f"{what}.json"
        if not path.exists():
            path.write_text(json.dumps({"wall_s": cost.wall_s, "cpu_s": cost.cpu_s}))
        return result

    def costs(self) -> dict[str, Any]:
        read = lambda path: json.loads(path.read_text())  # noqa: E731
        each = [read(path) for path in self.folder.glob("exact *.json")]
        whole = {unit: sum(cost[unit] for cost in each) for unit in ("wall_s", "cpu_s")}
        return {**{what: read(self.folder / f"{what}.json") for what in ("fit", "build")}, "exact": whole}

    def query(self, fact: Any) -> Any:
        """log p(answer | question), from the texts."""
        about = {"tokenizer": self.real.tokenizer, "model": self.model, "device": self.device}
        return completion(BEGIN + fact.prompt, fact.completion, **about)

    def answers(self, facts: list[tuple[int, Any]], chosen: list[int]) -> tuple[Tensor, Tensor]:
        """The store's scores of all questions, (Q, N), and the exact ones of the chosen sequences, (Q, U)."""
        queries = [self.query(fact) for _, fact in facts]
        damping, parts = damping_of(self.curvature, 0.1), []
        for start in range(0, len(chosen), CHUNK):
            some = chosen[start : start + CHUNK]
            name = f"exact {start} of {len(chosen)}"
            path, batches = (
                self.folder / f"{name}.pt",
                token_batches([self.ids[n] for n in some], BATCH, device=self.device),
            )
            if not path.exists():
                args = self.model, self.objective, batches, queries, self.curvature, damping
                torch.save(self.noted(name, partial(influence, *args)), path)
            parts.append(torch.load(path).cpu())
        near = self.store.influence(self.model, self.objective, queries, damping=damping)
        return near.cpu(), torch.cat(parts, dim=1)

    def strongest(self, fact: Any) -> list[int]:
        """The ten strongest by the store, from the text on."""
        scores = self.store.influence(self.model, self.objective, [self.query(fact)])
        return scores[0].topk(10).indices.tolist()

    def exactly(self, fact: Any) -> list[int]:
        """The ten strongest of the store's first 50, by their exact scores."""
        question = [self.query(fact)]
        found = self.store.search(self.model, self.objective, question, self.items, 10, candidates=CANDIDATES)
        return found.examples[0].tolist()

    def timed(self, facts: list[Any]) -> dict[str, Any]:
        """The median question's seconds, by the store and with exact scores."""
        found = {}
        self.noted("first question", lambda: self.strongest(facts[0]))  # looks at every shard
        for name, ask in (("store", self.strongest), ("exactly", self.exactly)):
            costs = []
            for fact in facts:
                with Cost() as cost:
                    ask(fact)
                costs.append(cost)
                print(f"a question, {name:16} {cost.cpu_s:8.2f} CPU-s {cost.wall_s:8.2f} s", flush=True)
            walls, cpus = (sorted(getattr(cost, key) for cost in costs) for key in ("wall_s", "cpu_s"))
            middle = len(costs) // 2
            found[f"question_{name}"] = {"wall_s": walls[middle], "least_wall_s": walls[0], "cpu_s": cpus[middle]}
        return found


def compared(store: Tensor, exact: Tensor, truth: Tensor) -> dict[str, float]:
    """The store's order beside the exact one's, means over questions."""
    near, right = store.argsort(dim=1, descending=True), exact.argsort(dim=1, descending=True)
    # the store's first 50, ordered by their exact scores, as ``search`` has them
    first = near[:, :CANDIDATES]
    searched = first.gather(1, exact.gather(1, first).argsort(dim=1, descending=True))
    found: dict[str, float] = {}
    for k in (4, 10):
        for name, table in (("exact", exact), ("store", store)):
            found[f"recall@{k}_{name}"] = float(recall_at(table, truth, k).mean())
        of_truth = truth.gather(1, searched[:, :k]).sum(1) / truth.sum(1)
        found[f"recall@{k}_searched"] = float(of_truth.double().mean())
        same = [len(set(a[:k].tolist()) & set(b[:k].tolist())) / k for a, b in zip(near, right, strict=True)]
        found[f"of_the_exact_{k}_store"] = sum(same) / len(same)
    ten = [len(set(a.tolist()) & set(b[:10].tolist())) / 10 for a, b in zip(first, right, strict=True)]
    found["of_the_exact_10_in_first_50"] = sum(ten) / len(ten)
    both = torch.stack([store, exact]).double()
    both = both - both.mean(-1, keepdim=True)
    found["pearson"] = float(((both[0] * both[1]).sum(1) / (both[0].norm(dim=1) * both[1].norm(dim=1))).mean())
    return found


if __name__ == "__main__":
    os.environ["TQDM_DISABLE"] = "1"
    main()
