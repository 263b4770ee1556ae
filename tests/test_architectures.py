"""The models people bring, and models that put their examples in unusual places, against one example at a time.

``architectures.py`` and ``layouts.py`` hold the models, ``alone.py`` the oracle. What is not here of the catalogue is
seen with ``python tests/architectures.py``.
"""

from __future__ import annotations

import pytest
from alone import QUIET, examine
from architectures import CATALOGUE
from layouts import MIXED, RIGHT

from inflib import TrainIndex, diagonal, identity, influence, kfac, self_influence

pytestmark = [
    pytest.mark.usefixtures("float64"),
    pytest.mark.filterwarnings("ignore::inflib.CoverageNote", "ignore:.*gradient_checkpointing:FutureWarning"),
]

TRIED = ["BERT", "ALBERT", "GPT-2", "OPT", "Llama, checkpointed", "Gemma", "Mixtral", "Swin", "ConvNext", "ResNet"]


@pytest.mark.parametrize("name", TRIED)
def test_gradients_and_their_products_are_those_of_each_example_alone(name: str) -> None:
    found = examine(CATALOGUE[name]())
    assert not found.refusal
    assert found.worst < 1e-10
    assert max(found.activations, found.slopes) < 1e-10, "padding counts"


@pytest.mark.parametrize("name", RIGHT)
def test_examples_are_found_wherever_a_model_puts_them(name: str) -> None:
    found = examine(RIGHT[name]())
    assert not found.refusal
    assert max(found.worst, found.activations, found.slopes) < 1e-10


WAYS_ON = {  # what a refusal names, and what is left once it is left out
    "sorted by length inside forward": ("l", ["head"]),
    "packed sequences": ("l", ["head"]),
    "contrastive logits": ("v", ["u"]),
    "a graph's nodes": ("l", []),
    "batch statistics written by hand": ("l", ["head"]),
    "routed experts": ("experts.0", ["router", "head"]),
    "one expert for every example": ("a", []),
    "a weight used outside its module in later batches": ("l", ["head"]),
    "rows in order in the first batch only": ("l", ["head"]),
    "a loss over the batch": (None, []),
}


@pytest.mark.parametrize("name", MIXED)
def test_mixed_examples_are_refused_in_one_breath_that_names_the_layer(name: str) -> None:
    refusal, layer = examine(MIXED[name]()).refusal, WAYS_ON[name][0]
    assert refusal.startswith("ValueError: ") and "expected" in refusal and len(refusal) < 700
    assert layer is None or f"layer {layer!r}" in refusal


@pytest.mark.parametrize("name", [name for name, (_, rest) in WAYS_ON.items() if rest])
def test_what_a_refusal_does_not_name_is_right(name: str) -> None:
    case = MIXED[name]()
    case.layers = WAYS_ON[name][1]
    found = examine(case)
    assert not found.refusal
    assert found.worst < 1e-10


@pytest.mark.parametrize("name", [name for name in MIXED if name != "a loss over the batch"])
def test_nothing_that_captures_lets_mixed_examples_pass(name: str) -> None:
    case = MIXED[name]()
    model, objective, data = case.model, case.objective, case.batches
    C = identity(model, objective, layers=case.layers)
    for ask in (
        lambda: kfac(model, objective, data, **QUIET),
        lambda: diagonal(model, objective, data, **QUIET),
        lambda: influence(model, objective, data, data[:1], C, **QUIET),
        lambda: self_influence(model, objective, data, C, **QUIET),
        lambda: TrainIndex.build(model, objective, data, C, **QUIET),
    ):
        with pytest.raises(ValueError, match=f"layer {WAYS_ON[name][0]!r}"):
            ask()
    assert not any(m._forward_hooks for m in model.modules())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
