"""inflib: influence functions through EK-FAC, as the course derives them.

Which training examples made this model do that? The code tells one story, and a file is a chapter of it:

    model + objective + batches
      → hooks.forward, hooks.pairs   activations a and output gradients g of every chosen layer
      → proof.Proof                  each row of them shown to be one example's              (on a batch or two a pass)
      → kfac.second_moments          A = Σ a aᵀ / positions, S = Σ g gᵀ / examples            (pass 1 over the data)
      → ekfac.eigenbasis             Q_A, Q_S                                               (one eigh per factor)
      → ekfac.corrected_eigenvalues  Λ = E[(Q_Sᵀ Dθ Q_A)²]                                    (pass 2 over the data)
      → a Curvature                  matvec · solve(v, damping) · to_dense
      → scoring.influence            ∇m_qᵀ (C + diag λ_layer)⁻¹ (−∇ℓ_n) for every query q and training example n

Each arrow is a function of plain values; the model is left exactly as it was found. What is assumed about it is proved
on the data, or refused by name: that rows are examples (proof), that a mask is a layer's (padding), that a loss and its
seeds belong together (objectives), that weights and data are those of the fit (fingerprints, order).

    symbol   shape         meaning
    a        (B, T, i)     a layer's input: batch, positions (tokens, pixels; 1 for a plain MLP), features, bias's 1
    g        (B, T, o)     d(per-example loss) / d(layer output)
    Dθ       (o, i)        a layer's weight gradient, Σ_t g_t a_tᵀ; row-major wherever it is flattened
    ℓ_n      ()            per-example loss in nats, summed over an example's parts; squared error is ½‖f − y‖²
    A, S     (i, i) (o, o) second moments of a (over positions) and of g (over examples)
    Q_A, Q_S (i, i) (o, o) their eigenvectors, in columns
    Λ        (o, i)        eigenvalues of C in the basis Q_S ⊗ Q_A
    C        (D, D)        curvature, the mean over the examples: G = (1/N) Σ Jᵀ H_out J
    λ        ()            damping, one number per layer, an argument of ``solve``; default 0.1 · mean(Λ_layer)
    m        ()            measurement: what the query asks about; default its log-likelihood, −ℓ
    score    (Q, N)        dm/dε for the objective (1/N) Σ ℓ + ε ℓ_n. score > 0: a proponent; < 0: an opponent

A score's order is to be trusted before its size: see ``contribution``, and ``refine`` for scores whose size is meant.

    from inflib import CrossEntropy, contribution, ekfac, influence

    objective = CrossEntropy()
    curvature = ekfac(model, objective, train)
    scores = influence(model, objective, train, queries, curvature)         # (Q, N)
    top = scores.topk(10)
    lost = contribution(scores, n_train=len(dataset))   # by each query's m, if the example is removed; + of proponents

Sources: Grosse et al. 2023, "Studying Large Language Model Generalization with Influence Functions" (arXiv 2308.03296);
George et al. 2018 (EK-FAC); Martens & Grosse 2015 (K-FAC); Koh & Liang 2017 (influence functions for neural networks).
"""

from .blocks import at_most
from .collators import hugging_face_batches
from .coverage import CoverageNote, coverage
from .curvature import Curvature, Facts, IndefiniteWarning, damping_of, relative
from .dense import BlockDense, Dense
from .exact import gauss_newton, hessian
from .finite import RoundingNote
from .hooks import Pair
from .implicit import Implicit, refine
from .index import Store, StoreNote, TrainIndex, load_index, save
from .kronecker import Kronecker, diagonal, ekfac, identity, kfac
from .layers import everything, register, untied, without_biases
from .low_rank import LowRankNote
from .objectives import (
    Bernoulli,
    CrossEntropy,
    Huber,
    Objective,
    PixelCrossEntropy,
    Poisson,
    SquaredError,
    Weighted,
)
from .padding import PaddingNote
from .perturbations import perturbation
from .plan import Plan, plan
from .positions import with_masks
from .proof import RowsNote, capture
from .queries import precondition
from .scoring import contribution, influence, predicted_change, self_influence
from .sequences import NextToken, completion, token_batches
from .storage import load
from .texts import TokenNote

__version__ = "0.1.0"

__all__ = [
    "Bernoulli",
    "BlockDense",
    "CoverageNote",
    "CrossEntropy",
    "Curvature",
    "Dense",
    "Facts",
    "Huber",
    "Implicit",
    "IndefiniteWarning",
    "Kronecker",
    "LowRankNote",
    "NextToken",
    "Objective",
    "PaddingNote",
    "Pair",
    "PixelCrossEntropy",
    "Plan",
    "Poisson",
    "RoundingNote",
    "RowsNote",
    "SquaredError",
    "Store",
    "StoreNote",
    "TokenNote",
    "TrainIndex",
    "Weighted",
    "at_most",
    "capture",
    "completion",
    "contribution",
    "coverage",
    "damping_of",
    "diagonal",
    "ekfac",
    "everything",
    "gauss_newton",
    "hessian",
    "hugging_face_batches",
    "identity",
    "influence",
    "kfac",
    "load",
    "load_index",
    "perturbation",
    "plan",
    "precondition",
    "predicted_change",
    "refine",
    "register",
    "relative",
    "save",
    "self_influence",
    "token_batches",
    "untied",
    "with_masks",
    "without_biases",
]
