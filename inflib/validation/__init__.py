"""Does influence predict what it claims to? Ground truths that share nothing with the scores they judge.

leave_one_out   refit without the example, for convex models: what ``predicted_change`` estimates
pbrf            minimise the proximal Bregman objective: what influence with damped G estimates for a network
"""

from __future__ import annotations

from .leave_one_out import Refit, fit_linear, leave_one_out, left_out
from .pbrf import NotConvergedWarning, Proximal, pbrf

__all__ = ["NotConvergedWarning", "Proximal", "Refit", "fit_linear", "leave_one_out", "left_out", "pbrf"]
