"""inflib's fit beside bergson 2.5.1's, on a small Llama: CPU-seconds and peak memory of one library a process.

    .venv-bergson/bin/python benchmarks/beside_bergson.py bergson       # README.md says how that environment is made
    .venv-bergson/bin/python benchmarks/beside_bergson.py inflib

Four blocks of width 192, hidden 512, random weights; 128 sequences of 128 predicted tokens in batches of 16; EK-FAC of
the twelve matrices of the perceptrons, labels sampled from the model, one thread, float32. bergson's pipeline is called
below its command line, so that no process is started for it; what both write to disk is within the time (inflib: none).
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from measure import Cost
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

TOKENS, EXAMPLES, BATCH, BLOCKS = 129, 128, 16, 4
LAYERS = [f"layers.{k}.mlp.{part}" for k in range(BLOCKS) for part in ("gate_proj", "up_proj", "down_proj")]


def model_and_tokens() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512, hidden_size=192, intermediate_size=512, num_hidden_layers=BLOCKS, num_attention_heads=4,
        max_position_embeddings=256,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval(), torch.randint(0, 512, (EXAMPLES, TOKENS))


def with_inflib(model: nn.Module, ids: Tensor) -> Cost:
    from inflib import NextToken, ekfac

    train = [(some[:, :-1], some[:, 1:]) for some in ids.split(BATCH)]
    with Cost() as cost:
        ekfac(model, NextToken(), train, layers=[f"model.{name}" for name in LAYERS], progress=False)
    return cost


def with_bergson(model: Any, ids: Tensor) -> Cost:
    from bergson.config.config import HessianConfig, IndexConfig
    from bergson.data import allocate_batches
    from bergson.hessians.hessian_approximations import fit_factored_hessians
    from datasets import Dataset

    columns = {"input_ids": ids.tolist(), "labels": ids.tolist(), "attention_mask": torch.ones_like(ids).tolist()}
    data, tokens = Dataset.from_dict(columns | {"length": [TOKENS] * EXAMPLES}), BATCH * TOKENS
    with tempfile.TemporaryDirectory() as name:
        for part in ("run.part", "fit"):
            (Path(name) / part).mkdir()
        index = IndexConfig(run_path=f"{name}/run", model="none", precision="fp32", token_batch_size=tokens)
        how = HessianConfig(method="kfac", ev_correction=True)
        batches = allocate_batches(data["length"][:], tokens)
        chosen: Any = dict(target_modules=set(LAYERS), attention_cfgs={}, batches=batches, path=f"{name}/fit")
        with Cost() as cost:
            fit_factored_hessians(model, data, index, how, do_eigendecomposition=True, **chosen)
    return cost


def main() -> None:
    torch.set_num_threads(1)
    library = {"inflib": with_inflib, "bergson": with_bergson}[sys.argv[1]]
    cost = library(*model_and_tokens())
    print(f"{sys.argv[1]}: {cost.cpu_s:.1f} CPU-s, {cost.peak_mib - cost.baseline_mib:.0f} MiB above baseline")


if __name__ == "__main__":
    main()
