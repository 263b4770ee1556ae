"""Random numbers that are known: label streams by (seed, pass, draw, example); torch's generators are left alone."""

from __future__ import annotations

import pickle
import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from hashlib import blake2b
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


@contextmanager
def preserved_rng(generators: Iterable[torch.Generator] = (torch.default_generator,)) -> Iterator[None]:
    """Leave torch's global generators as they were found (a DataLoader draws from the CPU's just by being iterated)."""
    states = [(generator, generator.get_state()) for generator in generators]
    try:
        yield
    finally:
        for generator, state in states:
            generator.set_state(state)


def other_generators(model: nn.Module) -> bytes:
    """A hash of the states of generators that a model may draw from beside torch's: NumPy's, Python's, its own."""
    states = [pickle.dumps(state) for state in (random.getstate(), np.random.get_state(legacy=False))]  # noqa: NPY002
    for held in (value for module in model.modules() for value in module.__dict__.values()):
        if isinstance(held, torch.Generator):
            states.append(held.get_state().cpu().numpy().tobytes())
        elif isinstance(held, (np.random.Generator, np.random.RandomState, random.Random)):
            states.append(pickle.dumps(held))
    return blake2b(b"".join(states)).digest()


def check_seed(seed: Any) -> None:
    """Raise ValueError for what is no seed of a label stream (a fraction would share another seed's streams)."""
    if not (isinstance(seed, Integral) and 0 <= int(seed) < 2**64):
        raise ValueError(f"seed is {seed!r}; expected a whole number from 0 to 2**64 − 1. Leave it at seed=0.")


class LabelStreams:
    """Uniform numbers in (0, 1) for sampled labels; example n, pass p, draw k has a stream of its own.

    Philox (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") is counter-based: the stream is a
    function of (seed, p, k, n) alone, so batch size, chunking and the number of processes change no label.
    """

    def __init__(self, seed: int, pass_: int, draw: int):
        check_seed(seed)
        self._philox = np.random.Philox(0)
        self._state = self._philox.state
        self._state["state"]["key"] = np.array([seed, (pass_ << 32) | draw], dtype=np.uint64)
        self._state["buffer_pos"], self._state["has_uint32"] = 4, 0

    def uniforms(self, start: int, examples: int, count: int) -> Tensor:
        """(examples, count) float64 on the CPU: ``count`` numbers for each of the examples from ``start`` on."""
        out = np.empty((examples, count), dtype=np.uint64)
        for row in range(examples):
            self._state["state"]["counter"] = np.array([0, 0, 0, start + row], dtype=np.uint64)
            self._philox.state = self._state
            out[row] = self._philox.random_raw(count)
        return torch.from_numpy(((out >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53)
