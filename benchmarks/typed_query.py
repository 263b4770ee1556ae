"""How long the text browser takes for a query that was just typed, from an index that was built before, saved and read.

    python benchmarks/typed_query.py                              # MLP layers, 2,000 sequences: 2.1 GB, 3 CPU-minutes
    python benchmarks/typed_query.py --layers "*"                 # all layers: 3.2 GB
    python benchmarks/typed_query.py --sequences 200 --threads 1  # a small index
    python benchmarks/typed_query.py --axes 0.25                  # a store of one bit for each of these: 17 MB

Tiny Shakespeare in sequences of 128 characters, a transformer of two blocks (width 128, hidden 512) that was barely
trained: what is timed depends on no number that training changes. The first query after reading touches the file.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from measure import Cost

from inflib import NextToken, Store, TrainIndex, ekfac, load_index, save
from inflib.lab import shakespeare, train, transformer
from inflib.widgets import TextBrowser, index_size, three_methods

READY = [("First Citizen:\n", "We are")]
TYPED = [("ROMEO:\nBut soft, what light", " through"), ("KING RICHARD:\nMy", " horse"), ("JULIET:\nO", " sweet")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sequences", type=int, default=2000)
    parser.add_argument("--layers", default="blocks.*.mlp.*")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--axes", type=float, help="a store with this share of the axes, in place of an exact index")
    parser.add_argument("--bits", type=int, default=1, help="of the store, for each axis")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    corpus, objective = shakespeare()[: options.sequences], NextToken()
    model = transformer(len(corpus.vocabulary), corpus.context + 1)
    train(model, objective, *corpus[:200].tensors(), epochs=2, batch_size=32)
    batches = corpus.batches()
    curvature = timed("fit", lambda: ekfac(model, objective, batches, options.layers))
    print(index_size(model, batches, curvature))
    methods = timed("K-FAC's factors", lambda: three_methods(model, objective, batches, curvature))
    with tempfile.TemporaryDirectory() as folder:
        index = prepared(options, model, objective, batches, curvature, Path(folder) / "index")
        make = lambda: TextBrowser(model, objective, index, corpus, READY, curvatures=methods)  # noqa: E731
        browser = timed("open the browser", make)
        for prompt, completion in TYPED:
            timed("a typed query", lambda: browser.ask(prompt, completion))  # noqa: B023 (called at once)
        for name, value in (("damping", 1.0), ("method", "K-FAC"), ("layer", curvature.layers[0]), ("heat", "output")):
            timed(f"another {name}", lambda: setattr(getattr(browser, name), "value", value))  # noqa: B023
        timed("a page of 50 + 50 texts", lambda: setattr(browser.count, "value", 50))
        assert browser.error.value == "", browser.error.value


def prepared(options: argparse.Namespace, *of: Any) -> TrainIndex | Store:
    """An index that was built, saved and read again; a store is on disk from the beginning."""
    model, objective, batches, curvature, path = of
    if options.axes is not None:
        chosen = {"axes": options.axes, "bits": options.bits}
        build = lambda: TrainIndex.build(model, objective, batches, curvature, path=path, **chosen)  # noqa: E731
    else:
        build = lambda: TrainIndex.build(model, objective, batches, curvature)  # noqa: E731
    index = timed("build the index", build)
    print(f"the index takes {index.nbytes / 1e6:,.0f} MB")
    if options.axes is None:
        timed("save it", partial(save, index, path))
    del index
    return timed("read it", lambda: load_index(path, model))


def timed(what: str, act: Callable[[], Any]) -> Any:
    """Do it, and say what it cost."""
    with Cost() as cost:
        result = act()
    print(f"{what:24} {cost.cpu_s:8.2f} CPU-s {cost.wall_s:8.2f} s", flush=True)
    return result


if __name__ == "__main__":
    os.environ["TQDM_DISABLE"] = "1"
    main()
