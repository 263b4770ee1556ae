"""Solutions run after the lines that they need, and no others: what is found, on a page that a reader can follow."""

from __future__ import annotations

import pytest
from build import read_source
from needed_lines import needed

PAGE = """\
# %%
import math
import random
x, y = 2.0, 3.0
slow = sum(range(10))

# %%
def half(a):
    return a / two

two = 2.0
values = [x]
values.append(y)
print(values, slow)

# %%
for y in range(3):
    print(y)
x = half(x)
if x > 0:
    values[0] = 7.0

# %%
total = math.fsum(values)
"""


def lines(tmp_path, *after: str) -> list[str]:
    source = tmp_path / "page.py"
    source.write_text(PAGE)
    return "\n".join(cell.source for cell in needed(read_source(source).cells, [], after)).splitlines()


@pytest.mark.parametrize(
    ("after", "line"),
    [
        ("two", "two = 2.0"),
        ("half(1)", "two = 2.0"),  # through a function that reads it
        ("values", "x, y = 2.0, 3.0"),  # through the values it is made of
        ("values", "values.append(y)"),  # a method called for no result
        ("values", "    values[0] = 7.0"),  # an assignment to a part, in a branch
        ("total", "import math"),
        ("y", "for y in range(3):"),  # a loop binds too
    ],
)
def test_what_is_needed_is_there(tmp_path, after, line) -> None:
    assert line in lines(tmp_path, after)


@pytest.mark.parametrize("line", ["import random", "slow = sum(range(10))", "print(values, slow)", "    print(y)"])
def test_what_nothing_reads_is_left_out(tmp_path, line) -> None:
    assert line in PAGE
    assert line not in lines(tmp_path, "total")


def test_what_runs_gives_the_same(tmp_path) -> None:
    whole: dict[str, object] = {}
    exec(PAGE, whole)
    some: dict[str, object] = {}
    exec("\n".join(lines(tmp_path, "total", "half")), some)
    assert (some["total"], some["x"]) == (whole["total"], whole["x"])
