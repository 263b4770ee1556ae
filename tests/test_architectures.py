"""The models people bring, and models that put their examples in unusual places, against one example at a time.

``architectures.py`` and ``layouts.py`` hold the models, ``alone.py`` the oracle. What is not here of the catalogue is
seen with ``python tests/architectures.py``.
"""

from __future__ import annotations

import re
from dataclasses import replace
from importlib.metadata import version

import pytest
from alone import QUIET, as_told, examine
from architectures import CATALOGUE
from layouts import MIXED, RIGHT

from inflib import TrainIndex, diagonal, identity, influence, kfac, self_influence

pytestmark = [
    pytest.mark.usefixtures("float64"),
    pytest.mark.filterwarnings(
        "ignore::inflib.CoverageNote", "ignore::inflib.RowsNote", "ignore:.*gradient_checkpointing:FutureWarning"
    ),
]

# before transformers 5 Mixtral's experts were modules, which are refused, and Mamba called its convolution, which counts
NEW = int(version("transformers").split(".")[0]) >= 5
TRIED = [
    "BERT", "ALBERT", "multiple choice", "GPT-2", "OPT", "Gemma", "Llama, checkpointed", "LoRA, int8 base", "DoRA",
    "T5", "CLIP", "Swin", "ConvNext", "Segformer",
]  # fmt: skip


@pytest.mark.parametrize("name", [*TRIED, "Mixtral" if NEW else "Mamba"])
def test_gradients_and_their_products_are_those_of_each_example_alone(name: str) -> None:
    found = examine(CATALOGUE[name]())
    assert not found.refusal
    assert found.worst < 1e-10
    assert max(found.activations, found.slopes) < 1e-10, "padding counts"


@pytest.mark.parametrize("name", ["BERT", "GPT-2", "OPT", "Llama", "multiple choice", "ConvNext"])
def test_everything_covers_all_but_a_hundredth_of_the_numbers_exactly(name: str) -> None:
    """Tied, scaled and shifted embeddings, positions that all examples share, and every normalisation."""
    found = examine(replace(CATALOGUE[name](), layers="all"))
    assert not found.refusal
    assert found.share > 0.99 and found.worst < 1e-10


@pytest.mark.parametrize("name", RIGHT)
def test_examples_are_found_wherever_a_model_puts_them(name: str) -> None:
    found = examine(RIGHT[name]())
    assert not found.refusal
    assert max(found.worst, found.activations, found.slopes) < 1e-10


NAMED = {  # what a refusal names
    "sorted by length inside forward": "layer 'l'",
    "packed sequences": "layer 'l'",
    "contrastive logits": "layer 'v'",
    "a graph's nodes": "layer 'l'",
    "batch statistics written by hand": "layer 'l'",
    "routed experts": "layer 'experts.0'",
    "one expert for every example": "layer 'a'",
    "a weight used outside its module in later batches": "layer 'l'",
    "rows in order in the first batch only": "layer 'l'",
    "a loss over the batch": "the (loss|measurement) of one example",
}


@pytest.mark.parametrize("name", MIXED)
def test_mixed_examples_are_refused_in_one_breath_that_names_what_mixes(name: str) -> None:
    refusal = examine(MIXED[name]()).refusal
    assert re.match(f"ValueError: {NAMED[name]}", refusal)
    assert "expected" in refusal and len(refusal) < 700


# layers with one row for all examples, or not called at all
SHARED = ["DeBERTa-v2", "DeBERTa-v2, one key", "Mamba" if NEW else "Mixtral"]


@pytest.mark.parametrize("name", [*SHARED, "sorted by length inside forward", "packed sequences", "routed experts"])
def test_a_refusal_says_what_to_write_and_that_is_right(name: str) -> None:
    case = (CATALOGUE | MIXED)[name]()
    refusal = examine(case).refusal
    assert refusal.startswith("ValueError: ") and len(refusal) < 700
    case.layers = as_told(refusal)
    assert case.layers is not None
    found = examine(case)
    assert not found.refusal
    assert found.worst < 1e-10


@pytest.mark.parametrize("name", MIXED)
def test_nothing_that_captures_lets_mixed_examples_pass(name: str) -> None:
    case = MIXED[name]()
    model, objective, data = case.model, case.objective, case.batches
    C = identity(model, objective, layers=case.layers)
    for ask in (
        lambda: kfac(model, objective, data, labels="observed", **QUIET),
        lambda: diagonal(model, objective, data, labels="observed", **QUIET),
        lambda: influence(model, objective, data, data[:1], C, **QUIET),
        lambda: self_influence(model, objective, data, C, **QUIET),
        lambda: TrainIndex.build(model, objective, data, C, **QUIET),
    ):
        with pytest.raises(ValueError, match=NAMED[name]):
            ask()
    assert not any(m._forward_hooks for m in model.modules())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
