"""Digits of which some labels are wrong, sentences likewise, and reviews of them."""

from __future__ import annotations

import torch

from inflib import CrossEntropy, TrainIndex, ekfac
from inflib.lab import train
from inflib.widgets import Examples, Review

N, CLASSES = 300, ["nil", "one", "two, or II", "three", "four", "five", "six", "seven", "<b>8</b>", "nine"]


def reviewing(made, **options) -> Review:
    *about, _, signals = made
    return Review(*about, **{"signals": signals, "classes": CLASSES, **options})


def act(review: Review, action: str, example: int | None = None, label: int | None = None) -> None:
    """What the desk sends when a button or a key is pressed."""
    example = review.desk.card["key"] if example is None else example
    review.desk._handle_custom_msg({"action": action, "key": example, "label": label}, [])


class Bag(torch.nn.Module):
    """A classifier of sentences: words embedded, a layer at each position, the mean, a layer."""

    def __init__(self, words: int) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(words, 6).requires_grad_(False)
        self.each, self.out = torch.nn.Linear(6, 8), torch.nn.Linear(8, 3)

    def forward(self, ids):
        return self.out(self.each(self.embed(ids)).tanh().mean(1))


def sentences():
    """60 sentences of three kinds, as texts; every tenth under another's label."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 3
    ids = torch.randint(0, 5, (60, 7), generator=generator) + 5 * labels[:, None]
    given = labels.clone()
    given[::10] = (given[::10] + 1) % 3
    texts = [" ".join(f"w{word}" for word in row) + " <script>" + " long" * 200 for row in ids.tolist()]
    torch.manual_seed(0)
    model, objective = Bag(15).double(), CrossEntropy()
    train(model, objective, ids, given, epochs=20, batch_size=20, lr=1e-2, progress=False)
    data = [(ids, given)]
    curvature = ekfac(model, objective, data, ["each", "out"], progress=False)
    index = TrainIndex.build(model, objective, data, curvature, progress=False)
    return texts, model, objective, Examples(ids, given, texts=texts, names=lambda n: f"mail {n}"), index
