"""Wrong answers to the exercises, by notebook: the code, and what the check's one sentence has to name.

They run after the notebook and its solutions, so a solution can be spoilt in place of written anew.
"""

from __future__ import annotations

WRONG: dict[str, list[tuple[str, str]]] = {}
