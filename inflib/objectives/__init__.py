"""What the model was trained for: the per-example loss, its label distribution, and what a query can measure.

An objective is four things: the per-example loss ℓ_n (B,), *summed* over everything inside an example; the seeds
s_c that are back-propagated for expected labels, Σ_c s_c s_cᵀ = H_out, the Hessian of ℓ in the model's outputs; a
sampler of labels from the model's own distribution; and measurements m, functions of the outputs.

    objective           ℓ (+ const)                    seeds s_c                     label y ~
    CrossEntropy        logsumexp(f) − f_y             √p_c (e_c − p)                Categorical(softmax f)
    PixelCrossEntropy   the same, Σ over pixels        one pixel at a time           one a pixel
    Bernoulli           Σ softplus(f) − y f            √(p_c (1 − p_c)) e_c          Bernoulli(sigmoid f)
    SquaredError        ½‖f − y‖²                      e_c                           Normal(f, I)
    Poisson             Σ exp(f) − y f                 exp(f_c / 2) e_c              Poisson(exp f)
    Huber               Σ ½r², or δ|r| − ½δ² beyond δ  e_c where |r_c| ≤ δ           none
    Weighted            w ℓ                            √w s_c                        that of ℓ

Each ℓ with a label distribution is its negative log-likelihood, so that E_{y~model}[∇ℓ ∇ℓᵀ] = Jᵀ H_out J: the Fisher
information is the Gauss-Newton Hessian (Martens 2020, "New insights and perspectives on the natural gradient method").
A loss of one's own is enough by itself: its seeds are then taken from its Hessian (derivatives.py). Where seeds or a
sampler are written by hand, the first batch of every fit proves that they are that loss's (proof.py).
"""

from .checks import TooManySeedsError
from .classification import Bernoulli, CrossEntropy
from .derivatives import differentiable, output_gradient, per_example
from .labels import LABELS, label_kind, label_seeds
from .objective import Measurement, Objective, check_kind, part
from .pixels import PixelCrossEntropy
from .proof import check_curved, check_objective, from_hessian
from .regression import Huber, Poisson, SquaredError
from .sampling import inverse_cdf
from .weights import Weighted, unweighted

__all__ = [
    "LABELS",
    "Bernoulli",
    "CrossEntropy",
    "Huber",
    "Measurement",
    "Objective",
    "PixelCrossEntropy",
    "Poisson",
    "SquaredError",
    "TooManySeedsError",
    "Weighted",
    "check_curved",
    "check_kind",
    "check_objective",
    "differentiable",
    "from_hessian",
    "inverse_cdf",
    "label_kind",
    "label_seeds",
    "output_gradient",
    "part",
    "per_example",
    "unweighted",
]
