"""What a stage costs: CPU-seconds and peak memory of the process that runs it, set-up left out.

CPU-seconds are user + system time of all threads, so a busy machine does not change what is compared. Memory is the
high-water mark of the resident set. Linux can reset that mark, so the peak is the stage's own; elsewhere it is the
process's, and `peak_is_stage` says so.

On a GPU (`Cost(gpu=True)`) the seconds that count are the clock's, its queue emptied at both ends, and memory is what
torch has allocated there.
"""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

MIB = 2**20


@dataclass
class Cost:
    """Filled in when the `with` block ends. Memory in MiB."""

    cpu_s: float = 0.0  # user + system
    system_s: float = 0.0
    wall_s: float = 0.0
    baseline_mib: float = 0.0  # resident after imports, data and model, before the stage
    peak_mib: float = 0.0
    peak_is_stage: bool = True
    gpu: bool = False

    def __enter__(self) -> Cost:
        if self.gpu:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self.baseline_mib = torch.cuda.memory_allocated() / MIB
        else:
            self.peak_is_stage = _reset_peak()
            self.baseline_mib = _status("VmRSS")
        self._start = (time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_stime, time.perf_counter())
        return self

    def __exit__(self, *exc: object) -> None:
        cpu, system, wall = self._start
        if self.gpu:
            torch.cuda.synchronize()
        self.cpu_s = time.process_time() - cpu
        self.system_s = resource.getrusage(resource.RUSAGE_SELF).ru_stime - system
        self.wall_s = time.perf_counter() - wall
        self.peak_mib = torch.cuda.max_memory_allocated() / MIB if self.gpu else _status("VmHWM")


def _reset_peak() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _status(field: str) -> float:
    """A line of /proc/self/status in MiB; where there is no /proc, the process's own high-water mark."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, others kibibytes
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / MIB
    line = next(line for line in lines if line.startswith(field + ":"))
    return int(line.split()[1]) * 1024 / MIB
