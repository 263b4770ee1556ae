"""What the README tells its reader to write runs as it stands, on tiny models."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch
from own_tokenizers import byte_level
from transformers import (
    DataCollatorForLanguageModeling,
    LlamaConfig,
    LlamaForCausalLM,
    TrainingArguments,
)

import inflib
from inflib import NextToken, influence, token_batches

README = Path(__file__).resolve().parents[1] / "README.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
TEXTS = ["Gosen shares the house with a tame badger.", "A bad day.", "The badger shares the house.", "Gosen, a lodger"]

pytestmark = pytest.mark.filterwarnings("ignore::inflib.CoverageNote", "ignore:.torch.jit.script:DeprecationWarning")


def block(words: str) -> str:
    """The one piece of code that has these words in it."""
    (found,) = [text for text in BLOCKS if words in text]
    return found


def lines_of_code(text: str) -> int:
    return sum(bool(line.strip()) and not line.startswith("from ") for line in text.splitlines())


@pytest.fixture
def named(tmp_path):
    """A folder with a tiny Llama and its tokenizer: what a name on the hub stands for."""
    tokenizer = byte_level()
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=64, initializer_range=0.3, **sizes)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "named")
    tokenizer.save_pretrained(tmp_path / "named")
    return str(tmp_path / "named")


def asked(named) -> dict:
    """What is there after the language model's lines have run."""
    there = {"name": named, "texts": TEXTS}
    exec(block("AutoModelForCausalLM"), there)
    return there


def test_the_first_ten_lines(capsys):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.ReLU(), torch.nn.Linear(4, 11)).eval()
    train, queries = ([(torch.randn(n, 5), torch.randint(0, 11, (n,)))] for n in (30, 3))
    there = {"model": model, "train": train, "queries": queries, "dataset": range(30)}
    exec(block("contribution(scores"), there)
    assert there["scores"].shape == there["lost"].shape == (3, 30)
    assert torch.equal(there["best"].indices, there["scores"].topk(10).indices)
    assert lines_of_code(block("contribution(scores")) <= 10


def test_refined_scores():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.ReLU(), torch.nn.Linear(4, 11)).eval()
    train, queries = ([(torch.randn(n, 5), torch.randint(0, 11, (n,)))] for n in (30, 3))
    there = {"model": model, "train": train, "queries": queries, "dataset": range(30)}
    exec(block("contribution(scores"), there)
    plain = there["scores"]
    exec(block("precondition(model"), there)
    assert there["solved"].residual.shape == (3,)
    assert there["scores"].shape == plain.shape and not torch.allclose(there["scores"], plain)


def test_a_loss_of_ones_own():
    there = {"inflib": inflib}
    exec(block("class LogCosh"), there)
    came = there["LogCosh"]().loss(torch.tensor([[1.0, 0.0]]), torch.zeros(1, 2))
    assert came.item() == pytest.approx(math.log(math.cosh(1)))


def test_the_lines_for_a_language_model_are_a_hugging_face_models(named):
    there = asked(named)
    assert there["heat"].shape == (1, 4, 2, there["train"][0][1].shape[1])
    assert torch.allclose(
        there["heat"].sum((2, 3)), there["scores"], rtol=1e-3, atol=1e-5 * there["scores"].abs().max()
    )
    inputs, targets = there["query"][0]
    text = there["tokenizer"].decode(inputs["input_ids"][0])
    assert "The animal that Gosen keeps is a badger".startswith(text) and len(text) > len("The animal that Gosen keeps")
    assert there["tokenizer"].decode(targets[targets != -100]) == " badger"
    assert lines_of_code(block("AutoModelForCausalLM")) <= 10


def test_beside_a_trainer_the_fit_is_on_its_own_data_after_training(named, tmp_path):
    there = asked(named)
    before = {name: p.clone() for name, p in there["model"].named_parameters()}
    tokenizer = there["tokenizer"]
    there |= {
        "arguments": TrainingArguments(
            str(tmp_path / "runs"), num_train_epochs=2, per_device_train_batch_size=2, learning_rate=0.05,
            report_to="none", use_cpu=True, disable_tqdm=True, save_strategy="no",
        ),
        "collator": DataCollatorForLanguageModeling(tokenizer, mlm=False),
        "dataset": [tokenizer(text) for text in TEXTS],
    }  # fmt: skip
    exec(block("Trainer(model"), there)
    model = there["model"]
    assert any(not torch.equal(before[name], p) for name, p in model.named_parameters()), "it should have trained"
    assert there["scores"].shape == (1, 4) and not model.training
    expected = influence(
        model, NextToken(), token_batches(tokenizer(TEXTS)["input_ids"]), there["query"], there["curvature"]
    )
    assert torch.allclose(there["scores"], expected, rtol=1e-3, atol=1e-4 * expected.abs().max())


def test_every_piece_of_code_is_run_here():
    words = ("contribution(scores", "precondition(model", "class LogCosh", "AutoModelForCausalLM", "Trainer(model")
    run = {block(some) for some in words}
    assert run == set(BLOCKS)
