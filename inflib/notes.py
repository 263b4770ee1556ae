"""Warnings that point at the user's line, however many calls of inflib's own lie between."""

from __future__ import annotations

import contextlib
import sys
import warnings
from pathlib import Path

import torch

OURS = tuple(str(Path(str(at)).parent) for at in (__file__, torch.__file__)) + (str(contextlib.__file__),)


def note(text: str, kind: type[Warning]) -> None:
    """``warnings.warn`` as from the first caller outside inflib, torch (its decorators) and contextlib."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_code.co_filename.startswith(OURS):
        frame, level = frame.f_back, level + 1
    warnings.warn(text, kind, stacklevel=level)
