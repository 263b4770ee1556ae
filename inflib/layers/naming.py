"""Layers by name: what a glob matches, whatever a model is wrapped in, and how many names are said in few words."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable
from functools import lru_cache

MOST = 16  # names that a message shows one by one
_FIRST = ("base_model.model.", "module.")  # what PEFT, and what DataParallel and its like, call a model inside
_ANYWHERE = "_orig_mod."  # what torch.compile calls it


@lru_cache(maxsize=2**14)  # a model's names are asked about for each layer that is chosen
def bare(name: str) -> str:
    """A name without what wrappers put before it: "base_model.model.", "module.", "_orig_mod."."""
    name = name.replace(_ANYWHERE, "")
    for prefix in _FIRST:
        name = name.removeprefix(prefix)
    return name


def same(name: str, pattern: str) -> bool:
    """Whether a pattern is the layer's name, with the prefixes of wrappers or without."""
    return name == pattern or bare(name) == bare(pattern)


def matches(name: str, pattern: str) -> bool:
    """Whether a pattern is the layer's name or a glob that matches it, with the prefixes of wrappers or without."""
    return same(name, pattern) or any(
        fnmatch.fnmatchcase(one, other) for one, other in ((name, pattern), (bare(name), bare(pattern)))
    )


def listed(names: Iterable[str]) -> str:
    """Names in a message: one by one where they are few, else the patterns that they follow."""
    names = list(names)
    if len(names) <= MOST:
        return ", ".join(map(repr, names)) or "no layer of a type inflib understands"
    found = patterns(names)
    shown = ", ".join(map(repr, found[:MOST]))
    return shown + (f" and {len(found) - MOST} more patterns (see inflib.coverage)" if len(found) > MOST else "")


def patterns(names: Iterable[str]) -> list[str]:
    """["h.0.up", "h.1.up", "h.0.down", "h.1.down"] → ["h.{0..1}.{up,down}"]: names alike but for numbers and an end."""
    numbered: dict[str, list[tuple[int, ...]]] = {}
    for name in names:
        parts = re.split(r"(?<=\.)(\d+)(?=\.|$)", f".{name}")
        numbered.setdefault("#".join(parts[::2]), []).append(tuple(map(int, parts[1::2])))
    ends: dict[tuple[str, str], list[str]] = {}
    for shape, numbers in numbered.items():
        spans = [_span(sorted({n[at] for n in numbers})) for at in range(len(numbers[0]))]
        filled = shape
        for span in spans:
            filled = filled.replace("#", span, 1)
        parent, _, last = filled.removeprefix(".").rpartition(".")
        if "{" in last:  # a number is no kind of an end
            parent, last = f"{parent}.{last}" if parent else last, ""
        ends.setdefault((parent, str(len(numbers))), []).append(last)
    return [
        f"{parent}.{_ends(some)}" if parent and some != [""] else parent or _ends(some)
        for (parent, _), some in ends.items()
    ]


def _span(numbers: list[int]) -> str:
    if len(numbers) == 1:
        return str(numbers[0])
    run = numbers == list(range(numbers[0], numbers[-1] + 1))
    return f"{{{numbers[0]}..{numbers[-1]}}}" if run and len(numbers) > 1 else "{" + ",".join(map(str, numbers)) + "}"


def _ends(ends: list[str]) -> str:
    """["gate_proj", "up_proj"] → "{gate,up}_proj"."""
    if len(ends) == 1:
        return ends[0]
    tails = [end[end.rfind("_") :] if "_" in end else "" for end in ends]
    tail = (
        tails[0]
        if tails[0] and all(t == tails[0] and len(end) > len(t) for end, t in zip(ends, tails, strict=True))
        else ""
    )
    return "{" + ",".join(end.removesuffix(tail) for end in ends) + "}" + tail
