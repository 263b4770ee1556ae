"""The top of the ladder: the exact derivative of what training ends with, by differentiating through all its steps.

    z_{k+1} = U_k(z_k, w)        z = (θ, the optimiser's state),    L_k = (1/|B_k|) Σ_{n ∈ B_k} w_n ℓ_n(θ)
    score(q, n) = N · dm_q(θ_T) / dw_n                              at w = 1

No curvature, no damping, no minimum: every step of the optimiser is differentiated as it was taken. Unit and sign are
those of ``influence``: w_n = 1 + N ε is the objective (1/N) Σ ℓ + ε ℓ_n, so that ``predicted_change`` applies.

    optimisers    SGD with momentum, AdamW and Adam as functions (z, gradient) → z: all of their state is in z
    run           what decides a training but its data and its start: the optimiser, each step's examples and rate
    replay        the training itself, and its states kept every √T steps
    sweep         backwards through the replayed steps, for all queries at once; all N derivatives in one sweep

Whether the derivative of a training is worth having is another matter: where training amplifies small changes, it
tells of changes too small to matter (``benchmarks/smooth_training.py`` measures it).

Sources: Maclaurin, Duvenaud & Adams 2015, "Gradient-based hyperparameter optimization through reversible learning"; for
weights of the data, and the smoothness it asks of training, Ilyas & Engstrom 2025, "MAGIC: near-optimal data
attribution for deep learning". States kept every √T steps: Chen et al. 2016, "Training deep nets with sublinear
memory cost".
"""

from .optimisers import SGD, Adam, AdamW, Optimiser
from .run import Run
from .sweep import ThroughTraining, through_training

__all__ = ["SGD", "Adam", "AdamW", "Optimiser", "Run", "ThroughTraining", "through_training"]
