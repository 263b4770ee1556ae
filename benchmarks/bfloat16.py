"""How far a bfloat16 model's scores are from those of the same weights in float64.

    python benchmarks/bfloat16.py

A Llama of three blocks, width 64, is trained for 150 steps on the sequences of a random Markov chain and rounded to
bfloat16. The same rounded weights are then scored in bfloat16, float32 and float64: 10 held-out queries against 96
training sequences of 24 predicted tokens, layers="*mlp*", observed labels (nothing is drawn), default damping.
"""

from __future__ import annotations

import torch
import transformers
from torch import Tensor, nn

from inflib import NextToken, ekfac, identity, influence, self_influence, token_batches

VOCABULARY, TOKENS, EXAMPLES, QUERIES, STEPS = 64, 25, 96, 10, 150
DTYPES = (torch.bfloat16, torch.float32, torch.float64)


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
    found = {dtype: scores(model.to(dtype), train, queries) for dtype in DTYPES}
    truth = found.pop(torch.float64)
    print("| scores | model in | Pearson | Spearman | relative error |\n|---|---|---:|---:|---:|")
    for dtype, kinds in found.items():
        for kind, came in kinds.items():
            exact = truth[kind]
            error = float((came - exact).norm() / exact.norm())
            pearson, spearman = correlation(came, exact), correlation(ranks(came), ranks(exact))
            print(f"| {kind} | {str(dtype).removeprefix('torch.')} | {pearson:.4f} | {spearman:.4f} | {error:.1e} |")


if __name__ == "__main__":
    main()
