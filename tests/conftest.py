"""What every test runs under: one deterministic thread, fresh seeds, a stated reason for what cannot run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

# cuBLAS is deterministic only when this is set before it starts
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import pytest
import torch
from hypothesis import settings

ROOT = Path(__file__).resolve().parent.parent
PEERS_PYTHON = ROOT / ".venv-peers" / "bin" / "python"

torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)

settings.register_profile("dev", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if "CI" in os.environ else "dev"))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what this machine cannot run; under INFLIB_REQUIRE_* that is an error."""
    if item.get_closest_marker("cuda") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device; torch.cuda.is_available() is False")
    if item.get_closest_marker("peers") and not PEERS_PYTHON.exists():
        missing(
            "peers",
            f"needs the libraries compared with in {PEERS_PYTHON.parent.parent.name}; run `make peers`",
        )


def missing(what: str, reason: str) -> None:
    """Skip with the reason, or fail where INFLIB_REQUIRE_<WHAT>=1 says that nothing may be missing."""
    if os.environ.get(f"INFLIB_REQUIRE_{what.upper()}") == "1":
        pytest.fail(f"INFLIB_REQUIRE_{what.upper()}=1: {reason}", pytrace=False)
    pytest.skip(reason)


@pytest.fixture(autouse=True)
def _same_start() -> Iterator[None]:
    """Every test begins at the same seed, and leaves default dtype and gradient mode as it found them."""
    dtype, grad = torch.get_default_dtype(), torch.is_grad_enabled()
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(dtype)
    torch.set_grad_enabled(grad)


@pytest.fixture(scope="module")
def float64() -> Iterator[None]:
    """Models and tensors of the whole module in float64: `pytestmark = pytest.mark.usefixtures("float64")`.

    Of module scope because hypothesis runs many examples within one call of a test's own fixtures.
    """
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(dtype)


@pytest.fixture(scope="session")
def peers_python() -> Path:
    """The interpreter of the environment that holds the libraries compared with (mark such tests `peers`)."""
    return PEERS_PYTHON
