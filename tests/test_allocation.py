"""What could not be allocated is said with its stage, layer and bytes, and what to turn down."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch

import inflib.memory
from inflib.allocation import allocating, asked_for, by_layer, of_layer

LIMITED = """
import resource, sys
from pathlib import Path
import torch
from torch import nn
import inflib

torch.set_num_threads(1)
model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, {wide}), nn.ReLU(), nn.Linear({wide}, 2)).eval()
data = [(torch.randn({batch}, 8), torch.zeros({batch}, dtype=torch.long))]
about = model, inflib.CrossEntropy(), data
few = [(x[:4], y[:4]) for x, y in data]
if "{stage}" != "fit":
    C = inflib.ekfac(model, about[1], few, blocks=64, progress=False)
inflib.ekfac(model, about[1], few, ["0"], labels="observed", progress=False)  # what a process loads once
held = 1024 * next(int(s.split()[1]) for s in Path("/proc/self/status").read_text().splitlines() if "VmSize" in s)
resource.setrlimit(resource.RLIMIT_AS, (held + {room}, held + {room}))
try:
    {call}
except MemoryError as error:
    print(error)
"""


def said(stage: str, call: str, wide: int, room: int, batch: int = 4) -> str:
    script = LIMITED.format(stage=stage, call=call, wide=wide, room=room, batch=batch)
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="a process's memory is limited as on Linux")
def test_a_process_with_little_room_says_what_it_was_for() -> None:
    fit = said("fit", "inflib.ekfac(*about, progress=False)", 6000, 200 * 2**20)
    assert fit.startswith("fit, layer '4': 144,408,064 bytes could not be had. ")
    assert "layers=" in fit and "blocks=at_most(4096)" in fit
    index = said("index", "inflib.TrainIndex.build(*about, C, progress=False)", 6000, 100 * 2**20, 6000)
    assert index.startswith("index, ") and "path=, axes=0.25, bits=1" in index
    scores = said("scores", "inflib.influence(*about, data, C, 1.0, progress=False)", 6000, 100 * 2**20, 6000)
    assert scores.startswith("scores, ") and "max_bytes=" in scores


TORCH = "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 1234567 bytes. Error code 12"
GPU = "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 79.10 GiB"
NUMPY = "Unable to allocate 7.45 GiB for an array with shape (100000, 10000) and data type float64"


@pytest.mark.parametrize(
    ("error", "count"),
    [
        (RuntimeError(TORCH), 1234567),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 96 bytes."), 96),
        (torch.OutOfMemoryError(GPU), round(2.5 * 2**30)),
        (torch.OutOfMemoryError("of another kind"), 0),
        (MemoryError(NUMPY), round(7.45 * 2**30)),
        (MemoryError(), 0),
        (MemoryError("layer 'a' takes 3 bytes"), None),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), None),
        (ValueError(TORCH), None),
    ],
)
def test_bytes_are_read_from_what_an_allocator_says(error: Exception, count: int | None) -> None:
    assert asked_for(error) == count


def failing(error: Exception) -> Callable[[str], None]:
    def work(name: str) -> None:
        if name == "b":
            raise error

    return work


def test_the_innermost_layer_and_the_innermost_stage_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inflib.memory, "LIMIT", 2**20)

    @allocating("index")
    @allocating("scores")
    def run() -> None:
        with of_layer("around"):
            by_layer("abc", failing(RuntimeError(TORCH)))

    with pytest.raises(
        MemoryError, match=r"^scores, layer 'b': 1,234,567 bytes could not be had, with 1,048,576 bytes free"
    ):
        run()


def test_what_fails_in_no_layer_is_the_models_own() -> None:
    @allocating("fit")
    def run() -> None:
        raise torch.OutOfMemoryError(GPU)

    with pytest.raises(
        torch.OutOfMemoryError, match=r"^fit, the model's own passes over a batch: 2.5 GiB .* smaller batches"
    ):
        run()


@pytest.mark.parametrize("error", [RuntimeError("shapes"), MemoryError("layer 'a' takes 3 bytes"), ValueError(TORCH)])
def test_other_errors_pass_as_they_are(error: Exception) -> None:
    @allocating("fit")
    def run() -> None:
        by_layer("abc", failing(error))

    with pytest.raises(type(error)) as found:
        run()
    assert found.value is error and not hasattr(error, "layer")
