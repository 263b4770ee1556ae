"""Stop what writes files again and again, and see that what comes out is what would have come out.

    python tests/killed.py --stops 100 --seed 0                  # 100 stops of each, two minutes
    python tests/killed.py --stops 1000 --works fit append       # of some

Works: a fit with checkpoint=, a store, examples appended to it, a store by two processes, a copy of a store, a search.
Each is begun on an empty folder, stopped, begun again, and so on until one try comes to its end. A try is

    killed         SIGKILL, in a process of its own, at the n-th time that it touches a file, or after a while
    interrupted    KeyboardInterrupt in this process, after a while
    out of data    an exception in the user's loader
    out of room    an OSError where a file is opened, moved or linked

and now and then the curvature comes from its file, as after a restart. Then the folder is compared with that of a work
that was left alone, byte by byte. In between, what was whole must still answer, and the model must be as it was.
"""

from __future__ import annotations

import argparse
import errno
import os
import random
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from languages import language
from torch import nn

import inflib.checkpoint
from inflib import TrainIndex, ekfac, load, load_index, save

TOUCHES = {"open", "os.link", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.truncate", "shutil.rmtree"}
WRITES = os.O_WRONLY | os.O_RDWR


class OutOfDataError(Exception):
    """What a user's loader raises."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stops", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--works", nargs="+", choices=list(WORKS), default=list(WORKS))
    options = parser.parse_args()
    torch.set_num_threads(1)  # a forked child has no other thread to wait for
    warnings.simplefilter("ignore")
    inflib.checkpoint.SECONDS = inflib.checkpoint.SHARE = 0.0  # a save after every batch
    for name in options.works:
        with tempfile.TemporaryDirectory() as folder:
            work = WORKS[name](Path(folder), random.Random(f"{name} {options.seed}"))
            runs = 0
            while sum(work.stops.values()) < options.stops:
                work.run(options.stops - sum(work.stops.values()))
                runs += 1
        counts = ", ".join(f"{count} {how}" for how, count in work.stops.items())
        print(f"{name}: {sum(work.stops.values())} stops ({counts}) in {runs} runs, each the same to the last byte")


class Rows(torch.utils.data.Dataset):
    """Batches, of which the ``left``-th to be asked for is not to be had."""

    def __init__(self, batches: list[Any]):
        self.batches, self.left = batches, -1

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, at: int) -> Any:
        self.left -= 1
        if self.left == 0:
            raise OutOfDataError
        return self.batches[at]


class Work:
    """Something that writes into a folder, stopped at random."""

    ways: tuple[str, ...] = ("killed", "interrupted", "out of data", "out of room")

    def __init__(self, folder: Path, draw: random.Random):
        lengths = (5, 3, 6, 2, 4, 1, 6, 3)
        self.case = language(lengths, (0,) * len(lengths))
        self.batches = self.case.batches([2] * 4)
        self.rows = {"every": Rows(self.batches), "first": Rows(self.batches[:2]), "more": Rows(self.batches[2:])}
        self.data = {name: torch.utils.data.DataLoader(rows, batch_size=None) for name, rows in self.rows.items()}
        self.fitted = ekfac(self.case.model, self.case.objective, self.case.train, progress=False)
        save(self.fitted, folder / "curvature")
        self.folder, self.draw = folder, draw
        self.stops = dict.fromkeys(self.ways, 0)
        self.curvature = self.fitted
        self.prepare(folder / "alone")
        self.act(folder / "alone")  # what is done but once comes before the clock
        remove(folder / "alone")
        self.prepare(folder / "alone")
        self.before = contents(folder / "alone")
        with touching(lambda event: self.seen.append(event)):
            self.seen: list[str] = []
            begun = time.perf_counter()
            self.act(folder / "alone")
            self.seconds = time.perf_counter() - begun
        self.expected = contents(folder / "alone")
        self.state = state(self.case.model)

    def prepare(self, path: Path) -> None:
        """What is there before."""

    def act(self, path: Path) -> None:
        """The work, which goes on where it was stopped."""
        raise NotImplementedError

    def look(self, path: Path) -> None:
        """Raise where what was whole before is not so between two tries."""

    def run(self, most: int) -> None:
        """One work under so many stops at most, and compare."""
        path = self.folder / "work"
        self.prepare(path)
        for _ in range(self.draw.randint(1, most)):
            self.curvature = (
                load(self.folder / "curvature", self.case.model) if self.draw.random() < 0.5 else self.fitted
            )
            how = self.draw.choice([*self.stops, "killed"])  # twice as often
            if not self.stopped(how, path):
                break
            self.stops[how] += 1
            if how == "interrupted":  # two in a thousand fall between a hook and the line that takes it off
                put_back(self.case.model)
            assert state(self.case.model) == self.state, f"the model is not as it was: {how}"
            self.look(path)
        self.act(path)
        came = contents(path)
        assert came.keys() == self.expected.keys(), f"{sorted(came)} in place of {sorted(self.expected)}"
        assert came == self.expected, [name for name in came if came[name] != self.expected[name]]
        strays = {p.name for p in self.folder.iterdir()} - {"work", "alone", "curvature", "source"}
        assert not strays, strays
        remove(path)

    def stopped(self, how: str, path: Path) -> bool:
        """Try, and whether it was stopped."""
        if how == "killed":
            return self.killed(path)
        if how == "interrupted":
            seconds = self.draw.random() * self.seconds
            try:
                return raised(KeyboardInterrupt, lambda: after(seconds, lambda: self.act(path)))
            except ValueError as error:  # torch.asarray, asked by safetensors, makes a TypeError of an interrupt
                if "could not determine the shape of object type" in str(error):
                    return True
                raise
        if how == "out of data":
            for rows in self.rows.values():
                rows.left = self.draw.randint(1, 16)
            try:
                return raised(OutOfDataError, lambda: self.act(path))
            finally:
                for rows in self.rows.values():
                    rows.left = -1
        left = [self.draw.randint(1, len(self.seen))]

        def full(event: str) -> None:
            left[0] -= 1
            if left[0] == 0 and event in ("open", "os.link", "os.rename", "os.mkdir"):
                raise OSError(errno.ENOSPC, "No space left on device")

        def work() -> None:
            with touching(full):
                self.act(path)

        return raised(OSError, work)

    def killed(self, path: Path) -> bool:
        """Try in a child that is killed; whether it was, before it came to its end."""
        touch = self.draw.randint(1, len(self.seen)) if self.seen and self.draw.random() < 0.7 else None
        seconds = self.draw.random() * self.seconds
        child = os.fork()
        if child == 0:
            try:
                kill_at(touch, seconds)
                self.act(path)
            finally:
                os._exit(0)
        return os.WIFSIGNALED(os.waitpid(child, 0)[1])


class FitWork(Work):
    """EK-FAC's sums and eigenvectors, in two blocks."""

    def act(self, path: Path) -> None:
        data = self.data["every"]
        found = ekfac(self.case.model, self.case.objective, data, blocks=2, checkpoint=path, progress=False)
        save(found, path / "curvature")


class StoreWork(Work):
    """A store with components."""

    def act(self, path: Path) -> None:
        self.build(path)

    def build(self, path: Path, append: bool = False, part: tuple[int, int] = (0, 1)) -> Any:
        return TrainIndex.build(
            self.case.model, self.case.objective, self.data["more" if append else "first"], self.curvature, path=path,
            components=3, sample=4, shard=2, append=append, part=part, progress=False,
        )  # fmt: skip


class AppendWork(StoreWork):
    """More examples for a store, which answers all the time."""

    def prepare(self, path: Path) -> None:
        self.build(path)
        self.alone = load_index(path, self.case.model).norms()

    def act(self, path: Path) -> None:
        self.build(path, append=True)

    def look(self, path: Path) -> None:
        came = load_index(path, self.case.model).norms()
        assert torch.equal(came[: len(self.alone)], self.alone) and len(came) in (len(self.alone), 2 * len(self.alone))
        self.build(path)  # those that it was begun with are there


class PartsWork(StoreWork):
    """A store by two processes at a time, one of which is killed or both."""

    def act(self, path: Path) -> None:
        for which in (1, 0):
            self.build(path, part=(which, 2))

    def killed(self, path: Path) -> bool:
        if self.draw.random() < 0.5:
            return super().killed(path)
        children = []
        for which in (0, 1):
            touch, seconds = self.draw.randint(1, len(self.seen)), self.draw.random() * self.seconds
            child = os.fork()
            if child == 0:
                try:
                    kill_at(touch if self.draw.random() < 0.5 else None, seconds)
                    self.build(path, part=(which, 2))
                finally:
                    os._exit(0)
            children.append(child)
        ends = [os.waitpid(child, 0)[1] for child in children]
        return any(map(os.WIFSIGNALED, ends))


class CopyWork(StoreWork):
    """A copy of a store, while the store is appended to."""

    def prepare(self, path: Path) -> None:
        source = self.folder / "source"
        if not source.exists():
            self.build(source)
            self.store = load_index(source, self.case.model)

    def act(self, path: Path) -> None:
        if not path.exists():
            save(self.store, path)
        if len(load_index(self.folder / "source", self.case.model)) == len(self.store):
            self.build(self.folder / "source", append=True)

    def look(self, path: Path) -> None:
        if path.exists():
            assert contents(path) == self.expected


class SearchWork(AppendWork):
    """A search, which writes nothing."""

    ways = ("killed", "interrupted")

    def act(self, path: Path) -> None:
        case, store = self.case, load_index(path, self.case.model)
        found = store.search(case.model, case.objective, case.asked, self.batches[:2], 2, candidates=3)
        assert not hasattr(self, "found") or torch.equal(self.found.scores, found.scores)
        self.found = found

    def look(self, path: Path) -> None:
        assert contents(path) == self.before


WORKS: dict[str, type[Work]] = {
    "fit": FitWork, "store": StoreWork, "append": AppendWork, "parts": PartsWork, "copy": CopyWork, "search": SearchWork,
}  # fmt: skip


# --- ways to be stopped -----------------------------------------------------------------------------------------------

_WATCHERS: list[Callable[[str], None]] = []


@contextmanager
def touching(watcher: Callable[[str], None]) -> Iterator[None]:
    """Call ``watcher`` with every touch of a file that may change one."""
    _WATCHERS.append(watcher)
    try:
        yield
    finally:
        _WATCHERS.remove(watcher)


def _audit(event: str, arguments: Any) -> None:
    if _WATCHERS and event in TOUCHES and (event != "open" or (arguments[2] or 0) & WRITES):
        _WATCHERS[-1](event)


sys.addaudithook(_audit)


def kill_at(touch: int | None, seconds: float) -> None:
    """Let this process die at its n-th touch of a file, or after so long."""
    if touch is None:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-4))
        return
    left = [touch]

    def touched(_: str) -> None:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    _WATCHERS.append(touched)


def after(seconds: float, work: Callable[[], None]) -> None:
    """Interrupt the work after so long, as Ctrl-C and a notebook's stop button do."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-4))
    try:
        work()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def raised(kind: type[BaseException], work: Callable[[], None]) -> bool:
    """Whether the work ends with such an exception."""
    try:
        work()
    except kind:
        return True
    return False


def state(model: nn.Module) -> list[Any]:
    """What a call may not leave changed."""
    asked: list[Any] = [parameter.requires_grad for parameter in model.parameters()]
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks), m.training) for m in model.modules()]
    return [*asked, *hooks, torch.backends.mha.get_fastpath_enabled(), torch.is_grad_enabled()]


def put_back(model: nn.Module) -> None:
    """As ``state`` was before the work."""
    for module in model.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    torch.backends.mha.set_fastpath_enabled(True)
    torch.set_grad_enabled(True)


def contents(folder: Path) -> dict[str, bytes]:
    """What lies in a folder, by name."""
    found = {str(path.relative_to(folder)): path for path in folder.rglob("*")}
    return {name: path.read_bytes() if path.is_file() else b"" for name, path in found.items()}


def remove(path: Path) -> None:
    """Remove a folder, which nothing else may have kept."""
    for file in sorted(path.rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()
    path.rmdir()


if __name__ == "__main__":
    main()
