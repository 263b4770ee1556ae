"""Draw a digit in a real JupyterLab: with the mouse, a finger, the keyboard, a picture; and see what made the answer."""

from __future__ import annotations

SOURCES = (
    """
import torch

from inflib import CrossEntropy, TrainIndex, load
from inflib.lab import load_checkpoint, mlp, mnist_5k, shipped_checkpoint
from inflib.widgets import DrawDigit, three_methods

torch.set_num_threads(1)
digits, model, objective = mnist_5k(), mlp(dtype=torch.float64), CrossEntropy()
load_checkpoint(shipped_checkpoint("mnist_mlp"), model, data=(digits.train.inputs, digits.train.labels))
curvature = load(shipped_checkpoint("mnist_mlp_ekfac"), model)
train = digits.train.batches(dtype=torch.float64)
index = TrainIndex.build(model, objective, train, curvature)
methods = three_methods(model, objective, train, curvature)
""",
    """
sheet = DrawDigit(model, objective, index, digits.train, curvatures=methods)
sheet
""",
)
