"""How much of a score is the network's, the labels' and the damping's? What is left when these are drawn again.

ensembles    the mean of the scores of several networks: other seeds, or the checkpoints of one training
error_bars   the spread over label draws, networks and dampings as one interval, and whether it holds 0
dampings     a damping from the training recipe, and from that one for EK-FAC
"""

from .dampings import damping_by_agreement, damping_by_training
from .ensembles import average_scores, ensemble_influence
from .error_bars import ErrorBars, error_bars

__all__ = [
    "ErrorBars",
    "average_scores",
    "damping_by_agreement",
    "damping_by_training",
    "ensemble_influence",
    "error_bars",
]
