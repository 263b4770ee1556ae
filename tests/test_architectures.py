"""The models people bring, and models that put their examples in unusual places, against one example at a time.

``architectures.py`` and ``layouts.py`` hold the models, ``alone.py`` the oracle. What is not here of the catalogue is
seen with ``python tests/architectures.py``.
"""

from __future__ import annotations

import pytest
from alone import examine
from architectures import CATALOGUE
from layouts import MIXED, RIGHT

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
    assert found.activations < 1e-10, "padding counts"


@pytest.mark.parametrize("name", RIGHT)
def test_examples_are_found_wherever_a_model_puts_them(name: str) -> None:
    found = examine(RIGHT[name]())
    assert not found.refusal
    assert found.worst < 1e-10
    assert found.activations < 1e-10


@pytest.mark.parametrize("name", MIXED)
def test_mixed_examples_are_refused_in_one_breath(name: str) -> None:
    refusal = examine(MIXED[name]()).refusal
    assert refusal.startswith("ValueError: ")
    assert "expected" in refusal and len(refusal) < 700
