"""Does influence predict what it claims to? Ground truths that share nothing with the scores they judge.

leave_one_out   refit without the example, for convex models: what ``predicted_change`` estimates
mislabels       flip labels on purpose, and judge rankings that should find them
retrieval       recall of the examples known to be answers; how concentrated influence is
intervals       bootstrap intervals of means over queries, rank correlation
retraining      many trainings of one recipe as a single batch
bank            what many retrainings on parts of the data did to a set of queries, made once and kept
through_training   the derivative of the trained network itself, by differentiating through all of training
pbrf            minimise the proximal Bregman objective: what influence with damped G estimates for a network
"""

from __future__ import annotations

from .bank import Bank, BankRecipe, half_subsets, load_bank, make_bank, save_small, without
from .intervals import Interval, bootstrap, rank_correlation
from .leave_one_out import Refit, fit_linear, leave_one_out, left_out
from .mislabels import Flipped, auc, flip_labels, placements, recall
from .pbrf import NotConvergedWarning, Proximal, pbrf
from .retraining import Networks, Training, retrain, stack
from .retrieval import Tail, recall_at, tail_exponent, top_share
from .through_training import Run, ThroughTraining, through_training

__all__ = [
    "Bank",
    "BankRecipe",
    "Flipped",
    "Interval",
    "Networks",
    "NotConvergedWarning",
    "Proximal",
    "Refit",
    "Run",
    "Tail",
    "ThroughTraining",
    "Training",
    "auc",
    "bootstrap",
    "fit_linear",
    "flip_labels",
    "half_subsets",
    "leave_one_out",
    "left_out",
    "load_bank",
    "make_bank",
    "pbrf",
    "placements",
    "rank_correlation",
    "recall",
    "recall_at",
    "retrain",
    "save_small",
    "stack",
    "tail_exponent",
    "through_training",
    "top_share",
    "without",
]
