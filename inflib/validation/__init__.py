"""Does influence predict what it claims to? Ground truths that share nothing with the scores they judge.

leave_one_out   refit without the example, for convex models: what ``predicted_change`` estimates
mislabels       flip labels on purpose, and judge rankings that should find them
retrieval       recall of the examples known to be answers; how concentrated influence is
intervals       bootstrap intervals of means over queries, rank correlation
retraining      many trainings of one recipe as a single batch
bank            what many retrainings on parts of the data did to a set of queries, made once and kept
through_training  the derivative of the trained network, by differentiating through all of training
datamodeling    do summed scores order retrainings on parts of the data? the score, its interval, its ceiling
calibration     are sizes right? slope and correlation of actual against predicted change
leave_k_out     leaving out one or k on a deep network: effect, noise, and the seeds it takes
removal         take away what an answer rests on, and see whether it falls
board           named methods against the same ground truths, each at its best dial
pbrf            minimise the proximal Bregman objective: what influence with damped G estimates for a network
"""

from __future__ import annotations

from .bank import Bank, BankRecipe, half_subsets, load_bank, load_published, make_bank, save_small, without
from .board import (
    Board,
    Measurement,
    Method,
    board,
    by_proximal,
    by_reference,
    by_removal,
    by_retraining,
    by_size,
    halves,
)
from .calibration import Calibration, bank_calibration, calibration
from .datamodeling import Datamodeling, ceiling, datamodeling
from .intervals import Interval, bootstrap, rank_correlation
from .leave_k_out import LeftOut, leave_k_out
from .leave_one_out import Refit, fit_linear, leave_one_out, left_out
from .mislabels import Flipped, auc, flip_labels, placements, recall
from .pbrf import InterpolationWarning, NotConvergedWarning, Proximal, pbrf
from .removal import Removal, disputed, nearest, random_same_class, remove, remove_top
from .retraining import Networks, Training, retrain, stack
from .retrieval import Tail, recall_at, tail_exponent, top_share
from .through_training import Run, ThroughTraining, through_training

__all__ = [
    "Bank",
    "BankRecipe",
    "Board",
    "Calibration",
    "Datamodeling",
    "Flipped",
    "InterpolationWarning",
    "Interval",
    "LeftOut",
    "Measurement",
    "Method",
    "Networks",
    "NotConvergedWarning",
    "Proximal",
    "Refit",
    "Removal",
    "Run",
    "Tail",
    "ThroughTraining",
    "Training",
    "auc",
    "bank_calibration",
    "board",
    "bootstrap",
    "by_proximal",
    "by_reference",
    "by_removal",
    "by_retraining",
    "by_size",
    "calibration",
    "ceiling",
    "datamodeling",
    "disputed",
    "fit_linear",
    "flip_labels",
    "half_subsets",
    "halves",
    "leave_k_out",
    "leave_one_out",
    "left_out",
    "load_bank",
    "load_published",
    "make_bank",
    "nearest",
    "pbrf",
    "placements",
    "random_same_class",
    "rank_correlation",
    "recall",
    "recall_at",
    "remove",
    "remove_top",
    "retrain",
    "save_small",
    "stack",
    "tail_exponent",
    "through_training",
    "top_share",
    "without",
]
