"""Several processes, one answer: each takes its share of the data, and sums are added up.

    torchrun --nproc-per-node=4 examples/torchrun_fit.py

Moments and Λ are sums over examples, so a process sums over its own batches and one all-reduce makes the whole:
A = (Σ_ranks Σ a aᵀ) / positions. Eigendecompositions are dealt out by size, scores are columns side by side. Example n
draws its labels from its own stream, known by its position among all examples, so any number of processes draws the
same labels. Nothing is padded and nothing counted twice; shares may differ in length, or be empty.

A process that dies must not leave the others waiting. Each says that it is alive every second through the store they
met at; who waits for one that has said nothing for ``timeout`` seconds, or that has failed, ends with its rank's name.
This is the only file that imports torch.distributed.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler, Subset

from .batches import Data, accumulator, batch_size, say
from .checkpoint import Checkpoint
from .curvature import Curvature, Damping, facts_of
from .ekfac import Eigenbasis, Squares, corrected_eigenvalues, kept_eigh
from .fingerprints import hash_weights
from .finite import note_rounding
from .kfac import Fit, Moments, accumulate_moments
from .kronecker import Kronecker
from .layers import LayerSpec
from .objectives import Objective
from .placement import check_mode, plain_numbers
from .scoring import influence as one_process_influence
from .scoring import self_influence as one_process_self_influence

BEAT = 1.0  # seconds between two signs of life
POLL = 0.02  # seconds between two looks at who has come
COLLECTIVE = 10  # times ``timeout`` that adding up may take once everybody is there

T = TypeVar("T")


class RankError(RuntimeError):
    """Another process of the group has died or failed: which, and where it was waited for."""


@dataclass
class Ranks:
    """This process's place in the group, and its line to the others. Made by ``processes``."""

    rank: int
    size: int
    timeout: float
    store: Any
    _step: int = 0
    _over: threading.Event = field(default_factory=threading.Event)

    def together(self, where: str) -> None:
        """Return once every process is here; RankError where one will not come."""
        try:
            self._meet(where)
        except dist.DistError as error:
            raise RankError(
                f"rank 0 of {self.size}, which keeps the store that all meet through, cannot be reached by rank "
                f"{self.rank} at {where!r} ({str(error)[:80]}); its own output says why it ended."
            ) from None

    def _meet(self, where: str) -> None:
        self._step += 1
        self.store.set(f"here/{self._step}/{self.rank}", where)
        heard = {r: ("", time.monotonic()) for r in range(self.size) if r != self.rank}
        while missing := [r for r in heard if not self.store.check([f"here/{self._step}/{r}"])]:
            for r in missing:
                heard[r] = self._listen(r, heard[r], where)
            time.sleep(POLL)

    def all(self, where: str, exchange: Callable[[], T]) -> T:
        """``exchange()``, a collective of torch.distributed, once every process is here."""
        self.together(where)
        try:
            return exchange()
        except RuntimeError as error:  # what gloo says of a closed connection names nobody
            until = time.monotonic() + self.timeout + BEAT
            heard = {r: ("", time.monotonic()) for r in range(self.size) if r != self.rank}
            while time.monotonic() < until:
                for r in heard:
                    heard[r] = self._listen(r, heard[r], where)
                time.sleep(POLL)
            raise error

    def _listen(self, r: int, before: tuple[str, float], where: str) -> tuple[str, float]:
        """Rank r's latest sign of life and when it was heard; RankError where it failed, or none came for too long."""
        now = time.monotonic()
        said = self.store.get(f"failed/{r}").decode() if self.store.check([f"failed/{r}"]) else ""
        if said and not said.startswith(RankError.__name__):  # which is about another, who is to be named
            raise RankError(f"rank {r} of {self.size} failed, and rank {self.rank} waited for it at {where!r}: {said}")
        beat = self.store.get(f"beat/{r}").decode() if self.store.check([f"beat/{r}"]) else ""
        if beat != before[0]:
            return beat, now
        if now - before[1] > self.timeout:
            raise RankError(
                f"rank {r} of {self.size} has given no sign of life for {self.timeout:g} s, and rank {self.rank} "
                f"waited for it at {where!r}; expected every process to come there. Its own output says why it ended; "
                "the same command with the same checkpoint= goes on from the sums that were saved."
            )
        return before

    def beats(self) -> None:
        """Say again and again that this process lives, until it is over."""
        count = 0
        while not self._over.wait(BEAT if count else 0.0):
            count += 1
            with suppress(RuntimeError):  # who waits here notices that the store is gone
                self.store.set(f"beat/{self.rank}", str(count))

    def leave(self, error: BaseException | None = None) -> None:
        """Leave word of an error, and go; rank 0, whose end may be the store's, goes last, or when the dead are missed.

        Otherwise who is slow to look would hear nothing, in place of whose error it was.
        """
        if error is not None:
            self.store.set(f"failed/{self.rank}", f"{type(error).__name__}: {error}")
        self.store.set(f"gone/{self.rank}", "")
        until = time.monotonic() + self.timeout + 2 * BEAT
        while self.rank == 0 and time.monotonic() < until:
            if all(self.store.check([f"gone/{r}"]) for r in range(1, self.size)):
                break
            time.sleep(POLL)

    def agree(self, what: str, value: Any) -> None:
        """Raise ValueError unless every process has the same value."""
        found: list[Any] = [None] * self.size
        self.all(f"comparing {what}", lambda: dist.all_gather_object(found, value))
        other = next((r for r in range(self.size) if found[r] != found[0]), None)
        if other is not None:
            raise ValueError(
                f"{what}: rank 0 has {found[0]}, rank {other} has {found[other]}; expected the same in all processes. "
                "Load the same checkpoint and the same data in each; each takes its own share of it."
            )

    def total(self, what: str, tensors: list[Tensor]) -> list[Tensor]:
        """The sums of all processes' tensors, one after another, the same bits everywhere."""
        whole = [x.contiguous() for x in tensors]
        for x in whole:
            self.all(what, lambda x=x: dist.all_reduce(x))  # type: ignore[misc]
        return whole

    def joined(self, what: str, part: Tensor | None, like: Tensor, axis: int) -> Tensor:
        """All processes' parts side by side along ``axis``, on every process; None from those without any.

        The last axes may differ in length (tokens), and end in zeros where they are short.
        """
        shapes: list[Any] = [None] * self.size
        shape = None if part is None else (tuple(part.shape), part.dtype)
        self.all(what, lambda: dist.all_gather_object(shapes, shape))
        longest = [max(sizes) for sizes in zip(*(s[0] for s in shapes if s is not None), strict=True)]
        parts = []
        for r, found in enumerate(shapes):
            if found is None:
                continue
            own = longest[:axis] + [found[0][axis]] + longest[axis + 1 :]
            x = like.new_empty(own, dtype=found[1])
            if r == self.rank and part is not None:
                short = [end - had for had, end in zip(part.shape, own, strict=True)]
                x = F.pad(part, [p for end in reversed(short) for p in (0, end)]).contiguous()
            self.all(what, lambda x=x, r=r: dist.broadcast(x, r))  # type: ignore[misc]
            parts.append(x)
        return torch.cat(parts, dim=axis)


@contextmanager
def processes(timeout: float = 120.0) -> Iterator[Ranks]:
    """Join the processes that torchrun started, for the duration of a ``with``; gloo on CPUs, NCCL beside it on GPUs.

    timeout: seconds without a sign of life after which a process counts as dead. A process that is busy is waited for
    as long as it takes.
    """
    try:
        rank, size, host, port = (os.environ[k] for k in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"))
    except KeyError as error:
        raise RuntimeError(
            f"the environment has no {error.args[0]}; expected the variables that torchrun sets. Start the script with "
            "torchrun --nproc-per-node=2 SCRIPT."
        ) from None
    gpu = torch.cuda.is_available()
    if gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    patience = timedelta(seconds=COLLECTIVE * timeout)
    dist.init_process_group("cpu:gloo,cuda:nccl" if gpu else "gloo", timeout=patience)
    store = dist.TCPStore(host, int(port), is_master=False, timeout=timedelta(seconds=timeout))
    prefix = f"inflib/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    ranks = Ranks(int(rank), int(size), timeout, dist.PrefixStore(prefix, store))
    beating = threading.Thread(target=ranks.beats, daemon=True)
    beating.start()
    try:
        yield ranks
        ranks.together("the end")
        ranks.leave()
    except BaseException as error:
        with suppress(RuntimeError):
            ranks.leave(error)
        raise
    finally:
        ranks._over.set()
        beating.join()
        dist.destroy_process_group()


# --- shares --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Share:
    """Some batches of the data, and the position of their first example among all."""

    data: Data
    start: int
    batches: int


def share(data: Data, rank: int, size: int) -> Share:
    """The ``rank``-th of ``size`` stretches of the data's batches, as even as whole batches allow; it may be empty.

    Raises TypeError for data that is neither a list nor a DataLoader that keeps its order.
    """
    if isinstance(data, DataLoader) and _in_order(data):
        assert data.batch_size is not None
        first, last = (len(data) * k // size for k in (rank, rank + 1))
        lo, hi = (min(k * data.batch_size, len(data.dataset)) for k in (first, last))  # type: ignore[arg-type]
        part = DataLoader(
            Subset(data.dataset, range(lo, hi)),
            batch_size=data.batch_size,
            collate_fn=data.collate_fn,
            num_workers=data.num_workers,
            pin_memory=data.pin_memory,
        )
        return Share(part, lo, last - first)
    if isinstance(data, (list, tuple)):
        first, last = (len(data) * k // size for k in (rank, rank + 1))
        before = sum(batch_size(item[1], "train", at) for at, item in enumerate(data[:first]))
        return Share(list(data[first:last]), before, last - first)
    raise TypeError(
        f"the data to be shared is {say(data)}; expected a list of (inputs, targets) batches, or a DataLoader over a "
        "dataset with shuffle=False: each process takes a stretch of it, and an example is known by its position."
    )


def _in_order(loader: DataLoader) -> bool:
    batches = loader.batch_sampler
    return type(batches) is BatchSampler and type(batches.sampler) is SequentialSampler


def _shared(ranks: Ranks, model: nn.Module, data: Data) -> Share:
    """This process's share, once all are seen to have the same model and as many batches."""
    check_mode(model)
    ranks.agree("the model (hash of its weights)", hash_weights(model))
    part = share(data, ranks.rank, ranks.size)
    ranks.agree("the number of batches", len(data))  # type: ignore[arg-type]
    if not len(data):  # type: ignore[arg-type]
        raise ValueError("train is empty: it has no batch. Expected at least one (inputs, targets) batch.")
    return part


# --- the fit -------------------------------------------------------------------------------------------------------


@plain_numbers
def ekfac(
    ranks: Ranks,
    model: nn.Module,
    objective: Objective,
    train: Data,
    layers: LayerSpec = None,
    labels: str | None = None,
    draws: int = 1,
    seed: int = 0,
    progress: bool = True,
    *,
    sharing: str = "expand",
    checkpoint: str | Path | None = None,
) -> Kronecker:
    """``inflib.ekfac`` of all the data, on every process; each passes over its share of ``train``'s batches.

    Arguments, and what is raised, as for ``inflib.ekfac``; ``train`` is the whole data in every process, a list of
    batches or a DataLoader in order. ``checkpoint`` is a folder in which each process keeps its own sums: the same
    number of processes goes on from them.
    """
    part = _shared(ranks, model, train)
    fit = Fit.of(
        model, objective, part.data, layers, labels, draws, seed, progress and ranks.rank == 0, sharing,
        _own_folder(checkpoint, ranks), part.start,
    )  # fmt: skip
    with fit.kept as kept:
        moments = _all_moments(ranks, fit, accumulate_moments(fit) if part.batches else no_moments(fit))
        basis = _dealt_out(ranks, moments, kept)
        squares = corrected_eigenvalues(fit, basis) if part.batches else no_squares(fit)
        found = ranks.total("the sums of Λ", [squares.sums[k] for k in fit.layers])
    Λ = Squares(dict(zip(fit.layers, found, strict=True)), moments.examples).means()
    if ranks.rank == 0:
        note_rounding(Λ)
    return Kronecker(Λ, basis.Q_S, basis.Q_A, facts_of(fit, "EK-FAC", moments.examples))


def _own_folder(checkpoint: str | Path | None, ranks: Ranks) -> Path | None:
    if checkpoint is None:
        return None
    Path(checkpoint).mkdir(exist_ok=True)
    return Path(checkpoint) / f"rank-{ranks.rank}-of-{ranks.size}"


def no_moments(fit: Fit) -> Moments:
    """The sums over no example."""
    sums: dict[str, dict[str, Tensor]] = {"S": {}, "A": {}}
    for name, layer in fit.layers.items():
        for side, d in zip("SA", layer.shape, strict=True):
            shape = (d,) if layer.diagonal == side else (d, d)
            sums[side][name] = layer.weight.new_zeros(shape, dtype=accumulator(layer.weight.dtype))
    return Moments(sums["A"], sums["S"], dict.fromkeys(fit.layers, 0), 0)


def no_squares(fit: Fit) -> Squares:
    """The sums over no example."""
    dtypes = {k: accumulator(layer.weight.dtype) for k, layer in fit.layers.items()}
    return Squares({k: layer.weight.new_zeros(layer.shape, dtype=dtypes[k]) for k, layer in fit.layers.items()}, 0)


def _all_moments(ranks: Ranks, fit: Fit, own: Moments) -> Moments:
    names = list(fit.layers)
    A = ranks.total("the sums of A", [own.A_sum[k] for k in names])
    S = ranks.total("the sums of S", [own.S_sum[k] for k in names])
    device = fit.layers[names[0]].weight.device
    # positions of whole gradients are Σ ‖Dθ‖², no whole numbers; float64 counts examples exactly up to 9e15
    counts = torch.tensor([own.examples, *(own.positions[k] for k in names)], dtype=torch.float64, device=device)
    (counts,) = ranks.total("the counts", [counts])
    examples, *positions = counts.tolist()
    return Moments(
        dict(zip(names, A, strict=True)),
        dict(zip(names, S, strict=True)),
        dict(zip(names, positions, strict=True)),
        int(examples),
    )


def deal(sizes: dict[T, int], hands: int) -> dict[T, int]:
    """Who decomposes which factor: the largest first, each to whom has least to do (d³) so far."""
    work = [0] * hands
    dealt = {}
    for key in sorted(sizes, key=lambda key: -sizes[key]):
        dealt[key] = work.index(min(work))
        work[dealt[key]] += sizes[key] ** 3
    return dealt


def _dealt_out(ranks: Ranks, moments: Moments, kept: Checkpoint) -> Eigenbasis:
    """``eigenbasis``, each factor decomposed by one process and sent to all."""
    sums = {"S": moments.S_sum, "A": moments.A_sum}
    mean = {"S": moments.S, "A": moments.A}
    every = [(name, side) for name in moments.A_sum for side in "SA"]
    owner = deal({(k, side): len(sums[side][k]) for k, side in every if sums[side][k].ndim == 2}, ranks.size)
    own = {}
    for (name, side), r in owner.items():
        if r == ranks.rank:
            at = list(moments.A_sum).index(name)
            own[name, side] = kept_eigh(mean[side](name), kept, f"basis-{at:04}-{side}")
    values: dict[str, dict[str, Tensor]] = {"S": {}, "A": {}}
    vectors: dict[str, dict[str, Tensor]] = {"S": {}, "A": {}}
    for name, side in every:
        if (name, side) not in owner:  # a diagonal, whose eigenvectors are the axes
            values[side][name] = mean[side](name)
            continue
        r, like = owner[name, side], sums[side][name]
        v, Q = own.get((name, side), (like.new_empty(len(like)), like.new_empty(like.shape).mT))
        both = [v.contiguous(), Q.mT.contiguous()]
        for x in both:
            ranks.all(f"the eigenvectors of {name!r}", lambda x=x, r=r: dist.broadcast(x, r))  # type: ignore[misc]
        values[side][name], vectors[side][name] = both[0], both[1].mT
    return Eigenbasis(vectors["S"], vectors["A"], values["S"], values["A"])


# --- scores --------------------------------------------------------------------------------------------------------


def influence(
    ranks: Ranks,
    model: nn.Module,
    objective: Objective,
    train: Data,
    queries: Data,
    curvature: Curvature,
    damping: Damping = None,
    **options: Any,
) -> Tensor:
    """``inflib.influence`` of all the data, (Q, N, ...) on every process; each scores its share of ``train``."""
    part = _shared(ranks, model, train)
    options["progress"] = options.get("progress", True) and ranks.rank == 0
    own = None
    if part.batches:
        own = one_process_influence(model, objective, part.data, queries, curvature, damping, **options)
    return ranks.joined("the scores", own, next(model.parameters()), 1)


def self_influence(
    ranks: Ranks,
    model: nn.Module,
    objective: Objective,
    data: Data,
    curvature: Curvature,
    damping: Damping = None,
    **options: Any,
) -> Tensor:
    """``inflib.self_influence`` of all the data, (N,) or (N, L) on every process; each scores its share."""
    part = _shared(ranks, model, data)
    options["progress"] = options.get("progress", True) and ranks.rank == 0
    own = None
    if part.batches:
        own = one_process_self_influence(model, objective, part.data, curvature, damping, **options)
    return ranks.joined("the self-influences", own, next(model.parameters()), 0)
