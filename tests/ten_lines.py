"""The README's first lines of Python on a tiny model: `PYTHON tests/ten_lines.py`, for any interpreter that has inflib."""

from __future__ import annotations

import re
from pathlib import Path

import torch

import inflib

README = Path(__file__).resolve().parents[1] / "README.md"
(code, *_) = re.findall(r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
torch.manual_seed(0)
there = {
    "model": torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.ReLU(), torch.nn.Linear(4, 11)).eval(),
    "train": [(torch.randn(30, 5), torch.randint(0, 11, (30,)))],
    "queries": [(torch.randn(3, 5), torch.randint(0, 11, (3,)))],
    "dataset": range(30),
}
exec(code, there)
print(tuple(there["scores"].shape), inflib.__file__)
