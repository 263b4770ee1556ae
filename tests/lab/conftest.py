"""The digits, the scripts in data/ as modules, and the full MNIST set where `INFLIB_DATA` has it."""

import importlib.util
import os
from pathlib import Path

import pytest
import torch

from inflib.lab import mnist_5k

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def digits():
    return mnist_5k()


@pytest.fixture(scope="session")
def builder():
    """data/build_mnist_5k.py as a module."""
    spec = importlib.util.spec_from_file_location("build_mnist_5k", ROOT / "data" / "build_mnist_5k.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def full_mnist():
    """The folder of MNIST's own training set; a test that needs it is skipped where it is not at hand."""
    folder = Path(os.environ.get("INFLIB_DATA", "")) / "mnist"
    if not (folder / "train-images-idx3-ubyte.gz").is_file():
        pytest.skip("needs MNIST's full training set: set INFLIB_DATA to the folder that holds mnist/*.gz")
    return folder


@pytest.fixture
def rng_untouched():
    """Fails the test that moved torch's global generator on the CPU."""
    before = torch.get_rng_state()
    yield
    assert torch.equal(torch.get_rng_state(), before), "the global random generator was used"
