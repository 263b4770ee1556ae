"""Models that put their examples elsewhere than on the first axis, or mix them: each by name, tiny, in float64.

A ``Case`` of ``RIGHT`` has gradients that the oracle finds one example at a time, so that the library's numbers must be
its; the models of ``MIXED`` have no row of a layer for each example, or not in every batch, and are to be refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from alone import Batch, Case, Catalogue, class_loss, enter, squared_loss, token_loss
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from inflib import CrossEntropy, NextToken, SquaredError

RIGHT: Catalogue = {}
MIXED: Catalogue = {}
WIDTH, CLASSES = 6, 3


def built(model: Callable[..., nn.Module], *args: Any) -> nn.Module:
    torch.manual_seed(0)
    return model(*args).double().eval()


def points(*shapes: tuple[int, ...], out: int = CLASSES, seed: int = 1) -> list[Batch]:
    """Inputs of these shapes (B, ..., d), a class each."""
    g = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(shape, generator=g, dtype=torch.float64), torch.randint(0, out, shape[:1], generator=g))
        for shape in shapes
    ]


def classified(model: nn.Module, data: list[Batch], **options: Any) -> Case:
    return Case(model, CrossEntropy(), class_loss, data, **options)


# --- the batch on another axis ----------------------------------------------------------------------------------------


class BatchSecond(nn.Module):
    """torch's encoder layer as it comes, batch_first=False, between two transpositions."""

    def __init__(self, batch_first: bool = False):
        super().__init__()
        self.batch_first = batch_first
        self.encoder = nn.TransformerEncoderLayer(WIDTH, 2, 10, dropout=0.0, batch_first=batch_first)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:  # (B, T, d)
        seen = self.encoder(x) if self.batch_first else self.encoder(x.transpose(0, 1)).transpose(0, 1)
        return self.head(seen.mean(1))


@enter(RIGHT, "batch-second encoder layer")
def batch_second() -> Case:
    return classified(built(BatchSecond), points((3, 5, WIDTH), (4, 5, WIDTH), (5, 4, WIDTH)))


@enter(RIGHT, "batch-second encoder layer, as long as the batch")
def batch_second_square() -> Case:
    return classified(built(BatchSecond), points((4, 4, WIDTH), (4, 4, WIDTH)))


@enter(RIGHT, "batch-second encoder layer, square in the first batch only")
def batch_second_at_first() -> Case:
    return classified(built(BatchSecond), points((4, 4, WIDTH), (3, 5, WIDTH), (5, 3, WIDTH)))


@enter(RIGHT, "batch-second encoder layer, square in a later batch only")
def batch_second_later() -> Case:
    return classified(built(BatchSecond), points((3, 5, WIDTH), (4, 4, WIDTH), (5, 3, WIDTH)))


@enter(RIGHT, "batch-first encoder layer")
def batch_first() -> Case:
    return classified(built(BatchSecond, True), points((3, 5, WIDTH), (4, 4, WIDTH)))


class Reordered(nn.Module):
    """(B, T, d), with ``before`` and ``after`` a layer that is not told."""

    def __init__(self, before: Callable[[Tensor], Tensor], after: Callable[[Tensor, Tensor], Tensor]):
        super().__init__()
        self.l, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)
        self.before, self.after = before, after

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.after(torch.tanh(self.l(self.before(x))), x).mean(1))


@enter(RIGHT, "batch third")
def batch_third() -> Case:
    """(B, T, P, d) is seen as (T, P, B, d)."""
    model = built(Reordered, lambda x: x.permute(1, 2, 0, 3), lambda z, x: z.permute(2, 0, 1, 3).flatten(1, 2))
    return classified(model, points((3, 2, 4, WIDTH), (4, 2, 4, WIDTH), (2, 2, 4, WIDTH)))


@enter(RIGHT, "tokens flattened into the batch")
def flattened() -> Case:
    model = built(Reordered, lambda x: x.flatten(0, 1), lambda z, x: z.reshape(x.shape))
    return classified(model, points((3, 5, WIDTH), (4, 4, WIDTH), (5, 2, WIDTH), (1, 3, WIDTH)))


@enter(RIGHT, "tokens flattened into the batch, a batch of one first")
def flattened_after_one() -> Case:
    model = built(Reordered, lambda x: x.flatten(0, 1), lambda z, x: z.reshape(x.shape))
    return classified(model, points((1, 5, WIDTH), (4, 4, WIDTH), (5, 2, WIDTH)))


@enter(RIGHT, "tokens flattened with the batch running fastest")
def flattened_strides() -> Case:
    def back(z: Tensor, x: Tensor) -> Tensor:
        return z.reshape(x.shape[1], x.shape[0], -1).transpose(0, 1)

    model = built(Reordered, lambda x: x.transpose(0, 1).flatten(0, 1), back)
    return classified(model, points((3, 5, WIDTH), (4, 4, WIDTH), (5, 2, WIDTH)))


@enter(RIGHT, "tokens flattened with the batch running fastest, a batch of one last")
def flattened_strides_before_one() -> Case:
    return classified(flattened_strides().model, points((3, 5, WIDTH), (1, 4, WIDTH)))


@enter(RIGHT, "tokens flattened with the batch running fastest, one token each last")
def flattened_strides_before_short() -> Case:
    return classified(flattened_strides().model, points((3, 5, WIDTH), (3, 1, WIDTH)))


def windows(x: Tensor, first: bool) -> Tensor:
    """(B, 4, 4, d) → (B · 4, 4, d) or, windows running slowest, (4 · B, 4, d)."""
    B, _, _, d = x.shape
    split = x.reshape(B, 2, 2, 2, 2, d).transpose(2, 3).reshape(B, 4, 4, d)  # (B, windows, positions, d)
    return (split if first else split.transpose(0, 1)).reshape(B * 4, 4, d)


@enter(RIGHT, "windows of an image")
def windowed() -> Case:
    model = built(Reordered, lambda x: windows(x, True), lambda z, x: z.reshape(len(x), 16, -1))
    return classified(model, points((3, 4, 4, WIDTH), (4, 4, 4, WIDTH), (16, 4, 4, WIDTH)))


@enter(RIGHT, "windows before the batch")
def windowed_slowest() -> Case:
    model = built(
        Reordered, lambda x: windows(x, False), lambda z, x: z.reshape(4, len(x), 4, -1).transpose(0, 1).flatten(1, 2)
    )
    return classified(model, points((3, 4, 4, WIDTH), (4, 4, 4, WIDTH), (5, 4, 4, WIDTH)))


@enter(RIGHT, "a convolution on windows")
def windowed_convolution() -> Case:
    class Windowed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.c, self.head = nn.Conv2d(2, 4, 2, bias=True), nn.Linear(4, CLASSES)

        def forward(self, x: Tensor) -> Tensor:  # (B, 2, 6, 6) → 4 windows of 3 × 3
            B = len(x)
            cut = x.reshape(B, 2, 2, 3, 2, 3).permute(0, 2, 4, 1, 3, 5).reshape(B * 4, 2, 3, 3)
            return self.head(torch.tanh(self.c(cut)).mean((2, 3)).reshape(B, 4, 4).sum(1))

    return classified(built(Windowed), points((3, 2, 6, 6), (4, 2, 6, 6)))


# --- several rows an example ------------------------------------------------------------------------------------------


class Choices(nn.Module):
    """(B, C, d) → one logit a choice, from one head."""

    def __init__(self) -> None:
        super().__init__()
        self.l, self.head = nn.Linear(WIDTH, 8), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.l(x.flatten(0, 1)))).reshape(x.shape[:2])


@enter(RIGHT, "choices of a question")
def choices() -> Case:
    return classified(built(Choices), points((4, 3, WIDTH), (3, 3, WIDTH), (5, 3, WIDTH)))


class Preferred(nn.Module):
    """Chosen and rejected answers in one call; the output is by how much the chosen one is preferred, (B,)."""

    def __init__(self, together: Callable[[Tensor, Tensor], Tensor]):
        super().__init__()
        self.l, self.head, self.together = nn.Linear(WIDTH, 8), nn.Linear(8, 1), together

    def forward(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        both = self.together(chosen, rejected)
        reward = self.head(torch.tanh(self.l(both)).mean(1)).squeeze(-1)
        if self.together is beside:
            return reward[0::2] - reward[1::2]
        first, second = reward.chunk(2)
        return first - second


def one_after_the_other(chosen: Tensor, rejected: Tensor) -> Tensor:
    return torch.cat([chosen, rejected])


def beside(chosen: Tensor, rejected: Tensor) -> Tensor:
    return torch.stack([chosen, rejected], dim=1).flatten(0, 1)


def preferences(together: Callable[[Tensor, Tensor], Tensor]) -> Case:
    g = torch.Generator().manual_seed(1)
    data = []
    for shape in ((3, 5, WIDTH), (4, 4, WIDTH), (2, 2, WIDTH)):
        pair = tuple(torch.randn(2, *shape, generator=g, dtype=torch.float64))
        data.append((pair, torch.randn(shape[0], generator=g, dtype=torch.float64)))
    return Case(built(Preferred, together), SquaredError(), squared_loss, data)


@enter(RIGHT, "chosen and rejected, one after the other")
def chosen_then_rejected() -> Case:
    return preferences(one_after_the_other)


@enter(RIGHT, "chosen beside rejected")
def chosen_beside_rejected() -> Case:
    return preferences(beside)


# --- recomputed --------------------------------------------------------------------------------------------------------


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(WIDTH, 8), nn.Tanh(), nn.Linear(8, WIDTH))
        self.head, self.reentrant = nn.Linear(WIDTH, CLASSES), reentrant

    def forward(self, x: Tensor) -> Tensor:
        return self.head(checkpoint(self.body, x.detach().requires_grad_(), use_reentrant=self.reentrant).mean(1))


@enter(RIGHT, "activation checkpointing")
def checkpointed() -> Case:
    return classified(built(Checkpointed, False), points((3, 5, WIDTH), (4, 4, WIDTH)))


@enter(RIGHT, "activation checkpointing, reentrant")
def checkpointed_reentrant() -> Case:
    return classified(built(Checkpointed, True), points((3, 5, WIDTH), (4, 4, WIDTH)))


# --- no row of its own ----------------------------------------------------------------------------------------------------


@enter(MIXED, "sorted by length inside forward")
def sorted_inside() -> Case:
    class Sorted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.l, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)

        def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
            order = lengths.argsort(descending=True)
            z = torch.tanh(self.l(x[order]))[order.argsort()]
            there = torch.arange(x.shape[1]) < lengths[:, None]
            return self.head((z * there[..., None]).sum(1) / lengths[:, None])

    lengths = (torch.tensor([2, 5, 3]), torch.tensor([1, 4, 2, 3]))
    data = [((x, n), y) for (x, y), n in zip(points((3, 5, WIDTH), (4, 4, WIDTH)), lengths, strict=True)]
    return classified(built(Sorted), data)


@enter(MIXED, "packed sequences")
def packed() -> Case:
    """torch's own packing: positions in turn, the longest sequence first."""

    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.l, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)

        def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
            rows = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
            seen = rows._replace(data=torch.tanh(self.l(rows.data)))
            return self.head(nn.utils.rnn.pad_packed_sequence(seen, batch_first=True)[0].sum(1))

    lengths = (torch.tensor([2, 4, 3]), torch.tensor([1, 4, 2, 1]))
    data = [((x, n), y) for (x, y), n in zip(points((3, 4, WIDTH), (4, 4, WIDTH)), lengths, strict=True)]
    return classified(built(Packed), data)


@enter(MIXED, "contrastive logits")
def contrastive() -> Case:
    class Contrastive(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.u, self.v = nn.Linear(WIDTH, 4), nn.Linear(WIDTH, 4)

        def forward(self, x: Tensor, z: Tensor) -> Tensor:
            return self.u(x) @ self.v(z).T

    data = [((x, x.flip(1)), torch.arange(len(x))) for x, _ in points((3, WIDTH), (4, WIDTH))]
    return classified(built(Contrastive), data, together=True)


@enter(MIXED, "a graph's nodes")
def graph() -> Case:
    class Graph(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.l, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            ring = torch.eye(len(x), dtype=x.dtype).roll(1, 0) + torch.eye(len(x), dtype=x.dtype)
            return ring @ self.head(torch.tanh(ring @ self.l(x)))

    return classified(built(Graph), points((5, WIDTH), (4, WIDTH)), together=True)


@enter(MIXED, "batch statistics written by hand")
def batch_statistics() -> Case:
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.l, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            z = self.l(x)
            return self.head(torch.tanh((z - z.mean(0)) / z.std(0)))

    return classified(built(Normed), points((4, WIDTH), (5, WIDTH)), together=True)


class Experts(nn.Module):
    """Each token goes to the expert that scores highest: rows are tokens, as many as happen to come."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(WIDTH, 3, bias=False)
        self.experts = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(0, 1)
        p = self.router(tokens).softmax(-1)
        out = torch.zeros_like(tokens)
        for k, expert in enumerate(self.experts):
            own = (p.argmax(-1) == k).nonzero().flatten()
            out = out.index_add(0, own, expert(tokens[own]) * p[own, k, None])
        return self.head(torch.tanh(out).reshape(x.shape).mean(1))


@enter(MIXED, "routed experts")
def experts() -> Case:
    return classified(built(Experts), points((4, 6, WIDTH), (3, 6, WIDTH), (4, 6, WIDTH), seed=2))


@enter(MIXED, "one expert for every example")
def routed_examples() -> Case:
    """Whole examples are routed: three to one, one to the other, in a batch of four."""

    class Routed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(WIDTH, CLASSES), nn.Linear(WIDTH, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            left = x[:, 0] < 0
            out = x.new_zeros(len(x), CLASSES)
            return out.index_put((left,), self.a(x[left])).index_put((~left,), self.b(x[~left]))

    return classified(built(Routed), points((4, WIDTH), (4, WIDTH), (5, WIDTH)))


@enter(MIXED, "a weight used outside its module in later batches")
def outside_later() -> Case:
    class Outside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.l, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            z = self.l(x)
            if x.shape[1] > 3:
                z = z + nn.functional.linear(torch.sin(x), self.l.weight)
            return self.head(torch.tanh(z).mean(1))

    return classified(built(Outside), points((4, 3, WIDTH), *(((4, 5, WIDTH),) * 4)))


@enter(MIXED, "rows in order in the first batch only")
def ordered_at_first() -> Case:
    class Ordered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.l, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            order = x[:, 0].argsort()
            return self.head(torch.tanh(self.l(x[order]))[order.argsort()])

    (x, y), *later = points((4, WIDTH), (4, WIDTH), (4, WIDTH), (4, WIDTH))
    return classified(built(Ordered), [(x[x[:, 0].argsort()], y), *later])


@enter(MIXED, "a loss over the batch")
def batch_loss() -> Case:
    class CentredError(SquaredError):
        def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
            return super().loss(outputs - outputs.mean(0), targets)

    data = [(x, torch.randn(len(x), 2, dtype=torch.float64)) for x, _ in points((4, WIDTH), (5, WIDTH))]
    model = built(lambda: nn.Sequential(nn.Linear(WIDTH, 4), nn.Tanh(), nn.Linear(4, 2)))
    return Case(model, CentredError(), squared_loss, data)


# --- language models with rows of their own ---------------------------------------------------------------------------------


class FlatTokens(nn.Module):
    """A language model whose perceptron sees tokens as its batch (as OPT's does)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, WIDTH)
        self.up, self.down, self.unembed = nn.Linear(WIDTH, 8), nn.Linear(8, WIDTH), nn.Linear(WIDTH, 9)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.embed(input_ids) * attention_mask[..., None]
        x = x + x.cumsum(1) / 4
        x = x + self.down(torch.tanh(self.up(x.reshape(-1, WIDTH)))).reshape(x.shape)
        return self.unembed(x)


@enter(RIGHT, "tokens flattened into the batch, padded")
def flat_tokens() -> Case:
    g = torch.Generator().manual_seed(1)
    data = []
    for lengths in ((5, 2, 3), (4, 4, 1, 3), (2, 3)):
        T = max(lengths)
        there = torch.arange(T) < torch.tensor(lengths)[:, None]
        ids, targets = (torch.randint(0, 9, there.shape, generator=g) for _ in range(2))
        inputs = {"input_ids": ids.where(there, 0), "attention_mask": there.long()}
        data.append((inputs, targets.where(there, -100)))
    return Case(built(FlatTokens), NextToken(), token_loss, data, {"attention_mask": ("input_ids", "targets")})
