"""The digits, the scripts in data/ as modules, and the full MNIST set where it is at hand."""

import importlib.util
import os
from pathlib import Path

import pytest
import torch

from inflib.lab import downloads, mnist_5k

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
    """The folder of MNIST's four files; a test that needs them is skipped where they are not at hand."""
    for folder in (Path(os.environ.get("INFLIB_DATA", "")), downloads.cache_folder()):
        if all((folder / file.path).is_file() for file in downloads.MNIST.values()):
            return folder / "mnist"
    pytest.skip("needs all of MNIST: set INFLIB_DATA to the folder that holds mnist/*.gz, or call mnist_full() once")


@pytest.fixture
def rng_untouched():
    """Fails the test that moved torch's global generator on the CPU."""
    before = torch.get_rng_state()
    yield
    assert torch.equal(torch.get_rng_state(), before), "the global random generator was used"
