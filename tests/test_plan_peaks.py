"""The memory that a plan says a stage will take is the most that it then holds."""

from __future__ import annotations

import pytest
from peaks import can_be_measured, in_a_process_of_its_own

pytestmark = pytest.mark.skipif(not can_be_measured(), reason="needs Linux's high-water mark of memory, and glibc")


def test_peaks_are_those_then_measured() -> None:
    found = in_a_process_of_its_own("fit", "later_looks", "counted_fit")
    for name in ("fit", "later_looks"):
        for stage, (planned, came) in found[name].items():
            assert planned == pytest.approx(came, rel=0.1), f"{name}: {stage}"
    planned, came = found["counted_fit"]["fit"]
    assert 0.98 * came <= planned <= 1.15 * came, "the widest factor's eigenvectors count twice, and nothing else"


@pytest.mark.parametrize("late", ["late_long_batch", "late_batch_of_many"])
def test_a_late_large_batch_is_in_every_peak(late: str) -> None:
    """Also where it is of queries, and those that are tried end before it, or within it; that is carried on."""
    found = in_a_process_of_its_own(late)[late]
    planned, came = found.pop("queries")
    assert 0.95 * came <= planned <= 2 * came
    for stage, (planned, came) in found.items():
        assert planned == pytest.approx(came, rel=0.1), stage
