"""The project's docstrings as Sphinx reads them: aligned "name: what it is" lines become a list, tables stay tables."""

from __future__ import annotations

import re

ARGUMENT = re.compile(r"^(?P<names>[\w*ΛλΣ]+(?:, [\w*]+)*): +(?P<text>\S.*)$")


def as_restructured_text(app, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Rewrite ``lines`` in place, as autodoc asks."""
    lines[:] = fields(lines)


def fields(lines: list[str]) -> list[str]:
    """Each argument's lines as one field, the paragraphs between them as they are."""
    found: list[str] = []
    inside = False  # an argument's text
    for line in lines:
        argument = ARGUMENT.match(line)
        if argument:
            if not inside and found and found[-1]:
                found.append("")
            found.append(f":{argument['names']}: {escaped(argument['text'])}")
            inside = True
        elif inside and line.startswith(" ") and line.strip():
            found.append(f"    {escaped(line.strip())}")
        else:
            if inside and line.strip():
                found.append("")
            found.append(escaped(line))
            inside = False
    return found


def escaped(line: str) -> str:
    """A line in which no star, bar or underscore at a word's end means more than itself; ``code`` stays code."""
    parts = re.split(r"(``.*?``)", line)
    return "".join(part if part.startswith("``") else re.sub(r"([*|]|_(?=\W|$))", r"\\\1", part) for part in parts)
