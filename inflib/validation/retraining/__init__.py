"""Many trainings of one recipe as a single batch: what retraining really does, at a price one can pay.

training      what decides a training beside its data: steps, rates, order
stacked       M networks of one architecture as one set of stacked parameters
perceptrons   the quick way for multilayer perceptrons: the first layer of all M is one large product
together      train M networks at once, each on its own weighting of the examples
"""

from __future__ import annotations

from .stacked import Networks, stack
from .together import retrain
from .training import Training

__all__ = ["Networks", "Training", "retrain", "stack"]
