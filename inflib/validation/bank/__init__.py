"""A bank: what many retrainings on parts of the data did to a set of queries, measured once and kept.

masks     which examples each retraining keeps
recipes   all that decides a bank: network, data, training, masks, seeds, queries
folder    a bank being made on disk: killed at any moment, it goes on where it was and ends the same
published files of masks and losses as others publish them, read without running what they hold
banks     a finished bank: reading it, checking what it is of, shipping it in few bytes

``python -m inflib.validation.bank RECIPE`` makes one; RECIPE is a name in inflib.lab.banks, or module:name of your own.
"""

from __future__ import annotations

from .banks import Bank, load_bank, save_small
from .folder import make_bank
from .masks import half_subsets, without
from .published import load_published
from .recipes import BankRecipe

__all__ = ["Bank", "BankRecipe", "half_subsets", "load_bank", "load_published", "make_bank", "save_small", "without"]
