"""How far scores are from float64's where the model, or products, are in fewer digits: bfloat16, float32, TF32.

    python benchmarks/bfloat16.py

A Llama of three blocks, width 64, is trained for 150 steps on the sequences of a random Markov chain and rounded to
bfloat16. The same rounded weights are then scored in bfloat16, float32 and float64: 10 held-out queries against 96
training sequences of 24 predicted tokens, layers="*mlp*", observed labels (nothing is drawn), default damping. TF32 is
what a GPU multiplies float32 in where the user allows it (torch.set_float32_matmul_precision("high")): here each factor
of every matrix product, the model's and inflib's, is rounded to TF32's ten bits. Written to results/bfloat16.json.
"""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from inflib import NextToken, ekfac, identity, influence, self_influence, token_batches

VOCABULARY, TOKENS, EXAMPLES, QUERIES, STEPS = 64, 25, 96, 10, 150
RESULTS = Path(__file__).parent / "results" / "bfloat16.json"


FACTORS = {"mm": (0, 1), "bmm": (0, 1), "addmm": (1, 2), "addmm_": (1, 2), "baddbmm": (1, 2)}  # of their arguments


class TF32(TorchDispatchMode):
    """Inside, the factors of every product of float32 matrices are rounded to ten bits after the leading one."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = list(args)
        for at in FACTORS.get(function.overloadpacket.__name__, ()):
            if given[at].dtype == torch.float32:
                bits = given[at].contiguous().view(torch.int32)
                given[at] = ((bits + 2**12) & -(2**13)).view(torch.float32)
        return function(*given, **(kwargs or {}))


def sequences(count: int, follows: Tensor, generator: torch.Generator) -> Tensor:
    """(count, TOKENS) of a chain in which two tokens may follow each."""
    x = torch.randint(0, VOCABULARY, (count, 1), generator=generator)
    while x.shape[1] < TOKENS:
        which = torch.randint(0, 2, (count, 1), generator=generator)
        x = torch.cat([x, follows[x[:, -1:], which]], dim=1)
    return x


def trained(data: Tensor, generator: torch.Generator) -> nn.Module:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=64, intermediate_size=172, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=False,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    optimiser = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(STEPS):
        some = data[torch.randint(0, EXAMPLES, (32,), generator=generator)]
        log_p = model(some[:, :-1]).logits.log_softmax(-1)
        loss = -log_p.gather(2, some[:, 1:, None]).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model.eval()


def scores(model: nn.Module, train: list, queries: list) -> dict[str, Tensor]:
    """Each kind of score, (rows, examples), in float64."""
    objective, options = NextToken(), {"progress": False}
    fit = ekfac(model, objective, train, layers="*mlp*", labels="observed", **options)
    plain = identity(model, objective, layers="*mlp*")
    return {
        "EK-FAC": influence(model, objective, train, queries, fit, **options).double(),
        "self-influence": self_influence(model, objective, train, fit, **options)[None].double(),
        "gradient dot": influence(model, objective, train, queries, plain, **options).double(),
    }


def correlation(x: Tensor, y: Tensor) -> float:
    """Mean over rows of Pearson's correlation."""
    return float(torch.stack([torch.corrcoef(torch.stack(pair))[0, 1] for pair in zip(x, y, strict=True)]).mean())


def ranks(x: Tensor) -> Tensor:
    return x.argsort(-1).argsort(-1).double()


def main() -> None:
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(1)
    follows = torch.randint(0, VOCABULARY, (VOCABULARY, 2), generator=generator)
    data, held = sequences(EXAMPLES, follows, generator), sequences(QUERIES, follows, generator)
    model = trained(data, generator).to(torch.bfloat16)
    train, queries = token_batches(data), token_batches(held)
    exact = scores(model.to(torch.float64), train, queries)
    rows = []
    for name, dtype, mode in (
        ("bfloat16", torch.bfloat16, nullcontext()),
        ("float32", torch.float32, nullcontext()),
        ("float32, products in TF32", torch.float32, TF32()),
    ):
        with mode:
            came = scores(model.to(dtype), train, queries)
        rows += [{"model": name, "scores": kind} | compared(came[kind], exact[kind]) for kind in exact]
        print(*rows[-len(exact) :], sep="\n", flush=True)
    facts = {"torch": torch.__version__, "transformers": transformers.__version__, "rows": rows}
    RESULTS.write_text(json.dumps(facts, indent=1) + "\n")


def compared(came: Tensor, exact: Tensor) -> dict[str, float]:
    """How near scores (rows, examples) are to exact ones."""
    return {
        "pearson": round(correlation(came, exact), 8),
        "spearman": round(correlation(ranks(came), ranks(exact)), 8),
        "error": float(f"{float((came - exact).norm() / exact.norm()):.3g}"),
    }


if __name__ == "__main__":
    main()
