"""Who takes part, what they exchange, and how a process that dies ends the others.

Each says that it is alive every second through the store they met at; who waits for one that has said nothing for
``timeout`` seconds, or that has failed, ends with its rank's name. This is the only file that imports
torch.distributed.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

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

    def sent(self, what: str, x: Tensor, owner: int) -> Tensor:
        """``x`` as process ``owner`` has it, on every process; elsewhere it is written over."""
        self.all(what, lambda: dist.broadcast(x, owner))
        return x

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
            parts.append(self.sent(what, x, r))
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
        # torch 2.6 ends gloo's threads with Python's lock held, which one that was busy may still need to let go
        time.sleep(POLL)
        dist.destroy_process_group()
