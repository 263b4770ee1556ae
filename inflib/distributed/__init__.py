"""Several processes, one answer: each takes its share of the data, and sums are added up.

    torchrun --nproc-per-node=4 examples/torchrun_fit.py

Moments and Λ are sums over examples, so a process sums over its own batches and one all-reduce makes the whole:
A = (Σ_ranks Σ a aᵀ) / positions. Eigendecompositions are dealt out by size, scores are columns side by side, a store's
shards are files side by side. Example n draws its labels from its own stream, known by its position among all examples,
so any number of processes draws the same labels. Nothing is padded and nothing counted twice; shares may differ in
length, or be empty.

    ranks.py     who is there, what is exchanged; the only file that imports torch.distributed
    shares.py    whose the batches are
    fit.py       EK-FAC
    scores.py    influence, self-influence
    shards.py    a store on disk
"""

from .fit import deal, ekfac
from .ranks import RankError, Ranks, processes
from .scores import influence, self_influence
from .shards import build_store
from .shares import Share, share

__all__ = [
    "RankError",
    "Ranks",
    "Share",
    "build_store",
    "deal",
    "ekfac",
    "influence",
    "processes",
    "self_influence",
    "share",
]
