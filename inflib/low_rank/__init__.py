"""All pairs at low rank: each query as a short sum of products x yᵀ, so that no matrix meets a training example.

⟨P_q, Σ_t g_t a_tᵀ⟩ ≈ Σ_r Σ_t ⟨x_r, g_t⟩ ⟨y_r, a_t⟩               P_q = (C + λ)⁻¹ ∇m_q, (o, i) in each layer

terms.py      queries of one position: ∇m is g aᵀ, and what is short is 1/(Λ + λ)
leading.py    sequences: what is short is P_q itself
folded.py     the vectors x and y of all queries, and their products with training pairs
queries.py    a pass with them, some pairs beside their exact scores, and a note that says how far they are apart
"""

from .folded import Folded
from .leading import leading
from .queries import LowRank, LowRankNote, LowRankQueries, check_low_rank
from .terms import Terms, terms

__all__ = ["Folded", "LowRank", "LowRankNote", "LowRankQueries", "Terms", "check_low_rank", "leading", "terms"]
