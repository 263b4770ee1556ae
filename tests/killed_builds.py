"""Kill the building of a store again and again, and see that what comes out is what would have come out.

    python tests/killed_builds.py --kills 100 --seed 0        # 100 kills, a minute

A child process builds a store and is killed (SIGKILL), at the n-th time that it touches a file or, every third time,
after so many milliseconds; another goes on, is killed later, and so on until one comes to its end. Then the folder is
compared with that of a build that was left alone, byte by byte; and what was saved before must still be there.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch
from languages import language

from inflib import TrainIndex, ekfac, load_index

TOUCHES = {"open", "os.link", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.truncate", "shutil.rmtree"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)  # a forked child has no other thread to wait for
    draw, kills, builds = random.Random(options.seed), 0, 0
    with tempfile.TemporaryDirectory() as folder:
        case = Builds(Path(folder))
        most, most_s = case.count_touches()
        while kills < options.kills:
            kills += case.one(draw, most, most_s, options.kills - kills, append=builds % 2 == 1)
            builds += 1
    print(f"{kills} kills in {builds} stores, each the same to the last byte as one that was left alone")


class Builds:
    """One store to build, whole and in pieces."""

    def __init__(self, folder: Path):
        self.folder = folder
        lengths = (5, 3, 6, 2, 4, 1, 6, 3)
        self.case = language(lengths, (0,) * len(lengths))
        self.first, self.more = self.case.batches([2, 2]), self.case.batches([2] * 4)[2:]
        self.curvature = ekfac(self.case.model, self.case.objective, self.case.train, progress=False)
        self.build(folder / "whole")
        self.whole = contents(folder / "whole")
        self.build(folder / "whole", append=True)
        self.grown = contents(folder / "whole")

    def build(self, path: Path, append: bool = False) -> Any:
        return TrainIndex.build(
            self.case.model, self.case.objective, self.more if append else self.first, self.curvature, path=path,
            components=3, sample=4, shard=2, append=append, progress=False,
        )  # fmt: skip

    def count_touches(self) -> tuple[int, float]:
        """How often a build touches a file, and how long it takes."""
        seen: list[str] = []
        sys.addaudithook(lambda event, _: seen.append(event) if event in TOUCHES else None)
        start = time.perf_counter()
        self.build(self.folder / "counted")
        return len(seen), time.perf_counter() - start

    def one(self, draw: random.Random, most: int, most_s: float, kills: int, append: bool) -> int:
        """Build a store under so many kills at most, and compare; how many there were."""
        path, killed = self.folder / "killed", 0
        if append:
            self.build(path)
        while killed < kills:
            late = draw.random() * most_s if killed % 3 == 2 else None
            if not self.run(path, append, None if late else draw.randint(1, most), late):
                break
            killed += 1
            if append:  # what was complete stays readable in between, or says that it is not complete
                readable(path, self.case.model)
        self.build(path, append)
        came, expected = contents(path), self.grown if append else self.whole
        assert came.keys() == expected.keys(), f"{sorted(came)} in place of {sorted(expected)}"
        assert came == expected, [name for name in came if came[name] != expected[name]]
        for file in sorted(path.rglob("*"), reverse=True):
            file.rmdir() if file.is_dir() else file.unlink()
        path.rmdir()
        return killed

    def run(self, path: Path, append: bool, touches: int | None, seconds: float | None) -> bool:
        """Build in a child that is killed; whether it was before it came to its end."""
        child = os.fork()
        if child == 0:
            try:
                kill_at(touches, seconds)
                self.build(path, append)
            finally:
                os._exit(0)
        _, status = os.waitpid(child, 0)
        return os.WIFSIGNALED(status)


def kill_at(touches: int | None, seconds: float | None) -> None:
    """Let this process die at its n-th touch of a file, or after so long."""
    if seconds is not None:
        threading.Timer(seconds, lambda: os.kill(os.getpid(), signal.SIGKILL)).start()
        return
    left = [touches or 0]

    def touched(event: str, _: Any) -> None:
        if event in TOUCHES:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(touched)


def readable(path: Path, model: torch.nn.Module) -> None:
    """Raise unless the store answers, or says that it is not complete."""
    try:
        load_index(path, model).norms()
    except ValueError as error:
        if "not complete" not in str(error):
            raise


def contents(folder: Path) -> dict[str, bytes]:
    found = {str(path.relative_to(folder)): path for path in folder.rglob("*")}
    return {name: path.read_bytes() if path.is_file() else b"" for name, path in found.items()}


if __name__ == "__main__":
    main()
