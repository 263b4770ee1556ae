"""What the notebooks study: data sets, models and their training. The core of inflib never imports this package.

downloads   files that others publish, found on this machine or downloaded once
data        the digits that ship with the repository, with a split that never changes, and all of MNIST
handwriting a drawing or a photograph as MNIST would hold it
oddities    what is odd about a drawing: too small, of two shapes, unlike all training digits
text        vocabularies and corpora; letters and digits in turn
facts       invented facts told in several wordings, where it is known which sentence taught what
villagers   the same in ordinary English, for a model that has learned English already
shakespeare the plays, two of which ship, cut in sequences that know their speaker and line
models      small networks whose layers have readable names
networks    the networks of notebook 07, shipped or trained when first asked for
transformer the language model, whose layers have readable names too
language_models  the models of notebook 08, shipped or trained when first asked for
smollm2     a language model that people have heard of, found on this machine or downloaded once
banks       which networks were retrained on which data, for notebook 09
plain       EK-FAC in one file, short and slow, to be broken
mistakes    fifteen mistakes of one line, planted in it
exercises   checks of the reader's answers, which reply in one sentence
training    seeded training, and checkpoints that know their weights and their data
"""

from __future__ import annotations

from ..extras import require

require("inflib.lab", "PIL", "safetensors")

from .data import DigitData, Digits, mnist, mnist_5k, mnist_full, normalise
from .exercises import exercise
from .facts import Fact, FactData, facts
from .handwriting import NoDigitError, Stroke, as_mnist, ink_of_picture, ink_of_strokes
from .language_models import corpus_of, language_model, learning_rate
from .models import cnn, mlp
from .networks import network
from .oddities import Familiar, oddities
from .shakespeare import shakespeare, two_plays
from .smollm2 import BEGIN, RealModel, real_language_model, taught
from .text import Corpus, Vocabulary, alternating, characters, words
from .training import (
    Checkpoint,
    History,
    accuracy,
    load_checkpoint,
    mean_loss,
    save_checkpoint,
    shipped_checkpoint,
    train,
)
from .transformer import Transformer, transformer
from .villagers import Known, VillageData, villagers

__all__ = [
    "BEGIN",
    "Checkpoint",
    "Corpus",
    "DigitData",
    "Digits",
    "Fact",
    "FactData",
    "Familiar",
    "History",
    "Known",
    "NoDigitError",
    "RealModel",
    "Stroke",
    "Transformer",
    "VillageData",
    "Vocabulary",
    "accuracy",
    "alternating",
    "as_mnist",
    "characters",
    "cnn",
    "corpus_of",
    "exercise",
    "facts",
    "ink_of_picture",
    "ink_of_strokes",
    "language_model",
    "learning_rate",
    "load_checkpoint",
    "mean_loss",
    "mlp",
    "mnist",
    "mnist_5k",
    "mnist_full",
    "network",
    "normalise",
    "oddities",
    "real_language_model",
    "save_checkpoint",
    "shakespeare",
    "shipped_checkpoint",
    "taught",
    "train",
    "transformer",
    "two_plays",
    "villagers",
    "words",
]
